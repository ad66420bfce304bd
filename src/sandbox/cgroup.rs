//! The pod's place among the cgroups: directories of crisp's own making, or a scope of systemd's.
//!
//! ```text
//! cgroupfs   <cgroup_parent>/<sandbox id>                  pause; the monitor is where the daemon is
//!            <cgroup_parent>/<container id>
//! systemd    <slices>/crisp-<sandbox id>.scope/monitor
//!            <slices>/crisp-<sandbox id>.scope/<sandbox id>
//!            <slices>/crisp-<sandbox id>.scope/<container id>
//! ```
//! A scope cannot be made empty, and pause is to be born in it: so its first process is the monitor, which stays in it.
//! It has a cgroup of its own there, because a cgroup that gives controllers to those below it may hold no process.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Sandbox, SandboxError, Sandboxes, blocking};
use crate::cri;
use crate::fault;
use crate::model::SandboxId;
use crate::store::{PodRecord, Scope};
use crate::sys::cgroup::{Cgroup, Hierarchy, JoinFds, Resources, weight_of_shares};
use crate::systemd::{self, Slice, Systemd};

/// The monitor's cgroup in a scope.
const MONITOR: &str = "monitor";

/// How long systemd may take to see that a scope is empty, before it is told to stop it; doubled at each look.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(128);

/// Who makes the cgroups of pods.
pub enum CgroupDriver {
    Cgroupfs,
    Systemd(Systemd),
}

/// Where a pod will be.
pub(super) struct Place {
    /// As in [`PodRecord`].
    pub parent: String,
    pub made_below: Option<String>,
    pub scope: Option<Scope>,
}

/// The parent that a request names; empty if it names none.
pub(super) fn asked_parent(config: &cri::PodSandboxConfig) -> &str {
    config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
}

/// Refuses a parent that the driver cannot have.
pub(super) fn validate_parent(parent: &str, driver: &CgroupDriver) -> Result<(), SandboxError> {
    let invalid = |what| Err(SandboxError::Invalid { what });
    match driver {
        _ if parent.is_empty() => Ok(()),
        CgroupDriver::Systemd(_) => match Slice::parse(parent) {
            Ok(_) => Ok(()),
            Err(why) => invalid(format!("cgroup_parent {why}")),
        },
        CgroupDriver::Cgroupfs if !parent.starts_with('/') || parent.split('/').any(|part| part == "..") => {
            invalid(format!(
                "cgroup_parent {parent:?} is not an absolute path: the cgroup driver is cgroupfs, set the kubelet's to it"
            ))
        }
        CgroupDriver::Cgroupfs => Ok(()),
    }
}

impl Sandboxes {
    /// Whether systemd is the cgroup driver.
    pub fn uses_systemd(&self) -> bool {
        matches!(self.parts.cgroup_driver, CgroupDriver::Systemd(_))
    }

    pub(super) fn place(&self, id: &SandboxId, config: &cri::PodSandboxConfig) -> Result<Place, SandboxError> {
        let asked = asked_parent(config);
        if self.uses_systemd() {
            let slice = if asked.is_empty() {
                &self.parts.cgroup_parent
            } else {
                asked
            };
            let slice = Slice::parse(slice).map_err(|why| SandboxError::Invalid { what: why.to_string() })?;
            let unit = format!("crisp-{id}.scope");
            return Ok(Place {
                parent: format!("{}/{unit}", slice.cgroup()),
                made_below: None,
                scope: Some(Scope {
                    unit,
                    slice: slice.name().to_owned(),
                }),
            });
        }
        let (parent, made_below) = match asked.trim_end_matches('/') {
            // crisp's own parent comes and goes with the pods in it, somebody else's is theirs.
            "" => (format!("{}/{id}", self.parts.cgroup_parent), Some("/".to_owned())),
            parent => (parent.to_owned(), self.made_below(parent)?),
        };
        Ok(Place {
            parent,
            made_below,
            scope: None,
        })
    }

    /// The nearest cgroup above `parent` that was there before the first pod in it; none if `parent` itself was.
    fn made_below(&self, parent: &str) -> Result<Option<String>, SandboxError> {
        // Pods that share a parent share whose it is: the last of them takes it along.
        match self.list(|other| other.record.cgroup_parent == parent).first() {
            Some(other) => Ok(other.record.cgroup_made_below.clone()),
            None => made_below(&self.parts.cgroups, parent).map_err(|source| SandboxError::Cgroup {
                op: "look for",
                path: parent.to_owned(),
                source,
            }),
        }
    }

