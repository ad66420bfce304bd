//! Devices by the Container Device Interface (CDI 1.1): a name such as `vendor.com/gpu=0` stands for what the vendor's
//! specification files on the node say: device nodes, variables, mounts and groups.
//!
//! The files are read when a container names a device, and at no other time: what an operator installs or changes
//! counts for the next container.

mod edits;
mod file;
mod name;

use std::io;
use std::path::{Path, PathBuf};

pub use edits::Edited;
use file::{File, Found};
use name::{Name, requested};

use crate::cri;

/// Why a container does not get its devices.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error("CDI device {name:?} is no name of a device: it must be vendor/class=device")]
    Name { name: String },
    #[error("CDI device {name:?} is in none of {}{}", shown(.dirs), left_out(.broken))]
    Unknown {
        name: String,
        dirs: Vec<PathBuf>,
        /// Files that could have had it, and why they were left out.
        broken: Vec<(PathBuf, String)>,
    },
    #[error("CDI device {name:?} is both in {} and in {}", first.display(), second.display())]
    Twice {
        name: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error("CDI device {name:?} of {}: {what}", file.display())]
    Edit { name: String, file: PathBuf, what: String },
    #[error("CDI device {name:?}: {op} {}", path.display())]
    Node {
        name: String,
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

fn shown(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

fn left_out(broken: &[(PathBuf, String)]) -> String {
    let told = broken
        .iter()
        .map(|(file, why)| format!("; {} was left out: {why}", file.display()));
    told.collect()
}

/// The configuration as its CDI devices change it, and the devices. Reads the files below `dirs`, of which a later one
/// wins over an earlier one; nothing is read if no device is named.
pub fn apply(config: &cri::ContainerConfig, dirs: &[PathBuf]) -> Result<Edited, CdiError> {
    let mut edited = Edited::new(config);
    let names = requested(config)?;
    if names.is_empty() {
        return Ok(edited);
    }
    let found = file::read_all(dirs);
    let mut of_files: Vec<&Path> = Vec::new();
    for name in &names {
        let (file, device) = find(name, &found, dirs)?;
        let refuse = |what| CdiError::Edit {
            name: name.text.clone(),
            file: file.path.clone(),
            what,
        };
        // What a file says for all its devices is done once.
        if !of_files.contains(&file.path.as_path()) {
            of_files.push(&file.path);
            edited.edit(&name.text, &file.spec.container_edits, &refuse)?;
        }
        edited.edit(&name.text, &device.container_edits, &refuse)?;
    }
    Ok(edited)
}

/// The device, in the last directory that has it.
fn find<'a>(name: &Name, found: &'a Found, dirs: &[PathBuf]) -> Result<(&'a File, &'a file::Device), CdiError> {
    for files in found.files.iter().rev() {
        let mut having = files
            .iter()
            .filter(|file| file.spec.kind == name.kind)
            .filter_map(|file| {
                let device = file.spec.devices.iter().find(|device| device.name == name.device)?;
                Some((file, device))
            });
        match (having.next(), having.next()) {
            (Some(one), None) => return Ok(one),
            (Some((first, _)), Some((second, _))) => {
                return Err(CdiError::Twice {
                    name: name.text.clone(),
                    first: first.path.clone(),
                    second: second.path.clone(),
                });
            }
            (None, _) => {}
        }
    }
    Err(CdiError::Unknown {
        name: name.text.clone(),
        dirs: dirs.to_vec(),
        broken: found.broken.clone(),
    })
}

#[cfg(test)]
mod tests;
