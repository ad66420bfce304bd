//! The composition root: rooms are made and handed to each other here, an earlier daemon's pods are taken over, and
//! the socket is served until a signal says otherwise.

mod apparmor;
mod serve;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::{Rooms, portray_events};
use crate::config::{CgroupDriver, Config, NetworkBackend};
use crate::container::spec::HostFacts;
use crate::container::spec::seccomp::SeccompCache;
use crate::container::{self, Containers, Layers};
use crate::events::Events;
use crate::handler::Handlers;
use crate::image::{ImageConfig, ImageError, Images};
use crate::monitor::Launcher;
use crate::monitor::client::MonitorError;
use crate::network::{Mode, NetworkConfig, NetworkError, Networks};
use crate::sandbox::{self, SandboxError, Sandboxes};
use crate::stats::Collector;
use crate::store::{Store, StoreError};
use crate::streaming::{Server, StreamingError};
use crate::sys::cgroup::Hierarchy;
use crate::systemd::{Systemd, SystemdError};

/// Why the daemon does not come up, or goes down.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("{op} {}", path.display())]
    Path {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what}")]
    Host { what: &'static str, source: io::Error },
    #[error("another crispd serves {}", path.display())]
    Taken { path: PathBuf },
    #[error("open the images")]
    Images(#[source] ImageError),
    #[error("open the pod network")]
    Network(#[source] NetworkError),
    #[error("load crisp-monitor and crisp-pause")]
    Launcher(#[source] MonitorError),
    #[error("cgroup driver systemd needs cgroup v2 alone, and this machine has v1 controllers: use cgroupfs")]
    SystemdNeedsV2,
    #[error("cgroup driver systemd")]
    Systemd(#[from] SystemdError),
    #[error("open the records")]
    Store(#[from] StoreError),
    #[error("recover the pods")]
    Recover(#[source] SandboxError),
    #[error("serve exec, attach and port-forward")]
    Streaming(#[source] StreamingError),
    #[error("serve the CRI")]
    Serve(#[source] tonic::transport::Error),
}

impl DaemonError {
    fn path(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { op, path, source }
    }
}

/// Runs the daemon until SIGTERM or SIGINT. Containers run on.
pub async fn run(config: Config) -> Result<(), DaemonError> {
    let started = std::time::Instant::now();
    // The lock is held as long as the daemon lives: two daemons on one directory would undo each other's work.
    let _lock = serve::lock(&config.run)?;
    let rooms = open(&config).await?;
    let _containers_run_on = KeepImages(rooms.images.clone());
    let listener = serve::listen(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), ms = started.elapsed().as_millis() as u64, "serving the CRI");
    let sandboxes = rooms.sandboxes.clone();
    serve::serve(rooms, listener).await?;
    sandboxes.settle_networks().await;
    tracing::info!("going down; containers run on");
    Ok(())
}

/// However the daemon ends: dropped before the rooms, whose containers' leases would take the layers along.
struct KeepImages(Arc<Images>);

impl Drop for KeepImages {
    fn drop(&mut self) {
        self.0.keep();
    }
}

/// Makes the rooms and takes over what an earlier daemon left.
async fn open(config: &Config) -> Result<Rooms, DaemonError> {
    let host = |what| move |source| DaemonError::Host { what, source };
    let store = Store::open(&config.root, &config.run)?;
    // Both take milliseconds that nothing else here waits for.
    let (lib_dir, root) = (lib_dir(config)?, config.root.clone());
    let launcher = tokio::task::spawn_blocking(move || Launcher::load(&lib_dir));
    let layers = tokio::task::spawn_blocking(move || Layers::open(&root));
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(host("read the boot id"))?;
    let boot_id = boot_id.trim().to_owned();
    let mut image_config = ImageConfig::new(config.root.join("images"));
    image_config.boot_id = boot_id.clone();
    image_config.pinned = config.pinned.clone();
    image_config.registry.hosts_dirs = config.registry_config_dirs.clone();
    let images = Images::open(image_config).await.map_err(DaemonError::Images)?;
    let networks = Networks::open(network_config(config)).map_err(DaemonError::Network)?;
    let cgroups = Hierarchy::detect().map_err(host("find the cgroup hierarchies"))?;
    let beside_v1 = cgroups.cgroup2().filter(|_| !cgroups.is_v2());
    let handlers = Arc::new(Handlers::open(config.runtimes.clone(), beside_v1).await);
    let events = Events::default();
    let mut facts = HostFacts::detect().map_err(host("look at the host"))?;
    if let Some(apparmor) = &mut facts.apparmor {
        apparmor::provide_default(apparmor, &config.run).await;
    }
    let facts = Arc::new(facts);
    tell_limits(&facts);
    if facts.selinux {
        tracing::warn!("SELinux is on, and containers get no labels: they run in the daemon's own domain");
    }
    let layers = finished(layers).await.map_err(host("make a mount namespace"))?;
    if let Some(why) = layers.no_user_namespaces() {
        tracing::warn!(why, "pods cannot have user namespaces on this node");
    }
    let parts = container::Parts {
        store: store.clone(),
        images: images.clone(),
        cgroups: cgroups.clone(),
        events: events.clone(),
        host: facts.clone(),
        handlers: handlers.clone(),
        seccomp: Arc::new(SeccompCache::default()),
        log_line_max_bytes: config.log_line_max_bytes,
        cdi_dirs: config.cdi_dirs.clone(),
    };
    let containers = Arc::new(Containers::new(parts, layers));
    let netns_dir = config.run.join("netns");
    std::fs::create_dir_all(&netns_dir).map_err(DaemonError::path("make", &netns_dir))?;
    let launcher = finished(launcher).await.map_err(DaemonError::Launcher)?;
    let sandboxes = Sandboxes::new(sandbox::Parts {
        store,
        launcher,
        networks,
        containers: containers.clone(),
        cgroups: cgroups.clone(),
        host: facts,
        events: events.clone(),
        netns_dir,
        cgroup_driver: cgroup_driver(config, &cgroups)?,
        cgroup_parent: config.cgroup_parent.clone(),
        boot_id,
        handlers: handlers.clone(),
    });
    sandboxes.recover().await.map_err(DaemonError::Recover)?;
    let streaming = Arc::new(
        Server::listen(&config.streaming)
            .await
            .map_err(DaemonError::Streaming)?,
    );
    images.settle().await.map_err(DaemonError::Images)?;
    let rooms = Rooms {
        sandboxes,
        containers,
        images,
        events,
        streaming,
        stats: Collector::new(&config.root.join("images")),
        cgroups,
        handlers,
        settings: settings(config).into(),
    };
    portray_events(&rooms);
    Ok(rooms)
}

/// What `work` came to. A panic in it goes on here.
async fn finished<T>(work: tokio::task::JoinHandle<T>) -> T {
    work.await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The driver as configured, if this machine can have it.
fn cgroup_driver(config: &Config, cgroups: &Hierarchy) -> Result<sandbox::CgroupDriver, DaemonError> {
    if config.cgroup_driver == CgroupDriver::Cgroupfs {
        return Ok(sandbox::CgroupDriver::Cgroupfs);
    }
    if !cgroups.is_v2() {
        return Err(DaemonError::SystemdNeedsV2);
    }
    Ok(sandbox::CgroupDriver::Systemd(Systemd::find()?))
}

/// Where the pod's programs are: as configured, or beside crispd.
fn lib_dir(config: &Config) -> Result<PathBuf, DaemonError> {
    if let Some(dir) = &config.lib_dir {
        return Ok(dir.clone());
    }
    let exe = std::env::current_exe().map_err(|source| DaemonError::Host {
        what: "find crispd itself",
        source,
    })?;
    Ok(exe.parent().unwrap_or(Path::new("/")).to_owned())
}

fn network_config(config: &Config) -> NetworkConfig {
    let mut network = NetworkConfig::new(&config.run);
    network.mode = match config.network {
        NetworkBackend::Auto => Mode::Auto,
        NetworkBackend::Cni => Mode::Cni,
        NetworkBackend::Embedded => Mode::Embedded,
    };
    network.conf_dir = config.cni_conf_dir.clone();
    network.plugin_dirs = config.cni_bin_dirs.clone();
    // The plugins' own collection takes whatever it is not told of: where several instances may share a CNI network,
    // each frees its addresses by the plans of its pods alone.
    network.cni_gc = config.instance.is_empty();
    network.embedded.instance = config.instance.clone();
    network.embedded.idle = config.network_idle;
    network.embedded.bridge = Some(config.bridge.clone());
    network
}

/// Says once what this node withholds from its containers.
fn tell_limits(facts: &HostFacts) {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    if facts.bounding & CAP_SYS_RESOURCE == 0 {
        tracing::warn!(
            "without CAP_SYS_RESOURCE: oom_score_adj cannot be lowered, nor hard limits raised, and no container can \
             have more capabilities than crispd"
        );
    }
}

/// The settings in force, for a verbose Status.
fn settings(config: &Config) -> String {
    serde_json::json!({
        "root": config.root,
        "run": config.run,
        "socket": config.socket,
        "cgroupDriver": format!("{:?}", config.cgroup_driver).to_lowercase(),
        "cgroupParent": config.cgroup_parent,
        "registryConfigDirs": config.registry_config_dirs,
        "network": format!("{:?}", config.network).to_lowercase(),
        "cniConfDir": config.cni_conf_dir,
        "cniBinDirs": config.cni_bin_dirs,
        "bridge": config.bridge,
        "cdiDirs": config.cdi_dirs,
        "logLineMaxBytes": config.log_line_max_bytes,
        "streamingAddress": config.streaming.address,
        "streamingTls": config.streaming.tls.is_some(),
        "runtimes": config.runtimes,
    })
    .to_string()
}
