//! Pods with a user namespace (KEP-127): root inside is nobody on the node, and finds everything as root would.

mod files;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use crisp::cri::{self, NamespaceMode};
use tonic::Code;

use crate::endpoint;
use crate::fixture::{
    Container, OwnWorld, Pod, World, ask, image, int, is_code, linux, options, sandbox_linux, sandbox_security, says,
    security, world,
};
use crate::handlers::{handler, is_external};
use crate::registry::reference;

const FIRST: u32 = 524_288;
const COUNT: u32 = 65_536;

fn mapping(host_id: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping {
        host_id,
        container_id: 0,
        length: COUNT,
    }]
}

fn users(mode: NamespaceMode, uids: Vec<cri::IdMapping>, gids: Vec<cri::IdMapping>) -> Option<cri::UserNamespace> {
    Some(cri::UserNamespace {
        mode: mode.into(),
        uids,
        gids,
    })
}

/// The parts of Status that tell of user namespaces; without them a kubelet asks for none, and a runtime that does not know the field
/// would give its tests the node itself.
fn support() -> cri::StatusResponse {
    let status = ask(world().runtime().status(cri::StatusRequest::default())).unwrap();
    let features = status.runtime_handlers.iter().find(|has| has.name == handler());
    if !is_external() && !features.is_some_and(|has| has.features.is_some_and(|has| has.user_namespaces)) {
        endpoint::lacks("user namespaces");
    }
    status
}

pub fn own_users() -> Option<cri::UserNamespace> {
    support();
    users(NamespaceMode::Pod, mapping(FIRST), mapping(FIRST))
}

fn pod_of(world: &'static World, name: &str, change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Pod {
    world.pod_with(name, |config| {
        options(config).userns_options = own_users();
        change(config);
    })
}

fn pod(name: &str) -> Pod {
    pod_of(world(), name, |_| {})
}

/// The ids (real, effective, saved, of files) of a process as the node sees them.
fn ids_on_the_node(pid: i64, kind: &str) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix(kind)).expect(kind);
    line.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

const MAPS: &str = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '";
const MAPPED: &str = " 0 524288 65536\n 0 524288 65536";

#[test]
fn root_inside_is_nobody_on_the_node_and_so_is_an_exec() {
    let pod = pod("who");
    assert_eq!(ids_on_the_node(pod.pid(), "Uid:"), [FIRST; 4]);
    let c = pod.start("c", &["sh", "-c", "id -u; id -g; echo both; sleep 100000"], |_| {});
    assert_eq!(c.logged("both"), ["stdout F 0", "stdout F 0", "stdout F both"]);
    assert_eq!(ids_on_the_node(c.pid(), "Uid:"), [FIRST; 4]);
    assert_eq!(ids_on_the_node(c.pid(), "Gid:"), [FIRST; 4]);
    assert_eq!(c.exec(&["sh", "-c", MAPS]).stdout, MAPPED);
    let of = |who: &str| c.sh(&format!("grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/{who}/status"));
    assert_eq!(of("self"), of("1"), "an exec is held to less than the first process");
    let user_namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_ne!(user_namespace(&c.pid().to_string()), user_namespace("self"));
    assert_eq!(
        user_namespace(&c.pid().to_string()),
        user_namespace(&pod.pid().to_string())
    );
    // The node's own files do not know it, wherever they show.
    assert_eq!(c.exec(&["sh", "-c", "echo 0 > /proc/sys/vm/swappiness"]).code, 1);
    let told = pod.status().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(told.userns_options, own_users());
}

