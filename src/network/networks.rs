//! Which network a new pod gets, and the way to it.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::attachment::Backend;
use super::cni::{Cni, Discovery, Found};
use super::embedded::{Embedded, Subnet};
use super::pod_cidrs::{self, PodCidrFile};
use super::{Attached, Attachment, Mode, NetworkConfig, NetworkError, Plan, PodNetwork};
use crate::model::chain;

/// Both networks of an instance.
pub struct Networks {
    mode: Mode,
    cni: Cni,
    embedded: Embedded,
    pod_cidrs: Mutex<Vec<Subnet>>,
    pod_cidr_file: PodCidrFile,
    /// Held while the pod CIDRs change, so that file and memory agree.
    changing: tokio::sync::Mutex<()>,
}

/// Whether new pods can be connected, for CRI's `NetworkReady` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    pub ready: bool,
    /// One word in CamelCase; empty if ready.
    pub reason: String,
    /// Which network is in force and why, or what is wrong.
    pub message: String,
}

/// What new pods get now.
enum Choice {
    Cni(Arc<Found>),
    Embedded,
    /// A configuration is there, or is asked for, and none is valid. The embedded network does not stand in: a node that
    /// somebody configured would get pods that nobody else can reach.
    None(NetworkError),
}

impl Networks {
    /// Reads the records of the instance; the host's network is not touched before the first pod.
    /// The network namespace of the caller's thread is the host's side of every pod.
    pub fn open(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let dir = config.run.join("network");
        let pod_cidr_file = PodCidrFile::new(&dir);
        let pod_cidrs = pod_cidr_file.read()?;
        Ok(Arc::new(Self {
            mode: config.mode,
            cni: Cni::new(&config),
            embedded: Embedded::open(&dir, &config.embedded, pod_cidrs.clone())?,
            pod_cidrs: Mutex::new(pod_cidrs),
            pod_cidr_file,
            changing: tokio::sync::Mutex::default(),
        }))
    }

    fn choose(&self) -> Result<Choice, NetworkError> {
        if self.mode == Mode::Embedded {
            return Ok(Choice::Embedded);
        }
        Ok(match self.cni.directory.look()? {
            Discovery::Found(found) => Choice::Cni(found),
            Discovery::Broken { path, reason } => Choice::None(NetworkError::Config { path, reason }),
            Discovery::Nothing if self.mode == Mode::Auto => Choice::Embedded,
            Discovery::Nothing => Choice::None(NetworkError::NotReady {
                message: format!("no CNI configuration in {}", self.cni.directory.path().display()),
            }),
        })
    }

    /// Decides how the pod will be connected. The caller writes the plan to disk before [`Networks::add`].
    pub fn plan(&self, mut attachment: Attachment) -> Result<Plan, NetworkError> {
        attachment.ports.retain(|port| port.host_port != 0);
        let backend = match self.choose()? {
            Choice::Cni(found) => {
                let cidrs = self.pod_cidrs.lock().unwrap_or_else(PoisonError::into_inner);
                self.cni.backend(&found, cidrs.iter().map(Subnet::to_string).collect())
            }
            Choice::Embedded => Backend::Embedded,
            Choice::None(error) => return Err(error),
        };
        Ok(Plan { attachment, backend })
    }

    fn of(&self, plan: &Plan) -> &dyn PodNetwork {
        match plan.backend {
            Backend::Cni { .. } => &self.cni,
            Backend::Embedded => &self.embedded,
        }
    }

    /// Connects the pod. A failure is undone as far as it can be; [`Networks::del`] finishes that.
    pub async fn add(&self, plan: &Plan) -> Result<Attached, NetworkError> {
        self.of(plan).add(plan).await
    }

    /// Disconnects the pod. Idempotent; fine when the pod's network namespace is gone. To be called again until it
    /// succeeds.
    pub async fn del(&self, plan: &Plan, attached: Option<&Attached>) -> Result<(), NetworkError> {
        self.of(plan).del(plan, attached).await
    }

    /// Asks whether the pod is still connected as `attached` says (CNI's CHECK; the embedded network has none).
    pub async fn check(&self, plan: &Plan, attached: &Attached) -> Result<(), NetworkError> {
        self.cni.check(plan, attached).await
    }

    /// Frees what belongs to no plan of `valid`. To be called once at start, with the plans of all pods not yet DELed.
    pub async fn gc(&self, valid: &[Plan]) -> Result<(), NetworkError> {
        let embedded = self.embedded.gc(valid).await;
        self.cni.gc(valid).await.and(embedded)
    }

    /// Ends what DEL left to the kernel's own time. To be called before the process ends, so that nothing is left of
    /// pods that are gone.
    pub async fn settle(&self) -> Result<(), NetworkError> {
        self.embedded.settle().await
    }

    /// Takes the pod CIDRs that the kubelet gives this node, one of each family at most: `10.1.2.0/24,fd00::/64`. From
    /// here on, and after a restart, new pods get addresses of them by the embedded network; CNI plugins with the
    /// `ipRanges` capability get them, too. Pods that have an address keep it.
    pub async fn set_pod_cidrs(&self, text: &str) -> Result<(), NetworkError> {
        let subnets = pod_cidrs::parse(text)?;
        let _changing = self.changing.lock().await;
        self.pod_cidr_file.write(&subnets)?;
        *self.pod_cidrs.lock().unwrap_or_else(PoisonError::into_inner) = subnets.clone();
        self.embedded.set_pod_cidrs(subnets).await
    }

    /// What new pods get and from where, for who asks; of a CNI configuration no more than its names, as it may hold secrets.
    pub fn describe(&self) -> Value {
        let network = match self.choose() {
            Ok(Choice::Cni(found)) => json!({
                "name": found.list.name,
                "cniVersion": found.list.version.as_str(),
                "path": found.path,
                "plugins": found.list.plugins.iter().map(|plugin| &plugin.kind).collect::<Vec<_>>(),
            }),
            Ok(Choice::Embedded) => json!({ "name": "embedded" }),
            Err(error) | Ok(Choice::None(error)) => json!({ "error": chain(&error) }),
        };
        let cidrs = self.pod_cidrs.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "confDir": self.cni.directory.path(),
            "binDirs": self.cni.plugin_dirs(),
            "podCIDRs": cidrs.iter().map(Subnet::to_string).collect::<Vec<_>>(),
            "network": network,
        })
    }

    /// Which network is in force for new pods, and whether it can take them.
    pub async fn status(&self) -> NetworkStatus {
        let not_ready = |message: String| NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message,
        };
        let ready = |message| NetworkStatus {
            ready: true,
            reason: String::new(),
            message,
        };
        match self.choose() {
            Err(error) | Ok(Choice::None(error)) => not_ready(error.to_string()),
            Ok(Choice::Cni(found)) => {
                let network = format!("CNI network {:?} of {}", found.list.name, found.path.display());
                match self.cni.trouble(&found).await {
                    Some(trouble) => not_ready(format!("{network}: {trouble}")),
                    None => ready(network),
                }
            }
            Ok(Choice::Embedded) => {
                let why = match self.mode {
                    Mode::Embedded => "as configured".to_owned(),
                    _ => format!("no CNI configuration in {}", self.cni.directory.path().display()),
                };
                match self.embedded.probe().await {
                    Ok(()) => ready(format!("embedded network: {why}")),
                    Err(error) => not_ready(format!("embedded network: {}", chain(&error))),
                }
            }
        }
    }
}
