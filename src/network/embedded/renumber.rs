//! New pod CIDRs while there are pods: new pods get addresses of the new networks; the old ones go when their last pod
//! goes, and nobody who has an address loses it.

use super::link::{self, Link};
use super::nft::table;
use super::plan::Layout;
use super::subnet::Subnet;
use super::worker::{Worker, kernel};
use crate::network::NetworkError;

impl Worker {
    /// The layout in force once the wanted networks are, on disk and on `bridge`. What an earlier daemon began to change
    /// is finished. The table that names the networks is gone afterwards if they changed: whoever asks makes it anew.
    pub(super) fn renumbered(&mut self, bridge: &Link, layout: Layout) -> Result<Layout, NetworkError> {
        let mut layout = self.with_wanted(layout)?;
        if layout.unsettled {
            self.set_up(bridge, &layout)?;
            let filter = &mut self.sockets()?.filter;
            table::remove(filter, &layout.table).map_err(kernel("remove table", &layout.table))?;
            layout.unsettled = false;
            self.record(&layout)?;
        }
        self.retire()?;
        Ok(self.layout.clone().unwrap_or(layout))
    }

    /// `layout`, or the one that replaces it from here on: on disk, but not yet in the kernel.
    fn with_wanted(&mut self, layout: Layout) -> Result<Layout, NetworkError> {
        let wanted = self.wanted();
        if wanted.is_empty() || wanted == layout.subnets {
            return Ok(layout);
        }
        let gateways: Vec<_> = wanted.iter().map(Subnet::gateway).collect();
        if let Some((ip, _)) = self.leases.iter().find(|(ip, _)| gateways.contains(ip)) {
            tracing::warn!(%ip, "a pod has the address of the new pod network's gateway: the old network stays until it goes");
            return Ok(layout);
        }
        tracing::info!(from = ?layout.subnets, to = ?wanted, "new pods get addresses of other networks");
        let retired = layout.all().filter(|old| !wanted.contains(old)).copied().collect();
        let new = Layout {
            subnets: wanted,
            retired,
            unsettled: true,
            ..layout
        };
        self.record(&new)?;
        Ok(new)
    }

    /// Takes back what retired networks without pods have.
    pub(super) fn retire(&mut self) -> Result<(), NetworkError> {
        let Some(layout) = self.layout.clone().filter(|layout| !layout.retired.is_empty()) else {
            return Ok(());
        };
        let held = |subnet: &Subnet| self.leases.iter().any(|(ip, _)| subnet.contains(ip));
        let (retired, gone): (Vec<Subnet>, Vec<Subnet>) = layout.retired.iter().partition(|subnet| held(subnet));
        if gone.is_empty() {
            return Ok(());
        }
        tracing::info!(subnets = ?gone, "no pod has an address of these networks any more");
        let found = link::find(&mut self.sockets()?.route, &layout.bridge);
        if let Some(bridge) = found.map_err(kernel("find link", &layout.bridge))? {
            let route = &mut self.sockets()?.route;
            for subnet in &gone {
                link::remove_address(route, bridge.index, subnet.gateway(), subnet)
                    .map_err(kernel("take an address from", &bridge.name))?;
            }
        }
        self.record(&Layout { retired, ..layout })
    }
}
