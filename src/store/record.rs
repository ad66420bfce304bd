//! What the records say.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::cri;
use crate::model::{ContainerId, ImageId, OciRuntime, SandboxId};

/// The version of the records that this daemon writes and reads.
const VERSION: u32 = 1;

/// A record in its envelope.
#[derive(Debug, Serialize, Deserialize)]
pub struct Versioned<T> {
    version: u32,
    record: T,
}

impl<T> Versioned<T> {
    /// The record, in the envelope of today's version.
    pub fn new(record: T) -> Self {
        Self {
            version: VERSION,
            record,
        }
    }

    /// The record, if it is of a version that this daemon knows.
    pub fn into_current(self) -> io::Result<T> {
        if self.version == VERSION {
            return Ok(self.record);
        }
        let told = format!(
            "version {} of the record is unknown, this daemon knows {VERSION}",
            self.version
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, told))
    }
}

/// A protobuf message inside a JSON record: base64 of its bytes, so that what a client sent stays as it was.
mod message {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    pub fn serialize<M: Message, S: Serializer>(message: &M, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(message.encode_to_vec()))
    }

    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

/// A process that outlives the daemon: its pid, and its start time (proc(5), clock ticks after boot) against reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub start_time: u64,
}

/// A pod as asked for, and where its parts are. Never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    pub id: SandboxId,
    #[serde(with = "message")]
    pub config: cri::PodSandboxConfig,
    pub runtime_handler: String,
    /// Nanoseconds since 1970.
    pub created_at_ns: i64,
    /// The boot that the pod lives in: after the next one nothing of it runs.
    pub boot_id: String,
    /// Absent with host network.
    pub netns: Option<PathBuf>,
    /// The network room's plan, written before ADD so that DEL can follow whatever happens. Absent with host network.
    pub network: Option<Box<RawValue>>,
    /// The parent cgroup of the pod's cgroups, absolute in every hierarchy.
    pub cgroup_parent: String,
    /// The nearest cgroup above the parent that was there before the pod: what is between goes with the pod, once
    /// nobody uses it. Absent if the parent itself was there: it stays.
    pub cgroup_made_below: Option<String>,
    /// With systemd as the cgroup driver: the scope that is the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// A unit of systemd's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub unit: String,
    pub slice: String,
}

impl PodRecord {
    /// The metadata, empty if the request had none (it is refused then).
    pub fn metadata(&self) -> cri::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// The cgroup of the pause process.
    pub fn cgroup(&self) -> String {
        format!("{}/{}", self.cgroup_parent, self.id)
    }
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Being made: after a crash of the daemon it is undone.
    #[default]
    Creating,
    Ready,
    /// Stopped, or its processes are gone. Its network may still have to be released.
    NotReady,
    /// Being removed: after a crash of the daemon the removal is finished.
    Removing,
}

/// What became of a pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodStatus {
    pub phase: PodPhase,
    pub ips: Vec<IpAddr>,
    /// What ADD returned, for DEL.
    pub attached: Option<Box<RawValue>>,
    /// DEL has succeeded: the addresses belong to others now.
    pub network_released: bool,
    pub pause: Option<Process>,
    pub monitor_pid: Option<i32>,
    /// Resources of the whole pod as last updated (UpdatePodSandboxResources).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<u8>>,
}

/// A container as asked for. Never changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub sandbox_id: SandboxId,
    #[serde(with = "message")]
    pub config: cri::ContainerConfig,
    pub image_id: ImageId,
    /// The images that are mounted as volumes, by the request's names for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_images: BTreeMap<String, ImageId>,
    pub created_at_ns: i64,
    pub cgroup: String,
    /// Absent if the request asks for no log.
    pub log_path: Option<PathBuf>,
    pub stop_signal: i32,
    /// Who the process runs as (ContainerStatus.user).
    #[serde(with = "message")]
    pub user: cri::ContainerUser,
    /// The external runtime that made it, and whose it stays whatever is configured later; absent: libcontainer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<OciRuntime>,
    /// The process policy, which every exec into the container shares. Only what is written and read has it: the daemon
    /// keeps what it says.
    pub policy: Option<Box<RawValue>>,
}

impl ContainerRecord {
    /// The metadata, empty if the request had none (it is refused then).
    pub fn metadata(&self) -> cri::ContainerMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }
}

/// How far a container is, as last written; a living monitor knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Being made: after a crash of the daemon it is undone.
    #[default]
    Creating,
    Created,
    Running,
    Exited,
    /// Being removed: after a crash of the daemon the removal is finished.
    Removing,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 0 to 255; 128 + n for signal n.
    pub code: i32,
    /// Nanoseconds since 1970.
    pub finished_at_ns: i64,
    pub oom_killed: bool,
    /// Why a start failed, or why the code is not known; empty after an ordinary end.
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
}

impl Exit {
    /// An end that nobody saw: the monitor was gone, or the machine rebooted.
    pub fn unknown(message: impl Into<String>, finished_at_ns: i64) -> Self {
        Self {
            code: 255,
            finished_at_ns,
            oom_killed: false,
            reason: "Unknown".to_owned(),
            message: message.into(),
        }
    }
}

/// What became of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub phase: ContainerPhase,
    /// The container's first process.
    pub process: Option<Process>,
    /// Nanoseconds since 1970; 0 while it has not started.
    pub started_at_ns: i64,
    pub exit: Option<Exit>,
    /// Resources as last updated, an encoded `LinuxContainerResources`; absent while they are the config's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_is_refused() {
        let text = serde_json::to_vec(&Versioned {
            version: VERSION + 1,
            record: 5,
        })
        .unwrap();
        let versioned: Versioned<i32> = serde_json::from_slice(&text).unwrap();
        assert!(versioned.into_current().unwrap_err().to_string().contains("version 2"));
    }
}
