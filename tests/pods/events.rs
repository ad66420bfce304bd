//! GetContainerEvents: what happens, in its order, with the statuses of that moment.

use std::time::Duration;

use crisp::cri::ContainerEventType::{
    ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
};
use crisp::cri::{self, ContainerState, PodSandboxState};
use tonic::Streaming;

use crate::fixture::{MESSAGE_LIMIT, RuntimeClient, ask, connect, wait, world};

/// By a connection of its own. What waits for a subscriber that does not read fills its connection, by HTTP/2's flow control: on the one
/// that the tests share, no answer came any more while another test had events of 10 MiB.
fn subscribe() -> Streaming<cri::ContainerEventResponse> {
    let mut runtime = RuntimeClient::new(connect(&world().socket)).max_decoding_message_size(MESSAGE_LIMIT);
    ask(runtime.get_container_events(cri::GetEventsRequest {})).unwrap()
}

/// The next event of this pod.
fn next(stream: &mut Streaming<cri::ContainerEventResponse>, uid: &str) -> cri::ContainerEventResponse {
    wait(async {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
            let event = message.await.expect("an event").unwrap().expect("the stream goes on");
            if event
                .pod_sandbox_status
                .as_ref()
                .is_some_and(|pod| pod.metadata.as_ref().unwrap().uid == uid)
            {
                return event;
            }
        }
    })
}

/// The next event of this id, whatever it brings.
fn next_of(stream: &mut Streaming<cri::ContainerEventResponse>, id: &str) -> cri::ContainerEventResponse {
    wait(async {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), stream.message());
            let event = message.await.expect("an event").unwrap().expect("the stream goes on");
            if event.container_id == id {
                return event;
            }
        }
    })
}

#[test]
fn a_pods_life_in_events() {
    let (mut one, mut two) = (subscribe(), subscribe());
    let pod = world().pod("events");
    let began = pod.status().created_at;
    let c = pod.start("c", &["sleep", "100000"], |_| {});
    c.stop(0).unwrap();
    c.remove().unwrap();
    let (pod_id, uid) = (pod.id.clone(), "uid-events");
    drop(pod);
    let expected = [
        (pod_id.as_str(), ContainerCreatedEvent),
        (&pod_id, ContainerStartedEvent),
        (&c.id, ContainerCreatedEvent),
        (&c.id, ContainerStartedEvent),
        (&c.id, ContainerStoppedEvent),
    ];
    for stream in [&mut one, &mut two] {
        let mut last = began - 1_000_000_000;
        for (id, kind) in expected {
            let event = next(stream, uid);
            assert_eq!((event.container_id.as_str(), event.container_event_type()), (id, kind));
            assert!(event.created_at >= last, "times go backwards");
            last = event.created_at;
        }
        for id in [&c.id, &pod_id] {
            let mut kind = next_of(stream, id).container_event_type();
            if kind == ContainerStoppedEvent {
                kind = next_of(stream, id).container_event_type();
            }
            assert_eq!(kind, ContainerDeletedEvent, "{id}");
        }
    }
}

#[test]
fn an_event_has_the_pod_and_all_its_containers() {
    let mut events = subscribe();
    let pod = world().pod("events-status");
    let first = pod.start("first", &["sleep", "100000"], |config| {
        config.labels.insert("a".into(), "b".into()).map_or((), drop)
    });
    let second = pod.start("second", &["sh", "-c", "exit 3"], |_| {});
    second.exited();
    let stopped = loop {
        let event = next(&mut events, "uid-events-status");
        if event.container_event_type() == ContainerStoppedEvent {
            break event;
        }
    };
    assert_eq!(stopped.container_id, second.id);
    let status = stopped.pod_sandbox_status.unwrap();
    assert_eq!(
        (status.state(), status.id.as_str()),
        (PodSandboxState::SandboxReady, pod.id.as_str())
    );
    assert_eq!(status.network.unwrap().ip, pod.ip());
    let of = |id: &str| {
        stopped
            .containers_statuses
            .iter()
            .find(|status| status.id == id)
            .expect("both")
            .clone()
    };
    assert_eq!(of(&first.id).state(), ContainerState::ContainerRunning);
    assert_eq!(of(&first.id).labels["a"], "b");
    let ended = of(&second.id);
    assert_eq!(
        (ended.state(), ended.exit_code, ended.reason.as_str()),
        (ContainerState::ContainerExited, 3, "Error")
    );
    pod.try_stop().unwrap();
    let last = loop {
        let event = next(&mut events, "uid-events-status");
        if event.container_id == pod.id {
            break event;
        }
    };
    assert_eq!(last.container_event_type(), ContainerStoppedEvent);
    assert_eq!(
        last.pod_sandbox_status.unwrap().state(),
        PodSandboxState::SandboxNotready
    );
}

/// A kubelet that goes by events (EventedPLEG) takes the first status of a name for the present one. With an older one
/// first it believed a restarted container dead, and created the same attempt again and again: AlreadyExists.
#[test]
fn the_newest_container_of_a_name_comes_first() {
    let mut events = subscribe();
    let pod = world().pod("events-attempts");
    let mut attempts: Vec<String> = (0..6)
        .map(|attempt| {
            let again = pod.start("again", &["true"], |config| {
                config.metadata.as_mut().unwrap().attempt = attempt;
            });
            again.exited();
            again.id
        })
        .collect();
    attempts.reverse();
    let order = |statuses: &[cri::ContainerStatus]| statuses.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(order(&pod.full_status(false).containers_statuses), attempts);
    let last = loop {
        let event = next(&mut events, "uid-events-attempts");
        if event.container_id == attempts[0] && event.container_event_type() == ContainerStoppedEvent {
            break event;
        }
    };
    assert_eq!(order(&last.containers_statuses), attempts);
}

#[test]
fn a_subscriber_that_does_not_read_holds_nobody_up() {
    let _deaf = subscribe();
    let pod = world().pod("events-deaf");
    for n in 0..20 {
        let c = pod.start(&format!("c{n}"), &["true"], |_| {});
        c.exited();
        c.remove().unwrap();
    }
}
