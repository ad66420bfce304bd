//! What is mounted where, for whole requests.

use std::path::Path;

use oci_spec::image::ConfigBuilder;

use super::super::*;
use super::{own, world};
use crate::cri::NamespaceMode;
use crate::sys::mount::Propagation;

/// `destination=type` or `destination=fd:n` of each mount, in order.
fn mounts(built: &Built) -> Vec<String> {
    let list = built.spec.mounts().as_ref().unwrap();
    list.iter()
        .map(|mount| {
            let typ = mount.typ().as_deref().unwrap();
            let source = mount.source().as_ref().unwrap().display();
            let what = if typ == "bind" {
                source.to_string()
            } else {
                typ.to_owned()
            };
            format!("{}={what}", mount.destination().display())
        })
        .collect()
}

fn options<'a>(built: &'a Built, destination: &str) -> &'a [String] {
    let list = built.spec.mounts().as_ref().unwrap();
    let mount = list
        .iter()
        .find(|mount| mount.destination() == Path::new(destination))
        .unwrap();
    mount.options().as_ref().unwrap()
}

const KERNEL: [&str; 6] = [
    "/proc=proc",
    "/dev=tmpfs",
    "/dev/pts=devpts",
    "/dev/mqueue=mqueue",
    "/sys=sysfs",
    "/sys/fs/cgroup=cgroup",
];
const FILES: [&str; 4] = [
    "/etc/hostname=fd:0",
    "/etc/hosts=fd:1",
    "/etc/resolv.conf=fd:2",
    "/dev/shm=fd:3",
];

#[test]
fn a_plain_container_has_the_kernels_and_the_pods_mounts() {
    let built = world().build().unwrap();
    assert_eq!(mounts(&built), [&KERNEL[..], &FILES].concat());
    assert_eq!(options(&built, "/sys").last().unwrap(), "ro");
    assert_eq!(options(&built, "/etc/hosts"), ["rbind", "nosuid", "nodev"]);
    assert_eq!(built.binds[3].source, BindSource::Sandbox(SandboxFile::Shm));
    assert_eq!(built.spec.linux().as_ref().unwrap().rootfs_propagation(), &None);
}

#[test]
fn mounts_of_the_request_go_shallow_before_deep_and_replace_the_pods_files() {
    let mut world = world();
    for path in ["/data/deep/er", "/etc/hosts", "/data", "/data/deep"] {
        world.mount(path);
    }
    world.image = ConfigBuilder::default()
        .volumes(own(&["/data", "/vol"]))
        .build()
        .unwrap();
    world.context().readonly_rootfs = true;
    let built = world.build().unwrap();
    let above: Vec<_> = mounts(&built).split_off(KERNEL.len());
    let expected = [
        "/vol",
        "/data",
        "/etc/hostname",
        "/etc/resolv.conf",
        "/dev/shm",
        "/etc/hosts",
        "/data/deep",
        "/data/deep/er",
    ];
    let expected: Vec<_> = expected
        .iter()
        .enumerate()
        .map(|(n, path)| format!("{path}=fd:{n}"))
        .collect();
    assert_eq!(above, expected);
    assert_eq!(built.binds[0].source, BindSource::Volume(0));
    assert_eq!(
        built.volumes,
        [Volume {
            destination: "/vol".into()
        }]
    );
    assert_eq!(built.binds[5].source, BindSource::Host("/host/etc/hosts".into()));
    // Files of the pod are as read-only as the root, the request's mounts as it says.
    assert!(built.binds[2].read_only && !built.binds[5].read_only && !built.binds[4].read_only);
}

#[test]
fn a_default_gives_way_at_its_own_place() {
    let mut world = world();
    for path in ["/sys", "/dev/shm", "/proc"] {
        world.mount(path);
    }
    let built = world.build().unwrap();
    let list = mounts(&built);
    for gone in ["/sys=sysfs", "/proc=proc"] {
        assert!(!list.contains(&gone.to_owned()), "{list:?}");
    }
    assert_eq!(
        built
            .binds
            .iter()
            .filter(|bind| bind.destination == Path::new("/dev/shm"))
            .count(),
        1
    );
    // What covers a default is mounted after it.
    let position = |text: &str| list.iter().position(|entry| entry.starts_with(text)).unwrap();
    assert!(position("/sys/fs/cgroup=") < position("/sys=fd"));
}

