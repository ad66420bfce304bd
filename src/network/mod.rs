//! Gives a pod its addresses: by the node's CNI plugins, or by the embedded bridge.
//!
//! A pod's way: [`netns::create`], [`Networks::plan`] (the caller writes the [`Plan`] to disk), [`Networks::add`]; at the
//! end [`Networks::del`] with the same plan until it succeeds, [`netns::remove`]. The plan holds all that DEL needs, so
//! neither a configuration that changed nor a crash between two steps loses an address.

mod attachment;
mod bandwidth;
mod cni;
mod config;
pub mod embedded;
mod error;
pub mod netns;
mod networks;
mod pod_cidrs;
mod record;

pub use attachment::{Attached, Attachment, Dns, Plan, PortMapping, Protocol};
pub use config::{Mode, NetworkConfig};
pub use embedded::{EmbeddedConfig, Subnet};
pub use error::NetworkError;
pub use networks::{NetworkStatus, Networks};

use async_trait::async_trait;

/// A way to connect pods: two exist, CNI plugins and the embedded bridge.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Connects the pod. A failure leaves nothing behind that [`PodNetwork::del`] with the same plan would not remove.
    async fn add(&self, plan: &Plan) -> Result<Attached, NetworkError>;

    /// Disconnects the pod. Idempotent; the pod's network namespace may be gone.
    async fn del(&self, plan: &Plan, attached: Option<&Attached>) -> Result<(), NetworkError>;

    /// Frees what belongs to no plan of `valid`.
    async fn gc(&self, valid: &[Plan]) -> Result<(), NetworkError>;
}
