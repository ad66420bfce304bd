//! The stage: a tmpfs of this child's own, on which the detached mounts that the daemon sent are attached.
//!
//! libcontainer binds from paths. On the stage each mount has one, in a mount namespace that ends with the child.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, MountBuilder};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};

use super::OciError;
use crate::sys::{mount, process};

/// Where the stage is; the monitor's room has this directory.
pub const STAGE: &str = "/stage";

/// Makes the stage, empty.
pub fn build() -> io::Result<()> {
    process::unshare(libc::CLONE_NEWNS)?;
    let tmpfs = mount::tmpfs(1 << 20, 0o755)?;
    mount::attach(&tmpfs, CWD, Path::new(STAGE))
}

/// Attaches `what` on the stage and returns where.
pub fn attach(what: &OwnedFd, name: impl AsRef<Path>) -> io::Result<PathBuf> {
    let place = Path::new(STAGE).join(name);
    let kind = FileType::from_raw_mode(fstat(what)?.st_mode);
    if kind == FileType::Directory {
        mkdirat(CWD, &place, Mode::from_raw_mode(0o755))?;
    } else {
        openat(
            CWD,
            &place,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::RUSR,
        )?;
    }
    mount::attach(what, CWD, &place)?;
    Ok(place)
}

/// The number of the mount that was sent for a bind of the OCI spec, which names it `fd:<n>`; none: it is no such bind.
pub fn index_of(mount: &Mount) -> Result<Option<usize>, OciError> {
    let source = mount.source().as_ref().and_then(|source| source.to_str());
    let Some(number) = source.and_then(|source| source.strip_prefix("fd:")) else {
        return Ok(None);
    };
    let index = number.parse().map_err(|_| OciError::Unfit {
        what: format!("mount source fd:{number}"),
    })?;
    Ok(Some(index))
}

/// The mount of this number.
pub fn sent(sent: &[OwnedFd], index: usize) -> Result<&OwnedFd, OciError> {
    sent.get(index).ok_or_else(|| OciError::Unfit {
        what: format!("mount {index} was not sent"),
    })
}

/// A bind of what is at `place` on the stage. The attributes are set on the mount itself; of the options only how deep to bind is left
/// to say.
pub fn bind(place: PathBuf, destination: PathBuf) -> Result<Mount, OciError> {
    let mount = MountBuilder::default()
        .source(place)
        .destination(destination)
        .typ("bind");
    mount
        .options(vec!["rbind".to_owned()])
        .build()
        .map_err(|error| OciError::Unfit {
            what: error.to_string(),
        })
}

/// Makes the directory `path` below `root`, and those above it, as if `root` were `/`.
pub fn make_directory(root: &Path, path: &Path) -> io::Result<()> {
    let root = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut made = PathBuf::from("/");
    let mut parent: OwnedFd = root.as_fd().try_clone_to_owned()?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        made.push(name);
        let open = || mount::open_in_root(&root, &made, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        parent = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                open()?
            }
            other => other?,
        };
    }
    Ok(())
}
