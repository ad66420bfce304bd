//! Specification files: JSON or YAML, one kind of device each.
//!
//! What is not known is an error: an edit that is left out makes a device that does not work, or one that is less confined than
//! its vendor means it to be.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

const LARGEST_BYTES: u64 = 4 << 20;
/// More than any directory has.
const MOST_FILES: usize = 1024;

/// A file that was read.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    pub spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    #[serde(rename = "cdiVersion")]
    _version: String,
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub devices: Vec<Device>,
    /// For each container that has one of the devices.
    #[serde(default)]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What a device does to a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub mounts: Vec<Mount>,
    pub additional_gids: Vec<u32>,
    pub hooks: Vec<Value>,
    pub net_devices: Vec<Value>,
    pub intel_rdt: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the host; without it, the same.
    #[serde(default)]
    pub host_path: String,
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub major: u32,
    #[serde(default)]
    pub minor: u32,
    pub file_mode: Option<u32>,
    #[serde(default)]
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(default, rename = "type")]
    pub kind: String,
}

/// What is in the directories.
#[derive(Debug, Default)]
pub struct Found {
    /// By directory.
    pub files: Vec<Vec<File>>,
    /// What cannot be used, and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// All files of `dirs`. A directory that is not there has none.
pub fn read_all(dirs: &[PathBuf]) -> Found {
    let Found { mut files, mut broken } = Found::default();
    for dir in dirs {
        let mut here = Vec::new();
        let paths = match list(dir) {
            Ok(paths) => paths,
            Err(error) => {
                broken.push((dir.clone(), error.to_string()));
                continue;
            }
        };
        for path in paths {
            match read(&path) {
                Ok(spec) => here.push(File { path, spec }),
                Err(why) => broken.push((path, why)),
            }
        }
        files.push(here);
    }
    Found { files, broken }
}

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if matches!(path.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml")) {
            paths.push(path);
        }
        if paths.len() > MOST_FILES {
            return Err(io::Error::other(format!("more than {MOST_FILES} files")));
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Spec, String> {
    let told = |error: io::Error| error.to_string();
    let file = fs::File::open(path).map_err(told)?;
    if !file.metadata().map_err(told)?.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut text = String::new();
    file.take(LARGEST_BYTES + 1).read_to_string(&mut text).map_err(told)?;
    if text.len() as u64 > LARGEST_BYTES {
        return Err(format!("it is larger than {LARGEST_BYTES} bytes"));
    }
    parse(&text, path.extension().is_some_and(|extension| extension == "json"))
}

/// Reads a specification.
pub fn parse(text: &str, is_json: bool) -> Result<Spec, String> {
    if is_json {
        return serde_json::from_str(text).map_err(|error| error.to_string());
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let [document] = documents.as_slice() else {
        return Err(format!("it holds {} YAML documents, not one", documents.len()));
    };
    serde_json::from_value(as_json(document)?).map_err(|error| error.to_string())
}

fn as_json(yaml: &Yaml) -> Result<Value, String> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => (*value).into(),
        Yaml::Integer(value) => (*value).into(),
        Yaml::String(value) => value.as_str().into(),
        // As written: a version such as 1.0 is text to its reader.
        Yaml::Real(value) => value.as_str().into(),
        Yaml::Array(list) => Value::Array(list.iter().map(as_json).collect::<Result<_, _>>()?),
        Yaml::Hash(hash) => {
            let entry = |(key, value): (&Yaml, &Yaml)| {
                let key = key.as_str().ok_or("a key is no text")?;
                Ok::<_, String>((key.to_owned(), as_json(value)?))
            };
            Value::Object(hash.iter().map(entry).collect::<Result<_, _>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => return Err("it holds something that is no plain YAML".to_owned()),
    })
}
