//! What runs, in which environment, where: the request's words put together with the image's.

use std::collections::HashMap;
use std::path::PathBuf;

use super::Input;
use super::error::SpecError;
use super::policy::Policy;
use super::rlimits;
use super::security::Security;
use super::user::Identity;
use crate::cri;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TERM: &str = "xterm";

/// Bounds of execve(2): one string of 32 pages, and together three quarters of the default stack.
const LONGEST_STRING: u64 = 32 * 4096 - 1;
const LARGEST_TOTAL: u64 = 6 << 20;

/// The policy of the container's first process.
pub(super) fn policy(input: &Input<'_>, security: &Security, identity: &Identity) -> Result<Policy, SpecError> {
    let args = args(input)?;
    let env = environment(input, identity)?;
    check_size(&args, &env)?;
    let resources = input.container.linux.as_ref().and_then(|l| l.resources.as_ref());
    Ok(Policy {
        args,
        env,
        cwd: cwd(input)?,
        terminal: input.container.tty,
        user: identity.user.clone(),
        capabilities: security.capabilities,
        no_new_privs: security.no_new_privs,
        seccomp: security.seccomp.clone(),
        apparmor: security.apparmor.clone(),
        rlimits: rlimits::resolve(input.host),
        oom_score_adj: oom_score_adj(resources)?,
    })
}

/// The policy of another process in the container: everything as the first one's, but what it runs.
pub fn exec_process(container: &Policy, cmd: &[String], tty: bool) -> Result<Policy, SpecError> {
    if cmd.first().is_none_or(|program| program.is_empty()) {
        return Err(SpecError::NothingToRun);
    }
    let args = checked_args(cmd)?;
    let mut env = container.env.clone();
    if tty && !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        env.push(entry("TERM", DEFAULT_TERM.as_bytes()));
    }
    check_size(&args, &env)?;
    Ok(Policy {
        args,
        env,
        terminal: tty,
        ..container.clone()
    })
}

/// A command replaces the image's entrypoint and the image's arguments; arguments replace the image's arguments.
fn args(input: &Input<'_>) -> Result<Vec<Vec<u8>>, SpecError> {
    let image = input.image.config().as_ref();
    let of_image = |list: Option<&Option<Vec<String>>>| list.and_then(|list| list.clone()).unwrap_or_default();
    let (mut args, container) = (Vec::new(), input.container);
    if container.command.is_empty() {
        args.extend(of_image(image.map(|config| config.entrypoint())));
    } else {
        args.extend(container.command.iter().cloned());
    }
    if !container.args.is_empty() {
        args.extend(container.args.iter().cloned());
    } else if container.command.is_empty() {
        args.extend(of_image(image.map(|config| config.cmd())));
    }
    if args.first().is_none_or(|program| program.is_empty()) {
        return Err(SpecError::NothingToRun);
    }
    checked_args(&args)
}

fn checked_args(args: &[String]) -> Result<Vec<Vec<u8>>, SpecError> {
    let one = |arg: &String| {
        if arg.contains('\0') {
            return Err(SpecError::invalid("argument", arg, "holds a NUL byte"));
        }
        Ok(arg.clone().into_bytes())
    };
    args.iter().map(one).collect()
}

fn entry(name: &str, value: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"=", value].concat()
}

/// An environment in order, each name once.
#[derive(Default)]
struct Environment<'a> {
    entries: Vec<Vec<u8>>,
    /// Where the entry of a name is: an image may have hundreds of thousands, too many to look through for each.
    positions: HashMap<&'a str, usize>,
    /// What the names cost of [`LARGEST_TOTAL`].
    names_cost: u64,
}

impl<'a> Environment<'a> {
    fn set(&mut self, name: &'a str, value: &[u8]) -> Result<(), SpecError> {
        if let Some(n) = self.positions.get(name) {
            self.entries[*n] = entry(name, value);
            return Ok(());
        }
        // A name stays, whatever comes after it: the rest need not be built to know that it is too much.
        self.names_cost += cost(name.len() as u64 + 1);
        if self.names_cost > LARGEST_TOTAL {
            return Err(SpecError::TooLarge {
                what: "names of the environment together",
                size: self.names_cost,
                limit: LARGEST_TOTAL,
            });
        }
        self.positions.insert(name, self.entries.len());
        self.entries.push(entry(name, value));
        Ok(())
    }