#[test]
fn the_network_is_the_pods_to_rule() {
    let pod = pod_of(world(), "network", |config| {
        sandbox_linux(config)
            .sysctls
            .insert("net.ipv4.ip_default_ttl".into(), "77".into());
    });
    let c = pod.start("c", &["sh", "-c", "echo here | nc -l -p 80; sleep 100000"], |config| {
        let context = security(config);
        context.run_as_user = int(1000);
        context.capabilities = Some(cri::Capability {
            add_ambient_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        });
    });
    assert_eq!(c.sh("cat /proc/sys/net/ipv4/ip_default_ttl"), "77");
    assert_eq!(
        c.sh("cat /proc/sys/net/ipv4/ping_group_range | tr -s '\\t' ' '"),
        "0 65535"
    );
    assert_eq!(c.sh("ls /sys/class/net | sort | tr '\\n' ' '"), "eth0 lo");
    c.sh("ip address add 198.51.100.7/32 dev lo && ip address show dev lo | grep -q 198.51.100.7");
    let address: SocketAddr = format!("{}:80", pod.ip()).parse().unwrap();
    crate::fixture::eventually("the pod listens", || {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
        world().inside(connect).ok()
    });
}

#[test]
fn memory_messages_names_and_files_of_the_pod_are_usable() {
    let pod = pod("shared");
    let c = pod.idle("c", |_| {});
    let alice = pod.idle("alice", |config| security(config).run_as_user = int(1000));
    assert_eq!(c.sh("stat -c '%u:%g %a' /dev/shm"), "0:0 1777");
    alice.sh("echo hers > /dev/shm/hers");
    assert_eq!(
        c.sh("stat -c %u /dev/shm/hers; cat /dev/shm/hers; rm /dev/shm/hers"),
        "1000\nhers"
    );
    assert_eq!(
        c.sh("grep -c ' /dev/mqueue mqueue ' /proc/mounts; touch /dev/mqueue/q; ls /dev/mqueue"),
        "1\nq"
    );
    assert_eq!(alice.sh("ls /dev/mqueue"), "q");
    assert_eq!(c.sh("hostname; cat /etc/hostname"), "shared\nshared");
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        assert_eq!(c.sh(&format!("stat -c '%u:%g %a' {file}")), "0:0 644", "{file}");
        assert_eq!(alice.exec(&["cat", file]).code, 0, "{file}");
        c.sh(&format!("echo '# mine' >> {file}"));
    }
    assert_eq!(
        c.sh("stat -c '%u' /proc/1 /sys /dev /dev/pts/ptmx /proc/sys/net | sort -u"),
        "0\n65534"
    );
}

/// Root makes places for mounts also where nobody but the owner may go, inside as on the node.
#[test]
fn a_volume_has_its_place_in_somebodys_private_directory() {
    let pod = pod("private");
    let (outer, inner) = (
        pod.world.directory("private-outer"),
        pod.world.directory("private-inner"),
    );
    let private = outer.join("private");
    fs::create_dir_all(&private).unwrap();
    chown(&private, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(inner.join("file"), "").unwrap();
    let mount = |host: &Path, inside: &str| cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        uid_mappings: mapping(FIRST),
        gid_mappings: mapping(FIRST),
        ..Default::default()
    };
    let c = pod.idle("c", |config| {
        config.mounts = vec![mount(&outer, "/data"), mount(&inner, "/data/private/place/deep")];
    });
    assert_eq!(
        c.sh("ls /data/private/place/deep; stat -c %u /data/private/place"),
        "file\n0"
    );
}

#[test]
fn standard_streams_groups_and_the_images_user_are_as_ever() {
    let pod = pod("streams");
    let say =
        "echo one > /dev/stdout; echo two > /dev/stderr; id -u; id -G; echo three >> /proc/self/fd/1; sleep 100000";
    let c = pod.start("c", &["sh", "-c", say], |config| {
        let context = security(config);
        context.run_as_user = int(1000);
        context.run_as_group = int(1000);
        context.supplemental_groups = vec![4242];
    });
    let mut log = c.logged("three");
    log.sort();
    assert_eq!(
        log,
        [
            "stderr F two",
            "stdout F 1000",
            "stdout F 1000 50 63 4242",
            "stdout F one",
            "stdout F three"
        ]
    );
    assert_eq!(ids_on_the_node(c.pid(), "Uid:"), [FIRST + 1000; 4]);
    assert_eq!(c.sh("echo exec > /dev/stdout; id -u"), "exec\n1000");
    let tty = pod.start(
        "tty",
        &["sh", "-c", "test -t 0 && echo a terminal > /dev/tty; stat -c %u $(tty)"],
        |config| {
            config.tty = true;
            security(config).run_as_user = int(1000);
        },
    );
    assert_eq!(tty.logged("1000")[0], "stdout F a terminal");
    let of_image = pod.start(
        "of-image",
        &["sh", "-c", "id -u; pwd; touch ~/mine && echo home"],
        |config| {
            config.image = Some(image(&reference("talkative")));
        },
    );
    assert_eq!(
        of_image.logged("home"),
        ["stdout F 1000", "stdout F /made/by/crisp", "stdout F home"]
    );
}

