//! What is mounted where, how, and what is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crisp::cri::{self, Device, MountPropagation};
use tonic::Code;

use crate::fixture::{Container, Pod, image, int, is_code, sandbox_security, says, security, world, write};
use crate::handlers::handler;
use crate::registry::reference;

pub fn bind(host: &Path, container: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

pub fn read_only(host: &Path, container: &str) -> cri::Mount {
    cri::Mount {
        readonly: true,
        ..bind(host, container)
    }
}

pub fn with(mounts: Vec<cri::Mount>) -> impl FnOnce(&mut cri::ContainerConfig) {
    |config| config.mounts = mounts
}

/// A kubelet gives each container a dozen mounts and more; projected volumes and subPaths make hundreds.
#[test]
fn three_hundred_small_binds() {
    let pod = world().pod("many-binds");
    let dir = world().directory("many-binds");
    let binds = (0..300).map(|n| {
        let file = dir.join(format!("{n}"));
        write(&file, &format!("{n}\n"));
        match n % 2 {
            0 => bind(&file, &format!("/etc/many/{n}")),
            _ => read_only(&file, &format!("/many/deep/{n}/file")),
        }
    });
    let binds: Vec<_> = binds.collect();
    let hosts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let c = pod.idle("c", with(binds));
    let said =
        c.sh("cat /etc/many/* /many/deep/*/file | sort -n | sed -n '1p;$p'; cat /etc/many/* /many/deep/*/file | wc -l");
    assert_eq!(said, "0\n299\n300");
    assert_eq!(
        c.sh("echo x 2>/dev/null > /many/deep/1/file || echo refused"),
        "refused"
    );
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        own.lines().count() < hosts.lines().count() + 100,
        "they are on the node's table"
    );
}

/// A mount of the host's, in the namespace that the daemon lives in, too; gone with its value.
pub struct HostMount(pub PathBuf);

impl HostMount {
    pub fn tmpfs(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", &path.display().to_string()]);
        Self(path.to_owned())
    }

    fn make(self, propagation: &str) -> Self {
        run(&["mount", &format!("--make-{propagation}"), &self.0.display().to_string()]);
        self
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        run(&["umount", "-R", "-l", &self.0.display().to_string()]);
    }
}

fn run(command: &[&str]) {
    let done = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn options(container: &Container, at: &str) -> String {
    container.sh(&format!("awk '$2 == \"{at}\" {{print $4}}' /proc/mounts | tail -1"))
}

pub fn refused(pod: &Pod, mount: cri::Mount) -> tonic::Status {
    let mut config = pod.config("refused", &["true"]);
    config.mounts = vec![mount];
    pod.try_create(config).err().expect("refused")
}

#[test]
fn directories_files_links_and_what_is_missing() {
    let dir = world().directory("binds");
    write(&dir.join("file"), "of the host");
    fs::create_dir(dir.join("real")).unwrap();
    write(&dir.join("real/inside"), "behind a link");
    symlink(dir.join("real"), dir.join("link")).unwrap();
    symlink("link", dir.join("link-to-link")).unwrap();
    let pod = world().pod("binds");
    let c = pod.idle(
        "c",
        with(vec![
            bind(&dir, "/rw"),
            read_only(&dir, "/ro"),
            bind(&dir.join("link-to-link"), "/by/a/link"),
            bind(&dir.join("missing/deep"), "/made"),
            bind(&dir.join("file"), "/etc/one-file"),
            read_only(&dir.join("file"), "/etc/passwd"),
            bind(&dir.join("real"), "relative/../path"),
        ]),
    );
    c.sh("echo by the container > /rw/written; echo x > /made/x");
    assert_eq!(fs::read_to_string(dir.join("written")).unwrap(), "by the container\n");
    assert_eq!(fs::read_to_string(dir.join("missing/deep/x")).unwrap(), "x\n");
    let denied = c.exec(&["touch", "/ro/file"]);
    assert!(denied.code != 0 && denied.stderr.contains("Read-only"), "{denied:?}");
    assert!(options(&c, "/ro").starts_with("ro"));
    assert_eq!(
        c.sh("cat /by/a/link/inside /path/inside /etc/one-file"),
        "behind a linkbehind a linkof the host"
    );
    assert_eq!(c.sh("cat /etc/passwd"), "of the host");
    c.sh("echo changed > /etc/one-file");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "changed\n");
    let told = c.status().mounts;
    assert_eq!(
        (told.len(), told[1].readonly, told[1].container_path.as_str()),
        (7, true, "/ro")
    );
    // The host's mount table knows nothing of them, nor of crisp's root file systems.
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains("/by/a/link"));
    assert!(world().if_crisp().is_none() || !table.contains(&c.id));
}

