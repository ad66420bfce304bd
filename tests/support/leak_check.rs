//! What a machine has before and after: whatever crisp makes and must take away again.
//!
//! `Snapshot::take(&scope)` before, the test, then `before.settled(&scope, patience)`: empty, or a line for every thing
//! that came (`+`) or went (`-`). Include with `#[path = "support/leak_check.rs"] mod leak_check;`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where to look, beyond what is looked at always: mounts, links and the nft ruleset of the calling thread's namespaces.
#[derive(Clone, Debug)]
pub struct Scope {
    /// A process whose command line has one of these in it counts, with all its descendants.
    pub commands: Vec<String>,
    /// Cgroups at and below these paths count, in every hierarchy.
    pub cgroups: Vec<String>,
    /// Whether the processes in these cgroups count.
    pub members: bool,
    /// Processes that do not count.
    pub known: Vec<i32>,
    /// Directories whose content counts, all the way down.
    pub directories: Vec<PathBuf>,
    /// Processes whose open files count.
    pub open_files_of: Vec<i32>,
    /// Whether the network namespaces of all processes of the machine count.
    pub all_netns: bool,
}

impl Default for Scope {
    fn default() -> Self {
        Self {
            commands: ["crispd", "crisp-monitor", "crisp-pause"].map(str::to_owned).to_vec(),
            cgroups: vec!["/".to_owned()],
            members: false,
            known: Vec::new(),
            directories: Vec::new(),
            open_files_of: Vec::new(),
            all_netns: false,
        }
    }
}

/// What there is: each thing described in a line that is the same whenever it is looked at, and how often it is there.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    things: BTreeMap<String, usize>,
}

impl Snapshot {
    /// Looks at everything in `scope`.
    pub fn take(scope: &Scope) -> Self {
        let mut snapshot = Self::default();
        snapshot.processes(&scope.commands);
        snapshot.mounts();
        snapshot.cgroups(&scope.cgroups);
        if scope.members {
            snapshot.members(&scope.cgroups, &scope.known);
        }
        snapshot.network(scope.all_netns);
        scope.directories.iter().for_each(|dir| snapshot.directory(dir));
        scope.open_files_of.iter().for_each(|pid| snapshot.open_files(*pid));
        snapshot
    }

    /// What is different in `later`: `+ thing` for each that is new, `- thing` for each that is missing.
    pub fn diff(&self, later: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for thing in self.things.keys().chain(later.things.keys()).collect::<BTreeSet<_>>() {
            let count = |snapshot: &Self| snapshot.things.get(thing).copied().unwrap_or(0);
            let (before, after) = (count(self), count(later));
            match (after.checked_sub(before), before) {
                (Some(0), _) => {}
                // Whoever closes a file leaves nothing.
                (None, _) if thing.starts_with("open file") => {}
                (Some(_), 0) => lines.push(format!("+ {thing}")),
                (Some(_), _) => lines.push(format!("+ {thing} ({before} before, {after} now)")),
                (None, _) => lines.push(format!("- {thing} ({before} before, {after} now)")),
            }
        }
        lines
    }

