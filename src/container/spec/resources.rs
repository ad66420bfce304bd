//! Limits of a container, checked and brought to the form that the cgroup code takes.

use std::collections::BTreeMap;

use super::error::SpecError;
use crate::cri;
pub use crate::sys::cgroup::{DeviceRule, Resources};

const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// The kernel's bounds, in microseconds.
const PERIOD: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const SMALLEST_QUOTA: i64 = 1_000;

/// The limits of a new container.
pub fn resolve(asked: Option<&cri::LinuxContainerResources>, devices: Vec<DeviceRule>) -> Result<Resources, SpecError> {
    let mut resources = asked.map(convert).transpose()?.unwrap_or_default();
    resources.devices = devices;
    Ok(resources)
}

/// The limits of a request, of a new container or of an update; 0 and "" are "nothing said".
///
/// A memory limit without a swap limit takes swap away: a limit that lets a container spill to swap is none.
/// `pids.max` in `unified` becomes the pids limit, so that it holds on cgroup v1 as well.
pub fn convert(asked: &cri::LinuxContainerResources) -> Result<Resources, SpecError> {
    let memory = limit("memory limit", asked.memory_limit_in_bytes)?;
    let swap = limit("swap limit", asked.memory_swap_limit_in_bytes)?;
    if let (Some(memory), Some(swap)) = (memory, swap) {
        let fits = swap == -1 || (memory != -1 && swap >= memory);
        if !fits {
            return Err(SpecError::invalid(
                "swap limit",
                swap.to_string(),
                "is below the memory limit",
            ));
        }
    }
    let mut unified = unified(&asked.unified)?;
    let pids_limit = match unified.remove("pids.max") {
        None => None,
        Some(text) if text.trim() == "max" => Some(-1),
        Some(text) => match text.trim().parse::<i64>() {
            Ok(number) if number > 0 => Some(number),
            _ => {
                return Err(SpecError::invalid(
                    "pids.max",
                    text,
                    "is neither a number above 0 nor max",
                ));
            }
        },
    };
    Ok(Resources {
        cpu_shares: match asked.cpu_shares {
            0 => None,
            shares if shares < 0 => return Err(out_of_range("cpu shares", shares)),
            shares => Some(shares.clamp(*SHARES.start(), *SHARES.end()).unsigned_abs()),
        },
        cpu_quota_us: match asked.cpu_quota {
            0 => None,
            quota if quota == -1 || quota >= SMALLEST_QUOTA => Some(quota),
            quota => return Err(out_of_range("cpu quota", quota)),
        },
        cpu_period_us: match asked.cpu_period {
            0 => None,
            period if PERIOD.contains(&period) => Some(period.unsigned_abs()),
            period => return Err(out_of_range("cpu period", period)),
        },
        cpuset_cpus: cpuset("cpuset", &asked.cpuset_cpus)?,
        cpuset_mems: cpuset("memory nodes", &asked.cpuset_mems)?,
        memory_limit_bytes: memory,
        memory_swap_limit_bytes: swap.or(memory),
        memory_check_before_update: false,
        pids_limit,
        hugepages: asked.hugepage_limits.iter().map(hugepage).collect::<Result<_, _>>()?,
        unified,
        devices: Vec::new(),
    })
}

fn out_of_range(what: &'static str, value: i64) -> SpecError {
    SpecError::invalid(what, value.to_string(), "is out of range")
}

fn limit(what: &'static str, bytes: i64) -> Result<Option<i64>, SpecError> {
    match bytes {
        0 => Ok(None),
        bytes if bytes >= -1 => Ok(Some(bytes)),
        bytes => Err(out_of_range(what, bytes)),
    }
}

/// A list of numbers and ranges, as in cpuset(7).
fn cpuset(what: &'static str, text: &str) -> Result<Option<String>, SpecError> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
    };
    let sound = text.len() <= 4096
        && text.split(',').all(|part| match part.split_once('-') {
            None => number(part).is_some(),
            Some((from, to)) => number(from).zip(number(to)).is_some_and(|(from, to)| from <= to),
        });
    if !sound {
        return Err(SpecError::invalid(what, text, "is not a list like 0-3,8"));
    }
    Ok(Some(text.to_owned()))
}

/// `64KB`, `2MB`, `1GB`: the kernel's names of the sizes.
fn hugepage(limit: &cri::HugepageLimit) -> Result<(String, u64), SpecError> {
    let size = &limit.page_size;
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit))
        .unwrap_or_default();
    let sound =
        (1..=4).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    if !sound {
        return Err(SpecError::invalid("huge page size", size, "is not like 2MB or 1GB"));
    }
    Ok((size.clone(), limit.limit))
}

