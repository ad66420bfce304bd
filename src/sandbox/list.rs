//! ListPodSandbox: what is in memory, and nothing slower.

use std::sync::Arc;

use super::{Sandbox, Sandboxes};

impl Sandboxes {
    /// All sandboxes that `wanted` takes, oldest first.
    pub fn list(&self, wanted: impl Fn(&Sandbox) -> bool) -> Vec<Arc<Sandbox>> {
        let index = self.index.read().expect("no panic holds it");
        let mut found: Vec<_> = index.values().filter(|sandbox| wanted(sandbox)).cloned().collect();
        drop(index);
        found.sort_by_key(|sandbox| sandbox.record.created_at_ns);
        found
    }
}
