//! Containers that external OCI runtimes make: what the monitor and the runtime are told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::LinuxSeccomp;

use super::spec::bundle::{self, Bundle};
use super::spec::{Built, Policy};
use super::{ContainerError, Containers, Pod, blocking};
use crate::cri;
use crate::handler::{DeleteError, delete};
use crate::model::{OciRuntime, chain};
use crate::monitor::client::{ContainerFds, ContainerSpec, ExternalRun, MonitorError};
use crate::monitor::protocol::{self, Process};
use crate::store::ContainerRecord;
use crate::undo::Undo;

impl Containers {
    /// The runtime for a container in `pod`; none: libcontainer. An image may be pulled for a handler, too (KEP-4216).
    pub(super) fn runtime_for(
        &self,
        pod: &Pod,
        config: &cri::ContainerConfig,
    ) -> Result<Option<OciRuntime>, ContainerError> {
        if let Some(image) = &config.image {
            self.parts.handlers.find(&image.runtime_handler)?;
        }
        Ok(self.parts.handlers.find(&pod.record.runtime_handler)?.runtime.clone())
    }

    /// Refuses what the pod's handler cannot do.
    pub(super) fn check_features(&self, pod: &Pod, built: &Built) -> Result<(), ContainerError> {
        let name = &pod.record.runtime_handler;
        let features = self.parts.handlers.find(name)?.features;
        let unfit = |bind: &&super::spec::Bind| bind.recursive_read_only && !features.recursive_read_only_mounts;
        match built.binds.iter().find(unfit) {
            None => Ok(()),
            Some(bind) => Err(ContainerError::Invalid {
                what: format!(
                    "mount at {}: runtime handler {name:?} does not support recursive read-only mounts",
                    bind.destination.display()
                ),
            }),
        }
    }

    /// How `runtime` is run for the container of `record`.
    pub(super) fn external_run(
        &self,
        runtime: &OciRuntime,
        record: &ContainerRecord,
    ) -> Result<ExternalRun, ContainerError> {
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let store = &self.parts.store;
        let mut options: Vec<Vec<u8>> = runtime
            .options
            .iter()
            .map(|option| option.clone().into_bytes())
            .collect();
        options.extend([b"--root".to_vec(), bytes(&store.runtime_state_dir(&record.sandbox_id))]);
        let run = ExternalRun::new(protocol::Runtime {
            program: bytes(&runtime.path),
            options,
            bundle: bytes(&store.bundle_dir(&record.sandbox_id, &record.id)),
            hidden: self.parts.handlers.hidden.iter().map(|path| bytes(path)).collect(),
        });
        run.map_err(ContainerError::path("open", "/proc/self/ns/mnt"))
    }

    /// Has `runtime` make the process of a container.
    pub(super) async fn create_external(
        self: &Arc<Self>,
        runtime: &OciRuntime,
        (record, built): (&ContainerRecord, &Built),
        pod: &Pod,
        (mut request, mut fds): (ContainerSpec, ContainerFds),
        undo: &mut Undo,
    ) -> Result<Result<Process, MonitorError>, ContainerError> {
        let this = self.clone();
        let (at, what) = (record.clone(), built.clone());
        let annotations = annotations(runtime, &pod.record.config, record);
        undo.push("container of the runtime", {
            let (this, record) = (self.clone(), record.clone());
            move || async move { this.delete_external(&record).await.map_err(|error| chain(&error)) }
        });
        request.spec = blocking(move || this.external_config(&at, &what, annotations)).await?;
        // The runtime does what a policy says for libcontainer's.
        request.policy = Some(protocol::Policy::default());
        if self.parts.cgroups.is_v2() {
            // The runtime moves what it makes there, and wants to find the cgroup empty.
            fds.cgroup_dir = None;
        }
        let run = self.external_run(runtime, record)?;
        Ok(pod.monitor.create_external(run, request, fds).await)
    }

    /// The contents of the bundle, whose directory is made. Blocks.
    pub(super) fn external_config(
        &self,
        record: &ContainerRecord,
        built: &Built,
        annotations: BTreeMap<String, String>,
    ) -> Result<Vec<u8>, ContainerError> {
        let dir: PathBuf = self.parts.store.make_bundle(&record.sandbox_id, &record.id)?;
        let bundle = Bundle {
            place: &|part| bundle::staged(&dir, part),
            cgroup: &record.cgroup,
            seccomp: self.seccomp_profile(&built.policy)?,
            annotations,
            lowest_oom_score_adj: self.lowest_oom_score_adj()?,
        };
        Ok(bundle.config(built)?.to_string().into_bytes())
    }

    pub(super) fn seccomp_profile(&self, policy: &Policy) -> Result<Option<LinuxSeccomp>, ContainerError> {
        let source = policy.seccomp.as_ref();
        let profile = |source| self.parts.seccomp.profile(source, policy.capabilities.bounding);
        Ok(source.map(profile).transpose()?)
    }

    /// Another process in a container, as the runtime takes it.
    pub(super) fn external_process(&self, policy: &Policy) -> Result<Vec<u8>, ContainerError> {
        let process = bundle::process(policy, self.lowest_oom_score_adj()?)?;
        Ok(process.to_string().into_bytes())
    }

    /// A runtime fails where oom_score_adj cannot be lowered, which takes CAP_SYS_RESOURCE.
    fn lowest_oom_score_adj(&self) -> Result<i32, ContainerError> {
        const PATH: &str = "/proc/self/oom_score_adj";
        if self.parts.host.bounding & super::spec::security::SYS_RESOURCE != 0 {
            return Ok(-1000);
        }
        let text = fs::read_to_string(PATH).map_err(ContainerError::path("read", PATH))?;
        Ok(text.trim().parse().unwrap_or(0))
    }

    /// Has the runtime that made a container forget it; its processes are gone. Without one there is nothing to do.
    pub(super) async fn delete_external(&self, record: &ContainerRecord) -> Result<(), DeleteError> {
        let Some(runtime) = &record.runtime else { return Ok(()) };
        let state = self.parts.store.runtime_state_dir(&record.sandbox_id);
        delete(runtime, &state, &self.parts.handlers.hidden, &record.id).await
    }
}

/// The annotations of the pod, and over them the container's, that `runtime` is to be told.
pub(super) fn annotations(
    runtime: &OciRuntime,
    pod: &cri::PodSandboxConfig,
    record: &ContainerRecord,
) -> BTreeMap<String, String> {
    let all = [&pod.annotations, &record.config.annotations];
    let told = all.into_iter().flatten().filter(|(name, _)| runtime.is_told(name));
    told.map(|(name, value)| (name.clone(), value.clone())).collect()
}