    /// Makes the cgroup of pause. `monitor` gives the pid of the pod's monitor once it runs; without one there is
    /// nothing to be made.
    pub(super) async fn make_cgroup(
        &self,
        record: &PodRecord,
        monitor: oneshot::Receiver<i32>,
    ) -> Result<JoinFds, SandboxError> {
        let mut first = None;
        if let (Some(scope), CgroupDriver::Systemd(systemd)) = (&record.scope, &self.parts.cgroup_driver) {
            let pid = monitor.await.map_err(|_| SandboxError::Lost)?;
            start_scope(systemd, record, scope, pid).await?;
            fault::point("run: scope made").await?;
            first = Some(pid);
        }
        let (cgroups, parent, path) = (
            self.parts.cgroups.clone(),
            record.cgroup_parent.clone(),
            record.cgroup(),
        );
        blocking(move || {
            let failed = |op| {
                let path = path.clone();
                move |source| SandboxError::Cgroup { op, path, source }
            };
            if let Some(pid) = first {
                let room = Cgroup::open(&cgroups, &parent).and_then(|scope| scope.child(MONITOR));
                room.and_then(|room| room.add(pid))
                    .map_err(failed("put the monitor beside"))?;
            }
            let cgroup = Cgroup::create_bare(&cgroups, &path).map_err(failed("create"))?;
            fault::blocking_point("run: cgroup made")?;
            cgroup.bare_join_fds().map_err(failed("open"))
        })
        .await
    }

    /// Undoes [`Sandboxes::make_cgroup`], however far it came.
    pub(super) async fn unmake_cgroup(&self, record: &PodRecord) -> Result<(), SandboxError> {
        self.remove_pause_cgroup(record).await?;
        self.end_scope(record).await?;
        self.remove_cgroup_parent(record).await
    }

    /// Kills what is left in the sandbox's own cgroup, and removes it.
    pub(super) async fn remove_cgroup(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        self.remove_pause_cgroup(&sandbox.record).await
    }

