//! The metrics: what cAdvisor told a kubelet, name for name (KEP-2371), so that dashboards need no change.

use crate::cri::{self, MetricType};

/// What every sample is labelled with, in this order; a metric's own labels follow. The meanings are cAdvisor's:
/// `id` is the cgroup, `name` the id of the container or sandbox, `container` the name that the pod gives it.
pub(super) const BASE_LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// One metric. Times are in whole seconds, as the CRI's integer values have it; sizes are in bytes.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) kind: MetricType,
}

impl From<&Descriptor> for cri::MetricDescriptor {
    fn from(descriptor: &Descriptor) -> Self {
        let labels = BASE_LABELS.iter().chain(descriptor.labels);
        Self {
            name: descriptor.name.to_owned(),
            help: descriptor.help.to_owned(),
            label_keys: labels.map(|label| (*label).to_owned()).collect(),
        }
    }
}

const INTERFACE: &[&str] = &["interface"];
const DEVICE: &[&str] = &["device"];
const PAGE_SIZE: &[&str] = &["pagesize"];

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub(super) const $id: Descriptor = Descriptor {
            name: $name,
            help: $help,
            labels: $labels,
            kind: MetricType::$kind,
        };)*

        /// All of them.
        pub(super) const ALL: &[Descriptor] = &[$($id),*];
    };
}

