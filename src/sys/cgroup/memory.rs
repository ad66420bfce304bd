//! Memory and swap limits. The OCI's swap limit is memory and swap together, as on v1; cgroup2 limits swap alone.

use std::io;
use std::path::Path;

use super::apply::Dir;
use super::{Cgroup, Resources, Warning, file};

/// What v1 shows for "unlimited": the largest page count, a little below 2^63.
pub(super) const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

impl Cgroup {
    pub(super) fn apply_memory(&self, resources: &Resources, warnings: &mut Vec<Warning>) -> io::Result<()> {
        let (limit, total) = (resources.memory_limit_bytes, resources.memory_swap_limit_bytes);
        if limit.is_none() && total.is_none() {
            return Ok(());
        }
        if let (Some(limit), Some(total)) = (limit, total)
            && total >= 0
            && (limit < 0 || total < limit)
        {
            return Err(file::invalid(format!(
                "memory and swap limit {total} is below the memory limit {limit}"
            )));
        }
        let dir = self.dir_of("memory", "memory.max")?;
        if let Some(limit) = limit.filter(|limit| resources.memory_check_before_update && *limit >= 0) {
            let usage = match &dir {
                Dir::V1(dir) => file::read_number(&dir.join("memory.usage_in_bytes"))?,
                Dir::V2(dir) => file::read_number(&dir.join("memory.current"))?,
            };
            if let Some(usage) = usage.filter(|usage| *usage > limit.unsigned_abs()) {
                let path = &self.path;
                return Err(file::invalid(format!(
                    "memory limit {limit} of {path} is below the {usage} bytes in use"
                )));
            }
        }
        match dir {
            Dir::V1(dir) => apply_v1(&dir, limit, total, warnings),
            Dir::V2(dir) => apply_v2(&dir, limit, total, warnings),
        }
    }
}

fn unlimited_v1(value: u64) -> bool {
    value >= V1_UNLIMITED
}

/// The kernel keeps limit <= memory+swap limit at every moment: growing, the sum goes first; shrinking, last.
/// `memory.memsw.*` exists only if swap is accounted for.
fn apply_v1(dir: &Path, limit: Option<i64>, total: Option<i64>, warnings: &mut Vec<Warning>) -> io::Result<()> {
    let limit_file = dir.join("memory.limit_in_bytes");
    let total_file = dir.join("memory.memsw.limit_in_bytes");
    let set_limit = || match limit {
        Some(limit) => write_limit(&limit_file, limit),
        None => Ok(()),
    };
    if !total_file.exists() {
        if let Some(limit_bytes) = total.filter(|total| *total >= 0) {
            warnings.push(Warning::SwapNotLimited { limit_bytes });
        }
        return set_limit();
    }
    let old_total = file::read_number(&total_file)?.unwrap_or(u64::MAX);
    let new_total = match (total, limit) {
        (Some(total), _) => Some(total),
        (None, Some(limit)) => {
            let old_limit = file::read_number(&limit_file)?.unwrap_or(u64::MAX);
            keep_room_for_swap(old_limit, old_total, limit)
        }
        (None, None) => None,
    };
    let Some(new_total) = new_total else { return set_limit() };
    if new_total < 0 || new_total.unsigned_abs() > old_total {
        write_limit(&total_file, new_total)?;
        set_limit()
    } else {
        set_limit()?;
        write_limit(&total_file, new_total)
    }
}

/// The new sum when only the memory limit changes, so that the room for swap stays what it was, as it does on
/// cgroup2. None if the sum need not change.
fn keep_room_for_swap(old_limit: u64, old_total: u64, new_limit: i64) -> Option<i64> {
    if unlimited_v1(old_total) {
        return None;
    }
    if new_limit < 0 {
        return Some(-1);
    }
    let room = old_total.saturating_sub(old_limit);
    Some(i64::try_from(new_limit.unsigned_abs().saturating_add(room)).unwrap_or(-1))
}

fn write_limit(path: &Path, value: i64) -> io::Result<()> {
    file::write(path, &value.max(-1).to_string())
}

/// Swap goes first: a memory limit below what is used makes the kernel push pages out to where there is room.
fn apply_v2(dir: &Path, limit: Option<i64>, total: Option<i64>, warnings: &mut Vec<Warning>) -> io::Result<()> {
    let swap_file = dir.join("memory.swap.max");
    if let Some(swap) = swap_of(dir, limit, total)? {
        if swap_file.exists() {
            file::write(&swap_file, &limit_or_max(swap))?;
        } else if let Some(limit_bytes) = total.filter(|_| swap >= 0) {
            warnings.push(Warning::SwapNotLimited { limit_bytes });
        }
    }
    match limit {
        Some(limit) => file::write(&dir.join("memory.max"), &limit_or_max(limit)),
        None => Ok(()),
    }
}

/// What `memory.swap.max` becomes; negative is unlimited, none is unchanged.
fn swap_of(dir: &Path, limit: Option<i64>, total: Option<i64>) -> io::Result<Option<i64>> {
    let total = match (total, limit) {
        (None, Some(limit)) if limit < 0 => return Ok(Some(-1)),
        (None, _) => return Ok(None),
        (Some(total), _) if total < 0 => return Ok(Some(-1)),
        (Some(total), _) => total,
    };
    let limit = match limit {
        Some(limit) => limit,
        None => match file::read_number(&dir.join("memory.max"))? {
            Some(limit) => i64::try_from(limit).unwrap_or(i64::MAX),
            None => {
                return Err(file::invalid(format!(
                    "memory and swap limit {total} without a memory limit"
                )));
            }
        },
    };
    if total < limit {
        return Err(file::invalid(format!(
            "memory and swap limit {total} is below the memory limit {limit}"
        )));
    }
    Ok(Some(total - limit))
}

fn limit_or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::{V1_UNLIMITED, keep_room_for_swap};

    #[test]
    fn room_for_swap_stays_when_only_the_memory_limit_changes() {
        assert_eq!(keep_room_for_swap(100, 150, 200), Some(250));
        assert_eq!(keep_room_for_swap(100, 150, 50), Some(100));
        assert_eq!(keep_room_for_swap(100, 100, -1), Some(-1));
        assert_eq!(
            keep_room_for_swap(V1_UNLIMITED + 0xf000, V1_UNLIMITED + 0xf000, 50),
            None
        );
        assert_eq!(keep_room_for_swap(100, 150, i64::MAX), Some(-1));
    }
}
