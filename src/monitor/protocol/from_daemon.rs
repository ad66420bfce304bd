//! Requests.

use std::collections::BTreeMap;

use super::Empty;

/// What a file descriptor that comes with a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Role {
    Unspecified = 0,
    /// The pod's network namespace, to be joined.
    Network = 1,
    /// A file to which a process writes `0` to join a cgroup; one for each hierarchy.
    CgroupProcs = 2,
    /// A container's root: a detached mount.
    Rootfs = 3,
    /// A detached mount; the n-th of them is `fd:<n>` in the OCI spec's mount sources.
    Mount = 4,
    /// A container's log, open for appending.
    Log = 5,
    /// `memory.events` (cgroup v2) or `memory.oom_control` (v1) of a container.
    OomEvents = 6,
    /// Namespaces that `nsfd:<kind>` in the OCI spec's namespace paths mean. Those not sent are pause's. A sandbox is
    /// sent the user namespace that it is to live in.
    NamespaceNet = 7,
    NamespaceIpc = 8,
    NamespaceUts = 9,
    NamespacePid = 10,
    NamespaceUser = 11,
    Stdin = 12,
    Stdout = 13,
    Stderr = 14,
    /// The directory of a cgroup2 cgroup to be born in.
    CgroupDirectory = 16,
    /// The mount namespace that an external runtime's own is a copy of: the daemon's.
    HostMounts = 30,
}

/// From the daemon. Descriptors ride with the frame, in the order of `roles`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// Chosen by the daemon, unique within its connection; the reply has it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(enumeration = "Role", repeated, tag = "2")]
    pub roles: Vec<i32>,
    #[prost(oneof = "Call", tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23")]
    pub call: Option<Call>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Call {
    /// Must be the first; answered by a snapshot.
    #[prost(message, tag = "10")]
    Hello(Hello),
    /// Answered by pause's process.
    #[prost(message, tag = "11")]
    CreateSandbox(CreateSandbox),
    /// Answered by the process, which waits for `Start`.
    #[prost(message, tag = "12")]
    CreateContainer(CreateContainer),
    /// Answered when the program is executing, or by why it is not.
    #[prost(message, tag = "13")]
    Start(StartContainer),
    /// Answered by the process when the program is executing, or by why it is not.
    #[prost(message, tag = "14")]
    Exec(Exec),
    #[prost(message, tag = "15")]
    Signal(Signal),
    #[prost(message, tag = "16")]
    SignalExec(SignalExec),
    /// With a `Log` descriptor. Answered when nothing more will be written to the old one.
    #[prost(message, tag = "17")]
    ReopenLog(ContainerRef),
    #[prost(message, tag = "18")]
    Resize(Resize),
    /// With `Stdout` and perhaps `Stderr` to which the container's output is copied from here on. Answered with the
    /// container's standard input (or terminal) as a descriptor, if it has one.
    #[prost(message, tag = "19")]
    Attach(ContainerRef),
    /// Closes the monitor's end of a container's standard input.
    #[prost(message, tag = "20")]
    CloseStdin(ContainerRef),
    /// Forgets a container that has exited, and its exit record.
    #[prost(message, tag = "21")]
    Forget(ContainerRef),
    /// Kills pause; answered when it is gone. Fine when there is none.
    #[prost(message, tag = "22")]
    StopSandbox(Empty),
    /// Ends the monitor. Refused while a process of the pod lives.
    #[prost(message, tag = "23")]
    Shutdown(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRef {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

/// With a `runtime`, descriptor `HostMounts`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartContainer {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Of a container that an external runtime made.
    #[prost(message, optional, tag = "20")]
    pub runtime: Option<Runtime>,
}

/// An external OCI runtime: how it is run for one container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Runtime {
    /// Absolute.
    #[prost(bytes = "vec", tag = "1")]
    pub program: Vec<u8>,
    /// What comes before the command.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub options: Vec<Vec<u8>>,
    /// The bundle, absolute: a directory that holds an empty directory `stage`.
    #[prost(bytes = "vec", tag = "3")]
    pub bundle: Vec<u8>,
    /// Mount points that the runtime must not see.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub hidden: Vec<Vec<u8>>,
}

/// A range of user or group ids (user_namespaces(7)).
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdMapping {
    #[prost(uint32, tag = "1")]
    pub container_id: u32,
    #[prost(uint32, tag = "2")]
    pub host_id: u32,
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

/// Descriptors: `Network` (else the host's), `NamespaceUser` (else the host's), `CgroupProcs`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandbox {
    /// Set in a new UTS namespace; absent: the host's namespace.
    #[prost(string, optional, tag = "1")]
    pub hostname: Option<String>,
    #[prost(bool, tag = "2")]
    pub new_ipc: bool,
    /// Pause is PID 1 of a namespace that the containers share.
    #[prost(bool, tag = "3")]
    pub new_pid: bool,
    /// Written inside the new namespaces; names as sysctl(8) has them.
    #[prost(btree_map = "string, string", tag = "4")]
    pub sysctls: BTreeMap<String, String>,
    #[prost(uint32, tag = "5")]
    pub uid: u32,
    #[prost(uint32, tag = "6")]
    pub gid: u32,
    #[prost(int32, optional, tag = "7")]
    pub oom_score_adj: Option<i32>,
    /// An array of `struct sock_filter`; empty: none.
    #[prost(bytes = "vec", tag = "8")]
    pub seccomp: Vec<u8>,
    /// The users of `NamespaceUser`, which owns the pod's other new namespaces. (Tag 10 was the groups: never sent.)
    #[prost(message, repeated, tag = "9")]
    pub uid_mappings: Vec<IdMapping>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Limit {
    /// RLIMIT_* as a number.
    #[prost(uint32, tag = "1")]
    pub resource: u32,
    #[prost(uint64, tag = "2")]
    pub soft: u64,
    #[prost(uint64, tag = "3")]
    pub hard: u64,
}

/// What a program is executed as. Capability sets are masks: bit n is capability number n.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Policy {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub args: Vec<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub env: Vec<Vec<u8>>,
    /// Made if missing. Empty: `/`.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    #[prost(uint32, tag = "4")]
    pub uid: u32,
    #[prost(uint32, tag = "5")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "6")]
    pub groups: Vec<u32>,
    /// 0o022 unless given.
    #[prost(uint32, optional, tag = "7")]
    pub umask: Option<u32>,
    #[prost(uint64, tag = "8")]
    pub bounding: u64,
    #[prost(uint64, tag = "9")]
    pub effective: u64,
    #[prost(uint64, tag = "10")]
    pub permitted: u64,
    #[prost(uint64, tag = "11")]
    pub inheritable: u64,
    #[prost(uint64, tag = "12")]
    pub ambient: u64,
    #[prost(bool, tag = "13")]
    pub no_new_privs: bool,
    /// An array of `struct sock_filter`; empty: none.
    #[prost(bytes = "vec", tag = "14")]
    pub seccomp: Vec<u8>,
    /// Flags of seccomp(2).
    #[prost(uint32, tag = "15")]
    pub seccomp_flags: u32,
    #[prost(message, repeated, tag = "16")]
    pub limits: Vec<Limit>,
    #[prost(int32, optional, tag = "17")]
    pub oom_score_adj: Option<i32>,
    /// The AppArmor profile's name.
    #[prost(string, optional, tag = "18")]
    pub apparmor: Option<String>,
}

/// Descriptors: `Rootfs`, `Mount`s in order, `CgroupProcs`, `Log` (else the output is thrown away), `OomEvents`,
/// `Namespace*`; with a `runtime` also `HostMounts`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainer {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The OCI runtime spec as JSON. Its `process` is ignored: `policy` says it all. For an external runtime it is the
    /// whole bundle's, and `policy` is ignored but for the pipes' owner.
    #[prost(bytes = "vec", tag = "2")]
    pub spec: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub policy: Option<Policy>,
    #[prost(bool, tag = "4")]
    pub tty: bool,
    /// Keep a pipe (or the terminal) for the container's standard input; else it reads /dev/null.
    #[prost(bool, tag = "5")]
    pub stdin: bool,
    /// The longest line of the log before it is split, in bytes; 0 is 16 KiB.
    #[prost(uint32, tag = "6")]
    pub log_line_limit: u32,
    /// Mounts that are not in the spec: attached in order when libcontainer has done its part.
    #[prost(message, repeated, tag = "7")]
    pub late_mounts: Vec<LateMount>,
    /// The external runtime that makes it; else libcontainer does.
    #[prost(message, optional, tag = "20")]
    pub runtime: Option<Runtime>,
}

