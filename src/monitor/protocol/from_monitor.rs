//! Replies and ends, and all that is known.

use super::Empty;

/// From the monitor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromMonitor {
    #[prost(oneof = "Saying", tags = "1, 2, 3, 4")]
    pub saying: Option<Saying>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Saying {
    #[prost(message, tag = "1")]
    Reply(Reply),
    #[prost(message, tag = "2")]
    Exited(Exited),
    #[prost(message, tag = "3")]
    ExecExited(ExecExited),
    #[prost(message, tag = "4")]
    PauseExited(Exit),
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(oneof = "Answer", tags = "2, 3, 4, 5")]
    pub answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Answer {
    #[prost(message, tag = "2")]
    Done(Empty),
    #[prost(message, tag = "3")]
    Process(Process),
    #[prost(message, tag = "4")]
    Snapshot(Snapshot),
    #[prost(message, tag = "5")]
    Failure(Failure),
}

/// A process, for good: the start time is in clock ticks since boot (proc_pid_stat(5), field 22).
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Process {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(uint64, tag = "2")]
    pub start_time: u64,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    /// It was tried and failed.
    Failed = 0,
    /// The request makes no sense.
    Invalid = 1,
    /// There is no such container, exec or sandbox.
    NotFound = 2,
    /// There is one of that name already.
    Exists = 3,
    /// Not in this state.
    State = 4,
    /// The program to execute does not exist in the container (a shell would say 127).
    ProgramNotFound = 5,
    /// The program to execute may not be executed (a shell would say 126).
    ProgramDenied = 6,
    /// This monitor does not know the request.
    Unknown = 7,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// The complete chain of causes.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Exit {
    /// As a shell says it: the exit code, or 128 and the signal.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The signal that killed it, or 0.
    #[prost(int32, tag = "2")]
    pub signal: i32,
    /// Since the epoch.
    #[prost(int64, tag = "3")]
    pub finished_at_ns: i64,
    /// It died because its cgroup was out of memory.
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Exited {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, required, tag = "2")]
    pub exit: Exit,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecExited {
    #[prost(uint64, tag = "1")]
    pub exec_id: u64,
    #[prost(message, required, tag = "2")]
    pub exit: Exit,
}

/// Everything the monitor knows: the answer to `Hello`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Snapshot {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, tag = "2")]
    pub sandbox_id: String,
    #[prost(int32, tag = "3")]
    pub monitor_pid: i32,
    /// Absent before `CreateSandbox`.
    #[prost(message, optional, tag = "4")]
    pub pause: Option<Process>,
    #[prost(message, optional, tag = "5")]
    pub pause_exit: Option<Exit>,
    #[prost(message, repeated, tag = "6")]
    pub containers: Vec<ContainerSnapshot>,
    #[prost(message, repeated, tag = "7")]
    pub execs: Vec<ExecSnapshot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    /// Made, waiting for `Start`.
    Created = 0,
    Running = 1,
    Exited = 2,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerSnapshot {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(message, required, tag = "2")]
    pub process: Process,
    #[prost(enumeration = "ContainerState", tag = "3")]
    pub state: i32,
    /// Present in state `Exited`.
    #[prost(message, optional, tag = "4")]
    pub exit: Option<Exit>,
    /// Bytes of output that could not be written to the log.
    #[prost(uint64, tag = "5")]
    pub log_bytes_lost: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSnapshot {
    #[prost(uint64, tag = "1")]
    pub exec_id: u64,
    #[prost(string, tag = "2")]
    pub container_id: String,
    /// Absent while it is being started.
    #[prost(message, optional, tag = "3")]
    pub process: Option<Process>,
}
