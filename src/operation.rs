//! Joins a retried request to the first one: whoever asks again for what is being made gets the same result.
//!
//! A kubelet gives up after two minutes and asks again. The work goes on meanwhile; the second request waits for it,
//! or is handed the result that nobody was left to receive. So a name is never "reserved" without an owner.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// Why an operation gives no result.
#[derive(Debug, PartialEq, Eq)]
pub enum OperationError {
    /// A different request holds the name.
    Conflict,
    /// The task that did the work ended without a result: it panicked, or the daemon is going down.
    Lost,
}

struct Slot<T, E> {
    request: Vec<u8>,
    outcome: watch::Receiver<Option<Result<T, E>>>,
}

impl<T, E> Slot<T, E> {
    fn is_under_way(&self) -> bool {
        // One that was lost is not: its sender is gone.
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }
}

/// Operations under way, or done but not yet delivered to anyone, by the name of what they make.
pub struct Operations<T, E> {
    slots: Arc<Mutex<HashMap<String, Slot<T, E>>>>,
    keeps_failures: bool,
}

impl<T, E> Default for Operations<T, E> {
    fn default() -> Self {
        Self {
            slots: Arc::default(),
            keeps_failures: false,
        }
    }
}

impl<T, E> Operations<T, E> {
    /// Those of which a failure is told to who asks again, too: they cannot be tried again.
    pub fn keeping_failures() -> Self {
        Self {
            keeps_failures: true,
            ..Self::default()
        }
    }
}

impl<T: Clone + Send + Sync + 'static, E: Clone + Send + Sync + 'static> Operations<T, E> {
    /// Runs `work`, in a task of its own that a cancelled request does not stop, or joins the one that runs for the
    /// same `key`. `request` is the request's bytes: while another one is under way for the same key it is a conflict.
    pub async fn run<Fut>(
        &self,
        key: &str,
        request: Vec<u8>,
        work: impl FnOnce() -> Fut,
    ) -> Result<Result<T, E>, OperationError>
    where
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut outcome = {
            let mut slots = self.slots.lock().expect("no panic holds it");
            match slots.get(key) {
                Some(slot) if slot.request == request => slot.outcome.clone(),
                Some(slot) if slot.is_under_way() => return Err(OperationError::Conflict),
                // What a different request did is that one's: the name's holder refuses this one, if there is any.
                Some(_) | None => {
                    let (sender, outcome) = watch::channel(None);
                    slots.insert(
                        key.to_owned(),
                        Slot {
                            request,
                            outcome: outcome.clone(),
                        },
                    );
                    let (work, slots, key) = (work(), self.slots.clone(), key.to_owned());
                    let keeps_failures = self.keeps_failures;
                    tokio::spawn(async move {
                        let result = work.await;
                        let mut slots = slots.lock().expect("no panic holds it");
                        let nobody_waits = sender.receiver_count() == 1;
                        let own = sender.subscribe();
                        // Who asks again wants it to be tried again.
                        if result.is_err()
                            && !keeps_failures
                            && nobody_waits
                            && slots.get(&key).is_some_and(|slot| slot.outcome.same_channel(&own))
                        {
                            slots.remove(&key);
                        }
                        sender.send_replace(Some(result));
                    });
                    outcome
                }
            }
        };
        let result = outcome
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|result| result.clone());
        let mut slots = self.slots.lock().expect("no panic holds it");
        // Another waiter may have taken this slot away already, and a new operation may stand in its place.
        if slots.get(key).is_some_and(|slot| slot.outcome.same_channel(&outcome)) {
            slots.remove(key);
        }
        result.ok_or(OperationError::Lost)
    }

    /// Forgets a result that nobody received; called when what was made goes away. An operation under way is another's: a
    /// request for the same key that waits for that.
    pub fn forget(&self, key: &str) {
        let mut slots = self.slots.lock().expect("no panic holds it");
        if slots.get(key).is_some_and(|slot| !slot.is_under_way()) {
            slots.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{OperationError, Operations};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_retry_joins_and_another_request_is_refused() {
        let operations = Arc::new(Operations::default());
        let runs = Arc::new(AtomicU32::new(0));
        let ask = |request: &'static [u8]| {
            let (operations, runs) = (operations.clone(), runs.clone());
            async move {
                let work = || async move {
                    runs.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok::<_, ()>(7)
                };
                operations.run("name", request.to_vec(), work).await
            }
        };
        let (a, b, c) = tokio::join!(ask(b"x"), ask(b"x"), ask(b"y"));
        assert_eq!((a, b, c), (Ok(Ok(7)), Ok(Ok(7)), Err(OperationError::Conflict)));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_result_nobody_waited_for_is_given_to_the_retry() {
        let operations = Operations::default();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, ()>(1)
        };
        let first = tokio::time::timeout(Duration::from_secs(1), operations.run("name", vec![], slow)).await;
        assert!(first.is_err());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(operations.run("name", vec![], || async { Ok(2) }).await, Ok(Ok(1)));
        assert_eq!(operations.run("name", vec![], || async { Ok(3) }).await, Ok(Ok(3)));
    }

    /// Story: a kubelet is restarted while its request hangs, which then fails; the same pod as asked for by the new one
    /// differs by an annotation.
    #[tokio::test(start_paused = true)]
    async fn what_is_not_under_way_is_in_nobodys_way() {
        let operations = Operations::default();
        for result in [Err("failed"), Ok(1)] {
            let slow = async move || {
                tokio::time::sleep(Duration::from_secs(5)).await;
                result
            };
            let first = tokio::time::timeout(Duration::from_secs(1), operations.run("name", vec![1], slow)).await;
            first.unwrap_err();
            let other = async || operations.run("name", vec![2], || async { Ok(2) }).await;
            assert_eq!(other().await, Err(OperationError::Conflict));
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(other().await, Ok(Ok(2)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_nobody_waited_for_is_tried_again_and_not_kept() {
        let operations = Operations::default();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err("failed")
        };
        let first = tokio::time::timeout(Duration::from_secs(1), operations.run("name", vec![], slow)).await;
        first.unwrap_err();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(operations.slots.lock().unwrap().is_empty());
        assert_eq!(operations.run("name", vec![], || async { Ok(2) }).await, Ok(Ok(2)));
        let operations = Operations::keeping_failures();
        let first = tokio::time::timeout(Duration::from_secs(1), operations.run("name", vec![], slow)).await;
        first.unwrap_err();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(
            operations.run("name", vec![], || async { Ok(2) }).await,
            Ok(Err("failed"))
        );
    }

    /// Story: what an earlier daemon left is being removed; the request that makes it anew waits for that, and a second
    /// one like it must find the first.
    #[tokio::test(start_paused = true)]
    async fn what_is_forgotten_is_a_result_and_not_an_operation_under_way() {
        let operations = Operations::default();
        let slow = || async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, ()>(1)
        };
        let ask = async |seconds| {
            tokio::time::timeout(Duration::from_secs(seconds), operations.run("name", vec![], slow)).await
        };
        ask(1).await.unwrap_err();
        operations.forget("name");
        let (began, first) = (tokio::time::Instant::now(), ask(10).await);
        assert_eq!(first, Ok(Ok(Ok(1))));
        assert_eq!(began.elapsed(), Duration::from_secs(4), "it was begun a second time");
        ask(1).await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(10)).await;
        operations.forget("name");
        ask(1).await.expect_err("the result of what is gone");
    }
}
