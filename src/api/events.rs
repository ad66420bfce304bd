//! GetContainerEvents: each subscriber hears everything from now on. One that has fallen too far behind is told, as
//! events, what is gone and what there is now; then it hears on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::stream::Answers;
use super::{Rooms, to_cri};
use crate::container::{Container, Containers, State, now_ns};
use crate::cri;
use crate::events::{Event, Heard, Kind, Subscriber};
use crate::model::SandboxId;
use crate::sandbox::{Sandbox, Sandboxes};

/// The events from now on, as the CRI tells them. A subscriber that does not read holds a place in the ring, and the
/// ids of what it knows of.
pub fn subscribe(rooms: Rooms) -> Answers<cri::ContainerEventResponse> {
    // First: what happens while the listener looks around is told as an event.
    let subscriber = rooms.events.subscribe();
    let listener = Listener {
        knows: everything(&rooms)
            .into_iter()
            .map(|now| (now.id, now.sandbox_id))
            .collect(),
        rooms,
        subscriber,
        missed: VecDeque::new(),
    };
    Box::pin(futures_util::stream::unfold(listener, |mut listener| async {
        Some((Ok(listener.next().await), listener))
    }))
}

/// Has events told with the statuses of their pods.
pub fn portray(rooms: &Rooms) {
    // Weak: the rooms hold the events.
    let (sandboxes, containers) = (Arc::downgrade(&rooms.sandboxes), Arc::downgrade(&rooms.containers));
    rooms
        .events
        .portray_by(move |event| match (sandboxes.upgrade(), containers.upgrade()) {
            (Some(sandboxes), Some(containers)) => respond(&sandboxes, &containers, event),
            _ => cri::ContainerEventResponse::default(),
        });
}

/// One subscriber.
struct Listener {
    rooms: Rooms,
    subscriber: Subscriber,
    /// Containers and sandboxes that it has been told of, or could list before, and their sandboxes.
    knows: HashMap<String, SandboxId>,
    /// What it is to be told before it hears on.
    missed: VecDeque<Event>,
}

impl Listener {
    async fn next(&mut self) -> cri::ContainerEventResponse {
        loop {
            if let Some(event) = self.missed.pop_front() {
                // What has gone since is told of by an event that is yet to come.
                if event.kind == Kind::Deleted || exists(&self.rooms, &event) {
                    return self.told(&event, respond(&self.rooms.sandboxes, &self.rooms.containers, &event));
                }
                continue;
            }
            match self.subscriber.hear().await {
                Heard::Told(told) => return self.told(&told.event, told.response.clone()),
                Heard::Behind => self.missed = self.catch_up(),
            }
        }
    }

    fn told(&mut self, event: &Event, response: cri::ContainerEventResponse) -> cri::ContainerEventResponse {
        match event.kind {
            Kind::Deleted => self.knows.remove(&event.id),
            Kind::Created | Kind::Started | Kind::Stopped => {
                self.knows.insert(event.id.clone(), event.sandbox_id.clone())
            }
        };
        response
    }

    /// Everything as it is now, after the end of what it knows of and is gone.
    fn catch_up(&self) -> VecDeque<Event> {
        let now = everything(&self.rooms);
        tracing::info!(
            items = now.len(),
            "a subscriber of events fell behind: telling it everything anew"
        );
        let at_ns = now_ns();
        let there: HashSet<&str> = now.iter().map(|event| event.id.as_str()).collect();
        let gone = self.knows.iter().filter(|(id, _)| !there.contains(id.as_str()));
        let mut missed: VecDeque<Event> = gone
            .map(|(id, sandbox_id)| Event {
                kind: Kind::Deleted,
                id: id.clone(),
                sandbox_id: sandbox_id.clone(),
                at_ns,
            })
            .collect();
        missed.extend(now);
        missed
    }
}

/// All sandboxes, then all containers, as the events that brought them where they are.
fn everything(rooms: &Rooms) -> Vec<Event> {
    let at_ns = now_ns();
    let sandboxes = rooms.sandboxes.list(|_| true);
    let containers = rooms.containers.list(|_| true);
    let of_sandbox = |sandbox: &Arc<Sandbox>| Event {
        kind: if sandbox.is_ready() {
            Kind::Started
        } else {
            Kind::Stopped
        },
        id: sandbox.record.id.to_string(),
        sandbox_id: sandbox.record.id.clone(),
        at_ns,
    };
    let of_container = |container: &Arc<Container>| Event {
        kind: match container.state() {
            State::Created { .. } => Kind::Created,
            State::Running { .. } => Kind::Started,
            State::Exited { .. } => Kind::Stopped,
        },
        id: container.record.id.to_string(),
        sandbox_id: container.record.sandbox_id.clone(),
        at_ns,
    };
    let pods = sandboxes.iter().map(of_sandbox);
    pods.chain(containers.iter().map(of_container)).collect()
}

fn exists(rooms: &Rooms, event: &Event) -> bool {
    rooms.containers.find(&event.id).is_ok() || rooms.sandboxes.find(&event.id).is_ok()
}

fn respond(sandboxes: &Sandboxes, containers: &Containers, event: &Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        Kind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => cri::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let sandbox = sandboxes.find(event.sandbox_id.as_str()).ok();
    let of_pod = containers.of_pod(&event.sandbox_id);
    cri::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: sandbox.map(|sandbox| to_cri::sandbox_status(&sandbox)),
        containers_statuses: to_cri::container_statuses(&of_pod),
    }
}
