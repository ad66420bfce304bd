//! RunPodSandbox: a pod is born.
//!
//! The intent is on disk before anything is made; each thing made is followed by how to unmake it; the network comes up
//! beside monitor and pause.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use prost::Message;
use serde_json::value::to_raw_value;
use tokio::sync::oneshot;

use super::limits::{namespace_options, validate};
use super::{Inherited, Sandbox, SandboxError, Sandboxes, blocking, files, name_of, now_ns};
use crate::container::hostname;
use crate::container::spec::namespaces::host_network;
use crate::container::spec::{self, SandboxFile};
use crate::cri;
use crate::events::Kind;
use crate::fault;
use crate::model::{SandboxId, chain};
use crate::monitor::Access;
use crate::monitor::client::{Client, Events as MonitorEvents, SandboxFds, SandboxSpec};
use crate::monitor::protocol::{self, IdMapping};
use crate::network::{Attached, Attachment, Dns, Plan, PortMapping, Protocol, netns};
use crate::operation::OperationError;
use crate::store::{PodPhase, PodRecord, PodStatus, Process};
use crate::sys::cgroup::JoinFds;
use crate::sys::userns::{self, IdRange};
use crate::undo::Undo;

impl Sandboxes {
    /// Runs a sandbox and returns its id once it is ready. The same request again, while the first is under way or
    /// has not been answered, gets the first one's result; a failure that nobody received is tried again.
    pub async fn run(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<SandboxId, Arc<SandboxError>> {
        validate(&config, &self.parts.cgroup_driver)?;
        self.check_handler(&config, &runtime_handler)?;
        let name = name_of(&config.metadata.clone().unwrap_or_default());
        let mut request = config.encode_to_vec();
        request.extend_from_slice(runtime_handler.as_bytes());
        let this = self.clone();
        let key = name.clone();
        let work = || async move { this.run_named(key, config, runtime_handler).await.map_err(Arc::new) };
        match self.running.run(&name, request, work).await {
            Ok(result) => result,
            Err(OperationError::Conflict) => Err(Arc::new(SandboxError::NameBusy { name })),
            Err(OperationError::Lost) => Err(Arc::new(SandboxError::Lost)),
        }
    }

    /// Refuses a handler that is not configured, and what the configured one cannot do.
    fn check_handler(&self, config: &cri::PodSandboxConfig, name: &str) -> Result<(), SandboxError> {
        let handler = self.parts.handlers.find(name)?;
        if spec::namespaces::user_ids(config).is_none() {
            return Ok(());
        }
        if !handler.features.user_namespaces {
            let what = format!("runtime handler {name:?} does not support user namespaces");
            return Err(SandboxError::Invalid { what });
        }
        self.parts
            .containers
            .user_namespaces()
            .map_err(|why| SandboxError::NoUserNamespaces { why })
    }

    async fn run_named(
        self: Arc<Self>,
        name: String,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<SandboxId, SandboxError> {
        let id = SandboxId::new(crate::model::random_id());
        if let Some(made) = self.inherit(&name, &config, &runtime_handler).await? {
            return Ok(made);
        }
        let record = Arc::new(self.describe(&id, config, runtime_handler)?);
        {
            let mut names = self.names.lock().expect("no panic holds it");
            if let Some(holder) = names.get(&name) {
                return Err(SandboxError::NameTaken {
                    name,
                    sandbox_id: holder.clone(),
                });
            }
            names.insert(name.clone(), id.clone());
        }
        let mut undo = Undo::default();
        let this = self.clone();
        undo.push("pod sandbox name", move || async move {
            this.names.lock().expect("no panic holds it").remove(&name);
            Ok(())
        });
        match self.make(&record, &mut undo).await {
            Ok(sandbox) => {
                undo.commit();
                fault::point("run: committed").await?;
                self.index
                    .write()
                    .expect("no panic holds it")
                    .insert(id.clone(), sandbox);
                self.tell(Kind::Created, &id);
                self.tell(Kind::Started, &id);
                Ok(id)
            }
            Err(error) => {
                let left = undo.unwind().await;
                let (store, at) = (self.parts.store.clone(), id);
                // By the record alone can what is left be undone: it goes last, or it stays.
                if !left.is_empty() || blocking(move || store.remove_pod(&at)).await.is_err() {
                    self.undo_later(record);
                }
                Err(error)
            }
        }
    }

    /// Makes everything that a sandbox is; `undo` can unmake it, but for the directories.
    async fn make(self: &Arc<Self>, record: &Arc<PodRecord>, undo: &mut Undo) -> Result<Arc<Sandbox>, SandboxError> {
        let id = &record.id;
        let sysctls = spec::sandbox::check(&record.config, &self.parts.host)?;
        let spec = sandbox_spec(record, sysctls);
        let sandbox = Arc::new(Sandbox {
            record: record.clone(),
            status: Mutex::default(),
            monitor: Access::gone(),
            ending: tokio::sync::Mutex::default(),
            making: Arc::default(),
            inherited: Inherited::default(),
            listing: OnceLock::default(),
        });

        // Inside, the pod's files are root's.
        let owner = spec::namespaces::user_ids(&record.config).map_or(0, |ids| ids.first);
        let store = self.parts.store.clone();
        let (written, run_dir) = (record.clone(), store.pod_run_dir(id));
        blocking({
            let run_dir = run_dir.clone();
            move || {
                store.create_pod(&written)?;
                let dns = written.config.dns_config.as_ref();
                let own_network = written.netns.is_some();
                let hostname = hostname(&written.config);
                files::write(&run_dir, &hostname, dns, own_network, owner)
                    .map_err(SandboxError::path("write the files of", &run_dir))
            }
        })
        .await?;
        fault::point("run: recorded").await?;

        undo.push("/dev/shm of the pod", {
            let run_dir = run_dir.clone();
            move || async move {
                blocking(move || files::unmount_shm(&run_dir))
                    .await
                    .map_err(|error| error.to_string())
            }
        });
        let own_ipc = namespace_options(&record.config).ipc() != cri::NamespaceMode::Node;
        undo.push("cgroup of the pod", {
            let (this, record) = (self.clone(), record.clone());
            move || async move { this.unmake_cgroup(&record).await.map_err(|error| chain(&error)) }
        });
        let (told, monitor_pid) = oneshot::channel();
        let mounted = async {
            blocking(move || match own_ipc {
                true => files::mount_shm(&run_dir, owner)
                    .map_err(SandboxError::path("mount", run_dir.join(SandboxFile::Shm.name()))),
                false => Ok(()),
            })
            .await?;
            self.make_cgroup(record, monitor_pid).await
        };
        let monitor = async {
            let monitor = self.spawn_monitor(record).await;
            if let Ok((client, _)) = &monitor {
                // Without systemd nobody asks.
                let _ = told.send(client.monitor_pid());
            }
            monitor
        };
        // A sysctl that is asked for may be of an interface.
        let needs_interfaces = record
            .config
            .linux
            .as_ref()
            .is_some_and(|linux| !linux.sysctls.is_empty());
        let (give, given) = oneshot::channel();
        let network = async {
            let namespaces = self.make_namespaces(record).await?;
            if needs_interfaces {
                let attached = self.attach_network(record).await?;
                // Nobody takes them where the monitor or the cgroup has failed.
                let _ = give.send(namespaces);
                return Ok(attached);
            }
            let _ = give.send(namespaces);
            self.attach_network(record).await
        };
        let pause = async {
            let (monitor, joined) = tokio::join!(monitor, mounted);
            let Ok((client, _)) = &monitor else {
                return (monitor, Err(SandboxError::Lost));
            };
            let made = self.make_pause(&record.id, client, spec, given, joined).await;
            (monitor, made)
        };
        let (network, (monitor, pause)) = tokio::join!(network, pause);
        if record.netns.is_some() {
            let this = self.clone();
            let (record, attached) = (record.clone(), network.as_ref().ok().and_then(Clone::clone));
            undo.push("network of the pod", move || async move {
                this.detach_network(&record, attached).await
            });
        }
        if let Ok((client, _)) = &monitor {
            let client = client.clone();
            undo.push("monitor of the pod", move || async move {
                client.stop_sandbox().await.map_err(|error| chain(&error))?;
                client.shutdown().await.map_err(|error| chain(&error))
            });
        }
        let (client, events) = monitor?;
        let attached = network?;
        let pause = pause?;
        fault::point("run: network and pause up").await?;
        let status = PodStatus {
            phase: PodPhase::Ready,
            ips: attached
                .as_ref()
                .map(|attached| attached.ips.clone())
                .unwrap_or_default(),
            attached: attached.as_ref().and_then(|attached| to_raw_value(attached).ok()),
            network_released: record.netns.is_none(),
            pause: Some(Process {
                pid: pause.pid,
                start_time: pause.start_time,
            }),
            monitor_pid: Some(client.monitor_pid()),
            resources: None,
        };
        self.record_status(id, status.clone()).await?;
        fault::point("run: ready recorded").await?;
        sandbox.change(|now| *now = status);
        sandbox.monitor.set(client);
        self.follow(&sandbox, events);
        Ok(sandbox)
    }

    /// The record of a sandbox to be: what is asked for, and where its parts will be.
    fn describe(
        &self,
        id: &SandboxId,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<PodRecord, SandboxError> {
        let place = self.place(id, &config)?;
        let netns = (!host_network(&config)).then(|| self.parts.netns_dir.join(id));
        let network = match &netns {
            None => None,
            Some(netns) => {
                let plan = self
                    .parts
                    .networks
                    .plan(attachment(id, &config, netns.clone()))
                    .map_err(|source| SandboxError::Network {
                        op: "plan the network",
                        sandbox_id: id.clone(),
                        source,
                    })?;
                let plan = to_raw_value(&plan).map_err(|error| SandboxError::Invalid {
                    what: format!("network plan: {error}"),
                })?;
                Some(plan)
            }
        };
        Ok(PodRecord {
            id: id.clone(),
            cgroup_made_below: place.made_below,
            scope: place.scope,
            config,
            runtime_handler,
            created_at_ns: now_ns(),
            boot_id: self.parts.boot_id.clone(),
            netns,
            network,
            cgroup_parent: place.parent,
        })
    }

    async fn spawn_monitor(&self, record: &PodRecord) -> Result<(Client, MonitorEvents), SandboxError> {
        let run_dir = self.parts.store.pod_run_dir(&record.id);
        self.parts
            .launcher
            .spawn(&record.id, &run_dir)
            .await
            .map_err(|source| SandboxError::Monitor {
                op: "start the monitor",
                sandbox_id: record.id.clone(),
                source,
            })
    }

    /// Has the monitor make pause, in `cgroup` and the namespaces that come.
    async fn make_pause(
        &self,
        id: &SandboxId,
        client: &Client,
        spec: SandboxSpec,
        namespaces: oneshot::Receiver<PodNamespaces>,
        cgroup: Result<JoinFds, SandboxError>,
    ) -> Result<protocol::Process, SandboxError> {
        let cgroup = cgroup?;
        // Without them the network says why.
        let namespaces = namespaces.await.map_err(|_| SandboxError::Lost)?;
        let fds = SandboxFds {
            netns: namespaces.network,
            user: namespaces.user,
            cgroup_procs: cgroup.tasks,
            cgroup_dir: cgroup.directory,
        };
        let pause = client.create_sandbox(spec, fds).await;
        let pause = pause.map_err(|source| SandboxError::Monitor {
            op: "create the namespaces",
            sandbox_id: id.clone(),
            source,
        })?;
        fault::point("run: pause made").await?;
        Ok(pause)
    }

    /// The network namespace, if the pod has one of its own, and the user namespace that owns it.
    async fn make_namespaces(&self, record: &PodRecord) -> Result<PodNamespaces, SandboxError> {
        let ids = spec::namespaces::user_ids(&record.config);
        let Some(path) = record.netns.clone() else {
            return Ok(PodNamespaces {
                user: own_user_namespace(ids).await?,
                network: None,
            });
        };
        let (dir, id) = (self.parts.netns_dir.clone(), record.id.clone());
        let at = path.clone();
        let made = blocking(move || {
            let user = match ids {
                Some(ids) => Some(netns::create_owned(&dir, id.as_str(), ids)?),
                None => netns::create(&dir, id.as_str()).map(|_| None)?,
            };
            Ok((netns::open(&at)?, user))
        });
        let (network, user) = made
            .await
            .map_err(SandboxError::path("make the network namespace", path))?;
        fault::point("run: network namespace made").await?;
        Ok(PodNamespaces {
            network: Some(network.into()),
            user,
        })
    }

    /// ADD, if the pod has a network of its own.
    async fn attach_network(&self, record: &PodRecord) -> Result<Option<Attached>, SandboxError> {
        let Some(plan) = &record.network else { return Ok(None) };
        let plan: Plan = serde_json::from_str(plan.get()).map_err(|error| SandboxError::Invalid {
            what: format!("network plan: {error}"),
        })?;
        let added = self.parts.networks.add(&plan).await;
        let attached = added.map_err(|source| SandboxError::Network {
            op: "set up the network",
            sandbox_id: record.id.clone(),
            source,
        })?;
        fault::point("run: network added").await?;
        Ok(Some(attached))
    }

    /// Undoes [`Sandboxes::make_namespaces`] and [`Sandboxes::attach_network`], however far they came.
    async fn detach_network(&self, record: &PodRecord, attached: Option<Attached>) -> Result<(), String> {
        if let Some(plan) = record.network.clone() {
            let plan: Plan = serde_json::from_str(plan.get()).map_err(|error| error.to_string())?;
            self.parts
                .networks
                .del(&plan, attached.as_ref())
                .await
                .map_err(|error| chain(&error))?;
        }
        if let Some(path) = record.netns.clone() {
            blocking(move || netns::remove(&path))
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// The user namespace of a pod in the node's network.
async fn own_user_namespace(ids: Option<IdRange>) -> Result<Option<OwnedFd>, SandboxError> {
    let Some(ids) = ids else { return Ok(None) };
    match blocking(move || userns::create(ids, false)).await {
        Ok(made) => Ok(Some(made.user)),
        Err(source) => Err(SandboxError::UserNamespace { source }),
    }
}

/// The namespaces of a pod that are made outside its monitor.
struct PodNamespaces {
    network: Option<OwnedFd>,
    user: Option<OwnedFd>,
}

fn sandbox_spec(record: &PodRecord, sysctls: BTreeMap<PathBuf, String>) -> SandboxSpec {
    let options = namespace_options(&record.config);
    SandboxSpec {
        // With the node's network the node's name goes with it.
        hostname: (!host_network(&record.config)).then(|| hostname(&record.config)),
        new_ipc: options.ipc() != cri::NamespaceMode::Node,
        new_pid: options.pid() == cri::NamespaceMode::Pod,
        sysctls: sysctls
            .into_iter()
            .map(|(path, value)| (path.display().to_string(), value))
            .collect(),
        uid_mappings: spec::namespaces::user_ids(&record.config)
            .map(|ids| IdMapping {
                container_id: 0,
                host_id: ids.first,
                size: ids.count,
            })
            .into_iter()
            .collect(),
        ..SandboxSpec::default()
    }
}

fn attachment(id: &SandboxId, config: &cri::PodSandboxConfig, netns: PathBuf) -> Attachment {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    Attachment {
        sandbox_id: id.clone(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        netns,
        ports: config
            .port_mappings
            .iter()
            .filter(|mapping| mapping.host_port > 0)
            .map(|mapping| PortMapping {
                protocol: protocol(mapping.protocol()),
                container_port: mapping.container_port as u16,
                host_port: mapping.host_port as u16,
                host_ip: mapping.host_ip.parse().ok(),
            })
            .collect(),
        dns: Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        },
        annotations: config.annotations.clone().into_iter().collect(),
        cgroup_parent: config
            .linux
            .as_ref()
            .map(|linux| linux.cgroup_parent.clone())
            .filter(|path| !path.is_empty()),
    }
}

fn protocol(protocol: cri::Protocol) -> Protocol {
    match protocol {
        cri::Protocol::Tcp => Protocol::Tcp,
        cri::Protocol::Udp => Protocol::Udp,
        cri::Protocol::Sctp => Protocol::Sctp,
    }
}
