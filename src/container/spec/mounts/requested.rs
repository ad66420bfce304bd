//! The mounts of the request, checked.

use std::path::{Component, Path, PathBuf};

use super::super::error::SpecError;
use super::{Bind, BindSource, clean};
use crate::cri;
use crate::cri::MountPropagation;
use crate::sys::mount::Propagation;
use crate::sys::userns::IdRange;

/// More than any pod has; each costs a mount and a descriptor.
const MOST: u64 = 1024;

/// Checks the mounts of a container of a pod with the ids `ids`, if it has a user namespace; their order stays.
pub fn resolve(mounts: &[cri::Mount], ids: Option<IdRange>) -> Result<Vec<Bind>, SpecError> {
    let size = mounts.len() as u64;
    if size > MOST {
        return Err(SpecError::TooLarge {
            what: "mounts",
            size,
            limit: MOST,
        });
    }
    mounts.iter().map(|mount| one(mount, ids)).collect()
}

fn one(mount: &cri::Mount, ids: Option<IdRange>) -> Result<Bind, SpecError> {
    let refuse = |reason| SpecError::invalid("mount at", &mount.container_path, reason);
    if mount.container_path.is_empty() || mount.container_path.contains('\0') {
        return Err(refuse("is nowhere"));
    }
    let destination = clean(&mount.container_path);
    if destination == Path::new("/") {
        return Err(refuse("would hide the root file system"));
    }
    let propagation = match MountPropagation::try_from(mount.propagation) {
        Ok(MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(MountPropagation::PropagationHostToContainer) => Propagation::Slave,
        Ok(MountPropagation::PropagationBidirectional) => Propagation::Shared,
        Err(_) => return Err(refuse("has an unknown propagation")),
    };
    if mount.recursive_read_only && !mount.readonly {
        return Err(refuse("is recursively read-only but not read-only"));
    }
    if mount.recursive_read_only && propagation != Propagation::Private {
        return Err(refuse("is recursively read-only but its propagation is not private"));
    }
    let mut bind = Bind {
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        id_mapped: is_mapped(mount, ids).map_err(refuse)?,
        ..Bind::new(source(mount)?, destination)
    };
    bind.create_as_directory = matches!(bind.source, BindSource::Host(_));
    // An image is the pod's own view of it.
    bind.id_mapped |= ids.is_some() && matches!(bind.source, BindSource::Image { .. });
    for option in &mount.mount_options {
        match option.as_str() {
            "noexec" => bind.noexec = true,
            "nodev" => bind.nodev = true,
            "nosuid" => bind.nosuid = true,
            _ => {
                return Err(SpecError::invalid(
                    "mount option",
                    option,
                    "is none of noexec, nodev, nosuid",
                ));
            }
        }
    }
    Ok(bind)
}

/// Whether the files of the mount are asked to belong inside to whom they belong on the node, by number.
fn is_mapped(mount: &cri::Mount, ids: Option<IdRange>) -> Result<bool, &'static str> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(false);
    }
    let ids = ids.ok_or("has id mappings, but the pod has no user namespace")?;
    let pods = [cri::IdMapping {
        host_id: ids.first,
        container_id: 0,
        length: ids.count,
    }];
    if mount.uid_mappings != pods || mount.gid_mappings != pods {
        return Err("has id mappings that are not those of the pod's user namespace");
    }
    Ok(true)
}

