//! Which namespaces a container joins, has of its own, or shares with the node.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};

use super::error::SpecError;
use super::host::HostFacts;
use crate::cri;
use crate::cri::NamespaceMode;
use crate::sys::userns::IdRange;

mod user_namespace;

/// Paths of the namespaces that the container may have to join. Each is needed only where the modes say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JoinPaths {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// Of pause for POD, of the target container for TARGET.
    pub pid: Option<PathBuf>,
    /// Of a sandbox that has a user namespace.
    pub user: Option<PathBuf>,
}

impl JoinPaths {
    /// Those of which the monitor has descriptors: it puts paths of its own in their place.
    pub fn descriptors() -> Self {
        let of = |kind: &str| Some(format!("nsfd:{kind}").into());
        Self {
            net: of("net"),
            ipc: of("ipc"),
            uts: of("uts"),
            pid: of("pid"),
            user: of("user"),
        }
    }
}

/// The namespaces of a container.
#[derive(Clone, Debug)]
pub struct Namespaces {
    pub list: Vec<LinuxNamespace>,
    pub host_network: bool,
    pub host_ipc: bool,
    pub user: bool,
}

/// The mode by which a container's pid namespace is chosen: its own option, else its sandbox's.
pub fn pid_mode(sandbox: &cri::PodSandboxConfig, container: &cri::ContainerConfig) -> NamespaceMode {
    match container_options(container) {
        Some(options) => options.pid(),
        None => sandbox_options(sandbox).map_or(NamespaceMode::Pod, |options| options.pid()),
    }
}

/// Whether the kernel kills what is left of a container when its first process ends. A container that says nothing of its
/// pid namespace may have its sandbox's.
pub fn ends_with_its_first_process(container: &cri::ContainerConfig) -> bool {
    container_options(container).is_some_and(|options| options.pid() == NamespaceMode::Container)
}

/// Whether the sandbox uses the node's network.
pub fn host_network(sandbox: &cri::PodSandboxConfig) -> bool {
    sandbox_options(sandbox).is_some_and(|options| options.network() == NamespaceMode::Node)
}

/// The ids of the sandbox's own user namespace, if it has one. Its configuration has passed [`validate_sandbox`].
pub fn user_ids(sandbox: &cri::PodSandboxConfig) -> Option<IdRange> {
    let user = sandbox_options(sandbox)?.userns_options.as_ref()?;
    let mapping = user.uids.first().filter(|_| user.mode() == NamespaceMode::Pod)?;
    Some(IdRange {
        first: mapping.host_id,
        count: mapping.length,
    })
}

/// Whether the sandbox uses the node's IPC namespace.
pub fn host_ipc(sandbox: &cri::PodSandboxConfig) -> bool {
    sandbox_options(sandbox).is_some_and(|options| options.ipc() == NamespaceMode::Node)
}

fn sandbox_options(sandbox: &cri::PodSandboxConfig) -> Option<&cri::NamespaceOption> {
    sandbox
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .as_ref()
}

fn container_options(container: &cri::ContainerConfig) -> Option<&cri::NamespaceOption> {
    container
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .as_ref()
}

/// Checks the namespace options of a sandbox: which modes make sense there, and the user namespace's mappings.
pub fn validate_sandbox(sandbox: &cri::PodSandboxConfig) -> Result<(), SpecError> {
    let Some(options) = sandbox_options(sandbox) else {
        return Ok(());
    };
    for (what, value, allowed) in [
        (
            "network namespace mode",
            options.network,
            &[NamespaceMode::Pod, NamespaceMode::Node][..],
        ),
        (
            "ipc namespace mode",
            options.ipc,
            &[NamespaceMode::Pod, NamespaceMode::Node],
        ),
        (
            "pid namespace mode",
            options.pid,
            &[NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node],
        ),
    ] {
        let mode = NamespaceMode::try_from(value);
        if !mode.is_ok_and(|mode| allowed.contains(&mode)) {
            let name = mode.map_or_else(|_| value.to_string(), |mode| mode.as_str_name().to_owned());
            return Err(SpecError::invalid(what, name, "makes no sense for a sandbox"));
        }
    }
    match &options.userns_options {
        Some(user) => user_namespace::check(user, options),
        None => Ok(()),
    }
}

