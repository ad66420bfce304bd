//! Pods that had their DEL and whose links are still there.
//!
//! To remove a link takes the kernel tens of milliseconds, which it spends waiting with its one lock for all links in
//! its hand. With a pod's last process and last mount its namespace ends, and the kernel removes the link by itself, many at
//! once if many pods end. So DEL looks a little later whether that has happened, and asks for it only if it has not
//! (somebody else holds the namespace). The address rests until then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::link;
use super::plan::veth_name;
use super::worker::{Worker, kernel};
use crate::model::{SandboxId, chain};
use crate::network::NetworkError;

/// How soon, and how often, to look whether the kernel has removed a link. A look costs it no lock.
const LOOK: Duration = Duration::from_millis(50);
/// How long the kernel may take before it is asked for the removal, and again after a failure.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is on the way out, since when.
pub struct Departures {
    leaving: BTreeMap<SandboxId, Instant>,
    next_look: Option<Instant>,
    /// Since when there are no pods.
    idle_since: Option<Instant>,
    /// How long bridge and table stay then: a node that runs one pod after the other needs them all the time.
    idle: Duration,
}

impl Departures {
    pub fn new(idle: Duration) -> Self {
        Self {
            leaving: BTreeMap::new(),
            next_look: None,
            idle_since: None,
            idle,
        }
    }

    fn end_of_idleness(&self) -> Option<Instant> {
        self.idle_since.map(|since| since + self.idle)
    }

    pub fn has(&self, id: &SandboxId) -> bool {
        self.leaving.contains_key(id)
    }

    /// Bridge and table are needed: they do not go by themselves now.
    pub fn wanted(&mut self) {
        self.idle_since = None;
    }

    pub fn begin(&mut self, id: &SandboxId) {
        let now = Instant::now();
        self.leaving.insert(id.clone(), now);
        self.next_look.get_or_insert(now + LOOK);
    }
}

impl Worker {
    /// When to call [`Worker::look`] next, if at all.
    pub fn next_look(&self) -> Option<Instant> {
        let looks = self.departures.next_look.into_iter();
        looks.chain(self.departures.end_of_idleness()).min()
    }

    /// Gives back the addresses of those whose links are gone; after a time without pods, dismantles.
    pub fn look(&mut self, now: Instant) {
        if self.departures.next_look.is_some_and(|at| at <= now) {
            for (id, since) in self.departures.leaving.clone() {
                if let Err(error) = self.look_at(&id, now.saturating_duration_since(since)) {
                    tracing::warn!(sandbox_id = %id, error = %chain(&error), "the end of a DEL failed; trying again");
                    self.departures.leaving.insert(id, now);
                }
            }
            self.departures.next_look = (!self.departures.leaving.is_empty()).then_some(now + LOOK);
        }
        if self.departures.end_of_idleness().is_some_and(|at| at <= now) {
            self.departures.idle_since = None;
            if let Err(error) = self.dismantle_if_idle() {
                tracing::warn!(error = %chain(&error), "the pod network without pods stays");
            }
        }
    }

    fn look_at(&mut self, id: &SandboxId, age: Duration) -> Result<(), NetworkError> {
        if age >= PATIENCE {
            return self.end_now(id);
        }
        if link::exists(&veth_name(id)).map_err(kernel("look for link", veth_name(id)))? {
            return Ok(());
        }
        self.end(id)
    }

    /// Removes the link, if the kernel has not, and gives the addresses back.
    pub fn end_now(&mut self, id: &SandboxId) -> Result<(), NetworkError> {
        let name = veth_name(id);
        link::remove(&mut self.sockets()?.route, &name).map_err(kernel("remove link", name))?;
        self.end(id)
    }

    fn end(&mut self, id: &SandboxId) -> Result<(), NetworkError> {
        self.leases.release(id)?;
        self.departures.leaving.remove(id);
        if self.leases.is_empty() {
            self.departures.idle_since = Some(Instant::now());
        }
        self.retire()
    }

    /// Waits for nothing any more: what is on its way out is out when this returns.
    pub fn settle(&mut self) -> Result<(), NetworkError> {
        let leaving: Vec<SandboxId> = self.departures.leaving.keys().cloned().collect();
        for id in leaving {
            self.end_now(&id)?;
        }
        self.departures.next_look = None;
        self.departures.idle_since = None;
        self.dismantle_if_idle()
    }

    fn dismantle_if_idle(&mut self) -> Result<(), NetworkError> {
        if self.leases.is_empty() {
            self.dismantle()
        } else {
            Ok(())
        }
    }
}
