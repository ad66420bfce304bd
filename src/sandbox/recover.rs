//! After a restart of the daemon: pods as the disk, their monitors and the kernel know them.
//!
//! Nothing here waits for anything that can hang: what a pod lost is undone in the background.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use super::join::{Connected, GREETING, phase_by_sight};
use super::{Inherited, Sandbox, SandboxError, Sandboxes, name_of};
use crate::cri;
use crate::model::{SandboxId, chain};
use crate::monitor::Access;
use crate::store::{PodPhase, PodRecord, PodStatus, StoredPod};

impl Sandboxes {
    /// Takes over every pod of an earlier daemon, all at once, and has the network free what belongs to none of them.
    pub async fn recover(self: &Arc<Self>) -> Result<(), SandboxError> {
        let mut torn = Vec::new();
        let pods = self.parts.store.load(|id, error| torn.push((id, error)))?;
        for (id, error) in torn {
            tracing::warn!(sandbox_id = %id, error = %chain(&error), "record of a pod cannot be read: removing it");
            self.sweep(&id);
        }
        let recovered = pods.into_iter().map(|pod| self.recover_pod(pod));
        futures_util::future::join_all(recovered).await;
        self.release_lost_networks().await;
        Ok(())
    }

    async fn recover_pod(self: &Arc<Self>, pod: StoredPod) {
        let StoredPod {
            record,
            mut status,
            containers,
            abandoned,
        } = pod;
        let id = record.id.clone();
        let same_boot = record.boot_id == self.parts.boot_id;
        let mut connecting = (same_boot && status.phase != PodPhase::Removing).then(|| self.greet(&id));
        let mut connected = None;
        if let Some(task) = &mut connecting
            && let Ok(answer) = tokio::time::timeout(GREETING, task).await
        {
            (connected, connecting) = (answer.ok().flatten(), None);
        }
        // Only what is on disk and in the kernel is known of a pod whose monitor is silent.
        if connecting.is_some() {
            status.phase = phase_by_sight(&status);
        }
        let monitor = match (&connected, &connecting) {
            (Some((client, _, _)), _) => Access::up(client.clone()),
            (None, Some(_)) => Access::silent(),
            (None, None) => Access::gone(),
        };
        let phase = status.phase;
        let sandbox = Arc::new(Sandbox {
            record: Arc::new(record),
            status: Mutex::new(status),
            monitor,
            ending: tokio::sync::Mutex::default(),
            making: Arc::default(),
            listing: OnceLock::default(),
            inherited: Inherited {
                unfinished: matches!(phase, PodPhase::Creating | PodPhase::Removing),
                unanswered: (phase == PodPhase::Ready && containers.is_empty()).into(),
            },
        });
        self.names
            .lock()
            .expect("no panic holds it")
            .insert(name_of(&sandbox.record.metadata()), id.clone());
        self.index
            .write()
            .expect("no panic holds it")
            .insert(id.clone(), sandbox.clone());
        for container in abandoned {
            let swept = self.parts.containers.sweep(&sandbox.record, &container).await;
            if let Err(error) = swept {
                tracing::warn!(container_id = %container, error = %chain(&error), "what was begun of a container remains");
            }
        }
        let snapshot = connected.as_ref().map(|(_, snapshot, _)| snapshot.clone());
        for container in containers {
            self.parts
                .containers
                .adopt(container, &sandbox.monitor, snapshot.as_ref(), same_boot)
                .await;
        }
        if let Some(connecting) = connecting {
            self.join_later(sandbox.clone(), connecting);
        }
        self.settle(&sandbox, phase, connected, same_boot).await;
    }

    /// Goes on where the earlier daemon was with a pod, as far as the pod's monitor is there.
    async fn settle(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        phase: PodPhase,
        connected: Option<Connected>,
        same_boot: bool,
    ) {
        let id = &sandbox.record.id;
        match (phase, connected) {
            // Cut short by the death of the daemon: nobody got an answer, so it is undone, or finished.
            (PodPhase::Creating | PodPhase::Removing, _) => {
                sandbox.change(|status| status.phase = PodPhase::NotReady);
                self.finish_removal(sandbox.clone());
            }
            (PodPhase::Ready | PodPhase::NotReady, Some((_, snapshot, events))) => {
                let pause_lives = snapshot.pause.is_some() && snapshot.pause_exit.is_none();
                if phase == PodPhase::Ready && !pause_lives {
                    let status = sandbox.change(|status| status.phase = PodPhase::NotReady);
                    self.try_record_status(id, status).await;
                }
                self.follow(sandbox, events);
            }
            (PodPhase::Ready | PodPhase::NotReady, None) if sandbox.monitor.is_silent() => {}
            // Stopped, or its stop was cut short, or its monitor is gone.
            (PodPhase::Ready | PodPhase::NotReady, None) if same_boot => self.monitor_gone(sandbox).await,
            (PodPhase::Ready, None) => {
                let status = sandbox.change(|status| status.phase = PodPhase::NotReady);
                self.try_record_status(id, status).await;
            }
            (PodPhase::NotReady, None) => {}
        }
    }

