//! Figures as metrics: ListMetricDescriptors and ListPodSandboxMetrics, what a kubelet shows at `/metrics/cadvisor`.
//!
//! A pod has the network, a container the rest. What the kernel does not count is described and has no sample.

mod descriptors;
mod disk;
mod processes;
mod samples;

use std::sync::Arc;
use std::time::Instant;

use super::collector::{Collector, WALK_BUDGET, logged};
use super::{ContainerTarget, NetworkTarget, StatsError, network};
use crate::cri;
use disk::{DeviceNames, FileSystem};
use samples::{Samples, interface};

/// A container to read, and what its cgroup does not tell.
#[derive(Clone, Debug)]
pub struct ContainerMetricsTarget {
    pub container: ContainerTarget,
    /// As the request named it.
    pub image: String,
    /// The first process.
    pub pid: Option<i32>,
    /// Nanoseconds since 1970; none if it has not started.
    pub started_at_ns: Option<i64>,
    pub resources: cri::LinuxContainerResources,
}

/// A pod to read.
#[derive(Clone, Debug)]
pub struct PodMetricsTarget {
    /// The sandbox's id.
    pub id: String,
    /// The cgroup of the pause process.
    pub cgroup: String,
    pub metadata: cri::PodSandboxMetadata,
    /// None for a pod in the host's network.
    pub network: Option<NetworkTarget>,
    pub containers: Vec<ContainerMetricsTarget>,
}

/// What there can be.
pub fn metric_descriptors() -> Vec<cri::MetricDescriptor> {
    descriptors::ALL.iter().map(Into::into).collect()
}

/// What a request reads once for all containers.
struct Shared<'a> {
    page_sizes: &'a [String],
    names: DeviceNames,
    file_system: Option<FileSystem>,
    walk_until: Instant,
}

impl Collector {
    /// The metrics of many pods, in the order given. A container that cannot be read is left out.
    pub async fn metrics(self: &Arc<Self>, targets: Vec<PodMetricsTarget>) -> Vec<cri::PodSandboxMetrics> {
        let read = move |this: &Arc<Self>| {
            let mut names = DeviceNames::default();
            let mut shared = Shared {
                page_sizes: &this.page_sizes,
                file_system: names.file_system(this.mountpoint.as_ref()),
                names,
                walk_until: Instant::now() + WALK_BUDGET,
            };
            targets.iter().map(|pod| this.pod_metrics(pod, &mut shared)).collect()
        };
        logged(self.blocking("all metrics".to_owned(), read).await).unwrap_or_default()
    }

    fn pod_metrics(self: &Arc<Self>, pod: &PodMetricsTarget, shared: &mut Shared) -> cri::PodSandboxMetrics {
        let containers = pod.containers.iter();
        let container_metrics = containers
            .filter_map(|container| logged(self.container_metrics(pod, container, shared)).flatten())
            .collect();
        let mut samples = Samples::new([
            &pod.cgroup,
            &pod.id,
            "",
            "POD",
            &pod.metadata.name,
            &pod.metadata.namespace,
        ]);
        let interfaces = pod.network.as_ref().and_then(network::interfaces);
        for found in interfaces.unwrap_or_default() {
            interface(&mut samples, &found);
        }
        cri::PodSandboxMetrics {
            pod_sandbox_id: pod.id.clone(),
            metrics: samples.into_metrics(),
            container_metrics,
        }
    }

    /// None if the container's cgroup is gone.
    fn container_metrics(
        self: &Arc<Self>,
        pod: &PodMetricsTarget,
        target: &ContainerMetricsTarget,
        shared: &mut Shared,
    ) -> Result<Option<cri::ContainerMetrics>, StatsError> {
        let container = &target.container;
        let failed = |source| StatsError::Read {
            id: container.id.clone(),
            source,
        };
        let tracked = self.container_tracked(container);
        let Some(full) = tracked
            .read_full(&container.cgroup, shared.page_sizes)
            .map_err(failed)?
        else {
            return Ok(None);
        };
        let name = container.attributes.metadata.as_ref().map_or("", |m| m.name.as_str());
        let mut samples = Samples::new([
            container.cgroup.path(),
            &container.id,
            &target.image,
            name,
            &pod.metadata.name,
            &pod.metadata.namespace,
        ]);
        samples::cgroup(&mut samples, &full);
        samples::devices(&mut samples, &full.devices, &mut shared.names);
        samples::resources(&mut samples, &target.resources);
        samples::life(&mut samples, target.started_at_ns);
        let pids = container.cgroup.pids().map_err(failed)?;
        samples::processes(&mut samples, &pids, target.pid);
        let layer = tracked.layer.as_ref();
        let used = layer.and_then(|layer| self.read_layer(layer, shared.walk_until));
        samples::file_system(&mut samples, used.as_ref(), shared.file_system.as_ref());
        Ok(Some(cri::ContainerMetrics {
            container_id: container.id.clone(),
            metrics: samples.into_metrics(),
        }))
    }
}
