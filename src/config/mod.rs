//! Settings: a raw file and flags become validated settings; all mistakes are told at once.

mod runtimes;
mod streaming;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::model::OciRuntime;
use crate::systemd::Slice;
use runtimes::RawRuntime;
pub use streaming::{RawStreaming, Streaming, TlsFiles};

/// Which network gives pods their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NetworkBackend {
    /// CNI as soon as there is a valid configuration, the embedded bridge until then.
    Auto,
    /// CNI only: without a configuration the network is not ready.
    Cni,
    /// The embedded bridge only.
    Embedded,
}

/// Who makes the cgroups of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// crisp itself, below paths.
    #[default]
    Cgroupfs,
    /// systemd, one scope per pod below slices. Needs cgroup v2.
    Systemd,
}

/// What went wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("parse {}", path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
}

/// The file as written. Every key may be absent; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    pub root: Option<PathBuf>,
    pub run: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub lib_dir: Option<PathBuf>,
    pub cgroup_driver: Option<CgroupDriver>,
    pub cgroup_parent: Option<String>,
    pub image: RawImage,
    pub network: RawNetwork,
    pub container: RawContainer,
    pub streaming: RawStreaming,
    pub runtimes: BTreeMap<String, RawRuntime>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawImage {
    pub registry_config_dirs: Option<Vec<PathBuf>>,
    pub pinned: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawNetwork {
    pub backend: Option<NetworkBackend>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_bin_dirs: Option<Vec<PathBuf>>,
    pub bridge: Option<String>,
    pub idle_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawContainer {
    pub log_line_max_bytes: Option<u32>,
    pub cdi_dirs: Option<Vec<PathBuf>>,
}

/// The documented defaults; `crispd config-default` prints this text.
pub const DEFAULT: &str = r#"# Settings of crispd, with their defaults. Flags win over this file.

# State that survives a reboot: images, and the records of pods.
root = "/var/lib/crisp"
# State that does not: sockets, exit records, network namespaces. A tmpfs.
run = "/run/crisp"
# The socket for a kubelet and crictl; only root may connect.
socket = "/run/crisp/crisp.sock"
# Where crisp-monitor and crisp-pause are; without this key, beside crispd.
# lib_dir = "/usr/lib/crisp"
# Who makes the cgroups of pods: cgroupfs (crisp itself, below paths) or systemd (one scope per pod, below slices; needs
# cgroup v2 and systemd as PID 1). A kubelet asks which one it is.
cgroup_driver = "cgroupfs"
# The parent of the cgroups of pods whose request names none; with the driver systemd a slice, by default system.slice.
cgroup_parent = "/crisp"

[image]
# Mirrors and certificates of registries, in the hosts.toml form: <dir>/<host>/hosts.toml. For each registry the first
# of these that has a directory for it counts.
registry_config_dirs = ["/etc/crisp/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
# Images that a kubelet must not collect; * matches any text.
pinned = []

[network]
# auto: CNI where there is a configuration, else the embedded bridge; or cni, or embedded.
backend = "auto"
cni_conf_dir = "/etc/cni/net.d"
cni_bin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
# The embedded bridge's name.
bridge = "crisp0"
# How long it stays, with its nftables table, after the last pod.
idle_seconds = 30

[container]
# A longer line of output becomes several records marked P, of this many bytes.
log_line_max_bytes = 16384
# Where CDI specification files are; a later directory wins over an earlier one.
cdi_dirs = ["/etc/cdi", "/var/run/cdi"]

[streaming]
# Where exec, attach and port-forward are served: an IP address and a port; 0 is any port that is free. A kubelet on this
# node is all that must reach it.
address = "127.0.0.1:0"
# The host in the URLs that clients get; without this key the address, or loopback where that means any.
# url_host = "node.example"
# A session on which nothing moves ends after this long.
idle_timeout_seconds = 14400
# How long a client may take for its request, and then to open its streams.
creation_timeout_seconds = 30
# How long a URL, which serves once, waits for its client.
url_lifetime_seconds = 60
# The most sessions at a time, and the most URLs that wait.
max_sessions = 1000
# TLS 1.2 or 1.3 by these PEM files, both or none; read again when they change.
# tls_cert = "/etc/crisp/streaming.crt"
# tls_key = "/etc/crisp/streaming.key"

# Runtime handlers beside the built-in one, "" (libcontainer): OCI runtimes that take runc's commands and options. The name is
# what a RuntimeClass says as its handler.
# [runtimes.runc]
# path = "/usr/sbin/runc"
# What comes before the runtime's commands; --root, --log and --log-format are crispd's.
# options = []
# Annotations of pods and containers that the runtime is told; a * at the end matches any rest. Some change what a runtime
# does: name those that whoever may make pods may set.
# annotations = []
"#;

/// Flags that win over the file.
#[derive(Debug, Default)]
pub struct Overrides {
    pub dir: Option<PathBuf>,
    pub socket: Option<PathBuf>,
    pub lib_dir: Option<PathBuf>,
    pub registry_config_dir: Option<PathBuf>,
    pub network: Option<NetworkBackend>,
    pub cni_conf_dir: Option<PathBuf>,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub cgroup_driver: Option<CgroupDriver>,
    pub cgroup_parent: Option<String>,
}

/// Validated settings.
#[derive(Clone, Debug)]
pub struct Config {
    pub root: PathBuf,
    pub run: PathBuf,
    pub socket: PathBuf,
    pub lib_dir: Option<PathBuf>,
    pub cgroup_driver: CgroupDriver,
    pub cgroup_parent: String,
    /// Tells instances on one machine apart: empty for the default directories.
    pub instance: String,
    pub registry_config_dirs: Vec<PathBuf>,
    pub pinned: Vec<String>,
    pub network: NetworkBackend,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub bridge: String,
    pub network_idle: Duration,
    pub log_line_max_bytes: u32,
    pub cdi_dirs: Vec<PathBuf>,
    /// The external runtimes by the names of their handlers.
    pub runtimes: BTreeMap<String, OciRuntime>,
    pub streaming: Streaming,
}

/// Reads `file`, or nothing if it is absent and was not asked for by name.
pub fn read(file: &Path, required: bool) -> Result<Raw, ConfigError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Raw::default()),
        Err(source) => {
            return Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            });
        }
    };
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: file.to_owned(),
        source,
    })
}