metrics! {
    CPU_USER Counter "container_cpu_user_seconds_total" &[], "CPU time spent in user mode, in seconds.";
    CPU_SYSTEM Counter "container_cpu_system_seconds_total" &[], "CPU time spent in the kernel, in seconds.";
    CPU_USAGE Counter "container_cpu_usage_seconds_total" &["cpu"], "CPU time used, in seconds; cpu is always total.";
    CPU_PERIODS Counter "container_cpu_cfs_periods_total" &[], "Periods of the CPU quota that have passed.";
    CPU_THROTTLED_PERIODS Counter "container_cpu_cfs_throttled_periods_total" &[], "Periods in which the CPU quota was used up.";
    CPU_THROTTLED Counter "container_cpu_cfs_throttled_seconds_total" &[], "Time that tasks waited for CPU quota, in seconds.";

    CPU_STALLED Counter "container_pressure_cpu_stalled_seconds_total" &[], "Time in which all tasks waited for CPU, in seconds.";
    CPU_WAITING Counter "container_pressure_cpu_waiting_seconds_total" &[], "Time in which some task waited for CPU, in seconds.";
    MEMORY_STALLED Counter "container_pressure_memory_stalled_seconds_total" &[], "Time in which all tasks waited for memory, in seconds.";
    MEMORY_WAITING Counter "container_pressure_memory_waiting_seconds_total" &[], "Time in which some task waited for memory, in seconds.";
    IO_STALLED Counter "container_pressure_io_stalled_seconds_total" &[], "Time in which all tasks waited for block devices, in seconds.";
    IO_WAITING Counter "container_pressure_io_waiting_seconds_total" &[], "Time in which some task waited for block devices, in seconds.";

    MEMORY_CACHE Gauge "container_memory_cache" &[], "Page cache, in bytes.";
    MEMORY_RSS Gauge "container_memory_rss" &[], "Anonymous memory, in bytes.";
    MEMORY_KERNEL Gauge "container_memory_kernel_usage" &[], "Kernel memory, in bytes.";
    MEMORY_MAPPED Gauge "container_memory_mapped_file" &[], "Mapped files, in bytes.";
    MEMORY_SWAP Gauge "container_memory_swap" &[], "Swap in use, in bytes.";
    MEMORY_LIMIT_HITS Counter "container_memory_failcnt" &[], "How often memory ran into its limit.";
    MEMORY_USAGE Gauge "container_memory_usage_bytes" &[], "Memory in use, caches included, in bytes.";
    MEMORY_PEAK Gauge "container_memory_max_usage_bytes" &[], "The most memory that was ever in use, in bytes.";
    MEMORY_WORKING_SET Gauge "container_memory_working_set_bytes" &[], "Memory in use without what the kernel can drop at once, in bytes.";
    MEMORY_FAULTS Counter "container_memory_failures_total" &["failure_type", "scope"], "Page faults, by type and scope.";
    HUGEPAGES Gauge "container_hugetlb_usage_bytes" PAGE_SIZE, "Huge pages in use, in bytes.";
    HUGEPAGES_PEAK Gauge "container_hugetlb_max_usage_bytes" PAGE_SIZE, "The most huge pages that were ever in use, in bytes.";
    OOM_KILLS Counter "container_oom_events_total" &[], "Processes that the kernel killed for want of memory.";

    FS_USAGE Gauge "container_fs_usage_bytes" DEVICE, "What the container has written to its own layer, in bytes.";
    FS_LIMIT Gauge "container_fs_limit_bytes" DEVICE, "Size of the file system that the container's layer is on, in bytes.";
    FS_INODES_FREE Gauge "container_fs_inodes_free" DEVICE, "Free inodes of the file system that the container's layer is on.";
    FS_INODES Gauge "container_fs_inodes_total" DEVICE, "Inodes of the file system that the container's layer is on.";
    FS_READ_BYTES Counter "container_fs_reads_bytes_total" DEVICE, "Bytes read from the device.";
    FS_READS Counter "container_fs_reads_total" DEVICE, "Reads from the device.";
    FS_WRITTEN_BYTES Counter "container_fs_writes_bytes_total" DEVICE, "Bytes written to the device.";
    FS_WRITES Counter "container_fs_writes_total" DEVICE, "Writes to the device.";
    BLOCK_USAGE Counter "container_blkio_device_usage_total" &["device", "major", "minor", "operation"], "Bytes moved by the device, by operation.";

    RECEIVED_BYTES Counter "container_network_receive_bytes_total" INTERFACE, "Bytes received.";
    RECEIVED_PACKETS Counter "container_network_receive_packets_total" INTERFACE, "Packets received.";
    RECEIVED_DROPPED Counter "container_network_receive_packets_dropped_total" INTERFACE, "Packets dropped when they were received.";
    RECEIVED_ERRORS Counter "container_network_receive_errors_total" INTERFACE, "Errors of receiving.";
    SENT_BYTES Counter "container_network_transmit_bytes_total" INTERFACE, "Bytes sent.";
    SENT_PACKETS Counter "container_network_transmit_packets_total" INTERFACE, "Packets sent.";
    SENT_DROPPED Counter "container_network_transmit_packets_dropped_total" INTERFACE, "Packets dropped when they were to be sent.";
    SENT_ERRORS Counter "container_network_transmit_errors_total" INTERFACE, "Errors of sending.";

    PROCESSES Gauge "container_processes" &[], "Processes.";
    THREADS Gauge "container_threads" &[], "Threads.";
    THREADS_MAX Gauge "container_threads_max" &[], "How many threads there may be; 0 is any number.";
    FILE_DESCRIPTORS Gauge "container_file_descriptors" &[], "Open file descriptors of all processes.";
    SOCKETS Gauge "container_sockets" &[], "Open sockets of all processes.";
    ULIMITS Gauge "container_ulimits_soft" &["ulimit"], "Soft limits of the first process; absent where unlimited.";

    LAST_SEEN Gauge "container_last_seen" &[], "When the figures were read, in seconds since 1970.";
    START_TIME Gauge "container_start_time_seconds" &[], "When the container started, in seconds since 1970.";

    SPEC_CPU_PERIOD Gauge "container_spec_cpu_period" &[], "Period of the CPU quota, in microseconds.";
    SPEC_CPU_QUOTA Gauge "container_spec_cpu_quota" &[], "CPU time per period, in microseconds; absent where unlimited.";
    SPEC_CPU_SHARES Gauge "container_spec_cpu_shares" &[], "Relative share of the CPU.";
    SPEC_MEMORY_LIMIT Gauge "container_spec_memory_limit_bytes" &[], "Limit of memory, in bytes; 0 is none.";
    SPEC_MEMORY_RESERVATION Gauge "container_spec_memory_reservation_limit_bytes" &[], "Memory that is kept from reclaim, in bytes; 0 is none.";
    SPEC_SWAP_LIMIT Gauge "container_spec_memory_swap_limit_bytes" &[], "Limit of memory and swap together, in bytes; 0 is none.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_is_there_once_and_says_what_it_is() {
        let names: BTreeSet<_> = ALL.iter().map(|descriptor| descriptor.name).collect();
        assert_eq!((names.len(), ALL.len()), (56, 56));
        for descriptor in ALL {
            assert!(descriptor.help.ends_with('.'), "{}", descriptor.name);
            let counts = descriptor.name.ends_with("_total") || descriptor.name.ends_with("failcnt");
            let kind = if counts { MetricType::Counter } else { MetricType::Gauge };
            let counts_inodes = descriptor.name == "container_fs_inodes_total";
            assert_eq!(descriptor.kind == kind, !counts_inodes, "{}", descriptor.name);
        }
    }
}
