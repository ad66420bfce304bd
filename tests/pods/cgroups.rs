//! Where the cgroups of pods and containers are, in every hierarchy, and that they go.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fixture::{Container, Pod, resources, sandbox_linux, world};

/// The roots of all hierarchies that the daemon uses.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return vec!["/sys/fs/cgroup".into()];
    }
    let roots = fs::read_to_string("/proc/mounts").unwrap();
    let roots = roots.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    roots
        .filter(|fields| fields[2] == "cgroup2" || fields[2] == "cgroup")
        .map(|fields| PathBuf::from(fields[1]))
        .collect()
}

/// Where a process is, by the name of the hierarchy's directory.
fn members(pid: i64, hierarchy: &Path, path: &str) -> bool {
    let procs = hierarchy.join(path.trim_start_matches('/')).join("cgroup.procs");
    fs::read_to_string(&procs)
        .unwrap_or_default()
        .lines()
        .any(|line| line == pid.to_string())
}

/// Whether a hierarchy counts what is used, or finds who is to be killed: there pause has a cgroup of its own. In the others of v1
/// the pod's will do.
fn counts(hierarchy: &Path) -> bool {
    let name = hierarchy.file_name().unwrap_or_default().to_string_lossy();
    let counting = ["cgroup", "unified", "memory", "pids", "freezer", "cpu", "cpuacct"];
    name.split(',').any(|controller| counting.contains(&controller))
}

fn check(pod: &Pod, container: &Container, parent: &str) {
    let (pause, pid) = (pod.pid(), container.pid());
    for hierarchy in hierarchies() {
        let at = hierarchy.display();
        let own = members(pause, &hierarchy, &format!("{parent}/{}", pod.id));
        let pods = !counts(&hierarchy) && members(pause, &hierarchy, parent);
        assert!(own || pods, "pause is not in {at}{parent}");
        assert!(
            members(pid, &hierarchy, &format!("{parent}/{}", container.id)),
            "the container is not in {at}{parent}"
        );
    }
}

fn left(part: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, part: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(part) {
                    found.push(entry.path());
                }
                walk(&entry.path(), part, found);
            }
        }
    }
    let mut found = Vec::new();
    hierarchies().iter().for_each(|root| walk(root, part, &mut found));
    found
}

/// A pod's cgroup as a kubelet makes it: it is there before the pod, and stays. It goes with this, also when a test fails.
struct Given(String);

impl Given {
    fn new(path: String) -> Self {
        let given = Self(path);
        for dir in given.dirs() {
            fs::create_dir_all(dir).unwrap();
        }
        given
    }

    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        hierarchies().into_iter().map(|root| root.join(&self.0[1..]))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        for (mut dir, root) in self.dirs().zip(hierarchies()) {
            while dir != root {
                let removed = fs::remove_dir(&dir);
                assert!(
                    removed.is_ok() || std::thread::panicking(),
                    "{}: {removed:?}",
                    dir.display()
                );
                dir.pop();
            }
        }
    }
}

#[test]
fn below_the_parent_that_is_given() {
    let given = Given::new(format!("/crisp-test-{}/burstable/pod-given", std::process::id()));
    let parent = given.0.clone();
    let pod = world().pod_with("cgroup-given", |config| {
        sandbox_linux(config).cgroup_parent = parent.clone()
    });
    let container = pod.idle("c", |_| {});
    check(&pod, &container, &parent);
    // ExecSync runs in the container's cgroup, not beside it.
    let seen = container.sh("cat /proc/self/cgroup");
    let lines: Vec<&str> = seen.lines().filter(|line| !line.contains("name=")).collect();
    assert!(
        lines
            .iter()
            .all(|line| line.contains(&container.id) || line.starts_with("0::/")),
        "{seen}"
    );
    let (pod_id, container_id) = (pod.id.clone(), container.id.clone());
    container.stop(0).unwrap();
    container.remove().unwrap();
    assert_eq!(left(&container_id), Vec::<PathBuf>::new());
    drop(pod);
    assert_eq!(left(&pod_id), Vec::<PathBuf>::new());
    for dir in given.dirs() {
        assert!(dir.is_dir(), "the kubelet's own {} is gone", dir.display());
    }
}

#[test]
fn below_a_parent_that_is_not_there_yet() {
    let parent = format!("/crisp-test-made-{}/deep", std::process::id());
    let pod = world().pod_with("cgroup-made", |config| {
        sandbox_linux(config).cgroup_parent = format!("{parent}/")
    });
    check(&pod, &pod.idle("c", |_| {}), &parent);
    drop(pod);
    assert_eq!(
        left(&parent[1..parent.len() - 5]),
        Vec::<PathBuf>::new(),
        "what crisp made goes with the pod"
    );
}

#[test]
fn below_the_daemons_own_parent_by_default() {
    let pod = world().pod("cgroup-default");
    let container = pod.idle("c", |_| {});
    let path = container.cgroup();
    let parent = path
        .strip_suffix(&format!("/{}", container.id))
        .expect(&path)
        .to_owned();
    assert!(parent.ends_with(&pod.id), "{parent}");
    check(&pod, &container, &parent);
    let id = pod.id.clone();
    drop(pod);
    assert_eq!(left(&id), Vec::<PathBuf>::new());
}

/// On cgroup2 by a namespace (cgroup_namespaces(7)), on v1 because its own is all that is mounted.
#[test]
fn a_container_sees_its_own_cgroup_and_cannot_write_it() {
    let pod = world().pod("cgroup-seen");
    let c = pod.idle("c", |config| resources(config).memory_limit_in_bytes = 64 << 20);
    let v2 = hierarchies() == [PathBuf::from("/sys/fs/cgroup")];
    let (dir, limit) = match v2 {
        true => ("/sys/fs/cgroup", "memory.max"),
        false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    };
    if v2 {
        assert_eq!(c.sh("cat /proc/1/cgroup"), "0::/");
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
        assert_ne!(namespace(&c.pid().to_string()), namespace("self"));
    }
    assert_eq!(c.sh(&format!("cat {dir}/{limit}")), "67108864");
    let tried = format!(
        "(mkdir {dir}/x || echo max > {dir}/{limit} || echo 0 > {dir}/cgroup.procs) 2>/dev/null || echo refused"
    );
    assert_eq!(c.sh(&tried), "refused");
}
