//! GetContainerEvents: each subscriber hears everything from now on; one that lags too far is told to look anew.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Rooms, to_cri};
use crate::cri;
use crate::events::{Event, Kind};

const LOST: &str = "events were lost to a slow reader: list everything and subscribe again";

/// How many answers wait for a reader; the last place is for telling it that more were lost.
const WAITING: usize = 1024;

/// The events from now on, as the CRI tells them. Each is put together when it happens: by the time that a slow reader
/// comes for it, its pod may be gone.
pub fn subscribe(rooms: Rooms) -> Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>> {
    let mut receiver = rooms.events.subscribe();
    let (sender, waiting) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = receiver.recv() => event,
                () = sender.closed() => return,
            };
            let answer = match event {
                Ok(event) if sender.capacity() > 1 => Ok(respond(&rooms, event)),
                Ok(_) | Err(RecvError::Lagged(_)) => Err(Status::data_loss(LOST)),
                Err(RecvError::Closed) => return,
            };
            let over = answer.is_err();
            // The stream ends with a loss: whoever subscribes again lists everything first, so nothing is missed.
            if sender.try_send(answer).is_err() || over {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(waiting))
}

fn respond(rooms: &Rooms, event: Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        Kind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => cri::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let sandbox = rooms.sandboxes.find(event.sandbox_id.as_str()).ok();
    let containers = rooms.containers.of_pod(&event.sandbox_id);
    cri::ContainerEventResponse {
        container_id: event.id,
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: sandbox.map(|sandbox| to_cri::sandbox_status(&sandbox)),
        containers_statuses: to_cri::container_statuses(&containers),
    }
}
