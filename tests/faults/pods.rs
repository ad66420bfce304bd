//! Pods and containers as requests, and what became of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp::cri;
use serde_json::{Value, json};
use tonic::{Response, Status};

use crate::daemon::{Client, Machine, PATIENCE};
use crate::registry::{Registry, busybox};

/// Counts upwards in its log until it is told to end. No child ever: what is there is always the same.
pub const COUNTER: &str =
    "trap 'exit 0' TERM; mkfifo /tmp/f; exec 3<>/tmp/f; i=0; while :; do echo $i; i=$((i+1)); read -t 0.02 x <&3; done";

/// Does nothing until it is told to end.
pub const IDLER: &str = "trap 'exit 0' TERM; mkfifo /tmp/f; exec 3<>/tmp/f; while :; do read -t 100 x <&3; done";

/// Ends by nothing but KILL.
pub const STUBBORN: &str = "trap '' TERM; while :; do sleep 100; done";

/// What `request` is answered within the time that any request may take.
pub async fn answer<T>(request: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => panic!("no answer within {PATIENCE:?}"),
    }
}

/// As [`answer`], which must be a good one.
pub async fn granted<T>(request: impl Future<Output = Result<Response<T>, Status>>) -> T {
    answer(request)
        .await
        .unwrap_or_else(|status| panic!("{:?}: {}", status.code(), status.message()))
}

/// Waits until `condition` says so.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A running daemon with a registry beside it, and the toolbox image pulled from there.
pub async fn start(machine: &mut Machine) -> Registry {
    let registry = Registry::start();
    machine.start().await;
    let reference = registry.offer("toolbox", &[busybox()], json!({"Env": ["PATH=/bin"]}));
    pull(&machine.client(), &reference).await.expect("an honest registry");
    granted(machine.client().images.image_status(cri::ImageStatusRequest {
        image: Some(cri::ImageSpec {
            image: reference.clone(),
            ..Default::default()
        }),
        verbose: false,
    }))
    .await
    .image
    .expect("just pulled");
    std::fs::write(machine.dir().join("toolbox"), reference).expect("a file");
    registry
}

pub async fn pull(client: &Client, reference: &str) -> Result<String, Status> {
    let image = Some(cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    });
    let request = cri::PullImageRequest {
        image,
        ..Default::default()
    };
    answer(client.images.clone().pull_image(request))
        .await
        .map(|answer| answer.image_ref)
}

