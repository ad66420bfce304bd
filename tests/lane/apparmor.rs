//! AppArmor: the runtime's default profile, profiles of the node's, and none.

use std::io::Write;
use std::process::{Command, Stdio};

use crisp::cri::{self, SecurityProfile};
use tonic::Code;

use crate::fixture::{Container, OwnWorld, eventually, sandbox_security, security, world};

const RUNTIME_DEFAULT: i32 = 0;
const UNCONFINED: i32 = 1;
const LOCALHOST: i32 = 2;

fn profile(kind: i32, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind,
        localhost_ref: name.to_owned(),
    })
}

/// The profile of the first process, which an exec has too.
fn confined_by(container: &Container) -> String {
    let of = |process: &str| container.sh(&format!("cat /proc/{process}/attr/current"));
    let first = of("1");
    assert_eq!(of("self"), first, "the exec has another profile than the first process");
    first
}

/// A profile that the node has as long as this lives: whoever has it cannot write below /tmp.
struct Loaded(String);

impl Loaded {
    fn new(name: &str) -> Self {
        let name = format!("crisp-test-{}-{name}", std::process::id());
        let loaded = Self(name);
        loaded.parser("--replace");
        loaded
    }

    fn parser(&self, what: &str) {
        let name = &self.0;
        let text =
            format!("profile {name} flags=(attach_disconnected) {{ file, capability, signal, deny /tmp/** w, }}\n");
        let mut parser = Command::new("apparmor_parser")
            .args([what, "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("the package apparmor");
        parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(parser.wait().unwrap().success());
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

#[test]
#[expect(deprecated, reason = "the CRI's old field still counts where the new one is not set")]
fn each_form_of_asking_gives_its_profile_to_first_process_and_exec() {
    const DEFAULT: &str = "crisp-default (enforce)";
    let loaded = Loaded::new("forms");
    let local = format!("{} (enforce)", loaded.0);
    let pod = world().pod("apparmor");
    let cases = [
        ("none", None, String::new(), DEFAULT),
        ("default", profile(RUNTIME_DEFAULT, ""), String::new(), DEFAULT),
        ("unconfined", profile(UNCONFINED, ""), String::new(), "unconfined"),
        ("local", profile(LOCALHOST, &loaded.0), String::new(), local.as_str()),
        ("old-default", None, "runtime/default".to_owned(), DEFAULT),
        ("old-unconfined", None, "unconfined".to_owned(), "unconfined"),
        ("old-local", None, format!("localhost/{}", loaded.0), local.as_str()),
    ];
    for (name, new, old, expected) in cases {
        let container = pod.idle(name, |config| {
            security(config).apparmor = new;
            security(config).apparmor_profile = old;
        });
        assert_eq!(confined_by(&container), expected, "{name}");
        let writes = container.exec(&["touch", "/tmp/x"]).code == 0;
        assert_eq!(writes, expected != local, "{name}");
    }
    // With no_new_privs, and as a user, too.
    let container = pod.idle("no-new-privs", |config| {
        security(config).no_new_privs = true;
        security(config).run_as_user = Some(cri::Int64Value { value: 1000 });
    });
    assert_eq!(confined_by(&container), DEFAULT);
}

#[test]
fn a_privileged_container_has_only_what_it_names() {
    let loaded = Loaded::new("privileged");
    let pod = world().pod_with("apparmor-privileged", |config| {
        sandbox_security(config).privileged = true
    });
    let start = |name: &str, asked: Option<SecurityProfile>| {
        pod.idle(name, |config| {
            security(config).privileged = true;
            security(config).apparmor = asked;
        })
    };
    assert_eq!(confined_by(&start("none", None)), "unconfined");
    assert_eq!(
        confined_by(&start("default", profile(RUNTIME_DEFAULT, ""))),
        "unconfined"
    );
    let local = start("local", profile(LOCALHOST, &loaded.0));
    assert_eq!(confined_by(&local), format!("{} (enforce)", loaded.0));
}

#[test]
fn a_profile_that_is_not_loaded_is_refused_by_its_name() {
    let pod = world().pod("apparmor-missing");
    let mut config = pod.config("c", &["true"]);
    security(&mut config).apparmor = profile(LOCALHOST, "no-such-profile");
    let refused = pod.try_create(config.clone()).err().expect("no such profile");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no-such-profile"), "{refused}");
    // One that is loaded later is found, without a word to the daemon.
    let loaded = Loaded::new("later");
    security(&mut config).apparmor = profile(LOCALHOST, &loaded.0);
    pod.try_create(config).expect("it is loaded now");
}

#[test]
fn the_default_profile_keeps_the_node_out_of_reach() {
    let pod = world().pod("apparmor-default");
    // Everything else that would stand in the way is away: capabilities, read-only and masked paths, seccomp.
    let start = |name: &str, asked: i32| {
        pod.idle(name, |config| {
            security(config).apparmor = profile(asked, "");
            security(config).seccomp = profile(UNCONFINED, "");
            security(config).capabilities = Some(cri::Capability {
                add_capabilities: vec!["ALL".to_owned()],
                ..Default::default()
            });
        })
    };
    let (confined, free) = (start("confined", RUNTIME_DEFAULT), start("free", UNCONFINED));
    for script in [
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /proc/sys || mount -o bind /proc/sys /tmp",
        "cat /proc/sys/kernel/hostname > /proc/sys/kernel/hostname",
        "head -c 1 /proc/kcore",
    ] {
        assert_ne!(confined.exec(&["sh", "-c", script]).code, 0, "{script}");
        assert_eq!(free.exec(&["sh", "-c", script]).code, 0, "{script} proves nothing");
    }
    // What any program needs is there.
    confined
        .sh("cat /proc/self/status /sys/fs/cgroup/cgroup.controllers > /dev/null; echo x > /tmp/x; ls / > /dev/null");
    let killed = confined.exec(&["sh", "-c", "sleep 100 & kill -TERM $!; wait $!"]);
    assert_eq!(killed.code, 143, "{killed:?}");
    let deaf = pod.start(
        "term",
        &["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"],
        |_| {},
    );
    deaf.logged("up");
    deaf.stop(60).unwrap();
    assert_eq!(deaf.status().exit_code, 9, "the runtime's signals come through");
}

#[test]
fn the_default_profile_is_there_for_the_next_daemon_too() {
    let own = OwnWorld::new("apparmor-restart");
    let pod = own.0.pod("apparmor-restart");
    let before = pod.idle("before", |_| {});
    own.0.restart();
    let after = pod.idle("after", |_| {});
    for container in [&before, &after] {
        eventually("it is confined", || {
            (confined_by(container) == "crisp-default (enforce)").then_some(())
        });
    }
}
