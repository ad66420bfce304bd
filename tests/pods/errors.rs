//! Requests that cannot be: the code and the words of the answer.

use crisp::cri::{self, PortMapping};
use tonic::{Code, Status};

use crate::fixture::{ask, image, is_code, linux, resources, sandbox_linux, says, world};

#[track_caller]
fn check(outcome: Result<(), Status>, code: Code, words: &str) {
    let refused = outcome.expect_err(words);
    assert!(is_code(&refused, code), "{words}: {refused}");
    assert!(says(&refused, words), "{words}: {refused}");
}

#[test]
fn sandboxes_that_cannot_be() {
    type Change = fn(&mut cri::PodSandboxConfig);
    let cases: [(&str, Change); 14] = [
        ("metadata is missing", |c| c.metadata = None),
        ("metadata needs a name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("metadata needs a name", |c| {
            c.metadata.as_mut().unwrap().namespace.clear()
        }),
        ("metadata needs a name", |c| c.metadata.as_mut().unwrap().uid.clear()),
        ("hostname", |c| c.hostname = "x".repeat(65)),
        ("hostname", |c| c.hostname = "two words".into()),
        ("log_directory", |c| c.log_directory = "relative".into()),
        ("port mapping", |c| {
            c.port_mappings = vec![PortMapping {
                host_port: -1,
                container_port: 80,
                ..Default::default()
            }]
        }),
        ("port mapping", |c| {
            c.port_mappings = vec![PortMapping {
                host_port: 80,
                container_port: 65536,
                ..Default::default()
            }]
        }),
        ("host_ip", |c| {
            c.port_mappings = vec![PortMapping {
                host_ip: "nowhere".into(),
                ..Default::default()
            }]
        }),
        ("protocol", |c| {
            c.port_mappings = vec![PortMapping {
                protocol: 9,
                ..Default::default()
            }]
        }),
        ("dns_config", |c| {
            c.dns_config = Some(cri::DnsConfig {
                servers: vec!["a\nb".into()],
                ..Default::default()
            })
        }),
        ("cgroup_parent", |c| {
            sandbox_linux(c).cgroup_parent = "system.slice:crisp:x".into()
        }),
        ("cgroup_parent", |c| {
            sandbox_linux(c).cgroup_parent = "/a/../../b".into()
        }),
    ];
    for (words, change) in cases {
        check(world().try_pod("bad", change).map(drop), Code::InvalidArgument, words);
    }
    let run = cri::RunPodSandboxRequest::default();
    check(
        ask(world().runtime().run_pod_sandbox(run)).map(drop),
        Code::InvalidArgument,
        "config is missing",
    );
    let config = crate::fixture::pod_config("handler", std::path::Path::new("/tmp"));
    let run = cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: "no-such".into(),
    };
    check(
        ask(world().runtime().run_pod_sandbox(run)).map(drop),
        Code::InvalidArgument,
        "no-such",
    );
}

#[test]
fn containers_that_cannot_be() {
    let pod = world().pod("bad-containers");
    type Change = fn(&mut cri::ContainerConfig);
    let cases: [(&str, Code, Change); 15] = [
        ("metadata", Code::InvalidArgument, |c| c.metadata = None),
        ("name", Code::InvalidArgument, |c| {
            c.metadata.as_mut().unwrap().name.clear()
        }),
        ("image", Code::InvalidArgument, |c| c.image = None),
        ("127.0.0.1:5005/not/here:1", Code::NotFound, |c| {
            c.image = Some(image("127.0.0.1:5005/not/here:1"))
        }),
        ("argument", Code::InvalidArgument, |c| c.args = vec!["nul\0".into()]),
        ("an argument", Code::InvalidArgument, |c| {
            c.args = vec!["x".repeat(200_000)]
        }),
        ("equals sign", Code::InvalidArgument, |c| {
            c.envs = vec![cri::KeyValue {
                key: "A=B".into(),
                value: vec![],
            }]
        }),
        ("NUL", Code::InvalidArgument, |c| {
            c.envs = vec![cri::KeyValue {
                key: "A".into(),
                value: vec![0],
            }]
        }),
        ("oom_score_adj", Code::InvalidArgument, |c| {
            resources(c).oom_score_adj = 1001
        }),
        ("cpu", Code::InvalidArgument, |c| resources(c).cpu_period = -1),
        ("memory", Code::InvalidArgument, |c| {
            resources(c).memory_limit_in_bytes = -2
        }),
        ("cpuset", Code::InvalidArgument, |c| {
            resources(c).cpuset_cpus = "0-".into()
        }),
        ("no signal is called", Code::InvalidArgument, |c| c.stop_signal = 400),
        ("a/../..", Code::InvalidArgument, |c| {
            resources(c).unified.insert("a/../../memory.max".into(), "1".into());
        }),
        ("supplemental", Code::InvalidArgument, |c| {
            linux(c).security_context.as_mut().unwrap().supplemental_groups_policy = 9;
        }),
    ];
    for (words, code, change) in cases {
        let mut config = pod.config("bad", &["true"]);
        change(&mut config);
        check(pod.try_create(config).map(drop), code, words);
    }
    let create = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        ..Default::default()
    };
    check(
        ask(world().runtime().create_container(create)).map(drop),
        Code::InvalidArgument,
        "config is missing",
    );
    let nowhere = cri::CreateContainerRequest {
        config: Some(pod.config("c", &["true"])),
        ..Default::default()
    };
    check(
        ask(world().runtime().create_container(nowhere)).map(drop),
        Code::NotFound,
        "pod sandbox",
    );
    // None of them left anything: the name is free.
    pod.create("bad", &["true"], |_| {});
}

