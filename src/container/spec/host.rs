//! What a container's description depends on besides the request: facts of this host, read once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

/// Facts of the host and of the daemon's own rights on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// The daemon's bounding set: no container can have more.
    pub bounding: u64,
    /// The hard limit of open files of the daemon; what a container can have at most without CAP_SYS_RESOURCE.
    pub nofile_hard: u64,
    /// `None` where the kernel has no AppArmor.
    pub apparmor: Option<AppArmor>,
    /// SELinux is there.
    pub selinux: bool,
    /// Only the unified cgroup hierarchy is in use: containers get a cgroup namespace.
    pub cgroup_v2: bool,
}

/// AppArmor on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppArmor {
    /// The profile for `RuntimeDefault`; without one, such containers run unconfined.
    pub default_profile: Option<String>,
    /// Some profiles that count as loaded, beside those that the kernel has by then.
    pub known: BTreeSet<String>,
}

impl AppArmor {
    /// Whether the kernel has the profile `name` now: others load theirs at any time.
    pub fn has(&self, name: &str) -> bool {
        let profiles = fs::read_to_string(PROFILES).unwrap_or_default();
        let mut loaded = profiles.lines().filter_map(|line| line.rsplit_once(" ("));
        self.known.contains(name) || loaded.any(|(loaded, _)| loaded == name)
    }
}

const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

impl HostFacts {
    /// Reads the facts. Fails where /proc cannot be read.
    pub fn detect() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let bounding = status
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no CapBnd"))?;
        let (_, nofile_hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
        let cgroup2 = rustix::fs::statfs(CGROUP_ROOT).is_ok_and(|fs| fs.f_type == libc::CGROUP2_SUPER_MAGIC);
        Ok(Self {
            bounding,
            nofile_hard,
            apparmor: detect_apparmor(),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            cgroup_v2: cgroup2,
        })
    }
}

fn detect_apparmor() -> Option<AppArmor> {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").ok()?;
    if !enabled.starts_with('Y') {
        return None;
    }
    Some(AppArmor::default())
}

#[cfg(test)]
impl HostFacts {
    /// A host where everything is possible, for tests.
    pub(crate) fn for_tests() -> Self {
        Self {
            bounding: (1 << 41) - 1,
            nofile_hard: 1 << 20,
            apparmor: None,
            selinux: false,
            cgroup_v2: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::HostFacts;

    #[test]
    fn the_facts_of_this_host_are_found() {
        let facts = HostFacts::detect().unwrap();
        assert_ne!(facts.bounding, 0);
        assert!(facts.nofile_hard > 0);
    }
}
