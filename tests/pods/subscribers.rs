//! GetContainerEvents with many subscribers, and with one that does not read (A1-32).

use std::collections::BTreeMap;
use std::time::Duration;

use crisp::cri::ContainerEventType::{self, ContainerDeletedEvent, ContainerStoppedEvent};
use crisp::cri::{self, ContainerState};
use tonic::Streaming;

use crate::fixture::{OwnWorld, Pod, World, ask, wait};

type Stream = Streaming<cri::ContainerEventResponse>;

fn subscribe(world: &World) -> Stream {
    ask(world.runtime().get_container_events(cri::GetEventsRequest {})).unwrap()
}

/// Hears until `enough`; what was told last of each id.
fn hear(
    stream: &mut Stream,
    enough: impl Fn(&cri::ContainerEventResponse, usize) -> bool,
) -> Vec<cri::ContainerEventResponse> {
    wait(async {
        let mut heard: Vec<cri::ContainerEventResponse> = Vec::new();
        loop {
            let message = tokio::time::timeout(Duration::from_secs(60), stream.message());
            let event = message
                .await
                .expect("an event")
                .expect("no loss")
                .expect("the stream goes on");
            heard.push(event);
            if enough(heard.last().expect("just pushed"), heard.len()) {
                return heard;
            }
        }
    })
}

/// Containers that come, run and go: five events each, the removal included.
fn churn(pod: &Pod, count: usize) {
    for n in 0..count {
        let c = pod.start(&format!("churn-{n}"), &["true"], |_| {});
        c.exited();
        c.remove().unwrap();
    }
}

fn kinds(events: &[cri::ContainerEventResponse]) -> Vec<(String, ContainerEventType)> {
    let kind = |event: &cri::ContainerEventResponse| (event.container_id.clone(), event.container_event_type());
    events.iter().map(kind).collect()
}

#[test]
fn twenty_subscribers_hear_the_same_and_one_that_never_reads_holds_nobody_up() {
    let own = OwnWorld::new("subscribers");
    let _deaf = subscribe(own.0);
    let mut streams: Vec<Stream> = (0..20).map(|_| subscribe(own.0)).collect();
    let pod = own.0.pod("many");
    churn(&pod, 125);
    let last = pod.start("last", &["sh", "-c", "exit 7"], |_| {});
    last.exited();
    let is_last = |event: &cri::ContainerEventResponse, _| {
        event.container_id == last.id && event.container_event_type() == ContainerStoppedEvent
    };
    let first = kinds(&hear(&mut streams[0], is_last));
    assert!(first.len() >= 500, "{} events", first.len());
    for stream in &mut streams[1..] {
        assert_eq!(kinds(&hear(stream, is_last)), first);
    }
}

#[test]
fn who_falls_behind_is_told_everything_as_it_is_and_hears_on() {
    let own = OwnWorld::new("behind");
    let fat = "x".repeat(200_000);
    let annotate = |config: &mut cri::PodSandboxConfig| {
        config.annotations.insert("fat".into(), fat.clone());
    };
    let early = own.0.pod_with("early", annotate);
    let doomed = early.start("doomed", &["sleep", "100000"], |_| {});
    let mut slow = subscribe(own.0);
    // More than what is kept: each event weighs 200 kB and more.
    doomed.remove().unwrap();
    churn(&early, 30);
    let gone = own.0.pod_with("gone", annotate);
    let gone_id = gone.id.clone();
    drop(gone);
    let pod = own.0.pod_with("late", annotate);
    let running = pod.start("running", &["sleep", "100000"], |_| {});
    let ended = pod.start("ended", &["sh", "-c", "exit 7"], |_| {});
    ended.exited();
    let waiting = pod.create("waiting", &["true"], |_| {});
    // The last of a state that only the present shows, then something new.
    let is_last = |event: &cri::ContainerEventResponse, _| event.container_id == waiting.id;
    let heard = hear(&mut slow, is_last);
    let weight: usize = heard.iter().map(prost::Message::encoded_len).sum();
    assert!(
        heard.len() < 60,
        "{} events of {weight} bytes: nothing was left out",
        heard.len()
    );
    let mut last = BTreeMap::new();
    for event in &heard {
        last.insert(event.container_id.clone(), event.container_event_type());
    }
    assert_eq!(last[&doomed.id], ContainerDeletedEvent, "what it knew of is gone");
    assert_eq!(last[&running.id], ContainerEventType::ContainerStartedEvent);
    assert_eq!(last[&ended.id], ContainerStoppedEvent);
    assert_eq!(last[&early.id], ContainerEventType::ContainerStartedEvent);
    assert!(last.get(&gone_id).is_none_or(|kind| *kind == ContainerDeletedEvent));
    let of_ended = heard.iter().rfind(|event| event.container_id == ended.id).unwrap();
    let status = of_ended
        .containers_statuses
        .iter()
        .find(|status| status.id == ended.id)
        .unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));
    assert_eq!(of_ended.pod_sandbox_status.as_ref().unwrap().id, pod.id);
    running.stop(0).unwrap();
    let is_stop = |event: &cri::ContainerEventResponse, _| {
        event.container_id == running.id && event.container_event_type() == ContainerStoppedEvent
    };
    hear(&mut slow, is_stop);
}
