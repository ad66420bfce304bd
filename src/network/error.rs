//! What can go wrong when a pod is connected.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// An error of the network room.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A file of ours, or of CNI's configuration, could not be worked on.
    #[error("{op} {path}", path = path.display())]
    File {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change of links, addresses, routes or rules.
    #[error("{op} {subject}")]
    Kernel {
        op: &'static str,
        subject: String,
        #[source]
        source: io::Error,
    },
    /// Every address of the pod network is taken.
    #[error("no address is free in {subnet}")]
    Exhausted { subnet: String },
    /// What the kubelet calls this node's pod CIDR is none.
    #[error("pod CIDR {text:?}: {why}")]
    PodCidr { text: String, why: String },
    /// Every candidate for the pod network overlaps a route of the host.
    #[error("no network is free for pods: {tried} overlap routes of this host")]
    NoSubnet { tried: String },
    /// Another pod, or another entry of the same pod, has the host port.
    #[error("host port {port} is taken by sandbox {holder}")]
    PortTaken { port: String, holder: String },
    /// A CNI configuration file is not usable.
    #[error("{path} is not a usable CNI configuration: {reason}", path = path.display())]
    Config { path: PathBuf, reason: String },
    /// A CNI plugin is not installed.
    #[error("CNI plugin {plugin} is in none of {dirs}")]
    PluginMissing { plugin: String, dirs: String },
    /// A CNI plugin could not be run, or spoken to.
    #[error("{op} CNI plugin {plugin}")]
    PluginRun {
        op: &'static str,
        plugin: String,
        #[source]
        source: io::Error,
    },
    /// A CNI plugin did not end in time and was killed with all its children.
    #[error("CNI plugin {plugin} did not finish {command} within {deadline:?}")]
    PluginDeadline {
        plugin: String,
        command: &'static str,
        deadline: Duration,
    },
    /// A CNI plugin said no.
    #[error("CNI plugin {plugin} failed {command}: {message} (code {code})")]
    PluginFailed {
        plugin: String,
        command: &'static str,
        code: u64,
        message: String,
    },
    /// A CNI plugin printed something that is no result.
    #[error("CNI plugin {plugin} printed no usable result of {command}: {reason}")]
    PluginResult {
        plugin: String,
        command: &'static str,
        reason: String,
    },
    /// New pods cannot be connected now.
    #[error("the pod network is not ready: {message}")]
    NotReady { message: String },
    /// The thread of the embedded network has ended.
    #[error("the embedded network has stopped")]
    Stopped,
}
