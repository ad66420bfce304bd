//! UpdatePodSandboxResources: what the whole pod may take.
//!
//! A pod below a cgroup that its kubelet names has its limits from the kubelet, which has set them there already; what it
//! says is kept and shown. Where crisp made the pod's cgroup, crisp sets them.

use prost::Message;

use super::{Sandbox, SandboxError, Sandboxes, blocking};
use crate::container::spec;
use crate::cri;
use crate::store::PodStatus;
use crate::sys::cgroup::Cgroup;

impl Sandboxes {
    /// Changes the resources of a ready sandbox. They survive a restart of the daemon.
    pub async fn update_resources(&self, request: cri::UpdatePodSandboxResourcesRequest) -> Result<(), SandboxError> {
        let sandbox = self.find(&request.pod_sandbox_id)?;
        let _ending = sandbox.ending.lock().await;
        // It may have been stopped while we waited.
        self.check_ready(sandbox.record.id.as_str())?;
        let asked = request.resources.clone().unwrap_or_default();
        let total = with_overhead(asked, &request.overhead.clone().unwrap_or_default());
        let mut limits = spec::resources::convert(&total)?;
        if let Some(scope) = sandbox.record.scope.as_ref().filter(|_| owns_cgroup(&sandbox)) {
            self.limit_scope(&sandbox.record, scope, &limits).await?;
        } else if owns_cgroup(&sandbox) {
            // Below what is used now, the kernel would answer a limit by killing.
            limits.memory_check_before_update = true;
            let (cgroups, path) = (self.parts.cgroups.clone(), sandbox.record.cgroup_parent.clone());
            let at = path.clone();
            let applied = blocking(move || Cgroup::open(&cgroups, &at)?.apply(&limits)).await;
            let warnings = applied.map_err(|source| SandboxError::Cgroup {
                op: "set limits",
                path,
                source,
            })?;
            for warning in warnings {
                tracing::warn!(sandbox_id = %sandbox.record.id, %warning, "limit not enforced");
            }
        }
        let status = sandbox.change(|status| status.resources = Some(request.encode_to_vec()));
        self.record_status(&sandbox.record.id, status).await
    }
}

impl Sandbox {
    /// The overhead and the resources of the whole pod: as last updated, or as it was asked for.
    pub fn resources(&self) -> (cri::LinuxContainerResources, cri::LinuxContainerResources) {
        let updated = |status: PodStatus| {
            let bytes = status.resources?;
            cri::UpdatePodSandboxResourcesRequest::decode(bytes.as_slice()).ok()
        };
        let (overhead, resources) = match updated(self.status()) {
            Some(updated) => (updated.overhead, updated.resources),
            None => {
                let linux = self.record.config.linux.clone().unwrap_or_default();
                (linux.overhead, linux.resources)
            }
        };
        (overhead.unwrap_or_default(), resources.unwrap_or_default())
    }
}

/// Whether the cgroup around the pod is one that crisp chose.
fn owns_cgroup(sandbox: &Sandbox) -> bool {
    let linux = sandbox.record.config.linux.as_ref();
    linux.is_none_or(|linux| linux.cgroup_parent.is_empty())
}

/// What the containers may take together, and what the pod takes beside them. No limit and overhead is no limit.
fn with_overhead(
    mut resources: cri::LinuxContainerResources,
    overhead: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    fn add(limit: &mut i64, more: i64) {
        if *limit > 0 && more > 0 {
            *limit = limit.saturating_add(more);
        }
    }
    add(&mut resources.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    add(
        &mut resources.memory_swap_limit_in_bytes,
        overhead.memory_limit_in_bytes,
    );
    add(&mut resources.cpu_shares, overhead.cpu_shares);
    let period = |period: i64| if period > 0 { i128::from(period) } else { 100_000 };
    let scaled = i128::from(overhead.cpu_quota) * period(resources.cpu_period) / period(overhead.cpu_period);
    add(&mut resources.cpu_quota, i64::try_from(scaled).unwrap_or(i64::MAX));
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_added_to_limits_and_not_to_the_lack_of_one() {
        let of = |memory, quota, period| cri::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: period,
            ..Default::default()
        };
        let total = |a: cri::LinuxContainerResources, b: cri::LinuxContainerResources| {
            let sum = with_overhead(a, &b);
            (sum.memory_limit_in_bytes, sum.cpu_quota)
        };
        assert_eq!(total(of(100, 50_000, 100_000), of(20, 10_000, 50_000)), (120, 70_000));
        assert_eq!(total(of(0, -1, 0), of(20, 10_000, 50_000)), (0, -1));
        assert_eq!(total(of(100, 50_000, 0), of(0, 0, 0)), (100, 50_000));
    }
}
