//! Why a container cannot be described.

use std::io;
use std::path::PathBuf;

/// Why a request, together with its image and this host, makes no container. All but [`SpecError::Read`] and
/// [`SpecError::Device`] are the request's or the image's fault.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("neither the container nor its image says what to run")]
    NothingToRun,
    #[error("{what} {value:?} {reason}")]
    Invalid {
        what: &'static str,
        value: String,
        reason: &'static str,
    },
    #[error("{what}: {size} is more than the {limit} allowed")]
    TooLarge { what: &'static str, size: u64, limit: u64 },
    #[error("the group {gid} is given without a user")]
    GroupWithoutUser { gid: i64 },
    #[error("no user {user:?} in the image's /etc/passwd")]
    UnknownUser { user: String },
    #[error("no group {group:?} in the image's /etc/group")]
    UnknownGroup { group: String },
    #[error("read the image's {path}")]
    Read { path: &'static str, source: io::Error },
    #[error("no capability is called {name:?}")]
    UnknownCapability { name: String },
    #[error("no signal is called {name:?}")]
    UnknownSignal { name: String },
    #[error("a privileged container needs a privileged sandbox")]
    PrivilegedInSandbox,
    #[error("no {kind} namespace to join")]
    MissingNamespace { kind: &'static str },
    #[error("the container asks for the node's {kind} namespace, its sandbox has one of its own")]
    NodeNamespaceInSandbox { kind: &'static str },
    #[error("AppArmor is not enabled on this host: the profile {profile:?} cannot be applied")]
    AppArmorUnavailable { profile: String },
    #[error("the AppArmor profile {profile:?} is not loaded on this host")]
    AppArmorNotLoaded { profile: String },
    #[error("{what} are not supported")]
    Unsupported { what: &'static str },
    #[error("sysctl {name:?} {reason}")]
    Sysctl { name: String, reason: &'static str },
    #[error("{op} the device {}", path.display())]
    Device {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// The longest piece of a request that an error repeats, in characters.
const SHOWN: usize = 120;

impl SpecError {
    /// An invalid `value`; of a long one only the beginning is kept.
    pub(super) fn invalid(what: &'static str, value: impl AsRef<str>, reason: &'static str) -> Self {
        Self::Invalid {
            what,
            value: value.as_ref().chars().take(SHOWN).collect(),
            reason,
        }
    }
}
