//! Profiles in files: the OCI runtime specification's `linux.seccomp` as JSON, and what the files that Docker and Podman
//! bring along have beyond it: an `archMap`, rules for some containers, errors by name, comments.
//!
//! What is not known here is refused by its name: left out, a rule for the containers with a capability would be one
//! for all.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::built;
use super::super::security;
use super::SeccompError;

/// The largest profiles in use have some 30 kB.
const LARGEST: u64 = 1 << 20;

/// The bytes of a profile's file.
pub fn read(path: &Path) -> Result<Vec<u8>, SeccompError> {
    let failed = |op| {
        move |source| SeccompError::Read {
            op,
            path: path.to_owned(),
            source,
        }
    };
    // A FIFO in its place must not hang us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(failed("open"))?;
    if !file.metadata().map_err(failed("stat"))?.is_file() {
        return Err(failed("open")(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
    if bytes.len() as u64 > LARGEST {
        return Err(SeccompError::TooLarge {
            path: path.to_owned(),
            limit: LARGEST,
        });
    }
    Ok(bytes)
}

/// The processor's architecture, and what Docker calls it.
#[cfg(target_arch = "x86_64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchX86_64, "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (Arch, &str) = (Arch::ScmpArchAarch64, "arm64");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Family>>,
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Family {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Option<Vec<String>>,
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    errno: Option<String>,
    args: Option<Vec<Arg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arg {
    index: usize,
    value: u64,
    value_two: Option<u64>,
    op: LinuxSeccompOperator,
}

/// For whom a rule is, or for whom it is not.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The profile in these bytes of `path`, for a container with these capabilities at most.
pub fn parse(path: &Path, bytes: &[u8], bounding: u64) -> Result<LinuxSeccomp, SeccompError> {
    let profile: Profile = serde_json::from_slice(bytes).map_err(|source| SeccompError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let mut rules = Vec::new();
    for rule in profile.syscalls.into_iter().flatten() {
        if rule.is_for(bounding)? {
            rules.push(rule.into_oci()?);
        }
    }
    let mut oci = built(
        LinuxSeccompBuilder::default()
            .default_action(profile.default_action)
            .syscalls(rules)
            .build(),
    );
    oci.set_default_errno_ret(errno(profile.default_errno_ret, profile.default_errno)?);
    oci.set_architectures(architectures(profile.architectures, profile.arch_map)?);
    oci.set_flags(profile.flags.map(flags).transpose()?);
    oci.set_listener_path(profile.listener_path.filter(|path| !path.is_empty()).map(Into::into));
    oci.set_listener_metadata(profile.listener_metadata.filter(|data| !data.is_empty()));
    Ok(oci)
}

fn flags(names: Vec<String>) -> Result<Vec<LinuxSeccompFilterFlag>, SeccompError> {
    let flag = |name: String| {
        name.parse().map_err(|_| SeccompError::Flag {
            flag: name.chars().take(64).collect(),
        })
    };
    names.into_iter().map(flag).collect()
}

/// Of an archMap what is said of this machine's processor.
fn architectures(list: Option<Vec<Arch>>, map: Option<Vec<Family>>) -> Result<Option<Vec<Arch>>, SeccompError> {
    let (list, map) = (list.unwrap_or_default(), map.unwrap_or_default());
    match (list.is_empty(), map.is_empty()) {
        (true, true) => Ok(None),
        (false, true) => Ok(Some(list)),
        (false, false) => Err(SeccompError::TwoArchitectures),
        (true, false) => {
            let own = map.into_iter().filter(|family| family.architecture == NATIVE.0);
            let others = own.flat_map(|family| family.sub_architectures.unwrap_or_default());
            Ok(Some(std::iter::once(NATIVE.0).chain(others).collect()))
        }
    }
}

/// An error number, given as such, by its name or as both.
fn errno(number: Option<u32>, name: Option<String>) -> Result<Option<u32>, SeccompError> {
    const NAMES: [(&str, i32); 12] = [
        ("EPERM", libc::EPERM),
        ("ENOENT", libc::ENOENT),
        ("ESRCH", libc::ESRCH),
        ("EIO", libc::EIO),
        ("EBADF", libc::EBADF),
        ("EAGAIN", libc::EAGAIN),
        ("ENOMEM", libc::ENOMEM),
        ("EACCES", libc::EACCES),
        ("EINVAL", libc::EINVAL),
        ("ENOSYS", libc::ENOSYS),
        ("EOPNOTSUPP", libc::EOPNOTSUPP),
        ("EAFNOSUPPORT", libc::EAFNOSUPPORT),
    ];
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(number);
    };
    let known = NAMES.iter().find(|(known, _)| *known == name);
    match known.map(|(_, value)| value.unsigned_abs()) {
        Some(named) if number.is_none_or(|number| number == named) => Ok(Some(named)),
        _ => Err(SeccompError::ErrnoName {
            name: name.chars().take(64).collect(),
        }),
    }
}

impl Rule {
    fn is_for(&self, bounding: u64) -> Result<bool, SeccompError> {
        let included = match &self.includes {
            Some(condition) => condition.all(bounding)?,
            None => true,
        };
        let excluded = match &self.excludes {
            Some(condition) => condition.any(bounding)?,
            None => false,
        };
        Ok(included && !excluded)
    }

    fn into_oci(self) -> Result<LinuxSyscall, SeccompError> {
        let names: Vec<String> = self.names.into_iter().flatten().chain(self.name).collect();
        let args = self.args.into_iter().flatten().map(Arg::into_oci).collect::<Vec<_>>();
        let rule = LinuxSyscallBuilder::default().names(names).action(self.action);
        let mut rule = built(rule.args(args).build());
        rule.set_errno_ret(errno(self.errno_ret, self.errno)?);
        Ok(rule)
    }
}

impl Arg {
    fn into_oci(self) -> LinuxSeccompArg {
        let arg = LinuxSeccompArgBuilder::default()
            .index(self.index)
            .value(self.value)
            .value_two(self.value_two.unwrap_or_default());
        built(arg.op(self.op).build())
    }
}

impl Condition {
    /// Whether all of it is so, each kind where something is said of it.
    fn all(&self, bounding: u64) -> Result<bool, SeccompError> {
        let caps = self.caps.iter().flatten().all(|name| holds(bounding, name));
        let arches = self.arches.as_ref().is_none_or(|list| list.is_empty() || native(list));
        let kernel = match &self.min_kernel {
            Some(version) => runs(version)?,
            None => true,
        };
        Ok(caps && arches && kernel)
    }

    /// Whether any of it is so.
    fn any(&self, bounding: u64) -> Result<bool, SeccompError> {
        let caps = self.caps.iter().flatten().any(|name| holds(bounding, name));
        let arches = self.arches.as_ref().is_some_and(|list| native(list));
        let kernel = match &self.min_kernel {
            Some(version) => runs(version)?,
            None => false,
        };
        Ok(caps || arches || kernel)
    }
}

/// A capability that is not known here is none that a container has.
fn holds(bounding: u64, capability: &str) -> bool {
    let name = capability.strip_prefix("CAP_").unwrap_or(capability);
    (0..64).any(|number| bounding & (1 << number) != 0 && security::name(number) == Some(name))
}

fn native(arches: &[String]) -> bool {
    arches.iter().any(|arch| arch == NATIVE.1)
}

/// Whether the kernel is of this version (`4.8`) or a later one.
fn runs(version: &str) -> Result<bool, SeccompError> {
    let asked = major_minor(version).ok_or_else(|| SeccompError::KernelVersion {
        version: version.chars().take(64).collect(),
    })?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let leading = release.split(|c: char| c != '.' && !c.is_ascii_digit()).next();
    Ok(leading.and_then(major_minor).is_some_and(|kernel| kernel >= asked))
}

/// The first two numbers of a version.
fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
