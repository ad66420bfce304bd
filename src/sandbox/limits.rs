//! What a request for a sandbox may say.

use super::SandboxError;
use super::cgroup::{CgroupDriver, asked_parent, validate_parent};
use super::files::validate_dns;
use crate::cri;

/// The longest hostname the kernel takes (uname(2)).
const HOSTNAME_BYTES: usize = 64;

/// The pod's network, pid and ipc modes, with the CRI's defaults where the request is silent.
pub fn namespace_options(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

/// Refuses what no sandbox can be, naming the field.
pub fn validate(config: &cri::PodSandboxConfig, driver: &CgroupDriver) -> Result<(), SandboxError> {
    let invalid = |what: String| Err(SandboxError::Invalid { what });
    let Some(metadata) = &config.metadata else {
        return invalid("pod sandbox config: metadata is missing".to_owned());
    };
    if metadata.name.is_empty() || metadata.namespace.is_empty() || metadata.uid.is_empty() {
        return invalid("pod sandbox config: metadata needs a name, a namespace and a uid".to_owned());
    }
    let options = namespace_options(config);
    for (what, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        if cri::NamespaceMode::try_from(mode).is_err() {
            return invalid(format!("{what} namespace mode {mode} is unknown"));
        }
    }
    for (what, mode) in [("network", options.network()), ("ipc", options.ipc())] {
        if matches!(mode, cri::NamespaceMode::Container | cri::NamespaceMode::Target) {
            return invalid(format!(
                "{what} namespace mode {} is not for sandboxes",
                mode.as_str_name()
            ));
        }
    }
    if options.pid() == cri::NamespaceMode::Target {
        return invalid("pid namespace mode TARGET is not for sandboxes".to_owned());
    }
    if config.hostname.len() > HOSTNAME_BYTES || config.hostname.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return invalid(format!(
            "hostname {:?} is not one word of at most {HOSTNAME_BYTES} bytes",
            config.hostname
        ));
    }
    if !config.log_directory.is_empty() && !config.log_directory.starts_with('/') {
        return invalid(format!("log_directory {:?} is not absolute", config.log_directory));
    }
    for mapping in &config.port_mappings {
        let ports = [mapping.container_port, mapping.host_port];
        if ports.iter().any(|port| !(0..=65535).contains(port)) {
            return invalid(format!("port mapping {ports:?} is not of ports"));
        }
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<std::net::IpAddr>().is_err() {
            return invalid(format!(
                "port mapping: host_ip {:?} is not an IP address",
                mapping.host_ip
            ));
        }
        if cri::Protocol::try_from(mapping.protocol).is_err() {
            return invalid(format!("port mapping: protocol {} is unknown", mapping.protocol));
        }
    }
    if let Some(dns) = &config.dns_config {
        validate_dns(dns).map_err(|what| SandboxError::Invalid { what })?;
    }
    validate_parent(asked_parent(config), driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "n".into(),
                uid: "u".into(),
                namespace: "ns".into(),
                attempt: 0,
            }),
            hostname: "h".into(),
            ..Default::default()
        }
    }

    #[test]
    fn each_mistake_is_told_by_its_field() {
        type Mistake = (&'static str, fn(&mut cri::PodSandboxConfig));
        let mistakes: [Mistake; 7] = [
            ("metadata", |c| c.metadata = None),
            ("metadata", |c| c.metadata.as_mut().unwrap().uid.clear()),
            ("hostname", |c| c.hostname = "x".repeat(65)),
            ("log_directory", |c| c.log_directory = "relative".into()),
            ("port mapping", |c| {
                c.port_mappings = vec![cri::PortMapping {
                    host_port: 70000,
                    ..Default::default()
                }]
            }),
            ("cgroup_parent", |c| {
                c.linux = Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "a.slice".into(),
                    ..Default::default()
                });
            }),
            ("cgroup_parent", |c| {
                c.linux = Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "/a/../..".into(),
                    ..Default::default()
                });
            }),
        ];
        assert!(validate(&config(), &CgroupDriver::Cgroupfs).is_ok());
        for (field, make) in mistakes {
            let mut config = config();
            make(&mut config);
            let told = validate(&config, &CgroupDriver::Cgroupfs).expect_err(field).to_string();
            assert!(told.contains(field), "{told}");
        }
    }

    #[test]
    fn with_systemd_a_parent_is_a_slice() {
        let driver = CgroupDriver::Systemd(Default::default());
        let asked = |parent: &str| validate_parent(parent, &driver).map_err(|error| error.to_string());
        assert_eq!(asked("kubepods-burstable-pod1_2.slice"), Ok(()));
        assert_eq!(asked(""), Ok(()));
        for refused in ["/kubepods/pod1", "pod1", "a/b.slice", "pod1.scope"] {
            let told = asked(refused).expect_err(refused);
            assert!(told.contains("cgroup_parent") && told.contains(refused), "{told}");
        }
    }
}