#[test]
fn a_link_in_the_image_does_not_lead_a_mount_out_of_the_root() {
    let dir = world().directory("escape");
    write(&dir.join("note"), "mounted");
    let pod = world().pod("escape");
    let outside = world().directory("escape-outside");
    // The link is in a volume that the first mount brings: as much the container's own doing as an image's.
    symlink(&outside, dir.join("absolute")).unwrap();
    symlink("../../../../../../../../tmp", dir.join("relative")).unwrap();
    let c = pod.try_create({
        let mut config = pod.config("c", &["sleep", "1000"]);
        config.mounts = vec![
            bind(&dir, "/v"),
            bind(&dir, "/v/absolute/x"),
            bind(&dir, "/v/relative/y"),
        ];
        config
    });
    assert_eq!(
        fs::read_dir(&outside).unwrap().count(),
        0,
        "something was made on the host"
    );
    assert!(!Path::new("/tmp/y").exists());
    if let Ok(c) = c {
        c.start().unwrap();
        assert_eq!(c.sh("cat /tmp/y/note"), "mounted");
    }
}

#[test]
fn the_messages_of_a_kubelets_container_go_to_a_file_below_dev() {
    let dir = world().directory("termination");
    write(&dir.join("log"), "");
    fs::set_permissions(dir.join("log"), fs::Permissions::from_mode(0o666)).unwrap();
    let pod = world().pod("termination");
    let c = pod.start(
        "c",
        &["sh", "-c", "echo why > /dev/termination-log; exit 4"],
        |config| {
            config.mounts = vec![bind(&dir.join("log"), "/dev/termination-log")];
            security(config).run_as_user = int(1000);
        },
    );
    assert_eq!(c.exited().exit_code, 4);
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), "why\n");
}

#[test]
fn a_dev_of_the_users_own_hides_crisps_and_keeps_its_nodes() {
    let dev = HostMount::tmpfs(&world().directory("dev"));
    for (node, minor) in [("null", 3), ("zero", 5)] {
        run(&[
            "mknod",
            "-m",
            "666",
            &dev.0.join(node).display().to_string(),
            "c",
            "1",
            &minor.to_string(),
        ]);
    }
    write(&dev.0.join("mine"), "the user's");
    let log = world().directory("dev-files").join("log");
    write(&log, "");
    let pod = world().pod_with("dev", |config| sandbox_security(config).privileged = true);
    let c = pod.idle("c", |config| {
        config.mounts = vec![bind(&log, "/dev/termination-log"), bind(&dev.0, "/dev")];
        security(config).privileged = true;
    });
    assert_eq!(
        c.sh("cat /dev/mine; ls /dev | tr '\\n' ' '"),
        "the user'smine null shm termination-log zero"
    );
    c.sh("echo why > /dev/termination-log; echo shared > /dev/shm/note; test -c /dev/null");
    assert_eq!(fs::read_to_string(&log).unwrap(), "why\n");
    assert_eq!(c.sh("df -k /dev/shm | awk 'NR == 2 {print $2}'"), "65536");
    // Nothing of crisp's is in the user's directory but the places for what is mounted in it.
    let mut names: Vec<_> = fs::read_dir(&dev.0)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["mine", "null", "shm", "termination-log", "zero"]);
    assert_eq!(fs::read(dev.0.join("termination-log")).unwrap(), b"");
    // The node's own /dev, as node agents ask for.
    let c = pod.idle("node", |config| {
        config.mounts = vec![bind(Path::new("/dev"), "/dev")];
        security(config).privileged = true;
    });
    assert_eq!(
        c.sh("ls /dev | wc -l"),
        fs::read_dir("/dev").unwrap().count().to_string()
    );
}

#[test]
fn propagation_reaches_who_asked_for_it_and_nobody_else() {
    let shared = HostMount::tmpfs(&world().directory("shared")).make("shared");
    let pod = world().pod_with("propagation", |config| sandbox_security(config).privileged = true);
    let of = |propagation: MountPropagation| cri::Mount {
        propagation: propagation.into(),
        ..bind(&shared.0, "/m")
    };
    let own = pod.idle("private", with(vec![of(MountPropagation::PropagationPrivate)]));
    let slave = pod.idle("slave", with(vec![of(MountPropagation::PropagationHostToContainer)]));
    let both = pod.idle("both", |config| {
        config.mounts = vec![of(MountPropagation::PropagationBidirectional)];
        security(config).privileged = true;
    });
    for name in ["of-host", "of-container"] {
        fs::create_dir(shared.0.join(name)).unwrap();
    }
    let later = HostMount::tmpfs(&shared.0.join("of-host"));
    write(&later.0.join("note"), "mounted later");
    assert_eq!(slave.sh("cat /m/of-host/note"), "mounted later");
    assert_eq!(both.sh("cat /m/of-host/note"), "mounted later");
    assert_eq!(
        own.exec(&["cat", "/m/of-host/note"]).code,
        1,
        "a private mount got what the host mounted later"
    );
    both.sh("mount -t tmpfs tmpfs /m/of-container && echo inside > /m/of-container/note");
    assert_eq!(
        fs::read_to_string(shared.0.join("of-container/note")).unwrap(),
        "inside\n"
    );
    assert_eq!(slave.sh("cat /m/of-container/note"), "inside");
}

