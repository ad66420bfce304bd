//! A container's configuration and its image's, translated: what libcontainer does ([`Built::spec`]), what happens
//! between it and execve(2) ([`Built::policy`]), what is mounted ([`Built::binds`]) and limited
//! ([`Built::resources`]).
//!
//! Pure but for two things: [`build`] reads passwd and group below the container's own root, and [`host`] looks at
//! the host once, for [`build`] to know.

use std::os::fd::BorrowedFd;

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxBuilder, PosixRlimitBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::cri;

pub mod bundle;
pub mod devices;
pub mod error;
pub mod host;
pub mod mounts;
pub mod namespaces;
pub mod policy;
pub mod process;
pub mod resources;
pub mod rlimits;
pub mod sandbox;
pub mod seccomp;
pub mod security;
pub mod stop_signal;
pub mod sysctls;
pub mod user;

pub use devices::Device;
pub use error::SpecError;
pub use host::{AppArmor, HostFacts};
pub use mounts::{Bind, BindSource, CgroupMount, SandboxFile, Volume};
pub use namespaces::JoinPaths;
pub use policy::{CapabilitySets, Policy, Rlimit, SeccompSource, User};
pub use process::exec_process;
pub use resources::Resources;

/// All that a container is made from.
pub struct Input<'a> {
    pub sandbox: &'a cri::PodSandboxConfig,
    pub container: &'a cri::ContainerConfig,
    pub image: &'a ImageConfiguration,
    /// The pod's host name (the node's in a sandbox with the node's network).
    pub hostname: &'a str,
    pub namespaces: &'a JoinPaths,
    /// On cgroup v1, the container's own cgroup in each hierarchy; empty on v2.
    pub cgroup_mounts: &'a [CgroupMount],
    /// An external runtime makes it, which mounts cgroups itself, of either version.
    pub external: bool,
    /// What [`devices::lookup`] found for this container.
    pub devices: &'a [Device],
    pub host: &'a HostFacts,
}

/// A container, described.
#[derive(Clone, Debug)]
pub struct Built {
    /// For libcontainer: no seccomp, capabilities, resources, oom_score_adj, cwd (`/`) or cgroup path; `root.path` is
    /// [`ROOTFS`] and the source of bind n is `fd:n`, for the monitor to put its staging paths there.
    pub spec: Spec,
    pub policy: Policy,
    /// In the order of mounting.
    pub binds: Vec<Bind>,
    /// Volumes that the image declares and nothing else is mounted on: each an empty directory, to be filled from
    /// the image, behind one of the binds.
    pub volumes: Vec<Volume>,
    pub resources: Resources,
    /// Signal number that stops the container.
    pub stop_signal: i32,
    /// Capabilities that were asked for but that the daemon does not have itself, for the log.
    pub capabilities_cut: Vec<&'static str>,
}

/// Stands for the root file system in [`Built::spec`].
pub const ROOTFS: &str = "rootfs";

/// Describes the container. `rootfs` is its root file system as it will see it, for reading its passwd and group.
pub fn build(input: &Input<'_>, rootfs: BorrowedFd<'_>) -> Result<Built, SpecError> {
    let security = security::resolve(input.sandbox, input.container, input.host)?;
    if !input.external {
        mounts::check_root(rootfs)?;
    }
    let identity = user::resolve(input.container, input.image, rootfs)?;
    let policy = process::policy(input, &security, &identity)?;
    around(input, security, policy)
}

/// Describes a container that is there already, whose processes have `policy`.
pub fn again(input: &Input<'_>, policy: Policy) -> Result<Built, SpecError> {
    let security = security::resolve(input.sandbox, input.container, input.host)?;
    around(input, security, policy)
}

/// All but the processes.
fn around(input: &Input<'_>, security: security::Security, policy: Policy) -> Result<Built, SpecError> {
    let namespaces = namespaces::resolve(input.sandbox, input.container, input.namespaces, input.host)?;
    let devices = devices::resolve(input.devices, security.privileged, namespaces.user)?;
    let mounts = mounts::resolve(input, &namespaces, security.privileged, &devices.bound)?;

    let mut readonly_paths = security.readonly_paths;
    readonly_paths.extend(mounts.readonly_paths);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces.list)
        .devices(devices.nodes)
        .masked_paths(security.masked_paths)
        .readonly_paths(readonly_paths);
    if let Some(propagation) = mounts.rootfs_propagation {
        linux = linux.rootfs_propagation(propagation);
    }
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(built(
            RootBuilder::default()
                .path(ROOTFS)
                .readonly(security.readonly_rootfs)
                .build(),
        ))
        .mounts(mounts.list)
        .process(built(spec_process(&policy)))
        .linux({
            let mut linux = built(linux.build());
            linux.set_resources(None);
            linux
        })
        .build();
    let mut spec = built(spec);
    spec.set_hostname(None);

    Ok(Built {
        spec,
        policy,
        binds: mounts.binds,
        volumes: mounts.volumes,
        resources: resources::resolve(
            input.container.linux.as_ref().and_then(|l| l.resources.as_ref()),
            devices.rules,
        )?,
        stop_signal: stop_signal::resolve(input.container, input.image)?,
        capabilities_cut: security.cut,
    })
}

/// libcontainer's share of the process: the identity and the limits, and arguments and environment as text to show.
fn spec_process(policy: &Policy) -> Result<oci_spec::runtime::Process, oci_spec::OciSpecError> {
    let text = |list: &[Vec<u8>]| -> Vec<String> {
        list.iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    };
    let user = UserBuilder::default()
        .uid(policy.user.uid)
        .gid(policy.user.gid)
        .umask(policy.user.umask)
        .additional_gids(policy.user.additional_gids.clone());
    let mut rlimits = Vec::new();
    for limit in &policy.rlimits {
        let kind = rlimits::oci_name(limit.resource);
        rlimits.push(
            PosixRlimitBuilder::default()
                .typ(kind)
                .soft(limit.soft)
                .hard(limit.hard)
                .build()?,
        );
    }
    let mut process = ProcessBuilder::default()
        .terminal(policy.terminal)
        .user(user.build()?)
        .args(text(&policy.args))
        .env(text(&policy.env))
        .cwd("/")
        .rlimits(rlimits)
        .build()?;
    process.set_capabilities(None);
    process.set_no_new_privileges(policy.no_new_privs.then_some(true));
    Ok(process)
}

#[cfg(test)]
mod tests;

/// The builders of oci-spec fail only for a missing field that has no default; all have one.
fn built<T>(result: Result<T, oci_spec::OciSpecError>) -> T {
    result.expect("every field of the OCI specification that is used here has a default")
}
