//! What the last step before execve(2) applies: everything about a process that libcontainer is not asked to do.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Sorted, each once, the primary group among them.
    pub additional_gids: Vec<u32>,
    pub umask: u32,
}

/// The five capability sets, bit n for capability n (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// Where a seccomp filter comes from. No filter at all is the absence of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SeccompSource {
    /// crisp's own profile, cut to the capabilities of the container.
    RuntimeDefault,
    /// A profile in OCI form at an absolute path on the host.
    Localhost(PathBuf),
}

/// One resource limit (setrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` of this architecture.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// A process of a container, as it shall be when its program starts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Never empty; no NUL bytes.
    pub args: Vec<Vec<u8>>,
    /// `NAME=value` each, every name once; no NUL bytes.
    pub env: Vec<Vec<u8>>,
    /// Absolute; made (0755, root) where it is missing.
    pub cwd: PathBuf,
    pub terminal: bool,
    pub user: User,
    pub capabilities: CapabilitySets,
    pub no_new_privs: bool,
    pub seccomp: Option<SeccompSource>,
    /// The profile to enter; `None` is unconfined.
    pub apparmor: Option<String>,
    pub rlimits: Vec<Rlimit>,
    /// -1000 to 1000. Lowering it below the parent's needs CAP_SYS_RESOURCE.
    pub oom_score_adj: i32,
}

impl fmt::Debug for Policy {
    /// Values of the environment are secrets more often than not: only the names are shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .env
            .iter()
            .map(|entry| String::from_utf8_lossy(entry.split(|b| *b == b'=').next().unwrap_or_default()))
            .collect();
        let args: Vec<_> = self.args.iter().map(|arg| String::from_utf8_lossy(arg)).collect();
        f.debug_struct("Policy")
            .field("args", &args)
            .field("env", &names)
            .field("cwd", &self.cwd)
            .field("terminal", &self.terminal)
            .field("user", &self.user)
            .field("capabilities", &self.capabilities)
            .field("no_new_privs", &self.no_new_privs)
            .field("seccomp", &self.seccomp)
            .field("apparmor", &self.apparmor)
            .field("rlimits", &self.rlimits)
            .field("oom_score_adj", &self.oom_score_adj)
            .finish()
    }
}

#[cfg(test)]
impl Policy {
    /// A policy to change in tests.
    pub(crate) fn for_tests() -> Self {
        Self {
            args: vec![b"/bin/true".to_vec()],
            env: vec![b"PATH=/bin".to_vec(), b"TOKEN=secret".to_vec()],
            cwd: PathBuf::from("/"),
            terminal: false,
            user: User {
                umask: 0o022,
                ..User::default()
            },
            capabilities: CapabilitySets::default(),
            no_new_privs: true,
            seccomp: Some(SeccompSource::RuntimeDefault),
            apparmor: None,
            rlimits: Vec::new(),
            oom_score_adj: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Policy;

    #[test]
    fn debug_output_holds_names_of_the_environment_but_no_values() {
        let shown = format!("{:?}", Policy::for_tests());
        assert!(shown.contains("TOKEN") && !shown.contains("secret"), "{shown}");
    }
}
