//! What can be asked of a cgroup, and what the answer may leave open.

use std::collections::BTreeMap;
use std::fmt;

/// Limits, in the OCI runtime specification's meaning (config-linux.md, "Control groups"). What is none or empty is
/// left as it is. Zeroes are passed on: where zero means "not set" (the CRI does that), leave the field out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "daemon", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "daemon", serde(default))]
pub struct Resources {
    /// Relative weight, 2 to 262144; on cgroup2 converted by [`weight_of_shares`].
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; negative is unlimited.
    pub cpu_quota_us: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Processors, as in cpuset(7): `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as in cpuset(7).
    pub cpuset_mems: Option<String>,
    /// Memory in bytes; negative is unlimited.
    pub memory_limit_bytes: Option<i64>,
    /// Memory **and** swap together in bytes; negative is unlimited. Without it the room for swap stays what it was.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Refuse a memory limit that is below what is used now; otherwise cgroup2 answers it by OOM kills.
    pub memory_check_before_update: bool,
    /// Number of tasks; zero or negative is unlimited.
    pub pids_limit: Option<i64>,
    /// Page size as the kernel writes it (`2MB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// Files of cgroup2 and what to write to them; a value of several lines is written line by line.
    pub unified: BTreeMap<String, String>,
    /// Device rules, applied in order.
    pub devices: Vec<DeviceRule>,
}

/// One line of the v1 device controller's list (kernel Documentation/admin-guide/cgroup-v1/devices.rst).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "daemon", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceRule {
    pub allow: bool,
    /// `a` for all, `b` for block, `c` for character devices.
    pub kind: char,
    /// None for all.
    pub major: Option<u32>,
    /// None for all.
    pub minor: Option<u32>,
    /// Some of `r`, `w` and `m` (mknod).
    pub access: String,
}

/// Something that was asked for and that this machine does not enforce. Not an error: the container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The kernel does not account for swap (no `memory.memsw.*`, no `memory.swap.max`).
    SwapNotLimited {
        /// The limit of memory and swap together that was asked for, in bytes.
        limit_bytes: i64,
    },
    /// No hugetlb controller, or none for this page size.
    HugepagesNotLimited { page_size: String },
    /// Neither the v1 controller nor cgroup2 is mounted.
    DevicesNotRestricted,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SwapNotLimited { limit_bytes } => {
                write!(
                    f,
                    "memory and swap limit of {limit_bytes} bytes not enforced: the kernel does not account for swap"
                )
            }
            Self::HugepagesNotLimited { page_size } => {
                write!(
                    f,
                    "limit of {page_size} huge pages not enforced: no hugetlb controller for them"
                )
            }
            Self::DevicesNotRestricted => {
                f.write_str("device rules not enforced: neither a v1 devices controller nor cgroup2 is mounted")
            }
        }
    }
}

/// `cpu.weight` (1 to 10000, default 100) for `cpu.shares` (2 to 262144, default 1024).
///
/// A quadratic in log2(shares) through the three points (2, 1), (1024, 100) and (262144, 10000), rounded up:
/// `10 ^ ((l^2 + 125 l) / 612 - 7/34)`. This is what runc (opencontainers/cgroups 0.0.3, `ConvertCPUSharesToCgroupV2Value`) and
/// crun use since 2025; the line used before put the default, 1024, at 39, below everything that was never given a weight.
pub fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::weight_of_shares;

    #[test]
    fn shares_become_weights_through_the_three_fixed_points() {
        assert_eq!([0, 1, 2].map(weight_of_shares), [1, 1, 1]);
        assert_eq!(weight_of_shares(1024), 100);
        assert_eq!(weight_of_shares(262_144), 10_000);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
        let mut last = 0;
        for shares in 2..262_144 {
            let weight = weight_of_shares(shares);
            assert!(weight >= last && (1..=10_000).contains(&weight), "{shares}: {weight}");
            last = weight;
        }
    }
}
