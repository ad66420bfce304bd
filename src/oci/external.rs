//! Containers and processes in them, by the command line of an OCI runtime: runc, crun and those that take the same
//! commands and options.
//!
//! A runtime wants paths where libcontainer is given descriptors. It gets them in a mount namespace of its own: a copy of the
//! node's, private, in which the daemon's detached mounts and the pod's namespaces are attached on the stage, a tmpfs on a
//! directory of the bundle. It ends with the runtime; what the container has of it are its own mounts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio as Stream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::{Creation, OciError, Stdio, Waiting};
use crate::sys::{failed, mount, pidfd, process, scm};

/// Where everything of one run is, relative to the bundle, which is the working directory: a socket's address is short.
const STAGE: &str = "stage";
const ROOT: &str = "stage/root";
const PID: &str = "stage/pid";
const LOG: &str = "stage/log";
const CONSOLE: &str = "stage/console";
const PROCESS: &str = "stage/process.json";
const CONFIG: &str = "config.json";

/// How long one run of a runtime may take: less than the daemon waits.
const DEADLINE: Duration = Duration::from_secs(90);

/// The most that is read of a runtime's log, in bytes.
const LOG_LIMIT: u64 = 64 << 10;

/// Where a runtime finds programs of its own: it has no other variable.
const PATH_VARIABLE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An OCI runtime, and what it is run with for one container.
#[derive(Debug)]
pub struct Runtime {
    /// Absolute.
    pub program: PathBuf,
    /// What comes before the command.
    pub options: Vec<OsString>,
    /// The bundle, absolute; it has an empty directory `stage`.
    pub bundle: PathBuf,
    /// Mount points that the runtime must not see.
    pub hidden: Vec<PathBuf>,
    /// The mount namespace of the node.
    pub host_mounts: OwnedFd,
}

impl Runtime {
    /// The number of its descriptor.
    pub fn descriptor(&self) -> RawFd {
        self.host_mounts.as_raw_fd()
    }

    /// Makes the container `id`. In a forked child of the monitor.
    ///
    /// Its spec names what is attached here: `<bundle>/stage/root`, `<bundle>/stage/mount-<n>` and `<bundle>/stage/ns-<kind>`.
    pub fn create(self, id: &str, creation: Creation) -> Result<Waiting, OciError> {
        let io = |op| move |source| OciError::Io { op, source };
        self.enter().map_err(io("enter the runtime's mount namespace"))?;
        attach(creation.rootfs.as_fd(), "root").map_err(io("attach the container's root"))?;
        for (index, mount) in creation.mounts.iter().enumerate() {
            let attached = attach_last(mount, &format!("mount-{index}"));
            attached.map_err(|source| OciError::Stage { index, source })?;
        }
        for (kind, namespace) in &creation.namespaces {
            let bound = mount::clone_tree_at(namespace, false);
            let bound = bound.and_then(|bound| attach(bound.as_fd(), &format!("ns-{}", kind.name())));
            bound.map_err(io("attach a namespace of the pod"))?;
        }
        fs::write(CONFIG, &creation.spec).map_err(io("write the bundle"))?;
        drop((creation.rootfs, creation.mounts, creation.namespaces));
        self.make("create", &[], id, creation.stdio)
    }

    /// Starts the container `id`, whose first process is `pid`. In a forked child of the monitor.
    pub fn start(self, id: &str, pid: i32) -> Result<(), OciError> {
        self.enter().map_err(|source| OciError::Io {
            op: "enter the runtime's mount namespace",
            source,
        })?;
        let before = program_of(pid);
        let mut command = self.command("start");
        self.run("start", command.arg(id))?;
        wait_for_another_program(pid, before);
        Ok(())
    }

    /// Starts `process`, as JSON, in the container `id`, in `cgroup` below its own. In a forked child of the monitor.
    pub fn exec(self, id: &str, process: &[u8], cgroup: Option<&str>, stdio: Stdio) -> Result<Waiting, OciError> {
        let io = |op| move |source| OciError::Io { op, source };
        self.enter().map_err(io("enter the runtime's mount namespace"))?;
        fs::write(PROCESS, process).map_err(io("write the process"))?;
        // runc begins in the directory that was the root's.
        fs::create_dir(ROOT).map_err(io("make a directory"))?;
        let mut options = vec!["--detach", "--process", PROCESS];
        options.extend(cgroup.iter().flat_map(|cgroup| ["--cgroup", cgroup]));
        self.make("exec", &options, id, stdio)
    }

    /// Leaves the monitor's room for a copy of the node's mounts with an empty stage.
    fn enter(&self) -> io::Result<()> {
        process::enter(&self.host_mounts, libc::CLONE_NEWNS)?;
        process::unshare(libc::CLONE_NEWNS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|e| failed("make mounts private", e))?;
        for hidden in &self.hidden {
            unmount(hidden, UnmountFlags::DETACH).map_err(|e| failed(&format!("hide {}", hidden.display()), e))?;
        }
        rustix::process::chdir(&self.bundle).map_err(|e| failed("enter the bundle", e))?;
        mount::attach(mount::tmpfs(16 << 20, 0o700)?, CWD, Path::new(STAGE))
    }

    fn command(&self, name: &'static str) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", PATH_VARIABLE);
        command
            .args(&self.options)
            .args(["--log", LOG, "--log-format", "json", name]);
        command
            .stdin(Stream::null())
            .stdout(Stream::null())
            .stderr(Stream::null());
        command
    }