/// Names become names of files in the container's cgroup: `controller.setting` and nothing else, and not the files
/// by which cgroups themselves are run.
fn unified(asked: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, SpecError> {
    let mut unified = BTreeMap::new();
    for (name, value) in asked {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        let parts: Vec<&str> = name.split('.').collect();
        let sound = name.len() <= 128
            && parts.len() >= 2
            && parts.iter().all(|part| !part.is_empty())
            && plain(name.as_bytes()[0])
            && name.bytes().all(|b| plain(b) || b == b'.' || b.is_ascii_uppercase())
            && parts[0] != "cgroup";
        if !sound {
            return Err(SpecError::invalid(
                "unified setting",
                name,
                "is no setting of a controller",
            ));
        }
        if value.len() > 4096 || value.contains('\0') {
            return Err(SpecError::invalid("unified setting", name, "has no sound value"));
        }
        unified.insert(name.clone(), value.clone());
    }
    Ok(unified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> cri::LinuxContainerResources {
        cri::LinuxContainerResources::default()
    }

    #[test]
    fn nothing_said_changes_nothing() {
        assert_eq!(convert(&asked()).unwrap(), Resources::default());
        assert_eq!(resolve(None, Vec::new()).unwrap(), Resources::default());
    }

    #[test]
    fn everything_said() {
        let resources = convert(&cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 30,
            memory_swap_limit_in_bytes: 1 << 31,
            cpuset_cpus: "0-3,8".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 4 << 20,
            }],
            unified: [("memory.high".into(), "1000".into()), ("pids.max".into(), "64".into())].into(),
            ..asked()
        })
        .unwrap();
        assert_eq!(
            resources,
            Resources {
                cpu_shares: Some(512),
                cpu_quota_us: Some(50_000),
                cpu_period_us: Some(100_000),
                cpuset_cpus: Some("0-3,8".into()),
                cpuset_mems: Some("0".into()),
                memory_limit_bytes: Some(1 << 30),
                memory_swap_limit_bytes: Some(1 << 31),
                memory_check_before_update: false,
                pids_limit: Some(64),
                hugepages: vec![("2MB".into(), 4 << 20)],
                unified: [("memory.high".into(), "1000".into())].into(),
                devices: Vec::new(),
            }
        );
    }

    #[test]
    fn swap_follows_memory_unless_said() {
        for (memory, swap, expected) in [
            (100, 0, Some((Some(100), Some(100)))),
            (100, 100, Some((Some(100), Some(100)))),
            (100, 200, Some((Some(100), Some(200)))),
            (100, -1, Some((Some(100), Some(-1)))),
            (0, 200, Some((None, Some(200)))),
            (-1, 0, Some((Some(-1), Some(-1)))),
            (100, 99, None),
            (-1, 99, None),
            (-2, 0, None),
            (0, -2, None),
        ] {
            let limits = cri::LinuxContainerResources {
                memory_limit_in_bytes: memory,
                memory_swap_limit_in_bytes: swap,
                ..asked()
            };
            let found = convert(&limits)
                .ok()
                .map(|r| (r.memory_limit_bytes, r.memory_swap_limit_bytes));
            assert_eq!(found, expected, "{memory} {swap}");
        }
    }

    #[test]
    fn shares_are_brought_into_the_kernels_range() {
        for (shares, expected) in [(1, 2), (2, 2), (1024, 1024), (1 << 40, 262_144)] {
            let limits = cri::LinuxContainerResources {
                cpu_shares: shares,
                ..asked()
            };
            assert_eq!(convert(&limits).unwrap().cpu_shares, Some(expected));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let unified = |name: &str, value: &str| cri::LinuxContainerResources {
            unified: [(name.to_owned(), value.to_owned())].into(),
            ..asked()
        };
        let page = |size: &str| cri::LinuxContainerResources {
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: size.into(),
                limit: 1,
            }],
            ..asked()
        };
        let cpus = |text: &str| cri::LinuxContainerResources {
            cpuset_cpus: text.into(),
            ..asked()
        };
        for refused in [
            cri::LinuxContainerResources {
                cpu_shares: -1,
                ..asked()
            },
            cri::LinuxContainerResources {
                cpu_quota: -5,
                ..asked()
            },
            cri::LinuxContainerResources {
                cpu_quota: 10,
                ..asked()
            },
            cri::LinuxContainerResources {
                cpu_period: 10,
                ..asked()
            },
            cri::LinuxContainerResources {
                cpu_period: -1,
                ..asked()
            },
            unified("../memory.high", "1"),
            unified("cgroup.procs", "1"),
            unified("memory", "1"),
            unified(".high", "1"),
            unified("memory..high", "1"),
            unified("", "1"),
            unified("pids.max", "0"),
            unified("pids.max", "many"),
            page("2"),
            page("MB"),
            page("02MB"),
            page("../2MB"),
            cpus("3-1"),
            cpus("a"),
            cpus("0,"),
            cpus("+1"),
            cpus("0 1"),
        ] {
            assert!(convert(&refused).is_err(), "{refused:?}");
        }
    }
}
