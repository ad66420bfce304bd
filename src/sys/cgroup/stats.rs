//! What the kernel counts for a cgroup.

/// One reading. A part is none where the kernel does not offer it (no controller, no pressure accounting).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupStats {
    /// When, in nanoseconds since the epoch.
    pub timestamp_ns: i64,
    pub cpu: Option<CpuStats>,
    pub memory: Option<MemoryStats>,
    pub swap: Option<SwapStats>,
    pub pids: Option<PidsStats>,
    pub pressure: Pressure,
    /// How many processes the OOM killer took so far.
    pub oom_kills: Option<u64>,
}

/// CPU time and how it was throttled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStats {
    pub usage_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
    /// Periods of the quota that have passed, those of them in which it was used up, and how long tasks then waited.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

/// Memory, in bytes; faults are counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    pub usage_bytes: u64,
    /// Usage less what the kernel can drop at once (inactive file pages): what the kubelet decides evictions by.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// None if unlimited.
    pub limit_bytes: Option<u64>,
    /// Page cache, and what of it is mapped by a process.
    pub cache_bytes: u64,
    pub mapped_file_bytes: u64,
    /// Of the cgroup and all below it.
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Of the cgroup alone; cgroup2 does not tell them apart.
    pub own_page_faults: u64,
    pub own_major_page_faults: u64,
}

impl MemoryStats {
    /// What is left below the limit, counting the working set as used. None without a limit.
    pub fn available_bytes(&self) -> Option<u64> {
        Some(self.limit_bytes?.saturating_sub(self.working_set_bytes))
    }
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapStats {
    pub usage_bytes: u64,
    /// None if unlimited.
    pub limit_bytes: Option<u64>,
}

/// Tasks: threads, not processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStats {
    pub current: u64,
    /// None if unlimited.
    pub limit: Option<u64>,
}

/// Pressure stall information of a cgroup (kernel Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    pub cpu: Option<Psi>,
    pub memory: Option<Psi>,
    pub io: Option<Psi>,
}

/// Time in which some, or all, tasks waited.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Psi {
    pub some: PsiLine,
    pub full: PsiLine,
}

/// Averages in percent over 10, 60 and 300 seconds; the sum in microseconds, as the kernel gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PsiLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

/// What one block device moved for a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoDevice {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// What is read only for who asks for everything: further files, each none where the kernel has no such file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// The most memory that was ever used, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// How often memory ran into its limit.
    pub memory_limit_hits: Option<u64>,
    /// Kernel memory, in bytes.
    pub kernel_memory_bytes: Option<u64>,
    /// One for each size of huge pages that the controller counts.
    pub hugepages: Vec<Hugepages>,
}

/// Huge pages of one size in use, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugepages {
    /// As the kernel names its files: `2MB`.
    pub page_size: String,
    pub usage_bytes: u64,
    /// The most that was ever in use; cgroup2 does not record it.
    pub peak_bytes: Option<u64>,
}