#[test]
fn a_mount_on_dev_waits_until_libcontainer_has_made_its_nodes() {
    let mut world = world();
    world.mount("/dev/sub");
    world.mount("/dev");
    world.mount("/data");
    let built = world.build().unwrap();
    let list = mounts(&built);
    assert!(list.contains(&"/dev=tmpfs".to_owned()) && !list.iter().any(|entry| entry.starts_with("/dev/")));
    let late: Vec<_> = built
        .binds
        .iter()
        .filter(|bind| bind.late)
        .map(|bind| bind.destination.to_str().unwrap())
        .collect();
    assert_eq!(late, ["/dev", "/dev/shm", "/dev/sub"]);
    // The others still point at their own place in the list of binds.
    let data = built
        .binds
        .iter()
        .position(|bind| bind.destination == Path::new("/data"))
        .unwrap();
    assert!(list.contains(&format!("/data=fd:{data}")));
}

#[test]
fn cgroup_v1_is_a_read_only_bind_per_hierarchy() {
    let mut world = world();
    world.host.cgroup_v2 = false;
    let mount = |name: &str| CgroupMount {
        name: name.into(),
        path: format!("/sys/fs/cgroup/{name}/x").into(),
    };
    world.cgroup_mounts = vec![mount("memory"), mount("cpu,cpuacct")];
    let built = world.build().unwrap();
    let list = mounts(&built);
    assert_eq!(
        list[5..8],
        [
            "/sys/fs/cgroup=tmpfs",
            "/sys/fs/cgroup/memory=fd:0",
            "/sys/fs/cgroup/cpu,cpuacct=fd:1",
        ]
    );
    assert!(
        built.binds[..2]
            .iter()
            .all(|bind| bind.read_only && bind.nosuid && bind.nodev && bind.noexec)
    );
    let readonly = |built: &Built| built.spec.linux().as_ref().unwrap().readonly_paths().clone().unwrap();
    assert_eq!(readonly(&built), ["/sys/fs/cgroup"]);
    world.mount("/sys/fs/cgroup");
    assert!(readonly(&world.build().unwrap()).is_empty());
    world.container.mounts.clear();
    world.sandbox_context().privileged = true;
    world.context().privileged = true;
    let built = world.build().unwrap();
    assert!(readonly(&built).is_empty() && !built.binds[0].read_only);
    assert_eq!(options(&built, "/sys").last().unwrap(), "rw");
}

#[test]
fn the_nodes_ipc_and_network_bring_the_nodes_shm_and_sysfs() {
    let mut world = world();
    let node = cri::NamespaceOption {
        network: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        ..Default::default()
    };
    world.sandbox_context().namespace_options = Some(node);
    let built = world.build().unwrap();
    assert!(
        built
            .binds
            .iter()
            .any(|bind| bind.source == BindSource::Host("/dev/shm".into()))
    );
    assert!(mounts(&built).contains(&"/sys=sysfs".to_owned()));
    // Within a user namespace neither sysfs nor mqueue of the node can be mounted.
    let options = world.sandbox_context().namespace_options.as_mut().unwrap();
    let mapping = vec![cri::IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    }];
    options.userns_options = Some(cri::UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: mapping.clone(),
        gids: mapping,
    });
    world.namespaces.user = Some("/user".into());
    let list = mounts(&world.build().unwrap());
    assert!(
        list.contains(&"/sys=fd:0".to_owned()) && !list.contains(&"/dev/mqueue=mqueue".to_owned()),
        "{list:?}"
    );
}

#[test]
fn propagation_reaches_the_root() {
    use cri::MountPropagation::{PropagationBidirectional as Both, PropagationHostToContainer as In};
    for (propagation, expected, of_root) in [(In, Propagation::Slave, "slave"), (Both, Propagation::Shared, "shared")] {
        let mut world = world();
        world.mount("/m");
        world.container.mounts[0].propagation = propagation as i32;
        let built = world.build().unwrap();
        let bind = built
            .binds
            .iter()
            .find(|bind| bind.destination == Path::new("/m"))
            .unwrap();
        assert_eq!(bind.propagation, expected);
        assert_eq!(
            built.spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(),
            Some(of_root)
        );
    }
}

/// Story: an image's /dev was a link to the node's files, and a volume at /proc made it one that could be followed.
#[test]
fn a_link_for_dev_is_refused() {
    let world = world();
    std::os::unix::fs::symlink("/proc/1/root/etc", world.root.path().join("dev")).unwrap();
    let refusal = world.build().unwrap_err().to_string();
    assert!(refusal.contains("\"/dev\" is a symbolic link"), "{refusal}");
}
