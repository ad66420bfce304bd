//! Lists, their filters, and the streams of the same.

use std::collections::BTreeMap;
use std::future::Future;

use crisp::cri::{self, ContainerState, PodSandboxState};
use tonic::{Code, Streaming};

use crate::endpoint;
use crate::fixture::{Answer, Pod, ask, image, wait, world};
use crate::registry::reference;

/// All messages of a stream, up to its end.
fn all<T>(mut stream: Streaming<T>) -> Vec<T> {
    wait(async move {
        let mut found = Vec::new();
        while let Some(message) = stream.message().await.expect("no error in the stream") {
            found.push(message);
        }
        found
    })
}

/// As they come, oldest first: crisp's own order, of which the CRI says nothing.
fn in_order<T: Ord>(mut ids: Vec<T>) -> Vec<T> {
    if endpoint::socket().is_some() {
        ids.sort();
    }
    ids
}

/// All that a method streams; nothing where another runtime was written before the method: the list stands alone there.
fn streamed<T>(asked: impl Future<Output = Answer<Streaming<T>>>) -> Option<Vec<T>> {
    match wait(asked) {
        Err(refusal) if endpoint::socket().is_some() && refusal.code() == Code::Unimplemented => None,
        answer => Some(all(answer.unwrap().into_inner())),
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The ids of what a filter takes: by the list, and the same by the stream, each once.
fn pods(filter: cri::PodSandboxFilter) -> Vec<String> {
    let filter = Some(filter);
    let list = cri::ListPodSandboxRequest { filter: filter.clone() };
    let listed: Vec<String> = ask(world().runtime().list_pod_sandbox(list))
        .unwrap()
        .items
        .into_iter()
        .map(|p| p.id)
        .collect();
    let mut runtime = world().runtime();
    if let Some(messages) = streamed(runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter })) {
        let items = messages.into_iter().flat_map(|message| message.pod_sandboxes);
        assert_eq!(listed, items.map(|p| p.id).collect::<Vec<_>>());
    }
    listed
}

fn containers(filter: cri::ContainerFilter) -> Vec<String> {
    let filter = Some(filter);
    let list = cri::ListContainersRequest { filter: filter.clone() };
    let listed: Vec<String> = ask(world().runtime().list_containers(list))
        .unwrap()
        .containers
        .into_iter()
        .map(|c| c.id)
        .collect();
    let mut runtime = world().runtime();
    if let Some(messages) = streamed(runtime.stream_containers(cri::StreamContainersRequest { filter })) {
        let items = messages.into_iter().flat_map(|message| message.containers);
        assert_eq!(listed, items.map(|c| c.id).collect::<Vec<_>>());
    }
    listed
}

fn labelled(name: &str, color: &str) -> Pod {
    world().pod_with(name, |config| {
        config.labels = labels(&[("lists", "yes"), ("color", color)])
    })
}

#[test]
fn pods_by_id_state_and_labels_together() {
    let (red, blue) = (labelled("list-red", "red"), labelled("list-blue", "blue"));
    blue.try_stop().unwrap();
    let state = |state: PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
    let yes = || labels(&[("lists", "yes")]);
    let filter = cri::PodSandboxFilter::default;
    let (red_id, blue_id) = (red.id.clone(), blue.id.clone());
    assert_eq!(
        in_order(pods(cri::PodSandboxFilter {
            label_selector: yes(),
            ..filter()
        })),
        in_order(vec![red_id.clone(), blue_id.clone()]),
        "oldest first"
    );
    for (asked, expected) in [
        (
            cri::PodSandboxFilter {
                id: red_id.clone(),
                ..filter()
            },
            vec![&red_id],
        ),
        (
            cri::PodSandboxFilter {
                id: red_id[..12].into(),
                ..filter()
            },
            vec![&red_id],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: labels(&[("color", "blue")]),
                ..filter()
            },
            vec![&blue_id],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: labels(&[("color", "blue"), ("lists", "no")]),
                ..filter()
            },
            vec![],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: yes(),
                state: state(PodSandboxState::SandboxReady),
                ..filter()
            },
            vec![&red_id],
        ),
        (
            cri::PodSandboxFilter {
                label_selector: yes(),
                state: state(PodSandboxState::SandboxNotready),
                ..filter()
            },
            vec![&blue_id],
        ),
        (
            cri::PodSandboxFilter {
                id: red_id.clone(),
                state: state(PodSandboxState::SandboxNotready),
                ..filter()
            },
            vec![],
        ),
        (
            cri::PodSandboxFilter {
                id: "no-such-id".into(),
                ..filter()
            },
            vec![],
        ),
    ] {
        assert_eq!(pods(asked.clone()).iter().collect::<Vec<_>>(), expected, "{asked:?}");
    }
    let listed = ask(world().runtime().list_pod_sandbox(cri::ListPodSandboxRequest {
        filter: Some(cri::PodSandboxFilter { id: red_id, ..filter() }),
    }));
    let item = listed.unwrap().items.remove(0);
    let status = red.status();
    assert_eq!(
        (item.metadata, item.labels, item.created_at),
        (status.metadata, status.labels, status.created_at)
    );
}

