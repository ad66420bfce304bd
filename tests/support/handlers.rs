//! Runtime handlers: the same tests are run for the built-in one and, when the environment says so, for an external runtime.

use std::path::{Path, PathBuf};

/// The environment variable that names the handler of all pods that do not ask for one.
const VARIABLE: &str = "CRISP_TEST_HANDLER";

/// The distribution's runtimes, by the names of their handlers, each with a setting of its own.
const RUNTIMES: [(&str, &str, &str); 2] = [
    ("runc", "/usr/sbin/runc", "annotations = ['example.org/*', 'exactly']\n"),
    ("crun", "/usr/bin/crun", ""),
];

/// Settings that have the external runtimes that are installed, and CDI directories below `dir`; written to a file there.
/// Without pods there is no bridge either: what was there before them can be compared with what is left. A test's own
/// settings come from `dir/own-settings.toml`, if it has written that.
pub fn config(dir: &Path) -> PathBuf {
    let cdi = ["etc", "run"].map(|name| dir.join("cdi").join(name));
    let mut settings = format!("[network]\nidle_seconds = 0\n[container]\ncdi_dirs = {cdi:?}\n");
    for (name, program, more) in RUNTIMES.iter().filter(|(_, program, _)| Path::new(program).exists()) {
        settings += &format!("[runtimes.{name}]\npath = '{program}'\n{more}");
    }
    settings += &std::fs::read_to_string(dir.join("own-settings.toml")).unwrap_or_default();
    let path = dir.join("crisp.toml");
    std::fs::write(&path, settings).expect("room on the disk");
    path
}

/// The handler of pods that do not ask for one.
pub fn handler() -> String {
    std::env::var(VARIABLE).unwrap_or_default()
}

/// Whether that is an external runtime.
#[allow(dead_code, reason = "not all suites that have this file ask")]
pub fn is_external() -> bool {
    !handler().is_empty()
}
