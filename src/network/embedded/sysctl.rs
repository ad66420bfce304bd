//! The few kernel settings that routing for pods needs, in the network namespace of the calling thread
//! (`/proc/sys/net` shows the caller's).

use std::io;
use std::path::{Path, PathBuf};

use crate::network::NetworkError;

fn path(name: &[&str]) -> PathBuf {
    name.iter()
        .fold(PathBuf::from("/proc/sys/net"), |path, part| path.join(part))
}

fn failed(op: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::File {
        op,
        path: path.to_owned(),
        source,
    }
}

/// Sets one if it is not set so already; says whether it had to. A setting that is not there (a kernel without IPv6)
/// counts as set.
pub fn set(name: &[&str], value: &str) -> Result<bool, NetworkError> {
    let path = path(name);
    match std::fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("read", &path, error)),
    }
    std::fs::write(&path, value).map_err(|e| failed("write", &path, e))?;
    Ok(true)
}

/// Lets the host forward IPv4.
pub fn forward_v4() -> Result<(), NetworkError> {
    if set(&["ipv4", "ip_forward"], "1")? {
        tracing::info!("net.ipv4.ip_forward was off and is now on: pods need it; it stays on");
    }
    Ok(())
}

/// Lets the host forward IPv6. A host that forwards ignores router advertisements, so a link that lives by them is told
/// to keep listening (`accept_ra` 2), or the host would lose its own way out.
pub fn forward_v6() -> Result<(), NetworkError> {
    let conf = path(&["ipv6", "conf"]);
    if std::fs::read_to_string(conf.join("all/forwarding")).is_ok_and(|now| now.trim() == "1") {
        return Ok(());
    }
    for link in std::fs::read_dir(&conf)
        .map_err(|e| failed("read", &conf, e))?
        .flatten()
    {
        let accept = link.path().join("accept_ra");
        if std::fs::read_to_string(&accept).is_ok_and(|now| now.trim() == "1") && link.file_name() != "all" {
            std::fs::write(&accept, "2").map_err(|e| failed("write", &accept, e))?;
        }
    }
    if set(&["ipv6", "conf", "all", "forwarding"], "1")? {
        tracing::info!("net.ipv6.conf.all.forwarding was off and is now on: pods need it; it stays on");
    }
    Ok(())
}

/// Before `link` is up: no router advertisements, or a pod could pose as a router to the host and to other pods (the
/// class of CVE-2020-10749); no duplicate address detection, which would keep neighbours from being found for a second,
/// on a link where all addresses come from one allocator.
pub fn quiet_v6(link: &str) -> io::Result<()> {
    for name in ["accept_ra", "accept_dad"] {
        match std::fs::write(path(&["ipv6", "conf", link, name]), "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
