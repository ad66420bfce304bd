//! How far a pull is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::registry::RemoteLayer;

/// Counts of one pull. A layer that another pull fetches counts by that one's meter.
pub(super) struct Progress {
    reference: String,
    begin: Instant,
    total_bytes: u64,
    layers: usize,
    layers_done: AtomicUsize,
    here_bytes: AtomicU64,
    meters: Mutex<HashMap<Digest, Arc<AtomicU64>>>,
}

impl Progress {
    pub(super) fn new(reference: &Reference, layers: &[RemoteLayer]) -> Self {
        let sizes: HashMap<&Digest, u64> = layers.iter().map(|layer| (&layer.diff_id, layer.size)).collect();
        Self {
            reference: reference.to_string(),
            begin: Instant::now(),
            total_bytes: sizes.values().fold(0, |sum, size| sum.saturating_add(*size)),
            layers: sizes.len(),
            layers_done: AtomicUsize::new(0),
            here_bytes: AtomicU64::new(0),
            meters: Mutex::new(HashMap::new()),
        }
    }

    pub(super) fn layers(&self) -> usize {
        self.layers
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes that came from registries.
    pub(super) fn fetched_bytes(&self) -> u64 {
        let meters = self.meters.lock().expect("nothing panics while it holds the meters");
        meters
            .values()
            .fold(0, |sum, meter| sum.saturating_add(meter.load(Ordering::Relaxed)))
    }

    /// The layer need not be fetched.
    pub(super) fn was_here(&self, layer: &RemoteLayer) {
        self.here_bytes.fetch_add(layer.size, Ordering::Relaxed);
        self.layer_done();
    }

    pub(super) fn meter(&self, diff_id: &Digest, meter: &Arc<AtomicU64>) {
        let mut meters = self.meters.lock().expect("nothing panics while it holds the meters");
        meters.insert(diff_id.clone(), meter.clone());
    }

    pub(super) fn layer_done(&self) {
        self.layers_done.fetch_add(1, Ordering::Relaxed);
    }

    /// One line.
    pub(super) fn log(&self) {
        let fetched_bytes = self.fetched_bytes();
        let done_bytes = self.here_bytes.load(Ordering::Relaxed).saturating_add(fetched_bytes);
        tracing::info!(
            reference = self.reference,
            percent = percent(done_bytes, self.total_bytes),
            done_bytes,
            total_bytes = self.total_bytes,
            bytes_per_second = (fetched_bytes as f64 / self.begin.elapsed().as_secs_f64()) as u64,
            layers_done = self.layers_done.load(Ordering::Relaxed),
            layers = self.layers,
            "pulling"
        );
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        100
    } else {
        (u128::from(part) * 100 / u128::from(whole)).min(100) as u64
    }
}
