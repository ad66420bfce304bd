//! The files that all containers of a pod share: hostname, hosts, resolv.conf, and /dev/shm.

use std::io;
use std::path::Path;

use crate::container::spec::SandboxFile;
use crate::cri;

/// The size that /dev/shm has in every runtime: 64 MiB.
const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Writes the files of a pod to `dir`, for the user and group `owner`.
pub fn write(
    dir: &Path,
    hostname: &str,
    dns: Option<&cri::DnsConfig>,
    own_network: bool,
    owner: u32,
) -> io::Result<()> {
    let resolv_conf = match dns {
        Some(dns) => resolv_conf(dns).into_bytes(),
        // A node without one has no names to resolve.
        None => std::fs::read("/etc/resolv.conf").or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })?,
    };
    for (file, content) in [
        (SandboxFile::Hostname, format!("{hostname}\n").into_bytes()),
        (SandboxFile::Hosts, hosts(hostname, own_network)),
        (SandboxFile::ResolvConf, resolv_conf),
    ] {
        let path = dir.join(file.name());
        std::fs::write(&path, content)?;
        if owner != 0 {
            std::os::unix::fs::chown(&path, Some(owner), Some(owner))?;
        }
    }
    Ok(())
}

/// Mounts the pod's /dev/shm, for the user and group `owner`.
pub fn mount_shm(dir: &Path, owner: u32) -> io::Result<()> {
    let path = dir.join(SandboxFile::Shm.name());
    std::fs::create_dir_all(&path)?;
    let shm = crate::sys::mount::tmpfs_of(owner, SHM_BYTES, 0o1777)?;
    let attributes = crate::sys::mount::Attributes {
        nosuid: true,
        nodev: true,
        noexec: true,
        ..Default::default()
    };
    crate::sys::mount::set_attributes(std::os::fd::AsFd::as_fd(&shm), attributes)?;
    crate::sys::mount::attach(&shm, rustix::fs::CWD, &path)
}

/// Unmounts the pod's /dev/shm. Fine if it is not mounted.
pub fn unmount_shm(dir: &Path) -> io::Result<()> {
    match rustix::mount::unmount(dir.join(SandboxFile::Shm.name()), rustix::mount::UnmountFlags::DETACH) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        done => done.map_err(Into::into),
    }
}

/// The hosts file for a pod whose kubelet brings none.
fn hosts(hostname: &str, own_network: bool) -> Vec<u8> {
    if !own_network && let Ok(hosts) = std::fs::read("/etc/hosts") {
        return hosts;
    }
    let names = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    format!("{names}127.0.1.1\t{hostname}\n").into_bytes()
}

fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// Whether the DNS configuration is what it says: a line break in a name would make lines of its own.
pub fn validate_dns(dns: &cri::DnsConfig) -> Result<(), String> {
    for entry in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
        if entry.is_empty() || entry.len() > 255 || entry.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(format!("dns_config: {entry:?} is not one word of at most 255 bytes"));
        }
    }
    for server in &dns.servers {
        let address = server.split('%').next().unwrap_or_default();
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("dns_config: server {server:?} is not an IP address"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> cri::DnsConfig {
        let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        cri::DnsConfig {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        }
    }

    #[test]
    fn the_dns_configuration_is_written_as_resolv_conf_5_says() {
        let text = resolv_conf(&dns(&["10.96.0.10", "fd00::a"], &["a.local", "b.local"], &["ndots:5"]));
        assert_eq!(
            text,
            "search a.local b.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn a_dns_entry_cannot_smuggle_in_a_line() {
        assert!(validate_dns(&dns(&["1.1.1.1"], &["a\nnameserver 6.6.6.6"], &[])).is_err());
        assert!(validate_dns(&dns(&["not-an-address"], &[], &[])).is_err());
        assert!(validate_dns(&dns(&["fe80::1%eth0"], &["svc.cluster.local"], &["ndots:5"])).is_ok());
    }
}
