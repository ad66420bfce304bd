//! Where things lie, and how they come and go.
//!
//! ```text
//! layers/<hex of diff id>/{diff/,meta.json,implicit}   a published layer
//! layers/tmp-*                                         a layer being unpacked
//! manifests/<hex of image id>/{config.json,manifest.json,record.json}
//! manifests/tmp-*                                      an image being recorded
//! held/<hex of image id>/                              a removed image whose layers a container still needs
//! trash/*                                              what is being unlinked
//! boot_id                                              of the boot in which the store was last opened
//! ```
//! Things come by rename when they are complete and go by rename into the trash. Neither needs space.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::image::ImageError;

/// The store's directories.
#[derive(Clone)]
pub(super) struct Layout(Arc<Inner>);

struct Inner {
    root: PathBuf,
    counter: AtomicU64,
    emptying: AtomicBool,
}

impl Layout {
    /// Makes the directories that are missing. Nobody but root may look inside: layers have setuid programs.
    pub(super) fn create(root: &Path) -> Result<Self, ImageError> {
        for dir in [
            root.to_owned(),
            root.join("layers"),
            root.join("manifests"),
            root.join("held"),
            root.join("trash"),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(ImageError::io("make", &dir))?;
        }
        let inner = Inner {
            root: root.to_owned(),
            counter: AtomicU64::new(0),
            emptying: AtomicBool::new(false),
        };
        Ok(Self(Arc::new(inner)))
    }

    pub(super) fn root(&self) -> &Path {
        &self.0.root
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.0.root.join("layers")
    }

    pub(super) fn layer(&self, hex: &str) -> PathBuf {
        self.layers().join(hex)
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.0.root.join("manifests")
    }

    pub(super) fn manifest(&self, hex: &str) -> PathBuf {
        self.manifests().join(hex)
    }

    pub(super) fn held_images(&self) -> PathBuf {
        self.0.root.join("held")
    }

    pub(super) fn held(&self, hex: &str) -> PathBuf {
        self.held_images().join(hex)
    }

    fn unique(&self) -> String {
        format!(
            "{}-{}",
            std::process::id(),
            self.0.counter.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// A directory for a layer to be.
    pub(super) fn scratch(&self) -> Result<Scratch, ImageError> {
        self.scratch_in(&self.layers())
    }

    /// A directory inside `parent` that goes away unless it is published.
    pub(super) fn scratch_in(&self, parent: &Path) -> Result<Scratch, ImageError> {
        let path = parent.join(format!("tmp-{}", self.unique()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(ImageError::io("make", &path))?;
        Ok(Scratch {
            path: Some(path),
            layout: self.clone(),
        })
    }

    /// Takes `path` out of its place at once and unlinks what is in it in the background. What is not there is fine.
    pub(super) fn discard(&self, path: &Path) -> Result<(), ImageError> {
        loop {
            let slot = self.0.root.join("trash").join(self.unique());
            match fs::rename(path, &slot) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // A name left by an earlier process with our pid.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) => {}
                // No room for one more name in the trash: without its mark the thing does not count any more.
                Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    return unmark_and_remove(path).map_err(ImageError::io("remove", path));
                }
                Err(error) => return Err(ImageError::io("remove", path)(error)),
            }
        }
        self.empty_trash();
        Ok(())
    }

    /// Unlinks what is in the trash, in a thread that ends when it is empty.
    pub(super) fn empty_trash(&self) {
        if self.0.emptying.swap(true, Ordering::AcqRel) {
            return;
        }
        let layout = self.clone();
        let spawned = std::thread::Builder::new().name("images-trash".into()).spawn(move || {
            let mut stuck = false;
            loop {
                while !stuck && layout.trash_step(&mut stuck) {}
                layout.0.emptying.store(false, Ordering::Release);
                // What came between the last look and the line above found the flag set and started no thread.
                if stuck || layout.trash_is_empty() || layout.0.emptying.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        });
        if let Err(error) = spawned {
            self.0.emptying.store(false, Ordering::Release);
            tracing::warn!(%error, "no thread to empty the trash of images; it waits for the next removal");
        }
    }

    fn trash(&self) -> impl Iterator<Item = PathBuf> + use<> {
        fs::read_dir(self.0.root.join("trash"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    }

    fn trash_is_empty(&self) -> bool {
        self.trash().next().is_none()
    }

    /// Removes what is there now; says whether there was something.
    fn trash_step(&self, stuck: &mut bool) -> bool {
        let mut found = false;
        for path in self.trash() {
            found = true;
            let removed = fs::remove_dir_all(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotADirectory => fs::remove_file(&path),
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            });
            if let Err(error) = removed {
                // It stays in the trash, which is looked at again with the next removal and at the next start.
                tracing::warn!(path = %path.display(), %error, "cannot unlink a removed image");
                *stuck = true;
            }
        }
        found
    }
}

fn unmark_and_remove(path: &Path) -> io::Result<()> {
    for mark in ["record.json", "meta.json"] {
        match fs::remove_file(path.join(mark)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_dir_all(path)
}

/// A directory that is discarded unless it is published.
pub(super) struct Scratch {
    path: Option<PathBuf>,
    layout: Layout,
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        self.path
            .as_deref()
            .expect("only publishing, which ends it, takes the path")
    }

    /// Gives it its name. What has the name already and is a directory must be empty.
    pub(super) fn publish(mut self, name: &Path) -> Result<(), ImageError> {
        fs::rename(self.path(), name).map_err(ImageError::io("publish", name))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = self.layout.discard(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove what was not published");
        }
    }
}
