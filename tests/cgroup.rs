//! A cgroup's life on the machine as it is, v1, hybrid or cgroup2: made, joined, killed, removed. Needs root.

#[path = "support/cgroup_tree.rs"]
mod cgroup_tree;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use cgroup_tree::{Tree, shell_in, shell_joining, wait_until};
use crisp::sys::cgroup::{Cgroup, JoinFds, Resources};

#[test]
fn a_cgroup_is_made_with_its_parents_joined_killed_and_removed() {
    let tree = Tree::new("life");
    let pod = tree.create("pod");
    let container = tree.create("pod/container");
    assert!(container.exists());
    assert!(!container.populated().unwrap());
    // Making what exists is fine.
    tree.create("pod/container");

    let mut child = shell_in(&container, "sleep 1000 & sleep 1000 & wait");
    wait_until("three processes", || container.pids().unwrap().len() == 3);
    assert!(container.populated().unwrap() && pod.populated().unwrap());
    assert_eq!(pod.pids().unwrap(), container.pids().unwrap());
    let joined = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    for line in joined.lines() {
        assert!(line.ends_with(container.path()), "{line} of {joined}");
    }

    let busy = container.remove().unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy, "{busy}");
    assert!(busy.to_string().contains(container.path()), "{busy}");

    let started = Instant::now();
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    println!("kill: {:?}", started.elapsed());
    assert!(!container.populated().unwrap());
    assert!(!child.wait().unwrap().success());

    let started = Instant::now();
    container.remove().unwrap();
    println!("remove: {:?}", started.elapsed());
    assert!(!container.exists() && pod.exists());
    container.remove().unwrap();
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    assert_eq!(container.pids().unwrap(), Vec::<i32>::new());
}

/// In every hierarchy in which crisp counts or kills; elsewhere in the cgroup above, where the process is found all the same.
#[test]
fn a_process_without_limits_has_fewer_cgroups() {
    let tree = Tree::new("bare");
    tree.create("pod");
    let path = format!("{}/pod/pause", tree.top.path());
    let bare = Cgroup::create_bare(&tree.hierarchy, &path).unwrap();
    let JoinFds { mut tasks, directory } = bare.bare_join_fds().unwrap();
    if let Some(directory) = directory {
        let procs = format!("/proc/self/fd/{}/cgroup.procs", directory.as_raw_fd());
        tasks.push(File::options().write(true).open(procs).unwrap().into());
    }
    let mut child = shell_joining(tasks, "exec sleep 1000");
    wait_until("it has joined", || bare.pids().unwrap() == [child.id() as i32]);
    let joined = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    for line in joined.lines() {
        let (controllers, at) = line.split_once(':').unwrap().1.split_once(':').unwrap();
        let own = ["", "cpu", "cpuacct", "memory", "pids", "freezer"]
            .iter()
            .any(|own| controllers.split(',').any(|controller| controller == *own));
        let expected = if own {
            bare.path()
        } else {
            path.trim_end_matches("/pause")
        };
        assert_eq!(at, expected, "{line} of {joined}");
    }
    assert_eq!(bare.kill().unwrap(), Vec::<i32>::new());
    child.wait().unwrap();
    bare.remove().unwrap();
    assert!(!bare.exists());
}

#[test]
fn empty_parents_go_up_to_the_one_that_stays() {
    let tree = Tree::new("parents");
    let container = tree.create("a/b/c");
    let neighbour = tree.create("a/other");
    container.remove().unwrap();
    assert!(container.remove_empty_parents("/elsewhere").is_err());
    container.remove_empty_parents(tree.top.path()).unwrap();
    assert!(!container.parent().unwrap().exists());
    assert!(neighbour.exists());
    neighbour.remove().unwrap();
    neighbour.remove_empty_parents(tree.top.path()).unwrap();
    assert!(!neighbour.parent().unwrap().exists());
    assert!(tree.top.exists());
    // A second time there is nothing to do.
    neighbour.remove_empty_parents(tree.top.path()).unwrap();
}

#[test]
fn removal_takes_what_the_container_nested() {
    let tree = Tree::new("nested");
    let container = tree.create("container");
    for name in ["container/x", "container/x/y", "container/x/y/z", "container/w"] {
        tree.create(name);
    }
    let mut child = shell_in(
        &Cgroup::open(&tree.hierarchy, &format!("{}/x/y/z", container.path())).unwrap(),
        "exec sleep 99",
    );
    wait_until("a process deep inside", || {
        container.pids().unwrap() == [child.id() as i32]
    });
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    child.wait().unwrap();
    container.remove().unwrap();
    assert!(!container.exists());
}

#[test]
fn a_fork_bomb_is_killed() {
    let tree = Tree::new("bomb");
    let container = tree.create("bomb");
    container
        .apply(&Resources {
            pids_limit: Some(60),
            ..Resources::default()
        })
        .unwrap();
    let mut child = shell_in(
        &container,
        "while :; do (while :; do (sleep 0.01 &) ; done) & sleep 0.001; done",
    );
    wait_until("a bomb", || container.pids().unwrap().len() > 20);
    let started = Instant::now();
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    println!("bomb killed: {:?}", started.elapsed());
    child.wait().unwrap();
    container.remove().unwrap();
}

