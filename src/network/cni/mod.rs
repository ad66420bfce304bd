//! Pod networks by the node's CNI plugins (CNI spec 1.1; configurations and results down to 0.1).

mod conflist;
mod discovery;
mod exec;
mod result;
mod runtime;
mod status;
mod turn;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::attachment::Backend;
use super::{Attached, Attachment, NetworkConfig, NetworkError, Plan, PodNetwork, netns};
use conflist::{ConfList, Version};
pub use discovery::{Directory, Discovery, Found};
use exec::Call;
use status::Health;
use turn::Turn;

/// The pod's link, for all networks.
const POD_LINK: &str = "eth0";

/// The CNI side of an instance.
pub struct Cni {
    pub directory: Directory,
    plugin_dirs: Vec<PathBuf>,
    deadline: Duration,
    turns: PathBuf,
    gc: bool,
    health: Health,
}

/// What one call to a chain of plugins needs.
struct Chain<'a> {
    list: &'a ConfList,
    dirs: &'a [PathBuf],
    attachment: &'a Attachment,
    pod_cidrs: &'a [String],
    deadline: Duration,
}

impl Cni {
    pub fn new(config: &NetworkConfig) -> Self {
        Self {
            directory: Directory::new(config.conf_dir.clone()),
            plugin_dirs: config.plugin_dirs.clone(),
            deadline: config.plugin_deadline,
            turns: config.run.join("network/cni"),
            gc: config.cni_gc,
            health: Health::new(config.plugin_dirs.clone(), config.plugin_deadline),
        }
    }

    /// Where plugins are looked for, in order.
    pub fn plugin_dirs(&self) -> &[PathBuf] {
        &self.plugin_dirs
    }

    /// What a plan for the configuration `found` remembers.
    pub fn backend(&self, found: &Found, pod_cidrs: Vec<String>) -> Backend {
        Backend::Cni {
            network: found.list.name.clone(),
            conflist: found.text.clone(),
            plugin_dirs: self.plugin_dirs.clone(),
            pod_cidrs,
        }
    }

    /// Whether the network can take pods now; `Some` says why not.
    pub async fn trouble(&self, found: &Arc<Found>) -> Option<String> {
        self.health.trouble(found).await
    }

    /// Asks the plugins whether the pod is still connected as it was (CHECK).
    pub async fn check(&self, plan: &Plan, attached: &Attached) -> Result<(), NetworkError> {
        let Some(stored) = stored(plan)? else {
            return Ok(());
        };
        if stored.list.disable_check || stored.list.version < Version::V0_4_0 {
            return Ok(());
        }
        let chain = stored.chain(&plan.attachment, self.deadline);
        let mut turn = Turn::wait(&self.turns, plan.sandbox_id()).await?;
        for n in 0..stored.list.plugins.len() {
            chain.call(n, "CHECK", Some(&attached.result), &mut turn).await?;
        }
        Ok(())
    }

    /// Locks of pods that are no more.
    fn sweep(&self, valid: &[Plan]) -> Result<(), NetworkError> {
        let Ok(entries) = std::fs::read_dir(&self.turns) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            if !valid.iter().any(|plan| entry.file_name() == plan.sandbox_id().as_str()) {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(|source| NetworkError::File {
                    op: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }
}

async fn call_without_pod(
    plugin: &str,
    dirs: &[PathBuf],
    command: &'static str,
    deadline: Duration,
    conf: &Value,
) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::PluginRun {
        op: "prepare",
        plugin: plugin.to_owned(),
        source,
    };
    let input = anonymous(conf.to_string().as_bytes()).map_err(failed)?;
    Call {
        plugin,
        dirs,
        command,
        environment: Vec::new(),
        deadline,
    }
    .run(input)
    .await
    .map(drop)
}

/// Standard input that holds `bytes`.
fn anonymous(bytes: &[u8]) -> std::io::Result<Stdio> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("cni", rustix::fs::MemfdFlags::CLOEXEC)?);
    std::io::Write::write_all(&mut file, bytes)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(file.into())
}

/// The configuration that a plan for CNI was made with; for another network's plan there is none.
fn stored(plan: &Plan) -> Result<Option<Stored<'_>>, NetworkError> {
    let Backend::Cni {
        network,
        conflist,
        plugin_dirs,
        pod_cidrs,
    } = &plan.backend
    else {
        return Ok(None);
    };
    let list = ConfList::parse(conflist).map_err(|reason| NetworkError::Config {
        path: format!("recorded of {network}").into(),
        reason,
    })?;
    Ok(Some(Stored {
        list,
        dirs: plugin_dirs,
        pod_cidrs,
    }))
}

/// What a plan for CNI remembers.
struct Stored<'a> {
    list: ConfList,
    dirs: &'a [PathBuf],
    pod_cidrs: &'a [String],
}

impl Stored<'_> {
    fn chain<'a>(&'a self, attachment: &'a Attachment, deadline: Duration) -> Chain<'a> {
        Chain {
            list: &self.list,
            dirs: self.dirs,
            attachment,
            pod_cidrs: self.pod_cidrs,
            deadline,
        }
    }
}

