//! Kernel settings of a sandbox: only those that belong to its own namespaces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::SpecError;
use super::namespaces;
use crate::cri;

// What a sandbox with its own network gets unless it says otherwise: ports below 1024 and ping need no privilege
// within a network of one's own.
const PORTS: &str = "net/ipv4/ip_unprivileged_port_start";
const PING: &str = "net/ipv4/ping_group_range";

/// The settings to write, as paths below /proc/sys and values.
pub fn resolve(sandbox: &cri::PodSandboxConfig) -> Result<BTreeMap<PathBuf, String>, SpecError> {
    let host_network = namespaces::host_network(sandbox);
    let host_ipc = namespaces::host_ipc(sandbox);
    let linux = sandbox.linux.as_ref();
    let mut settings = BTreeMap::new();
    if !host_network {
        // The kernel takes groups of the pod's own user namespace only.
        let last_group = namespaces::user_ids(sandbox).map_or(i32::MAX as u32, |ids| ids.count - 1);
        settings.insert(PORTS.into(), "0".to_owned());
        settings.insert(PING.into(), format!("0 {}", last_group.min(i32::MAX as u32)));
    }
    let mut seen = BTreeMap::new();
    for (name, value) in linux.map(|l| &l.sysctls).into_iter().flatten() {
        let refuse = |reason| SpecError::Sysctl {
            name: name.chars().take(128).collect(),
            reason,
        };
        let path = path(name).ok_or_else(|| refuse("is no name of a kernel setting"))?;
        match owner(&path) {
            Some(Owner::Network) if host_network => {
                return Err(refuse("would change the node: the sandbox uses the node's network"));
            }
            Some(Owner::Ipc) if host_ipc => {
                return Err(refuse(
                    "would change the node: the sandbox uses the node's IPC namespace",
                ));
            }
            None => return Err(refuse("does not belong to a namespace of the sandbox")),
            Some(_) => {}
        }
        if value.len() > 4096 || value.contains(['\0', '\n']) {
            return Err(refuse("has no sound value"));
        }
        if seen.insert(path.clone(), ()).is_some() {
            return Err(refuse("is given twice"));
        }
        settings.insert(path, value.clone());
    }
    Ok(settings)
}

/// The namespace that a setting belongs to.
enum Owner {
    Network,
    Ipc,
}

fn owner(path: &Path) -> Option<Owner> {
    let text = path.to_str()?;
    if text.starts_with("net/") {
        return Some(Owner::Network);
    }
    let ipc = text.starts_with("fs/mqueue/")
        || text.strip_prefix("kernel/").is_some_and(|rest| {
            !rest.contains('/') && (rest.starts_with("shm") || rest.starts_with("msg") || rest == "sem")
        });
    ipc.then_some(Owner::Ipc)
}

/// `net.ipv4.conf.eth0/1.forwarding` or `net/ipv4/conf/eth0.1/forwarding`: whichever of dot and slash comes first
/// separates, the other one stands for a dot in a name (sysctl.d(5)).
fn path(name: &str) -> Option<PathBuf> {
    let first = name.find(['.', '/'])?;
    let separator = if name.as_bytes()[first] == b'.' { '.' } else { '/' };
    let mut path = PathBuf::new();
    for part in name.split(separator) {
        let part = if separator == '.' {
            part.replace('/', ".")
        } else {
            part.to_owned()
        };
        let sound = part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(&b));
        if part.is_empty() || part == "." || part == ".." || !sound {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::NamespaceMode;

    fn sandbox(sysctls: &[(&str, &str)], network: NamespaceMode, ipc: NamespaceMode) -> cri::PodSandboxConfig {
        let options = cri::NamespaceOption {
            network: network as i32,
            ipc: ipc as i32,
            ..Default::default()
        };
        let context = cri::LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        };
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let linux = cri::LinuxPodSandboxConfig {
            sysctls: sysctls.iter().map(own).collect(),
            security_context: Some(context),
            ..Default::default()
        };
        cri::PodSandboxConfig {
            linux: Some(linux),
            ..Default::default()
        }
    }

    #[test]
    fn names_with_dots_and_slashes() {
        use NamespaceMode::Pod;
        for (name, expected) in [
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.sem", "kernel/sem"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ] {
            let found = resolve(&sandbox(&[(name, "1")], Pod, Pod)).unwrap();
            assert_eq!(found.get(Path::new(expected)).map(String::as_str), Some("1"), "{name}");
        }
    }

    #[test]
    fn what_is_not_the_sandboxs_own_is_refused() {
        use NamespaceMode::{Node, Pod};
        for (name, network, ipc) in [
            ("net.core.somaxconn", Node, Pod),
            ("kernel.shmmax", Pod, Node),
            ("fs.mqueue.msg_max", Pod, Node),
            ("kernel.panic", Pod, Pod),
            ("kernel.hostname", Pod, Pod),
            ("kernel.shm/../panic", Pod, Pod),
            ("kernel.core_pattern", Pod, Pod),
            ("vm.swappiness", Pod, Pod),
            ("net", Pod, Pod),
            ("net..core", Pod, Pod),
            ("net/../kernel/panic", Pod, Pod),
            ("../net/core/somaxconn", Pod, Pod),
            ("/net/core/somaxconn", Pod, Pod),
            ("", Pod, Pod),
        ] {
            let found = resolve(&sandbox(&[(name, "1")], network, ipc));
            assert!(matches!(found, Err(SpecError::Sysctl { .. })), "{name}: {found:?}");
        }
        assert!(resolve(&sandbox(&[("kernel.sem", "1\n2")], Pod, Pod)).is_err());
        let twice = [("net.core.somaxconn", "1"), ("net/core/somaxconn", "2")];
        assert!(resolve(&sandbox(&twice, Pod, Pod)).is_err());
    }

    #[test]
    fn ping_is_for_the_groups_that_there_are() {
        let of = |sandbox: &cri::PodSandboxConfig| resolve(sandbox).unwrap()[Path::new(PING)].clone();
        let mut pod = sandbox(&[], NamespaceMode::Pod, NamespaceMode::Pod);
        assert_eq!(of(&pod), "0 2147483647");
        let mapping = vec![cri::IdMapping {
            host_id: 1 << 20,
            container_id: 0,
            length: 65_536,
        }];
        let options = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        options.namespace_options.as_mut().unwrap().userns_options = Some(cri::UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: mapping.clone(),
            gids: mapping,
        });
        assert_eq!(of(&pod), "0 65535");
    }

    #[test]
    fn defaults_are_for_a_network_of_ones_own_and_give_way() {
        use NamespaceMode::{Node, Pod};
        assert_eq!(resolve(&sandbox(&[], Pod, Pod)).unwrap().len(), 2);
        assert!(resolve(&sandbox(&[], Node, Pod)).unwrap().is_empty());
        let asked = [("net.ipv4.ip_unprivileged_port_start", "80")];
        let found = resolve(&sandbox(&asked, Pod, Pod)).unwrap();
        assert_eq!(found[Path::new("net/ipv4/ip_unprivileged_port_start")], "80");
    }
}
