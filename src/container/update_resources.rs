//! UpdateContainerResources: in every state; what is set stays set over restarts of the daemon.

use super::{ContainerError, Containers, State, blocking, spec};
use crate::cri;
use crate::store::ContainerPhase;
use crate::sys::cgroup::Cgroup;

impl Containers {
    /// Changes the limits of a container's cgroup. Fields that are unset keep their value. An exited container has
    /// no limits to change: that is an error.
    pub async fn update_resources(
        &self,
        id: &str,
        update: &cri::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let state = container.state();
        if let State::Exited { .. } = state {
            return Err(ContainerError::WrongState {
                container_id: container.record.id.clone(),
                state: state.name(),
                needed: "created or running",
            });
        }
        let merged = merge(container.resources(), update);
        let mut resources = spec::resources::convert(update)?;
        // Below what is used now, the kernel would answer a limit by killing.
        resources.memory_check_before_update = true;
        let (cgroups, path) = (self.parts.cgroups.clone(), container.record.cgroup.clone());
        let applied = blocking(move || Cgroup::open(&cgroups, &path)?.apply(&resources)).await;
        let warnings = applied.map_err(|source| ContainerError::Cgroup {
            op: "set limits",
            path: container.record.cgroup.clone(),
            source,
        })?;
        for warning in warnings {
            tracing::warn!(container_id = %container.record.id, %warning, "limit not enforced");
        }
        *container.resources.lock().expect("no panic holds it") = merged;
        let phase = match container.state() {
            State::Created { .. } => ContainerPhase::Created,
            State::Running { .. } => ContainerPhase::Running,
            State::Exited { .. } => ContainerPhase::Exited,
        };
        self.record_status(&container, phase).await;
        Ok(())
    }
}

/// The resources after `update`: zero and empty mean "as it was" (CRI).
fn merge(mut now: cri::LinuxContainerResources, update: &cri::LinuxContainerResources) -> cri::LinuxContainerResources {
    fn number(now: &mut i64, update: i64) {
        if update != 0 {
            *now = update;
        }
    }
    fn text(now: &mut String, update: &str) {
        if !update.is_empty() {
            *now = update.to_owned();
        }
    }
    number(&mut now.cpu_period, update.cpu_period);
    number(&mut now.cpu_quota, update.cpu_quota);
    number(&mut now.cpu_shares, update.cpu_shares);
    number(&mut now.memory_limit_in_bytes, update.memory_limit_in_bytes);
    number(&mut now.oom_score_adj, update.oom_score_adj);
    number(&mut now.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes);
    text(&mut now.cpuset_cpus, &update.cpuset_cpus);
    text(&mut now.cpuset_mems, &update.cpuset_mems);
    for limit in &update.hugepage_limits {
        now.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        now.hugepage_limits.push(limit.clone());
    }
    now.unified
        .extend(update.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_fields_keep_their_value() {
        let now = cri::LinuxContainerResources {
            cpu_shares: 100,
            cpuset_cpus: "0".into(),
            ..Default::default()
        };
        let update = cri::LinuxContainerResources {
            cpu_shares: 200,
            cpu_quota: -1,
            ..Default::default()
        };
        let after = merge(now, &update);
        assert_eq!(
            (after.cpu_shares, after.cpu_quota, after.cpuset_cpus.as_str()),
            (200, -1, "0")
        );
    }
}