#[test]
fn containers_by_id_pod_state_and_labels_together() {
    let (pod, other) = (world().pod("list-containers"), world().pod("list-containers-other"));
    let make =
        |pod: &Pod, name: &str| pod.create(name, &["sleep", "1000"], |c| c.labels = labels(&[("container", name)]));
    let (created, running, exited, elsewhere) = (make(&pod, "a"), make(&pod, "b"), make(&pod, "c"), make(&other, "a"));
    running.start().unwrap();
    exited.start().unwrap();
    exited.stop(0).unwrap();
    let filter = || cri::ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    let state = |state: ContainerState| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: state.into() }),
        ..filter()
    };
    let by_label = cri::ContainerFilter {
        label_selector: labels(&[("container", "a")]),
        ..Default::default()
    };
    for (asked, expected) in [
        (filter(), vec![&created.id, &running.id, &exited.id]),
        (
            cri::ContainerFilter {
                pod_sandbox_id: pod.id[..12].into(),
                ..Default::default()
            },
            vec![&created.id, &running.id, &exited.id],
        ),
        (state(ContainerState::ContainerCreated), vec![&created.id]),
        (state(ContainerState::ContainerRunning), vec![&running.id]),
        (state(ContainerState::ContainerExited), vec![&exited.id]),
        (state(ContainerState::ContainerUnknown), vec![]),
        (
            cri::ContainerFilter {
                id: exited.id[..12].into(),
                ..Default::default()
            },
            vec![&exited.id],
        ),
        (
            cri::ContainerFilter {
                id: elsewhere.id.clone(),
                ..filter()
            },
            vec![],
        ),
        (by_label, vec![&created.id, &elsewhere.id]),
    ] {
        let found = containers(asked.clone());
        assert_eq!(in_order(found.iter().collect()), in_order(expected), "{asked:?}");
    }
}

/// The ids of whose figures a filter takes, by the list and by the stream.
fn stats_of(filter: cri::ContainerStatsFilter) -> Vec<String> {
    let filter = Some(filter);
    let sorted = |stats: Vec<cri::ContainerStats>| {
        let mut ids: Vec<String> = stats.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
        ids.sort();
        ids
    };
    let list = cri::ListContainerStatsRequest { filter: filter.clone() };
    let listed = sorted(ask(world().runtime().list_container_stats(list)).unwrap().stats);
    let mut runtime = world().runtime();
    if let Some(messages) = streamed(runtime.stream_container_stats(cri::StreamContainerStatsRequest { filter })) {
        let stats = messages.into_iter().flat_map(|message| message.container_stats);
        assert_eq!(listed, sorted(stats.collect()));
    }
    listed
}

