//! `[runtimes.<handler>]`: external OCI runtimes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::model::OciRuntime;

/// A runtime as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRuntime {
    pub path: Option<PathBuf>,
    pub options: Vec<String>,
    pub annotations: Vec<String>,
}

/// Options that crispd gives itself.
const RESERVED: [&str; 4] = ["--root", "--log", "--log-format", "--systemd-cgroup"];

/// The longest name of a RuntimeClass's handler (a DNS label), in bytes.
const NAME_BYTES: usize = 63;

/// The runtimes, and every mistake in them.
pub fn validate(raw: BTreeMap<String, RawRuntime>) -> (BTreeMap<String, OciRuntime>, Vec<String>) {
    let mut mistakes = Vec::new();
    let mut runtimes = BTreeMap::new();
    for (name, raw) in raw {
        let mut mistaken = |what: String| mistakes.push(format!("runtimes.{name}{what}"));
        if !is_handler(&name) {
            mistaken(": a handler is named by a DNS label: a-z, 0-9 and - inside".to_owned());
        }
        for option in &raw.options {
            let name = option.split('=').next().unwrap_or_default();
            if !option.starts_with('-') {
                mistaken(format!(".options: {option:?} does not begin with -"));
            } else if RESERVED.contains(&name) {
                mistaken(format!(".options: {name} is crispd's own"));
            }
        }
        for annotation in &raw.annotations {
            // All of them would let every pod say what the runtime does.
            if annotation.trim_end_matches('*').is_empty() || annotation.trim_end_matches('*').contains('*') {
                mistaken(format!(
                    ".annotations: {annotation:?} is no name, nor the beginning of one and *"
                ));
            }
        }
        match raw.path {
            None => mistaken(".path is missing".to_owned()),
            Some(path) => {
                if let Err(why) = check_program(&path) {
                    mistaken(format!(".path {} {why}", path.display()));
                }
                let runtime = OciRuntime {
                    path,
                    options: raw.options,
                    annotations: raw.annotations,
                };
                runtimes.insert(name, runtime);
            }
        }
    }
    (runtimes, mistakes)
}

fn is_handler(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let within = (1..=NAME_BYTES).contains(&name.len());
    within && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

fn check_program(path: &Path) -> Result<(), String> {
    if !path.is_absolute() {
        return Err("is not absolute".to_owned());
    }
    match std::fs::metadata(path) {
        Err(error) => Err(format!("cannot be used: {error}")),
        Ok(found) if !found.is_file() => Err("is not a file".to_owned()),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Err("is not executable".to_owned()),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, Raw};

    fn validated(text: &str) -> Result<BTreeMap<String, OciRuntime>, String> {
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string())?;
        let config = crate::config::validate(raw, Overrides::default());
        config.map(|config| config.runtimes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_runtime_is_a_program_and_its_options() {
        let runtimes =
            validated("[runtimes.sh]\npath = '/bin/sh'\noptions = ['--debug']\n[runtimes.b2-c]\npath = '/bin/sh'\n");
        let runtimes = runtimes.expect("valid");
        assert_eq!(runtimes.keys().collect::<Vec<_>>(), ["b2-c", "sh"]);
        assert_eq!(runtimes["sh"].options, ["--debug"]);
    }

    #[test]
    fn all_mistakes_of_all_runtimes_are_told_at_once() {
        let told = validated(
            "root = 'x'\n[runtimes.a]\n[runtimes.b]\npath = 'bin/sh'\n[runtimes.c]\npath = '/no/such'\n[runtimes.d]\npath = '/etc/passwd'\n\
             [runtimes.e]\npath = '/etc'\n[runtimes.F]\npath = '/bin/sh'\n[runtimes.g]\npath = '/bin/sh'\noptions = ['x', '--root=/y', '--log']\nannotations = ['*', 'a*b']\n",
        )
        .expect_err("invalid");
        for mistake in [
            "root must be",
            "runtimes.a.path is missing",
            "runtimes.b.path bin/sh is not absolute",
            "runtimes.c.path /no/such cannot be used",
            "runtimes.d.path /etc/passwd is not executable",
            "runtimes.e.path /etc is not a file",
            "runtimes.F: a handler",
            "runtimes.g.options: \"x\" does not begin with -",
            "runtimes.g.options: --root is crispd's own",
            "runtimes.g.options: --log is crispd's own",
            "runtimes.g.annotations: \"*\" is no name",
            "runtimes.g.annotations: \"a*b\" is no name",
        ] {
            assert!(told.contains(mistake), "{mistake}: {told}");
        }
    }

    #[test]
    fn an_unknown_key_of_a_runtime_is_refused() {
        assert!(validated("[runtimes.a]\npath = '/bin/sh'\nrute = '/x'\n").is_err());
    }
}