#[test]
fn devices_are_the_nodes_own_and_no_others_can_be_made() {
    let pod = pod("devices");
    let c = pod.idle("c", |config| {
        config.devices = [
            ("/dev/zero", "/dev/mine"),
            ("/dev/full", "/dev/full"),
            ("/dev/zero", "/dev/deep/zero"),
        ]
        .map(|(host, inside)| cri::Device {
            host_path: host.into(),
            container_path: inside.into(),
            permissions: "rw".into(),
        })
        .to_vec();
    });
    assert_eq!(
        c.sh("head -c 2 /dev/mine | xxd -p; head -c 1 /dev/deep/zero | xxd -p"),
        "0000\n00"
    );
    for node in ["null", "zero", "full", "random", "urandom", "tty", "ptmx"] {
        assert_eq!(c.exec(&["test", "-c", &format!("/dev/{node}")]).code, 0, "{node}");
    }
    c.sh("echo gone > /dev/null; head -c 1 /dev/urandom > /dev/null");
    assert_ne!(c.exec(&["mknod", "/tmp/zero", "c", "1", "5"]).code, 0);
}

#[test]
fn privileged_is_everything_inside_and_nothing_outside() {
    let pod = pod_of(world(), "privileged", |config| {
        sandbox_security(config).privileged = true
    });
    let c = pod.idle("c", |config| security(config).privileged = true);
    c.sh("mkdir /t && mount -t tmpfs none /t && umount /t && hostname other && echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert_eq!(c.sh("stat -c %t:%T /dev/null /dev/zero"), "1:3\n1:5");
    for outside in [
        "echo 1 > /proc/sys/kernel/panic",
        "mknod /tmp/m c 1 1",
        "echo 0 > /proc/sys/vm/swappiness",
    ] {
        assert_ne!(c.exec(&["sh", "-c", outside]).code, 0, "{outside}");
    }
}

#[test]
fn with_the_nodes_network_it_is_a_guest_there() {
    let pod = pod_of(world(), "guest", |config| {
        options(config).network = NamespaceMode::Node.into()
    });
    let c = pod.idle("c", |config| {
        let context = security(config);
        context.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
        context.capabilities = Some(cri::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            ..Default::default()
        });
    });
    assert_eq!(c.exec(&["sh", "-c", MAPS]).stdout, MAPPED);
    let network = |pid: String| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(network(c.pid().to_string()), network(world().daemon_pid().to_string()));
    assert_ne!(c.exec(&["ip", "link", "add", "type", "veth"]).code, 0);
    assert_eq!(c.exec(&["test", "-e", "/sys/class/net/lo"]).code, 0);
    assert_ne!(c.exec(&["sh", "-c", "echo 1 > /sys/kernel/mm/ksm/run"]).code, 0);
    assert_eq!(
        c.sh("grep -c ' /sys/fs/cgroup' /proc/mounts | grep -v ^0 > /dev/null && echo there"),
        "there"
    );
}