#[test]
fn figures_by_filter() {
    let pod = world().pod_with("list-stats", |config| config.labels = labels(&[("stats", "pod")]));
    let running = pod.idle("a", |config| config.labels = labels(&[("stats", "container")]));
    let other = pod.idle("b", |_| {});
    let ended = pod.start("c", &["true"], |_| {});
    ended.exited();
    let mut both = vec![running.id.clone(), other.id.clone()];
    both.sort();
    let filter = || cri::ContainerStatsFilter {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(stats_of(filter()), both, "an exited container has no figures");
    assert_eq!(
        stats_of(cri::ContainerStatsFilter {
            label_selector: labels(&[("stats", "container")]),
            ..filter()
        }),
        [running.id.clone()]
    );
    assert_eq!(
        stats_of(cri::ContainerStatsFilter {
            id: other.id[..12].into(),
            ..Default::default()
        }),
        [other.id.clone()]
    );
    let filter = Some(cri::PodSandboxStatsFilter {
        label_selector: labels(&[("stats", "pod")]),
        ..Default::default()
    });
    let list = cri::ListPodSandboxStatsRequest { filter: filter.clone() };
    let id = |stats: Vec<cri::PodSandboxStats>| {
        stats
            .into_iter()
            .map(|stats| stats.attributes.unwrap().id)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        id(ask(world().runtime().list_pod_sandbox_stats(list)).unwrap().stats),
        [pod.id.clone()]
    );
    let mut runtime = world().runtime();
    if let Some(messages) = streamed(runtime.stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest { filter })) {
        let stats = messages.into_iter().flat_map(|message| message.pod_sandbox_stats);
        assert_eq!(id(stats.collect()), [pod.id.clone()]);
    }
}

#[test]
fn images_by_reference_and_all() {
    let id = world().pull(&reference("filtered")).unwrap();
    let spec = |reference: &str| cri::ImageFilter {
        image: Some(image(reference)),
    };
    for (filter, expected) in [
        (Some(spec(&reference("filtered"))), Some(true)),
        (Some(spec(&id)), Some(true)),
        (Some(spec("127.0.0.1:5005/filtered:absent")), Some(false)),
        (None, None),
    ] {
        let listed = ask(world()
            .images()
            .list_images(cri::ListImagesRequest { filter: filter.clone() }))
        .unwrap()
        .images;
        let mut images = world().images();
        let messages = streamed(images.stream_images(cri::StreamImagesRequest { filter }));
        let by_id = |images: Vec<cri::Image>| {
            images
                .into_iter()
                .map(|image| (image.id.clone(), image))
                .collect::<BTreeMap<_, _>>()
        };
        let (listed, count) = (by_id(listed.clone()), listed.len());
        let streamed = messages.map_or_else(
            || listed.values().cloned().collect(),
            |messages| {
                messages
                    .into_iter()
                    .flat_map(|message| message.images)
                    .collect::<Vec<_>>()
            },
        );
        assert_eq!((count, listed.len()), (listed.len(), count), "an image is listed twice");
        match expected {
            // Other tests pull and remove meanwhile: only what nobody touches can be compared.
            None => assert!(listed.len() >= 4 && by_id(streamed)[&id] == listed[&id]),
            Some(found) => assert_eq!(
                (listed.contains_key(&id), listed.len(), streamed.len()),
                (found, found.into(), found.into())
            ),
        }
    }
}

#[test]
fn a_list_larger_than_4_mib_arrives_and_a_stream_has_it_in_pieces() {
    let pod = world().pod("fat");
    let fat = "x".repeat(1_500_000);
    for n in 0..4 {
        pod.create(&format!("c{n}"), &["true"], |config| {
            config.labels = labels(&[("fat", "yes")]);
            config.annotations.insert("fat".into(), fat.clone());
        });
    }
    let filter = Some(cri::ContainerFilter {
        label_selector: labels(&[("fat", "yes")]),
        ..Default::default()
    });
    let list = cri::ListContainersRequest { filter: filter.clone() };
    let listed = ask(world().runtime().list_containers(list)).unwrap().containers;
    assert!(listed.len() == 4 && listed.iter().all(|c| c.annotations["fat"] == fat));
    let pieces = all(ask(world()
        .runtime()
        .stream_containers(cri::StreamContainersRequest { filter }))
    .unwrap());
    assert!(pieces.len() > 1, "it came in one piece");
    let streamed: Vec<cri::Container> = pieces.into_iter().flat_map(|message| message.containers).collect();
    assert_eq!(streamed, listed);
}
