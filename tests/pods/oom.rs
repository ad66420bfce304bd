//! OOMKilled exactly when it is true.

use crisp::cri::ContainerState;

use crate::fixture::{Container, Pod, resources, world};

/// Looks for the end of a line that has none.
const EAT: &str = "tail /dev/zero";

fn limited(pod: &Pod, name: &str, script: &str) -> Container {
    pod.start(name, &["sh", "-c", script], |config| {
        resources(config).memory_limit_in_bytes = 32 << 20;
        resources(config).memory_swap_limit_in_bytes = 32 << 20;
    })
}

#[test]
fn killed_for_memory() {
    let pod = world().pod("oom");
    // The first process itself is the one that grows: no shell around it.
    let c = pod.start("c", &["tail", "/dev/zero"], |config| {
        resources(config).memory_limit_in_bytes = 32 << 20;
    });
    let status = c.exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

#[test]
fn a_kill_by_somebody_else_is_not_for_memory() {
    let pod = world().pod("oom-not");
    let c = limited(&pod, "stopped", "trap '' TERM; echo up; while :; do sleep 0.1; done");
    c.logged("up");
    c.stop(0).unwrap();
    let status = c.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let c = limited(&pod, "exit-137", "exit 137");
    let status = c.exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
}

#[test]
fn a_child_that_was_killed_for_memory_is_not_the_containers_end() {
    let pod = world().pod("oom-child");
    // The counter has risen, long before an end that has nothing to do with it.
    let script = format!("trap 'exit 143' TERM; {EAT} > /dev/null; echo child ended $?; while :; do sleep 0.1; done");
    let c = limited(&pod, "term", &script);
    let log = c.logged("child ended");
    assert!(
        log.iter().any(|line| line.contains("child ended 137")),
        "no child was killed: {log:?}"
    );
    assert_eq!(c.status().state(), ContainerState::ContainerRunning);
    c.stop(10).unwrap();
    let status = c.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (143, "Error"));
    // And one that its stop had to kill.
    let script = format!("trap '' TERM; {EAT} > /dev/null; echo child ended; while :; do sleep 0.1; done");
    let c = limited(&pod, "kill", &script);
    c.logged("child ended");
    c.stop(0).unwrap();
    let status = c.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    // A shell that ends as its child did says 137 and means memory.
    let c = limited(&pod, "as-child", &format!("{EAT} > /dev/null; exit $?"));
    let status = c.exited();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}
