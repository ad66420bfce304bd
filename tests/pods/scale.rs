//! Many pods and containers, and fat ones: lists, streams and statuses are whole. What they cost is printed, and decides
//! nothing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crisp::cri;
use crisp::model::{ContainerId, ImageId, SandboxId};
use crisp::store::{ContainerPhase, ContainerRecord, ContainerStatus, Exit, PodPhase, PodRecord, PodStatus, Store};
use prost::Message;
use tonic::Streaming;

use crate::fixture::{MESSAGE_LIMIT, OwnWorld, Pod, ask, wait};

const CREATED: i64 = 1_700_000_000_000_000_000;

/// Records of stopped pods, each with `containers` that have exited, as an earlier daemon leaves them.
fn record(world: &Path, pods: usize, containers: usize, annotation: &str) {
    let store = Store::open(&world.join("d/lib"), &world.join("d/run")).unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let annotations = || [("fat".to_owned(), annotation.to_owned())].into();
    for n in 0..pods {
        let pod = SandboxId::new(format!("{n:064x}"));
        let mut config = crate::fixture::pod_config(&format!("recorded-{n}"), Path::new("/tmp"));
        config.annotations = annotations();
        config.labels.insert("number".into(), n.to_string());
        let record = PodRecord {
            scope: None,
            id: pod.clone(),
            config,
            runtime_handler: String::new(),
            created_at_ns: CREATED + n as i64,
            boot_id: boot_id.trim().to_owned(),
            netns: None,
            network: None,
            cgroup_parent: format!("/crisp-test-recorded/{n}"),
            cgroup_made_below: None,
        };
        store.create_pod(&record).unwrap();
        let status = PodStatus {
            phase: PodPhase::NotReady,
            network_released: true,
            ..PodStatus::default()
        };
        store.write_pod_status(&pod, &status).unwrap();
        for m in 0..containers {
            let id = ContainerId::new(format!("c{:063x}", n * containers + m));
            store.make_container_dirs(&pod, &id).unwrap();
            let config = cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata {
                    name: format!("c{m}"),
                    attempt: 0,
                }),
                annotations: annotations(),
                labels: (0..8).map(|l| (format!("label-{l}"), format!("{n}"))).collect(),
                ..Default::default()
            };
            let record = ContainerRecord {
                id: id.clone(),
                sandbox_id: pod.clone(),
                config,
                image_id: ImageId::new("sha256:0"),
                created_at_ns: CREATED + (n * containers + m) as i64,
                cgroup: format!("/crisp-test-recorded/{n}/{id}"),
                log_path: None,
                stop_signal: 15,
                runtime: None,
                volume_images: Default::default(),
                user: cri::ContainerUser::default(),
                policy: None,
            };
            store.write_container(&record).unwrap();
            let exit = Exit {
                code: (m % 3) as i32,
                finished_at_ns: CREATED + 5,
                oom_killed: false,
                reason: String::new(),
                message: String::new(),
            };
            let status = ContainerStatus {
                phase: ContainerPhase::Exited,
                started_at_ns: CREATED + 1,
                exit: Some(exit),
                ..ContainerStatus::default()
            };
            store.write_container_status(&pod, &id, &status).unwrap();
        }
    }
}

/// Median and 99th percentile.
fn timed(what: &str, mut request: impl FnMut()) {
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            let begin = Instant::now();
            request();
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    eprintln!("{what}: median {:?}, 99th percentile {:?}", times[50], times[98]);
}

#[test]
fn five_hundred_pods_with_a_thousand_containers_are_listed_whole_after_a_restart() {
    let own = OwnWorld::new("scale");
    record(own.0.crisps_dir(), 500, 2, "");
    let begin = Instant::now();
    own.0.restart();
    eprintln!("500 pods: from TERM to the first answer {:?}", begin.elapsed());
    let mut runtime = own.0.runtime();
    let all = cri::ListContainersRequest::default();
    let listed = ask(runtime.list_containers(all.clone())).unwrap().containers;
    let ids: Vec<String> = listed.iter().map(|c| c.id.clone()).collect();
    assert_eq!(
        ids,
        (0..1000).map(|n| format!("c{n:063x}")).collect::<Vec<_>>(),
        "oldest first"
    );
    assert!(listed.iter().all(|c| c.state() == cri::ContainerState::ContainerExited));
    let pods = ask(runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()))
        .unwrap()
        .items;
    assert_eq!(pods.len(), 500);
    let filter = cri::ContainerFilter {
        label_selector: [("label-3".to_owned(), "77".to_owned())].into(),
        ..Default::default()
    };
    let of_one = cri::ListContainersRequest { filter: Some(filter) };
    assert_eq!(
        ask(runtime.list_containers(of_one.clone())).unwrap().containers.len(),
        2
    );
    let status = |id: &str| cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let middle = ask(runtime.container_status(status(&ids[500])))
        .unwrap()
        .status
        .unwrap();
    assert_eq!(
        (middle.id.as_str(), middle.started_at),
        (ids[500].as_str(), CREATED + 1)
    );
    timed("ListContainers of 1000", || {
        drop(ask(runtime.list_containers(all.clone())).unwrap())
    });
    timed("ListContainers of 2 by label", || {
        drop(ask(runtime.list_containers(of_one.clone())).unwrap())
    });
    timed("ListPodSandbox of 500", || {
        drop(ask(runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default())).unwrap());
    });
    timed("ContainerStatus", || {
        drop(ask(runtime.container_status(status(&ids[500]))).unwrap())
    });
    timed("Status", || {
        drop(ask(runtime.status(cri::StatusRequest::default())).unwrap())
    });
    // They can be removed, and stay so.
    for pod in &pods[..2] {
        let pod_sandbox_id = pod.id.clone();
        ask(runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id })).unwrap();
    }
    assert_eq!(ask(runtime.list_containers(all)).unwrap().containers.len(), 996);
}

