//! The whole OCI specification of a container: for an external runtime, which is told everything by it, and for who asks. Pure.
//!
//! Limits are not in it: crisp writes them to the container's cgroup itself, so that they are the same and change the same
//! way whichever runtime made the container. Device rules are, because a runtime puts its own in the place of crisp's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::error::SpecError;
use super::mounts::Bind;
use super::resources::DeviceRule;
use super::{Built, Policy, rlimits, security};
use crate::sys::mount::Propagation;

/// A part of a container that its description names the place of.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    Root,
    /// What bind n shows.
    Bind(usize),
    /// By [`super::JoinPaths`]: net, ipc, uts, pid or user.
    Namespace(&'a str),
}

/// Where the parts of a container are that its description names.
pub struct Bundle<'a> {
    pub place: &'a dyn Fn(Part<'_>) -> PathBuf,
    /// The container's cgroup.
    pub cgroup: &'a str,
    pub seccomp: Option<LinuxSeccomp>,
    pub annotations: BTreeMap<String, String>,
    /// What oom_score_adj cannot be lowered below.
    pub lowest_oom_score_adj: i32,
}

impl Bundle<'_> {
    /// The contents of `config.json`.
    pub fn config(&self, built: &Built) -> Result<Value, SpecError> {
        let mut config = json_of(&built.spec);
        config["root"]["path"] = self.place(Part::Root);
        config["process"] = process(&built.policy, self.lowest_oom_score_adj)?;
        config["mounts"] = self.mounts(built);
        config["annotations"] = json!(self.annotations);
        let linux = &mut config["linux"];
        linux["cgroupsPath"] = json!(self.cgroup);
        linux["resources"] = json!({ "devices": built.resources.devices.iter().map(device_rule).collect::<Vec<_>>() });
        if let Some(seccomp) = &self.seccomp {
            linux["seccomp"] = json_of(seccomp);
        }
        for namespace in linux["namespaces"].as_array_mut().into_iter().flatten() {
            let path = namespace["path"].as_str().and_then(|path| path.strip_prefix("nsfd:"));
            if let Some(kind) = path {
                let place = self.place(Part::Namespace(kind));
                namespace["path"] = place;
            }
        }
        Ok(config)
    }

    fn place(&self, part: Part<'_>) -> Value {
        json!((self.place)(part).to_string_lossy())
    }

    /// The kernel's file systems and the binds in their order; those that libcontainer must not see yet come last.
    fn mounts(&self, built: &Built) -> Value {
        let index_of = |mount: &oci_spec::runtime::Mount| {
            let source = mount.source().as_ref()?.to_str()?;
            source.strip_prefix("fd:")?.parse::<usize>().ok()
        };
        let mounts = built.spec.mounts().iter().flatten();
        let in_order = mounts.map(|mount| match index_of(mount) {
            Some(index) => self.bind(index, &built.binds[index]),
            None => json_of(mount),
        });
        let binds = built.binds.iter().enumerate();
        let late = binds
            .filter(|(_, bind)| bind.late)
            .map(|(index, bind)| self.bind(index, bind));
        in_order.chain(late).collect()
    }

    /// A bind. The mount on the stage has these attributes already; some runtimes set anew what the options say.
    fn bind(&self, index: usize, bind: &Bind) -> Value {
        let mut mount = json_of(&bind.to_mount(index));
        mount["source"] = self.place(Part::Bind(index));
        if let Some(options) = mount["options"].as_array_mut() {
            options.push(json!(match bind.propagation {
                Propagation::Private => "rprivate",
                Propagation::Slave => "rslave",
                Propagation::Shared => "rshared",
            }));
            if bind.recursive_read_only {
                options.push(json!("rro"));
            }
        }
        mount
    }
}

/// Where the monitor puts the parts for a runtime: on `stage` in the directory of the bundle.
pub fn staged(bundle: &Path, part: Part<'_>) -> PathBuf {
    let stage = bundle.join("stage");
    match part {
        Part::Root => stage.join("root"),
        Part::Bind(index) => stage.join(format!("mount-{index}")),
        Part::Namespace(kind) => stage.join(format!("ns-{kind}")),
    }
}

/// A process, the first one or another one, as the OCI specification has it.
pub fn process(policy: &Policy, lowest_oom_score_adj: i32) -> Result<Value, SpecError> {
    let sets = &policy.capabilities;
    let mut process = json!({
        "terminal": policy.terminal,
        "user": {
            "uid": policy.user.uid,
            "gid": policy.user.gid,
            "umask": policy.user.umask,
            "additionalGids": policy.user.additional_gids,
        },
        "args": texts("argument", &policy.args)?,
        "env": texts("environment variable", &policy.env)?,
        "cwd": text("working directory", std::os::unix::ffi::OsStrExt::as_bytes(policy.cwd.as_os_str()))?,
        "capabilities": {
            "bounding": names(sets.bounding),
            "effective": names(sets.effective),
            "permitted": names(sets.permitted),
            "inheritable": names(sets.inheritable),
            "ambient": names(sets.ambient),
        },
        "noNewPrivileges": policy.no_new_privs,
        "oomScoreAdj": policy.oom_score_adj.max(lowest_oom_score_adj),
        "rlimits": policy.rlimits.iter().map(|limit| json!({
            "type": rlimits::oci_name(limit.resource),
            "soft": limit.soft,
            "hard": limit.hard,
        })).collect::<Vec<_>>(),
    });
    if let Some(profile) = &policy.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    Ok(process)
}

fn texts(what: &'static str, list: &[Vec<u8>]) -> Result<Vec<String>, SpecError> {
    list.iter().map(|bytes| text(what, bytes)).collect()
}

/// JSON has text only. Of a variable, whose value may be a secret, the name is told.
fn text(what: &'static str, bytes: &[u8]) -> Result<String, SpecError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        let name = bytes.split(|b| *b == b'=').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name);
        SpecError::invalid(
            what,
            name,
            "is not UTF-8, without which an external runtime cannot be told",
        )
    })
}

fn names(set: u64) -> Vec<String> {
    let numbers = (0..64).filter(|number| set & (1 << number) != 0);
    numbers
        .filter_map(security::name)
        .map(|name| format!("CAP_{name}"))
        .collect()
}

fn device_rule(rule: &DeviceRule) -> Value {
    let mut told = json!({ "allow": rule.allow, "type": rule.kind, "access": rule.access });
    for (key, number) in [("major", rule.major), ("minor", rule.minor)] {
        if let Some(number) = number {
            told[key] = json!(number);
        }
    }
    told
}

/// What is made here has keys that are text, and nothing else could fail.
fn json_of(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("the OCI specification's types are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_in_full() {
        let mut policy = Policy::for_tests();
        policy.capabilities.bounding = 1 | 1 << 40;
        policy.oom_score_adj = -998;
        policy.apparmor = Some("p".to_owned());
        let told = process(&policy, -5).unwrap();
        assert_eq!(
            told["capabilities"]["bounding"],
            json!(["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"])
        );
        assert_eq!(
            (&told["oomScoreAdj"], &told["apparmorProfile"]),
            (&json!(-5), &json!("p"))
        );
        assert_eq!(told["args"], json!(["/bin/true"]));
    }

    #[test]
    fn what_json_cannot_say_is_refused_without_the_value() {
        let mut policy = Policy::for_tests();
        policy.env.push(b"KEY=secret\xff".to_vec());
        let told = process(&policy, 0).unwrap_err().to_string();
        assert!(told.contains("KEY") && !told.contains("secret"), "{told}");
    }
}
