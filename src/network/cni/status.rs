//! Whether the plugins can take pods (STATUS of CNI 1.1). Plugins are asked in the background: who wants to know, a
//! kubelet every few seconds, waits for none that hangs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Map;
use tokio::sync::watch;

use super::conflist::{ConfList, Version};
use super::discovery::Found;
use super::{NetworkError, call_without_pod, exec};

/// How long an answer is believed before the plugins are asked again.
const AGE: Duration = Duration::from_secs(5);
/// How long one plugin may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the first answer to a configuration is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the plugins last said.
pub(super) struct Health {
    plugin_dirs: Vec<PathBuf>,
    deadline: Duration,
    known: Arc<Mutex<Known>>,
    asked: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Known {
    asking: bool,
    answer: Option<Answer>,
}

#[derive(Clone)]
struct Answer {
    at: Instant,
    /// The configuration that it is about.
    text: String,
    trouble: Option<String>,
}

fn locked(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    pub(super) fn new(plugin_dirs: Vec<PathBuf>, deadline: Duration) -> Self {
        Self {
            plugin_dirs,
            deadline: deadline.min(DEADLINE),
            known: Arc::default(),
            asked: Arc::new(watch::Sender::new(0)),
        }
    }

    /// Whether the network of `found` can take pods now; `Some` says why not. Plugins are asked at most every five
    /// seconds; while they think, what they said before counts.
    pub(super) async fn trouble(&self, found: &Arc<Found>) -> Option<String> {
        let mut plugins = found.list.plugins.iter();
        let missing = plugins.find_map(|plugin| exec::find(&plugin.kind, &self.plugin_dirs).err());
        if let Some(error) = missing {
            return Some(error.to_string());
        }
        if found.list.version < Version::V1_1_0 {
            return None;
        }
        let mut asked = self.asked.subscribe();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.answer_about(found) {
                return answer.trouble;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(tokio::time::timeout(left, asked.changed()).await, Ok(Ok(()))) {
                return Some("its plugins have not answered STATUS yet".to_owned());
            }
        }
    }

    /// What is known; sees to it that it does not grow too old.
    fn answer_about(&self, found: &Arc<Found>) -> Option<Answer> {
        let mut known = locked(&self.known);
        let answer = known.answer.clone().filter(|answer| answer.text == found.text);
        let fresh = answer.as_ref().is_some_and(|answer| answer.at.elapsed() < AGE);
        if !fresh && !known.asking {
            known.asking = true;
            self.ask_in_background(found.clone());
        }
        answer
    }

    fn ask_in_background(&self, found: Arc<Found>) {
        let (dirs, deadline) = (self.plugin_dirs.clone(), self.deadline);
        let (known, asked) = (self.known.clone(), self.asked.clone());
        tokio::spawn(async move {
            let said = ask(&found.list, &dirs, deadline).await;
            let answer = Answer {
                at: Instant::now(),
                text: found.text.clone(),
                trouble: said.err().map(|error| error.to_string()),
            };
            *locked(&known) = Known {
                asking: false,
                answer: Some(answer),
            };
            asked.send_modify(|count| *count += 1);
        });
    }
}

async fn ask(list: &ConfList, dirs: &[PathBuf], deadline: Duration) -> Result<(), NetworkError> {
    for plugin in &list.plugins {
        let conf = plugin.execution(list, Map::new(), Map::new());
        call_without_pod(&plugin.kind, dirs, "STATUS", deadline, &conf).await?;
    }
    Ok(())
}
