//! The work of the embedded network, one piece after the other.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use super::departures::Departures;
use super::leases::{Lease, Leases};
use super::link::{self, Bridge, Link, Veth};
use super::nft::{forward, hostports, table};
use super::plan::{EmbeddedConfig, Layout, LayoutFile, is_veth_name, veth_name};
use super::subnet::Subnet;
use super::{conntrack, route, shape, sysctl};
use crate::model::{SandboxId, chain};
use crate::network::bandwidth::Bandwidth;
use crate::network::{Attached, Attachment, NetworkError, PortMapping, Protocol, netns};
use crate::sys::netlink::{Family, Socket};

const POD_LINK: &str = "eth0";
const DEFAULT_MTU: u32 = 1500;

/// Both sockets, opened by the network thread itself.
pub(super) struct Sockets {
    pub(super) route: Socket,
    pub(super) filter: Socket,
}

/// State of the embedded network; what is on disk and in the kernel is the truth.
pub struct Worker {
    config: EmbeddedConfig,
    pod_cidrs: Vec<Subnet>,
    file: LayoutFile,
    pub(super) layout: Option<Layout>,
    pub(super) leases: Leases,
    pub(super) departures: Departures,
    sockets: Option<Sockets>,
}

pub(super) fn kernel(op: &'static str, subject: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let subject = subject.into();
    move |source| NetworkError::Kernel { op, subject, source }
}

impl Worker {
    /// Reads the records in `dir`.
    pub fn open(dir: &Path, config: &EmbeddedConfig) -> Result<Self, NetworkError> {
        let leases = Leases::open(&dir.join("ips"))?;
        let file = LayoutFile::new(dir);
        let layout = file.read()?;
        Ok(Self {
            config: config.clone(),
            pod_cidrs: Vec::new(),
            file,
            layout,
            leases,
            departures: Departures::new(config.idle),
            sockets: None,
        })
    }

    /// Whether links and rules can be spoken to.
    pub fn probe(&mut self) -> Result<(), NetworkError> {
        let (_, name) = self.config.names();
        table::exists(&mut self.sockets()?.filter, &name)
            .map(drop)
            .map_err(kernel("ask for table", name))
    }

    pub fn set_pod_cidrs(&mut self, subnets: Vec<Subnet>) {
        self.pod_cidrs = subnets;
    }

    pub(super) fn sockets(&mut self) -> Result<&mut Sockets, NetworkError> {
        if self.sockets.is_none() {
            let route = Socket::open(Family::Route).map_err(kernel("open", "an rtnetlink socket"))?;
            let filter = Socket::open(Family::Netfilter).map_err(kernel("open", "an nfnetlink socket"))?;
            self.sockets = Some(Sockets { route, filter });
        }
        Ok(self.sockets.as_mut().expect("just opened"))
    }

    /// Connects a pod; a failure is undone before it is returned.
    pub fn add(&mut self, attachment: &Attachment) -> Result<Attached, NetworkError> {
        let id = &attachment.sandbox_id;
        if !self.leases.of(id).is_empty() {
            self.del(id)?;
        }
        self.refuse_taken_ports(attachment)?;
        let connected = self.connect(attachment);
        if connected.is_err()
            && let Err(error) = self.del(id)
        {
            tracing::warn!(sandbox_id = %id, error = %chain(&error), "could not undo a failed ADD; DEL will");
        }
        connected
    }

    fn refuse_taken_ports(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let taken = |port: &PortMapping, holder: &SandboxId| {
            Err(NetworkError::PortTaken {
                port: port.to_string(),
                holder: holder.to_string(),
            })
        };
        for (n, port) in attachment.ports.iter().enumerate() {
            if attachment.ports[..n].iter().any(|other| other.collides(port)) {
                return taken(port, &attachment.sandbox_id);
            }
            for (_, lease) in self.staying() {
                if lease.ports.iter().any(|other| other.collides(port)) {
                    return taken(port, &lease.sandbox_id);
                }
            }
        }
        Ok(())
    }