    /// What a request finds of its first try, over which an earlier daemon died: the sandbox, if it was ready before
    /// anyone was told. If it was not, it is removed here, and its name, addresses and ports with it.
    pub(super) async fn inherit(
        self: &Arc<Self>,
        name: &str,
        config: &cri::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<Option<SandboxId>, SandboxError> {
        let holder = self.names.lock().expect("no panic holds it").get(name).cloned();
        let Some(sandbox) = holder.and_then(|id| self.find(id.as_str()).ok()) else {
            return Ok(None);
        };
        if sandbox.inherited.unfinished {
            self.remove(sandbox.record.id.as_str()).await?;
            return Ok(None);
        }
        let is_the_same = sandbox.record.config == *config && sandbox.record.runtime_handler == runtime_handler;
        let is_first = is_the_same && sandbox.is_ready() && sandbox.inherited.unanswered.swap(false, Ordering::Relaxed);
        Ok(is_first.then(|| sandbox.record.id.clone()))
    }

    /// Takes in a sandbox whose making failed and could not be undone: it is removed, by its record, as soon as that is
    /// possible, and seen until then.
    pub(super) fn undo_later(self: &Arc<Self>, record: Arc<PodRecord>) {
        let status = PodStatus {
            phase: PodPhase::NotReady,
            ..PodStatus::default()
        };
        let (id, name) = (record.id.clone(), name_of(&record.metadata()));
        let sandbox = Arc::new(Sandbox {
            record,
            status: Mutex::new(status),
            monitor: Access::gone(),
            ending: tokio::sync::Mutex::default(),
            making: Arc::default(),
            listing: OnceLock::default(),
            inherited: Inherited {
                unfinished: true,
                ..Inherited::default()
            },
        });
        self.names.lock().expect("no panic holds it").insert(name, id.clone());
        self.index
            .write()
            .expect("no panic holds it")
            .insert(id, sandbox.clone());
        self.finish_removal(sandbox);
    }

    /// Removes a pod in the background, again and again until it is gone.
    fn finish_removal(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let this = self.clone();
        tokio::spawn(async move {
            let mut pause = std::time::Duration::from_millis(100);
            loop {
                // A pod that a silent monitor was making is ended by it, if it answers in time.
                sandbox.monitor.answering().await;
                let ending = sandbox.ending.lock().await;
                if this.find(sandbox.record.id.as_str()).is_err() {
                    return;
                }
                match this.remove_found(&sandbox).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(sandbox_id = %sandbox.record.id, error = %chain(&error), "pod cannot be removed yet");
                    }
                }
                drop(ending);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(std::time::Duration::from_secs(60));
            }
        });
    }

    /// Removes what an unreadable record belonged to, as far as its id leads.
    fn sweep(self: &Arc<Self>, id: &SandboxId) {
        let (store, id) = (self.parts.store.clone(), id.clone());
        let netns = self.parts.netns_dir.join(&id);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::network::netns::remove(&netns) {
                tracing::warn!(sandbox_id = %id, %error, "network namespace of a torn pod remains");
            }
            if let Err(error) = super::files::unmount_shm(&store.pod_run_dir(&id)) {
                tracing::warn!(sandbox_id = %id, %error, "mount of a torn pod remains");
            }
            if let Err(error) = store.remove_pod(&id) {
                tracing::warn!(sandbox_id = %id, error = %chain(&error), "directories of a torn pod remain");
            }
        });
    }

    /// Tells the network which pods hold one, so that it frees what belongs to none.
    async fn release_lost_networks(&self) {
        let held: Vec<_> = self
            .list(|sandbox| !sandbox.status().network_released)
            .iter()
            .filter_map(|sandbox| serde_json::from_str(sandbox.record.network.as_ref()?.get()).ok())
            .collect();
        if let Err(error) = self.parts.networks.gc(&held).await {
            tracing::warn!(error = %chain(&error), "networks of lost pods not collected");
        }
    }
}