    fn is_empty_or_missing(&self, name: &str) -> bool {
        self.positions
            .get(name)
            .is_none_or(|n| self.entries[*n].len() == name.len() + 1)
    }
}

/// The image's environment, then the request's over it. PATH and HOME are always there: without PATH nothing is
/// found, without HOME the C library would look it up with whatever the image brings for that.
fn environment(input: &Input<'_>, identity: &Identity) -> Result<Vec<Vec<u8>>, SpecError> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.as_bytes())?;
    check_variable("host name", "HOSTNAME", input.hostname.as_bytes())?;
    env.set("HOSTNAME", input.hostname.as_bytes())?;
    if input.container.tty {
        env.set("TERM", DEFAULT_TERM.as_bytes())?;
    }
    let of_image = input.image.config().as_ref().and_then(|config| config.env().as_ref());
    for entry in of_image.into_iter().flatten() {
        // A name alone sets nothing.
        let Some((name, value)) = entry.split_once('=') else {
            continue;
        };
        check_variable("variable of the image", name, value.as_bytes())?;
        env.set(name, value.as_bytes())?;
    }
    for cri::KeyValue { key, value } in &input.container.envs {
        check_variable("environment variable", key, value)?;
        env.set(key, value)?;
    }
    if env.is_empty_or_missing("HOME") {
        env.set("HOME", &identity.home)?;
    }
    Ok(env.entries)
}

fn check_variable(what: &'static str, name: &str, value: &[u8]) -> Result<(), SpecError> {
    let reason = match name {
        "" => "is empty",
        _ if name.contains('=') => "holds an equals sign",
        _ if name.contains('\0') => "holds a NUL byte",
        _ if value.contains(&0) => "has a value that holds a NUL byte",
        _ => return Ok(()),
    };
    Err(SpecError::invalid(what, name, reason))
}

/// What a string of so many bytes costs of [`LARGEST_TOTAL`]: a NUL and a pointer more.
fn cost(size: u64) -> u64 {
    size + 1 + 8
}

fn check_size(args: &[Vec<u8>], env: &[Vec<u8>]) -> Result<(), SpecError> {
    let mut total = 0;
    for (what, list) in [("an argument", args), ("an environment variable", env)] {
        for entry in list {
            let size = entry.len() as u64;
            if size > LONGEST_STRING {
                return Err(SpecError::TooLarge {
                    what,
                    size,
                    limit: LONGEST_STRING,
                });
            }
            total += cost(size);
        }
    }
    if total > LARGEST_TOTAL {
        let what = "arguments and environment together";
        return Err(SpecError::TooLarge {
            what,
            size: total,
            limit: LARGEST_TOTAL,
        });
    }
    Ok(())
}

fn cwd(input: &Input<'_>) -> Result<PathBuf, SpecError> {
    let of_image = input
        .image
        .config()
        .as_ref()
        .and_then(|config| config.working_dir().as_deref());
    let asked = Some(input.container.working_dir.as_str()).filter(|dir| !dir.is_empty());
    let dir = asked.or(of_image).unwrap_or("/");
    if dir.contains('\0') || dir.len() >= libc::PATH_MAX as usize {
        return Err(SpecError::invalid("working directory", dir, "is no path"));
    }
    Ok(PathBuf::from("/").join(dir))
}

/// `oom_score_adj` of a request; -1000 to 1000.
pub fn oom_score_adj(resources: Option<&cri::LinuxContainerResources>) -> Result<i32, SpecError> {
    let asked = resources.map_or(0, |r| r.oom_score_adj);
    match i32::try_from(asked) {
        Ok(value) if (-1000..=1000).contains(&value) => Ok(value),
        _ => Err(SpecError::invalid(
            "oom_score_adj",
            asked.to_string(),
            "is not within -1000 and 1000",
        )),
    }
}
