//! Stats requests: which containers and pods are meant, handed to the collector.

use std::sync::Arc;

use tonic::Status;

use super::Rooms;
use super::error::status as failed;
use super::list::{takes_container, takes_sandbox};
use crate::container::{Container, State};
use crate::cri;
use crate::sandbox::Sandbox;
use crate::stats::{ContainerMetricsTarget, ContainerTarget, NetworkTarget, PodMetricsTarget, PodTarget};
use crate::sys::cgroup::Cgroup;

/// ContainerStats.
pub async fn container(rooms: &Rooms, id: &str) -> Result<cri::ContainerStatsResponse, Status> {
    let container = rooms.containers.find(id).map_err(|e| failed(&e))?;
    let stats = rooms
        .stats
        .container(container_target(rooms, &container)?)
        .await
        .map_err(|e| failed(&e))?;
    Ok(cri::ContainerStatsResponse { stats: Some(stats) })
}

/// The figures of the running containers that `filter` takes.
pub async fn containers(rooms: &Rooms, filter: Option<&cri::ContainerStatsFilter>) -> Vec<cri::ContainerStats> {
    let filter = filter.map(|filter| cri::ContainerFilter {
        id: filter.id.clone(),
        pod_sandbox_id: filter.pod_sandbox_id.clone(),
        label_selector: filter.label_selector.clone(),
        state: None,
    });
    let wanted = |container: &Container| takes_container(filter.as_ref(), container) && has_processes(container);
    let found = rooms.containers.list(wanted);
    let targets = found
        .iter()
        .filter_map(|container| container_target(rooms, container).ok())
        .collect();
    rooms.stats.containers(targets).await
}

/// PodSandboxStats.
pub async fn pod_sandbox(rooms: &Rooms, id: &str) -> Result<cri::PodSandboxStatsResponse, Status> {
    let sandbox = rooms.sandboxes.find(id).map_err(|e| failed(&e))?;
    let containers = rooms.containers.of_pod(&sandbox.record.id);
    let stats = rooms
        .stats
        .pod(pod_target(rooms, &sandbox, &containers)?)
        .await
        .map_err(|e| failed(&e))?;
    Ok(cri::PodSandboxStatsResponse { stats: Some(stats) })
}

/// The figures of the ready pods that `filter` takes.
pub async fn pod_sandboxes(rooms: &Rooms, filter: Option<&cri::PodSandboxStatsFilter>) -> Vec<cri::PodSandboxStats> {
    let filter = filter.map(|filter| cri::PodSandboxFilter {
        id: filter.id.clone(),
        label_selector: filter.label_selector.clone(),
        state: None,
    });
    let found = rooms
        .sandboxes
        .list(|sandbox| sandbox.is_ready() && takes_sandbox(filter.as_ref(), sandbox));
    let mut containers = rooms.containers.by_pod();
    let targets = found.iter().filter_map(|sandbox| {
        let of_pod = containers.remove(&sandbox.record.id).unwrap_or_default();
        pod_target(rooms, sandbox, &of_pod).ok()
    });
    let targets = targets.collect();
    rooms.stats.pods(targets).await
}

/// The metrics of the ready pods.
pub async fn metrics(rooms: &Rooms) -> Vec<cri::PodSandboxMetrics> {
    let found = rooms.sandboxes.list(Sandbox::is_ready);
    let mut containers = rooms.containers.by_pod();
    let targets = found.iter().map(|sandbox| {
        let of_pod = containers.remove(&sandbox.record.id).unwrap_or_default();
        pod_metrics_target(rooms, sandbox, &of_pod)
    });
    let targets = targets.collect();
    rooms.stats.metrics(targets).await
}

fn pod_metrics_target(rooms: &Rooms, sandbox: &Sandbox, containers: &[Arc<Container>]) -> PodMetricsTarget {
    let record = &sandbox.record;
    PodMetricsTarget {
        id: record.id.to_string(),
        cgroup: record.cgroup(),
        metadata: record.metadata(),
        network: network_target(sandbox),
        containers: containers
            .iter()
            .filter_map(|container| container_metrics_target(rooms, container))
            .collect(),
    }
}

/// None for a container that has exited, or whose cgroup cannot be named.
fn container_metrics_target(rooms: &Rooms, container: &Container) -> Option<ContainerMetricsTarget> {
    let state = container.state();
    let process = state.process()?;
    let image = container.record.config.image.as_ref();
    Some(ContainerMetricsTarget {
        container: container_target(rooms, container).ok()?,
        image: image.map_or_else(String::new, |image| image.image.clone()),
        pid: Some(process.pid),
        started_at_ns: state.started_at_ns(),
        resources: container.resources(),
    })
}

fn network_target(sandbox: &Sandbox) -> Option<NetworkTarget> {
    let network = sandbox.record.netns.clone().zip(sandbox.status().pause);
    network.map(|(netns, pause)| NetworkTarget { pid: pause.pid, netns })
}

/// Under which ids figures of a pod and of its containers are remembered.
pub fn ids_of_pod(rooms: &Rooms, id: &str) -> Vec<String> {
    let Ok(sandbox) = rooms.sandboxes.find(id) else {
        return Vec::new();
    };
    let containers = rooms.containers.of_pod(&sandbox.record.id);
    let of_containers = containers.iter().map(|container| container.record.id.to_string());
    of_containers.chain([sandbox.record.id.to_string()]).collect()
}

fn has_processes(container: &Container) -> bool {
    !matches!(container.state(), State::Exited { .. })
}

fn container_target(rooms: &Rooms, container: &Container) -> Result<ContainerTarget, Status> {
    let record = &container.record;
    Ok(ContainerTarget {
        id: record.id.to_string(),
        cgroup: open(rooms, &record.cgroup)?,
        writable_layer: Some(rooms.containers.writable_layer(record)),
        attributes: cri::ContainerAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        },
    })
}

fn pod_target(rooms: &Rooms, sandbox: &Sandbox, containers: &[Arc<Container>]) -> Result<PodTarget, Status> {
    let record = &sandbox.record;
    let running = containers.iter().filter(|container| has_processes(container));
    Ok(PodTarget {
        id: record.id.to_string(),
        cgroup: Some(open(rooms, &record.cgroup_parent)?),
        own_cgroup: open(rooms, &record.cgroup())?,
        network: network_target(sandbox),
        containers: running
            .map(|container| container_target(rooms, container))
            .collect::<Result<_, _>>()?,
        attributes: cri::PodSandboxAttributes {
            id: record.id.to_string(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        },
    })
}

fn open(rooms: &Rooms, path: &str) -> Result<Cgroup, Status> {
    Cgroup::open(&rooms.cgroups, path).map_err(|error| Status::internal(error.to_string()))
}
