//! Has a runtime forget a container: its hooks for that run, and what it keeps outside its state directory goes.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{ContainerId, OciRuntime};
use crate::sys::process::give_own_mounts;

/// How long that may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// The runtime still knows the container.
#[derive(Debug, thiserror::Error)]
#[error("{} delete {container_id}", program.display())]
pub struct DeleteError {
    program: PathBuf,
    container_id: ContainerId,
    source: io::Error,
}

/// Runs `runtime delete --force`; `state` is its state directory. Fine if it does not know the container.
pub async fn delete(
    runtime: &OciRuntime,
    state: &Path,
    hidden: &[PathBuf],
    container_id: &ContainerId,
) -> Result<(), DeleteError> {
    // Nothing to ask where it keeps nothing.
    if !state.join(container_id).exists() {
        return Ok(());
    }
    run(runtime, state, hidden, container_id)
        .await
        .map_err(|source| DeleteError {
            program: runtime.path.clone(),
            container_id: container_id.clone(),
            source,
        })
}

async fn run(runtime: &OciRuntime, state: &Path, hidden: &[PathBuf], id: &ContainerId) -> io::Result<()> {
    let hidden = hidden.iter().map(|path| CString::new(path.as_os_str().as_bytes()));
    let hidden = hidden.collect::<Result<Vec<_>, _>>()?;
    let mut command = std::process::Command::new(&runtime.path);
    give_own_mounts(&mut command, hidden);
    let mut command = tokio::process::Command::from(command);
    command.args(&runtime.options).arg("--root").arg(state);
    command.args(["delete", "--force", id.as_str()]);
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.map_err(|_| io::Error::other(format!("not done within {DEADLINE:?}")))??;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{}: {}", output.status, said.trim())))
}
