//! What the rooms know, in the CRI's words.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::container::spec::stop_signal;
use crate::container::{Container, ExecOutput, State};
use crate::cri;
use crate::image::{Image, ImageUser};
use crate::sandbox::{Sandbox, namespace_options};
use crate::store::{ContainerRecord, Exit};

/// More than an ExecSyncResponse has beside its two streams.
const EXEC_FRAME_BYTES: usize = 64;

/// `PodSandbox.state`.
pub fn sandbox_state(sandbox: &Sandbox) -> cri::PodSandboxState {
    if sandbox.is_ready() {
        cri::PodSandboxState::SandboxReady
    } else {
        cri::PodSandboxState::SandboxNotready
    }
}

/// A sandbox, as listed.
pub fn sandbox(sandbox: &Sandbox) -> cri::PodSandbox {
    let record = &sandbox.record;
    cri::PodSandbox {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(sandbox).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// A sandbox, in full.
pub fn sandbox_status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let record = &sandbox.record;
    let mut ips = sandbox.ips().into_iter().map(|ip| ip.to_string());
    let network = ips.next().map(|ip| cri::PodSandboxNetworkStatus {
        ip,
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    });
    cri::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: sandbox_state(sandbox).into(),
        created_at: record.created_at_ns,
        network: Some(network.unwrap_or_default()),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(namespace_options(&record.config)),
            }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// `Container.state`.
pub fn container_state(state: &State) -> cri::ContainerState {
    match state {
        State::Created { .. } => cri::ContainerState::ContainerCreated,
        State::Running { .. } => cri::ContainerState::ContainerRunning,
        State::Exited { .. } => cri::ContainerState::ContainerExited,
    }
}

/// A container, as listed.
pub fn container(container: &Container) -> cri::Container {
    let record = &container.record;
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox_id.to_string(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_id.to_string(),
        state: container_state(&container.state()).into(),
        created_at: record.created_at_ns,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.to_string(),
    }
}

/// The containers of a pod, the newest first: a kubelet that goes by events takes the first of each name for the
/// present one.
pub fn container_statuses(containers: &[Arc<Container>]) -> Vec<cri::ContainerStatus> {
    let mut statuses: Vec<_> = containers.iter().map(|container| container_status(container)).collect();
    statuses.sort_by_key(|status| Reverse(status.created_at));
    statuses
}

/// A container, in full.
pub fn container_status(container: &Container) -> cri::ContainerStatus {
    let record = &container.record;
    let state = container.state();
    let exit = state.exit();
    cri::ContainerStatus {
        id: record.id.to_string(),
        metadata: record.config.metadata.clone(),
        state: container_state(&state).into(),
        created_at: record.created_at_ns,
        started_at: state.started_at_ns().unwrap_or(0),
        finished_at: exit.map_or(0, |exit| exit.finished_at_ns),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: record.config.image.clone(),
        image_ref: record.image_id.to_string(),
        reason: exit.map(reason).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record
            .log_path
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(container.resources()),
            windows: None,
        }),
        image_id: record.image_id.to_string(),
        user: Some(record.user.clone()),
        stop_signal: stop_signal::to_cri(record.stop_signal).into(),
    }
}

/// Limits, for a verbose status: those that are set, by the CRI's names.
pub fn resources_json(resources: &cri::LinuxContainerResources) -> Value {
    let numbers = [
        ("cpu_period", resources.cpu_period),
        ("cpu_quota", resources.cpu_quota),
        ("cpu_shares", resources.cpu_shares),
        ("memory_limit_in_bytes", resources.memory_limit_in_bytes),
        ("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes),
        ("oom_score_adj", resources.oom_score_adj),
    ];
    let texts = [
        ("cpuset_cpus", &resources.cpuset_cpus),
        ("cpuset_mems", &resources.cpuset_mems),
    ];
    let huge = resources.hugepage_limits.iter();
    let maps = [
        (
            "hugepage_limits",
            huge.map(|huge| (huge.page_size.clone(), json!(huge.limit)))
                .collect::<Value>(),
        ),
        (
            "unified",
            resources
                .unified
                .iter()
                .map(|(key, value)| (key.clone(), json!(value)))
                .collect(),
        ),
    ];
    let numbers = numbers.into_iter().filter(|(_, value)| *value != 0);
    let texts = texts.into_iter().filter(|(_, value)| !value.is_empty());
    let maps = maps.into_iter().filter(|(_, value)| *value != json!({}));
    numbers
        .map(|(name, value)| (name, value.into()))
        .chain(texts.map(|(name, value)| (name, value.as_str().into())))
        .chain(maps)
        .map(|(name, value): (_, Value)| (name.to_owned(), value))
        .collect()
}

/// `ContainerStatus.mounts`: as asked for, with the images that volumes were made of.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut mounts = record.config.mounts.clone();
    for image in mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
        if let Some(image_id) = record.volume_images.get(&image.image) {
            image.image_ref = image_id.to_string();
        }
    }
    mounts
}

/// `ContainerStatus.reason`, in the words that kubelets and users know.
fn reason(exit: &Exit) -> String {
    match exit {
        Exit { oom_killed: true, .. } => "OOMKilled".to_owned(),
        Exit { reason, .. } if !reason.is_empty() => reason.clone(),
        Exit { code: 0, .. } => "Completed".to_owned(),
        Exit { .. } => "Error".to_owned(),
    }
}

/// What a command did, cut to what a message may weigh: CRI wants output without end to be no error. Of two long
/// streams each keeps half, a short one all.
pub fn exec_output(output: ExecOutput) -> cri::ExecSyncResponse {
    let ExecOutput {
        mut stdout,
        mut stderr,
        exit_code,
    } = output;
    let room = super::MESSAGE_LIMIT_BYTES - EXEC_FRAME_BYTES;
    let of_stdout = room.saturating_sub(stderr.len()).max(room / 2);
    stdout.truncate(of_stdout);
    stderr.truncate(room - stdout.len());
    cri::ExecSyncResponse {
        stdout,
        stderr,
        exit_code,
    }
}

/// An image.
pub fn image(image: &Image) -> cri::Image {
    let (uid, username) = match &image.user {
        Some(ImageUser::Uid(uid)) => (Some(cri::Int64Value { value: *uid }), String::new()),
        Some(ImageUser::Name(name)) => (None, name.clone()),
        None => (Some(cri::Int64Value { value: 0 }), String::new()),
    };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}
