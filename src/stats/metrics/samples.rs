//! Figures become samples, each with its labels in the order of its descriptor.

use super::descriptors::{self as is, BASE_LABELS, Descriptor};
use super::disk::{DeviceNames, FileSystem};
use super::processes::{max_open_files, open_files};
use crate::cri;
use crate::stats::collector::now_ns;
use crate::stats::network::Interface;
use crate::stats::tracked::Full;
use crate::sys::cgroup::{CpuStats, IoDevice, MemoryStats, Psi};

const NS_PER_S: u64 = 1_000_000_000;
const US_PER_S: u64 = 1_000_000;

/// What the kernel takes where a request says nothing.
const DEFAULT_CPU_PERIOD: u64 = 100_000;
const DEFAULT_CPU_SHARES: u64 = 1024;

/// The samples of one container or pod.
pub(super) struct Samples {
    labels: [String; BASE_LABELS.len()],
    timestamp_ns: i64,
    metrics: Vec<cri::Metric>,
}

impl Samples {
    /// `labels` are the values of [`BASE_LABELS`].
    pub(super) fn new(labels: [&str; BASE_LABELS.len()]) -> Self {
        Self {
            labels: labels.map(str::to_owned),
            timestamp_ns: now_ns(),
            metrics: Vec::with_capacity(64),
        }
    }

    pub(super) fn into_metrics(self) -> Vec<cri::Metric> {
        self.metrics
    }

    fn add(&mut self, descriptor: &Descriptor, value: u64) {
        self.labelled(descriptor, &[], value);
    }

    /// A sample for a figure that there may be.
    fn add_known(&mut self, descriptor: &Descriptor, value: Option<u64>) {
        if let Some(value) = value {
            self.add(descriptor, value);
        }
    }

    /// `labels` are the values of the descriptor's own labels.
    fn labelled(&mut self, descriptor: &Descriptor, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), descriptor.labels.len(), "{}", descriptor.name);
        let own = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(cri::Metric {
            name: descriptor.name.to_owned(),
            timestamp: self.timestamp_ns,
            metric_type: descriptor.kind.into(),
            label_values: self.labels.iter().cloned().chain(own).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }
}

/// All that the cgroup tells, but for block devices.
pub(super) fn cgroup(samples: &mut Samples, full: &Full) {
    let stats = &full.reading.stats;
    samples.timestamp_ns = stats.timestamp_ns;
    if let Some(counted) = &stats.cpu {
        cpu(samples, counted);
    }
    let pressure = &stats.pressure;
    pressed(samples, pressure.cpu, &is::CPU_STALLED, &is::CPU_WAITING);
    pressed(samples, pressure.memory, &is::MEMORY_STALLED, &is::MEMORY_WAITING);
    pressed(samples, pressure.io, &is::IO_STALLED, &is::IO_WAITING);
    if let Some(counted) = &stats.memory {
        memory(samples, counted);
    }
    samples.add_known(&is::MEMORY_SWAP, stats.swap.map(|swap| swap.usage_bytes));
    samples.add_known(&is::MEMORY_PEAK, full.detail.memory_peak_bytes);
    samples.add_known(&is::MEMORY_LIMIT_HITS, full.detail.memory_limit_hits);
    samples.add_known(&is::MEMORY_KERNEL, full.detail.kernel_memory_bytes);
    samples.add_known(&is::OOM_KILLS, stats.oom_kills);
    for pages in &full.detail.hugepages {
        samples.labelled(&is::HUGEPAGES, &[&pages.page_size], pages.usage_bytes);
        if let Some(peak) = pages.peak_bytes {
            samples.labelled(&is::HUGEPAGES_PEAK, &[&pages.page_size], peak);
        }
    }
    if let Some(pids) = &stats.pids {
        samples.add(&is::THREADS, pids.current);
        samples.add(&is::THREADS_MAX, pids.limit.unwrap_or(0));
    }
}

fn cpu(samples: &mut Samples, cpu: &CpuStats) {
    samples.add(&is::CPU_USER, cpu.user_ns / NS_PER_S);
    samples.add(&is::CPU_SYSTEM, cpu.system_ns / NS_PER_S);
    samples.labelled(&is::CPU_USAGE, &["total"], cpu.usage_ns / NS_PER_S);
    samples.add(&is::CPU_PERIODS, cpu.periods);
    samples.add(&is::CPU_THROTTLED_PERIODS, cpu.throttled_periods);
    samples.add(&is::CPU_THROTTLED, cpu.throttled_ns / NS_PER_S);
}

fn pressed(samples: &mut Samples, psi: Option<Psi>, stalled: &Descriptor, waiting: &Descriptor) {
    if let Some(psi) = psi {
        samples.add(stalled, psi.full.total_us / US_PER_S);
        samples.add(waiting, psi.some.total_us / US_PER_S);
    }
}

