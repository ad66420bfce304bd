//! What others were caught by.

use std::os::unix::fs::MetadataExt;

use crisp::monitor::client::SandboxFds;

use crate::pod::{Pod, eventually, is_alive, sandbox, shell};

/// A filter that answers ETXTBSY to mkdir and mkdirat and allows the rest. Of capset, prctl and the like it would forbid
/// nothing; that none is needed after it is loaded is tried with [`allow_only`].
pub fn refuse_mkdir() -> Vec<u8> {
    let refuse = 0x0005_0000 | libc::ETXTBSY as u32;
    let mut program = vec![instruction(0x20, 0, 0, 0)];
    let forbidden = [libc::SYS_mkdir as u32, libc::SYS_mkdirat as u32];
    for (at, number) in forbidden.iter().enumerate() {
        program.push(instruction(0x15, (forbidden.len() - at) as u8, 0, *number));
    }
    program.push(instruction(0x06, 0, 0, 0x7fff_0000));
    program.push(instruction(0x06, 0, 0, refuse));
    program.concat()
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> [u8; 8] {
    let (code, k) = (code.to_ne_bytes(), k.to_ne_bytes());
    [code[0], code[1], jt, jf, k[0], k[1], k[2], k[3]]
}

/// A filter that kills at the very first of what a runtime might do between loading and execve.
fn kill_at_setup() -> Vec<u8> {
    let kill = 0x8000_0000;
    let forbidden = [
        libc::SYS_capset,
        libc::SYS_setresuid,
        libc::SYS_setgroups,
        libc::SYS_close_range,
        libc::SYS_chdir,
    ];
    let mut program = vec![instruction(0x20, 0, 0, 0)];
    for (at, number) in forbidden.iter().enumerate() {
        program.push(instruction(0x15, (forbidden.len() - at) as u8, 0, *number as u32));
    }
    program.push(instruction(0x06, 0, 0, 0x7fff_0000));
    program.push(instruction(0x06, 0, 0, kill));
    program.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_no_new_privs_gets_its_filter_too() {
    let mut pod = Pod::new().await;
    for (uid, no_new_privs) in [(1000, false), (1000, true), (0, false), (0, true)] {
        let mut policy = shell("mkdir /tmp/x 2>&1; grep -E '^(Seccomp:|CapEff)' /proc/self/status");
        (policy.uid, policy.gid, policy.no_new_privs) = (uid, uid, no_new_privs);
        policy.seccomp = refuse_mkdir();
        let (_, log) = pod.run_to_end(policy).await;
        assert!(log[0].contains("Text file busy"), "uid {uid}, {no_new_privs}: {log:?}");
        let effective = if uid == 0 {
            "00000000a80425fb"
        } else {
            "0000000000000000"
        };
        assert_eq!(log[1], format!("stdout F CapEff:\t{effective}"));
        assert_eq!(log[2], "stdout F Seccomp:\t2");
    }
    let mut policy = shell("echo alive");
    policy.seccomp = kill_at_setup();
    assert_eq!(pod.run_to_end(policy).await.1, ["stdout F alive"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flags_of_a_filter_reach_the_kernel() {
    let mut pod = Pod::new().await;
    let mut policy = shell("grep Seccomp: /proc/self/status");
    policy.seccomp = refuse_mkdir();
    policy.seccomp_flags = (libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) as u32;
    assert_eq!(pod.run_to_end(policy.clone()).await.1, ["stdout F Seccomp:\t2"]);
    // One that no kernel has.
    policy.seccomp_flags |= 1 << 31;
    let (container, _) = pod.create(policy).await;
    let error = pod.client.start(&container).await.unwrap_err().to_string();
    assert!(error.contains("load the seccomp filter"), "{error}");
    assert_eq!(pod.exit_of(&container).await.code, 128);
}

/// CVE-2019-5736: what a container finds as the exe of a process that enters it must not be writable.
#[tokio::test(flavor = "multi_thread")]
async fn the_programs_of_the_pod_cannot_be_written_to() {
    let pod = Pod::new().await;
    let (_, waiting) = pod.create(shell("true")).await;
    for pid in [pod.monitor_pid, pod.pause.pid, waiting.pid] {
        let exe = format!("/proc/{pid}/exe");
        assert!(
            std::fs::read_link(&exe)
                .unwrap()
                .to_string_lossy()
                .starts_with("/memfd:crisp-"),
            "{exe}"
        );
        assert!(
            std::fs::OpenOptions::new()
                .write(true)
                .open(&exe)
                .and_then(|file| file.set_len(1))
                .is_err()
        );
    }
    // Nor may anybody but the node's root look into one that waits.
    assert_eq!(std::fs::metadata(format!("/proc/{}/fd", waiting.pid)).unwrap().uid(), 0);
}

/// CVE-2024-21626: no descriptor of the host comes along, and the working directory is inside.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_is_left_open() {
    let mut pod = Pod::new().await;
    let script = "for fd in /proc/$$/fd/*; do readlink $fd; done";
    let (_, log) = pod.run_to_end(shell(script)).await;
    let check = |lines: &[String]| {
        for line in lines {
            let target = line.rsplit(' ').next().unwrap();
            assert!(
                target == "/dev/null" || target.starts_with("pipe:"),
                "{target} in {lines:?}"
            );
        }
        assert_eq!(lines.len(), 3, "{lines:?}");
    };
    check(&log);
    let container = pod.run(shell("exec sleep 60")).await;
    let (_, out, _) = pod.exec(&container, shell(script)).await.unwrap();
    check(&out.lines().map(str::to_owned).collect::<Vec<_>>());
    for cwd in [
        "/proc/self/fd/3",
        "/proc/self/fd/7",
        "/proc/self/fd/8",
        "/proc/self/fd/9",
    ] {
        let mut policy = shell("ls ..");
        policy.cwd = cwd.into();
        let (made, _) = pod.create(policy.clone()).await;
        assert!(pod.client.start(&made).await.is_err(), "{cwd}");
        assert!(pod.exec(&container, policy).await.is_err(), "{cwd}");
    }
}

/// CVE-2016-9962: a process that is on its way into a container is in sight of the container's before its program executes, and who
/// may trace there can follow it to where it comes from. libcontainer's own way enters the mounts last; the monitor's room has
/// a directory that no container has, and with it the node's /proc.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_its_way_in_leads_nobody_out() {
    let mut pod = Pod::new().await;
    let script = "trap 'echo looked $n; exit' TERM; n=0; while :; do for p in /proc/[0-9]*; do n=$((n+1)); \
                  if [ -e $p/root/stage ]; then echo out by $p; fi; done; done";
    let mut policy = shell(script);
    let trace = 1 << 19;
    for set in [&mut policy.bounding, &mut policy.effective, &mut policy.permitted] {
        *set |= trace;
    }
    let container = pod.run(policy).await;
    for _ in 0..300 {
        pod.exec(&container, shell("true")).await.unwrap();
    }
    pod.client.signal(&container, 15).await.unwrap();
    pod.exit_of(&container).await;
    let log = pod.log_of(&container);
    assert!(log.last().is_some_and(|line| line.contains("looked")), "{log:?}");
    assert_eq!(log.len(), 1, "{log:?}");
}

/// CVE-2025-31133: what hides a file is the kernel's null device, whatever the image says /dev/null is.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_cannot_choose_what_hides_a_masked_path() {
    let mut pod = Pod::new().await;
    let root = pod.dir.path().join("root");
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", root.join("dev/null")).unwrap();
    let (_, log) = pod
        .run_to_end(shell(
            "stat -c %t:%T /proc/timer_list; stat -c %t:%T /dev/null; cat /proc/keys | wc -c",
        ))
        .await;
    assert_eq!(log, ["stdout F 1:3", "stdout F 1:3", "stdout F 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_what_the_policy_says_and_home_is_there() {
    let mut pod = Pod::new().await;
    let mut policy = shell("env; id -u; pwd; echo $(grep -E '^Sig(Ign|Blk)' /proc/self/status)");
    policy.env.push(b"BYTES=\xff".to_vec());
    policy.uid = 1000;
    policy.gid = 1000;
    policy.cwd = b"/made/on/the way".to_vec();
    let (_, mut log) = pod.run_to_end(policy).await;
    log.sort();
    let none = "0000000000000000";
    assert_eq!(
        log,
        [
            "stdout F /made/on/the way",
            "stdout F 1000",
            "stdout F BYTES=\u{fffd}",
            "stdout F HOME=/tmp",
            "stdout F PATH=/bin",
            "stdout F PWD=/made/on/the way",
            "stdout F SHLVL=1",
            &format!("stdout F SigBlk: {none} SigIgn: {none}"),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_can_reopen_its_own_standard_streams() {
    let mut pod = Pod::new().await;
    let mut policy = shell("echo one > /dev/stdout; echo two > /dev/stderr; echo three > /proc/self/fd/1");
    (policy.uid, policy.gid) = (1000, 1000);
    let (exit, mut log) = pod.run_to_end(policy).await;
    log.sort();
    assert_eq!(
        (exit.code, log),
        (
            0,
            vec!["stderr F two".into(), "stdout F one".into(), "stdout F three".into()]
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_monitor_a_pod_lives_and_what_was_not_started_never_starts() {
    let pod = Pod::new().await;
    let container = pod.create(shell("exec sleep 60")).await;
    let (_, unstarted) = pod.create(shell("exec sleep 61")).await;
    pod.client.start(&container.0).await.unwrap();
    crate::pod::kill(pod.monitor_pid);
    eventually("the one that waits ends", || !is_alive(unstarted.pid)).await;
    assert!(is_alive(pod.pause.pid) && is_alive(container.1.pid));
    assert!(pod.client.signal(&container.0, 9).await.is_err());
    crate::pod::kill(container.1.pid);
    crate::pod::kill(pod.pause.pid);
}

/// Seen with a daemon that was started from a script: the monitors held the script's pipe open for good.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_daemon_inherited_does_not_live_on_in_the_pod() {
    use std::os::fd::AsFd;
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(writer.as_fd(), rustix::io::FdFlags::empty()).unwrap();
    let pod = Pod::new().await;
    let container = pod.run(shell("exec sleep 60")).await;
    drop(writer);
    let ended = tokio::task::spawn_blocking(move || std::io::Read::read(&mut reader, &mut [0]).unwrap());
    assert_eq!(
        tokio::time::timeout(std::time::Duration::from_secs(5), ended)
            .await
            .expect("nobody holds it")
            .unwrap(),
        0
    );
    pod.client.signal(&container, 9).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_rounds_leave_nothing_behind() {
    let mut pod = Pod::with(sandbox(), SandboxFds::default()).await;
    let resident = pod.run(shell("exec sleep 600")).await;
    let counts = |pid: i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap()
            .trim()
            .trim_end_matches(" kB");
        (fds, rss.trim().parse::<i64>().unwrap())
    };
    let mut before = (0, 0);
    for round in 0..200 {
        let (container, _) = pod.create(shell("echo x")).await;
        pod.client.start(&container).await.unwrap();
        pod.exit_of(&container).await;
        pod.client.forget(&container).await.unwrap();
        pod.exec(&resident, shell("true")).await.unwrap();
        if round % 4 == 0 {
            let mut nothing = shell("");
            nothing.args = vec![b"nowhere".to_vec()];
            assert!(pod.exec(&resident, nothing).await.is_err());
        }
        if round == 20 {
            eventually("it has settled", || crate::pod::children(pod.monitor_pid).len() == 2).await;
            // What the last round had open may be on its way out.
            eventually("two looks agree", || {
                before = counts(pod.monitor_pid);
                std::thread::sleep(std::time::Duration::from_millis(50));
                counts(pod.monitor_pid).0 == before.0
            })
            .await;
        }
    }
    eventually("only pause and the resident are children", || {
        crate::pod::children(pod.monitor_pid).len() == 2
    })
    .await;
    eventually("no more descriptors than before", || {
        counts(pod.monitor_pid).0 <= before.0
    })
    .await;
    let after = counts(pod.monitor_pid);
    assert!(
        after.1 <= before.1 + 64,
        "memory: {} kB then, {} kB now",
        before.1,
        after.1
    );
    assert_eq!(
        std::fs::read_dir(format!("/proc/{}/root", pod.monitor_pid))
            .unwrap()
            .count(),
        5,
        "its room is tidy"
    );
}
