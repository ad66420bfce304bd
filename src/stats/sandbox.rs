//! A pod's figures.

use std::sync::Arc;
use std::time::Instant;

use super::collector::{Collector, now_ns};
use super::container::{cpu_usage, io_usage, memory_usage, number};
use super::network::network_usage;
use super::tracked::Reading;
use super::{PodTarget, StatsError};
use crate::cri;
use crate::sys::cgroup::{CgroupStats, CpuStats, MemoryStats};

impl Collector {
    pub(super) fn read_pod(
        self: &Arc<Self>,
        target: &PodTarget,
        walk_until: Instant,
    ) -> Result<cri::PodSandboxStats, StatsError> {
        let mut containers = Vec::with_capacity(target.containers.len());
        let mut readings = Vec::new();
        for container in &target.containers {
            let (stats, reading) = self.read_container_twice(container, walk_until)?;
            // A container that does not run is none of the pod's consumers.
            if let Some(reading) = reading {
                containers.push(stats);
                readings.push(reading);
            }
        }
        let reading = match &target.cgroup {
            Some(cgroup) => self.read_cgroup(&target.id, cgroup)?,
            None => {
                readings.extend(self.read_cgroup(&target.id, &target.own_cgroup)?);
                sum(&readings)
            }
        };
        let timestamp = reading
            .as_ref()
            .map_or_else(now_ns, |reading| reading.stats.timestamp_ns);
        let linux = cri::LinuxPodSandboxStats {
            cpu: reading.as_ref().and_then(cpu_usage),
            memory: reading.as_ref().and_then(memory_usage),
            network: target
                .network
                .as_ref()
                .and_then(|network| network_usage(network, timestamp)),
            process: Some(cri::ProcessUsage {
                timestamp,
                process_count: number(process_count(target)?),
            }),
            containers,
            io: reading.as_ref().and_then(io_usage),
        };
        let attributes = Some(target.attributes.clone());
        Ok(cri::PodSandboxStats {
            attributes,
            linux: Some(linux),
            windows: None,
        })
    }
}

/// Processes, not threads, of pause and the containers. Not all that is in the pod's cgroup: a scope of systemd's has
/// the pod's monitor in it, too.
fn process_count(target: &PodTarget) -> Result<u64, StatsError> {
    let cgroups = target.containers.iter().map(|c| &c.cgroup).chain([&target.own_cgroup]);
    let mut count = 0;
    for cgroup in cgroups {
        let there = cgroup.process_count().map_err(|source| StatsError::Read {
            id: target.id.clone(),
            source,
        })?;
        count += there as u64;
    }
    Ok(count)
}

/// The sum of what sums: time and memory. Pressure does not.
fn sum(readings: &[Reading]) -> Option<Reading> {
    let first = readings.first()?;
    let (mut cpu, mut memory) = (CpuStats::default(), MemoryStats::default());
    let mut usage_nano_cores = Some(0u64);
    for reading in readings {
        let c = reading.stats.cpu.unwrap_or_default();
        cpu.usage_ns += c.usage_ns;
        cpu.user_ns += c.user_ns;
        cpu.system_ns += c.system_ns;
        let m = reading.stats.memory.unwrap_or_default();
        memory.usage_bytes += m.usage_bytes;
        memory.working_set_bytes += m.working_set_bytes;
        memory.rss_bytes += m.rss_bytes;
        memory.page_faults += m.page_faults;
        memory.major_page_faults += m.major_page_faults;
        usage_nano_cores = usage_nano_cores
            .zip(reading.usage_nano_cores)
            .map(|(sum, more)| sum + more);
    }
    let timestamp_ns = first.stats.timestamp_ns;
    let stats = CgroupStats {
        timestamp_ns,
        cpu: Some(cpu),
        memory: Some(memory),
        ..CgroupStats::default()
    };
    Some(Reading {
        stats,
        usage_nano_cores,
    })
}
