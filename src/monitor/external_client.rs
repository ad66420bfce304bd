//! What the daemon asks of a monitor for containers of external OCI runtimes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::client::{Client, ContainerFds, ContainerSpec, ExecFds, ExecSpec, MonitorError, RunningExec};
use super::link::Load;
use super::protocol::{ExternalExec, Process, Role, Runtime, StartContainer};
use crate::model::ContainerId;

/// One run of an external runtime.
#[derive(Debug)]
pub struct ExternalRun {
    runtime: Runtime,
    host_mounts: OwnedFd,
}

impl ExternalRun {
    /// A run of `runtime` in a copy of this process's mount namespace.
    pub fn new(runtime: Runtime) -> io::Result<Self> {
        let host_mounts = File::open("/proc/self/ns/mnt")?.into();
        Ok(Self { runtime, host_mounts })
    }

    fn split(self) -> (Runtime, Load) {
        let mut load = Load::default();
        load.add(Role::HostMounts, [self.host_mounts]);
        (self.runtime, load)
    }
}

impl Client {
    /// As [`Client::create_container`], by an external runtime; `spec` has all that the runtime is told.
    pub async fn create_external(
        &self,
        run: ExternalRun,
        spec: ContainerSpec,
        fds: ContainerFds,
    ) -> Result<Process, MonitorError> {
        let (runtime, load) = run.split();
        let runtime = Some(runtime);
        self.create(ContainerSpec { runtime, ..spec }, fds, load).await
    }

    /// As [`Client::start`], of a container that an external runtime made.
    pub async fn start_external(&self, run: ExternalRun, container_id: &ContainerId) -> Result<(), MonitorError> {
        let (runtime, load) = run.split();
        let call = StartContainer {
            container_id: container_id.to_string(),
            runtime: Some(runtime),
        };
        self.start_with(call, load).await
    }

    /// As [`Client::exec`], in a container that an external runtime made: `process` as JSON; `cgroup` is the one below the
    /// container's that the runtime shall move it to, if not where it is born.
    pub async fn exec_external(
        &self,
        run: ExternalRun,
        spec: ExecSpec,
        process: Vec<u8>,
        cgroup: Option<String>,
        fds: ExecFds,
    ) -> Result<RunningExec, MonitorError> {
        let (runtime, load) = run.split();
        let external = ExternalExec {
            runtime,
            process,
            cgroup,
        };
        self.exec_with(spec, fds, Some(external), load).await
    }
}
