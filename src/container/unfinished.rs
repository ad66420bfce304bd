//! Containers whose making failed, or was cut short, or whose removal was: they go, sooner or later.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::watch;

use super::{Container, Containers, Inherited, State, name_of, now_ns};
use crate::model::chain;
use crate::monitor::Access;
use crate::store::{ContainerRecord, Exit};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Containers {
    /// Takes in a container whose making failed and could not be undone: it is removed, by its record, as soon as that
    /// is possible, and seen until then.
    pub(super) fn undo_later(self: &Arc<Self>, record: ContainerRecord, monitor: Access) {
        let exit = Exit::unknown("it could not be made", now_ns());
        let container = Arc::new(Container {
            state: watch::Sender::new(State::Exited {
                started_at_ns: None,
                exit,
            }),
            policy: None,
            resources: Mutex::default(),
            updating: tokio::sync::Mutex::default(),
            monitor,
            starting: tokio::sync::Mutex::default(),
            end_told: false.into(),
            leases: Vec::new(),
            listing: OnceLock::default(),
            inherited: Inherited {
                unfinished: true,
                ..Inherited::default()
            },
            record,
        });
        self.take_in(&container);
        self.finish_removal(container);
    }

    /// Makes a container seen, by id and by name.
    pub(super) fn take_in(&self, container: &Arc<Container>) {
        let record = &container.record;
        let name = name_of(&record.sandbox_id, &record.metadata());
        self.names
            .lock()
            .expect("no panic holds it")
            .insert(name, record.id.clone());
        self.index
            .write()
            .expect("no panic holds it")
            .insert(record.id.clone(), container.clone());
    }

    /// Removes a container in the background, again and again until it is gone.
    pub(super) fn finish_removal(self: &Arc<Self>, container: Arc<Container>) {
        let this = self.clone();
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            // Who was asked to make it must be asked to forget it.
            container.monitor.answering().await;
            while this.find(container.record.id.as_str()).is_ok() {
                let Err(error) = this.remove_found(&container).await else {
                    return;
                };
                let id = &container.record.id;
                tracing::warn!(container_id = %id, error = %chain(&error), "unfinished container cannot be removed yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }
}
