//! Its files: layers, volumes and images, with whose owners.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use crisp::cri;
use tonic::Code;

use super::{FIRST, mapping, pod};
use crate::fixture::{ask, eventually, image, int, is_code, says, security, world};
use crate::registry::reference;

/// All files of this name below a directory, mounts included.
fn named(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            found.push(path.clone());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(named(&path, name));
        }
    }
    found
}

#[test]
fn files_have_the_images_owners_inside_and_on_the_disk() {
    let pod = pod("disk");
    // One layer, and several.
    for (name, image_name) in [("one", "toolbox"), ("several", "layered")] {
        world().pull(&reference(image_name)).unwrap();
        let c = pod.idle(name, |config| config.image = Some(image(&reference(image_name))));
        assert_eq!(
            c.sh("stat -c '%n %u:%g %a' / /etc/passwd /data/note /home/alice /tmp"),
            "/ 0:0 755\n/etc/passwd 0:0 644\n/data/note 1000:1000 640\n/home/alice 1000:1000 755\n/tmp 0:0 1777"
        );
        let mark = format!("mark-of-{name}");
        c.sh(&format!(
            "touch /{mark}; chown 1000:50 /data/note; echo >> /etc/passwd; rm /etc/group; mkdir -p /made/deep; \
             touch /home/alice/{mark}; chown 1000:1000 /home/alice/{mark}; mv /home/alice /home/bob; ls -ln /data >&1"
        ));
        assert_eq!(c.sh("stat -c %u:%g /data/note /home/bob/mark*"), "1000:50\n1000:1000");
        let mut owners: Vec<_> = named(&world().crisps_dir().join("d"), &mark)
            .iter()
            .map(|path| {
                let found = fs::symlink_metadata(path).unwrap();
                (found.uid(), found.gid())
            })
            .collect();
        owners.sort();
        assert_eq!(owners, [(0, 0), (1000, 1000)], "on the node's disk");
        c.remove().unwrap();
        assert_eq!(named(&world().crisps_dir().join("d"), &mark), Vec::<PathBuf>::new());
    }
}

#[test]
fn the_writable_layer_is_counted() {
    let pod = pod("counted");
    let c = pod.idle("c", |_| {});
    c.sh("head -c 3000000 /dev/zero > /three-megabytes");
    eventually("the layer's size is told", || {
        let request = cri::ContainerStatsRequest {
            container_id: c.id.clone(),
        };
        let stats = ask(world().runtime().container_stats(request)).unwrap().stats.unwrap();
        let used = stats.writable_layer.and_then(|layer| layer.used_bytes);
        used.filter(|used| used.value >= 3_000_000)
    });
}

fn bind(host: &Path, inside: &str, ids: &[cri::IdMapping]) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        uid_mappings: ids.to_vec(),
        gid_mappings: ids.to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_volume_is_mapped_if_that_is_asked_for() {
    let dir = world().directory("mapped");
    fs::write(dir.join("of-root"), "").unwrap();
    fs::write(dir.join("of-alice"), "").unwrap();
    chown(dir.join("of-alice"), Some(1000), Some(1000)).unwrap();
    let memory = crate::mounts::HostMount::tmpfs(&world().directory("mapped-memory"));
    let pod = pod("mapped");
    let pods = mapping(FIRST);
    let c = pod.idle("c", |config| {
        config.mounts = vec![
            bind(&dir, "/mapped", &pods),
            bind(&dir, "/plain", &[]),
            bind(&memory.0, "/memory", &pods),
        ];
    });
    assert_eq!(c.sh("stat -c %u:%g /mapped/of-root /mapped/of-alice"), "0:0\n1000:1000");
    assert_eq!(
        c.sh("stat -c %u:%g /plain/of-root /plain/of-alice"),
        "65534:65534\n65534:65534"
    );
    assert_ne!(c.exec(&["touch", "/plain/new"]).code, 0, "it is nobody there");
    c.sh("touch /mapped/new /memory/new; chown 1000:50 /memory/new");
    let owner = |path: PathBuf| fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!(owner(dir.join("new")), (0, 0));
    assert_eq!(owner(memory.0.join("new")), (1000, 50));
}

#[test]
fn id_mappings_that_cannot_be_are_refused_by_name() {
    let dir = world().directory("bad-maps");
    let pod = pod("bad-maps");
    let refused = |mount: cri::Mount| {
        let mut config = pod.config("c", &["true"]);
        config.mounts = vec![mount];
        pod.try_create(config).err().expect("refused")
    };
    let status = refused(bind(&dir, "/m", &mapping(FIRST + 1)));
    assert!(is_code(&status, Code::InvalidArgument), "{status}");
    assert!(says(&status, "not those of the pod"), "{status}");
    // A file system that has no id-mapped mounts.
    let status = refused(bind(Path::new("/proc/sys"), "/m", &mapping(FIRST)));
    assert!(
        says(&status, "/proc/sys") && says(&status, "does not support id-mapped mounts"),
        "{status}"
    );
}

#[test]
fn images_as_volumes_and_volumes_of_images_have_the_images_owners() {
    world().pull(&reference("layered")).unwrap();
    let pod = pod("volumes");
    let volume = |name: &str, sub_path: &str, at: &str| cri::Mount {
        image: Some(image(&reference(name))),
        image_sub_path: sub_path.to_owned(),
        readonly: true,
        container_path: at.to_owned(),
        ..Default::default()
    };
    let c = pod.idle("c", |config| {
        config.mounts = vec![
            volume("toolbox", "", "/one"),
            volume("layered", "", "/several"),
            volume("layered", "data", "/part"),
        ];
    });
    assert_eq!(
        c.sh("stat -c %u /one /several/etc/passwd /one/data/note /several/data/note /part/note | tr '\\n' ' '"),
        "0 0 1000 1000 1000"
    );
    assert_ne!(c.exec(&["touch", "/several/x"]).code, 0);
    let c = pod.idle("declared", |config| {
        config.image = Some(image(&reference("talkative")));
        security(config).run_as_user = int(0);
    });
    assert_eq!(
        c.sh("stat -c '%u %a' /data/note /fresh; touch /fresh/new; echo more >> /data/note"),
        "1000 640\n0 755"
    );
}

#[test]
fn a_read_only_root_and_a_directory_that_is_not_there() {
    let pod = pod("read-only");
    let c = pod.idle("c", |config| {
        security(config).readonly_rootfs = true;
        config.working_dir = "/not/there".into();
    });
    assert_eq!(c.sh("pwd; stat -c %u /not"), "/not/there\n0");
    assert_ne!(c.exec(&["touch", "/x"]).code, 0);
    assert_ne!(c.exec(&["mount", "-o", "remount,rw", "/"]).code, 0);
}