    fn connect(&mut self, attachment: &Attachment) -> Result<Attached, NetworkError> {
        let id = &attachment.sandbox_id;
        let netns = netns::open(&attachment.netns).map_err(|source| NetworkError::File {
            op: "enter",
            path: attachment.netns.clone(),
            source,
        })?;
        self.departures.wanted();
        let (bridge, layout) = self.ensure()?;
        let lease = Lease {
            sandbox_id: id.clone(),
            ports: attachment.ports.clone(),
        };
        let mut ips = Vec::new();
        for subnet in &layout.subnets {
            ips.push((self.leases.take(subnet, &lease)?, *subnet));
        }
        let name = veth_name(id);
        let veth = Veth {
            host_name: &name,
            pod_name: POD_LINK,
            pod_address: hardware_address(ips[0].0),
            pod_netns: std::os::fd::AsFd::as_fd(&netns),
            bridge: &bridge,
            alias: id.as_str(),
        };
        let bandwidth = Bandwidth::of(attachment);
        link::create_veth(&mut self.sockets()?.route, &veth).map_err(kernel("create link", &name))?;
        if let Some(rate) = bandwidth.ingress {
            let route = &mut self.sockets()?.route;
            limit(route, &name, rate).map_err(kernel("limit the bandwidth of", &name))?;
        }
        netns::run_in(&netns, || configure_pod(&ips, bandwidth.egress))
            .map_err(kernel("configure the pod's end of", &name))?;
        if !lease.ports.is_empty() {
            let entries = entries(ips.iter().map(|(ip, _)| (*ip, &lease)));
            let filter = &mut self.sockets()?.filter;
            hostports::insert(filter, &layout.table, &entries)
                .map_err(kernel("insert host ports in", &layout.table))?;
            let udp = lease.ports.iter().filter(|port| port.protocol == Protocol::Udp);
            self.forget(
                conntrack::forget_untranslated,
                &udp.map(|port| port.host_port).collect::<Vec<_>>(),
            );
        }
        Ok(attached(attachment, &layout, &name, &ips))
    }

    /// Stale UDP connections are a nuisance, not a reason to refuse a pod: a failure is only logged.
    fn forget<T>(&mut self, forget: fn(&mut Socket, &[T]) -> io::Result<()>, what: &[T]) {
        let Ok(sockets) = self.sockets() else { return };
        if !what.is_empty()
            && let Err(error) = forget(&mut sockets.filter, what)
        {
            tracing::debug!(%error, "could not flush connection tracking");
        }
    }

    /// Leases of pods that have not had their DEL.
    fn staying(&self) -> impl Iterator<Item = (IpAddr, &Lease)> {
        self.leases
            .iter()
            .filter(|(_, lease)| !self.departures.has(&lease.sandbox_id))
    }

    /// Disconnects a pod, and waits for the kernel until nothing of it is left. Idempotent.
    fn del(&mut self, id: &SandboxId) -> Result<(), NetworkError> {
        self.begin_del(id)?;
        self.end_now(id)
    }

    /// DEL but for its end: no host port leads to the pod any more, and its link and addresses go soon. Idempotent.
    pub fn begin_del(&mut self, id: &SandboxId) -> Result<(), NetworkError> {
        if self.departures.has(id) {
            return Ok(());
        }
        let held = |lease: &Lease| lease.sandbox_id == *id && !lease.ports.is_empty();
        if self.leases.iter().any(|(_, lease)| held(lease)) {
            let table = self.names().1;
            hostports::remove(&mut self.sockets()?.filter, &table, |holder| holder == id.as_str())
                .map_err(kernel("remove host ports from", table))?;
            let held = self.leases.iter().filter(|(_, lease)| lease.sandbox_id == *id);
            let translated = held.filter(|(_, lease)| lease.ports.iter().any(|port| port.protocol == Protocol::Udp));
            let ips: Vec<IpAddr> = translated.map(|(ip, _)| ip).collect();
            self.forget(conntrack::forget_translated, &ips);
        }
        self.departures.begin(id);
        Ok(())
    }

    /// Frees everything that no sandbox of `valid` owns.
    pub fn gc(&mut self, valid: &BTreeSet<SandboxId>) -> Result<(), NetworkError> {
        let gone: BTreeSet<SandboxId> = self
            .leases
            .iter()
            .map(|(_, l)| l.sandbox_id.clone())
            .filter(|id| !valid.contains(id) && !self.departures.has(id))
            .collect();
        for id in gone {
            tracing::info!(sandbox_id = %id, "freeing the addresses of a pod that is no more");
            self.del(&id)?;
        }
        if self.leases.is_empty() {
            return self.dismantle();
        }
        let holders: BTreeSet<SandboxId> = self.leases.iter().map(|(_, lease)| lease.sandbox_id.clone()).collect();
        let (bridge, layout) = self.ensure()?;
        let names: BTreeSet<String> = holders.iter().map(veth_name).collect();
        let Sockets { route, filter } = self.sockets()?;
        for link in link::list(route).map_err(kernel("list links of", &bridge.name))? {
            if link.master == Some(bridge.index) && is_veth_name(&link.name) && !names.contains(&link.name) {
                link::remove(route, &link.name).map_err(kernel("remove link", link.name))?;
            }
        }
        let known: BTreeSet<&str> = holders.iter().map(SandboxId::as_str).collect();
        hostports::remove(filter, &layout.table, |holder| !known.contains(holder))
            .map_err(kernel("remove host ports from", layout.table))
    }

