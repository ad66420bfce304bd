//! Which seccomp filter and AppArmor profile: the profile messages, and the strings that came before them.

use std::path::PathBuf;

use super::super::error::SpecError;
use super::super::host::HostFacts;
use super::super::policy::SeccompSource;
use crate::cri;
use crate::cri::security_profile::ProfileType;

/// A profile as asked for in either form; `None` where nothing is said.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    RuntimeDefault,
    Unconfined,
    Localhost(String),
}

fn from_profile(what: &'static str, profile: &cri::SecurityProfile) -> Result<Asked, SpecError> {
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Asked::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Asked::Unconfined),
        Ok(ProfileType::Localhost) => Ok(Asked::Localhost(profile.localhost_ref.clone())),
        Err(_) => Err(SpecError::invalid(
            what,
            profile.profile_type.to_string(),
            "is no profile type",
        )),
    }
}

/// The deprecated field: empty, `unconfined`, `runtime/default` (once `docker/default`) or `localhost/<name>`.
fn from_text(what: &'static str, text: &str) -> Result<Option<Asked>, SpecError> {
    Ok(match text {
        "" => None,
        "unconfined" => Some(Asked::Unconfined),
        "runtime/default" | "docker/default" => Some(Asked::RuntimeDefault),
        _ => match text.strip_prefix("localhost/") {
            Some(name) => Some(Asked::Localhost(name.to_owned())),
            None => return Err(SpecError::invalid(what, text, "is no form of a profile")),
        },
    })
}

/// The seccomp filter; nothing said is unconfined, as is everything privileged.
#[expect(deprecated, reason = "the CRI's old field still counts where the new one is not set")]
pub fn seccomp(context: &cri::LinuxContainerSecurityContext) -> Result<Option<SeccompSource>, SpecError> {
    const WHAT: &str = "seccomp profile";
    let asked = match &context.seccomp {
        Some(profile) => Some(from_profile(WHAT, profile)?),
        None => from_text(WHAT, &context.seccomp_profile_path)?,
    };
    if context.privileged {
        return Ok(None);
    }
    match asked {
        None | Some(Asked::Unconfined) => Ok(None),
        Some(Asked::RuntimeDefault) => Ok(Some(SeccompSource::RuntimeDefault)),
        Some(Asked::Localhost(path)) if path.starts_with('/') => {
            Ok(Some(SeccompSource::Localhost(PathBuf::from(path))))
        }
        Some(Asked::Localhost(path)) => Err(SpecError::invalid(WHAT, path, "is not an absolute path")),
    }
}

/// The AppArmor profile. A host without AppArmor is told apart: only a profile that somebody wrote for this
/// container is worth failing for.
#[expect(deprecated, reason = "the CRI's old field still counts where the new one is not set")]
pub fn apparmor(context: &cri::LinuxContainerSecurityContext, host: &HostFacts) -> Result<Option<String>, SpecError> {
    const WHAT: &str = "AppArmor profile";
    let asked = match &context.apparmor {
        Some(profile) => Some(from_profile(WHAT, profile)?),
        None => from_text(WHAT, &context.apparmor_profile)?,
    };
    let name = match asked {
        Some(Asked::Unconfined) => return Ok(None),
        None | Some(Asked::RuntimeDefault) if context.privileged => return Ok(None),
        None | Some(Asked::RuntimeDefault) => {
            return Ok(host
                .apparmor
                .as_ref()
                .and_then(|apparmor| apparmor.default_profile.clone()));
        }
        Some(Asked::Localhost(name)) => name,
    };
    // Some clients repeat the old prefix within the new message.
    let name = name.strip_prefix("localhost/").unwrap_or(&name).to_owned();
    if name.is_empty() || name.contains(['\0', '\n']) {
        return Err(SpecError::invalid(WHAT, name, "is no name of a profile"));
    }
    match &host.apparmor {
        None => Err(SpecError::AppArmorUnavailable { profile: name }),
        Some(apparmor) if !apparmor.has(&name) => Err(SpecError::AppArmorNotLoaded { profile: name }),
        Some(_) => Ok(Some(name)),
    }
}

