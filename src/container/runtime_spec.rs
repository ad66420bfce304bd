//! The OCI specification of a container, for who asks for one: described anew, from what is recorded of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::spec::bundle::{Bundle, Part};
use super::spec::{self, BindSource, Input, JoinPaths};
use super::{Container, ContainerError, Containers, cdi, create, external};
use crate::cri;

impl Containers {
    /// What the container is, as the OCI runtime specification would have it: its places are the node's, its limits those last
    /// set. `namespace` tells where one of the pod is, by its name in `/proc/PID/ns`. CDI devices are those that their names stand for now.
    pub async fn runtime_spec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        pod: &cri::PodSandboxConfig,
        namespace: impl Fn(&str) -> String + Send + 'static,
    ) -> Result<Value, ContainerError> {
        let (this, container, pod) = (self.clone(), container.clone(), pod.clone());
        // Devices are looked up on the node once more.
        let devices = container.record.config.devices.iter();
        let paths: Vec<PathBuf> = devices.map(|device| device.host_path.clone().into()).collect();
        let first = paths.first().cloned();
        let described = self.hung.ask(&paths, move |asking| {
            if let Some(first) = &first {
                asking.at(first)?;
            }
            this.describe_again(&container, &pod, &namespace)
        });
        described.await
    }

    fn describe_again(
        &self,
        container: &Container,
        pod: &cri::PodSandboxConfig,
        namespace: &dyn Fn(&str) -> String,
    ) -> Result<Value, ContainerError> {
        let record = &container.record;
        let mut leases = container.leases.iter();
        let image = leases.find(|lease| lease.image().id == record.image_id);
        let image = image.ok_or_else(|| ContainerError::ImageGone {
            image_id: record.image_id.clone(),
        })?;
        let cdi::Edited { config, devices } = cdi::apply(&record.config, &self.parts.cdi_dirs)?;
        let devices = [spec::devices::lookup(&config)?, devices].concat();
        let input = Input {
            sandbox: pod,
            container: &config,
            image: &image.image().config,
            hostname: &create::hostname(pod),
            namespaces: &JoinPaths::descriptors(),
            cgroup_mounts: &self.cgroup_mounts(&record.cgroup),
            external: record.runtime.is_some(),
            devices: &devices,
            host: &self.parts.host,
        };
        let built = spec::again(&input, container.policy()?.clone())?;
        let run_dir = self.parts.store.pod_run_dir(&record.sandbox_id);
        let dir = self.parts.store.container_dir(&record.sandbox_id, &record.id);
        let place = |part: Part<'_>| match part {
            Part::Root => spec::ROOTFS.into(),
            Part::Bind(index) => bound(&built.binds[index].source, &run_dir, &dir),
            Part::Namespace(kind) => namespace(kind).into(),
        };
        let told = |runtime| external::annotations(runtime, pod, record);
        let bundle = Bundle {
            place: &place,
            cgroup: &record.cgroup,
            seccomp: self.seccomp_profile(&built.policy)?,
            annotations: record.runtime.as_ref().map(told).unwrap_or_default(),
            lowest_oom_score_adj: i32::MIN,
        };
        let mut config = bundle.config(&built)?;
        let limits = limits(&container.resources());
        if let (Some(resources), Value::Object(limits)) = (config["linux"]["resources"].as_object_mut(), limits) {
            resources.extend(limits);
        }
        Ok(config)
    }
}

fn bound(source: &BindSource, run_dir: &Path, dir: &Path) -> PathBuf {
    match source {
        BindSource::Host(path) => path.clone(),
        BindSource::Sandbox(file) => run_dir.join(file.name()),
        // Its layers have no place together on the node.
        BindSource::Image { image, sub_path } => Path::new(&image.image).join(sub_path),
        BindSource::Volume(index) => dir.join("volumes").join(index.to_string()),
    }
}

/// `linux.resources` of the OCI runtime specification: the limits that there are.
fn limits(resources: &cri::LinuxContainerResources) -> Value {
    let set = |pairs: &[(&str, Value)]| -> Value {
        let there = pairs
            .iter()
            .filter(|(_, value)| *value != json!(0) && *value != json!(""));
        there.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    };
    let huge = resources.hugepage_limits.iter();
    json!({
        "cpu": set(&[
            ("shares", resources.cpu_shares.into()),
            ("quota", resources.cpu_quota.into()),
            ("period", resources.cpu_period.into()),
            ("cpus", resources.cpuset_cpus.as_str().into()),
            ("mems", resources.cpuset_mems.as_str().into()),
        ]),
        "memory": set(&[
            ("limit", resources.memory_limit_in_bytes.into()),
            ("swap", resources.memory_swap_limit_in_bytes.into()),
        ]),
        "hugepageLimits": huge
            .map(|huge| json!({ "pageSize": huge.page_size, "limit": huge.limit }))
            .collect::<Value>(),
        "unified": resources.unified,
    })
}
