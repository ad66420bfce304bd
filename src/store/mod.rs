//! The records of pods and containers on disk: what was asked for (immutable) apart from what became of it (mutable).
//!
//! One directory per pod below `<root>/pods`, one per container below its pod's; in each a file of versioned JSON lines, the
//! record and its statuses (`journal.rs`). Nothing here is synced to the disk: pods do not outlive a reboot, so a record must survive the
//! death of the daemon, which the page cache does, and not a power cut. A record that a power cut tore belongs to a
//! pod that is gone; it is swept at the next start.

mod journal;
mod record;

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use record::Scope;
pub use record::{
    ContainerPhase, ContainerRecord, ContainerStatus, Exit, PodPhase, PodRecord, PodStatus, Process, Versioned,
};

use crate::model::{ContainerId, SandboxId, is_well_formed};

/// What could not be done to which record.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}", path.display())]
pub struct StoreError {
    op: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { op, path, source }
}

/// A pod as found on disk.
#[derive(Debug)]
pub struct StoredPod {
    pub record: PodRecord,
    pub status: PodStatus,
    pub containers: Vec<StoredContainer>,
    /// Containers whose making was cut short before they were recorded: directories, and at most an empty cgroup.
    pub abandoned: Vec<ContainerId>,
}

/// A container as found on disk.
#[derive(Debug)]
pub struct StoredContainer {
    pub record: ContainerRecord,
    pub status: ContainerStatus,
}

/// The record and its statuses, in the directory of a pod or container.
const RECORD: &str = "record.jsonl";

/// A container's writable layer, below its directory.
pub const UPPER: &str = "upper";
/// The working directory that overlayfs needs beside it.
pub const WORK: &str = "work";

/// The two directory trees that hold pods. All calls block, briefly: they touch only local directories.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    run: PathBuf,
}

