//! What a pod's namespaces are, as the OCI runtime specification would have it: pause is no OCI container.

use serde_json::{Value, json};

use super::Sandbox;
use crate::container::{hostname, spec::namespaces};
use crate::cri::NamespaceMode;
use crate::store::Process;

impl Sandbox {
    /// The places are the node's; without pause there are none but that of the network.
    pub fn runtime_spec(&self) -> Value {
        let (record, config) = (&self.record, &self.record.config);
        let pause = self.status().pause;
        let own_pids = namespaces::pid_mode(config, &Default::default()) == NamespaceMode::Pod;
        let own = [
            ("mount", "mnt", true),
            ("network", "net", !namespaces::host_network(config)),
            ("uts", "uts", !namespaces::host_network(config)),
            ("ipc", "ipc", !namespaces::host_ipc(config)),
            ("pid", "pid", own_pids),
            ("user", "user", namespaces::user_ids(config).is_some()),
        ];
        let shared = own.iter().filter(|(_, _, own)| *own);
        let shared = shared.map(|(kind, name, _)| json!({ "type": kind, "path": self.namespace(name, pause) }));
        let sysctls = config.linux.as_ref().map(|linux| &linux.sysctls);
        json!({
            "ociVersion": "1.0.2",
            "hostname": hostname(config),
            "annotations": config.annotations,
            "linux": {
                "cgroupsPath": record.cgroup(),
                "namespaces": shared.collect::<Vec<_>>(),
                "sysctl": sysctls,
            },
        })
    }

    /// The path of a namespace of the pod's, by its name in `/proc/PID/ns`; empty if it has none.
    pub fn namespace(&self, name: &str, pause: Option<Process>) -> String {
        match (name, &self.record.netns, pause) {
            ("net", Some(path), _) => path.display().to_string(),
            (_, _, Some(pause)) => format!("/proc/{}/ns/{name}", pause.pid),
            (_, _, None) => String::new(),
        }
    }
}
