//! The AppArmor profile of containers that ask for the runtime's default one: written here, given to the kernel by
//! `apparmor_parser`, the only program that can.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::container::spec::AppArmor;

/// The profile's name.
const NAME: &str = "crisp-default";

/// How long the parser may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// Pins what the rules mean, where the distribution knows how: a newer AppArmor mediates more by default.
const ABI: &str = "/etc/apparmor.d/abi/3.0";

const PROFILE: &str = r#"
profile crisp-default flags=(attach_disconnected,mediate_deleted) {
  # Capabilities, networks and files are limited by other means, but for what follows.
  capability,
  network,
  file,
  umount,

  # The node may signal a container; a container only its like.
  signal receive peer=unconfined,
  signal (send, receive) peer=crisp-default,

  # Only its like can be traced, or looked into through /proc.
  ptrace (trace, tracedby, read, readby) peer=crisp-default,

  deny mount,
  deny pivot_root,

  # Of /proc only processes can be written to, of /sys only the cgroups: the rest is the node's.
  deny /proc/[^0-9]* wkl,
  deny /proc/[^0-9]*/** wkl,
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,

  # What tells too much about the node, or moves it.
  deny /proc/kcore rwklx,
  deny /proc/kmem rwklx,
  deny /proc/mem rwklx,
  deny /proc/sysrq-trigger rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
"#;

/// Gives the kernel the default profile and puts its name into `apparmor`. Without the parser, or where it fails,
/// containers that ask for the default run unconfined, which is said once. `run` remembers what was given.
pub async fn provide_default(apparmor: &mut AppArmor, run: &Path) {
    let text = text();
    let stamp = run.join("apparmor-profile");
    let given = std::fs::read_to_string(&stamp).is_ok_and(|given| given == text);
    if !(given && apparmor.has(NAME)) {
        if let Err(why) = parse(&text).await {
            if !apparmor.has(NAME) {
                tracing::warn!(%why, "the AppArmor profile {NAME} is not loaded: containers without a profile of their own run unconfined");
                return;
            }
            tracing::warn!(%why, "the AppArmor profile {NAME} is not renewed: the one that is loaded stays");
        } else if let Err(error) = std::fs::write(&stamp, &text) {
            tracing::debug!(path = %stamp.display(), %error, "the profile will be loaded again at the next start");
        }
    }
    apparmor.default_profile = Some(NAME.to_owned());
}

fn text() -> String {
    let abi = if Path::new(ABI).exists() {
        "abi <abi/3.0>,\n"
    } else {
        ""
    };
    format!("{abi}{PROFILE}")
}

/// Loads or replaces the profile.
async fn parse(text: &str) -> Result<(), String> {
    let mut parser = tokio::process::Command::new("apparmor_parser");
    // The kernel has the compiled profile; no cache is needed.
    parser.args(["--replace", "--skip-cache"]).kill_on_drop(true);
    parser.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin");
    parser
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut parser = parser
        .spawn()
        .map_err(|error| format!("run apparmor_parser (of the package apparmor): {error}"))?;
    let mut stdin = parser.stdin.take().ok_or("apparmor_parser has no input")?;
    let fed = async {
        stdin
            .write_all(text.as_bytes())
            .await
            .map_err(|error| error.to_string())?;
        drop(stdin);
        parser.wait_with_output().await.map_err(|error| error.to_string())
    };
    let done = tokio::time::timeout(DEADLINE, fed).await;
    let done = done.map_err(|_| format!("apparmor_parser did not end within {} s", DEADLINE.as_secs()))??;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(format!("apparmor_parser: {}: {}", done.status, said.trim()))
}
