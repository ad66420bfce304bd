//! What containers write: to their logs, to terminals, to whoever watches.

use std::io::{Read, Write};
use std::time::Duration;

use crisp::model::ContainerId;

use crisp::monitor::client::{SandboxFds, SandboxSpec};

use crate::exec::read_until;
use crate::pod::{Pod, eventually, pipe, sandbox, shell};

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_any_length_and_a_last_one_without_an_end() {
    let mut pod = Pod::new().await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo -n end";
    let script = script.replace("tr '\\0' x", "busybox tr '\\0' x");
    let (_, log) = pod.run_to_end(shell(&script)).await;
    let x = |count: usize| "x".repeat(count);
    assert_eq!(
        log,
        [
            format!("stdout P {}", x(16384)),
            format!("stdout P {}", x(16384)),
            format!("stdout F {}", x(40000 - 2 * 16384)),
            "stdout P end".to_owned(),
        ]
    );
    let container = pod
        .create_as(shell("echo 0123456789"), |spec| spec.log_line_limit = 4, |_, _| {})
        .await
        .unwrap()
        .0;
    pod.client.start(&container).await.unwrap();
    pod.exit_of(&container).await;
    assert_eq!(
        pod.log_of(&container),
        ["stdout P 0123", "stdout P 4567", "stdout F 89"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_full_load_loses_and_doubles_nothing() {
    const LINES: usize = 300_000;
    let mut pod = Pod::new().await;
    let (container, _) = pod.create(shell(&format!("seq 1 {LINES}"))).await;
    pod.client.start(&container).await.unwrap();
    let mut parts = Vec::new();
    for part in 0..20 {
        let moved = pod.dir.path().join(format!("part-{part}"));
        std::fs::rename(pod.log_path(&container), &moved).unwrap();
        let new = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(pod.log_path(&container))
            .unwrap();
        pod.client.reopen_log(&container, new.into()).await.unwrap();
        // Nothing more is written to it now.
        parts.push(std::fs::read_to_string(&moved).unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pod.exit_of(&container).await;
    parts.push(std::fs::read_to_string(pod.log_path(&container)).unwrap());
    let mut next = 1;
    for part in &parts {
        for line in part.lines() {
            assert_eq!(line.splitn(4, ' ').nth(3), Some(next.to_string().as_str()));
            next += 1;
        }
    }
    assert_eq!(next, LINES + 1);
    assert!(
        parts.iter().filter(|part| !part.is_empty()).count() > 1,
        "it was under load"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_no_application_and_its_log_goes_on_when_there_is_room() {
    let mut pod = Pod::new().await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let script = "seq 1 100000; cat /tmp/go 2>/dev/null; until test -e /tmp/go; do sleep 0.02; done; echo after";
    let (container, process) = pod
        .create_as(shell(script), |_| {}, |_, fds| fds.log = Some(full.into()))
        .await
        .unwrap();
    pod.client.start(&container).await.unwrap();
    let children = format!("/proc/{0}/task/{0}/children", process.pid);
    let cmdline = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    eventually("all of it is written", || {
        std::fs::read_to_string(&children)
            .unwrap()
            .split_whitespace()
            .any(|pid| cmdline(pid).starts_with("sleep"))
    })
    .await;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(pod.log_path(&container))
        .unwrap();
    pod.client.reopen_log(&container, log.into()).await.unwrap();
    pod.exec(&container, shell("touch /tmp/go")).await.unwrap();
    assert_eq!(pod.exit_of(&container).await.code, 0);
    assert_eq!(pod.log_of(&container), ["stdout F after"]);
    let (_, snapshot, _) = crisp::monitor::Client::connect(&pod.run_dir()).await.unwrap();
    assert!(snapshot.containers[0].log_bytes_lost > 500_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_is_told_at_once_though_a_child_holds_the_output_and_what_it_writes_is_still_logged() {
    // In the pod's pid namespace the child outlives the container's first process.
    let spec = SandboxSpec {
        new_pid: true,
        ..sandbox()
    };
    let mut pod = Pod::with(spec, SandboxFds::default()).await;
    let (container, _) = pod
        .create_as(
            shell("(sleep 0.5; echo late) & echo early"),
            |_| {},
            |json, _| json["linux"]["namespaces"][0]["path"] = "nsfd:pid".into(),
        )
        .await
        .unwrap();
    pod.client.start(&container).await.unwrap();
    pod.exit_of(&container).await;
    assert_eq!(pod.log_of(&container), ["stdout F early"]);
    eventually("the late line is there", || {
        pod.log_of(&container) == ["stdout F early", "stdout F late"]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_output_is_thrown_away() {
    let mut pod = Pod::new().await;
    let (container, _) = pod
        .create_as(shell("seq 1 100000"), |_| {}, |_, fds| fds.log = None)
        .await
        .unwrap();
    pod.client.start(&container).await.unwrap();
    assert_eq!(pod.exit_of(&container).await.code, 0);
}

async fn with_terminal(pod: &Pod, script: &str) -> ContainerId {
    let container = pod
        .create_as(shell(script), |spec| (spec.tty, spec.stdin) = (true, true), |_, _| {})
        .await
        .unwrap()
        .0;
    pod.client.start(&container).await.unwrap();
    container
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_terminal_is_logged_resized_and_attached_to() {
    let mut pod = Pod::new().await;
    let container = with_terminal(&pod, "tty; read x; stty size; echo $x; test -c /dev/console").await;
    eventually("its first line is logged", || pod.log_of(&container).len() == 1).await;
    assert!(pod.log_of(&container)[0].starts_with("stdout F /dev/pts/"));
    pod.client.resize_tty(&container, 120, 40).await.unwrap();
    let (output, watch) = pipe();
    let input = pod
        .client
        .attach(&container, Some(watch), None)
        .await
        .unwrap()
        .expect("its terminal");
    std::fs::File::from(input).write_all(b"hello\n").unwrap();
    let exit = pod.exit_of(&container).await;
    assert_eq!(exit.code, 0);
    let log = pod.log_of(&container);
    assert_eq!(
        &log[1..],
        ["stdout F hello", "stdout F 40 120", "stdout F hello"],
        "but for a \\r each"
    );
    let mut output = std::fs::File::from(std::os::fd::OwnedFd::from(output));
    assert_eq!(
        read_until(&mut output, "120\r\nhello\r\n"),
        "hello\r\n40 120\r\nhello\r\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_standard_input_is_attached_to_and_its_input_ends() {
    let mut pod = Pod::new().await;
    let (container, _) = pod
        .create_as(shell("cat; echo done >&2"), |spec| spec.stdin = true, |_, _| {})
        .await
        .unwrap();
    pod.client.start(&container).await.unwrap();
    let ((mut out, their_out), (mut err, their_err)) = (pipe(), pipe());
    let input = pod
        .client
        .attach(&container, Some(their_out), Some(their_err))
        .await
        .unwrap()
        .expect("its input");
    let mut input = std::fs::File::from(input);
    input.write_all(b"one\ntwo\n").unwrap();
    drop(input);
    pod.client.close_stdin(&container).await.unwrap();
    assert_eq!(pod.exit_of(&container).await.code, 0);
    let mut text = String::new();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\n");
    text.clear();
    err.read_to_string(&mut text).unwrap();
    assert_eq!(text, "done\n");
    assert_eq!(pod.log_of(&container).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_does_not_read_stops_neither_the_application_nor_the_log() {
    let mut pod = Pod::new().await;
    let (container, _) = pod.create(shell("sleep 0.1; seq 1 500000")).await;
    let (out, their_out) = pipe();
    pod.client.attach(&container, Some(their_out), None).await.unwrap();
    pod.client.start(&container).await.unwrap();
    assert_eq!(pod.exit_of(&container).await.code, 0);
    assert_eq!(pod.log_of(&container).len(), 500_000);
    drop(out);
}