    /// Bridge and table of the layout in force, or of the one that would be.
    fn names(&self) -> (String, String) {
        match &self.layout {
            Some(layout) => (layout.bridge.clone(), layout.table.clone()),
            None => self.config.names(),
        }
    }

    /// Makes the bridge and the table if they are missing, also when someone removed them under running pods (a
    /// firewall that flushes the whole rule set is a common sight).
    fn ensure(&mut self) -> Result<(Link, Layout), NetworkError> {
        let (name, _) = self.names();
        let found = link::find(&mut self.sockets()?.route, &name).map_err(kernel("find link", &name))?;
        let (bridge, layout) = match (found, self.layout.clone()) {
            (Some(bridge), Some(layout)) if is_ours(&bridge, &layout) => {
                let layout = self.renumbered(&bridge, layout)?;
                (bridge, layout)
            }
            (Some(_), _) => return Err(kernel("use bridge", name)(io::ErrorKind::AlreadyExists.into())),
            (None, Some(layout)) if !self.leases.is_empty() => (self.create_bridge(&layout)?, layout),
            (None, _) => {
                let layout = self.choose()?;
                (self.create_bridge(&layout)?, layout)
            }
        };
        let filter = &mut self.sockets()?.filter;
        forward::open(filter, &layout.bridge, &alias(&layout))
            .map_err(kernel("open the firewall for", &layout.bridge))?;
        if !table::exists(filter, &layout.table).map_err(kernel("ask for table", &layout.table))? {
            let entries = entries(self.staying());
            let filter = &mut self.sockets()?.filter;
            let subnets: Vec<Subnet> = layout.all().copied().collect();
            table::create(filter, &layout.table, &layout.bridge, &subnets)
                .map_err(kernel("create table", &layout.table))?;
            hostports::insert(filter, &layout.table, &entries)
                .map_err(kernel("insert host ports in", &layout.table))?;
        }
        Ok((bridge, layout))
    }

    /// Settles names and networks, on disk first.
    fn choose(&mut self) -> Result<Layout, NetworkError> {
        let routes = route::read(&mut self.sockets()?.route).map_err(kernel("read", "routes"))?;
        let (bridge, table) = self.config.names();
        let subnets = self
            .config
            .choose(&self.pod_cidrs, &routes.used, self.layout.as_ref())?;
        let layout = Layout {
            bridge,
            table,
            subnets,
            retired: Vec::new(),
            unsettled: false,
        };
        if self.layout.as_ref() != Some(&layout) {
            self.record(&layout)?;
        }
        Ok(layout)
    }

    pub(super) fn record(&mut self, layout: &Layout) -> Result<(), NetworkError> {
        self.file.write(layout)?;
        self.layout = Some(layout.clone());
        Ok(())
    }

    /// The networks that new pods are to get; empty where that is for this instance to choose.
    pub(super) fn wanted(&self) -> Vec<Subnet> {
        match self.config.subnets.is_empty() {
            true => self.pod_cidrs.clone(),
            false => Vec::new(),
        }
    }

    fn create_bridge(&mut self, layout: &Layout) -> Result<Link, NetworkError> {
        let name = &layout.bridge;
        let route = &mut self.sockets()?.route;
        let bridge = Bridge {
            name,
            alias: &alias(layout),
            mtu: route::read(route)
                .map_err(kernel("read", "routes"))?
                .mtu
                .unwrap_or(DEFAULT_MTU),
            address: hardware_address(layout.subnets[0].gateway()),
            ipv6: layout.all().any(|subnet| !subnet.is_ipv4()),
        };
        let link = link::create_bridge(route, &bridge).map_err(kernel("create bridge", name))?;
        if let Err(error) = self.set_up(&link, layout) {
            let removed = link::remove(&mut self.sockets()?.route, name);
            return removed.map_err(kernel("remove bridge", name)).and(Err(error));
        }
        tracing::info!(bridge = %name, subnets = ?layout.subnets, mtu = bridge.mtu, "made the pod network");
        Ok(link)
    }

    pub(super) fn set_up(&mut self, bridge: &Link, layout: &Layout) -> Result<(), NetworkError> {
        let veths: BTreeSet<String> = self
            .leases
            .iter()
            .map(|(_, lease)| veth_name(&lease.sandbox_id))
            .collect();
        let name = &layout.bridge;
        sysctl::quiet_v6(name).map_err(kernel("set up IPv6 of", name))?;
        sysctl::forward_v4()?;
        sysctl::set(&["ipv4", "conf", name, "route_localnet"], "1")?;
        if layout.all().any(|subnet| !subnet.is_ipv4()) {
            sysctl::forward_v6()?;
        }
        let route = &mut self.sockets()?.route;
        let addresses = layout
            .all()
            .map(|subnet| link::address(bridge.index, subnet.gateway(), subnet));
        route
            .send(&mut addresses.collect::<Vec<_>>())
            .map_err(kernel("give addresses to", name))?;
        link::up(route, bridge.index).map_err(kernel("bring up", name))?;
        for veth in veths {
            link::reattach(route, &veth, bridge).map_err(kernel("reattach", veth))?;
        }
        Ok(())
    }