    /// Runs the command `name`, which makes a process.
    fn make(&self, name: &'static str, options: &[&str], id: &str, stdio: Stdio) -> Result<Waiting, OciError> {
        let io = |op| move |source| OciError::Io { op, source };
        let mut command = self.command(name);
        command.args(["--pid-file", PID]).args(options);
        let mut console = None;
        if stdio.terminal {
            console = Some(UnixListener::bind(CONSOLE).map_err(io("listen for the terminal"))?);
            command.args(["--console-socket", CONSOLE]);
        } else {
            let stream = |fd: Option<OwnedFd>| fd.map_or_else(Stream::null, Stream::from);
            command.stdin(stream(stdio.stdin));
            command.stdout(stream(stdio.stdout)).stderr(stream(stdio.stderr));
        }
        self.run(name, command.arg(id))?;
        let pid = fs::read_to_string(PID).map_err(io("read the process's pid"))?;
        let pid = pid
            .trim()
            .parse()
            .map_err(|_| self.failed(name, format!("{pid:?} is not a pid")))?;
        let terminal = console.map(|console| terminal(&console)).transpose();
        let terminal = terminal.map_err(io("receive the terminal"))?;
        Ok(Waiting { pid, terminal })
    }

    /// Runs `command`, called `name`, to its end.
    fn run(&self, name: &'static str, command: &mut Command) -> Result<(), OciError> {
        process::tie_to_parent(command);
        let ended = run_within(command, DEADLINE).map_err(|e| self.failed(name, e.to_string()))?;
        if ended.success() {
            return Ok(());
        }
        let why = last_error(Path::new(LOG)).unwrap_or_else(|| format!("{ended}, and it logged no error"));
        Err(self.failed(name, why))
    }

    fn failed(&self, command: &'static str, why: String) -> OciError {
        OciError::Runtime {
            program: self.program.display().to_string(),
            command,
            why,
        }
    }
}

/// The file that `pid` executes, by device and number. None once it has ended.
fn program_of(pid: i32) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((program.dev(), program.ino()))
}

/// Waits until `pid` executes something else than `before`, or has ended: a runtime says that it has started a container when it
/// has let its first process go, and a signal that came before the execve would meet the runtime's own program.
fn wait_for_another_program(pid: i32, before: Option<(u64, u64)>) {
    const PAUSE: Duration = Duration::from_micros(200);
    const LONGEST: Duration = Duration::from_secs(5);
    let deadline = std::time::Instant::now() + LONGEST;
    while before.is_some() && program_of(pid) == before && std::time::Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
}

/// Attaches `what` on the stage.
fn attach(what: impl AsFd, name: &str) -> io::Result<()> {
    let place = Path::new(STAGE).join(name);
    match FileType::from_raw_mode(fstat(&what)?.st_mode) {
        FileType::Directory => mkdirat(CWD, &place, Mode::RWXU)?,
        _ => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            drop(openat(CWD, &place, flags, Mode::RUSR)?);
        }
    }
    mount::attach(what, CWD, &place)
}

/// As [`attach`], of what may look like a hierarchy of cgroups: runc takes the first that it finds in the mount table for the
/// node's. There the oldest mount comes first, and the daemon's is older than this namespace; a copy is younger, where the
/// kernel makes one of what is attached nowhere (Linux 6.15).
fn attach_last(mount: &OwnedFd, name: &str) -> io::Result<()> {
    match mount::clone_tree_at(mount, true) {
        Ok(copy) => attach(copy, name),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => attach(mount, name),
        Err(e) => Err(e),
    }
}

fn run_within(command: &mut Command, limit: Duration) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let ended = pidfd::open(child.id().cast_signed()).and_then(|pidfd| {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        loop {
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
                Ok(count) => return Ok(count > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    });
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    let status = child.wait()?;
    match ended? {
        true => Ok(status),
        false => Err(io::Error::other(format!("not done within {limit:?}"))),
    }
}

/// The terminal's master: whoever has it sends it before the runtime ends.
fn terminal(console: &UnixListener) -> io::Result<OwnedFd> {
    console.set_nonblocking(true)?;
    let (socket, _) = console.accept()?;
    let (mut name, mut fds) = ([0; 256], Vec::new());
    scm::receive(&socket, &mut name, &mut fds, false)?;
    fds.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The last error in a runtime's log: lines of JSON with `level` and `msg`.
fn last_error(log: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(log).ok()?.take(LOG_LIMIT).read_to_string(&mut text).ok()?;
    text.lines().rev().find_map(error_of)
}

fn error_of(line: &str) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let is_error = matches!(entry.get("level")?.as_str()?, "error" | "fatal");
    is_error.then(|| entry.get("msg")?.as_str().map(|message| message.trim().to_owned()))?
}

#[cfg(test)]
mod tests {
    use super::error_of;

    #[test]
    fn an_error_is_told_from_what_else_a_runtime_logs() {
        let error = r#"{"level":"error","msg":"no such\nthing \n","time":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(error_of(error).as_deref(), Some("no such\nthing"));
        for other in [r#"{"level":"warning","msg":"x"}"#, r#"{"msg":"x"}"#, "not JSON", ""] {
            assert_eq!(error_of(other), None, "{other}");
        }
    }
}
