//! Which network a new pod gets, and the way to it.

use std::sync::Arc;

use super::attachment::Backend;
use super::embedded::{Embedded, Subnet};
use super::{Attached, Attachment, NetworkConfig, NetworkError, Plan, PodNetwork};

/// Both networks of an instance.
pub struct Networks {
    embedded: Embedded,
}

/// Whether new pods can be connected, for CRI's `NetworkReady` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    pub ready: bool,
    /// One word in CamelCase; empty if ready.
    pub reason: String,
    /// Which network is in force and why, or what is wrong.
    pub message: String,
}

impl Networks {
    /// Reads the records of the instance; the host's network is not touched before the first pod.
    /// The network namespace of the caller's thread is the host's side of every pod.
    pub fn open(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let embedded = Embedded::open(&config.run.join("network"), &config.embedded)?;
        Ok(Arc::new(Self { embedded }))
    }

    /// Decides how the pod will be connected. The caller writes the plan to disk before [`Networks::add`].
    pub fn plan(&self, mut attachment: Attachment) -> Result<Plan, NetworkError> {
        attachment.ports.retain(|port| port.host_port != 0);
        Ok(Plan { attachment, backend: Backend::Embedded })
    }

    /// Connects the pod.
    pub async fn add(&self, plan: &Plan) -> Result<Attached, NetworkError> {
        self.embedded.add(plan).await
    }

    /// Disconnects the pod. Idempotent; fine when the pod's network namespace is gone. To be called again until it
    /// succeeds.
    pub async fn del(&self, plan: &Plan, attached: Option<&Attached>) -> Result<(), NetworkError> {
        self.embedded.del(plan, attached).await
    }

    /// Frees what belongs to no plan of `valid`. To be called once at start, with the plans of all pods not yet DELed.
    pub async fn gc(&self, valid: &[Plan]) -> Result<(), NetworkError> {
        self.embedded.gc(valid).await
    }

    /// The pod CIDRs that the kubelet gave this node.
    pub async fn set_pod_cidrs(&self, subnets: Vec<Subnet>) -> Result<(), NetworkError> {
        self.embedded.set_pod_cidrs(subnets).await
    }

    /// Which network is in force for new pods.
    pub async fn status(&self) -> NetworkStatus {
        match self.embedded.probe().await {
            Ok(()) => NetworkStatus { ready: true, reason: String::new(), message: "embedded".to_owned() },
            Err(error) => {
                NetworkStatus { ready: false, reason: "NetworkPluginNotReady".to_owned(), message: error.to_string() }
            }
        }
    }
}
