//! Containers, through libcontainer's `container_main_process`.
//!
//! The builder of libcontainer is not used: it compiles the seccomp filter each time, and cannot have a process that is neither
//! privileged nor without new privileges filtered. What libcontainer sees is a spec without seccomp, capabilities and resources, of a process that is root without a
//! working directory; what the policy says is done by `execute`, which libcontainer calls last. Cgroups are the
//! daemon's and are joined before: for libcontainer there is a directory of the monitor's room that takes its writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcgroups::common::CgroupConfig;
use libcontainer::notify_socket::NotifyListener;
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::container_main_process::container_main_process;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Process, ProcessBuilder, Spec, UserBuilder,
};

use super::late::LateMount;
use super::{
    Creation, Namespace, Namespaces, OciError, Policy, Stdio, Waiting, diagnosis, early, execute, places, stage,
};
use crate::sys::{fd, process, scm};

/// The directory in the monitor's room that libcontainer takes for its cgroup, relative to the cgroup mount: writes to it do
/// nothing. libcontainer insists on moving each process, which would cost a kernel-wide lock and undo nothing.
pub const CGROUP_SINK: &str = "sink";

#[derive(Clone)]
struct Payload {
    policy: Rc<Policy>,
    line: Rc<OwnedFd>,
    late: Rc<RefCell<Vec<LateMount>>>,
}

impl Payload {
    fn new(policy: Policy, line: Rc<OwnedFd>, late: Vec<LateMount>) -> Self {
        Self {
            policy: Rc::new(policy),
            line,
            late: Rc::new(RefCell::new(late)),
        }
    }
}

impl Executor for Payload {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        execute::run(&self.policy, &self.line, self.late.take())
    }

    /// Nothing: a program that is missing is told when the container is started, as CRI wants it.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// Nothing: execve is given the environment.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

/// Makes the container. In a forked child, in the monitor's room, in the container's cgroups.
pub fn create(creation: Creation, line: Rc<OwnedFd>) -> Result<Waiting, OciError> {
    let Creation {
        spec,
        rootfs,
        mounts,
        late_mounts,
        namespaces,
        root_id,
        stdio,
        policy,
    } = creation;
    diagnosis::catch(&line);
    let mut spec: Spec = serde_json::from_slice(&spec).map_err(OciError::Spec)?;
    let io = |op| move |source| OciError::Io { op, source };

    stage::build().map_err(io("build the stage"))?;
    let root = stage::attach(&rootfs, "root").map_err(io("attach the container's root"))?;
    drop(rootfs);
    // Root of the node has no number in the pod's user namespace, and can own nothing there.
    process::set_files_id(root_id);
    let made = make_cwd(&spec, &root, &policy.cwd);
    process::set_files_id(0);
    made.map_err(io("make the working directory"))?;
    early::gather_cgroups(&mut spec, &mounts, root_id)?;
    early::attach_binds(&mut spec, &root, &mounts, root_id)?;
    places::check(&spec, &root, &mounts)?;
    bind_from_stage(&mut spec, &mounts)?;
    let late = take_late(mounts, late_mounts)?;

    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_seccomp(None).set_resources(None).set_cgroups_path(None);
    let asked = linux.namespaces().clone().unwrap_or_default();
    linux.set_namespaces(Some(resolve(asked, &namespaces)?));
    spec.set_linux(Some(linux))
        .set_hooks(None)
        .set_process(Some(bare_process(&policy)?));
    run(spec, root, stdio, Payload::new(policy, line, late))
}

fn run(spec: Spec, rootfs: PathBuf, stdio: Stdio, payload: Payload) -> Result<Waiting, OciError> {
    let io = |op| move |source| OciError::Io { op, source };
    let terminal = match stdio.terminal {
        true => Some(UnixStream::pair().map_err(io("make a socket for the terminal"))?),
        false => None,
    };
    let (terminal, console) = terminal.unzip();
    let args = ContainerArgs {
        container_type: ContainerType::InitContainer,
        syscall: SyscallType::Linux,
        spec: Rc::new(spec),
        rootfs,
        console_socket: console.map(|socket| fd::into_number(socket.into())),
        notify_listener: told_already()?,
        preserve_fds: 0,
        container: None,
        user_ns_config: None,
        cgroup_config: CgroupConfig {
            cgroup_path: PathBuf::from(format!("../../../{CGROUP_SINK}")),
            systemd_cgroup: false,
            container_name: String::new(),
        },
        detached: true,
        executor: Box::new(payload),
        no_pivot: false,
        stdin: stdio.stdin.map(fd::into_number),
        stdout: stdio.stdout.map(fd::into_number),
        stderr: stdio.stderr.map(fd::into_number),
        as_sibling: true,
        pid_file: None,
    };
    let pid = container_main_process(&args).map_err(|source| OciError::Libcontainer {
        op: "make the process",
        source: Box::new(source),
    })?;
    let terminal = terminal
        .map(receive_terminal)
        .transpose()
        .map_err(io("receive the terminal"))?;
    Ok(Waiting {
        pid: pid.as_raw(),
        terminal,
    })
}

/// libcontainer's own gate, with the word to start already waiting in it: the gate that counts is the line, which unlike this one
/// does not open when the monitor dies.
fn told_already() -> Result<NotifyListener, OciError> {
    let path = PathBuf::from(format!("/start-{}", std::process::id()));
    let listener = NotifyListener::new(&path).map_err(|source| OciError::Libcontainer {
        op: "listen for the start",
        source: Box::new(source),
    })?;
    let told = UnixStream::connect(&path);
    let gone = std::fs::remove_file(&path);
    told.map_err(|source| OciError::Io {
        op: "connect to libcontainer's socket",
        source,
    })?;
    gone.map_err(|source| OciError::Io {
        op: "remove libcontainer's socket",
        source,
    })?;
    Ok(listener)
}

