//! UpdatePodSandboxResources: limits of a whole pod (A1-37).

use std::path::Path;

use crisp::cri::{self, LinuxContainerResources, UpdatePodSandboxResourcesRequest};
use tonic::{Code, Status};

use crate::fixture::{OwnWorld, Pod, ask, is_code, sandbox_linux, world};

const MIB: i64 = 1 << 20;

fn update(pod: &Pod, overhead: LinuxContainerResources, resources: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        overhead: Some(overhead),
        resources: Some(resources),
    };
    ask(pod.world.runtime().update_pod_sandbox_resources(request)).map(drop)
}

fn memory(bytes: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: bytes,
        ..Default::default()
    }
}

/// The memory limit of the cgroup around the pod.
fn limit(pod: &Pod) -> String {
    let own = pod.info()["cgroup"].as_str().unwrap().to_owned();
    let around = own.rsplit_once('/').unwrap().0.to_owned();
    let v2 = format!("/sys/fs/cgroup{around}/memory.max");
    let path = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => v2,
        false => format!("/sys/fs/cgroup/memory{around}/memory.limit_in_bytes"),
    };
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .trim()
        .to_owned()
}

#[test]
fn limits_of_a_pod_hold_are_shown_and_survive_the_daemon() {
    let own = OwnWorld::new("pod-limits");
    let pod = own.0.pod("limited");
    let c = pod.idle("c", |_| {});
    let mut resources = memory(96 * MIB);
    resources.cpu_shares = 512;
    update(&pod, memory(32 * MIB), resources).unwrap();
    assert_eq!(limit(&pod), (128 * MIB).to_string());
    let shown = |pod: &Pod| {
        let info = pod.info();
        (
            info["resources"]["memory_limit_in_bytes"].as_i64(),
            info["resources"]["cpu_shares"].as_i64(),
            info["overhead"]["memory_limit_in_bytes"].as_i64(),
        )
    };
    let expected = (Some(96 * MIB), Some(512), Some(32 * MIB));
    assert_eq!(shown(&pod), expected);
    own.0.restart();
    assert_eq!(shown(&pod), expected);
    assert_eq!(limit(&pod), (128 * MIB).to_string());
    // The limit is the pod's: a container without one of its own cannot pass it.
    let script = "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null";
    assert_ne!(c.exec(&["sh", "-c", script]).code, 0);
}

#[test]
fn a_pod_below_the_kubelets_cgroup_has_its_limits_from_there() {
    let parent = format!("/crisp-test-pod-limits-{}", std::process::id());
    let pod = world().pod_with("kubelets", |config| {
        sandbox_linux(config).cgroup_parent = parent.clone()
    });
    let before = limit(&pod);
    update(&pod, LinuxContainerResources::default(), memory(64 * MIB)).unwrap();
    assert_eq!(limit(&pod), before);
    assert_eq!(
        pod.info()["resources"]["memory_limit_in_bytes"].as_i64(),
        Some(64 * MIB)
    );
}

#[test]
fn who_cannot_be_limited_is_refused() {
    let pod = world().pod("pod-limits-refused");
    let wrong = LinuxContainerResources {
        cpu_period: 5,
        ..Default::default()
    };
    let refusal = update(&pod, LinuxContainerResources::default(), wrong).unwrap_err();
    assert!(is_code(&refusal, Code::InvalidArgument), "{refusal:?}");
    assert_eq!(pod.info()["resources"], serde_json::json!({}));
    pod.try_stop().unwrap();
    let refusal = update(&pod, LinuxContainerResources::default(), memory(64 * MIB)).unwrap_err();
    assert!(is_code(&refusal, Code::FailedPrecondition), "{refusal:?}");
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "0123".repeat(16),
        ..Default::default()
    };
    let refusal = ask(world().runtime().update_pod_sandbox_resources(request)).unwrap_err();
    assert_eq!(refusal.code(), Code::NotFound, "{refusal:?}");
}