fn source(mount: &cri::Mount) -> Result<BindSource, SpecError> {
    let refuse = |reason| SpecError::invalid("mount at", &mount.container_path, reason);
    let image = mount
        .image
        .as_ref()
        .filter(|image| !image.image.is_empty() || !image.image_ref.is_empty());
    match image {
        Some(_) if !mount.host_path.is_empty() => Err(refuse("has both an image and a host path")),
        Some(_) if !mount.readonly => Err(refuse("is an image and must be read-only")),
        Some(image) => {
            let sub_path = PathBuf::from(&mount.image_sub_path);
            let inside = sub_path
                .components()
                .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
            if !inside || mount.image_sub_path.contains('\0') {
                return Err(refuse("has an image sub-path that leaves the image"));
            }
            Ok(BindSource::Image {
                image: image.clone(),
                sub_path,
            })
        }
        None if !mount.image_sub_path.is_empty() => Err(refuse("has an image sub-path but no image")),
        None if !mount.host_path.starts_with('/') || mount.host_path.contains('\0') => {
            Err(refuse("has a host path that is not absolute"))
        }
        None => Ok(BindSource::Host(PathBuf::from(&mount.host_path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(host_path: &str, container_path: &str) -> cri::Mount {
        cri::Mount {
            host_path: host_path.into(),
            container_path: container_path.into(),
            ..Default::default()
        }
    }

    fn image() -> Option<cri::ImageSpec> {
        Some(cri::ImageSpec {
            image: "i".into(),
            ..Default::default()
        })
    }

    #[test]
    fn sound_mounts() {
        let plain = resolve(&[mount("/h", "data/../srv/")], None).unwrap().remove(0);
        assert_eq!(plain.destination, Path::new("/srv"));
        assert_eq!(plain.source, BindSource::Host("/h".into()));
        assert!(plain.create_as_directory && !plain.read_only && plain.propagation == Propagation::Private);

        let options = ["noexec", "nodev", "nosuid"].map(str::to_owned).to_vec();
        let full = cri::Mount {
            readonly: true,
            recursive_read_only: true,
            mount_options: options,
            ..mount("/h", "/c")
        };
        let bind = resolve(&[full], None).unwrap().remove(0);
        assert!(bind.read_only && bind.recursive_read_only && bind.noexec && bind.nodev && bind.nosuid);

        let volume = cri::Mount {
            image: image(),
            readonly: true,
            image_sub_path: "a/b".into(),
            ..mount("", "/c")
        };
        let bind = resolve(&[volume], None).unwrap().remove(0);
        assert!(matches!(&bind.source, BindSource::Image { sub_path, .. } if sub_path == Path::new("a/b")));
        assert!(!bind.create_as_directory);
    }

    #[test]
    fn refused_mounts() {
        let rro = |readonly, propagation: MountPropagation| cri::Mount {
            readonly,
            recursive_read_only: true,
            propagation: propagation as i32,
            ..mount("/h", "/c")
        };
        let volume = |readonly, host_path: &str, sub_path: &str| cri::Mount {
            image: image(),
            readonly,
            image_sub_path: sub_path.into(),
            ..mount(host_path, "/c")
        };
        let mapping = vec![cri::IdMapping::default()];
        for refused in [
            mount("/h", ""),
            mount("/h", "/"),
            mount("/h", "/a/.."),
            mount("/h", "/a\0b"),
            mount("h", "/c"),
            mount("", "/c"),
            mount("/h\0", "/c"),
            rro(false, MountPropagation::PropagationPrivate),
            rro(true, MountPropagation::PropagationHostToContainer),
            rro(true, MountPropagation::PropagationBidirectional),
            cri::Mount {
                propagation: 7,
                ..mount("/h", "/c")
            },
            cri::Mount {
                mount_options: vec!["suid".into()],
                ..mount("/h", "/c")
            },
            cri::Mount {
                uid_mappings: mapping.clone(),
                ..mount("/h", "/c")
            },
            cri::Mount {
                gid_mappings: mapping,
                ..mount("/h", "/c")
            },
            cri::Mount {
                image_sub_path: "a".into(),
                ..mount("/h", "/c")
            },
            volume(false, "", ""),
            volume(true, "/h", ""),
            volume(true, "", "../a"),
            volume(true, "", "/a"),
        ] {
            assert!(resolve(std::slice::from_ref(&refused), None).is_err(), "{refused:?}");
        }
        assert!(matches!(
            resolve(&vec![mount("/h", "/c"); 1025], None),
            Err(SpecError::TooLarge { .. })
        ));
    }

    #[test]
    fn id_mappings_are_the_pods_or_none() {
        let ids = IdRange {
            first: 70_000,
            count: 65_536,
        };
        let map = |host_id| {
            vec![cri::IdMapping {
                host_id,
                container_id: 0,
                length: 65_536,
            }]
        };
        let with = |uids: &[cri::IdMapping], gids: &[cri::IdMapping]| cri::Mount {
            uid_mappings: uids.to_vec(),
            gid_mappings: gids.to_vec(),
            ..mount("/h", "/c")
        };
        let pods = map(70_000);
        let of = |mount: cri::Mount, ids| resolve(&[mount], ids).map(|binds| binds[0].id_mapped);
        assert!(of(with(&pods, &pods), Some(ids)).unwrap());
        assert!(!of(mount("/h", "/c"), Some(ids)).unwrap());
        for (mount, ids, words) in [
            (with(&pods, &pods), None, "no user namespace"),
            (with(&map(1), &map(1)), Some(ids), "not those of the pod"),
            (with(&pods, &[]), Some(ids), "not those of the pod"),
            (with(&[], &pods), Some(ids), "not those of the pod"),
            (
                with(&[map(70_000), map(1)].concat(), &pods),
                Some(ids),
                "not those of the pod",
            ),
        ] {
            let error = of(mount, ids).unwrap_err().to_string();
            assert!(error.contains(words), "{words}: {error}");
        }
        let volume = cri::Mount {
            image: image(),
            readonly: true,
            ..mount("", "/c")
        };
        assert!(of(volume.clone(), Some(ids)).unwrap());
        assert!(!of(volume, None).unwrap());
    }
}