#[test]
fn who_is_not_there_is_not_found_but_can_be_stopped_and_removed() {
    let id = || "0123456789abcdef".repeat(4);
    let mut runtime = world().runtime();
    check(
        ask(runtime.pod_sandbox_status(cri::PodSandboxStatusRequest {
            pod_sandbox_id: id(),
            verbose: false,
        }))
        .map(drop),
        Code::NotFound,
        &id(),
    );
    check(
        ask(runtime.container_status(cri::ContainerStatusRequest {
            container_id: id(),
            verbose: false,
        }))
        .map(drop),
        Code::NotFound,
        &id(),
    );
    check(
        ask(runtime.start_container(cri::StartContainerRequest { container_id: id() })).map(drop),
        Code::NotFound,
        &id(),
    );
    let exec = cri::ExecSyncRequest {
        container_id: id(),
        cmd: vec!["true".into()],
        timeout: 1,
    };
    check(ask(runtime.exec_sync(exec)).map(drop), Code::NotFound, &id());
    check(
        ask(runtime.reopen_container_log(cri::ReopenContainerLogRequest { container_id: id() })).map(drop),
        Code::NotFound,
        &id(),
    );
    check(
        ask(runtime.update_container_resources(cri::UpdateContainerResourcesRequest::default())).map(drop),
        Code::InvalidArgument,
        "linux is missing",
    );
    ask(runtime.stop_container(cri::StopContainerRequest {
        container_id: id(),
        timeout: 1,
    }))
    .unwrap();
    ask(runtime.remove_container(cri::RemoveContainerRequest { container_id: id() })).unwrap();
    ask(runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id() })).unwrap();
    ask(runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id() })).unwrap();
    let mut images = world().images();
    check(
        ask(images.pull_image(cri::PullImageRequest::default())).map(drop),
        Code::InvalidArgument,
        "image is missing",
    );
    check(
        ask(images.image_status(cri::ImageStatusRequest::default())).map(drop),
        Code::InvalidArgument,
        "image is missing",
    );
    check(
        ask(images.remove_image(cri::RemoveImageRequest::default())).map(drop),
        Code::InvalidArgument,
        "image is missing",
    );
}

#[test]
fn a_container_that_does_not_run_takes_no_command() {
    let pod = world().pod("exec-states");
    let c = pod.create("c", &["true"], |_| {});
    check(
        c.try_exec(&["true"], 1).map(drop),
        Code::FailedPrecondition,
        "created, not running",
    );
    c.start().unwrap();
    c.exited();
    check(
        c.try_exec(&["true"], 1).map(drop),
        Code::FailedPrecondition,
        "exited, not running",
    );
}

#[test]
fn what_a_later_version_brings_says_what_is_missing() {
    let mut runtime = world().runtime();
    let missing = Code::Unimplemented;
    check(
        ask(runtime.checkpoint_container(cri::CheckpointContainerRequest::default())).map(drop),
        missing,
        "checkpoints",
    );
    check(
        ask(runtime.checkpoint_pod(cri::CheckpointPodRequest::default())).map(drop),
        missing,
        "checkpoints",
    );
    check(
        ask(runtime.restore_pod(cri::RestorePodRequest::default())).map(drop),
        missing,
        "checkpoints",
    );
}

#[test]
fn messages_of_ten_mebibytes_pass_both_ways_and_larger_ones_are_told() {
    let pod = world().pod("large");
    let large = "x".repeat(10 << 20);
    let c = pod.create("c", &["sleep", "1000"], |config| {
        config.annotations.insert("large".into(), large.clone());
    });
    assert_eq!(c.status().annotations["large"].len(), 10 << 20);
    c.start().unwrap();
    assert_eq!(c.sh("echo it runs"), "it runs");
    let mut config = pod.config("d", &["true"]);
    config.annotations.insert("large".into(), "x".repeat(17 << 20));
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: None,
    };
    let mut unlimited = world().runtime().max_encoding_message_size(64 << 20);
    let refused = ask(unlimited.create_container(request)).unwrap_err();
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{refused}"
    );
    assert!(ask(world().runtime().version(cri::VersionRequest::default())).is_ok());
}

#[test]
fn the_daemon_says_who_it_is_and_that_it_is_ready() {
    let mut runtime = world().runtime();
    let version = ask(runtime.version(cri::VersionRequest { version: "v1".into() })).unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    if world().if_crisp().is_some() {
        assert_eq!(version.runtime_name, "crisp");
        assert_eq!(version.runtime_version.split('.').count(), 3);
    }
    let status = ask(runtime.status(cri::StatusRequest { verbose: true })).unwrap();
    let conditions = status.status.unwrap().conditions;
    assert!(
        ["RuntimeReady", "NetworkReady"]
            .iter()
            .all(|kind| conditions.iter().any(|c| c.r#type == *kind && c.status)),
        "{conditions:?}"
    );
    assert!(status.runtime_handlers.iter().any(|handler| handler.name.is_empty()));
    assert!(serde_json::from_str::<serde_json::Value>(&status.info["config"]).is_ok());
    assert!(status.features.unwrap().supplemental_groups_policy);
    let config = ask(runtime.runtime_config(cri::RuntimeConfigRequest {})).unwrap();
    assert_eq!(
        config.linux.unwrap().cgroup_driver().as_str_name().to_lowercase(),
        crate::fixture::cgroup_driver()
    );
}
