//! Work that several may want at once is done once, for as long as one of them still wants it.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::PullError;

type Outcome<T> = Result<T, Arc<PullError>>;
type Work<T> = BoxFuture<'static, Outcome<T>>;

struct Flight<T: Clone> {
    work: WeakShared<Work<T>>,
    meter: Arc<AtomicU64>,
}

/// The work under way, by what it makes.
pub(super) struct Flights<K, T: Clone> {
    under_way: Mutex<HashMap<K, Flight<T>>>,
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::new(HashMap::new()),
        }
    }
}

/// A place among those who wait. Dropping the last one aborts the work.
pub(super) struct Joined<T: Clone> {
    pub(super) outcome: Shared<Work<T>>,
    /// How many bytes the work has received.
    pub(super) meter: Arc<AtomicU64>,
    /// Whether somebody else began it, by other means perhaps.
    pub(super) is_others: bool,
}

impl<K: Eq + Hash, T: Clone + Send + 'static> Flights<K, T> {
    /// Joins the work for `key` if it is under way; else begins it, as a task of its own.
    pub(super) fn join<F>(&self, key: K, begin: impl FnOnce(Arc<AtomicU64>) -> F) -> Joined<T>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let mut under_way = self
            .under_way
            .lock()
            .expect("nothing panics while it holds the flights");
        under_way.retain(|_, flight| flight.work.upgrade().is_some());
        if let Some((outcome, meter)) = under_way.get(&key).and_then(|flight| {
            // What has landed is not boarded: its outcome may be out of date.
            let work = flight.work.upgrade().filter(|work| work.peek().is_none())?;
            Some((work, flight.meter.clone()))
        }) {
            return Joined {
                outcome,
                meter,
                is_others: true,
            };
        }
        let meter = Arc::new(AtomicU64::new(0));
        let task = AbortOnDropHandle::new(tokio::spawn(begin(meter.clone()).in_current_span()));
        let work = async move {
            task.await
                .unwrap_or_else(|source| Err(Arc::new(PullError::Interrupted { op: "pull", source })))
        };
        let outcome = work.boxed().shared();
        if let Some(work) = outcome.downgrade() {
            under_way.insert(
                key,
                Flight {
                    work,
                    meter: meter.clone(),
                },
            );
        }
        Joined {
            outcome,
            meter,
            is_others: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer::LayerKey;
    use super::Flights;
    use crate::image::digest::Digest;
    use crate::image::reference::Reference;
    use futures_util::FutureExt;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn work_is_done_once_and_anew_when_it_has_landed() {
        let flights: Flights<&str, usize> = Flights::default();
        let begun = AtomicUsize::new(0);
        let begin = |_| {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(number)
            }
        };
        let (a, b) = (flights.join("x", begin), flights.join("x", begin));
        assert!(!a.is_others && b.is_others);
        drop(a);
        assert_eq!(b.outcome.clone().await.unwrap(), 0);
        assert_eq!(flights.join("x", begin).outcome.await.unwrap(), 1);
    }

    #[tokio::test]
    async fn work_stops_when_the_last_one_goes_away() {
        struct Gone(Arc<AtomicUsize>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let flights: Flights<&str, usize> = Flights::default();
        let gone = Arc::new(AtomicUsize::new(0));
        let guard = Gone(gone.clone());
        let first = flights.join("x", |_| async move {
            let _guard = guard;
            std::future::pending::<()>().await;
            Ok(0)
        });
        let second = flights.join("x", |_| async { Ok(1) });
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(gone.load(Ordering::Relaxed), 0);
        drop(second);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(gone.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_layers_work_is_shared_for_one_blob_of_one_registry_only() {
        let digest = |letter: &str| -> Digest { format!("sha256:{}", letter.repeat(64)).parse().unwrap() };
        let key = |reference, blob| LayerKey::new(&Reference::parse(reference).unwrap(), &digest(blob), &digest("a"));
        let flights: Flights<LayerKey, usize> = Flights::default();
        let stuck = [key("evil.example/x", "b"), key("honest.example/x", "e")];
        let stuck = stuck.map(|key| flights.join(key, |_| std::future::pending()));
        let honest = flights.join(key("honest.example/a:1", "b"), |_| async { Ok(1) });
        let joined = flights.join(key("honest.example/b:2", "b"), |_| async { Ok(2) });
        assert!(!honest.is_others && joined.is_others);
        assert_eq!(joined.outcome.await.unwrap(), 1);
        for stuck in stuck {
            assert!(stuck.outcome.now_or_never().is_none());
        }
    }
}
