//! Container events (CRI GetContainerEvents): many subscribers, none of which can block or slow what happens.

use tokio::sync::broadcast;

use crate::model::SandboxId;

/// How many events a subscriber may lag behind before it is told to look at everything anew.
const CAPACITY: usize = 4096;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Something that happened to a container, or to a sandbox: then `id` is the sandbox's.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: Kind,
    pub id: String,
    pub sandbox_id: SandboxId,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
}

/// Where events are told, and heard.
#[derive(Clone, Debug)]
pub struct Events {
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(CAPACITY).0,
        }
    }
}

impl Events {
    /// Tells all subscribers; never waits.
    pub fn tell(&self, event: Event) {
        // No subscriber is no error: nobody asked.
        let _ = self.sender.send(event);
    }

    /// From now on. A subscriber that lags gets `Lagged` once, and must then look at everything anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_is_told_that_it_lost_events_and_the_teller_never_waits() {
        let events = Events::default();
        let mut slow = events.subscribe();
        for n in 0..=CAPACITY as i64 {
            let id = SandboxId::new("s");
            events.tell(Event {
                kind: Kind::Created,
                id: "c".into(),
                sandbox_id: id,
                at_ns: n,
            });
        }
        assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(1))));
        assert_eq!(slow.recv().await.unwrap().at_ns, 1);
    }
}
