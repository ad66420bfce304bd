//! Figures of containers and pods, in the CRI's messages.
//!
//! Nothing runs when nobody asks: a request reads the cgroup files of what it asks for, rates come from the previous
//! request's reading. Only the size of a container's writable layer takes a walk over its files; that happens in the
//! background, at most one at a time, and requests are served what the last walk found.

mod collector;
mod container;
mod filesystem;
mod metrics;
mod network;
mod rate;
mod sandbox;
mod tracked;

use std::io;
use std::path::PathBuf;

use crate::cri;
use crate::sys::cgroup::Cgroup;

pub use collector::Collector;
pub use metrics::{ContainerMetricsTarget, PodMetricsTarget, metric_descriptors};

/// A container to read.
#[derive(Clone, Debug)]
pub struct ContainerTarget {
    /// The container's id, by which readings are remembered.
    pub id: String,
    pub cgroup: Cgroup,
    /// The overlay's upper directory.
    pub writable_layer: Option<PathBuf>,
    /// Given back in the answer.
    pub attributes: cri::ContainerAttributes,
}

/// A pod to read.
#[derive(Clone, Debug)]
pub struct PodTarget {
    /// The sandbox's id.
    pub id: String,
    /// The cgroup that holds the pod and nothing else. None if there is none: the figures are then the sum of
    /// `own_cgroup` and of the containers.
    pub cgroup: Option<Cgroup>,
    /// The cgroup of the pause process.
    pub own_cgroup: Cgroup,
    /// A process in the pod's network namespace; none for a pod in the host's.
    pub network: Option<NetworkTarget>,
    pub containers: Vec<ContainerTarget>,
    /// Given back in the answer.
    pub attributes: cri::PodSandboxAttributes,
}

/// Where to read a pod's network figures.
#[derive(Clone, Debug)]
pub struct NetworkTarget {
    /// A process in the namespace, the pause process.
    pub pid: i32,
    /// The namespace's file: a pid that was given to somebody else meanwhile is found out by it.
    pub netns: PathBuf,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("read cgroup figures of {id}")]
    Read {
        id: String,
        #[source]
        source: io::Error,
    },
    #[error("read figures of {id}: the daemon is shutting down")]
    ShuttingDown { id: String },
}
