//! Manifests and indexes, docker's and OCI's, as far as a pull reads them.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::RegistryError;
use super::platform::Platform;
use crate::image::digest::Digest;

pub(super) const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, */*;q=0.1";

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Configurations of container images; the last is of docker 1.10. Images of some builders leave it out.
const CONFIGS: [&str; 4] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
    "",
];
/// How layers are packed is looked up in the layers themselves: some builders do not say the truth.
const LAYERS: [&str; 7] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.container.image.rootfs.diff+x-gtar",
];
/// Overlayfs takes no more lower directories.
const LAYERS_LIMIT: usize = 500;
const ENTRIES_LIMIT: usize = 4096;

/// Names content, its size and what it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(super) media_type: String,
    digest: String,
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Descriptor {
    pub(super) fn digest(&self, within: &Digest) -> Result<Digest, RegistryError> {
        self.digest
            .parse()
            .map_err(|error| malformed("manifest", within, format!("{error}")))
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u64,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

/// What a reference leads to.
#[derive(Debug)]
pub(super) enum Manifest {
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    Index(Vec<Descriptor>),
}

impl Manifest {
    /// Reads the document `digest`, served as `content_type`. What could be read in two ways is refused
    /// (OCI image-spec, manifest: CVE-2021-41190).
    pub(super) fn parse(bytes: &[u8], content_type: &str, digest: &Digest) -> Result<Self, RegistryError> {
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        let document: Document = serde_json::from_slice(bytes).map_err(|source| RegistryError::Json {
            what: "manifest",
            digest: digest.clone(),
            source,
        })?;
        let schema_1 = [content_type, document.media_type.as_str()]
            .iter()
            .any(|name| name.starts_with(DOCKER_SCHEMA_1));
        if schema_1 || document.schema_version == 1 || document.fs_layers.is_some() {
            return Err(unsupported(
                digest,
                "docker schema 1 manifests are not supported: push the image again".to_owned(),
            ));
        }
        let is_known = |name: &&str| [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX].contains(name);
        let named = Some(document.media_type.as_str()).filter(|name| !name.is_empty());
        let served = Some(content_type).filter(is_known);
        if let (Some(named), Some(served)) = (named, served)
            && named != served
        {
            return Err(malformed(
                "manifest",
                digest,
                format!("says it is {named:?} and was served as {served:?}"),
            ));
        }
        let says_index = named.or(served).map(|name| name == DOCKER_LIST || name == OCI_INDEX);
        match (document.config, document.layers, document.manifests) {
            (config, layers, Some(manifests)) => {
                if config.is_some() || layers.is_some() || says_index == Some(false) {
                    return Err(malformed(
                        "manifest",
                        digest,
                        "is an image's and an index at once".to_owned(),
                    ));
                }
                limited(digest, "manifests", manifests.len(), ENTRIES_LIMIT)?;
                Ok(Self::Index(manifests))
            }
            (Some(config), Some(layers), None) if says_index != Some(true) => {
                check_image(&config, &layers, digest)?;
                Ok(Self::Image { config, layers })
            }
            _ if named.is_some_and(|name| !is_known(&name)) => Err(unsupported(
                digest,
                format!("{:?} is no container image", document.media_type),
            )),
            _ => Err(malformed(
                "manifest",
                digest,
                "is neither an image's nor an index".to_owned(),
            )),
        }
    }
}

fn check_image(config: &Descriptor, layers: &[Descriptor], digest: &Digest) -> Result<(), RegistryError> {
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(unsupported(
            digest,
            format!("no container image: its configuration is {:?}", config.media_type),
        ));
    }
    limited(digest, "layers", layers.len(), LAYERS_LIMIT)?;
    for layer in layers {
        let media_type = layer.media_type.as_str();
        if media_type.contains("nondistributable") || media_type.contains("foreign") {
            return Err(unsupported(
                digest,
                format!(
                    "layer {} is foreign ({media_type}): its content is not in the registry",
                    layer.digest
                ),
            ));
        }
        if !LAYERS.contains(&media_type) {
            return Err(unsupported(
                digest,
                format!("layer {} is of unknown type {media_type:?}", layer.digest),
            ));
        }
    }
    Ok(())
}

/// The entry of an index for `platform`: the best of those that name it; else the first that names none.
pub(super) fn choose<'a>(
    manifests: &'a [Descriptor],
    platform: &Platform,
    digest: &Digest,
) -> Result<&'a Descriptor, RegistryError> {
    let ranked = manifests
        .iter()
        .filter_map(|entry| Some((platform.rank(entry.platform.as_ref()?)?, entry)));
    // The first of equals: an index lists what its author prefers first.
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    let is_image = |entry: &&Descriptor| {
        entry.platform.is_none()
            && [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX].contains(&entry.media_type.as_str())
    };
    manifests.iter().find(is_image).ok_or_else(|| {
        let mut offered: Vec<String> = manifests
            .iter()
            .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
            .collect();
        offered.dedup();
        offered.truncate(16);
        RegistryError::Platform {
            digest: digest.clone(),
            wanted: platform.to_string(),
            offered: super::error::shown(&offered.join(", ")),
        }
    })
}

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// The diffIDs of the configuration `digest`, one for each of `layers` layers.
pub(super) fn diff_ids(
    bytes: &[u8],
    digest: &Digest,
    layers: usize,
    platform: &Platform,
) -> Result<Vec<Digest>, RegistryError> {
    let config: Config = serde_json::from_slice(bytes).map_err(|source| RegistryError::Json {
        what: "configuration",
        digest: digest.clone(),
        source,
    })?;
    if !platform.takes(&config.platform) {
        return Err(RegistryError::Platform {
            digest: digest.clone(),
            wanted: platform.to_string(),
            offered: super::error::shown(&config.platform.to_string()),
        });
    }
    let found = config.rootfs.diff_ids.len();
    if found != layers {
        return Err(malformed(
            "configuration",
            digest,
            format!("has {found} diffIDs for {layers} layers"),
        ));
    }
    config
        .rootfs
        .diff_ids
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error| malformed("configuration", digest, format!("{error}")))
        })
        .collect()
}

fn limited(digest: &Digest, what: &str, found: usize, limit: usize) -> Result<(), RegistryError> {
    if found > limit {
        return Err(unsupported(digest, format!("{found} {what}, more than {limit}")));
    }
    Ok(())
}

fn malformed(what: &'static str, digest: &Digest, why: String) -> RegistryError {
    RegistryError::Malformed {
        what,
        digest: digest.clone(),
        why: super::error::shown(&why),
    }
}

fn unsupported(digest: &Digest, why: String) -> RegistryError {
    RegistryError::Unsupported {
        digest: digest.clone(),
        why: super::error::shown(&why),
    }
}

#[cfg(test)]
mod tests {
    use super::{DOCKER_LIST, Manifest, OCI_INDEX, OCI_MANIFEST, choose, diff_ids};
    use crate::image::digest::{Algorithm, Digest};
    use crate::image::registry::Platform;
    use crate::image::registry::hash::digest_of;
    use serde_json::{Value, json};

    fn digest() -> Digest {
        digest_of(Algorithm::Sha256, b"")
    }

    fn amd64() -> Platform {
        Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: String::new(),
        }
    }

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": digest().as_str(), "size": 2})
    }

    fn image(config: &str, layer: &str) -> Value {
        json!({"schemaVersion": 2, "config": descriptor(config), "layers": [descriptor(layer)]})
    }

    fn parse(document: &Value, content_type: &str) -> Result<Manifest, String> {
        Manifest::parse(document.to_string().as_bytes(), content_type, &digest()).map_err(|error| error.to_string())
    }

    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn images_and_indexes_are_told_apart_by_type_and_by_shape() {
        assert!(matches!(
            parse(&image(CONFIG, LAYER), OCI_MANIFEST),
            Ok(Manifest::Image { .. })
        ));
        assert!(matches!(
            parse(&image(CONFIG, LAYER), "text/plain; charset=utf-8"),
            Ok(Manifest::Image { .. })
        ));
        let index = json!({"schemaVersion": 2, "manifests": []});
        assert!(matches!(parse(&index, DOCKER_LIST), Ok(Manifest::Index(_))));
        assert!(matches!(parse(&index, ""), Ok(Manifest::Index(_))));
    }

    #[test]
    fn what_is_ambiguous_old_or_no_image_is_refused() {
        let mut both = image(CONFIG, LAYER);
        both["manifests"] = json!([]);
        let mut lying = image(CONFIG, LAYER);
        lying["mediaType"] = json!(OCI_INDEX);
        let schema_1 = json!({"schemaVersion": 1, "fsLayers": []});
        let mut negative = image(CONFIG, LAYER);
        negative["layers"][0]["size"] = json!(-1);
        let foreign = image(CONFIG, "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        let chart = image("application/vnd.cncf.helm.config.v1+json", LAYER);
        let many = json!({"schemaVersion": 2, "config": descriptor(CONFIG), "layers": vec![descriptor(LAYER); 501]});
        for (document, content_type, part) in [
            (&both, "", "at once"),
            (&lying, OCI_MANIFEST, "was served as"),
            (&lying, "", "neither"),
            (&schema_1, "", "schema 1"),
            (
                &image(CONFIG, LAYER),
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                "schema 1",
            ),
            (&negative, "", "read manifest"),
            (&foreign, "", "foreign"),
            (
                &image(CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
                "",
                "unknown type",
            ),
            (&chart, "", "no container image"),
            (&many, "", "more than 500"),
            (&json!({"schemaVersion": 2}), "", "neither"),
            (&json!([]), "", "read manifest"),
        ] {
            let error = parse(document, content_type).expect_err(part);
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn the_entry_for_this_machine_is_chosen() {
        let entry = |size: u64, platform: Value| {
            let mut entry = descriptor(OCI_MANIFEST);
            entry["size"] = json!(size);
            if !platform.is_null() {
                entry["platform"] = platform;
            }
            entry
        };
        let chosen = |entries: Vec<Value>| {
            let Ok(Manifest::Index(entries)) = parse(&json!({"schemaVersion": 2, "manifests": entries}), "") else {
                panic!("an index")
            };
            choose(&entries, &amd64(), &digest())
                .map(|entry| entry.size)
                .map_err(|error| error.to_string())
        };
        let arm = json!({"os": "linux", "architecture": "arm64"});
        let own = json!({"os": "linux", "architecture": "amd64"});
        let unknown = json!({"os": "unknown", "architecture": "unknown"});
        let v3 = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
        let entries = vec![
            entry(1, unknown),
            entry(2, arm.clone()),
            entry(3, v3),
            entry(4, own.clone()),
            entry(5, own),
        ];
        assert_eq!(chosen(entries), Ok(4));
        assert_eq!(chosen(vec![entry(1, arm.clone()), entry(2, Value::Null)]), Ok(2));
        let error = chosen(vec![entry(1, arm)]).unwrap_err();
        assert!(
            error.contains("linux/amd64") && error.contains("linux/arm64"),
            "{error}"
        );
    }

    #[test]
    fn a_configuration_must_fit_its_manifest_and_this_machine() {
        let read = |config: Value, layers| {
            diff_ids(config.to_string().as_bytes(), &digest(), layers, &amd64()).map_err(|error| error.to_string())
        };
        let rootfs = json!({"type": "layers", "diff_ids": [digest().as_str()]});
        let good = json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs});
        assert_eq!(read(good.clone(), 1), Ok(vec![digest()]));
        assert!(read(json!({"rootfs": rootfs}), 1).is_ok());
        assert!(read(good, 2).unwrap_err().contains("1 diffIDs for 2 layers"));
        let windows = json!({"os": "windows", "architecture": "amd64", "rootfs": rootfs});
        assert!(read(windows, 1).unwrap_err().contains("windows/amd64"));
        assert!(
            read(json!({"rootfs": {"diff_ids": ["../../etc"]}}), 1)
                .unwrap_err()
                .contains("not a digest")
        );
    }
}