    /// Removes the table and the bridge: no pod is left. What this instance never made is left alone.
    pub(super) fn dismantle(&mut self) -> Result<(), NetworkError> {
        let Some(layout) = self.layout.clone() else {
            return Ok(());
        };
        let Sockets { route, filter } = self.sockets()?;
        forward::close(filter, &alias(&layout)).map_err(kernel("close the firewall for", &layout.bridge))?;
        table::remove(filter, &layout.table).map_err(kernel("remove table", &layout.table))?;
        match link::find(route, &layout.bridge).map_err(kernel("find link", &layout.bridge))? {
            Some(bridge) if is_ours(&bridge, &layout) => {
                link::remove(route, &layout.bridge).map_err(kernel("remove bridge", layout.bridge))
            }
            _ => Ok(()),
        }
    }
}

/// What the bridge says of itself: another link of the same name is never taken for ours.
fn alias(layout: &Layout) -> String {
    format!("pods of {}", layout.table)
}

fn is_ours(bridge: &Link, layout: &Layout) -> bool {
    bridge.alias.as_deref() == Some(&alias(layout))
}

fn entries<'a>(leases: impl Iterator<Item = (IpAddr, &'a Lease)>) -> Vec<hostports::Entry> {
    leases
        .flat_map(|(ip, lease)| {
            lease
                .ports
                .iter()
                .filter_map(move |port| hostports::Entry::new(&lease.sandbox_id, ip, port))
        })
        .collect()
}

/// A locally administered hardware address made from `ip`, so that an address that is given again is no surprise to
/// whoever remembers its last neighbour entry.
fn hardware_address(ip: IpAddr) -> [u8; 6] {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => ip.octets()[12..].try_into().expect("four bytes"),
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

/// Limits what leaves by a link, in bits per second.
fn limit(socket: &mut Socket, name: &str, rate: u64) -> io::Result<()> {
    let index = link::find(socket, name)?.ok_or(io::ErrorKind::NotFound)?.index;
    socket.send(&mut [shape::limit(index, rate)]).map(drop)
}

/// Inside the pod's namespace: addresses, the limit to what the pod sends, up, the way out.
fn configure_pod(ips: &[(IpAddr, Subnet)], egress: Option<u64>) -> io::Result<()> {
    sysctl::quiet_v6(POD_LINK)?;
    let mut socket = Socket::open(Family::Route)?;
    if ips.iter().all(|(ip, _)| ip.is_ipv4()) {
        link::no_link_local(&mut socket, POD_LINK)?;
    }
    let index = link::find(&mut socket, POD_LINK)?.ok_or(io::ErrorKind::NotFound)?.index;
    socket.send(
        &mut ips
            .iter()
            .map(|(ip, subnet)| link::address(index, *ip, subnet))
            .collect::<Vec<_>>(),
    )?;
    if let Some(rate) = egress {
        socket.send(&mut [shape::limit(index, rate)])?;
    }
    link::up(&mut socket, index)?;
    let ways = ips
        .iter()
        .map(|(_, subnet)| route::default_via(index, subnet.gateway()));
    socket.send(&mut ways.collect::<Vec<_>>()).map(drop)
}

/// The result in the form of CNI 1.0, as a plugin would print it.
fn attached(attachment: &Attachment, layout: &Layout, veth: &str, ips: &[(IpAddr, Subnet)]) -> Attached {
    let addresses: Vec<_> = ips
        .iter()
        .map(|(ip, subnet)| {
            serde_json::json!({
                "address": format!("{ip}/{}", subnet.prefix()),
                "gateway": subnet.gateway(),
                "interface": 2,
            })
        })
        .collect();
    let routes: Vec<_> = ips
        .iter()
        .map(|(_, subnet)| {
            let everything = if subnet.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            serde_json::json!({ "dst": everything, "gw": subnet.gateway() })
        })
        .collect();
    let result = serde_json::json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": layout.bridge },
            { "name": veth },
            { "name": POD_LINK, "sandbox": attachment.netns },
        ],
        "ips": addresses,
        "routes": routes,
        "dns": {},
    });
    Attached {
        ips: ips.iter().map(|(ip, _)| *ip).collect(),
        result,
    }
}
