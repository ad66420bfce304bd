//! What a container may do.

use std::fs;

use crisp::cri::{self, Capability, SecurityProfile};
use tonic::Code;

use crate::fixture::{Container, int, is_code, sandbox_security, says, security, world};
use crate::handlers::handler;

const CHOWN: u64 = 1 << 0;
const NET_RAW: u64 = 1 << 13;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_TIME: u64 = 1 << 25;
const NET_ADMIN: u64 = 1 << 12;

fn field(container: &Container, process: &str, name: &str) -> String {
    container.sh(&format!("sed -n 's/^{name}:[[:space:]]*//p' /proc/{process}/status"))
}

/// A set of capabilities, which the first process and an exec have alike.
fn capabilities(container: &Container, set: &str) -> u64 {
    let (first, exec) = (field(container, "1", set), field(container, "self", set));
    assert_eq!(first, exec, "{set}");
    u64::from_str_radix(&first, 16).unwrap()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Bit by bit what the daemon has itself: no container can have more.
fn of_daemon() -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", world().daemon_pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn capabilities_are_the_usual_ones_more_or_less() {
    let pod = world().pod("capabilities");
    let usual = pod.idle("usual", |_| {});
    assert_eq!(capabilities(&usual, "CapEff"), 0xa80425fb & of_daemon());
    assert_eq!(capabilities(&usual, "CapBnd"), 0xa80425fb & of_daemon());
    assert_eq!(capabilities(&usual, "CapInh"), 0);
    assert_eq!(capabilities(&usual, "CapAmb"), 0);
    let changed = |add: &[&str], drop: &[&str], ambient: &[&str]| Capability {
        add_capabilities: words(add),
        drop_capabilities: words(drop),
        add_ambient_capabilities: words(ambient),
    };
    let c = pod.idle("more", |config| {
        security(config).capabilities = Some(changed(&["NET_ADMIN", "CAP_SYS_TIME"], &["NET_RAW", "chown"], &[]));
    });
    let has = capabilities(&c, "CapEff");
    assert_eq!(has & (NET_ADMIN | SYS_TIME), (NET_ADMIN | SYS_TIME) & of_daemon());
    assert_eq!(has & (NET_RAW | CHOWN), 0);
    assert_ne!(c.exec(&["chown", "1", "/etc/passwd"]).code, 0);
    let none = pod.idle("none", |config| {
        security(config).capabilities = Some(changed(&[], &["ALL"], &[]))
    });
    assert_eq!(capabilities(&none, "CapBnd"), 0);
    let all = pod.idle("all", |config| {
        security(config).capabilities = Some(changed(&["ALL"], &["SYS_ADMIN"], &[]))
    });
    assert_eq!(capabilities(&all, "CapEff"), of_daemon() & !SYS_ADMIN);
    // A user has none, but for those that are ambient.
    let user = pod.idle("user", |config| security(config).run_as_user = int(1000));
    assert_eq!(capabilities(&user, "CapEff"), 0);
    let ambient = pod.idle("ambient", |config| {
        security(config).run_as_user = int(1000);
        security(config).capabilities = Some(changed(&["NET_ADMIN"], &[], &["NET_ADMIN"]));
    });
    assert_eq!(capabilities(&ambient, "CapEff"), NET_ADMIN);
    let mut config = pod.config("bad", &["true"]);
    security(&mut config).capabilities = Some(changed(&["NO_SUCH"], &[], &[]));
    let refused = pod.try_create(config).err().expect("no such capability");
    assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
    assert!(says(&refused, "no capability is called \"NO_SUCH\""), "{refused}");
}

#[test]
fn new_privileges_are_forbidden_where_asked() {
    let pod = world().pod("privileges");
    let forbidden = pod.idle("forbidden", |config| {
        security(config).no_new_privs = true;
        security(config).run_as_user = int(1000);
    });
    for process in ["1", "self"] {
        assert_eq!(field(&forbidden, process, "NoNewPrivs"), "1");
    }
    let allowed = pod.idle("allowed", |_| {});
    assert_eq!(field(&allowed, "1", "NoNewPrivs"), "0");
}

fn profile(kind: i32, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind,
        localhost_ref: path.to_owned(),
    })
}