#[cfg(test)]
#[expect(deprecated, reason = "the CRI's old field still counts where the new one is not set")]
mod tests {
    use super::super::super::host::AppArmor;
    use super::*;

    fn profile(kind: ProfileType, reference: &str) -> Option<cri::SecurityProfile> {
        Some(cri::SecurityProfile {
            profile_type: kind as i32,
            localhost_ref: reference.into(),
        })
    }

    #[test]
    fn seccomp_in_both_forms() {
        let new = |seccomp| cri::LinuxContainerSecurityContext {
            seccomp,
            ..Default::default()
        };
        let old = |path: &str| cri::LinuxContainerSecurityContext {
            seccomp_profile_path: path.into(),
            ..Default::default()
        };
        let local = Some(SeccompSource::Localhost("/p.json".into()));
        let runtime = Some(SeccompSource::RuntimeDefault);
        for (context, expected) in [
            (new(None), None),
            (new(profile(ProfileType::Unconfined, "")), None),
            (new(profile(ProfileType::RuntimeDefault, "")), runtime.clone()),
            (new(profile(ProfileType::Localhost, "/p.json")), local.clone()),
            (old("unconfined"), None),
            (old("runtime/default"), runtime.clone()),
            (old("docker/default"), runtime),
            (old("localhost//p.json"), local),
        ] {
            assert_eq!(seccomp(&context).unwrap(), expected, "{context:?}");
        }
        for refused in [
            new(profile(ProfileType::Localhost, "p.json")),
            new(profile(ProfileType::Localhost, "")),
            new(Some(cri::SecurityProfile {
                profile_type: 9,
                ..Default::default()
            })),
            old("localhost/p.json"),
            old("mine"),
        ] {
            assert!(seccomp(&refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn apparmor_with_and_without_a_kernel_that_has_it() {
        let without = HostFacts::for_tests();
        let apparmor_facts = AppArmor {
            default_profile: Some("crisp-default".into()),
            known: ["mine".to_owned()].into(),
        };
        let with = HostFacts {
            apparmor: Some(apparmor_facts),
            ..HostFacts::for_tests()
        };
        let new = |apparmor| cri::LinuxContainerSecurityContext {
            apparmor,
            ..Default::default()
        };
        let old = |text: &str| cri::LinuxContainerSecurityContext {
            apparmor_profile: text.into(),
            ..Default::default()
        };
        let mine = Some("mine".to_owned());
        for (context, absent, present) in [
            (new(None), Ok(None), Ok(Some("crisp-default".to_owned()))),
            (
                new(profile(ProfileType::RuntimeDefault, "")),
                Ok(None),
                Ok(Some("crisp-default".to_owned())),
            ),
            (new(profile(ProfileType::Unconfined, "")), Ok(None), Ok(None)),
            (
                new(profile(ProfileType::Localhost, "mine")),
                Err("not enabled"),
                Ok(mine.clone()),
            ),
            (
                new(profile(ProfileType::Localhost, "other")),
                Err("not enabled"),
                Err("not loaded"),
            ),
            (new(profile(ProfileType::Localhost, "")), Err("no name"), Err("no name")),
            (old("unconfined"), Ok(None), Ok(None)),
            (old("runtime/default"), Ok(None), Ok(Some("crisp-default".to_owned()))),
            (old("localhost/mine"), Err("not enabled"), Ok(mine)),
            (old("mine"), Err("no form"), Err("no form")),
        ] {
            for (host, expected) in [(&without, absent), (&with, present)] {
                match (apparmor(&context, host), expected) {
                    (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{context:?}"),
                    (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                    (got, expected) => panic!("{context:?}: {got:?}, expected {expected:?}"),
                }
            }
        }
    }
}