#[test]
fn an_exec_has_a_cgroup_of_its_own_that_kills_its_whole_tree() {
    let tree = Tree::new("exec");
    let container = tree.create("c");
    let mut init = shell_in(&container, "sleep 1000");
    let started = Instant::now();
    let exec = container.child("exec-1").unwrap();
    println!("child made: {:?}", started.elapsed());
    assert_eq!(
        container.child("exec-1").unwrap_err().kind(),
        std::io::ErrorKind::AlreadyExists
    );
    for bad in ["", "..", "a/b", "cgroup.procs"] {
        assert!(container.child(bad).is_err(), "{bad:?}");
    }
    let procs = exec.path().join("cgroup.procs");
    let fd = std::fs::File::options().write(true).open(procs).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "setsid sleep 1000 & sleep 1000 & wait"]);
    // SAFETY: as in `shell_in`.
    unsafe {
        command.pre_exec(move || match libc::write(fd.as_raw_fd(), b"0".as_ptr().cast(), 1) {
            1 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    wait_until("the exec's tree", || exec.pids().unwrap().len() == 3);
    assert!(exec.populated().unwrap());
    assert_eq!(exec.remove().unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
    exec.kill().unwrap();
    assert!(exec.wait_empty(Duration::from_secs(10)).unwrap());
    child.wait().unwrap();
    exec.remove().unwrap();
    exec.remove().unwrap();
    assert!(!exec.path().exists());
    assert!(init.try_wait().unwrap().is_none(), "the container lives on");

    // What an exec left behind goes with the container.
    container.child("exec-2").unwrap();
    container.kill().unwrap();
    init.wait().unwrap();
    container.remove().unwrap();
    assert_eq!(
        container.child("exec-3").unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}

/// Story: the kernel's `cgroup.kill` reaches who is in the cgroup2 hierarchy; a process that was moved out of it there,
/// or that a v1 freezer holds, would survive it.
#[test]
fn kill_reaches_processes_that_cgroup2_does_not_list_and_frozen_ones() {
    let tree = Tree::new("stray");
    let container = tree.create("c");
    let mut stray = shell_in(&container, "while :; do sleep 0.01; done");
    wait_until("the stray", || container.populated().unwrap());
    if let Some(root) = tree.hierarchy.cgroup2().filter(|_| !tree.hierarchy.is_v2()) {
        std::fs::write(root.join("cgroup.procs"), stray.id().to_string()).unwrap();
        assert!(container.populated().unwrap());
        assert!(container.pids().unwrap().contains(&stray.id().cast_signed()));
    }
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    stray.wait().unwrap();

    let mut frozen = shell_in(&container, "sleep 1000");
    wait_until("the frozen", || container.populated().unwrap());
    let freezer = match tree.hierarchy.is_v2() {
        true => (
            tree.hierarchy
                .cgroup2()
                .unwrap()
                .join(&container.path()[1..])
                .join("cgroup.freeze"),
            "1",
        ),
        false => (
            format!("/sys/fs/cgroup/freezer{}/freezer.state", container.path()).into(),
            "FROZEN",
        ),
    };
    std::fs::write(&freezer.0, freezer.1).unwrap();
    let started = Instant::now();
    assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
    println!("frozen killed: {:?}", started.elapsed());
    frozen.wait().unwrap();
}

/// Story: the daemon comes back, and finishes a removal on its own, while a request asks for the same.
#[test]
fn two_who_remove_the_same_cgroup_do_not_disturb_each_other() {
    let tree = Tree::new("twice");
    for _ in 0..100 {
        let container = tree.create("container");
        let mut child = shell_in(&container, "sleep 1000 & exec sleep 1000");
        wait_until("it has joined", || !container.pids().unwrap().is_empty());
        let both = Barrier::new(2);
        std::thread::scope(|scope| {
            let remove = || {
                both.wait();
                assert_eq!(container.kill().unwrap(), Vec::<i32>::new());
                container.remove().unwrap();
            };
            scope.spawn(remove);
            scope.spawn(remove);
        });
        assert!(!container.exists());
        child.wait().unwrap();
    }
}

/// Story: the last container of one pod goes, and takes the empty parent with it, while another is being made below
/// the same parent.
#[test]
fn making_and_removing_below_one_parent_do_not_disturb_each_other() {
    let tree = Tree::new("race");
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let tree = &tree;
            scope.spawn(move || {
                for round in 0..50 {
                    let cgroup = tree.create(&format!("shared/deep/{worker}-{round}"));
                    cgroup.remove().unwrap();
                    cgroup.remove_empty_parents(tree.top.path()).unwrap();
                }
            });
        }
    });
    assert!(
        !Cgroup::open(&tree.hierarchy, &format!("{}/shared", tree.top.path()))
            .unwrap()
            .exists()
    );
}

/// The claim of the quick way in: no grace period is waited for, however long nothing was moved.
#[test]
fn joining_by_tasks_files_is_quick() {
    let tree = Tree::new("join");
    let container = tree.create("c");
    let started = Instant::now();
    let fds = container.join_fds().unwrap();
    println!("files opened: {:?}", started.elapsed());
    assert_eq!(fds.directory.is_some(), tree.hierarchy.cgroup2().is_some());
    assert_eq!(fds.tasks.len(), tree.hierarchy.v1_roots().count());
    let tasks = fds.tasks;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec sleep 1000"]);
    // SAFETY: as in `shell_in`.
    unsafe {
        command.pre_exec(move || {
            let joined = tasks
                .iter()
                .all(|fd| libc::write(fd.as_raw_fd(), b"0".as_ptr().cast(), 1) == 1);
            if joined {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    let started = Instant::now();
    let mut child = command.spawn().unwrap();
    println!("spawned and joined: {:?}", started.elapsed());
    let joined = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    for line in joined.lines().filter(|line| !line.starts_with("0::")) {
        assert!(line.ends_with(container.path()), "{line} of {joined}");
    }
    container.kill().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}