#[test]
fn seccomp_filters_the_first_process_and_execs_alike() {
    let pod = world().pod("seccomp");
    let path = world().directory("seccomp").join("no-mkdir.json");
    let architecture = if cfg!(target_arch = "aarch64") {
        "SCMP_ARCH_AARCH64"
    } else {
        "SCMP_ARCH_X86_64"
    };
    let text = format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["{architecture}"],
            "syscalls": [{{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}}]}}"#
    );
    crate::fixture::write(&path, &text);
    for (name, profile, mode) in [
        ("default", profile(0, ""), "2"),
        ("unconfined", profile(1, ""), "0"),
        ("none", None, "0"),
        ("local", profile(2, path.to_str().unwrap()), "2"),
    ] {
        for no_new_privs in [false, true] {
            let c = pod.idle(&format!("{name}-{no_new_privs}"), |config| {
                security(config).seccomp = profile.clone();
                security(config).no_new_privs = no_new_privs;
                security(config).run_as_user = no_new_privs.then_some(cri::Int64Value { value: 1000 });
            });
            assert_eq!(
                (field(&c, "1", "Seccomp"), field(&c, "self", "Seccomp")),
                (mode.into(), mode.into()),
                "{name}"
            );
            let made = c.exec(&["mkdir", "/tmp/made"]).code;
            assert_eq!(made != 0, name == "local", "{name}");
            if name == "default" {
                assert_ne!(c.exec(&["unshare", "-m", "true"]).code, 0);
            }
        }
    }
    let mut config = pod.config("bad", &["true"]);
    for (kind, path) in [(2, "/no/such/profile.json"), (2, "relative"), (7, "")] {
        security(&mut config).seccomp = profile(kind, path);
        let refused = pod.try_create(config.clone()).err().expect("no such profile");
        assert!(
            says(&refused, path) && is_code(&refused, Code::InvalidArgument),
            "{refused}"
        );
    }
}

/// Not when it starts: what is asked for and cannot be is no part of a container that is there.
#[test]
fn a_seccomp_profile_that_cannot_be_followed_is_refused_by_what_it_asks_for() {
    let pod = world().pod("seccomp-flag");
    let path = world().directory("seccomp-flag").join("profile.json");
    crate::fixture::write(
        &path,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NEW"]}"#,
    );
    let mut config = pod.config("bad", &["true"]);
    security(&mut config).seccomp = profile(2, path.to_str().unwrap());
    let refused = pod.try_create(config).err().expect("no such flag");
    assert!(
        says(&refused, "SECCOMP_FILTER_FLAG_NEW") && is_code(&refused, Code::InvalidArgument),
        "{refused}"
    );
}

#[test]
fn masked_and_read_only_paths() {
    let pod = world().pod("masked");
    let c = pod.idle("c", |config| {
        security(config).masked_paths = words(&[
            "/proc/version",
            "/proc/acpi",
            "/sys/firmware",
            "/etc/passwd",
            "/no/such",
        ]);
        security(config).readonly_paths = words(&["/proc/sys", "/etc/group", "/tmp", "/no/such"]);
    });
    assert_eq!(
        c.sh("cat /etc/passwd; ls -A /sys/firmware; cat /proc/version | wc -c"),
        "0"
    );
    for denied in [
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo x >> /etc/group",
        "touch /tmp/x",
    ] {
        assert!(c.exec(&["sh", "-c", denied]).stderr.contains("Read-only"), "{denied}");
    }
    // An empty list is what is asked for, too.
    let open = pod.idle("open", |_| {});
    open.sh("touch /tmp/x");
    assert_ne!(open.sh("cat /etc/passwd"), "");
    // The kernel's file systems are read-only for whoever is not privileged.
    assert!(open.exec(&["touch", "/sys/kernel/x"]).code != 0);
    let cgroup = open.exec(&[
        "sh",
        "-c",
        "for d in /sys/fs/cgroup/*/; do mkdir $d/x && echo made in $d; done",
    ]);
    assert_eq!(cgroup.stdout, "", "cgroups are writable from inside");
}

#[test]
fn a_masked_path_that_is_not_absolute_is_refused() {
    let pod = world().pod("masked-relative");
    let mut config = pod.config("bad", &["true"]);
    security(&mut config).masked_paths = words(&["relative"]);
    assert!(is_code(&pod.try_create(config).err().unwrap(), Code::InvalidArgument));
}