/// Resolves the container's namespaces. Network, IPC and UTS are those of its sandbox; a container that claims the
/// node's within a sandbox that has its own is refused.
pub fn resolve(
    sandbox: &cri::PodSandboxConfig,
    container: &cri::ContainerConfig,
    paths: &JoinPaths,
    host: &HostFacts,
) -> Result<Namespaces, SpecError> {
    let (host_network, host_ipc) = (host_network(sandbox), host_ipc(sandbox));
    if let Some(options) = container_options(container) {
        for (kind, mode, host) in [
            ("network", options.network(), host_network),
            ("ipc", options.ipc(), host_ipc),
        ] {
            if mode == NamespaceMode::Node && !host {
                return Err(SpecError::NodeNamespaceInSandbox { kind });
            }
        }
        if NamespaceMode::try_from(options.pid).is_err() {
            return Err(SpecError::invalid(
                "pid namespace mode",
                options.pid.to_string(),
                "does not exist",
            ));
        }
    }
    if let Some(user) = container_options(container).and_then(|options| options.userns_options.as_ref()) {
        user_namespace::same(user, sandbox_options(sandbox))?;
    }
    let wants_user = user_ids(sandbox).is_some();
    if wants_user && pid_mode(sandbox, container) == NamespaceMode::Node {
        return Err(SpecError::invalid(
            "pid namespace mode",
            "NODE",
            "does not go with a user namespace of the pod's own",
        ));
    }

    let mut list = vec![namespace(LinuxNamespaceType::Mount, None)];
    let mut join = |typ, kind, path: &Option<PathBuf>| match path {
        Some(path) => {
            list.push(namespace(typ, Some(path.clone())));
            Ok(())
        }
        None => Err(SpecError::MissingNamespace { kind }),
    };
    if wants_user {
        join(LinuxNamespaceType::User, "user", &paths.user)?;
    }
    if !host_network {
        join(LinuxNamespaceType::Network, "network", &paths.net)?;
        join(LinuxNamespaceType::Uts, "uts", &paths.uts)?;
    }
    if !host_ipc {
        join(LinuxNamespaceType::Ipc, "ipc", &paths.ipc)?;
    }
    match pid_mode(sandbox, container) {
        NamespaceMode::Node => {}
        NamespaceMode::Container => list.push(namespace(LinuxNamespaceType::Pid, None)),
        NamespaceMode::Pod => join(LinuxNamespaceType::Pid, "pod's pid", &paths.pid)?,
        NamespaceMode::Target => join(LinuxNamespaceType::Pid, "target's pid", &paths.pid)?,
    }
    if host.cgroup_v2 {
        list.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    Ok(Namespaces {
        list,
        host_network,
        host_ipc,
        user: wants_user,
    })
}

fn namespace(typ: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let builder = LinuxNamespaceBuilder::default().typ(typ);
    let builder = match path {
        Some(path) => builder.path(path),
        None => builder,
    };
    super::built(builder.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(network: NamespaceMode, pid: NamespaceMode, ipc: NamespaceMode) -> cri::NamespaceOption {
        cri::NamespaceOption {
            network: network as i32,
            pid: pid as i32,
            ipc: ipc as i32,
            ..Default::default()
        }
    }

    fn sandbox(options: Option<cri::NamespaceOption>) -> cri::PodSandboxConfig {
        let context = cri::LinuxSandboxSecurityContext {
            namespace_options: options,
            ..Default::default()
        };
        let linux = cri::LinuxPodSandboxConfig {
            security_context: Some(context),
            ..Default::default()
        };
        cri::PodSandboxConfig {
            linux: Some(linux),
            ..Default::default()
        }
    }

    fn container(options: Option<cri::NamespaceOption>) -> cri::ContainerConfig {
        let context = cri::LinuxContainerSecurityContext {
            namespace_options: options,
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig {
            security_context: Some(context),
            ..Default::default()
        };
        cri::ContainerConfig {
            linux: Some(linux),
            ..Default::default()
        }
    }

    fn paths() -> JoinPaths {
        let path = |name: &str| Some(PathBuf::from(name));
        JoinPaths {
            net: path("/n"),
            ipc: path("/i"),
            uts: path("/u"),
            pid: path("/p"),
            user: None,
        }
    }

    fn shown(sandbox: &cri::PodSandboxConfig, container: &cri::ContainerConfig, v2: bool) -> Result<String, String> {
        let host = HostFacts {
            cgroup_v2: v2,
            ..HostFacts::for_tests()
        };
        let found = resolve(sandbox, container, &paths(), &host).map_err(|e| e.to_string())?;
        let word = |ns: &LinuxNamespace| {
            let path = ns.path().as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            format!("{}{path}", ns.typ())
        };
        Ok(found.list.iter().map(word).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn every_mode() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let pod = options(Pod, Pod, Pod);
        let own = options(Pod, Container, Pod);
        let node = options(Node, Node, Node);
        for (of_sandbox, of_container, v2, expected) in [
            (None, None, false, "mnt net/n uts/u ipc/i pid/p"),
            (None, None, true, "mnt net/n uts/u ipc/i pid/p cgroup"),
            (Some(own), None, false, "mnt net/n uts/u ipc/i pid"),
            (Some(pod), Some(own_target()), false, "mnt net/n uts/u ipc/i pid/p"),
            (Some(node.clone()), Some(node.clone()), false, "mnt"),
            (Some(node), Some(options(Pod, Container, Pod)), false, "mnt pid"),
            (
                Some(options(Node, Container, Pod)),
                Some(options(Node, Container, Pod)),
                false,
                "mnt ipc/i pid",
            ),
            (
                Some(options(Pod, Pod, Node)),
                Some(options(Pod, Pod, Node)),
                false,
                "mnt net/n uts/u pid/p",
            ),
        ] {
            let found = shown(&sandbox(of_sandbox.clone()), &container(of_container.clone()), v2);
            assert_eq!(found.as_deref(), Ok(expected), "{of_sandbox:?} {of_container:?}");
        }
        fn own_target() -> cri::NamespaceOption {
            cri::NamespaceOption {
                target_id: "id".into(),
                ..options(Pod, Target, Pod)
            }
        }
    }

    #[test]
    fn the_nodes_namespaces_are_not_reached_from_a_sandbox_without_them() {
        use NamespaceMode::{Node, Pod};
        for asked in [options(Node, Pod, Pod), options(Pod, Pod, Node)] {
            let error = shown(&sandbox(None), &container(Some(asked)), false).unwrap_err();
            assert!(error.contains("asks for the node's"), "{error}");
        }
    }

    #[test]
    fn a_namespace_to_join_must_be_there() {
        let host = HostFacts::for_tests();
        let error = resolve(&sandbox(None), &container(None), &JoinPaths::default(), &host).unwrap_err();
        assert_eq!(error.to_string(), "no network namespace to join");
        let target = options(NamespaceMode::Pod, NamespaceMode::Target, NamespaceMode::Pod);
        let without_pid = JoinPaths { pid: None, ..paths() };
        let error = resolve(&sandbox(None), &container(Some(target)), &without_pid, &host).unwrap_err();
        assert_eq!(error.to_string(), "no target's pid namespace to join");
    }

    #[test]
    fn modes_that_make_no_sense_for_a_sandbox_are_refused() {
        use NamespaceMode::{Container, Pod, Target};
        for bad in [
            options(Container, Pod, Pod),
            options(Pod, Target, Pod),
            options(Pod, Pod, Target),
        ] {
            assert!(validate_sandbox(&sandbox(Some(bad))).is_err());
        }
    }
}
