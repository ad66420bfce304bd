//! Making a cgroup in every hierarchy.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hierarchy::CONTROLLERS;
use super::{Cgroup, Hierarchy, Joining, file};

/// How often in all a directory is made again whose parent somebody removed in between (the last container of a pod's
/// neighbour going away takes empty parents with it).
const ATTEMPTS: usize = 100;

impl Cgroup {
    /// Makes the cgroup at `path` and all above it that are missing, in every hierarchy. One that exists is fine.
    ///
    /// On v1 `cpuset.cpus` and `cpuset.mems` are filled from above, else no process could join. On cgroup2 the
    /// controllers that crisp uses are enabled down the path (a controller that cannot be enabled is left out and
    /// [`Cgroup::apply`] says so when a limit needs it); the cgroup's own `cgroup.subtree_control` stays empty, so
    /// that it may hold processes. On failure what was made is removed.
    pub fn create(hierarchy: &Arc<Hierarchy>, path: &str) -> io::Result<Self> {
        Self::create_for(hierarchy, path, Joining::All)
    }

    /// As [`Cgroup::create`] for a process without limits of its own: where the process is neither counted nor looked for, the
    /// cgroup above has to do. Each directory of v1 that is not made saves 0.1 ms.
    pub fn create_bare(hierarchy: &Arc<Hierarchy>, path: &str) -> io::Result<Self> {
        Self::create_for(hierarchy, path, Joining::Bare)
    }

    fn create_for(hierarchy: &Arc<Hierarchy>, path: &str, joining: Joining) -> io::Result<Self> {
        let cgroup = Self::open(hierarchy, path)?;
        let mut made = Made::default();
        if let Some(root) = hierarchy.cgroup2() {
            make(root, &cgroup.dir_below(root), &mut made, &mut { ATTEMPTS })?;
        }
        for (root, dir) in cgroup.v1_dirs(joining) {
            make(root, &dir, &mut made, &mut { ATTEMPTS })?;
            if hierarchy.is_place(root, "cpuset") {
                seed(root, &dir, "cpuset.cpus")?;
                seed(root, &dir, "cpuset.mems")?;
            }
        }
        if hierarchy.is_v2() {
            let wanted = CONTROLLERS
                .into_iter()
                .filter(|c| hierarchy.cgroup2_offers(c))
                .collect::<Vec<_>>();
            cgroup.enable(&wanted)?;
        }
        made.dirs.clear();
        Ok(cgroup)
    }

    /// Enables `controllers` for this cgroup, from the root of cgroup2 down to its parent.
    pub(super) fn enable(&self, controllers: &[&str]) -> io::Result<()> {
        match (
            self.hierarchy.cgroup2(),
            self.cgroup2_dir().as_deref().and_then(Path::parent),
        ) {
            (Some(root), Some(parent)) => enable_below(root, parent, controllers),
            _ => Ok(()),
        }
    }
}

/// Directories made so far; removed again, deepest first, when dropped with any left in it.
#[derive(Default)]
struct Made {
    dirs: Vec<PathBuf>,
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            if let Err(error) = std::fs::remove_dir(dir) {
                tracing::debug!(dir = %dir.display(), %error, "could not undo mkdir");
            }
        }
    }
}

/// Makes `dir`, and above it what is missing: upwards, since as a rule that is little.
fn make(root: &Path, dir: &Path, made: &mut Made, attempts: &mut usize) -> io::Result<()> {
    loop {
        let outcome = make_one(dir, made);
        let missing = matches!(&outcome, Err(e) if e.kind() == io::ErrorKind::NotFound);
        if !missing || *attempts == 0 {
            return outcome;
        }
        *attempts -= 1;
        if let Some(parent) = dir
            .parent()
            .filter(|parent| *parent != root && parent.starts_with(root))
        {
            make(root, parent, made, attempts)?;
        }
    }
}

/// `NotFound` if the directory above is gone, or this one was there and went meanwhile.
fn make_one(dir: &Path, made: &mut Made) -> io::Result<()> {
    let error = match std::fs::create_dir(dir) {
        Ok(()) => {
            made.dirs.push(dir.to_owned());
            return Ok(());
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match std::fs::symlink_metadata(dir) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => e,
            Err(gone) => gone,
        },
        Err(e) => e,
    };
    Err(file::failed_below("mkdir", dir, error))
}

/// Fills `name` in `dir` from the nearest cgroup above that has it, and in all between (cpuset(7), section
/// "Permissions and rules": a child's set must lie within its parent's).
fn seed(root: &Path, dir: &Path, name: &str) -> io::Result<String> {
    let path = dir.join(name);
    let present = file::read(&path)?.trim().to_owned();
    if !present.is_empty() || dir == root {
        return Ok(present);
    }
    let parent = dir.parent().filter(|parent| parent.starts_with(root)).unwrap_or(root);
    let inherited = seed(root, parent, name)?;
    file::write(&path, &inherited)?;
    Ok(inherited)
}

/// Enables `wanted` in `dir`'s `cgroup.subtree_control`, and above it as far as needed. The usual case, in which all
/// are enabled already, costs one read.
fn enable_below(root: &Path, dir: &Path, wanted: &[&str]) -> io::Result<()> {
    let control = dir.join("cgroup.subtree_control");
    let enabled = file::read(&control)?;
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|c| !enabled.split_whitespace().any(|e| e == **c))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|_| dir != root) {
        enable_below(root, parent, &missing)?;
    }
    let available = file::read(&dir.join("cgroup.controllers"))?;
    let mut requests = missing
        .into_iter()
        .filter(|c| available.split_whitespace().any(|a| a == *c))
        .peekable();
    if requests.peek().is_none() {
        return Ok(());
    }
    let requests: Vec<String> = requests.map(|c| format!("+{c}")).collect();
    if file::write_raw(&control, &requests.join(" ")).is_ok() {
        return Ok(());
    }
    // One refusal (a cgroup with processes, real-time threads, ...) fails the whole write: take what can be had.
    for request in &requests {
        if let Err(error) = file::write_raw(&control, request) {
            tracing::debug!(path = %control.display(), request, %error, "cgroup controller not enabled");
        }
    }
    Ok(())
}
