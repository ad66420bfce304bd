//! What the services answer from.

use std::sync::Arc;

use crate::container::Containers;
use crate::events::Events;
use crate::handler::Handlers;
use crate::image::Images;
use crate::sandbox::Sandboxes;
use crate::stats::Collector;
use crate::streaming::Server;
use crate::sys::cgroup::Hierarchy;

/// The rooms that the services answer from.
#[derive(Clone)]
pub struct Rooms {
    pub sandboxes: Arc<Sandboxes>,
    pub containers: Arc<Containers>,
    pub images: Arc<Images>,
    pub events: Events,
    pub stats: Arc<Collector>,
    pub streaming: Arc<Server>,
    pub cgroups: Arc<Hierarchy>,
    pub handlers: Arc<Handlers>,
    /// The settings in force, as JSON, for a verbose Status.
    pub settings: Arc<str>,
}
