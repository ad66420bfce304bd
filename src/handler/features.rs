//! What a runtime says it can do: the features structure of the OCI runtime specification (features.md), which its command
//! `features` prints.

use std::time::Duration;

use serde::Deserialize;

use crate::model::OciRuntime;

/// How long a runtime may take to say what it can do.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a pod with this handler can have (CRI: RuntimeHandlerFeatures).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub recursive_read_only_mounts: bool,
    pub user_namespaces: bool,
}

impl Features {
    /// Those of the built-in handler.
    pub const BUILT_IN: Self = Self {
        recursive_read_only_mounts: true,
        user_namespaces: true,
    };
}

/// The part of the structure that matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Told {
    mount_options: Vec<String>,
}

/// Asks the runtime of handler `name`. An old one does not know the question.
pub async fn ask(name: &str, runtime: &OciRuntime) -> Features {
    match told(runtime).await {
        Ok(told) => {
            let features = Features {
                recursive_read_only_mounts: told.mount_options.iter().any(|option| option == "rro"),
                // Its containers would need the pod's user namespace and idmapped roots: not there yet.
                user_namespaces: false,
            };
            tracing::info!(handler = name, path = %runtime.path.display(), ?features, "runtime handler");
            features
        }
        Err(error) => {
            let path = runtime.path.display();
            tracing::info!(handler = name, %path, %error, "runtime handler that does not tell its features: none are assumed");
            Features::default()
        }
    }
}

async fn told(runtime: &OciRuntime) -> std::io::Result<Told> {
    let mut command = tokio::process::Command::new(&runtime.path);
    command.args(&runtime.options).arg("features");
    command.stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output.map_err(|_| std::io::Error::other(format!("no answer within {DEADLINE:?}")))??;
    if !output.status.success() {
        return Err(std::io::Error::other(format!(
            "the command features ended: {}",
            output.status
        )));
    }
    serde_json::from_slice(&output.stdout).map_err(Into::into)
}
