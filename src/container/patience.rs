//! Work on paths of the node, whose file systems may hang: it is waited for with a deadline, and who waits in vain costs one thread
//! for each path, however often it is asked for.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{ContainerError, blocking};

/// How long the node's file systems may take to answer for all paths of one request together.
const DEADLINE: Duration = Duration::from_secs(60);

/// Paths that a thread still waits for, long after whoever asked was told.
#[derive(Clone, Default)]
pub struct HungPaths(Arc<Mutex<HashSet<PathBuf>>>);

/// How far a piece of work is.
#[derive(Default)]
struct Progress {
    at: Option<PathBuf>,
    given_up: bool,
}

/// The work's side of it.
pub struct Asking {
    progress: Arc<Mutex<Progress>>,
    hung: HungPaths,
}

impl Asking {
    /// Says which path is asked for next. An error: nobody waits any more.
    pub fn at(&self, path: &Path) -> Result<(), ContainerError> {
        let mut progress = self.progress.lock().expect("no panic holds it");
        if progress.given_up {
            return Err(HungPaths::took_too_long(path));
        }
        progress.at = Some(path.to_owned());
        Ok(())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let progress = self.progress.lock().expect("no panic holds it");
        if let (true, Some(path)) = (progress.given_up, &progress.at) {
            self.hung.0.lock().expect("no panic holds it").remove(path);
        }
    }
}

impl HungPaths {
    /// Does `work` on `paths` on a thread that may block. A path that is still waited for since an earlier request is refused at
    /// once: a client that tries again every minute would else take all threads that there are.
    pub async fn ask<T: Send + 'static>(
        &self,
        paths: &[PathBuf],
        work: impl FnOnce(&Asking) -> Result<T, ContainerError> + Send + 'static,
    ) -> Result<T, ContainerError> {
        self.ask_within(DEADLINE, paths, work).await
    }

    async fn ask_within<T: Send + 'static>(
        &self,
        deadline: Duration,
        paths: &[PathBuf],
        work: impl FnOnce(&Asking) -> Result<T, ContainerError> + Send + 'static,
    ) -> Result<T, ContainerError> {
        if let Some(path) = self.first_of(paths) {
            return Err(ContainerError::StillHung { path: path.clone() });
        }
        let progress = Arc::<Mutex<Progress>>::default();
        let asking = Asking {
            progress: progress.clone(),
            hung: self.clone(),
        };
        match tokio::time::timeout(deadline, blocking(move || work(&asking))).await {
            Ok(done) => done,
            Err(_) => {
                let mut progress = progress.lock().expect("no panic holds it");
                progress.given_up = true;
                let path = progress.at.clone().unwrap_or_default();
                self.0.lock().expect("no panic holds it").insert(path.clone());
                Err(Self::took_too_long(&path))
            }
        }
    }

    fn first_of<'a>(&self, paths: &'a [PathBuf]) -> Option<&'a PathBuf> {
        let hung = self.0.lock().expect("no panic holds it");
        paths.iter().find(|path| hung.contains(*path))
    }

    fn took_too_long(path: &Path) -> ContainerError {
        ContainerError::Hung {
            path: path.to_owned(),
            seconds: DEADLINE.as_secs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_path_that_hangs_is_waited_for_by_one_thread() {
        let hung = HungPaths::default();
        let paths = [PathBuf::from("/fine"), PathBuf::from("/hangs")];
        let (go_on, wait) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let given = paths.clone();
        let asked = hung.ask_within(Duration::from_millis(50), &paths, move |asking| {
            asking.at(&given[0])?;
            asking.at(&given[1])?;
            let _ = wait.recv();
            let left = asking.at(&given[0]);
            tell.send(left.is_err()).unwrap();
            left
        });
        let refused = asked.await.unwrap_err();
        assert!(
            matches!(&refused, ContainerError::Hung { path, .. } if *path == paths[1]),
            "{refused}"
        );
        let again: Result<(), _> = hung
            .ask(&paths[1..], |_| panic!("nobody is to wait for it twice"))
            .await;
        let refused = again.unwrap_err();
        assert!(
            matches!(&refused, ContainerError::StillHung { path } if *path == paths[1]),
            "{refused}"
        );
        // What does not hang is another matter.
        hung.ask(&paths[..1], |asking| asking.at(Path::new("/fine")))
            .await
            .unwrap();
        go_on.send(()).unwrap();
        assert!(told.recv().unwrap(), "the rest of it is left");
        while !hung.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        hung.ask(&paths, |_| Ok(())).await.unwrap();
    }
}
