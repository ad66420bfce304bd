//! Runs one plugin once (CNI spec 1.1, section 2): environment and standard input in, standard output back.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::network::NetworkError;

/// The most that a plugin may print, on each stream.
const OUTPUT_BYTES: usize = 1 << 20;
/// How long output is waited for after the plugin ended: a child that it left behind may hold the pipe for ever.
const DRAIN: Duration = Duration::from_millis(500);
const MESSAGE_BYTES: usize = 1024;

/// One call.
pub struct Call<'a> {
    pub plugin: &'a str,
    pub dirs: &'a [PathBuf],
    pub command: &'static str,
    /// `CNI_*` variables beside `CNI_COMMAND` and `CNI_PATH`.
    pub environment: Vec<(&'static str, String)>,
    pub deadline: Duration,
}

/// The executable of `plugin`: the first hit in `dirs`.
pub fn find(plugin: &str, dirs: &[PathBuf]) -> Result<PathBuf, NetworkError> {
    let executable = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    dirs.iter()
        .map(|dir| dir.join(plugin))
        .find(|path| executable(path))
        .ok_or_else(|| NetworkError::PluginMissing {
            plugin: plugin.to_owned(),
            dirs: dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect::<Vec<_>>()
                .join(":"),
        })
}

/// The plugin's process group; killed with all in it unless the plugin ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Gone already: all the better.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

impl Call<'_> {
    /// Runs the plugin and returns what it printed (null if nothing). When the deadline passes, or the caller goes away,
    /// the plugin is killed with its whole process group.
    pub async fn run(&self, input: Stdio) -> Result<Value, NetworkError> {
        let failed = |op: &'static str| {
            move |source: io::Error| NetworkError::PluginRun {
                op,
                plugin: self.plugin.to_owned(),
                source,
            }
        };
        let mut command = Command::new(find(self.plugin, self.dirs)?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CNI_")) {
            command.env_remove(name);
        }
        let path: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        command.env("CNI_COMMAND", self.command).env("CNI_PATH", path.join(":"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(failed("start"))?;
        // What is left of it keeps the plugin's standard input, and with it the pod's turn.
        drop(command);
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let output = Output::of(child.stdout.take().expect("piped above"));
        let errors = Output::of(child.stderr.take().expect("piped above"));
        let Ok(status) = tokio::time::timeout(self.deadline, child.wait()).await else {
            drop(group);
            // Dead for certain before anything is undone; killed, it cannot take long.
            let _ = tokio::time::timeout(DRAIN, child.wait()).await;
            return Err(NetworkError::PluginDeadline {
                plugin: self.plugin.to_owned(),
                command: self.command,
                deadline: self.deadline,
            });
        };
        let status = status.map_err(failed("wait for"))?;
        group.0 = None;
        let output = output.take().await.map_err(failed("read from"))?;
        if status.success() {
            return self.result(&output);
        }
        let errors = errors.take().await.map_err(failed("read from"))?;
        Err(self.refusal(&output, &errors, status))
    }

    fn result(&self, output: &[u8]) -> Result<Value, NetworkError> {
        if output.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(output).map_err(|error| self.unusable(&error.to_string()))
    }

    /// The error for a plugin that ended well but said nothing sensible.
    pub fn unusable(&self, reason: &str) -> NetworkError {
        let (plugin, reason) = (self.plugin.to_owned(), reason.to_owned());
        NetworkError::PluginResult {
            plugin,
            command: self.command,
            reason,
        }
    }

    /// What a plugin that failed says of it: its error object, else whatever it printed.
    fn refusal(&self, output: &[u8], errors: &[u8], status: std::process::ExitStatus) -> NetworkError {
        let said: Value = serde_json::from_slice(output).unwrap_or_default();
        let mut message = said["msg"].as_str().unwrap_or_default().to_owned();
        if let Some(details) = said["details"].as_str().filter(|details| !details.is_empty()) {
            message = format!("{message}: {details}");
        }
        if message.is_empty() {
            let text = [errors, output]
                .into_iter()
                .map(|b| b.trim_ascii())
                .find(|b| !b.is_empty())
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(MESSAGE_BYTES)..]);
            message = format!("{status}: {text}");
        }
        NetworkError::PluginFailed {
            plugin: self.plugin.to_owned(),
            command: self.command,
            code: said["code"].as_u64().unwrap_or_default(),
            message: message.chars().take(MESSAGE_BYTES).collect(),
        }
    }
}

/// One of the plugin's output streams, read while it runs.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<io::Result<()>>,
}

impl Output {
    fn of(mut stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = bytes.clone();
        let reader = tokio::spawn(async move {
            let mut piece = vec![0; 16 << 10];
            loop {
                let length = stream.read(&mut piece).await?;
                let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                // What is beyond the cap is read, too, so that the plugin never blocks on it, and forgotten.
                let room = OUTPUT_BYTES - bytes.len();
                bytes.extend_from_slice(&piece[..length.min(room)]);
                if length == 0 {
                    return Ok(());
                }
            }
        });
        Self { bytes, reader }
    }

    /// All that came, once the plugin has ended.
    async fn take(mut self) -> io::Result<Vec<u8>> {
        if let Ok(joined) = tokio::time::timeout(DRAIN, &mut self.reader).await {
            joined.map_err(io::Error::other)??;
        }
        Ok(std::mem::take(
            &mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
