//! The cgroups of commands: what a command started can be killed by them, whatever it forked.
//!
//! ```text
//! <cgroup_parent>/<container id>/exec-<exec id>                 the command, born there
//! <cgroup_parent>/<sandbox id>/exec-<exec id>-<container id>    on cgroup v2, the external runtime that starts it
//! ```
//! The id is that which the monitor knows the command by: it tells a later daemon which are under way.
//!
//! An external runtime is no guest of the container's: its threads and its memory would count in the container's limits, and
//! an exec probe could have the container killed for want of memory. On v1 limits are in other hierarchies than the one
//! with the command's cgroup, so it begins there.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blocking;
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
    pub exec_id: u64,
    pub v1_tasks: Vec<OwnedFd>,
    pub cgroup2_dir: Option<OwnedFd>,
}

/// Kills the command's whole tree unless it is told that the command has ended: the caller's deadline, a cancelled
/// request and an error on the way all end it.
pub(super) struct Leash {
    cgroups: Option<ExecCgroups>,
}

impl ExecCgroups {
    /// Makes those of a new command in a container, and says how its first process comes into them. Blocks.
    pub(super) fn make(
        hierarchy: &Arc<Hierarchy>,
        record: &ContainerRecord,
        exec_id: u64,
    ) -> io::Result<(Self, Entry)> {
        let mut made = Self::default();
        let entry = made.fill(hierarchy, record, exec_id);
        if entry.is_err() {
            made.end_logged();
        }
        Ok((made, entry?))
    }

    fn fill(&mut self, hierarchy: &Arc<Hierarchy>, record: &ContainerRecord, exec_id: u64) -> io::Result<Entry> {
        let container = Cgroup::open(hierarchy, &record.cgroup)?;
        self.command = match container.child(&of_command(exec_id)) {
            // Where no cgroup2 is mounted a command has no cgroup of its own, and is not killed at its timeout.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => None,
            child => Some(child?),
        };
        if record.runtime.is_some() && hierarchy.is_v2() {
            let runtime = beside(hierarchy, record)?.child(&of_runtime(&of_command(exec_id), record))?;
            let runtime = self.runtime.insert(runtime);
            return Ok(Entry {
                exec_id,
                v1_tasks: Vec::new(),
                cgroup2_dir: Some(runtime.directory_fd()?),
            });
        }
        let joined = container.join_fds()?;
        let own = self.command.as_ref().map(Child::directory_fd).transpose()?;
        Ok(Entry {
            exec_id,
            v1_tasks: joined.tasks,
            cgroup2_dir: own.or(joined.directory),
        })
    }

    /// Those of all commands in a container, by their ids. Blocks.
    pub(super) fn find(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<BTreeMap<u64, Self>> {
        let mut found: BTreeMap<u64, Self> = BTreeMap::new();
        for child in Cgroup::open(hierarchy, &record.cgroup)?.children()? {
            if let Some(exec_id) = child.name().and_then(id_of) {
                found.entry(exec_id).or_default().command = Some(child);
            }
        }
        for (exec_id, runtime) in runtimes(hierarchy, record)? {
            found.entry(exec_id).or_default().runtime = Some(runtime);
        }
        Ok(found)
    }

    /// Of the commands of an earlier daemon, `found`, ends those that are `under_way`: nobody waits for them, nor kills
    /// them at their timeout. What a command that has ended left behind goes on, as it would have. Blocks.
    pub(super) fn end_found(found: BTreeMap<u64, Self>, under_way: &[u64]) -> io::Result<()> {
        each(found, |(exec_id, cgroups)| match under_way.contains(&exec_id) {
            true => cgroups.end(),
            false => cgroups.dissolve(),
        })
    }

    /// Kills everybody in them, waits for that and removes them. Blocks.
    fn end(&self) -> io::Result<()> {
        each(self.runtime.iter().chain(&self.command), end)
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

/// Does `work` on each, also after one failed; the first error is told.
fn each<T>(them: impl IntoIterator<Item = T>, work: impl Fn(T) -> io::Result<()>) -> io::Result<()> {
    let mut outcome = Ok(());
    for one in them {
        let done = work(one);
        outcome = outcome.and(done);
    }
    outcome
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

/// Kills the external runtimes that are starting commands in a container: they are not in its cgroup. Blocks.
pub(super) fn end_runtimes(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<()> {
    each(runtimes(hierarchy, record)?, |(_, runtime)| end(&runtime))
}

fn runtimes(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<Vec<(u64, Child)>> {
    if record.runtime.is_none() || !hierarchy.is_v2() {
        return Ok(Vec::new());
    }
    let suffix = of_runtime("", record);
    let of_this = |child: Child| Some((id_of(child.name()?.strip_suffix(&suffix)?)?, child));
    let children = beside(hierarchy, record)?.children()?;
    Ok(children.into_iter().filter_map(of_this).collect())
}

/// The cgroup of the pod's pause process, which has no limits of its own and no controllers below it.
fn beside(hierarchy: &Arc<Hierarchy>, record: &ContainerRecord) -> io::Result<Cgroup> {
    let parent = Cgroup::open(hierarchy, &record.cgroup)?.parent();
    let parent = parent.as_ref().map_or("", Cgroup::path);
    Cgroup::open(hierarchy, &format!("{parent}/{}", record.sandbox_id))
}

/// The name of a command's cgroup, below its container's.
pub(super) fn of_command(exec_id: u64) -> String {
    format!("{PREFIX}{exec_id}")
}

fn of_runtime(name: &str, record: &ContainerRecord) -> String {
    format!("{name}-{}", record.id)
}

fn id_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}
