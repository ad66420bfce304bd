//! What every container has mounted: the kernel's file systems and the pod's files.

use std::path::PathBuf;

use oci_spec::runtime::{Mount, MountBuilder};

use super::super::namespaces::{self, Namespaces};
use super::super::{Input, built};
use super::{Bind, BindSource, SandboxFile};
use crate::sys::mount::Propagation;

/// The group "tty", as everywhere. A user namespace may be too small to have it.
const TERMINALS_GROUP: u32 = 5;

/// One mount, in order.
pub enum Step {
    Kernel(Mount),
    Bind(Bind),
}

/// The first mounts of a container.
pub struct Defaults {
    pub steps: Vec<Step>,
    pub readonly_paths: Vec<String>,
}

fn kernel(typ: &str, destination: &str, options: &[&str]) -> Step {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    let mount = MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(typ)
        .options(options);
    Step::Kernel(built(mount.build()))
}

/// The kernel's file systems. sysfs shows the network namespace that it is mounted in, which a user namespace may do
/// for its own only: with the node's network it gets the node's sysfs instead.
pub fn resolve(input: &Input<'_>, namespaces: &Namespaces, privileged: bool) -> Defaults {
    let access = if privileged { "rw" } else { "ro" };
    let mut steps = vec![
        kernel("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        kernel("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if namespaces::user_ids(input.sandbox).is_none_or(|ids| ids.count > TERMINALS_GROUP) {
        terminals.push("gid=5");
    }
    steps.push(kernel("devpts", "/dev/pts", &terminals));
    if !(namespaces.host_ipc && namespaces.user) {
        steps.push(kernel("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]));
    }
    if namespaces.host_network && namespaces.user {
        let host = Bind {
            read_only: true,
            recursive_read_only: true,
            ..Bind::new(host("/sys"), "/sys")
        };
        steps.push(Step::Bind(host));
    } else {
        steps.push(kernel("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]));
    }
    let mut readonly_paths = Vec::new();
    if input.host.cgroup_v2 || input.external {
        steps.push(kernel(
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ));
    } else if !input.cgroup_mounts.is_empty() {
        steps.push(kernel(
            "tmpfs",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
        ));
        for mount in input.cgroup_mounts {
            steps.push(cgroup_v1(&mount.name, &mount.path, privileged));
        }
        if !privileged {
            readonly_paths.push("/sys/fs/cgroup".to_owned());
        }
    }
    Defaults { steps, readonly_paths }
}

/// A hierarchy. Controllers that share one are found under each one's name, too: that is up to who mounts it.
fn cgroup_v1(name: &str, path: &std::path::Path, privileged: bool) -> Step {
    Step::Bind(Bind {
        read_only: !privileged,
        nosuid: true,
        nodev: true,
        noexec: true,
        ..Bind::new(
            BindSource::Host(path.to_owned()),
            PathBuf::from("/sys/fs/cgroup").join(name),
        )
    })
}

fn host(path: &str) -> BindSource {
    BindSource::Host(PathBuf::from(path))
}

/// The files of the pod. Read-only where the root file system is.
pub fn pod_files(input: &Input<'_>, namespaces: &Namespaces) -> Vec<Bind> {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let read_only = context.is_some_and(|context| context.readonly_rootfs);
    let file = |file, destination: &str| Bind {
        read_only,
        nosuid: true,
        nodev: true,
        ..Bind::new(BindSource::Sandbox(file), destination)
    };
    let shm = if namespaces.host_ipc {
        host("/dev/shm")
    } else {
        BindSource::Sandbox(SandboxFile::Shm)
    };
    vec![
        file(SandboxFile::Hostname, "/etc/hostname"),
        file(SandboxFile::Hosts, "/etc/hosts"),
        file(SandboxFile::ResolvConf, "/etc/resolv.conf"),
        Bind {
            nosuid: true,
            nodev: true,
            noexec: true,
            propagation: Propagation::Private,
            ..Bind::new(shm, "/dev/shm")
        },
    ]
}
