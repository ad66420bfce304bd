//! The cgroups of commands: what a command started can be killed by them, whatever it forked.
//!
//! ```text
//! <cgroup_parent>/<container id>/exec-<n>                 the command, born there
//! <cgroup_parent>/<sandbox id>/exec-<n>-<container id>    on cgroup v2, the external runtime that starts it
//! ```
//! An external runtime is no guest of the container's: its threads and its memory would count in the container's limits, and
//! an exec probe could have the container killed for want of memory. On v1 limits are in other hierarchies than the one
//! with the command's cgroup, so it begins there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::{blocking, now_ns};
use crate::store::ContainerRecord;
use crate::sys::cgroup::{Cgroup, Child, Hierarchy};

/// How they all begin.
const PREFIX: &str = "exec-";

/// How long the killed may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// The cgroups of one command.
#[derive(Default)]
pub(super) struct ExecCgroups {
    /// Its runtime's. Goes first: it is the runtime that puts processes into the other.
    runtime: Option<Child>,
    command: Option<Child>,
}

/// What a command's first process joins to be in its place in each hierarchy.
pub(super) struct Entry {
    /// Of the command's cgroup, below its container's.
    pub name: String,
    pub v1_tasks: Vec<OwnedFd>,
    pub cgroup2_dir: Option<OwnedFd>,
}

/// Kills the command's whole tree unless it is told that the command has ended: the caller's deadline, a cancelled
/// request and an error on the way all end it.
pub(super) struct Leash {
    cgroups: Option<ExecCgroups>,
}

fn new_name() -> String {
    // Later than those of an earlier daemon, whose commands may have left something running.
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(now_ns().unsigned_abs()));
    format!("{PREFIX}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl ExecCgroups {
    /// Makes those of a new command in a container, and says how its first process comes into them. Blocks.
    pub(super) fn make(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<(Self, Entry)> {
        let mut made = Self::default();
        let entry = made.fill(hierarchy, record);
        if entry.is_err() {
            made.end_logged();
        }
        Ok((made, entry?))
    }

    fn fill(&mut self, hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<Entry> {
        let container = Cgroup::open(hierarchy, &record.cgroup)?;
        let name = new_name();
        self.command = match container.child(&name) {
            // Where no cgroup2 is mounted a command has no cgroup of its own: its first process is all that a timeout
            // can kill.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
            child => Some(child?),
        };
        if record.runtime.is_some() && hierarchy.is_v2() {
            let runtime = beside(&container, hierarchy, record)?.child(&of_runtime(&name, record))?;
            let runtime = self.runtime.insert(runtime);
            return Ok(Entry {
                name,
                v1_tasks: Vec::new(),
                cgroup2_dir: Some(runtime.directory_fd()?),
            });
        }
        let joined = container.join_fds()?;
        let own = self.command.as_ref().map(Child::directory_fd).transpose()?;
        Ok(Entry {
            name,
            v1_tasks: joined.tasks,
            cgroup2_dir: own.or(joined.directory),
        })
    }

    /// Those of all commands in a container. Blocks.
    pub(super) fn find(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<Vec<Self>> {
        let mut found: BTreeMap<String, Self> = BTreeMap::new();
        let container = Cgroup::open(hierarchy, &record.cgroup)?;
        for child in container.children()? {
            if let Some(name) = child.name().filter(|name| name.starts_with(PREFIX)).map(str::to_owned) {
                found.entry(name).or_default().command = Some(child);
            }
        }
        if record.runtime.is_some() {
            let suffix = of_runtime("", record);
            for child in beside(&container, hierarchy, record)?.children()? {
                if let Some(name) = child
                    .name()
                    .and_then(|name| name.strip_suffix(&suffix))
                    .map(str::to_owned)
                {
                    found.entry(name).or_default().runtime = Some(child);
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// Ends the command of an earlier daemon: nobody waits for it, nor kills it at its timeout. `running` are the processes
    /// of commands that run, or that are being started; what a command that has ended left behind goes on, as it would have.
    /// Blocks.
    pub(super) fn end_found(self, running: &[i32]) -> io::Result<()> {
        let mut pids = Vec::new();
        for child in self.each() {
            pids.append(&mut child.pids()?);
        }
        match running.iter().any(|pid| pids.contains(pid)) {
            true => self.end(),
            false => self.dissolve(),
        }
    }

    fn each(&self) -> impl Iterator<Item = &Child> {
        self.runtime.iter().chain(&self.command)
    }

    /// Kills everybody in them, waits for that and removes them. Blocks.
    fn end(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        for cgroup in self.each() {
            let ended = end(cgroup);
            outcome = outcome.and(ended);
        }
        outcome
    }

    fn end_logged(&self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "processes of an ended command remain");
        }
    }

    /// Removes them; who is in the command's is the container's then. Blocks.
    fn dissolve(&self) -> io::Result<()> {
        // A runtime has ended when the command executes.
        self.runtime.as_ref().map_or(Ok(()), end)?;
        self.command.as_ref().map_or(Ok(()), Child::dissolve)
    }
}

impl Leash {
    pub(super) fn new(cgroups: ExecCgroups) -> Self {
        Self { cgroups: Some(cgroups) }
    }

    /// The command ended by itself. What it left running in the background may go on, as after any exec.
    pub(super) fn ended(mut self) {
        if let Some(cgroups) = self.cgroups.take() {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = cgroups.dissolve() {
                    tracing::debug!(%error, "the cgroup of a command stays until its container goes");
                }
            });
        }
    }

    /// As dropping it, but the processes are dead when this returns.
    pub(super) async fn kill_now(mut self) {
        if let Some(cgroups) = self.cgroups.take() {
            blocking(move || cgroups.end_logged()).await;
        }
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(cgroups) = self.cgroups.take() {
            tokio::task::spawn_blocking(move || cgroups.end_logged());
        }
    }
}

/// Kills and removes. Whoever is born there meanwhile, on a request that is still on its way, is killed too.
fn end(cgroup: &Child) -> io::Result<()> {
    let deadline = Instant::now() + KILL_PATIENCE;
    loop {
        cgroup.kill()?;
        cgroup.wait_empty(deadline.saturating_duration_since(Instant::now()))?;
        match cgroup.remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {}
            removed => return removed,
        }
    }
}

/// The cgroup of the pod's pause process, which has no limits of its own and no controllers below it.
fn beside(container: &Cgroup, hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<Cgroup> {
    let (parent, _) = container.path().rsplit_once('/').unwrap_or_default();
    Cgroup::open(hierarchy, &format!("{parent}/{}", record.sandbox_id))
}

fn of_runtime(name: &str, record: &ContainerRecord) -> String {
    format!("{name}-{}", record.id)
}