/// A mount that must not be there yet when libcontainer makes its devices.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LateMount {
    /// Which of the `Mount` descriptors.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Absolute, in the container. Made if missing.
    #[prost(bytes = "vec", tag = "2")]
    pub destination: Vec<u8>,
}

/// Descriptors: `CgroupProcs`, `Stdin`, `Stdout`, `Stderr` (each /dev/null if absent; with `tty` none: the reply
/// brings the terminal).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exec {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, optional, tag = "2")]
    pub policy: Option<Policy>,
    #[prost(bool, tag = "3")]
    pub tty: bool,
    /// Names this process in `SignalExec`, `ExecExited` and the snapshot; unique for the monitor's life.
    #[prost(uint64, tag = "4")]
    pub exec_id: u64,
    /// In a container that an external runtime made; then also descriptor `HostMounts`.
    #[prost(message, optional, tag = "20")]
    pub external: Option<ExternalExec>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExternalExec {
    #[prost(message, required, tag = "1")]
    pub runtime: Runtime,
    /// The process of the OCI runtime spec as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub process: Vec<u8>,
    /// On cgroup v2: the cgroup, below the container's, that the runtime moves it to.
    #[prost(string, optional, tag = "3")]
    pub cgroup: Option<String>,
}

/// To a container's first process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(int32, tag = "2")]
    pub signo: i32,
    /// Do not send: only remember that the daemon is about to kill the container, so that its end is not taken for
    /// the kernel's work.
    #[prost(bool, tag = "3")]
    pub announce_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalExec {
    #[prost(uint64, tag = "1")]
    pub exec_id: u64,
    #[prost(int32, tag = "2")]
    pub signo: i32,
}

/// Of a container's terminal, in characters. (An exec's terminal is the daemon's: it got the descriptor.)
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resize {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(uint32, tag = "2")]
    pub columns: u32,
    #[prost(uint32, tag = "3")]
    pub rows: u32,
}