/// A short name for an instance below `dir`, fit for interface and table names: eight hexadecimal digits.
fn instance_of(dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(dir.as_os_str().as_bytes());
    digest[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Puts flags over `raw` and checks everything; every mistake is in the one error.
pub fn validate(raw: Raw, flags: Overrides) -> Result<Config, ConfigError> {
    let (runtimes, mut mistakes) = runtimes::validate(raw.runtimes);
    let dir = flags.dir.map(|dir| std::path::absolute(&dir).unwrap_or(dir));
    let root = dir
        .as_ref()
        .map(|d| d.join("lib"))
        .or(raw.root)
        .unwrap_or_else(|| "/var/lib/crisp".into());
    let run = dir
        .as_ref()
        .map(|d| d.join("run"))
        .or(raw.run)
        .unwrap_or_else(|| "/run/crisp".into());
    let instance = dir.as_deref().map(instance_of).unwrap_or_default();
    let cgroup_driver = flags.cgroup_driver.or(raw.cgroup_driver).unwrap_or_default();
    let own_socket = dir.is_some().then(|| run.join("crisp.sock"));
    let config = Config {
        socket: flags
            .socket
            .or(own_socket)
            .or(raw.socket)
            .unwrap_or_else(|| run.join("crisp.sock")),
        root,
        run,
        lib_dir: flags.lib_dir.or(raw.lib_dir),
        cgroup_parent: flags.cgroup_parent.or(raw.cgroup_parent).unwrap_or_else(|| {
            match (cgroup_driver, instance.as_str()) {
                (CgroupDriver::Systemd, _) => "system.slice".to_owned(),
                (CgroupDriver::Cgroupfs, "") => "/crisp".to_owned(),
                (CgroupDriver::Cgroupfs, instance) => format!("/crisp-{instance}"),
            }
        }),
        cgroup_driver,
        registry_config_dirs: match (flags.registry_config_dir, raw.image.registry_config_dirs) {
            (Some(dir), _) => vec![dir],
            (None, Some(dirs)) => dirs,
            (None, None) => ["crisp", "containerd", "docker"]
                .map(|who| format!("/etc/{who}/certs.d").into())
                .into(),
        },
        pinned: raw.image.pinned,
        network: flags.network.or(raw.network.backend).unwrap_or(NetworkBackend::Auto),
        cni_conf_dir: flags
            .cni_conf_dir
            .or(raw.network.cni_conf_dir)
            .unwrap_or_else(|| "/etc/cni/net.d".into()),
        cni_bin_dirs: if flags.cni_bin_dirs.is_empty() {
            raw.network
                .cni_bin_dirs
                .unwrap_or_else(|| vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()])
        } else {
            flags.cni_bin_dirs
        },
        bridge: raw.network.bridge.unwrap_or_else(|| match instance.as_str() {
            "" => "crisp0".to_owned(),
            instance => format!("crisp-{instance}"),
        }),
        instance,
        network_idle: Duration::from_secs(raw.network.idle_seconds.unwrap_or(30).into()),
        log_line_max_bytes: raw.container.log_line_max_bytes.unwrap_or(16384),
        cdi_dirs: raw
            .container
            .cdi_dirs
            .unwrap_or_else(|| vec!["/etc/cdi".into(), "/var/run/cdi".into()]),
        runtimes,
        streaming: streaming::validate(raw.streaming, &mut mistakes),
    };
    for (key, path) in [
        ("root", &config.root),
        ("run", &config.run),
        ("socket", &config.socket),
        ("network.cni_conf_dir", &config.cni_conf_dir),
    ] {
        if !path.is_absolute() {
            mistakes.push(format!("{key} must be an absolute path, not {}", path.display()));
        }
    }
    for path in config
        .registry_config_dirs
        .iter()
        .chain(&config.cni_bin_dirs)
        .chain(&config.cdi_dirs)
        .filter(|path| !path.is_absolute())
    {
        mistakes.push(format!(
            "{} in a list of directories must be an absolute path",
            path.display()
        ));
    }
    mistakes.extend(mistake_in_cgroup_parent(&config));
    if config.bridge.is_empty() || config.bridge.len() > 15 || config.bridge.contains(['/', ' ']) {
        mistakes.push(format!(
            "network.bridge must be an interface name of 1 to 15 bytes, not {:?}",
            config.bridge
        ));
    }
    if !(256..=1024 * 1024).contains(&config.log_line_max_bytes) {
        mistakes.push(format!(
            "container.log_line_max_bytes must be 256 to 1048576, not {}",
            config.log_line_max_bytes
        ));
    }
    if mistakes.is_empty() {
        Ok(config)
    } else {
        Err(ConfigError::Invalid(mistakes))
    }
}

fn mistake_in_cgroup_parent(config: &Config) -> Option<String> {
    let parent = &config.cgroup_parent;
    match config.cgroup_driver {
        CgroupDriver::Systemd => Slice::parse(parent).err().map(|why| format!("cgroup_parent: {why}")),
        CgroupDriver::Cgroupfs if parent.starts_with('/') && parent.split('/').all(|part| part != "..") => None,
        CgroupDriver::Cgroupfs => Some(format!(
            "cgroup_parent must be an absolute path without .., not {parent}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        let printed = validate(toml::from_str(DEFAULT).expect("parses"), Overrides::default()).expect("valid");
        let built_in = validate(Raw::default(), Overrides::default()).expect("valid");
        assert_eq!(format!("{printed:?}"), format!("{built_in:?}"));
    }

    #[test]
    fn two_directories_are_two_instances_that_share_nothing() {
        let at = |dir: &str| {
            let flags = Overrides {
                dir: Some(dir.into()),
                ..Overrides::default()
            };
            validate(Raw::default(), flags).expect("valid")
        };
        let (a, b) = (at("/tmp/a"), at("/tmp/b"));
        assert_eq!(a.socket, Path::new("/tmp/a/run/crisp.sock"));
        assert!(a.bridge != b.bridge && a.cgroup_parent != b.cgroup_parent && a.instance != b.instance);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let raw = toml::from_str("root = 'x'\ncgroup_parent = '/a/../b'\n[network]\nbridge = ''\n").expect("parses");
        let told = validate(raw, Overrides::default()).expect_err("invalid").to_string();
        for key in ["root", "cgroup_parent", "network.bridge"] {
            assert!(told.contains(key), "{told}");
        }
    }

    #[test]
    fn a_cgroup_parent_fits_the_driver() {
        let parent = |text: &str| validate(toml::from_str(text).expect("parses"), Overrides::default());
        let systemd = |parent: &str| format!("cgroup_driver = 'systemd'\ncgroup_parent = '{parent}'");
        let default = parent("cgroup_driver = 'systemd'").expect("valid");
        assert_eq!(default.cgroup_parent, "system.slice");
        assert!(parent(&systemd("a-b.slice")).is_ok());
        for refused in [systemd("/crisp").as_str(), "cgroup_parent = 'a.slice'"] {
            let told = parent(refused).expect_err("invalid").to_string();
            assert!(told.contains("cgroup_parent"), "{told}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        assert!(toml::from_str::<Raw>("rooot = '/x'").is_err());
    }
}