#[test]
fn propagation_that_the_host_does_not_have_is_refused() {
    let private = HostMount::tmpfs(&world().directory("private")).make("private");
    let pod = world().pod_with("no-propagation", |config| sandbox_security(config).privileged = true);
    for propagation in [
        MountPropagation::PropagationHostToContainer,
        MountPropagation::PropagationBidirectional,
    ] {
        let status = refused(
            &pod,
            cri::Mount {
                propagation: propagation.into(),
                ..bind(&private.0, "/m")
            },
        );
        assert!(is_code(&status, Code::InvalidArgument), "{status}");
        assert!(
            says(&status, &private.0.display().to_string()) && says(&status, "shared"),
            "{status}"
        );
    }
}

#[test]
fn read_only_all_the_way_down() {
    let top = HostMount::tmpfs(&world().directory("rro"));
    let below = HostMount::tmpfs(&top.0.join("below"));
    let pod = world().pod("rro");
    let recursive = cri::Mount {
        recursive_read_only: true,
        ..read_only(&top.0, "/all")
    };
    if handler() == "crun" {
        // One that does not say that it can is not trusted with it.
        let refused = refused(&pod, recursive);
        assert!(says(&refused, "does not support recursive read-only"), "{refused}");
        return;
    }
    let c = pod.idle("c", with(vec![recursive, read_only(&top.0, "/top")]));
    assert_ne!(c.exec(&["touch", "/all/x"]).code, 0);
    assert_ne!(
        c.exec(&["touch", "/all/below/x"]).code,
        0,
        "what is mounted below is writable"
    );
    assert_ne!(c.exec(&["touch", "/top/x"]).code, 0);
    assert_eq!(c.exec(&["touch", "/top/below/x"]).code, 0, "read-only, not recursively");
    drop(below);
    let writable = cri::Mount {
        recursive_read_only: true,
        ..bind(&top.0, "/m")
    };
    assert!(says(&refused(&pod, writable), "not read-only"));
    for propagation in [
        MountPropagation::PropagationHostToContainer,
        MountPropagation::PropagationBidirectional,
    ] {
        let passing_on = cri::Mount {
            recursive_read_only: true,
            propagation: propagation.into(),
            ..read_only(&top.0, "/m")
        };
        assert!(says(&refused(&pod, passing_on), "propagation is not private"));
    }
}

