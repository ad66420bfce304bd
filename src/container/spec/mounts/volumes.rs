//! The volumes that an image declares.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::super::error::SpecError;
use super::{Volume, clean};

/// More than any image has; each costs a directory and a mount.
const MOST: u64 = 256;

/// The image's volumes, but for those where the request mounts something itself. An image has no say in what is at
/// `/`, /proc, /sys and /dev.
pub fn resolve(image: &ImageConfiguration, taken: &BTreeSet<&Path>) -> Result<Vec<Volume>, SpecError> {
    let Some(declared) = image.config().as_ref().and_then(|config| config.volumes().as_ref()) else {
        return Ok(Vec::new());
    };
    let size = declared.len() as u64;
    if size > MOST {
        return Err(SpecError::TooLarge {
            what: "volumes of the image",
            size,
            limit: MOST,
        });
    }
    let mut destinations = BTreeSet::new();
    for path in declared {
        if path.contains('\0') {
            return Err(SpecError::invalid("volume of the image", path, "is no path"));
        }
        let destination = clean(path);
        if !taken.contains(destination.as_path()) && !is_reserved(&destination) {
            destinations.insert(destination);
        }
    }
    Ok(destinations
        .into_iter()
        .map(|destination: PathBuf| Volume { destination })
        .collect())
}

fn is_reserved(path: &Path) -> bool {
    path == Path::new("/")
        || ["/proc", "/sys", "/dev"]
            .iter()
            .any(|reserved| path.starts_with(reserved))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    fn image(volumes: &[&str]) -> ImageConfiguration {
        let volumes: Vec<String> = volumes.iter().map(|v| (*v).to_owned()).collect();
        let config = ConfigBuilder::default().volumes(volumes).build().unwrap();
        ImageConfigurationBuilder::default().config(config).build().unwrap()
    }

    #[test]
    fn volumes_that_nothing_else_covers() {
        let taken = BTreeSet::from([Path::new("/taken")]);
        let image = image(&["/data", "data/", "/taken", "/", "/proc/x", "/dev", "/sys", "/a/../b"]);
        let found = resolve(&image, &taken).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|volume| volume.destination.to_str().unwrap())
            .collect();
        assert_eq!(found, ["/b", "/data"]);
    }
}
