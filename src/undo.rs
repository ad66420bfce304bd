//! A stack of undo steps: push one right after each acquisition; unless the work commits, all run in reverse.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

type Step = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send>;

/// The longest one undo step may take. A step has this deadline of its own, whatever became of the request.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Undo steps of work in progress.
///
/// Dropped without [`Undo::commit`] or [`Undo::unwind`] (a cancelled request), the steps run in a task of their own:
/// a caller that goes away must not leave things behind.
#[derive(Default)]
pub struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl Undo {
    /// Remembers how to undo what was just acquired. `what` names it in the log.
    pub fn push<F, Fut>(&mut self, what: &'static str, step: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.steps.push((what, Box::new(move || Box::pin(step()))));
    }

    /// The work is complete: nothing will be undone.
    pub fn commit(mut self) {
        self.steps.clear();
    }

    /// Runs every step, last first, each within its own deadline; a failing step does not stop the others.
    /// Returns what could not be undone.
    pub async fn unwind(mut self) -> Vec<String> {
        run(std::mem::take(&mut self.steps)).await
    }
}

async fn run(steps: Vec<(&'static str, Step)>) -> Vec<String> {
    let mut left = Vec::new();
    for (what, step) in steps.into_iter().rev() {
        let outcome = tokio::time::timeout(STEP_DEADLINE, step()).await;
        let error = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(_) => format!("not done within {STEP_DEADLINE:?}"),
        };
        tracing::warn!(what, %error, "could not undo");
        left.push(format!("{what}: {error}"));
    }
    left
}

impl Drop for Undo {
    fn drop(&mut self) {
        if self.steps.is_empty() {
            return;
        }
        let steps = std::mem::take(&mut self.steps);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                run(steps).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Undo;
    use std::sync::{Arc, Mutex};

    fn recorder(undo: &mut Undo, log: &Arc<Mutex<Vec<&'static str>>>, what: &'static str, fails: bool) {
        let log = log.clone();
        undo.push(what, move || async move {
            log.lock().expect("no panic holds it").push(what);
            if fails { Err("no".to_owned()) } else { Ok(()) }
        });
    }

    #[tokio::test]
    async fn all_steps_run_last_first_even_when_one_fails() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        recorder(&mut undo, &log, "first", false);
        recorder(&mut undo, &log, "second", true);
        recorder(&mut undo, &log, "third", false);
        assert_eq!(undo.unwind().await, ["second: no"]);
        assert_eq!(*log.lock().unwrap(), ["third", "second", "first"]);
    }

    #[tokio::test]
    async fn committed_work_is_not_undone_and_dropped_work_is() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut kept = Undo::default();
        recorder(&mut kept, &log, "kept", false);
        kept.commit();
        let mut dropped = Undo::default();
        recorder(&mut dropped, &log, "dropped", false);
        drop(dropped);
        tokio::task::yield_now().await;
        assert_eq!(*log.lock().unwrap(), ["dropped"]);
    }
}