#[test]
fn user_namespaces_that_cannot_be_are_refused_by_name() {
    use NamespaceMode::{Container as Own, Node, Pod as Pods, Target};
    support();
    let two = [mapping(FIRST), mapping(FIRST)].concat();
    let with = |length, container_id| {
        vec![cri::IdMapping {
            host_id: FIRST,
            container_id,
            length,
        }]
    };
    for (user, words) in [
        (users(Pods, two.clone(), two), "more than one mapping"),
        (users(Pods, vec![], vec![]), "are not mapped"),
        (users(Pods, mapping(FIRST), mapping(FIRST + 1)), "as the uids"),
        (users(Pods, with(0, 0), with(0, 0)), "length is 0"),
        (users(Pods, with(COUNT, 1), with(COUNT, 1)), "id 0"),
        (
            users(Pods, mapping(u32::MAX - 5), mapping(u32::MAX - 5)),
            "beyond the last id",
        ),
        (users(Own, vec![], vec![]), "CONTAINER"),
        (users(Target, vec![], vec![]), "TARGET"),
        (users(Node, mapping(FIRST), mapping(FIRST)), "takes no mappings"),
    ] {
        let refused = world().try_pod("bad-users", |config| options(config).userns_options = user);
        let refused = refused.err().expect(words);
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
        assert!(says(&refused, words), "{words}: {refused}");
    }
    let refused = world().try_pod("bad-users", |config| {
        options(config).userns_options = own_users();
        options(config).pid = Node.into();
    });
    assert!(refused.err().expect("no").message().contains("pid"));
    let pod = pod("bad-container");
    for user in [
        users(Pods, mapping(FIRST + 1), mapping(FIRST + 1)),
        users(Node, vec![], vec![]),
    ] {
        let mut config = pod.config("c", &["true"]);
        security(&mut config).namespace_options.as_mut().unwrap().userns_options = user;
        let refused = pod.try_create(config).err().expect("not the sandbox's");
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
        assert!(says(&refused, "not that of its sandbox"), "{refused}");
    }
    let mut config = pod.config("c", &["true"]);
    security(&mut config).namespace_options.as_mut().unwrap().userns_options = own_users();
    pod.try_create(config).unwrap();
}

#[test]
fn status_says_that_user_namespaces_are_there() {
    let status = support();
    let features = status.features.unwrap();
    assert!(features.user_namespaces_host_network && features.mount_options);
}

/// The pod outlives its daemon; the next one goes on with it, and leaves nothing of it.
#[test]
fn the_next_daemon_goes_on_with_it() {
    let own = OwnWorld::new("userns");
    let world = own.0;
    {
        let pod = pod_of(world, "lasting", |_| {});
        let first = pod.idle("first", |_| {});
        first.sh("echo kept > /kept");
        world.restart();
        assert_eq!(first.exec(&["sh", "-c", MAPS]).stdout, MAPPED);
        assert_eq!(first.sh("cat /kept; stat -c %u /kept"), "kept\n0");
        let second: Container = pod.idle("second", |config| linux(config).resources = None);
        assert_eq!(ids_on_the_node(second.pid(), "Uid:"), [FIRST; 4]);
        assert_eq!(
            second.sh("echo shared > /dev/shm/x; stat -c %u / /etc/passwd /dev/shm/x | sort -u"),
            "0"
        );
        assert_eq!(first.sh("cat /dev/shm/x"), "shared");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(world.crisps_dir().to_str().unwrap()),
        "mounts remain: {mounts}"
    );
    assert_eq!(fs::read_dir(world.crisps_dir().join("d/run/netns")).unwrap().count(), 0);
}

/// Side by side, so that whatever else the machine does is in both.
#[test]
fn a_user_namespace_costs_a_fraction_of_a_start() {
    let up = |name: String, users: bool| {
        let began = std::time::Instant::now();
        let pod = world().pod_with(&name, |config| {
            if users {
                options(config).userns_options = own_users();
            }
        });
        let _c = pod.idle("c", |_| {});
        began.elapsed()
    };
    let (mut plain, mut own): (Vec<_>, Vec<_>) = (0..15)
        .map(|n| {
            (
                up(format!("cost-plain-{n}"), false),
                up(format!("cost-users-{n}"), true),
            )
        })
        .unzip();
    plain.sort();
    own.sort();
    let (plain, own) = (plain[7], own[7]);
    println!("a pod with one container is up in {plain:?}, with a user namespace in {own:?}");
    assert!(own < plain * 3, "{own:?} with a user namespace, {plain:?} without");
}
