//! GetContainerEvents: each subscriber hears everything from now on; one that lags too far is told to look anew.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{Rooms, to_cri};
use crate::cri;
use crate::events::{Event, Kind};

/// The events from now on, as the CRI tells them.
pub fn subscribe(rooms: Rooms) -> Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>> {
    let receiver = rooms.events.subscribe();
    Box::pin(futures_util::stream::unfold(Some((receiver, rooms)), |state| async move {
        let (mut receiver, rooms) = state?;
        match receiver.recv().await {
            Ok(event) => Some((Ok(respond(&rooms, event)), Some((receiver, rooms)))),
            // The stream ends with the loss: whoever subscribes again lists everything first, so nothing is missed.
            Err(RecvError::Lagged(lost)) => {
                let told = format!("{lost} events were lost to a slow reader: list everything and subscribe again");
                Some((Err(Status::data_loss(told)), None))
            }
            Err(RecvError::Closed) => None,
        }
    }))
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
        containers_statuses: containers.iter().map(|container| to_cri::container_status(container)).collect(),
    }
}
