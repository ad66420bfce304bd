//! Container events (CRI GetContainerEvents): many subscribers, none of which can block or slow what happens.
//!
//! Events are numbered and kept in one ring that all subscribers read, each at its own pace. Whoever falls behind the
//! ring is told so and must look at everything as it is now; nothing is lost in silence, and what is kept is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prost::Message;
use tokio::sync::watch;

use crate::cri;
use crate::model::SandboxId;

/// How many events are kept ...
const CAPACITY: usize = 4096;
/// ... and what they may weigh: each has the statuses of its whole pod, and these may be fat.
const CAPACITY_BYTES: usize = 8 * 1024 * 1024;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something that happened to a container, or to a sandbox: then `id` is the sandbox's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: Kind,
    pub id: String,
    pub sandbox_id: SandboxId,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
}

/// An event with the statuses of the moment in which it was told.
#[derive(Debug)]
pub struct Told {
    pub event: Event,
    pub response: cri::ContainerEventResponse,
}

/// Puts the statuses of an event's pod together. Must not wait for anything.
type Portray = dyn Fn(&Event) -> cri::ContainerEventResponse + Send + Sync;

/// Where events are told, and heard.
#[derive(Clone, Default)]
pub struct Events(Arc<Shared>);

struct Shared {
    ring: Mutex<Ring>,
    /// The number of the next event.
    end: watch::Sender<u64>,
    portray: OnceLock<Box<Portray>>,
}

struct Ring {
    /// With what each weighs.
    told: VecDeque<(Arc<Told>, usize)>,
    bytes: usize,
    end: u64,
    capacity: usize,
    capacity_bytes: usize,
}

impl Default for Shared {
    fn default() -> Self {
        Self::with_capacity(CAPACITY, CAPACITY_BYTES)
    }
}

impl Shared {
    fn with_capacity(capacity: usize, capacity_bytes: usize) -> Self {
        let ring = Ring {
            told: VecDeque::new(),
            bytes: 0,
            end: 0,
            capacity,
            capacity_bytes,
        };
        Self {
            ring: Mutex::new(ring),
            end: watch::Sender::new(0),
            portray: OnceLock::new(),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn push(&mut self, told: Told) {
        let bytes = told.response.encoded_len();
        self.told.push_back((Arc::new(told), bytes));
        self.bytes += bytes;
        self.end += 1;
        while self.told.len() > self.capacity || (self.bytes > self.capacity_bytes && self.told.len() > 1) {
            if let Some((_, bytes)) = self.told.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// The event of this number; none if the ring has moved on.
    fn get(&self, number: u64) -> Option<Arc<Told>> {
        let back = usize::try_from(self.end.checked_sub(number)?).ok()?;
        let index = self.told.len().checked_sub(back)?;
        self.told.get(index).map(|(told, _)| told.clone())
    }
}

impl Events {
    /// Has the statuses of events put together by `portray`; before that they have none. Only the first call counts.
    pub fn portray_by(&self, portray: impl Fn(&Event) -> cri::ContainerEventResponse + Send + Sync + 'static) {
        let _ = self.0.portray.set(Box::new(portray));
    }

    /// Tells all subscribers; never waits for one. To be called without a lock that a status needs.
    pub fn tell(&self, event: Event) {
        // Under the lock, so that of two events the later one never has the older statuses.
        let mut ring = self.0.ring();
        // Nobody asked; whoever subscribes looks at everything first.
        if self.0.end.receiver_count() == 0 {
            (ring.bytes, ring.told) = (0, VecDeque::new());
            return;
        }
        let portray = self.0.portray.get();
        let response = portray.map(|portray| portray(&event)).unwrap_or_default();
        ring.push(Told { event, response });
        let end = ring.end;
        drop(ring);
        self.0.end.send_if_modified(|told| {
            let later = end > *told;
            *told = end.max(*told);
            later
        });
    }

    /// From now on.
    pub fn subscribe(&self) -> Subscriber {
        let ring = self.0.ring();
        Subscriber {
            end: self.0.end.subscribe(),
            next: ring.end,
            shared: self.0.clone(),
        }
    }
}

/// What a subscriber hears.
#[derive(Clone, Debug)]
pub enum Heard {
    Told(Arc<Told>),
    /// Events were missed: what comes next is later than everything that there is to see now.
    Behind,
}

/// Hears all events since it subscribed.
pub struct Subscriber {
    shared: Arc<Shared>,
    end: watch::Receiver<u64>,
    next: u64,
}

impl Subscriber {
    /// The next event, as soon as there is one. Nothing is lost when the future is dropped.
    pub async fn hear(&mut self) -> Heard {
        loop {
            {
                let ring = self.shared.ring();
                if self.next < ring.end {
                    return match ring.get(self.next) {
                        Some(told) => {
                            self.next += 1;
                            Heard::Told(told)
                        }
                        None => {
                            self.next = ring.end;
                            Heard::Behind
                        }
                    };
                }
            }
            let next = self.next;
            // The sender lives in what this subscriber shares.
            let _ = self.end.wait_for(|end| *end > next).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: i64) -> Event {
        Event {
            kind: Kind::Created,
            id: format!("{n}"),
            sandbox_id: SandboxId::new("s"),
            at_ns: n,
        }
    }

    fn small(capacity: usize, capacity_bytes: usize) -> Events {
        let events = Events(Arc::new(Shared::with_capacity(capacity, capacity_bytes)));
        events.portray_by(|event| cri::ContainerEventResponse {
            container_id: "x".repeat(100),
            created_at: event.at_ns,
            ..Default::default()
        });
        events
    }

    async fn time(subscriber: &mut Subscriber) -> Option<i64> {
        match subscriber.hear().await {
            Heard::Told(told) => Some(told.response.created_at),
            Heard::Behind => None,
        }
    }

    #[tokio::test]
    async fn each_hears_all_in_order_and_who_falls_behind_the_ring_hears_that_once() {
        let events = small(4, 1 << 20);
        let (mut quick, mut slow) = (events.subscribe(), events.subscribe());
        for n in 0..9 {
            events.tell(event(n));
            assert_eq!(time(&mut quick).await, Some(n));
        }
        assert_eq!(time(&mut slow).await, None);
        events.tell(event(9));
        assert_eq!(time(&mut slow).await, Some(9));
        let mut late = events.subscribe();
        events.tell(event(10));
        for subscriber in [&mut quick, &mut slow, &mut late] {
            if subscriber.next == 9 {
                assert_eq!(time(subscriber).await, Some(9));
            }
            assert_eq!(time(subscriber).await, Some(10));
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_by_its_weight_as_well() {
        let events = small(1000, 350);
        let mut slow = events.subscribe();
        for n in 0..4 {
            events.tell(event(n));
        }
        assert!(events.0.ring().bytes <= 350);
        assert_eq!(time(&mut slow).await, None);
        drop(slow);
        // Nobody listens: nothing is kept.
        events.tell(event(5));
        let kept = events.0.ring().told.len();
        assert_eq!((events.0.ring().bytes, kept), (0, 0));
        let heavy = small(1000, 10);
        let mut reader = heavy.subscribe();
        heavy.tell(event(7));
        assert_eq!(
            time(&mut reader).await,
            Some(7),
            "the latest is kept whatever it weighs"
        );
    }
}