impl Store {
    /// Makes the directories if they are missing, readable by root only.
    pub fn open(root: &Path, run: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            run: run.to_owned(),
        };
        for dir in [store.root.join("pods"), store.run.join("pods")] {
            make_private(&dir)?;
            spread(&dir);
        }
        Ok(store)
    }

    /// Whether records can be written at all, as far as that can be told without writing: a file system that has turned read-only
    /// (after an I/O error, say) says so.
    pub fn check_writable(&self) -> Result<(), StoreError> {
        for dir in [&self.root, &self.run] {
            let look = rustix::fs::statvfs(dir).map_err(io::Error::from);
            let flags = look.map_err(failed("look at", dir))?.f_flag;
            if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
                return Err(failed("write to", dir)(io::ErrorKind::ReadOnlyFilesystem.into()));
            }
        }
        Ok(())
    }

    /// Where a pod's records are.
    pub fn pod_dir(&self, id: &SandboxId) -> PathBuf {
        self.root.join("pods").join(id)
    }

    /// Where a pod's sockets, exit records and files live until the next reboot.
    pub fn pod_run_dir(&self, id: &SandboxId) -> PathBuf {
        self.run.join("pods").join(id)
    }

    /// Where a container's record and writable layer are.
    pub fn container_dir(&self, pod: &SandboxId, id: &ContainerId) -> PathBuf {
        self.pod_dir(pod).join(id)
    }

    /// Makes a pod's directories and records what is asked for.
    pub fn create_pod(&self, record: &PodRecord) -> Result<(), StoreError> {
        let dir = self.pod_dir(&record.id);
        make_private(&dir)?;
        make_private(&self.pod_run_dir(&record.id).join("exits"))?;
        if !record.runtime_handler.is_empty() {
            make_private(&self.runtime_state_dir(&record.id))?;
        }
        begin(&dir, record)
    }

    /// Records what became of a pod.
    pub fn write_pod_status(&self, id: &SandboxId, status: &PodStatus) -> Result<(), StoreError> {
        add(&self.pod_dir(id), status)
    }

    /// Makes a container's directories, and returns the one that holds them all. As long as no record is in it, it is
    /// an attempt: whoever loads it next is to remove it, and the cgroup of that name in the pod's.
    pub fn make_container_dirs(&self, pod: &SandboxId, id: &ContainerId) -> Result<PathBuf, StoreError> {
        let dir = self.container_dir(pod, id);
        make_private(&dir)?;
        for (name, mode) in [(UPPER, 0o755), (WORK, 0o700)] {
            make(&dir.join(name), mode)?;
        }
        Ok(dir)
    }

    /// Records what is asked for.
    pub fn write_container(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        begin(&self.container_dir(&record.sandbox_id, &record.id), record)
    }

    /// Records what became of a container.
    pub fn write_container_status(
        &self,
        pod: &SandboxId,
        id: &ContainerId,
        status: &ContainerStatus,
    ) -> Result<(), StoreError> {
        add(&self.container_dir(pod, id), status)
    }

    /// The exit record that the pod's monitor wrote, if the container has exited since the last reboot.
    pub fn exit_record(&self, pod: &SandboxId, id: &ContainerId) -> Option<String> {
        std::fs::read_to_string(self.pod_run_dir(pod).join("exits").join(id)).ok()
    }

    /// Where external runtimes keep what they know of a pod's containers, until the next reboot.
    pub fn runtime_state_dir(&self, pod: &SandboxId) -> PathBuf {
        self.pod_run_dir(pod).join("runtime").join("state")
    }

    /// The OCI bundle of a container that an external runtime makes.
    pub fn bundle_dir(&self, pod: &SandboxId, id: &ContainerId) -> PathBuf {
        self.pod_run_dir(pod).join("runtime").join(id)
    }

    /// Makes the bundle's directory, with the empty one that it needs, and returns it.
    pub fn make_bundle(&self, pod: &SandboxId, id: &ContainerId) -> Result<PathBuf, StoreError> {
        let bundle = self.bundle_dir(pod, id);
        make_private(&bundle.join("stage"))?;
        Ok(bundle)
    }

    /// Removes a container's directories and exit record. Fine if they are gone.
    pub fn remove_container(&self, pod: &SandboxId, id: &ContainerId) -> Result<(), StoreError> {
        remove_tree(&self.bundle_dir(pod, id))?;
        remove_tree(&self.runtime_state_dir(pod).join(id))?;
        let exit = self.pod_run_dir(pod).join("exits").join(id);
        ignore_absent(std::fs::remove_file(&exit)).map_err(failed("remove", &exit))?;
        remove_tree(&self.container_dir(pod, id))
    }

    /// Removes a pod's directories, records last. Fine if they are gone.
    pub fn remove_pod(&self, id: &SandboxId) -> Result<(), StoreError> {
        remove_tree(&self.pod_run_dir(id))?;
        remove_tree(&self.pod_dir(id))
    }

    /// Every pod on disk. What cannot be read is told to `broken` and left alone.
    pub fn load(&self, mut broken: impl FnMut(SandboxId, StoreError)) -> Result<Vec<StoredPod>, StoreError> {
        let mut pods = Vec::new();
        for id in ids(&self.root.join("pods"))? {
            let id = SandboxId::new(id);
            match self.load_pod(&id) {
                Ok(pod) => pods.push(pod),
                Err(error) => broken(id, error),
            }
        }
        Ok(pods)
    }

    fn load_pod(&self, id: &SandboxId) -> Result<StoredPod, StoreError> {
        let dir = self.pod_dir(id);
        let (record, status) =
            read(&dir)?.ok_or_else(|| failed("find", &dir.join(RECORD))(io::ErrorKind::NotFound.into()))?;
        let (mut containers, mut abandoned) = (Vec::new(), Vec::new());
        for container in ids(&dir)? {
            let dir = dir.join(&container);
            match read(&dir)? {
                Some((record, status)) => containers.push(StoredContainer { record, status }),
                None => abandoned.push(ContainerId::new(container)),
            }
        }
        Ok(StoredPod {
            record,
            status,
            containers,
            abandoned,
        })
    }
}