impl Chain<'_> {
    /// Runs the `n`th plugin.
    async fn call(
        &self,
        n: usize,
        command: &'static str,
        previous: Option<&Value>,
        turn: &mut Turn,
    ) -> Result<Value, NetworkError> {
        let plugin = &self.list.plugins[n];
        let mut extra = Map::new();
        if let Some(previous) = previous {
            let mut previous = previous.clone();
            if let Some(object) = previous.as_object_mut() {
                object.insert("cniVersion".into(), self.list.version.as_str().into());
            }
            extra.insert("prevResult".into(), previous);
        }
        let conf = plugin.execution(
            self.list,
            runtime::config(plugin, self.attachment, self.pod_cidrs),
            extra,
        );
        let netns = &self.attachment.netns;
        // A namespace that is gone is named by nothing: plugins then clean up all but the pod's end.
        let gone = command == "DEL" && netns::open(netns).is_err();
        let call = Call {
            plugin: &plugin.kind,
            dirs: self.dirs,
            command,
            environment: vec![
                ("CNI_CONTAINERID", self.attachment.sandbox_id.to_string()),
                (
                    "CNI_NETNS",
                    if gone {
                        String::new()
                    } else {
                        netns.display().to_string()
                    },
                ),
                ("CNI_IFNAME", POD_LINK.to_owned()),
                ("CNI_ARGS", runtime::arguments(self.attachment)),
            ],
            deadline: self.deadline,
        };
        let input = turn.input(conf.to_string().as_bytes());
        let failed = |source| NetworkError::PluginRun {
            op: "prepare",
            plugin: plugin.kind.clone(),
            source,
        };
        let result = call.run(input.map_err(failed)?).await?;
        match command {
            "ADD" if !result.is_object() => Err(call.unusable("it is no JSON object")),
            _ => Ok(result),
        }
    }

    /// Every plugin in order, each with the result of the one before.
    async fn add(&self, turn: &mut Turn, reached: &mut Option<Value>) -> Result<Attached, NetworkError> {
        for n in 0..self.list.plugins.len() {
            let result = self.call(n, "ADD", reached.as_ref(), turn).await?;
            *reached = Some(result);
        }
        let result = reached.clone().unwrap_or_default();
        let ips = result::addresses(&result);
        if ips.is_empty() {
            let plugin = self
                .list
                .plugins
                .last()
                .map(|plugin| plugin.kind.clone())
                .unwrap_or_default();
            let reason = "it gives the pod no address".to_owned();
            return Err(NetworkError::PluginResult {
                plugin,
                command: "ADD",
                reason,
            });
        }
        Ok(Attached { ips, result })
    }

    /// Every plugin in reverse order. One that fails does not keep the others from giving back what they hold; the first
    /// failure is returned, and the caller comes again.
    async fn del(&self, turn: &mut Turn, result: Option<&Value>) -> Result<(), NetworkError> {
        let previous = result.filter(|result| self.list.version >= Version::V0_4_0 && result.is_object());
        let mut first = Ok(());
        for n in (0..self.list.plugins.len()).rev() {
            if let Err(error) = self.call(n, "DEL", previous, turn).await {
                first = first.and(Err(error));
            }
        }
        first
    }
}

#[async_trait]
impl PodNetwork for Cni {
    async fn add(&self, plan: &Plan) -> Result<Attached, NetworkError> {
        let Some(stored) = stored(plan)? else {
            unreachable!("a plan for CNI")
        };
        let chain = stored.chain(&plan.attachment, self.deadline);
        let mut turn = Turn::wait(&self.turns, plan.sandbox_id()).await?;
        let mut reached = None;
        let added = chain.add(&mut turn, &mut reached).await;
        if added.is_err() {
            match chain.del(&mut turn, reached.as_ref()).await {
                Ok(()) => turn.last()?,
                Err(error) => {
                    tracing::warn!(sandbox_id = %plan.sandbox_id(), %error, "could not undo a failed ADD; DEL will");
                }
            }
        }
        added
    }

    async fn del(&self, plan: &Plan, attached: Option<&Attached>) -> Result<(), NetworkError> {
        let Some(stored) = stored(plan)? else {
            return Ok(());
        };
        let chain = stored.chain(&plan.attachment, self.deadline);
        let mut turn = Turn::wait(&self.turns, plan.sandbox_id()).await?;
        chain.del(&mut turn, attached.map(|attached| &attached.result)).await?;
        turn.last()
    }

    async fn gc(&self, valid: &[Plan]) -> Result<(), NetworkError> {
        self.sweep(valid)?;
        if !self.gc {
            return Ok(());
        }
        let mut networks: BTreeMap<String, (ConfList, Vec<PathBuf>, Vec<Value>)> = BTreeMap::new();
        if let Discovery::Found(found) = self.directory.look()? {
            networks.insert(
                found.list.name.clone(),
                (found.list.clone(), self.plugin_dirs.clone(), Vec::new()),
            );
        }
        for plan in valid {
            let Some(Stored { list, dirs, .. }) = stored(plan)? else {
                continue;
            };
            let network = networks
                .entry(list.name.clone())
                .or_insert_with(|| (list, dirs.to_vec(), Vec::new()));
            network
                .2
                .push(json!({ "containerID": plan.sandbox_id(), "ifname": POD_LINK }));
        }
        let mut first = Ok(());
        for (list, dirs, attachments) in networks.values() {
            if list.disable_gc || list.version < Version::V1_1_0 {
                continue;
            }
            for plugin in &list.plugins {
                let extra = Map::from_iter([("cni.dev/valid-attachments".to_owned(), attachments.clone().into())]);
                let conf = plugin.execution(list, Map::new(), extra);
                let called = call_without_pod(&plugin.kind, dirs, "GC", self.deadline, &conf).await;
                first = first.and(called);
            }
        }
        first
    }
}