/// A pod called `name`, with a host port, labels and a log directory.
pub fn pod(machine: &Machine, name: &str) -> cri::PodSandboxConfig {
    let labels: BTreeMap<_, _> = (0..8).map(|n| (format!("label-{n}"), format!("{n}"))).collect();
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs(machine, name).display().to_string(),
        labels: labels.clone(),
        annotations: labels,
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Container)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        port_mappings: vec![cri::PortMapping {
            container_port: 80,
            host_port: host_port(name),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Everything the pod's, but the pid namespace as given.
pub fn namespaces(pid: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        pid: pid as i32,
        ..Default::default()
    }
}

/// A different port for each name.
fn host_port(name: &str) -> i32 {
    20_000 + name.bytes().fold(0, |sum, byte| (sum * 31 + i32::from(byte)) % 10_000)
}

/// Where the logs of the pod `name` go.
pub fn logs(machine: &Machine, name: &str) -> PathBuf {
    machine.dir().join("logs").join(name)
}

/// A container called `name` that runs `script` by the shell and logs to `<name>.log`.
pub fn container(machine: &Machine, name: &str, script: &str) -> cri::ContainerConfig {
    let image = std::fs::read_to_string(machine.dir().join("toolbox")).expect("the toolbox was pulled");
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image,
            ..Default::default()
        }),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        labels: (0..8).map(|n| (format!("label-{n}"), format!("{n}"))).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Container)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Client {
    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: crate::handlers::handler(),
        };
        answer(self.runtime.clone().run_pod_sandbox(request))
            .await
            .map(|answer| answer.pod_sandbox_id)
    }

    pub async fn create(&self, pod: &str, config: &cri::ContainerConfig) -> Result<String, Status> {
        let pod_sandbox_id = pod.to_owned();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id,
            config: Some(config.clone()),
            sandbox_config: None,
        };
        answer(self.runtime.clone().create_container(request))
            .await
            .map(|answer| answer.container_id)
    }

    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        answer(self.runtime.clone().start_container(request)).await.map(drop)
    }

    /// Creates and starts.
    pub async fn launch(&self, pod: &str, config: &cri::ContainerConfig) -> String {
        let id = self.create(pod, config).await.expect("CreateContainer");
        self.start(&id).await.expect("StartContainer");
        id
    }

    pub async fn stop(&self, id: &str, grace_s: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace_s,
        };
        answer(self.runtime.clone().stop_container(request)).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        answer(self.runtime.clone().remove_container(request)).await.map(drop)
    }

    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        answer(self.runtime.clone().stop_pod_sandbox(request)).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        answer(self.runtime.clone().remove_pod_sandbox(request)).await.map(drop)
    }

    pub async fn exec(&self, id: &str, script: &str, timeout_s: i64) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout: timeout_s,
        };
        answer(self.runtime.clone().exec_sync(request)).await
    }

    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        answer(self.runtime.clone().reopen_container_log(request))
            .await
            .map(drop)
    }

    pub async fn status(&self, id: &str) -> cri::ContainerStatus {
        self.verbose_status(id).await.status.expect("a status")
    }

    async fn verbose_status(&self, id: &str) -> cri::ContainerStatusResponse {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        granted(self.runtime.clone().container_status(request)).await
    }

    /// Waits until the container has exited.
    pub async fn exited(&self, id: &str) -> cri::ContainerStatus {
        until("the container exits", async || {
            self.status(id).await.state() == cri::ContainerState::ContainerExited
        })
        .await;
        self.status(id).await
    }

    /// The pid of the container's first process.
    pub async fn container_pid(&self, id: &str) -> i32 {
        number(&self.verbose_status(id).await.info["info"], "pid")
    }

    /// The pids of the pod's monitor and pause.
    pub async fn pod_pids(&self, id: &str) -> (i32, i32) {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let info = granted(self.runtime.clone().pod_sandbox_status(request)).await.info["info"].clone();
        (number(&info, "monitorPid"), number(&info, "pid"))
    }

    pub async fn pod_status(&self, id: &str) -> cri::PodSandboxStatus {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        granted(self.runtime.clone().pod_sandbox_status(request))
            .await
            .status
            .expect("a status")
    }

    pub async fn is_ready(&self, id: &str) -> bool {
        self.pod_status(id).await.state() == cri::PodSandboxState::SandboxReady
    }

    /// The ids of all pods.
    pub async fn pods(&self) -> Vec<String> {
        let listed = granted(
            self.runtime
                .clone()
                .list_pod_sandbox(cri::ListPodSandboxRequest::default()),
        )
        .await;
        listed.items.into_iter().map(|pod| pod.id).collect()
    }

    /// The ids of all containers.
    pub async fn containers(&self) -> Vec<String> {
        let listed = granted(
            self.runtime
                .clone()
                .list_containers(cri::ListContainersRequest::default()),
        )
        .await;
        listed.containers.into_iter().map(|container| container.id).collect()
    }

    /// Stops and removes a pod.
    pub async fn end_pod(&self, id: &str) {
        self.stop_pod(id).await.expect("StopPodSandbox");
        self.remove_pod(id).await.expect("RemovePodSandbox");
    }

    /// A pod comes and goes: what stays for good is there afterwards.
    pub async fn warm_up(&self, machine: &Machine) {
        let pod_id = self.run_pod(&pod(machine, "warm-up")).await.expect("RunPodSandbox");
        let id = self.launch(&pod_id, &container(machine, "warm-up", IDLER)).await;
        self.exec(&id, "true", 5).await.expect("ExecSync");
        self.end_pod(&pod_id).await;
    }
}

fn number(info: &str, key: &str) -> i32 {
    let info: Value = serde_json::from_str(info).expect("JSON");
    i32::try_from(info[key].as_i64().unwrap_or_else(|| panic!("no {key} in {info}"))).expect("a pid")
}

/// The lines of a log in CRI format: what the container wrote, whole lines only.
pub fn log_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let contents = text.lines().map(|line| line.splitn(4, ' ').collect::<Vec<_>>());
    contents
        .map(|fields| {
            assert!(
                fields.len() == 4 && ["stdout", "stderr"].contains(&fields[1]) && fields[2] == "F",
                "{fields:?}"
            );
            fields[3].to_owned()
        })
        .collect()
}

/// Fails unless the lines are the numbers from 0 upwards, each once and in order. Returns how many.
pub fn counted(lines: &[String]) -> usize {
    for (expected, line) in lines.iter().enumerate() {
        assert_eq!(line, &expected.to_string(), "a gap or a double in the log");
    }
    lines.len()
}
