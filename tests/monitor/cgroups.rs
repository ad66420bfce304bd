//! Processes are in the cgroups that the daemon made, from their first moment; and was it memory?

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::pod::{Pod, eventually, new_id, shell};

/// A cgroup of the test's own in each of the hierarchies that are mounted.
struct Cgroup(Vec<PathBuf>);

impl Cgroup {
    fn new() -> Self {
        let name = format!("crisp-test-{}", &new_id()[..8]);
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = match root.join("cgroup.controllers").exists() {
            true => vec![root],
            false => ["memory", "pids", "unified"]
                .iter()
                .map(|name| root.join(name))
                .filter(|path| path.exists())
                .collect(),
        };
        let made: Vec<PathBuf> = hierarchies.into_iter().map(|hierarchy| hierarchy.join(&name)).collect();
        for path in &made {
            std::fs::create_dir(path).unwrap();
        }
        Self(made)
    }

    fn procs(&self) -> Vec<OwnedFd> {
        let open = |path: &PathBuf| {
            OpenOptions::new()
                .write(true)
                .open(path.join("cgroup.procs"))
                .unwrap()
                .into()
        };
        self.0.iter().map(open).collect()
    }

    fn file(&self, names: &[&str]) -> PathBuf {
        let found = self
            .0
            .iter()
            .flat_map(|path| names.iter().map(|name| path.join(name)))
            .find(|path| path.exists());
        found.unwrap_or_else(|| panic!("none of {names:?}"))
    }

    fn limit(&self, names: &[&str], value: &str) {
        std::fs::write(self.file(names), value).unwrap();
    }

    fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.0[0].join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for pid in self.pids() {
            crate::pod::kill(pid);
        }
        for path in &self.0 {
            for _ in 0..200 {
                match std::fs::remove_dir(path) {
                    Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_and_execs_are_in_the_cgroups_that_came() {
    let pod = Pod::new().await;
    let cgroup = Cgroup::new();
    let equip =
        |_: &mut serde_json::Value, fds: &mut crisp::monitor::client::ContainerFds| fds.cgroup_procs = cgroup.procs();
    let (container, process) = pod.create_as(shell("exec sleep 60"), |_| {}, equip).await.unwrap();
    eventually("nobody else is in it", || cgroup.pids() == [process.pid]).await;
    for path in &cgroup.0 {
        assert_eq!(
            std::fs::read_to_string(path.join("cgroup.procs")).unwrap().trim(),
            process.pid.to_string()
        );
    }
    pod.client.start(&container).await.unwrap();
    let spec = crisp::monitor::client::ExecSpec {
        exec_id: None,
        container_id: container.to_string(),
        policy: shell("exec sleep 60"),
        tty: false,
    };
    let fds = crisp::monitor::client::ExecFds {
        cgroup_procs: cgroup.procs(),
        cgroup_dir: None,
        ..Default::default()
    };
    let exec = pod.client.exec(spec, fds).await.unwrap();
    eventually("only the two are in it", || {
        let mut pids = cgroup.pids();
        pids.sort_unstable();
        let mut expected = [process.pid, exec.process.pid];
        expected.sort_unstable();
        pids == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oom_killed_is_said_exactly_when_it_is_true() {
    let mut pod = Pod::new().await;
    let eat = "busybox tail -c 90m /dev/zero";
    for (script, signo, expected) in [
        // A child of the container's was killed for memory, and the container ended otherwise.
        (format!("{eat}; exit 3"), 0, false),
        (format!("{eat}; sleep 60"), 9, false),
        ("sleep 60".to_owned(), 9, false),
        ("exit 137".to_owned(), 0, false),
        (format!("exec {eat}"), 0, true),
        (format!("{eat}; exit $?"), 0, true),
    ] {
        let cgroup = Cgroup::new();
        cgroup.limit(&["memory.limit_in_bytes", "memory.max"], "16777216");
        let events = OpenOptions::new()
            .read(true)
            .open(cgroup.file(&["memory.oom_control", "memory.events"]))
            .unwrap();
        let equip = |_: &mut serde_json::Value, fds: &mut crisp::monitor::client::ContainerFds| {
            fds.cgroup_procs = cgroup.procs();
            fds.oom_events = Some(events.into());
        };
        let (container, _) = pod.create_as(shell(&script), |_| {}, equip).await.unwrap();
        pod.client.start(&container).await.unwrap();
        if signo != 0 {
            tokio::time::sleep(std::time::Duration::from_millis(700)).await;
            pod.client.signal(&container, signo).await.unwrap();
        }
        let exit = pod.exit_of(&container).await;
        assert_eq!(exit.oom_killed, expected, "{script}: {exit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_harms_neither_the_monitor_nor_its_neighbours() {
    let mut pod = Pod::new().await;
    let cgroup = Cgroup::new();
    cgroup.limit(&["pids.max"], "40");
    let equip =
        |_: &mut serde_json::Value, fds: &mut crisp::monitor::client::ContainerFds| fds.cgroup_procs = cgroup.procs();
    let (bomb, _) = pod
        .create_as(shell("b() { b | b & }; b; while true; do b; done"), |_| {}, equip)
        .await
        .unwrap();
    pod.client.start(&bomb).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let (exit, log) = pod.run_to_end(shell("echo fine")).await;
    assert_eq!((exit.code, log), (0, vec!["stdout F fine".to_owned()]));
    // An exec into it may find no room; it says so, and nothing hangs.
    let spec = crisp::monitor::client::ExecSpec {
        exec_id: None,
        container_id: bomb.to_string(),
        policy: shell("true"),
        tty: false,
    };
    for _ in 0..5 {
        let fds = crisp::monitor::client::ExecFds {
            cgroup_procs: cgroup.procs(),
            cgroup_dir: None,
            ..Default::default()
        };
        let _ = pod.client.exec(spec.clone(), fds).await;
    }
    let _ = pod.client.signal(&bomb, 9).await;
    eventually("all of it is gone", || cgroup.pids().is_empty()).await;
}