    /// The difference to now, once it is empty or `patience` is over: what ends in the background gets time to.
    pub fn settled(&self, scope: &Scope, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let lines = self.diff(&Self::take(scope));
            if lines.is_empty() || Instant::now() >= deadline {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn add(&mut self, thing: String) {
        *self.things.entry(thing).or_default() += 1;
    }

    fn processes(&mut self, commands: &[String]) {
        let processes: Vec<Process> = numbers_in("/proc").into_iter().filter_map(Process::read).collect();
        let mut counted: BTreeSet<i32> = BTreeSet::new();
        let own = i32::try_from(std::process::id()).expect("a pid is small");
        for process in &processes {
            if process.pid != own
                && commands
                    .iter()
                    .any(|command| process.command.contains(command.as_str()))
            {
                counted.insert(process.pid);
            }
        }
        loop {
            let more: Vec<i32> = processes
                .iter()
                .filter(|p| counted.contains(&p.parent) && !counted.contains(&p.pid))
                .map(|p| p.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            counted.extend(more);
        }
        for process in processes.iter().filter(|p| counted.contains(&p.pid)) {
            let zombie = if process.zombie { "zombie " } else { "" };
            self.add(format!("{zombie}process {} {}", process.pid, process.command.trim()));
        }
    }

    fn mounts(&mut self) {
        for line in read("/proc/thread-self/mountinfo").lines() {
            let (mount, source) = line.split_once(" - ").unwrap_or((line, ""));
            let mount: Vec<&str> = mount.split(' ').collect();
            let fstype = source.split(' ').next().unwrap_or_default();
            self.add(format!("mount of {fstype} {} at {}", mount[3], mount[4]));
        }
    }

    /// Every process in the cgroups, once, whichever hierarchy it is in.
    fn members(&mut self, paths: &[String], known: &[i32]) {
        let mut members = BTreeSet::new();
        for root in cgroup_roots() {
            for path in paths {
                let top = root.join(path.trim_start_matches('/'));
                for dir in below(&top, &|dir| dir.is_dir()).iter().chain([&top]) {
                    let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                    members.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
                }
            }
        }
        for process in members
            .difference(&known.iter().copied().collect())
            .filter_map(|pid| Process::read(*pid))
        {
            self.add(format!("process {} {}", process.pid, process.command.trim()));
        }
    }

    fn cgroups(&mut self, paths: &[String]) {
        for root in cgroup_roots() {
            for path in paths {
                let top = root.join(path.trim_start_matches('/'));
                if top != root && top.is_dir() {
                    self.add(format!("cgroup {}", top.display()));
                }
                let ours = |dir: &Path| dir.is_dir() && dir.file_name().is_none_or(|name| name != "process_api");
                for dir in below(&top, &ours).into_iter().filter(|dir| dir.is_dir()) {
                    self.add(format!("cgroup {}", dir.display()));
                }
            }
        }
    }

    fn network(&mut self, all_netns: bool) {
        for line in read("/proc/thread-self/net/dev").lines().skip(2) {
            let link = line.split(':').next().unwrap_or_default();
            self.add(format!("link {}", link.trim()));
        }
        let listed = Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .expect("nft is installed");
        assert!(
            listed.status.success(),
            "nft list ruleset: {}",
            String::from_utf8_lossy(&listed.stderr)
        );
        let (mut table, mut chain) = (String::new(), String::new());
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            match (line.starts_with('\t'), line.starts_with("\t\t")) {
                (false, _) => (table, chain) = (line.to_owned(), String::new()),
                (true, false) => chain = line.trim().to_owned(),
                _ => {}
            }
            if line.trim() != "}" {
                self.add(format!("nft {table} {chain} {}", without_counters(line.trim())));
            }
        }
        if all_netns {
            let namespaces = numbers_in("/proc")
                .into_iter()
                .filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok())
                .collect::<BTreeSet<_>>();
            for namespace in namespaces {
                self.add(format!("network namespace {}", namespace.display()));
            }
        }
    }

    fn directory(&mut self, dir: &Path) {
        for path in below(dir, &|_| true) {
            self.add(format!("file {}", path.display()));
        }
    }

    fn open_files(&mut self, pid: i32) {
        let dir = format!("/proc/{pid}/fd");
        for fd in numbers_in(&dir) {
            let Ok(target) = fs::read_link(format!("{dir}/{fd}")) else {
                continue;
            };
            let target = target.display().to_string();
            // socket:[4711]: the number is another one each time.
            let kind = target.split_once(":[").map_or(target.as_str(), |(kind, _)| kind);
            self.add(format!("open file of process {pid}: {kind}"));
        }
    }
}

struct Process {
    pid: i32,
    parent: i32,
    zombie: bool,
    command: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let zombie = fields.next()? == "Z";
        let parent = fields.next()?.parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let mut command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.is_empty() {
            // A zombie has no command line any more.
            command = name.split_once('(')?.1.to_owned();
        }
        Some(Self {
            pid,
            parent,
            zombie,
            command,
        })
    }
}

/// Where cgroup hierarchies are mounted, v1 and v2.
fn cgroup_roots() -> Vec<PathBuf> {
    let mut roots = Vec::new();
    for line in read("/proc/thread-self/mountinfo").lines() {
        let Some((mount, source)) = line.split_once(" - ") else {
            continue;
        };
        let mount: Vec<&str> = mount.split(' ').collect();
        if source.starts_with("cgroup") && mount[3] == "/" {
            roots.push(PathBuf::from(mount[4]));
        }
    }
    roots
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn numbers_in(dir: &str) -> Vec<i32> {
    names_in(Path::new(dir))
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// Everything below `dir` that `wanted` wants, no symlink followed; what vanishes meanwhile is left out.
fn below(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if !wanted(&path) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// `counter packets 12 bytes 720 accept` counts as `counter packets bytes accept`.
fn without_counters(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split(' ') {
        let counted = matches!(words.last(), Some(&"packets" | &"bytes"));
        if !(counted && word.bytes().all(|b| b.is_ascii_digit())) {
            words.push(word);
        }
    }
    words.join(" ")
}
