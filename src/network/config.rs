//! The network's settings.

use std::path::PathBuf;
use std::time::Duration;

use super::embedded::EmbeddedConfig;

/// Which network new pods get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// CNI where a configuration exists, the embedded bridge otherwise.
    #[default]
    Auto,
    /// CNI, or not ready.
    Cni,
    /// The embedded bridge, whatever CNI configuration exists.
    Embedded,
}

/// Settings of [`super::Networks`].
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub mode: Mode,
    /// The instance's run directory, on a file system that does not outlive a boot; `network/` below it is this room's.
    pub run: PathBuf,
    /// Where CNI configurations are; the lexically first valid one counts.
    pub conf_dir: PathBuf,
    /// Where CNI plugins are, first hit wins.
    pub plugin_dirs: Vec<PathBuf>,
    /// The longest that one call of one CNI plugin may take.
    pub plugin_deadline: Duration,
    /// Whether to call GC on CNI plugins at start. To be off where another runtime, or another instance, uses the same
    /// CNI network: GC takes everything that this instance does not know.
    pub cni_gc: bool,
    pub embedded: EmbeddedConfig,
}

impl NetworkConfig {
    /// The usual places, state below `run`.
    pub fn new(run: impl Into<PathBuf>) -> Self {
        Self {
            mode: Mode::Auto,
            run: run.into(),
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
                .map(PathBuf::from)
                .into(),
            plugin_deadline: Duration::from_secs(60),
            cni_gc: true,
            embedded: EmbeddedConfig::default(),
        }
    }
}
