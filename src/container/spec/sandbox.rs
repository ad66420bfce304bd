//! What can be said of a sandbox's configuration before anything is made for it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::SpecError;
use super::host::HostFacts;
use super::{namespaces, security, sysctls, user};
use crate::cri;

/// Checks a sandbox's configuration and gives the kernel settings that it gets, as paths below /proc/sys and values.
///
/// Its user, groups and profiles are only checked: they are pause's, which is crisp's own, runs without any
/// privilege and needs none of them.
pub fn check(sandbox: &cri::PodSandboxConfig, host: &HostFacts) -> Result<BTreeMap<PathBuf, String>, SpecError> {
    namespaces::validate_sandbox(sandbox)?;
    if let Some(context) = sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref()) {
        if host.selinux && context.selinux_options.is_some() {
            return Err(SpecError::Unsupported {
                what: "SELinux options",
            });
        }
        let as_container = as_container(context);
        user::check(&as_container)?;
        security::check_profiles(&as_container, host)?;
    }
    sysctls::resolve(sandbox)
}

/// The same words in a container's terms.
#[expect(deprecated, reason = "the CRI's old field still counts where the new one is not set")]
fn as_container(context: &cri::LinuxSandboxSecurityContext) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        privileged: context.privileged,
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        supplemental_groups: context.supplemental_groups.clone(),
        supplemental_groups_policy: context.supplemental_groups_policy,
        seccomp: context.seccomp.clone(),
        apparmor: context.apparmor.clone(),
        seccomp_profile_path: context.seccomp_profile_path.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(context: cri::LinuxSandboxSecurityContext) -> cri::PodSandboxConfig {
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
    fn where_there_is_selinux_its_options_are_refused() {
        let context = cri::LinuxSandboxSecurityContext {
            selinux_options: Some(Default::default()),
            ..Default::default()
        };
        let mut host = HostFacts::for_tests();
        assert!(check(&sandbox(context.clone()), &host).is_ok());
        host.selinux = true;
        assert!(check(&sandbox(context), &host).is_err());
        assert!(check(&sandbox(Default::default()), &host).is_ok());
    }

    #[test]
    fn a_sandbox_is_checked_before_it_is_made() {
        let host = HostFacts::for_tests();
        assert!(check(&cri::PodSandboxConfig::default(), &host).is_ok());
        assert!(check(&sandbox(Default::default()), &host).is_ok());
        let profile = |kind, reference: &str| {
            Some(cri::SecurityProfile {
                profile_type: kind,
                localhost_ref: reference.to_owned(),
            })
        };
        let id = |value| Some(cri::Int64Value { value });
        let none = cri::LinuxSandboxSecurityContext::default;
        let sound = cri::LinuxSandboxSecurityContext {
            run_as_user: id(5),
            run_as_group: id(6),
            ..none()
        };
        assert!(check(&sandbox(sound), &host).is_ok());
        for refused in [
            cri::LinuxSandboxSecurityContext {
                run_as_group: id(6),
                ..none()
            },
            cri::LinuxSandboxSecurityContext {
                run_as_user: id(-6),
                ..none()
            },
            cri::LinuxSandboxSecurityContext {
                supplemental_groups: vec![1 << 32],
                ..none()
            },
            cri::LinuxSandboxSecurityContext {
                seccomp: profile(2, "relative"),
                ..none()
            },
            cri::LinuxSandboxSecurityContext {
                apparmor: profile(2, "mine"),
                ..none()
            },
            cri::LinuxSandboxSecurityContext {
                seccomp: profile(9, ""),
                ..none()
            },
        ] {
            assert!(check(&sandbox(refused.clone()), &host).is_err(), "{refused:?}");
        }
    }
}
