//! Looks up the devices of a request on the host.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::error::SpecError;
use super::super::mounts::clean;
use super::{Device, DeviceKind};
use crate::cri;

/// A directory of devices may hold this many, directories counted.
const MOST: usize = 16_384;

/// Names in /dev that are no devices of the host, or that every container has of its own.
const SKIPPED: [&str; 10] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
    "ptmx",
    "hugepages",
];

/// The devices of the container: those it names (a directory stands for all devices below it), after all of the
/// host's if it is privileged. Blocks on the host's file system.
pub fn lookup(container: &cri::ContainerConfig) -> Result<Vec<Device>, SpecError> {
    let context = container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let mut found = Vec::new();
    if context.is_some_and(|context| context.privileged) {
        walk(Path::new("/dev"), Path::new("/dev"), "rwm", &mut found)?;
    }
    for device in &container.devices {
        let access = access(&device.permissions)?;
        if !device.host_path.starts_with('/') {
            return Err(SpecError::invalid(
                "device",
                &device.host_path,
                "is not an absolute path",
            ));
        }
        let host = PathBuf::from(&device.host_path);
        let inside = clean(if device.container_path.is_empty() {
            &device.host_path
        } else {
            &device.container_path
        });
        let metadata = fs::metadata(&host).map_err(|source| failed("stat", &host, source))?;
        if metadata.is_dir() {
            let real = fs::canonicalize(&host).map_err(|source| failed("resolve", &host, source))?;
            walk(&real, &inside, &access, &mut found)?;
        } else {
            match node(&metadata, &host, &inside, &access) {
                Some(device) => found.push(device),
                None => return Err(SpecError::invalid("device", &device.host_path, "is not a device")),
            }
        }
    }
    Ok(found)
}

fn failed(op: &'static str, path: &Path, source: io::Error) -> SpecError {
    SpecError::Device {
        op,
        path: path.to_owned(),
        source,
    }
}

/// Of `r`, `w`, `m`, each at most once; nothing said is all of them.
fn access(text: &str) -> Result<String, SpecError> {
    if text.is_empty() {
        return Ok("rwm".to_owned());
    }
    let sound = text
        .chars()
        .enumerate()
        .all(|(n, c)| "rwm".contains(c) && !text[..n].contains(c));
    if !sound {
        return Err(SpecError::invalid(
            "device permissions",
            text,
            "are not made of r, w and m",
        ));
    }
    Ok(text.to_owned())
}

fn node(metadata: &Metadata, host: &Path, inside: &Path, access: &str) -> Option<Device> {
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Character,
        _ => return None,
    };
    let number = metadata.rdev();
    Some(Device {
        host: host.to_owned(),
        path: inside.to_owned(),
        kind,
        major: libc::major(number),
        minor: libc::minor(number),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// All devices below `host`, not through symlinks. What vanishes meanwhile was a device that was just unplugged.
fn walk(host: &Path, inside: &Path, access: &str, found: &mut Vec<Device>) -> Result<(), SpecError> {
    let mut left = vec![(host.to_owned(), inside.to_owned())];
    let mut seen = 0;
    while let Some((host, inside)) = left.pop() {
        let entries = match fs::read_dir(&host) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed("list", &host, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| failed("list", &host, source))?;
            let name = entry.file_name();
            if SKIPPED.iter().any(|skipped| name == *skipped) {
                continue;
            }
            seen += 1;
            if seen > MOST {
                return Err(SpecError::TooLarge {
                    what: "devices in a directory",
                    size: seen as u64,
                    limit: MOST as u64,
                });
            }
            let Ok(metadata) = entry.metadata() else { continue };
            let inside = inside.join(&name);
            if metadata.is_dir() {
                left.push((entry.path(), inside));
            } else {
                found.extend(node(&metadata, &entry.path(), &inside, access));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};

    fn request(host_path: &str, container_path: &str, permissions: &str) -> cri::ContainerConfig {
        let device = cri::Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        };
        cri::ContainerConfig {
            devices: vec![device],
            ..Default::default()
        }
    }

    #[test]
    fn one_device_with_its_owner_and_mode() {
        let found = lookup(&request("/dev/null", "/dev/nothing", "rw")).unwrap();
        assert_eq!(found.len(), 1);
        let device = &found[0];
        assert_eq!((device.major, device.minor, device.mode), (1, 3, 0o666));
        assert_eq!(
            (device.path.to_str(), device.access.as_str()),
            (Some("/dev/nothing"), "rw")
        );
        assert_eq!(lookup(&request("/dev/null", "", "")).unwrap()[0].access, "rwm");
    }

    #[test]
    fn a_directory_stands_for_its_devices() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("link")).unwrap();
        let device = dir.path().join("sub/zero");
        mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 5)).unwrap();
        let found = lookup(&request(dir.path().to_str().unwrap(), "/dev/many", "r")).unwrap();
        let paths: Vec<_> = found.iter().map(|device| device.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev/many/sub/zero"]);
    }

    #[test]
    fn what_is_no_device_or_has_no_sound_permissions_is_refused() {
        for (host, permissions) in [
            ("/etc/passwd", "r"),
            ("/no/such/device", "r"),
            ("dev/null", "r"),
            ("", "r"),
            ("/dev/null", "x"),
            ("/dev/null", "rr"),
            ("/dev/null", "r w"),
        ] {
            assert!(
                lookup(&request(host, "/dev/a", permissions)).is_err(),
                "{host} {permissions}"
            );
        }
    }

    #[test]
    fn a_privileged_container_gets_the_hosts_devices_but_not_its_terminals() {
        let context = cri::LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig {
            security_context: Some(context),
            ..Default::default()
        };
        let container = cri::ContainerConfig {
            linux: Some(linux),
            ..Default::default()
        };
        let found = lookup(&container).unwrap();
        assert!(found.iter().any(|device| device.path == Path::new("/dev/null")));
        assert!(!found.iter().any(|device| device.path.starts_with("/dev/pts")));
        assert!(!found.iter().any(|device| device.path == Path::new("/dev/console")));
    }
}
