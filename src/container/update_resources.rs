//! UpdateContainerResources: in every state; what is set stays set over restarts of the daemon.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;

use super::{Container, ContainerError, Containers, State, blocking, spec};
use crate::cri;
use crate::store::ContainerPhase;
use crate::sys::cgroup::Cgroup;

impl Containers {
    /// Changes the limits of a container's cgroup. Fields that are unset keep their value. An exited container has
    /// no limits to change: that is an error.
    pub async fn update_resources(
        self: &Arc<Self>,
        id: &str,
        update: cri::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let this = self.clone();
        // A caller that goes away must not leave limits that are set and not known.
        let updated = tokio::spawn(async move {
            let _updating = container.updating.lock().await;
            this.update_found(&container, &update).await
        });
        updated.await.unwrap_or(Err(ContainerError::Lost))
    }

    async fn update_found(
        &self,
        container: &Container,
        update: &cri::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let state = container.state();
        if let State::Exited { .. } = state {
            return Err(ContainerError::WrongState {
                container_id: container.record.id.clone(),
                state: state.name(),
                needed: "created or running",
            });
        }
        let now = container.resources();
        let asked = with_both_memory_limits(update, &now);
        let mut resources = spec::resources::convert(&asked)?;
        let merged = merge(now, &asked);
        let adjustment = spec::process::oom_score_adj(Some(update))?;
        // Below what is used now, the kernel would answer a limit by killing.
        resources.memory_check_before_update = true;
        let (cgroups, path) = (self.parts.cgroups.clone(), container.record.cgroup.clone());
        let applied = blocking(move || {
            let cgroup = Cgroup::open(&cgroups, &path)?;
            let warnings = cgroup.apply(&resources)?;
            if adjustment != 0 {
                adjust_oom_scores(&cgroup, adjustment)?;
            }
            io::Result::Ok(warnings)
        });
        let applied = applied.await;
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
        self.record_status(container, phase).await;
        Ok(())
    }
}

/// `update` with the other of the two memory limits, if it says only one: they hold together, or not at all. A memory limit above
/// what memory and swap together may have raises that too, as there is no other way to keep to it.
fn with_both_memory_limits(
    update: &cri::LinuxContainerResources,
    now: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let mut asked = update.clone();
    let swap = now.memory_swap_limit_in_bytes;
    match (update.memory_limit_in_bytes, update.memory_swap_limit_in_bytes) {
        (0, 0) => {}
        (_, 0) if swap <= 0 => asked.memory_swap_limit_in_bytes = swap,
        (memory, 0) if memory < 0 => asked.memory_swap_limit_in_bytes = memory,
        (memory, 0) => asked.memory_swap_limit_in_bytes = swap.max(memory),
        (0, _) => asked.memory_limit_in_bytes = now.memory_limit_in_bytes,
        _ => {}
    }
    asked
}

/// Adjusts all processes of the container: what they start from then on has it from them. A node that does not allow to lower it (no
/// CAP_SYS_RESOURCE) keeps what there is, as at a start.
fn adjust_oom_scores(cgroup: &Cgroup, adjustment: i32) -> io::Result<()> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH);
    let open = |pid| {
        let path = format!("/proc/{pid}/oom_score_adj");
        (pid, OpenOptions::new().write(true).open(path))
    };
    let opened: Vec<_> = cgroup.pids()?.into_iter().map(open).collect();
    // What is open is that process's; whose number has gone to another one meanwhile is not here any more.
    let still = cgroup.pids()?;
    for (_, file) in opened.into_iter().filter(|(pid, _)| still.contains(pid)) {
        match file.and_then(|mut file| file.write_all(adjustment.to_string().as_bytes())) {
            Err(error) if gone(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(
                    adjustment,
                    cgroup = cgroup.path(),
                    "oom_score_adj cannot be lowered here"
                );
                break;
            }
            other => other?,
        }
    }
    Ok(())
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
    fn a_memory_limit_alone_leaves_the_room_for_swap() {
        let limits = |memory, swap| cri::LinuxContainerResources {
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        };
        for (now, update, expected) in [
            ((64, 96), (80, 0), (80, 96)),
            ((64, 96), (0, 128), (64, 128)),
            ((64, 96), (32, 48), (32, 48)),
            ((64, 96), (0, 0), (0, 0)),
            ((64, 0), (80, 0), (80, 0)),
            ((64, 64), (80, 0), (80, 80)),
            ((64, 64), (-1, 0), (-1, -1)),
            ((64, -1), (80, 0), (80, -1)),
        ] {
            let asked = with_both_memory_limits(&limits(update.0, update.1), &limits(now.0, now.1));
            assert_eq!(asked, limits(expected.0, expected.1), "{now:?} {update:?}");
        }
    }

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