fn memory(samples: &mut Samples, memory: &MemoryStats) {
    samples.add(&is::MEMORY_CACHE, memory.cache_bytes);
    samples.add(&is::MEMORY_RSS, memory.rss_bytes);
    samples.add(&is::MEMORY_MAPPED, memory.mapped_file_bytes);
    samples.add(&is::MEMORY_USAGE, memory.usage_bytes);
    samples.add(&is::MEMORY_WORKING_SET, memory.working_set_bytes);
    for (kind, scope, faults) in [
        ("pgfault", "container", memory.own_page_faults),
        ("pgfault", "hierarchy", memory.page_faults),
        ("pgmajfault", "container", memory.own_major_page_faults),
        ("pgmajfault", "hierarchy", memory.major_page_faults),
    ] {
        samples.labelled(&is::MEMORY_FAULTS, &[kind, scope], faults);
    }
}

/// What block devices moved.
pub(super) fn devices(samples: &mut Samples, devices: &[IoDevice], names: &mut DeviceNames) {
    for device in devices {
        let name = names.of(device.major, device.minor).to_owned();
        samples.labelled(&is::FS_READ_BYTES, &[&name], device.read_bytes);
        samples.labelled(&is::FS_READS, &[&name], device.reads);
        samples.labelled(&is::FS_WRITTEN_BYTES, &[&name], device.write_bytes);
        samples.labelled(&is::FS_WRITES, &[&name], device.writes);
        let (major, minor) = (device.major.to_string(), device.minor.to_string());
        for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.write_bytes)] {
            samples.labelled(&is::BLOCK_USAGE, &[&name, &major, &minor, operation], bytes);
        }
    }
}

/// The limits in force.
pub(super) fn resources(samples: &mut Samples, resources: &cri::LinuxContainerResources) {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let period = positive(resources.cpu_period).unwrap_or(DEFAULT_CPU_PERIOD);
    samples.add(&is::SPEC_CPU_PERIOD, period);
    samples.add_known(&is::SPEC_CPU_QUOTA, positive(resources.cpu_quota));
    let shares = positive(resources.cpu_shares).unwrap_or(DEFAULT_CPU_SHARES);
    samples.add(&is::SPEC_CPU_SHARES, shares);
    let memory = positive(resources.memory_limit_in_bytes).unwrap_or(0);
    samples.add(&is::SPEC_MEMORY_LIMIT, memory);
    // A memory limit alone leaves no room for swap.
    let swap = match resources.memory_swap_limit_in_bytes {
        0 => memory,
        limit => positive(limit).unwrap_or(0),
    };
    samples.add(&is::SPEC_SWAP_LIMIT, swap);
    let kept = resources
        .unified
        .get("memory.min")
        .and_then(|text| text.trim().parse().ok());
    samples.add(&is::SPEC_MEMORY_RESERVATION, kept.unwrap_or(0));
}

/// When it started, and that it lives.
pub(super) fn life(samples: &mut Samples, started_at_ns: Option<i64>) {
    let seconds = |ns: i64| u64::try_from(ns).unwrap_or(0) / NS_PER_S;
    samples.add_known(&is::START_TIME, started_at_ns.map(seconds));
    samples.add(&is::LAST_SEEN, seconds(samples.timestamp_ns));
}

/// Its processes; `first` is the one whose limits count.
pub(super) fn processes(samples: &mut Samples, pids: &[i32], first: Option<i32>) {
    samples.add(&is::PROCESSES, pids.len() as u64);
    let open = open_files(pids);
    samples.add(&is::FILE_DESCRIPTORS, open.descriptors);
    samples.add(&is::SOCKETS, open.sockets);
    // A pid that is not in the container's cgroup is somebody else's by now.
    if let Some(limit) = first.filter(|pid| pids.contains(pid)).and_then(max_open_files) {
        samples.labelled(&is::ULIMITS, &["max_open_files"], limit);
    }
}

/// What it has written, and the room there is.
pub(super) fn file_system(samples: &mut Samples, used: Option<&cri::FilesystemUsage>, fs: Option<&FileSystem>) {
    let Some(fs) = fs else { return };
    let device = [fs.device.as_str()];
    if let Some(bytes) = used.and_then(|used| used.used_bytes) {
        samples.labelled(&is::FS_USAGE, &device, bytes.value);
    }
    samples.labelled(&is::FS_LIMIT, &device, fs.size_bytes);
    samples.labelled(&is::FS_INODES, &device, fs.inodes);
    samples.labelled(&is::FS_INODES_FREE, &device, fs.inodes_free);
}

/// What went through an interface of a pod.
pub(super) fn interface(samples: &mut Samples, interface: &Interface) {
    let label = [interface.name.as_str()];
    let (received, sent) = (interface.received, interface.transmitted);
    for (descriptor, value) in [
        (&is::RECEIVED_BYTES, received.bytes),
        (&is::RECEIVED_PACKETS, received.packets),
        (&is::RECEIVED_DROPPED, received.dropped),
        (&is::RECEIVED_ERRORS, received.errors),
        (&is::SENT_BYTES, sent.bytes),
        (&is::SENT_PACKETS, sent.packets),
        (&is::SENT_DROPPED, sent.dropped),
        (&is::SENT_ERRORS, sent.errors),
    ] {
        samples.labelled(descriptor, &label, value);
    }
}