#[test]
fn mounts_that_cannot_be_are_refused_by_name() {
    let pod = world().pod("bad-mounts");
    let dir = world().directory("bad-mounts");
    for (mount, words) in [
        (bind(Path::new("relative"), "/m"), "not absolute"),
        (bind(&dir, ""), "nowhere"),
        (bind(&dir, "/a/.."), "root file system"),
        (bind(&dir, "/proc"), "not a proc file system"),
        (bind(&dir, "/run/../proc/"), "not a proc file system"),
        (
            cri::Mount {
                propagation: 8,
                ..bind(&dir, "/m")
            },
            "unknown propagation",
        ),
        (
            cri::Mount {
                mount_options: vec!["exec".into()],
                ..bind(&dir, "/m")
            },
            "none of noexec",
        ),
        (
            cri::Mount {
                uid_mappings: vec![cri::IdMapping::default()],
                ..bind(&dir, "/m")
            },
            "id mappings",
        ),
        (
            cri::Mount {
                image: Some(image(&reference("toolbox"))),
                ..bind(Path::new(""), "/m")
            },
            "must be read-only",
        ),
    ] {
        let status = refused(&pod, mount);
        assert!(is_code(&status, Code::InvalidArgument), "{status}");
        assert!(says(&status, words), "{words}: {status}");
    }
    let status = refused(
        &pod,
        cri::Mount {
            image: Some(image("127.0.0.1:5005/not/pulled:1")),
            ..read_only(Path::new(""), "/m")
        },
    );
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[test]
fn options_of_a_mount_are_in_force() {
    let dir = world().directory("options");
    fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
    let pod = world().pod("options");
    let options_of = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mount = cri::Mount {
        mount_options: options_of(&["noexec", "nodev", "nosuid"]),
        ..bind(&dir, "/m")
    };
    let below = HostMount::tmpfs(&dir.join("below"));
    fs::copy("/bin/busybox", below.0.join("busybox")).unwrap();
    let c = pod.idle("c", with(vec![mount, bind(&dir, "/plain")]));
    for at in ["/m", "/m/below"] {
        let told = options(&c, at);
        let told: Vec<&str> = told.split(',').collect();
        assert!(
            ["noexec", "nodev", "nosuid"].iter().all(|option| told.contains(option)),
            "{at}: {told:?}"
        );
    }
    assert!(!options(&c, "/plain").contains("noexec"));
    assert_eq!(c.status().mounts[0].mount_options.len(), 3);
    assert_eq!(c.exec(&["sh", "-c", "/m/below/busybox true"]).code, 126);
    assert_eq!(c.exec(&["sh", "-c", "/m/busybox true"]).code, 126);
    assert_eq!(c.exec(&["sh", "-c", "/plain/busybox true"]).code, 0);
}

#[test]
fn devices_are_there_with_the_rights_they_were_given() {
    let device = |path: &str, permissions: &str| Device {
        host_path: "/dev/zero".into(),
        container_path: path.into(),
        permissions: permissions.into(),
    };
    let pod = world().pod("devices");
    let c = pod.idle("c", |config| {
        config.devices = vec![device("/dev/mine", "rwm"), device("/dev/deep/read", "r")]
    });
    assert_eq!(
        c.sh("head -c 3 /dev/mine | xxd -p; stat -c '%t:%T' /dev/deep/read"),
        "000000\n1:5"
    );
    for node in ["null", "zero", "full", "random", "urandom", "tty", "ptmx"] {
        assert_eq!(c.exec(&["test", "-c", &format!("/dev/{node}")]).code, 0, "{node}");
    }
    assert_eq!(
        c.sh("for l in fd stdin stdout stderr; do readlink /dev/$l; done")
            .lines()
            .count(),
        4
    );
    // No other device: not by making a node, though it has CAP_MKNOD.
    let disk = c.exec(&["sh", "-c", "mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg | head -c 1"]);
    assert!(disk.code != 0 || disk.stderr.contains("not permitted"), "{disk:?}");
    let mut config = pod.config("bad", &["true"]);
    config.devices = vec![Device {
        host_path: "/dev/no-such-device".into(),
        ..device("/dev/x", "r")
    }];
    let status = pod.try_create(config).err().expect("no such device");
    assert!(says(&status, "/dev/no-such-device"), "{status}");
}

/// Nodes that no container has by itself: 10:229, and 10:237. Whether the node has drivers for them does not matter: who may not
/// is told so before.
#[test]
fn a_directory_stands_for_all_its_devices_and_each_opens_as_was_given() {
    let nodes = HostMount::tmpfs(&world().directory("device-nodes"));
    fs::create_dir(nodes.0.join("deep")).unwrap();
    for (name, minor) in [("one", "229"), ("deep/other", "237")] {
        let path = nodes.0.join(name).display().to_string();
        run(&["mknod", "-m", "640", &path, "c", "10", minor]);
    }
    write(&nodes.0.join("no-device"), "");
    let pod = world().pod("device-directory");
    let directory = |permissions: &str| {
        let devices = vec![Device {
            host_path: nodes.0.display().to_string(),
            container_path: "/dev/many".into(),
            permissions: permissions.into(),
        }];
        move |config: &mut cri::ContainerConfig| config.devices = devices
    };
    let own = "mknod /tmp/one c 10 229; mknod /tmp/other c 10 237";
    for (permissions, reads, writes) in [("r", true, false), ("w", false, true), ("rwm", true, true)] {
        let c = pod.idle(permissions, directory(permissions));
        assert_eq!(
            c.sh("cd /dev/many; find . | sort | xargs stat -c '%n %F %t:%T %a' | grep -v directory"),
            "./deep/other character special file a:ed 640\n./one character special file a:e5 640"
        );
        c.sh(own);
        for node in ["/dev/many/one", "/dev/many/deep/other", "/tmp/one", "/tmp/other"] {
            for (script, granted) in [(format!(": < {node}"), reads), (format!(": >> {node}"), writes)] {
                let done = c.exec(&["sh", "-c", &script]);
                assert_eq!(
                    !done.stderr.contains("not permitted"),
                    granted,
                    "{permissions}: {script}: {done:?}"
                );
            }
        }
    }
    let none = pod.idle("none", |_| {});
    none.sh(own);
    for node in ["/tmp/one", "/tmp/other"] {
        let done = none.exec(&["sh", "-c", &format!(": < {node}")]);
        assert!(done.stderr.contains("not permitted"), "{done:?}");
    }
}
