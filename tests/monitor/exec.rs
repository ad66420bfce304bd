//! Processes in a container that runs.

use std::io::{Read, Write};

use crisp::monitor::client::{ExecFds, ExecSpec};
use crisp::monitor::protocol::FailureKind;

use crate::pod::{Pod, eventually, is_alive, pipe, shell};

#[tokio::test(flavor = "multi_thread")]
async fn it_sees_what_the_container_sees_and_its_streams_are_apart() {
    let pod = Pod::new().await;
    let (container, process) = pod.create(shell("touch /tmp/here; exec sleep 60")).await;
    pod.client.start(&container).await.unwrap();
    let comm = format!("/proc/{}/comm", process.pid);
    eventually("it sleeps", || std::fs::read(&comm).unwrap() == b"sleep\n").await;
    let (exit, out, err) = pod
        .exec(
            &container,
            shell("ls /tmp; hostname; cat /proc/1/comm; echo oops >&2; pwd; exit 3"),
        )
        .await
        .unwrap();
    assert_eq!(exit.code, 3);
    assert_eq!(out, "here\nthe-pod\nsleep\n/\n");
    assert_eq!(err, "oops\n");
    // All namespaces are the container's, cgroup and user too.
    let (_, out, _) = pod
        .exec(&container, shell("for n in cgroup ipc mnt net pid user uts; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n; done"))
        .await
        .unwrap();
    assert_eq!(out, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_executed_is_told_and_leaves_nothing() {
    let pod = Pod::new().await;
    let container = pod.run(shell("exec sleep 60")).await;
    let mut policy = shell("");
    policy.args = vec![b"nowhere".to_vec()];
    let error = pod.exec(&container, policy.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::ProgramNotFound), "{error}");
    policy.args = vec![b"/etc/passwd".to_vec()];
    let error = pod.exec(&container, policy).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::ProgramDenied), "{error}");
    pod.client.signal(&container, 9).await.unwrap();
    eventually("the container is gone", || {
        crate::pod::children(pod.monitor_pid) == [pod.pause.pid]
    })
    .await;
    let error = pod.exec(&container, shell("true")).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::State), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_what_was_sent_and_a_signal_ends_it() {
    let pod = Pod::new().await;
    let container = pod.run(shell("exec sleep 60")).await;
    let (stdin, mut to_stdin) = std::io::pipe().unwrap();
    let (mut from_stdout, stdout) = pipe();
    let spec = ExecSpec {
        exec_id: None,
        container_id: container.to_string(),
        policy: shell("cat; exec sleep 60"),
        tty: false,
    };
    let fds = ExecFds {
        stdin: Some(stdin.into()),
        stdout: Some(stdout),
        ..ExecFds::default()
    };
    let mut exec = pod.client.exec(spec, fds).await.unwrap();
    to_stdin.write_all(b"hello\n").unwrap();
    drop(to_stdin);
    let mut line = [0; 6];
    from_stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    pod.client.signal_exec(exec.exec_id, 9).await.unwrap();
    assert_eq!(exec.exit().await.unwrap().signal, 9);
    assert!(!is_alive(exec.process.pid));
    let error = pod.client.signal_exec(exec.exec_id, 9).await.unwrap_err();
    assert_eq!(error.kind(), Some(FailureKind::NotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_comes_back_and_is_the_processes_own() {
    let pod = Pod::new().await;
    let container = pod.run(shell("exec sleep 60")).await;
    let spec = ExecSpec {
        exec_id: None,
        container_id: container.to_string(),
        policy: shell("tty; read x; stty size; cat"),
        tty: true,
    };
    let mut exec = pod.client.exec(spec, ExecFds::default()).await.unwrap();
    let mut terminal = std::fs::File::from(exec.terminal.take().expect("a terminal"));
    let seen = read_until(&mut terminal, "\n");
    assert!(seen.starts_with("/dev/pts/"), "{seen:?}");
    crisp::sys::process::set_window_size(std::os::fd::AsFd::as_fd(&terminal), 120, 40).unwrap();
    terminal.write_all(b"\n").unwrap();
    read_until(&mut terminal, "40 120\r\n");
    terminal.write_all(&[3]).unwrap();
    assert_eq!(exec.exit().await.unwrap().signal, 2);
}

pub fn read_until(terminal: &mut std::fs::File, end: &str) -> String {
    let mut seen = String::new();
    while !seen.ends_with(end) {
        let mut byte = [0];
        terminal
            .read_exact(&mut byte)
            .unwrap_or_else(|e| panic!("{e} after {seen:?}"));
        seen.push(char::from(byte[0]));
    }
    seen
}

/// It was seen with libcontainer's own builder: an exec had no filter, though its container had.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_as_confined_as_its_policy_says() {
    let pod = Pod::new().await;
    let container = pod.run(shell("exec sleep 60")).await;
    for no_new_privs in [false, true] {
        let mut policy =
            shell("grep -E '^(Uid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; mkdir /tmp/x || true");
        policy.uid = 1000;
        policy.gid = 1000;
        policy.groups = vec![7, 8];
        policy.no_new_privs = no_new_privs;
        policy.bounding = 1 << 10;
        policy.effective = 1 << 10;
        policy.permitted = 1 << 10;
        policy.inheritable = 1 << 10;
        policy.ambient = 1 << 10;
        policy.seccomp = crate::hazards::refuse_mkdir();
        let (_, out, err) = pod.exec(&container, policy).await.unwrap();
        let lines: Vec<&str> = out.lines().collect();
        let capability = "0000000000000400";
        let flag = if no_new_privs { "1" } else { "0" };
        assert_eq!(
            lines,
            [
                "Uid:\t1000\t1000\t1000\t1000",
                "Groups:\t7 8 ",
                &format!("CapInh:\t{capability}"),
                &format!("CapPrm:\t{capability}"),
                &format!("CapEff:\t{capability}"),
                &format!("CapBnd:\t{capability}"),
                &format!("CapAmb:\t{capability}"),
                &format!("NoNewPrivs:\t{flag}"),
                "Seccomp:\t2",
            ]
        );
        assert!(
            err.contains("Text file busy"),
            "the filter says ETXTBSY to mkdir: {err}"
        );
    }
}
