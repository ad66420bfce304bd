//! Programs that cannot be started, and how programs end.

use crisp::cri::{self, ContainerState};
use tonic::Code;

use crate::fixture::{Container, Pod, is_code, says, security, world};
use crate::handlers::is_external;

fn failing(pod: &Pod, name: &str, command: &[&str]) -> (tonic::Status, cri::ContainerStatus) {
    let c = pod.create(name, command, |_| {});
    let refused = c.start().expect_err(name);
    let status = c.status();
    assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
    assert_eq!(status.reason, "StartError", "{name}");
    assert!(
        status.finished_at > 0 && status.finished_at >= status.created_at,
        "{name}: {status:?}"
    );
    assert!(
        says(&refused, &status.message) && !status.message.is_empty(),
        "{name}: {refused} / {}",
        status.message
    );
    (refused, status)
}

#[test]
fn a_program_that_cannot_run_is_told_with_its_reason_and_code() {
    let pod = world().pod("start-fails");
    for (name, command, code, words) in [
        (
            "missing",
            &["no-such-program"][..],
            127,
            "executable file not found in $PATH",
        ),
        (
            "missing-path",
            &["/bin/no-such-program"],
            127,
            "no such file or directory",
        ),
        ("denied", &["/etc/not-executable"], 126, "permission denied"),
        ("directory", &["/etc"], 126, "permission denied"),
        ("interpreter", &["/bin/no-interpreter"], 127, "interpreter"),
    ] {
        if is_external() {
            // An OCI runtime looks for the program when it makes the container; for its interpreter nobody does.
            if name != "interpreter" {
                let refused = pod.try_create(pod.config(name, command)).err().expect("it cannot run");
                // crun names what it does not find, and not what it may not execute.
                let told = [command[0], "Permission denied", "Operation not permitted"]
                    .iter()
                    .any(|words| refused.message().contains(words));
                assert!(told, "{name}: {refused}");
            }
            continue;
        }
        let (_, status) = failing(&pod, name, command);
        assert_eq!(status.exit_code, code, "{name}: {}", status.message);
        assert!(status.message.contains(words), "{name}: {}", status.message);
    }
}

#[test]
fn a_container_is_started_once() {
    let pod = world().pod("start-once");
    let c = pod.idle("c", |_| {});
    let again = c.start().unwrap_err();
    assert!(is_code(&again, Code::FailedPrecondition), "{again}");
    assert!(says(&again, "running"), "{again}");
    c.stop(0).unwrap();
    let again = c.start().unwrap_err();
    assert!(is_code(&again, Code::FailedPrecondition));
    assert!(says(&again, "exited"), "{again}");
}

#[test]
fn a_root_without_anything_gives_an_error_and_no_harm() {
    let pod = world().pod("start-empty");
    crate::fixture::world()
        .pull(&crate::registry::reference("empty"))
        .unwrap();
    let mut config = pod.config("c", &[]);
    config.image = Some(crate::fixture::image(&crate::registry::reference("empty")));
    // Refused at once or when it starts: either way told, and the pod goes on.
    match pod.try_create(config) {
        Err(refused) => assert!(!refused.message().is_empty()),
        Ok(c) => assert!(c.start().unwrap_err().message().contains("/bin/sh")),
    }
    assert_eq!(pod.idle("d", |_| {}).sh("echo fine"), "fine");
}

fn ended(pod: &Pod, name: &str, script: &str) -> cri::ContainerStatus {
    pod.start(name, &["sh", "-c", script], |_| {}).exited()
}

#[test]
fn exit_codes_and_signals_come_through() {
    let pod = world().pod("exit-codes");
    for code in [0, 1, 2, 126, 127, 128, 255] {
        let status = ended(&pod, &format!("code-{code}"), &format!("exit {code}"));
        assert_eq!(status.exit_code, code);
        assert_eq!(status.reason, if code == 0 { "Completed" } else { "Error" });
        assert!(
            status.created_at <= status.started_at && status.started_at <= status.finished_at,
            "{status:?}"
        );
    }
    // A first process of a pid namespace cannot kill itself by these: somebody else must.
    for (signal, code) in [("TERM", 143), ("INT", 130), ("SEGV", 139), ("KILL", 137)] {
        let c = pod.start(
            &format!("signal-{signal}"),
            &["sh", "-c", "trap - TERM INT SEGV; sleep 1000"],
            |config| {
                security(config).namespace_options = Some(cri::NamespaceOption::default());
            },
        );
        let number = signal
            .parse::<nix::sys::signal::Signal>()
            .or_else(|_| format!("SIG{signal}").parse())
            .unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(c.pid() as i32), number).unwrap();
        let status = c.exited();
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "Error"), "{signal}");
    }
}

#[test]
fn a_program_that_is_over_before_its_start_is_answered_has_both_times() {
    let pod = world().pod("exit-fast");
    let runs: Vec<Container> = (0..10)
        .map(|n| pod.start(&format!("c{n}"), &["true"], |_| {}))
        .collect();
    for c in runs {
        let status = c.exited();
        assert_eq!(status.exit_code, 0);
        assert!(
            status.started_at > 0 && status.finished_at >= status.started_at,
            "{status:?}"
        );
    }
}