/// All messages of a stream, none of which may exceed what a client takes.
fn all<T: Message>(mut stream: Streaming<T>) -> Vec<T> {
    let mut found = Vec::new();
    while let Some(message) = wait(stream.message()).expect("no error in the stream") {
        assert!(message.encoded_len() < MESSAGE_LIMIT);
        found.push(message);
    }
    found
}

#[test]
fn streams_of_fat_items_are_whole_where_no_list_could_be() {
    let own = OwnWorld::new("fat");
    let fat = "x".repeat(200_000);
    record(own.0.crisps_dir(), 100, 2, &fat);
    own.0.restart();
    let mut runtime = own.0.runtime();
    let streamed = all(ask(runtime.stream_containers(cri::StreamContainersRequest::default())).unwrap());
    let containers: Vec<cri::Container> = streamed.into_iter().flat_map(|message| message.containers).collect();
    let ids: Vec<&str> = containers.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, (0..200).map(|n| format!("c{n:063x}")).collect::<Vec<_>>());
    assert!(containers.iter().all(|c| c.annotations["fat"] == fat));
    let streamed = all(ask(runtime.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default())).unwrap());
    let pods: Vec<cri::PodSandbox> = streamed.into_iter().flat_map(|message| message.pod_sandboxes).collect();
    let ids: BTreeSet<&str> = pods.iter().map(|pod| pod.id.as_str()).collect();
    assert_eq!((pods.len(), ids.len()), (100, 100));
    assert!(pods.iter().all(|pod| pod.annotations["fat"] == fat));
    let filter = cri::PodSandboxFilter {
        label_selector: [("number".to_owned(), "42".to_owned())].into(),
        ..Default::default()
    };
    let request = cri::StreamPodSandboxesRequest { filter: Some(filter) };
    let streamed = all(ask(runtime.stream_pod_sandboxes(request)).unwrap());
    let names: Vec<_> = streamed
        .iter()
        .flat_map(|message| &message.pod_sandboxes)
        .map(|pod| &pod.id)
        .collect();
    assert_eq!(names, [&format!("{:064x}", 42)]);
    let none = cri::ContainerFilter {
        id: "ff".into(),
        ..Default::default()
    };
    let request = cri::StreamContainersRequest { filter: Some(none) };
    assert!(all(ask(runtime.stream_containers(request)).unwrap()).is_empty());
}

#[test]
fn streams_of_fat_figures_are_whole() {
    let own = OwnWorld::new("fat-figures");
    let fat = "x".repeat(1_500_000);
    let pods: Vec<Pod> = (0..4).map(|n| own.0.pod(&format!("fat-{n}"))).collect();
    let mut expected = BTreeSet::new();
    for pod in &pods {
        for name in ["a", "b", "c"] {
            let c = pod.idle(name, |config| {
                config.annotations.insert("fat".into(), fat.clone());
            });
            expected.insert(c.id);
        }
    }
    let mut runtime = own.0.runtime();
    let streamed = all(ask(runtime.stream_container_stats(cri::StreamContainerStatsRequest::default())).unwrap());
    assert!(streamed.len() > 1);
    let stats = streamed.into_iter().flat_map(|message| message.container_stats);
    let ids: Vec<String> = stats.map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(
        (ids.len(), ids.into_iter().collect::<BTreeSet<_>>()),
        (12, expected.clone())
    );
    let streamed = all(ask(runtime.stream_pod_sandbox_stats(cri::StreamPodSandboxStatsRequest::default())).unwrap());
    assert!(streamed.len() > 1);
    let stats = streamed.into_iter().flat_map(|message| message.pod_sandbox_stats);
    let ids: BTreeSet<String> = stats.map(|stats| stats.attributes.unwrap().id).collect();
    assert_eq!(ids, pods.iter().map(|pod| pod.id.clone()).collect());
    let streamed = all(ask(runtime.stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {})).unwrap());
    let metrics = streamed.into_iter().flat_map(|message| message.pod_sandbox_metrics);
    let ids: BTreeSet<String> = metrics
        .flat_map(|metrics| metrics.container_metrics)
        .map(|metrics| metrics.container_id)
        .collect();
    assert_eq!(ids, expected);
}
