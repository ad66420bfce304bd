//! Runtime handlers: the same tests are run for the built-in one and, when the environment says so, for an external runtime.

use std::path::{Path, PathBuf};

/// The environment variable that names the handler of all pods that do not ask for one.
const VARIABLE: &str = "CRISP_TEST_HANDLER";

/// Settings that have the external runtimes, and CDI directories below `dir`; written to a file there. Without pods there
/// is no bridge either: what was there before them can be compared with what is left.
pub fn config(dir: &Path) -> PathBuf {
    let cdi = ["etc", "run"].map(|name| dir.join("cdi").join(name));
    const SETTINGS: &str = "[network]\nidle_seconds = 0\n[runtimes.runc]\npath = '/usr/sbin/runc'\nannotations = ['example.org/*', 'exactly']\n[runtimes.crun]\npath = '/usr/bin/crun'\n";
    let path = dir.join("crisp.toml");
    std::fs::write(&path, format!("{SETTINGS}[container]\ncdi_dirs = {cdi:?}\n")).expect("room on the disk");
    path
}

/// The handler of pods that do not ask for one.
pub fn handler() -> String {
    std::env::var(VARIABLE).unwrap_or_default()
}

/// Whether that is an external runtime.
#[allow(dead_code)]
pub fn is_external() -> bool {
    !handler().is_empty()
}
