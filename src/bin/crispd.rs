//! crispd: the CRI for a kubelet and crictl.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use crisp::config::{self, CgroupDriver, NetworkBackend, Overrides};
use tracing_subscriber::EnvFilter;

/// A container runtime for Kubernetes nodes.
#[derive(Parser)]
#[command(name = "crispd", version)]
struct Arguments {
    /// Settings; without this flag /etc/crisp/crisp.toml, if there is one.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Everything below this one directory: state, sockets, names of its own for bridge and cgroups.
    #[arg(long)]
    dir: Option<PathBuf>,
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Where crisp-monitor and crisp-pause are.
    #[arg(long)]
    lib_dir: Option<PathBuf>,
    /// Mirrors and certificates of registries: <dir>/<host>/hosts.toml.
    #[arg(long)]
    registry_config_dir: Option<PathBuf>,
    #[arg(long, value_enum)]
    network: Option<NetworkBackend>,
    #[arg(long)]
    cni_conf_dir: Option<PathBuf>,
    #[arg(long)]
    cni_bin_dir: Vec<PathBuf>,
    #[arg(long, value_enum)]
    cgroup_driver: Option<CgroupDriver>,
    /// The parent of the cgroups of pods whose request names none: a path, or a slice with the driver systemd.
    #[arg(long)]
    cgroup_parent: Option<String>,
    /// As RUST_LOG: error, warn, info, debug, trace, or by room: info,crisp::image=debug.
    #[arg(long, default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Prints the settings with their defaults.
    ConfigDefault,
}

fn main() -> ExitCode {
    crisp::sys::memory::keep_little();
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crispd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    crisp::fault::arm().map_err(|asked| anyhow::anyhow!("{} is not understood: {asked:?}", crisp::fault::VARIABLE))?;
    if let Some(Command::ConfigDefault) = arguments.command {
        print!("{}", config::DEFAULT);
        return Ok(());
    }
    let filter = EnvFilter::try_new(&arguments.log)?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let file = arguments
        .config
        .clone()
        .unwrap_or_else(|| "/etc/crisp/crisp.toml".into());
    let raw = config::read(&file, arguments.config.is_some())?;
    let flags = Overrides {
        dir: arguments.dir,
        socket: arguments.socket,
        lib_dir: arguments.lib_dir,
        registry_config_dir: arguments.registry_config_dir,
        network: arguments.network,
        cni_conf_dir: arguments.cni_conf_dir,
        cni_bin_dirs: arguments.cni_bin_dir,
        cgroup_driver: arguments.cgroup_driver,
        cgroup_parent: arguments.cgroup_parent,
    };
    let config = config::validate(raw, flags)?;
    crisp::sys::process::allow_all_descriptors()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(crisp::daemon::run(config))?;
    // Threads that wait for a hung file system must not keep the daemon from ending.
    runtime.shutdown_background();
    Ok(())
}
