//! What devices do to a container's configuration.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::CdiError;
use super::file::{DeviceNode, Edits, Mount};
use crate::container::spec::Device;
use crate::container::spec::devices::DeviceKind;
use crate::cri;
use crate::cri::MountPropagation;

/// A configuration with its devices.
#[derive(Debug)]
pub struct Edited {
    /// With their variables, mounts and groups.
    pub config: cri::ContainerConfig,
    /// Beside those that the configuration names itself.
    pub devices: Vec<Device>,
}

impl Edited {
    pub(super) fn new(config: &cri::ContainerConfig) -> Self {
        Self {
            config: config.clone(),
            devices: Vec::new(),
        }
    }

    /// Does what `edits` say for the device `name`; `refuse` tells what cannot be done.
    pub(super) fn edit(
        &mut self,
        name: &str,
        edits: &Edits,
        refuse: &impl Fn(String) -> CdiError,
    ) -> Result<(), CdiError> {
        for (there, what) in [
            (!edits.hooks.is_empty(), "hooks"),
            (!edits.net_devices.is_empty(), "network devices"),
            (edits.intel_rdt.is_some(), "Intel RDT classes"),
        ] {
            if there {
                return Err(refuse(format!("it has {what}, which are not supported")));
            }
        }
        for variable in &edits.env {
            let (key, value) = variable
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| refuse(format!("the variable {variable:?} is not of the form NAME=value")))?;
            self.config.envs.push(cri::KeyValue {
                key: key.to_owned(),
                value: value.as_bytes().to_vec(),
            });
        }
        for mount in &edits.mounts {
            self.config.mounts.push(bind(name, mount, refuse)?);
        }
        for node in &edits.device_nodes {
            self.devices.push(device(name, node, refuse)?);
        }
        if !edits.additional_gids.is_empty() {
            let context = self
                .config
                .linux
                .get_or_insert_default()
                .security_context
                .get_or_insert_default();
            let gids = edits.additional_gids.iter().filter(|gid| **gid != 0);
            context.supplemental_groups.extend(gids.map(|gid| i64::from(*gid)));
        }
        Ok(())
    }
}

fn bind(name: &str, mount: &Mount, refuse: &impl Fn(String) -> CdiError) -> Result<cri::Mount, CdiError> {
    if !matches!(mount.kind.as_str(), "" | "bind" | "none") {
        return Err(refuse(format!("a mount of type {:?} is not supported", mount.kind)));
    }
    let mut bind = cri::Mount {
        host_path: mount.host_path.clone(),
        container_path: mount.container_path.clone(),
        ..Default::default()
    };
    for option in &mount.options {
        match option.as_str() {
            "ro" => bind.readonly = true,
            "rw" | "bind" | "rbind" | "exec" | "dev" | "suid" | "private" | "rprivate" => {}
            "slave" | "rslave" => bind.propagation = MountPropagation::PropagationHostToContainer.into(),
            "shared" | "rshared" => bind.propagation = MountPropagation::PropagationBidirectional.into(),
            "noexec" | "nodev" | "nosuid" => bind.mount_options.push(option.clone()),
            _ => return Err(refuse(format!("the mount option {option:?} is not supported"))),
        }
    }
    // A missing path of a request is made; one of a device means that its driver is not there.
    fs::metadata(&mount.host_path).map_err(|source| failed(name, "look at", &mount.host_path, source))?;
    Ok(bind)
}

fn failed(name: &str, op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> CdiError {
    CdiError::Node {
        name: name.to_owned(),
        op,
        path: path.into(),
        source,
    }
}

fn device(name: &str, node: &DeviceNode, refuse: &impl Fn(String) -> CdiError) -> Result<Device, CdiError> {
    let host = Path::new(if node.host_path.is_empty() {
        &node.path
    } else {
        &node.host_path
    });
    if !host.is_absolute() {
        return Err(refuse(format!("the device path {host:?} is not absolute")));
    }
    let access = match node.permissions.as_str() {
        "" => "rwm",
        // A device that is not for this container's use.
        "none" => "",
        some if some.chars().all(|c| "rwm".contains(c)) => some,
        other => {
            return Err(refuse(format!(
                "the device permissions {other:?} are not made of r, w and m"
            )));
        }
    };
    let kind = match node.kind.as_str() {
        "" => None,
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Character),
        other => return Err(refuse(format!("a device of type {other:?} is not supported"))),
    };
    let device = |kind, major, minor, mode: u32, uid, gid| Device {
        host: host.to_owned(),
        path: PathBuf::from(&node.path),
        kind,
        major,
        minor,
        mode: node.file_mode.unwrap_or(mode) & 0o7777,
        uid: node.uid.unwrap_or(uid),
        gid: node.gid.unwrap_or(gid),
        access: access.to_owned(),
    };
    if let Some(kind) = kind.filter(|_| node.major != 0 || node.minor != 0) {
        return Ok(device(kind, node.major, node.minor, 0o666, 0, 0));
    }
    let found = fs::metadata(host).map_err(|source| failed(name, "look at", host, source))?;
    let found_kind = match found.file_type() {
        kind if kind.is_block_device() => DeviceKind::Block,
        kind if kind.is_char_device() => DeviceKind::Character,
        _ => return Err(refuse(format!("{} is no device", host.display()))),
    };
    if kind.is_some_and(|kind| kind != found_kind) {
        return Err(refuse(format!("{} is a device of another type", host.display())));
    }
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    Ok(device(found_kind, major, minor, found.mode(), found.uid(), found.gid()))
}
