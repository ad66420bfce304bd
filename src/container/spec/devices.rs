//! Device nodes of a container, and which devices its cgroup lets it use.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use super::error::SpecError;
use super::resources::DeviceRule;

mod lookup;

pub use lookup::lookup;

/// Block or character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Block,
    Character,
}

/// A device of the host and where the container finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// On the host, symlinks resolved or not.
    pub host: PathBuf,
    /// Within the container.
    pub path: PathBuf,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `r`, `w` and `m` (make nodes).
    pub access: String,
}

/// Nodes to make and rules for the cgroup.
#[derive(Debug)]
pub struct Devices<'a> {
    pub nodes: Vec<LinuxDevice>,
    /// Those that are bound from the host instead: a user namespace makes no nodes, and libcontainer binds only what has the
    /// same name outside.
    pub bound: Vec<&'a Device>,
    pub rules: Vec<DeviceRule>,
}

/// What every container may use: null, zero, full, random, urandom, tty, console, ptmx, and its terminals.
const DEFAULT_RULES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Turns devices into nodes and rules. Making nodes is always allowed (it takes CAP_MKNOD and gives no access);
/// a privileged container may use everything.
pub fn resolve(devices: &[Device], privileged: bool, user_namespace: bool) -> Result<Devices<'_>, SpecError> {
    let mut nodes: Vec<LinuxDevice> = Vec::new();
    let mut bound: Vec<&Device> = Vec::new();
    for device in devices {
        if !device.path.starts_with("/dev") || device.path == Path::new("/dev") {
            let shown = device.path.to_string_lossy();
            return Err(SpecError::invalid("device at", shown, "is not below /dev"));
        }
        nodes.retain(|node| node.path() != &device.path);
        bound.retain(|other| other.path != device.path);
        if user_namespace && device.host != device.path {
            bound.push(device);
        } else {
            nodes.push(node(device));
        }
    }
    if privileged {
        return Ok(Devices {
            nodes,
            bound,
            rules: vec![rule('a', None, None, "rwm")],
        });
    }
    let mut rules = vec![
        DeviceRule {
            allow: false,
            ..rule('a', None, None, "rwm")
        },
        rule('c', None, None, "m"),
        rule('b', None, None, "m"),
    ];
    rules.extend(
        DEFAULT_RULES
            .iter()
            .map(|(major, minor)| rule('c', Some(*major), *minor, "rwm")),
    );
    for device in devices {
        let kind = match device.kind {
            DeviceKind::Block => 'b',
            DeviceKind::Character => 'c',
        };
        rules.push(rule(kind, Some(device.major), Some(device.minor), &device.access));
    }
    Ok(Devices { nodes, bound, rules })
}

fn rule(kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        access: access.to_owned(),
    }
}

fn node(device: &Device) -> LinuxDevice {
    let typ = match device.kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Character => LinuxDeviceType::C,
    };
    let builder = LinuxDeviceBuilder::default().path(&device.path).typ(typ);
    let builder = builder.major(i64::from(device.major)).minor(i64::from(device.minor));
    super::built(builder.file_mode(device.mode).uid(device.uid).gid(device.gid).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fuse(path: &str, access: &str) -> Device {
        let path = PathBuf::from(path);
        let access = access.to_owned();
        Device {
            host: "/dev/fuse".into(),
            path,
            kind: DeviceKind::Character,
            major: 10,
            minor: 229,
            mode: 0o660,
            uid: 0,
            gid: 44,
            access,
        }
    }

    #[test]
    fn everything_is_denied_but_the_defaults_and_what_was_asked_for() {
        let devices = [fuse("/dev/fuse", "rw")];
        let found = resolve(&devices, false, false).unwrap();
        assert_eq!(found.nodes.len(), 1);
        assert_eq!(
            (found.nodes[0].gid(), found.nodes[0].file_mode()),
            (Some(44), Some(0o660))
        );
        assert!(!found.rules[0].allow && found.rules[0].kind == 'a');
        assert!(found.rules[1..].iter().all(|rule| rule.allow));
        assert_eq!(found.rules.last(), Some(&rule('c', Some(10), Some(229), "rw")));
        let kmem = found
            .rules
            .iter()
            .any(|rule| rule.major == Some(1) && rule.minor == Some(2));
        assert!(!kmem);
    }

    #[test]
    fn privileged_is_one_rule() {
        let devices = [fuse("/dev/fuse", "rwm")];
        let found = resolve(&devices, true, false).unwrap();
        assert_eq!(found.rules, [rule('a', None, None, "rwm")]);
    }

    #[test]
    fn the_last_device_at_a_path_counts_and_none_is_outside_dev() {
        let devices = [fuse("/dev/a", "r"), fuse("/dev/a", "w")];
        let found = resolve(&devices, false, false).unwrap();
        assert_eq!(found.nodes.len(), 1);
        for path in ["/etc/a", "/dev", "/device"] {
            assert!(resolve(&[fuse(path, "r")], false, false).is_err());
        }
    }

    #[test]
    fn in_a_user_namespace_devices_of_other_names_are_bound() {
        let devices = [fuse("/dev/fuse", "r"), fuse("/dev/other", "r")];
        let found = resolve(&devices, false, true).unwrap();
        assert_eq!((found.nodes.len(), &found.bound[..]), (1, &[&devices[1]][..]));
        assert_eq!(resolve(&devices, false, false).unwrap().bound.len(), 0);
    }
}