    async fn remove_pause_cgroup(&self, record: &PodRecord) -> Result<(), SandboxError> {
        let (cgroups, path) = (self.parts.cgroups.clone(), record.cgroup());
        let at = path.clone();
        let removed = blocking(move || {
            let cgroup = Cgroup::open(&cgroups, &at)?;
            cgroup.kill()?;
            cgroup.remove()
        });
        match removed.await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(SandboxError::Cgroup {
                op: "remove",
                path,
                source: error,
            }),
            _ => Ok(()),
        }
    }

    /// Ends whatever is left in the pod's scope and returns when systemd has removed it. Fine if there is none.
    pub(super) async fn end_scope(&self, record: &PodRecord) -> Result<(), SandboxError> {
        let Some(scope) = &record.scope else { return Ok(()) };
        let (cgroups, path) = (self.parts.cgroups.clone(), record.cgroup_parent.clone());
        let failed = |source| SandboxError::Cgroup {
            op: "empty",
            path: path.clone(),
            source,
        };
        let cgroup = Cgroup::open(&cgroups, &path).map_err(failed)?;
        let emptied = cgroup.clone();
        blocking(move || emptied.kill()).await.map_err(failed)?;
        let mut pause = FIRST_LOOK;
        while cgroup.exists() {
            if pause > LAST_LOOK {
                return self.stop_scope(record, scope).await;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    async fn stop_scope(&self, record: &PodRecord, scope: &Scope) -> Result<(), SandboxError> {
        let failed = |source| SandboxError::Systemd {
            sandbox_id: record.id.clone(),
            source,
        };
        match &self.parts.cgroup_driver {
            CgroupDriver::Systemd(systemd) => systemd.stop(&scope.unit).await.map_err(failed),
            // The driver was another when the pod was made.
            CgroupDriver::Cgroupfs => Systemd::find().map_err(failed)?.stop(&scope.unit).await.map_err(failed),
        }
    }

    /// Has systemd set the limits of the pod's scope.
    pub(super) async fn limit_scope(
        &self,
        record: &PodRecord,
        scope: &Scope,
        limits: &Resources,
    ) -> Result<(), SandboxError> {
        let (cgroups, path) = (self.parts.cgroups.clone(), record.cgroup_parent.clone());
        let at = path.clone();
        let used = blocking(move || Cgroup::open(&cgroups, &at)?.stats());
        let used = used.await.map_err(|source| SandboxError::Cgroup {
            op: "read",
            path: path.clone(),
            source,
        })?;
        let used = used.memory.map_or(0, |memory| memory.usage_bytes);
        let limits = unit_limits(limits, used).map_err(|what| SandboxError::Invalid {
            what: format!("resources of pod sandbox {}: {what}", record.id),
        })?;
        let failed = |source| SandboxError::Systemd {
            sandbox_id: record.id.clone(),
            source,
        };
        match &self.parts.cgroup_driver {
            CgroupDriver::Systemd(systemd) => systemd.limit(&scope.unit, &limits).await.map_err(failed),
            CgroupDriver::Cgroupfs => {
                let systemd = Systemd::find().map_err(failed)?;
                systemd.limit(&scope.unit, &limits).await.map_err(failed)
            }
        }
    }

    /// Removes the pod's cgroup parent if crisp made it and nothing is left in it.
    pub(super) async fn remove_cgroup_parent(&self, record: &PodRecord) -> Result<(), SandboxError> {
        let Some(until) = record.cgroup_made_below.clone() else {
            return Ok(());
        };
        let (cgroups, path) = (self.parts.cgroups.clone(), record.cgroup());
        let at = path.clone();
        blocking(move || Cgroup::open(&cgroups, &at)?.remove_empty_parents(&until))
            .await
            .map_err(|source| SandboxError::Cgroup {
                op: "remove the parents of",
                path,
                source,
            })
    }
}

async fn start_scope(systemd: &Systemd, record: &PodRecord, scope: &Scope, pid: i32) -> Result<(), SandboxError> {
    let slice = Slice::parse(&scope.slice).map_err(|why| SandboxError::Invalid { what: why.to_string() })?;
    let metadata = record.metadata();
    let asked = systemd::Scope {
        unit: &scope.unit,
        slice: &slice,
        description: &format!("pod {}/{}", metadata.namespace, metadata.name),
        pid: pid.unsigned_abs(),
    };
    let started = systemd.start_scope(asked).await;
    started.map_err(|source| SandboxError::Systemd {
        sandbox_id: record.id.clone(),
        source,
    })
}

/// `asked` as systemd takes it for a pod that uses `used` bytes of memory now.
fn unit_limits(asked: &Resources, used: u64) -> Result<systemd::Limits, String> {
    if asked.cpuset_cpus.is_some() || asked.cpuset_mems.is_some() || !asked.hugepages.is_empty() {
        return Err("with the driver systemd only CPU time and memory of a whole pod can be changed".to_owned());
    }
    if let Some(limit) = asked
        .memory_limit_bytes
        .filter(|limit| *limit >= 0 && limit.unsigned_abs() < used)
    {
        // The kernel would answer it by killing.
        return Err(format!("memory limit {limit} is below the {used} bytes in use"));
    }
    let swap = match (asked.memory_limit_bytes, asked.memory_swap_limit_bytes) {
        (_, Some(total)) if total < 0 => Some(-1),
        (Some(limit), Some(total)) if limit >= 0 && total >= limit => Some(total - limit),
        (_, Some(total)) => return Err(format!("memory and swap limit {total} without a lower memory limit")),
        (_, None) => None,
    };
    Ok(systemd::Limits {
        cpu_weight: asked.cpu_shares.map(weight_of_shares),
        cpu_quota_us: asked.cpu_quota_us,
        cpu_period_us: asked.cpu_period_us,
        memory_bytes: asked.memory_limit_bytes,
        swap_bytes: swap,
    })
}

/// The nearest cgroup above `parent` that exists; none if `parent` itself does.
fn made_below(cgroups: &Arc<Hierarchy>, parent: &str) -> std::io::Result<Option<String>> {
    let mut at = Cgroup::open(cgroups, parent)?;
    if at.exists() {
        return Ok(None);
    }
    while let Some(above) = at.parent() {
        if above.exists() {
            return Ok(Some(above.path().to_owned()));
        }
        at = above;
    }
    Ok(Some("/".to_owned()))
}
