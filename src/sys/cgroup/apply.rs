//! Writing limits, each to the hierarchy that has its controller.

use std::io;
use std::path::{Path, PathBuf};

use super::hierarchy::Place;
use super::{Cgroup, Resources, Warning, file, weight_of_shares};

/// A directory of this cgroup, by the version of its hierarchy.
pub(super) enum Dir {
    V1(PathBuf),
    V2(PathBuf),
}

impl Cgroup {
    /// Sets what `resources` asks for, at creation and later. Returns what this machine cannot enforce.
    ///
    /// An error names the file and the value; what was written before it stays. `Unsupported` if a limit needs a
    /// controller that is not there.
    pub fn apply(&self, resources: &Resources) -> io::Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        self.apply_memory(resources, &mut warnings)?;
        self.apply_cpu(resources)?;
        self.apply_cpuset(resources)?;
        self.apply_pids(resources)?;
        self.apply_hugepages(resources, &mut warnings)?;
        self.apply_devices(resources, &mut warnings)?;
        self.apply_unified(resources)?;
        Ok(warnings)
    }

    /// Where `controller`'s files of this cgroup are; on cgroup2 the controller is enabled first if `file` is missing.
    pub(super) fn dir_of(&self, controller: &str, file: &str) -> io::Result<Dir> {
        match self.hierarchy.place(controller) {
            Some(Place::V1(root)) => Ok(Dir::V1(self.dir_below(root))),
            Some(Place::V2(root)) => {
                let dir = self.dir_below(root);
                if !dir.join(file).exists() {
                    self.enable(&[controller])?;
                }
                Ok(Dir::V2(dir))
            }
            None => Err(file::unsupported(format!(
                "{file} of {}: no {controller} controller is mounted",
                self.path
            ))),
        }
    }

    fn apply_cpu(&self, resources: &Resources) -> io::Result<()> {
        if let Some(shares) = resources.cpu_shares {
            match self.dir_of("cpu", "cpu.weight")? {
                Dir::V1(dir) => file::write(&dir.join("cpu.shares"), &shares.to_string())?,
                Dir::V2(dir) => file::write(&dir.join("cpu.weight"), &weight_of_shares(shares).to_string())?,
            }
        }
        if resources.cpu_quota_us.is_none() && resources.cpu_period_us.is_none() {
            return Ok(());
        }
        match self.dir_of("cpu", "cpu.max")? {
            Dir::V1(dir) => bandwidth_v1(&dir, resources.cpu_quota_us, resources.cpu_period_us),
            Dir::V2(dir) => bandwidth_v2(&dir, resources.cpu_quota_us, resources.cpu_period_us),
        }
    }

    fn apply_cpuset(&self, resources: &Resources) -> io::Result<()> {
        for (name, value) in [
            ("cpuset.cpus", &resources.cpuset_cpus),
            ("cpuset.mems", &resources.cpuset_mems),
        ] {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                let (Dir::V1(dir) | Dir::V2(dir)) = self.dir_of("cpuset", name)?;
                file::write(&dir.join(name), value)?;
            }
        }
        Ok(())
    }

    fn apply_pids(&self, resources: &Resources) -> io::Result<()> {
        let Some(limit) = resources.pids_limit else {
            return Ok(());
        };
        let (Dir::V1(dir) | Dir::V2(dir)) = self.dir_of("pids", "pids.max")?;
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        file::write(&dir.join("pids.max"), &value)
    }

    fn apply_hugepages(&self, resources: &Resources, warnings: &mut Vec<Warning>) -> io::Result<()> {
        for (size, limit) in &resources.hugepages {
            if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(file::invalid(format!(
                    "huge page size {size:?}: not letters and digits"
                )));
            }
            let lacking = || Warning::HugepagesNotLimited {
                page_size: size.clone(),
            };
            if !self.hierarchy.has("hugetlb") {
                warnings.push(lacking());
                continue;
            }
            let on_v2 = format!("hugetlb.{size}.max");
            let (limit_file, reserved_file) = match self.dir_of("hugetlb", &on_v2)? {
                Dir::V1(dir) => (
                    dir.join(format!("hugetlb.{size}.limit_in_bytes")),
                    dir.join(format!("hugetlb.{size}.rsvd.limit_in_bytes")),
                ),
                Dir::V2(dir) => (dir.join(&on_v2), dir.join(format!("hugetlb.{size}.rsvd.max"))),
            };
            if !limit_file.exists() {
                warnings.push(lacking());
                continue;
            }
            file::write(&limit_file, &limit.to_string())?;
            // Reservations are limited too, else a process maps more than it may have and dies by SIGBUS later.
            if reserved_file.exists() {
                file::write(&reserved_file, &limit.to_string())?;
            }
        }
        Ok(())
    }

    fn apply_unified(&self, resources: &Resources) -> io::Result<()> {
        for (key, value) in &resources.unified {
            let refuse = |why: &str| Err(file::invalid(format!("unified {key:?}: {why}")));
            let Some((controller, rest)) = key.split_once('.') else {
                return refuse("not a cgroup file");
            };
            if rest.is_empty() || key.bytes().any(|b| b == b'/' || b.is_ascii_control()) {
                return refuse("not a cgroup file");
            }
            // Of the core files only the two limits: the others move processes, kill, or change what a cgroup is.
            if controller == "cgroup" {
                if !matches!(key.as_str(), "cgroup.max.depth" | "cgroup.max.descendants") {
                    return refuse("not a limit");
                }
                match self.cgroup2_dir() {
                    Some(dir) => file::write(&dir.join(key), value.trim())?,
                    None => return refuse("needs cgroup2"),
                }
                continue;
            }
            match self.hierarchy.place(controller) {
                Some(Place::V2(_)) => {}
                Some(Place::V1(_)) => return refuse("needs cgroup2, and this controller is on v1"),
                None => return refuse("no such controller"),
            }
            let (Dir::V1(dir) | Dir::V2(dir)) = self.dir_of(controller, key)?;
            for line in value.lines().map(str::trim).filter(|line| !line.is_empty()) {
                file::write(&dir.join(key), line)?;
            }
        }
        Ok(())
    }
}

/// The two files are written one after the other, and the kernel checks quota/period against the cgroups above and
/// below at each write. A longer period goes first, anything else last: so the ratio in between exceeds neither the
/// old nor the new one.
fn bandwidth_v1(dir: &Path, quota_us: Option<i64>, period_us: Option<u64>) -> io::Result<()> {
    let quota_file = dir.join("cpu.cfs_quota_us");
    let period_file = dir.join("cpu.cfs_period_us");
    let set_quota = || match quota_us {
        Some(quota) => file::write(&quota_file, &quota.max(-1).to_string()),
        None => Ok(()),
    };
    let Some(period) = period_us else { return set_quota() };
    let set_period = || file::write(&period_file, &period.to_string());
    if file::read_number(&period_file)?.is_some_and(|now| period > now) {
        set_period()?;
        set_quota()
    } else {
        set_quota()?;
        set_period()
    }
}

/// `cpu.max` takes both at once; a quota alone keeps the period.
fn bandwidth_v2(dir: &Path, quota_us: Option<i64>, period_us: Option<u64>) -> io::Result<()> {
    let path = dir.join("cpu.max");
    let quota = match quota_us {
        Some(quota) if quota < 0 => "max".to_owned(),
        Some(quota) => quota.to_string(),
        None => file::read(&path)?.split_whitespace().next().unwrap_or("max").to_owned(),
    };
    match period_us {
        Some(period) => file::write(&path, &format!("{quota} {period}")),
        None => file::write(&path, &quota),
    }
}
