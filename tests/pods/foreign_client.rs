//! A client that somebody else generated, from the CRI of an earlier version: every RPC that it knows once, and what it
//! sends comes back as it was.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::Code;

use crate::fixture::{ask, connect, wait, world};
use crate::registry::reference;

fn strange() -> HashMap<String, String> {
    let pairs = [
        ("plain", "value"),
        ("bytes", "a\nb\0c \u{1F600}"),
        ("", "no key"),
        ("no value", ""),
    ];
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn image(reference: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec {
        image: reference.to_owned(),
        annotations: HashMap::from([("of".into(), "image".into())]),
        ..Default::default()
    })
}

fn int(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

#[test]
fn a_whole_life_by_a_foreign_client() {
    let channel = connect(&world().socket);
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut images = ImageServiceClient::new(channel);

    let version = ask(runtime.version(cri::VersionRequest { version: "v1".into() })).unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    let status = ask(runtime.status(cri::StatusRequest { verbose: true })).unwrap();
    assert!(
        status
            .status
            .unwrap()
            .conditions
            .iter()
            .all(|condition| condition.status)
    );
    assert!(status.features.unwrap().supplemental_groups_policy);
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()));
    let config = ask(runtime.runtime_config(cri::RuntimeConfigRequest {})).unwrap();
    assert_eq!(
        config.linux.unwrap().cgroup_driver().as_str_name().to_lowercase(),
        crate::fixture::cgroup_driver()
    );

    // Images.
    let tag = reference("foreign");
    let pulled = ask(images.pull_image(cri::PullImageRequest {
        image: image(&tag),
        auth: None,
        sandbox_config: None,
    }));
    let id = pulled.unwrap().image_ref;
    let status = cri::ImageStatusRequest {
        image: image(&tag),
        verbose: true,
    };
    let status = ask(images.image_status(status.clone())).unwrap();
    let told = status.image.unwrap();
    assert_eq!((&told.id, told.repo_tags.as_slice()), (&id, [tag.clone()].as_slice()));
    assert!(told.size > 0 && told.uid == Some(cri::Int64Value { value: 0 }) && status.info.contains_key("info"));
    let listed = ask(images.list_images(cri::ListImagesRequest {
        filter: Some(cri::ImageFilter { image: image(&tag) }),
    }))
    .unwrap();
    assert_eq!(listed.images, [told]);
    assert!(
        ask(images.image_fs_info(cri::ImageFsInfoRequest {}))
            .unwrap()
            .image_filesystems[0]
            .used_bytes
            .unwrap()
            .value
            > 0
    );

    // A pod.
    let mut events = ask(runtime.get_container_events(cri::GetEventsRequest {})).unwrap();
    let metadata = cri::PodSandboxMetadata {
        name: "foreign".into(),
        uid: "uid".into(),
        namespace: "ns".into(),
        attempt: 3,
    };
    let sandbox = cri::PodSandboxConfig {
        metadata: Some(metadata.clone()),
        hostname: "foreign".into(),
        log_directory: world().directory("logs/foreign").display().to_string(),
        dns_config: Some(cri::DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["s".into()],
            options: vec!["ndots:2".into()],
        }),
        port_mappings: vec![cri::PortMapping {
            container_port: 80,
            host_port: 20200,
            ..Default::default()
        }],
        labels: strange(),
        annotations: strange(),
        linux: Some(cri::LinuxPodSandboxConfig {
            sysctls: HashMap::from([("net.core.somaxconn".to_owned(), "77".to_owned())]),
            ..Default::default()
        }),
        ..Default::default()
    };
    let run = cri::RunPodSandboxRequest {
        config: Some(sandbox.clone()),
        runtime_handler: String::new(),
    };
    let pod = ask(runtime.run_pod_sandbox(run)).unwrap().pod_sandbox_id;
    let status = ask(runtime.pod_sandbox_status(cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.clone(),
        verbose: true,
    }))
    .unwrap();
    let told = status.status.unwrap();
    assert_eq!(
        (told.metadata.as_ref(), &told.labels, &told.annotations),
        (Some(&metadata), &strange(), &strange())
    );
    assert_eq!(
        (told.state(), told.id.as_str()),
        (cri::PodSandboxState::SandboxReady, pod.as_str())
    );
    assert!(!told.network.unwrap().ip.is_empty() && status.info.contains_key("info"));
    let filter = Some(cri::PodSandboxFilter {
        id: pod.clone(),
        label_selector: strange(),
        ..Default::default()
    });
    let listed = ask(runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter }))
        .unwrap()
        .items;
    assert_eq!(
        (listed.len(), &listed[0].annotations, listed[0].created_at),
        (1, &strange(), told.created_at)
    );

    // A container.
    let resources = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 100,
        cpuset_cpus: "0".into(),
        ..Default::default()
    };
    let metadata = cri::ContainerMetadata {
        name: "c".into(),
        attempt: 7,
    };
    let host = world().directory("foreign");
    let mounts = vec![cri::Mount {
        container_path: "/host".into(),
        host_path: host.display().to_string(),
        readonly: true,
        ..Default::default()
    }];
    let container = cri::ContainerConfig {
        metadata: Some(metadata.clone()),
        image: image(&tag),
        command: vec!["sh".into(), "-c".into()],
        args: vec!["echo $GREETING; exec sleep 1000".into()],
        working_dir: "/tmp".into(),
        envs: vec![cri::KeyValue {
            key: "GREETING".into(),
            value: "hello".into(),
        }],
        mounts: mounts.clone(),
        labels: strange(),
        annotations: strange(),
        log_path: "c.log".into(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources.clone()),
            security_context: Some(cri::LinuxContainerSecurityContext {
                run_as_user: int(1000),
                run_as_group: int(50),
                supplemental_groups: vec![9],
                readonly_rootfs: true,
                no_new_privs: true,
                masked_paths: vec!["/proc/version".into()],
                seccomp: Some(cri::SecurityProfile {
                    profile_type: 0,
                    localhost_ref: String::new(),
                }),
                namespace_options: Some(cri::NamespaceOption {
                    pid: cri::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    };
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(container),
        sandbox_config: Some(sandbox),
    };
    let c = ask(runtime.create_container(create)).unwrap().container_id;
    ask(runtime.start_container(cri::StartContainerRequest {
        container_id: c.clone(),
    }))
    .unwrap();
    let look = cri::ContainerStatusRequest {
        container_id: c.clone(),
        verbose: true,
    };
    let told = ask(runtime.container_status(look.clone())).unwrap().status.unwrap();
    assert_eq!(
        (told.metadata.as_ref(), &told.labels, &told.annotations),
        (Some(&metadata), &strange(), &strange())
    );
    assert_eq!(
        (told.state(), &told.image_id, &told.image_ref),
        (cri::ContainerState::ContainerRunning, &id, &id)
    );
    assert_eq!(told.image, image(&tag));
    assert_eq!(told.mounts, mounts);
    assert_eq!(told.resources.unwrap().linux.unwrap(), resources);
    let user = told.user.unwrap().linux.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.supplemental_groups),
        (1000, 50, vec![9, 50, 63])
    );
    let filter = Some(cri::ContainerFilter {
        pod_sandbox_id: pod.clone(),
        ..Default::default()
    });
    let listed = ask(runtime.list_containers(cri::ListContainersRequest { filter }))
        .unwrap()
        .containers;
    assert_eq!(
        (listed.len(), &listed[0].id, &listed[0].annotations),
        (1, &c, &strange())
    );
    let script = "pwd; id -u; cat /proc/version; cat /proc/sys/net/core/somaxconn; touch /x 2>&1; grep -c Seccomp:.2 /proc/self/status";
    let exec = cri::ExecSyncRequest {
        container_id: c.clone(),
        cmd: vec!["sh".into(), "-c".into(), script.into()],
        timeout: 10,
    };
    let done = ask(runtime.exec_sync(exec)).unwrap();
    assert_eq!(
        String::from_utf8(done.stdout).unwrap(),
        "/tmp\n1000\n77\ntouch: /x: Read-only file system\n1\n"
    );
    let update = cri::LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    let update = cri::UpdateContainerResourcesRequest {
        container_id: c.clone(),
        linux: Some(update),
        ..Default::default()
    };
    ask(runtime.update_container_resources(update)).unwrap();
    let now = ask(runtime.container_status(look.clone()))
        .unwrap()
        .status
        .unwrap()
        .resources
        .unwrap()
        .linux
        .unwrap();
    assert_eq!(
        now,
        cri::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            ..resources
        }
    );
    ask(runtime.reopen_container_log(cri::ReopenContainerLogRequest {
        container_id: c.clone(),
    }))
    .unwrap();

    // Where to stream; what is streamed there is not this client's.
    let exec = cri::ExecRequest {
        container_id: c.clone(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    assert!(ask(runtime.exec(exec)).unwrap().url.starts_with("http"));
    let attach = cri::AttachRequest {
        container_id: c.clone(),
        stdout: true,
        ..Default::default()
    };
    assert!(ask(runtime.attach(attach)).unwrap().url.starts_with("http"));
    let forward = cri::PortForwardRequest {
        pod_sandbox_id: pod.clone(),
        port: vec![80],
    };
    assert!(ask(runtime.port_forward(forward)).unwrap().url.starts_with("http"));

    // Figures.
    let stats = ask(runtime.container_stats(cri::ContainerStatsRequest {
        container_id: c.clone(),
    }))
    .unwrap()
    .stats
    .unwrap();
    assert_eq!(stats.attributes.unwrap().annotations, strange());
    let filter = Some(cri::ContainerStatsFilter {
        id: c.clone(),
        ..Default::default()
    });
    assert_eq!(
        ask(runtime.list_container_stats(cri::ListContainerStatsRequest { filter }))
            .unwrap()
            .stats
            .len(),
        1
    );
    let stats = ask(runtime.pod_sandbox_stats(cri::PodSandboxStatsRequest {
        pod_sandbox_id: pod.clone(),
    }))
    .unwrap()
    .stats
    .unwrap();
    assert_eq!(stats.linux.unwrap().containers.len(), 1);
    let filter = Some(cri::PodSandboxStatsFilter {
        id: pod.clone(),
        ..Default::default()
    });
    assert_eq!(
        ask(runtime.list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest { filter }))
            .unwrap()
            .stats
            .len(),
        1
    );

    // The end.
    ask(runtime.stop_container(cri::StopContainerRequest {
        container_id: c.clone(),
        timeout: 0,
    }))
    .unwrap();
    let told = ask(runtime.container_status(look.clone())).unwrap().status.unwrap();
    assert_eq!(
        (told.state(), told.exit_code),
        (cri::ContainerState::ContainerExited, 137)
    );
    ask(runtime.remove_container(cri::RemoveContainerRequest {
        container_id: c.clone(),
    }))
    .unwrap();
    assert_eq!(ask(runtime.container_status(look)).unwrap_err().code(), Code::NotFound);
    ask(runtime.stop_pod_sandbox(cri::StopPodSandboxRequest {
        pod_sandbox_id: pod.clone(),
    }))
    .unwrap();
    ask(runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest {
        pod_sandbox_id: pod.clone(),
    }))
    .unwrap();
    let status = cri::ImageStatusRequest {
        image: image(&tag),
        verbose: false,
    };
    ask(images.remove_image(cri::RemoveImageRequest { image: image(&tag) })).unwrap();
    assert_eq!(ask(images.image_status(status)).unwrap().image, None);
    let first = wait(async {
        loop {
            let event = events.message().await.unwrap().expect("the stream goes on");
            if event.container_id == pod {
                return event;
            }
        }
    });
    assert_eq!(
        first.container_event_type(),
        cri::ContainerEventType::ContainerCreatedEvent
    );
    assert_eq!(first.pod_sandbox_status.unwrap().labels, strange());
}

/// What crisp does not have says so, to an old client as well; what it has, an old client reads.
#[test]
fn what_is_missing_is_unimplemented_and_the_rest_is_understood() {
    let mut runtime = RuntimeServiceClient::new(connect(&world().socket));
    let refusal = ask(runtime.checkpoint_container(cri::CheckpointContainerRequest::default())).unwrap_err();
    assert_eq!(refusal.code(), Code::Unimplemented);
    ask(runtime.update_runtime_config(cri::UpdateRuntimeConfigRequest::default())).unwrap();
    let described = ask(runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest::default())).unwrap();
    let counts: HashMap<_, _> = described
        .descriptors
        .into_iter()
        .map(|descriptor| (descriptor.name, descriptor.label_keys.len()))
        .collect();
    let pod = world().pod("foreign-metrics");
    pod.idle("c", |_| {});
    let listed = ask(runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest::default())).unwrap();
    let told = listed
        .pod_metrics
        .into_iter()
        .find(|told| told.pod_sandbox_id == pod.id);
    let metrics = told.unwrap().container_metrics.remove(0).metrics;
    assert!(metrics.len() > 30);
    for metric in metrics {
        assert_eq!(counts[&metric.name], metric.label_values.len(), "{}", metric.name);
    }
}
