//! The gRPC edge: requests in, answers out. What the CRI calls an RPC is a line or three here; the work is in the
//! rooms below, and `tonic::Status` stays here.

mod deadline;
mod error;
mod events;
mod image_service;
mod list;
mod respond;
mod rooms;
mod runtime_service;
mod stats;
mod status;
mod stream;
mod streaming;
mod to_cri;

pub use deadline::DeadlineLayer;
pub use events::portray as portray_events;
pub use image_service::ImageApi;
pub use rooms::Rooms;
pub use runtime_service::RuntimeApi;

/// Both ways: a list of a thousand containers is larger than gRPC's 4 MiB.
pub const MESSAGE_LIMIT_BYTES: usize = 16 * 1024 * 1024;