#[test]
fn a_read_only_root() {
    let pod = world().pod("ro-root");
    let c = pod.idle("c", |config| security(config).readonly_rootfs = true);
    for path in ["/x", "/etc/x", "/tmp/x"] {
        assert!(c.exec(&["touch", path]).stderr.contains("Read-only"), "{path}");
    }
    c.sh("echo x > /dev/shm/x; echo x > /dev/null");
}

#[test]
fn privileged_is_everything_the_daemon_has() {
    let pod = world().pod_with("privileged", |config| sandbox_security(config).privileged = true);
    let c = pod.idle("c", |config| {
        security(config).privileged = true;
        security(config).masked_paths = words(&["/etc/passwd"]);
        security(config).seccomp = Some(SecurityProfile::default());
    });
    assert_eq!(capabilities(&c, "CapEff"), of_daemon());
    assert_eq!(field(&c, "1", "Seccomp"), "0");
    assert_ne!(c.sh("cat /etc/passwd"), "");
    c.sh("mount -t tmpfs tmpfs /tmp && umount /tmp");
    c.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert!(c.sh("awk '$2 == \"/sys\" {print $4}' /proc/mounts").starts_with("rw"));
    assert_eq!(
        c.exec(&["test", "-e", "/dev/kmsg"]).code == 0,
        std::path::Path::new("/dev/kmsg").exists()
    );
    let plain = world().pod("privileged-not");
    let mut config = plain.config("c", &["true"]);
    security(&mut config).privileged = true;
    let refused = plain.try_create(config).err().expect("the sandbox is not privileged");
    assert!(
        says(&refused, "a privileged container needs a privileged sandbox"),
        "{refused}"
    );
}

#[test]
fn limits_are_crisps_own_and_not_the_daemons() {
    let read = |path: String| -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        let line = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        vec![
            line("Max open files"),
            line("Max core file size"),
            line("Max processes"),
        ]
    };
    let pod = world().pod("rlimits");
    let c = pod.idle("c", |_| {});
    let before = read(format!("/proc/{}/limits", c.pid()));
    let exec = c.sh("cat /proc/self/limits");
    assert!(
        // runc 1.1 sometimes gives an exec its hard limit of open files as its soft one.
        before
            .iter()
            .skip(usize::from(handler() == "runc"))
            .all(|line| exec
                .split('\n')
                .any(|e| e.split_whitespace().collect::<Vec<_>>().join(" ") == *line)),
        "{before:?} {exec}"
    );
    // The daemon's soft limit of open files is made tiny: the next container has what the first one had.
    let pid = world().daemon_pid().to_string();
    let daemon = read(format!("/proc/{pid}/limits"));
    let hard = daemon[0].split(' ').nth(4).unwrap().to_owned();
    let prlimit = |soft: &str| {
        let done = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={soft}:{hard}")])
            .status()
            .unwrap();
        assert!(done.success());
    };
    let soft = daemon[0].split(' ').nth(3).unwrap().to_owned();
    prlimit("700");
    let made = pod.try_create(pod.config("d", &["sleep", "1000"]));
    prlimit(&soft);
    let d = made.unwrap();
    d.start().unwrap();
    assert_eq!(read(format!("/proc/{}/limits", d.pid())), before);
    assert_ne!(before[0].split(' ').nth(3), Some("700"));
}

/// A sandbox has a process of its own in other runtimes, of which the CRI can say how it runs; crisp's pause reads no file, and
/// is the same for all.
#[test]
fn what_is_said_of_the_sandboxs_own_process_is_taken_and_binds_no_container() {
    let pod = world().pod_with("sandbox-process", |config| {
        let security = sandbox_security(config);
        security.readonly_rootfs = true;
        (security.run_as_user, security.run_as_group) = (int(1000), int(50));
        security.supplemental_groups = vec![7];
        security.seccomp = Some(SecurityProfile::default());
        let linux = crate::fixture::sandbox_linux(config);
        linux.overhead = Some(cri::LinuxContainerResources {
            cpu_shares: 2,
            memory_limit_in_bytes: 16 << 20,
            ..Default::default()
        });
    });
    assert_eq!(pod.status().state(), cri::PodSandboxState::SandboxReady);
    let c = pod.idle("c", |_| {});
    assert_eq!(c.sh("id -u; id -g; touch /x && echo writable"), "0\n0\nwritable");
    assert!(!c.sh("id -G").split(' ').any(|group| group == "7"));
}
