//! What a container may do: capabilities, privileges, hidden and read-only paths, seccomp and AppArmor profiles.

use super::error::SpecError;
use super::host::HostFacts;
use super::policy::{CapabilitySets, SeccompSource};
use crate::cri;

mod capabilities;
mod profiles;

pub use capabilities::{SYS_RESOURCE, bit, name};

/// The security settings of a container.
#[derive(Clone, Debug)]
pub struct Security {
    pub privileged: bool,
    pub capabilities: CapabilitySets,
    /// Asked for, but not to be had on this host.
    pub cut: Vec<&'static str>,
    pub no_new_privs: bool,
    pub seccomp: Option<SeccompSource>,
    pub apparmor: Option<String>,
    pub readonly_rootfs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
}

/// Resolves the container's security context. The lists of masked and read-only paths are taken as they come: an
/// empty one is how a kubelet asks for an unmasked /proc.
pub fn resolve(
    sandbox: &cri::PodSandboxConfig,
    container: &cri::ContainerConfig,
    host: &HostFacts,
) -> Result<Security, SpecError> {
    let context = container
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default();
    let sandbox_context = sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if context.privileged && !sandbox_context.is_some_and(|s| s.privileged) {
        return Err(SpecError::PrivilegedInSandbox);
    }
    if host.selinux && context.selinux_options.is_some() {
        return Err(SpecError::Unsupported {
            what: "SELinux options",
        });
    }
    let (capabilities, cut) = capabilities::resolve(&context, host)?;
    let masked = |paths: &[String], what| {
        paths
            .iter()
            .map(|path| absolute(path, what))
            .collect::<Result<Vec<_>, _>>()
    };
    let (masked_paths, readonly_paths) = if context.privileged {
        (Vec::new(), Vec::new())
    } else {
        (
            masked(&context.masked_paths, "masked path")?,
            masked(&context.readonly_paths, "read-only path")?,
        )
    };
    Ok(Security {
        privileged: context.privileged,
        capabilities,
        cut: capabilities::names(cut),
        no_new_privs: context.no_new_privs,
        seccomp: profiles::seccomp(&context)?,
        apparmor: profiles::apparmor(&context, host)?,
        readonly_rootfs: context.readonly_rootfs,
        masked_paths,
        readonly_paths,
    })
}

/// Whether the profiles are ones that this host can give.
pub(super) fn check_profiles(context: &cri::LinuxContainerSecurityContext, host: &HostFacts) -> Result<(), SpecError> {
    profiles::seccomp(context)?;
    profiles::apparmor(context, host)?;
    Ok(())
}

fn absolute(path: &str, what: &'static str) -> Result<String, SpecError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(SpecError::invalid(what, path, "is not an absolute path"));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(context: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
        let linux = cri::LinuxContainerConfig {
            security_context: Some(context),
            ..Default::default()
        };
        cri::ContainerConfig {
            linux: Some(linux),
            ..Default::default()
        }
    }

    fn sandbox(privileged: bool) -> cri::PodSandboxConfig {
        let context = cri::LinuxSandboxSecurityContext {
            privileged,
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

    #[test]
    fn a_privileged_container_has_no_masks_no_seccomp_and_needs_a_privileged_sandbox() {
        let context = cri::LinuxContainerSecurityContext {
            privileged: true,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            seccomp: Some(cri::SecurityProfile::default()),
            ..Default::default()
        };
        let config = container(context);
        let host = HostFacts::for_tests();
        let security = resolve(&sandbox(true), &config, &host).unwrap();
        assert!(security.privileged && security.masked_paths.is_empty() && security.readonly_paths.is_empty());
        assert_eq!(security.seccomp, None);
        assert_eq!(security.capabilities.bounding, host.bounding);
        assert!(matches!(
            resolve(&sandbox(false), &config, &host),
            Err(SpecError::PrivilegedInSandbox)
        ));
    }

    #[test]
    fn paths_to_hide_are_taken_verbatim_and_must_be_absolute() {
        let with = |path: &str| {
            let masked_paths = vec![path.to_owned()];
            container(cri::LinuxContainerSecurityContext {
                masked_paths,
                ..Default::default()
            })
        };
        let host = HostFacts::for_tests();
        assert_eq!(
            resolve(&sandbox(false), &with("/bin/ls"), &host).unwrap().masked_paths,
            ["/bin/ls"]
        );
        assert!(resolve(&sandbox(false), &with("proc/kcore"), &host).is_err());
        let none = resolve(&sandbox(false), &cri::ContainerConfig::default(), &host).unwrap();
        assert!(none.masked_paths.is_empty() && !none.no_new_privs && none.seccomp.is_none());
    }
}
