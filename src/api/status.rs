//! Version, Status, RuntimeConfig, and the statuses of a sandbox and a container.

use std::collections::BTreeMap;

use tonic::Status;

use super::Rooms;
use super::error::status as failed;
use super::to_cri;
use crate::container::now_ns;
use crate::cri;
use crate::handler::Handler;
use crate::model::chain;

/// Version (CRI: the runtime's version is a semantic one).
pub fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: "crisp".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

/// RuntimeConfig: the kubelet takes the cgroup driver that crisp has.
pub fn runtime_config(rooms: &Rooms) -> cri::RuntimeConfigResponse {
    let driver = match rooms.sandboxes.uses_systemd() {
        true => cri::CgroupDriver::Systemd,
        false => cri::CgroupDriver::Cgroupfs,
    };
    let linux = cri::LinuxRuntimeConfiguration {
        cgroup_driver: driver.into(),
    };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

/// Status. Waits for nothing but its turn on the thread of the embedded network, where that is in force.
pub async fn status(rooms: &Rooms, verbose: bool) -> cri::StatusResponse {
    let network = rooms.sandboxes.network_status().await;
    let condition = |kind: &str, status, reason: String, message: String| cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason,
        message,
    };
    let (ready, reason, message) = match rooms.sandboxes.check_writable() {
        Ok(()) => (true, "", String::new()),
        Err(error) => (false, "StateNotWritable", chain(&error)),
    };
    let conditions = vec![
        condition("RuntimeReady", ready, reason.to_owned(), message),
        condition("NetworkReady", network.ready, network.reason, network.message),
    ];
    let user_namespaces = rooms.containers.user_namespaces().is_ok();
    let mut info = BTreeMap::new();
    if verbose {
        info.insert("config".to_owned(), rooms.settings.to_string());
        info.insert("cniconfig".to_owned(), rooms.sandboxes.describe_network().to_string());
    }
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info,
        runtime_handlers: rooms
            .handlers
            .list()
            .map(|named| handler(named, user_namespaces))
            .collect(),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces,
            mount_options: true,
        }),
    }
}

fn handler((name, handler): (&str, &Handler), user_namespaces: bool) -> cri::RuntimeHandler {
    cri::RuntimeHandler {
        name: name.to_owned(),
        features: Some(cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.features.recursive_read_only_mounts,
            user_namespaces: handler.features.user_namespaces && user_namespaces,
        }),
    }
}

/// PodSandboxStatus, with its containers as evented kubelets want it.
pub fn pod_sandbox(rooms: &Rooms, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse, Status> {
    let sandbox = rooms.sandboxes.find(id).map_err(|e| failed(&e))?;
    let mut info = BTreeMap::new();
    if verbose {
        let status = sandbox.status();
        let (overhead, resources) = sandbox.resources();
        let told = serde_json::json!({
            "pid": status.pause.map(|pause| pause.pid),
            "monitorPid": status.monitor_pid,
            "netns": sandbox.record.netns,
            "cgroup": sandbox.record.cgroup(),
            "runtimeHandler": sandbox.record.runtime_handler,
            "runtimeSpec": sandbox.runtime_spec(),
            "network": status.attached,
            "overhead": to_cri::resources_json(&overhead),
            "resources": to_cri::resources_json(&resources),
        });
        info.insert("info".to_owned(), told.to_string());
    }
    // Before the look: whatever happens from here on must count as newer.
    let timestamp = now_ns();
    let containers = rooms.containers.of_pod(&sandbox.record.id);
    Ok(cri::PodSandboxStatusResponse {
        status: Some(to_cri::sandbox_status(&sandbox)),
        info,
        containers_statuses: to_cri::container_statuses(&containers),
        timestamp,
    })
}

/// ContainerStatus.
pub async fn container(rooms: &Rooms, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse, Status> {
    let container = rooms.containers.find(id).map_err(|e| failed(&e))?;
    let mut info = BTreeMap::new();
    if verbose {
        let state = container.state();
        let spec = match rooms.sandboxes.find(container.record.sandbox_id.as_str()) {
            Err(error) => Err(chain(&error)),
            Ok(pod) => {
                let (config, pause) = (pod.record.config.clone(), pod.status().pause);
                let namespace = move |name: &str| pod.namespace(name, pause);
                let described = rooms.containers.runtime_spec(&container, &config, namespace).await;
                described.map_err(|error| chain(&error))
            }
        };
        let (spec, lacking) = (spec.as_ref().ok(), spec.as_ref().err());
        let told = serde_json::json!({
            "sandboxID": container.record.sandbox_id,
            "pid": state.process().map(|process| process.pid),
            "cgroup": container.record.cgroup,
            "stopSignal": container.record.stop_signal,
            "runtimeSpec": spec,
            "runtimeSpecError": lacking,
        });
        info.insert("info".to_owned(), told.to_string());
    }
    Ok(cri::ContainerStatusResponse {
        status: Some(to_cri::container_status(&container)),
        info,
    })
}
