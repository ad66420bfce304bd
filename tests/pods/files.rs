//! What a pod's containers find in /etc, /dev/shm and /proc/sys.

use std::collections::BTreeMap;

use crisp::cri::{DnsConfig, NamespaceMode};
use tonic::Code;

use crate::fixture::{is_code, options, sandbox_linux, says, security, world};

#[test]
fn the_hostname_is_the_pods_everywhere() {
    let name = "a-hostname-of-exactly-sixty-four-characters-as-the-kernel-allow5";
    assert_eq!(name.len(), 64);
    let pod = world().pod_with("hostname", |config| config.hostname = name.to_owned());
    let c = pod.idle("c", |_| {});
    assert_eq!(c.sh("hostname"), name);
    assert_eq!(c.sh("cat /etc/hostname"), name);
    assert_eq!(c.sh("echo $HOSTNAME"), name);
    assert!(c.sh("cat /etc/hosts").contains("127.0.0.1\tlocalhost"));
    assert_eq!(c.sh("cat /proc/sys/kernel/hostname"), name);
}

#[test]
fn on_the_nodes_network_the_hostname_is_the_nodes() {
    let pod = world().pod_with("hostname-node", |config| {
        options(config).network = NamespaceMode::Node.into()
    });
    let c = pod.idle("c", |config| {
        security(config).namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into()
    });
    let node = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(c.sh("hostname; cat /etc/hostname"), format!("{node}\n{node}"));
}

#[test]
fn resolv_conf_is_as_asked_or_as_the_nodes() {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let pod = world().pod_with("dns", |config| {
        config.dns_config = Some(DnsConfig {
            servers: words(&["192.0.2.53", "fd00::53", "192.0.2.54", "192.0.2.55"]),
            searches: words(&["a.example", "b.example"]),
            options: words(&["ndots:5", "timeout:1"]),
        });
    });
    let c = pod.idle("c", |_| {});
    let expected = "search a.example b.example\nnameserver 192.0.2.53\nnameserver fd00::53\nnameserver 192.0.2.54\n\
        nameserver 192.0.2.55\noptions ndots:5 timeout:1";
    assert_eq!(c.sh("cat /etc/resolv.conf"), expected);
    // Each pod has its own file: what a container writes there stays in the pod.
    c.sh("echo '# written inside' >> /etc/resolv.conf");
    let pod = world().pod("dns-node");
    let node = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(pod.idle("c", |_| {}).sh("cat /etc/resolv.conf"), node.trim_end());
}

#[test]
fn the_pods_files_are_read_only_where_the_root_is() {
    let pod = world().pod("files-ro");
    let c = pod.idle("c", |config| security(config).readonly_rootfs = true);
    for file in ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/passwd", "/new"] {
        let done = c.exec(&["sh", "-c", &format!("echo x >> {file}")]);
        assert!(done.code != 0 && done.stderr.contains("Read-only"), "{file}: {done:?}");
    }
    c.sh("echo x > /dev/shm/writable");
}

#[test]
fn sysctls_of_the_pods_own_are_set() {
    let settings = BTreeMap::from([
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("net/ipv4/tcp_syncookies".to_owned(), "0".to_owned()),
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "17".to_owned()),
        // Of an interface, which is there when the network is.
        ("net.ipv4.conf.eth0.log_martians".to_owned(), "1".to_owned()),
    ]);
    let node = std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    let pod = world().pod_with("sysctls", |config| sandbox_linux(config).sysctls = settings);
    let c = pod.idle("c", |_| {});
    let read = "cd /proc/sys; cat kernel/shm_rmid_forced net/ipv4/tcp_syncookies net/ipv4/ip_unprivileged_port_start fs/mqueue/msg_max net/ipv4/conf/eth0/log_martians";
    assert_eq!(c.sh(read), "1\n0\n80\n17\n1");
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap(),
        node,
        "the node's was changed"
    );
    let pod = world().pod("sysctls-default");
    let c = pod.idle("c", |_| {});
    assert_eq!(c.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start"), "0");
    assert_eq!(
        c.sh("cat /proc/sys/net/ipv4/ping_group_range").replace('\t', " "),
        "0 2147483647"
    );
}

#[test]
fn sysctls_that_are_not_the_pods_are_refused() {
    for (name, network, ipc) in [
        ("kernel.panic", NamespaceMode::Pod, NamespaceMode::Pod),
        ("vm.overcommit_memory", NamespaceMode::Pod, NamespaceMode::Pod),
        ("net.core.somaxconn", NamespaceMode::Node, NamespaceMode::Pod),
        ("kernel.shmmax", NamespaceMode::Pod, NamespaceMode::Node),
        ("net/../kernel/panic", NamespaceMode::Pod, NamespaceMode::Pod),
        ("kernel.hostname", NamespaceMode::Pod, NamespaceMode::Pod),
    ] {
        let refused = world().try_pod("sysctls-refused", |config| {
            options(config).network = network.into();
            options(config).ipc = ipc.into();
            sandbox_linux(config).sysctls.insert(name.to_owned(), "1".to_owned());
        });
        let refused = refused.err().expect(name);
        assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
        assert!(says(&refused, name), "{refused}");
    }
    // One that does not exist fails when it is written; nothing is left of that pod, and its name is free.
    let refused = world().try_pod("sysctls-missing", |config| {
        sandbox_linux(config)
            .sysctls
            .insert("net.ipv4.no_such_setting".to_owned(), "1".to_owned());
    });
    assert!(
        refused
            .err()
            .expect("no such setting")
            .message()
            .contains("no_such_setting")
    );
    world().pod("sysctls-missing");
}

#[test]
fn dev_shm_has_64_mib_and_goes_with_the_pod() {
    let pod = world().pod("shm");
    let (a, b) = (
        pod.idle("a", |_| {}),
        pod.idle("b", |config| security(config).run_as_user = crate::fixture::int(1000)),
    );
    assert_eq!(a.sh("df -k /dev/shm | awk 'NR == 2 {print $2}'"), "65536");
    let options = a.sh("awk '$2 == \"/dev/shm\" {print $4}' /proc/mounts");
    assert!(
        ["rw", "nosuid", "nodev", "noexec"]
            .iter()
            .all(|o| options.split(',').any(|has| has == *o)),
        "{options}"
    );
    b.sh("echo written by a user > /dev/shm/note");
    assert_eq!(
        a.sh("cat /dev/shm/note; stat -c %a /dev/shm"),
        "written by a user\n1777"
    );
    assert_ne!(
        a.exec(&["sh", "-c", "dd if=/dev/zero of=/dev/shm/big bs=1M count=65 2>/dev/null"])
            .code,
        0
    );
    // It is the pod's, not the container's.
    a.stop(0).unwrap();
    assert_eq!(pod.idle("c", |_| {}).sh("cat /dev/shm/note"), "written by a user");
    let id = pod.id.clone();
    drop(pod);
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", world().daemon_pid())).unwrap();
    assert!(!mounts.contains(&id), "{mounts}");
}
