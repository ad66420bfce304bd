//! ListContainers: what is in memory, and nothing slower.

use std::sync::Arc;

use super::{Container, Containers};

impl Containers {
    /// All containers that `wanted` takes, oldest first.
    pub fn list(&self, wanted: impl Fn(&Container) -> bool) -> Vec<Arc<Container>> {
        let index = self.index.read().expect("no panic holds it");
        let mut found: Vec<_> = index.values().filter(|container| wanted(container)).cloned().collect();
        drop(index);
        found.sort_by_key(|container| container.record.created_at_ns);
        found
    }
}
