//! Addresses given to pods: one file per address, named by it, created exclusively. They survive the daemon.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::subnet::Subnet;
use crate::model::{self, SandboxId};
use crate::network::{NetworkError, PortMapping};

/// A lease is a few hundred bytes; a pod may list many ports.
const LEASE_BYTES: u64 = 1 << 20;

/// Who has an address, and the host ports that lead to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub sandbox_id: SandboxId,
    pub ports: Vec<PortMapping>,
}

/// All leases of this instance; the files are the truth, the map mirrors them.
#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    taken: BTreeMap<IpAddr, Lease>,
    /// The address given last, per family: the next search starts after it, so that an address rests before it is
    /// given again.
    last: [Option<IpAddr>; 2],
}

impl Leases {
    /// Reads the leases in `dir`, which is made if missing. A file without a lease in it is a creation that a crash cut
    /// short, before anything used the address: it is removed.
    pub fn open(dir: &Path) -> Result<Self, NetworkError> {
        std::fs::create_dir_all(dir).map_err(|e| failed("create", dir, e))?;
        let mut taken = BTreeMap::new();
        let mut newest = [None::<(SystemTime, IpAddr)>; 2];
        for entry in std::fs::read_dir(dir).map_err(|e| failed("read", dir, e))? {
            let entry = entry.map_err(|e| failed("read", dir, e))?;
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse::<IpAddr>().ok()) else {
                continue;
            };
            let path = entry.path();
            let Some((lease, modified)) = read(&path)? else {
                tracing::warn!(path = %path.display(), "removing an address file that was never finished");
                remove(&path)?;
                continue;
            };
            let newest = &mut newest[usize::from(ip.is_ipv6())];
            if newest.is_none_or(|(time, _)| time < modified) {
                *newest = Some((modified, ip));
            }
            taken.insert(ip, lease);
        }
        Ok(Self {
            dir: dir.to_owned(),
            taken,
            last: newest.map(|found| found.map(|(_, ip)| ip)),
        })
    }

    /// Gives `lease` the next free address of `subnet`.
    pub fn take(&mut self, subnet: &Subnet, lease: &Lease) -> Result<IpAddr, NetworkError> {
        let pods = subnet.pods();
        let last = &mut self.last[usize::from(!subnet.is_ipv4())];
        let start = last
            .and_then(|ip| subnet.position(ip))
            .map_or(pods.start, |position| position + 1);
        let candidates = (start.max(pods.start)..pods.end).chain(pods.start..start.clamp(pods.start, pods.end));
        for ip in candidates.filter_map(|n| subnet.nth(n)) {
            if self.taken.contains_key(&ip) {
                continue;
            }
            let path = self.dir.join(ip.to_string());
            let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(failed("create", &path, error)),
            };
            let text = serde_json::to_vec(lease).expect("a lease is plain data");
            if let Err(error) = file.write_all(&text) {
                remove(&path)?;
                return Err(failed("write", &path, error));
            }
            *last = Some(ip);
            self.taken.insert(ip, lease.clone());
            return Ok(ip);
        }
        Err(NetworkError::Exhausted {
            subnet: subnet.to_string(),
        })
    }

    /// Gives back all addresses of the sandbox.
    pub fn release(&mut self, sandbox_id: &SandboxId) -> Result<(), NetworkError> {
        for ip in self.of(sandbox_id) {
            remove(&self.dir.join(ip.to_string()))?;
            self.taken.remove(&ip);
        }
        Ok(())
    }

    /// The sandbox's addresses.
    pub fn of(&self, sandbox_id: &SandboxId) -> Vec<IpAddr> {
        self.taken
            .iter()
            .filter(|(_, lease)| lease.sandbox_id == *sandbox_id)
            .map(|(ip, _)| *ip)
            .collect()
    }

    /// Every lease.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Lease)> {
        self.taken.iter().map(|(ip, lease)| (*ip, lease))
    }

    /// Whether no pod has an address.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }
}

fn read(path: &Path) -> Result<Option<(Lease, SystemTime)>, NetworkError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| failed("open", path, e))?;
    let modified = file
        .metadata()
        .and_then(|m| m.modified())
        .map_err(|e| failed("stat", path, e))?;
    file.take(LEASE_BYTES)
        .read_to_end(&mut text)
        .map_err(|e| failed("read", path, e))?;
    let lease: Option<Lease> = serde_json::from_slice(&text).ok();
    Ok(lease
        .filter(|lease| model::is_well_formed(lease.sandbox_id.as_str()))
        .map(|lease| (lease, modified)))
}

fn remove(path: &Path) -> Result<(), NetworkError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn failed(op: &'static str, path: &Path, source: io::Error) -> NetworkError {
    NetworkError::File {
        op,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(digit: char) -> Lease {
        Lease {
            sandbox_id: SandboxId::new(digit.to_string().repeat(64)),
            ports: Vec::new(),
        }
    }

    #[test]
    fn an_address_rests_before_it_is_given_again_and_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "10.0.0.0/29".parse().unwrap();
        let mut leases = Leases::open(dir.path()).unwrap();
        assert_eq!(leases.take(&subnet, &lease('a')).unwrap().to_string(), "10.0.0.2");
        leases.release(&lease('a').sandbox_id).unwrap();
        assert!(leases.is_empty());
        for (digit, ip) in [
            ('b', "10.0.0.3"),
            ('c', "10.0.0.4"),
            ('d', "10.0.0.5"),
            ('e', "10.0.0.6"),
            ('f', "10.0.0.2"),
        ] {
            assert_eq!(leases.take(&subnet, &lease(digit)).unwrap().to_string(), ip);
        }
        assert!(matches!(
            leases.take(&subnet, &lease('0')),
            Err(NetworkError::Exhausted { .. })
        ));
        leases.release(&lease('d').sandbox_id).unwrap();
        assert_eq!(leases.take(&subnet, &lease('0')).unwrap().to_string(), "10.0.0.5");
    }

    #[test]
    fn leases_survive_and_an_unfinished_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let subnet: Subnet = "fd00::/64".parse().unwrap();
        let ip = Leases::open(dir.path()).unwrap().take(&subnet, &lease('a')).unwrap();
        std::fs::write(dir.path().join("fd00::9"), "").unwrap();
        let mut leases = Leases::open(dir.path()).unwrap();
        assert_eq!(leases.of(&lease('a').sandbox_id), [ip]);
        assert!(!dir.path().join("fd00::9").exists());
        assert_ne!(leases.take(&subnet, &lease('b')).unwrap(), ip);
    }
}