fn receive_terminal(socket: UnixStream) -> io::Result<OwnedFd> {
    let (mut name, mut fds) = ([0; 64], Vec::new());
    scm::receive(&socket, &mut name, &mut fds, false)?;
    fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Attaches the sent mounts on the stage and lets the spec's `fd:<n>` name them.
fn bind_from_stage(spec: &mut Spec, sent: &[OwnedFd]) -> Result<(), OciError> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if let Some(index) = stage::index_of(mount)? {
            let place = stage::attach(stage::sent(sent, index)?, format!("mount-{index}"));
            let place = place.map_err(|source| OciError::Stage { index, source })?;
            *mount = stage::bind(place, mount.destination().clone())?;
        }
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Those of `sent` that are attached at the end.
fn take_late(sent: Vec<OwnedFd>, late: Vec<(usize, PathBuf)>) -> Result<Vec<LateMount>, OciError> {
    let mut sent: Vec<Option<OwnedFd>> = sent.into_iter().map(Some).collect();
    let mut take = |(index, destination): (usize, PathBuf)| {
        let mount = sent
            .get_mut(index)
            .and_then(Option::take)
            .ok_or_else(|| OciError::Unfit {
                what: format!("late mount {index} was not sent"),
            })?;
        Ok(LateMount { mount, destination })
    };
    late.into_iter().map(&mut take).collect()
}

/// Makes the working directory in the root while that is still writable. Below a mount it is made later, from inside.
fn make_cwd(spec: &Spec, root: &Path, cwd: &Path) -> io::Result<()> {
    let below_mount = |cwd: &Path| {
        spec.mounts()
            .iter()
            .flatten()
            .any(|mount| cwd.starts_with(mount.destination()))
    };
    if cwd.as_os_str().is_empty() || below_mount(cwd) {
        return Ok(());
    }
    match stage::make_directory(root, cwd) {
        // A root that cannot be written to, or not by the pod's root alone: entering it will say so, or make it.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The namespaces asked for, with `nsfd:<kind>` resolved to what was sent. Those that can be are entered here and now.
fn resolve(asked: Vec<LinuxNamespace>, sent: &Namespaces) -> Result<Vec<LinuxNamespace>, OciError> {
    let mut left = Vec::new();
    for asked in asked {
        let Some(kind) = asked
            .path()
            .as_ref()
            .and_then(|p| p.to_str())
            .and_then(|p| p.strip_prefix("nsfd:"))
        else {
            left.push(asked);
            continue;
        };
        let (kind, fd) = sent
            .iter()
            .find(|(sent, _)| type_of(*sent) == asked.typ())
            .ok_or_else(|| OciError::Unfit {
                what: format!("namespace {kind} was not sent"),
            })?;
        if !enter_early(*kind, fd)? {
            left.push(namespace(asked.typ(), Some(path_of(fd)))?);
        }
    }
    Ok(left)
}

/// Enters a namespace if nothing that libcontainer does depends on when: everything it clones is then in it. As root of the node:
/// once in the container's user namespace, one that belongs to the node's could not be entered any more.
fn enter_early(kind: Namespace, fd: &OwnedFd) -> Result<bool, OciError> {
    let flag = match kind {
        Namespace::Net => libc::CLONE_NEWNET,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
        Namespace::Pid | Namespace::User => return Ok(false),
    };
    process::enter(fd, flag).map_err(|source| OciError::Io {
        op: "enter a namespace of the pod",
        source,
    })?;
    Ok(true)
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> Result<LinuxNamespace, OciError> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path),
        None => builder,
    }
    .build()
    .map_err(unfit)
}

fn type_of(kind: Namespace) -> LinuxNamespaceType {
    match kind {
        Namespace::Net => LinuxNamespaceType::Network,
        Namespace::Ipc => LinuxNamespaceType::Ipc,
        Namespace::Uts => LinuxNamespaceType::Uts,
        Namespace::Pid => LinuxNamespaceType::Pid,
        Namespace::User => LinuxNamespaceType::User,
    }
}

fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The process as libcontainer is to see it: root, no directory, HOME set (else it would ask NSS, inside the image).
fn bare_process(policy: &Policy) -> Result<Process, OciError> {
    let user = UserBuilder::default().uid(0_u32).gid(0_u32).build().map_err(unfit)?;
    let mut process = ProcessBuilder::default()
        .user(user)
        .args(vec!["crisp".to_owned()])
        .env(vec!["HOME=/".to_owned()])
        .cwd("")
        .no_new_privileges(false)
        .build()
        .map_err(unfit)?;
    process
        .set_capabilities(None)
        .set_rlimits(None)
        .set_apparmor_profile(policy.apparmor.clone());
    process.set_no_new_privileges(None);
    Ok(process)
}

fn unfit(error: oci_spec::OciSpecError) -> OciError {
    OciError::Unfit {
        what: error.to_string(),
    }
}

/// The last thing of a forked child that made, or did not make, a process: tells it and ends.
pub fn report(outcome: Result<Waiting, OciError>, line: &OwnedFd) -> ! {
    match outcome {
        Ok(waiting) => super::line::say_process(line, waiting.pid, waiting.terminal.as_ref()),
        Err(error) => super::line::say_refused(line, super::line::Refusal::Failed, &super::chain(&error)),
    }
    process::exit_now(0)
}