fn ids(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed("list", dir))? {
        let name = entry.map_err(failed("list", dir))?.file_name();
        if let Some(id) = name.to_str().filter(|name| is_well_formed(name)) {
            found.push(id.to_owned());
        }
    }
    Ok(found)
}

fn make(dir: &Path, mode: u32) -> Result<(), StoreError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .map_err(failed("make directory", dir))
}

/// Has each directory that is made in `dir` begin in a part of the disk of its own (`T` of chattr(1)): pods have nothing to do with
/// each other, and ext4 is slow to find an inode where many were removed of late. A hint, which not all file systems know.
fn spread(dir: &Path) {
    let hint = || {
        let dir = std::fs::File::open(dir)?;
        let flags = rustix::fs::ioctl_getflags(&dir)?;
        io::Result::Ok(rustix::fs::ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
    };
    if let Err(error) = hint() {
        tracing::debug!(dir = %dir.display(), %error, "the file system takes no hint that pods are to be spread");
    }
}

fn make_private(dir: &Path) -> Result<(), StoreError> {
    make(dir, 0o700)
}

fn ignore_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// How often a directory may turn out to have been added to while it was emptied.
const REMOVALS: usize = 100;

/// Removes `dir` with all in it. A monitor whose daemon died while it was being born may be about to put its socket there: it is
/// removed as well, and in a directory that is gone nothing can be made.
fn remove_tree(dir: &Path) -> Result<(), StoreError> {
    let is_added_to =
        |removed: &io::Result<()>| matches!(removed, Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty);
    let mut removed = std::fs::remove_dir_all(dir);
    for _ in 1..REMOVALS {
        if !is_added_to(&removed) {
            break;
        }
        removed = std::fs::remove_dir_all(dir);
    }
    ignore_absent(removed).map_err(failed("remove", dir))
}

fn begin<R: Serialize>(dir: &Path, record: &R) -> Result<(), StoreError> {
    let path = dir.join(RECORD);
    journal::begin(&path, record).map_err(failed("write", &path))
}

fn add<S: Serialize>(dir: &Path, status: &S) -> Result<(), StoreError> {
    let path = dir.join(RECORD);
    journal::add(&path, status).map_err(failed("write", &path))
}

fn read<R: DeserializeOwned, S: DeserializeOwned + Default>(dir: &Path) -> Result<Option<(R, S)>, StoreError> {
    let path = dir.join(RECORD);
    let found = journal::read(&path).map_err(failed("read", &path))?;
    Ok(found.map(|(record, status)| (record, status.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_spread_over_the_disk_where_the_file_system_can() {
        const EXT4: u64 = 0xef53;
        let dir = tempfile::tempdir().unwrap();
        let (root, run) = (dir.path().join("lib"), dir.path().join("run"));
        Store::open(&root, &run).unwrap();
        let store = Store::open(&root, &run).unwrap();
        store.check_writable().unwrap();
        let pods = std::fs::File::open(root.join("pods")).unwrap();
        let is_spread = rustix::fs::ioctl_getflags(&pods).is_ok_and(|flags| flags.contains(IFlags::TOPDIR));
        let is_ext4 = rustix::fs::fstatfs(&pods).unwrap().f_type as u64 == EXT4;
        assert!(is_spread || !is_ext4);
    }

    /// Story: the daemon died while it started a monitor; the next one removes the pod while the monitor makes its socket.
    #[test]
    fn what_is_added_to_while_it_is_removed_is_removed() {
        for _ in 0..200 {
            let dir = tempfile::tempdir().unwrap();
            let pod = dir.path().join("pod");
            std::fs::create_dir(&pod).unwrap();
            let both = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    both.wait();
                    (0..20).all(|number| std::fs::write(pod.join(number.to_string()), "").is_ok())
                });
                both.wait();
                remove_tree(&pod).unwrap();
            });
            assert!(!pod.exists());
        }
    }
}
