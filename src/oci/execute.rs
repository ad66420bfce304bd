//! The last steps inside the container: from root with every capability to the program as its policy says.
//!
//! The order is the point. Whatever needs a privilege comes before it is dropped; the filter is loaded last, with
//! nothing between it and execve. Without no_new_privs loading needs CAP_SYS_ADMIN, so that one is kept until
//! the execve, which takes it: it is in neither the bounding nor the ambient set.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fchown, fstat, open, stat};

use super::late::{self, LateMount};
use super::line::{self, Refusal};
use super::{Policy, chain};
use crate::sys::{capability, fd, process, seccomp};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most that is read of a container's own /etc/passwd, in bytes.
const PASSWD_LIMIT: u64 = 1 << 20;

/// Why the program was not executed.
struct Failure {
    kind: Refusal,
    why: String,
}

impl Failure {
    /// What a shell would exit with.
    fn code(&self) -> i32 {
        match self.kind {
            Refusal::ProgramNotFound => 127,
            Refusal::ProgramDenied => 126,
            Refusal::Failed => 128,
        }
    }
}

fn failing(op: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure {
        kind: Refusal::Failed,
        why: format!("{op}: {source}"),
    }
}

/// Attaches what is left to mount, waits for the word on `line`, then becomes the program.
pub fn run(policy: &Policy, line: &OwnedFd, late_mounts: Vec<LateMount>) -> ! {
    // Whoever asks for the start is told of a failure: before, nobody listens.
    let mounted = late::attach(late_mounts).map_err(failing("mount"));
    // While it waits, others in a shared pid namespace can look at it: it holds nothing that is not the program's.
    let closed = fd::close_all_but(&[line.as_raw_fd()]).map_err(failing("close descriptors"));
    line::say_resting(line);
    if !line::wait_for_start(line) {
        process::exit_now(128);
    }
    let failure = match mounted.and(closed).and_then(|()| become_program(policy)) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    line::say_refused(line, failure.kind, &failure.why);
    process::exit_now(failure.code())
}

enum Never {}

fn become_program(policy: &Policy) -> Result<Never, Failure> {
    process::set_parent_death_signal(0).map_err(failing("clear the parent death signal"))?;
    rustix::process::umask(Mode::from_raw_mode(policy.umask & 0o777));
    own_stdio(policy.uid);
    for &(resource, soft, hard) in &policy.limits {
        process::set_limit(resource, soft, hard).map_err(failing("set a resource limit"))?;
    }
    let denied = enter_directory(&policy.cwd, true)?;
    let env = environment(policy);

    let needs_admin = !policy.seccomp.is_empty() && !policy.no_new_privs;
    let extra = if needs_admin { capability::SYS_ADMIN } else { 0 };
    capability::bound(policy.bounding).map_err(failing("limit the bounding set"))?;
    process::set_keep_capabilities(true).map_err(failing("keep capabilities"))?;
    process::set_ids(policy.uid, policy.gid, &policy.groups).map_err(failing("become the user"))?;
    process::set_keep_capabilities(false).map_err(failing("keep no capabilities"))?;
    capability::set(capability::Sets {
        effective: policy.effective | extra,
        permitted: policy.permitted | policy.effective | extra,
        inheritable: policy.inheritable,
    })
    .map_err(failing("set capabilities"))?;
    capability::set_ambient(policy.ambient).map_err(failing("set ambient capabilities"))?;
    if denied {
        enter_directory(&policy.cwd, false)?;
    }
    verify_directory()?;
    let program = find_program(policy, &env)?;
    if policy.no_new_privs {
        process::set_no_new_privileges().map_err(failing("forbid new privileges"))?;
    }

    let args = strings(&policy.args)?;
    let env = strings(&env)?;
    let path = CString::new(program.as_os_str().as_bytes()).map_err(|_| zero_byte())?;
    process::unblock_signals();
    let error = seccomp::load_and_execute(&policy.seccomp, policy.seccomp_flags, &path, &args, &env);
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT) => Refusal::ProgramNotFound,
        Some(libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR | libc::ENOTDIR | libc::ETXTBSY) => {
            Refusal::ProgramDenied
        }
        _ => Refusal::Failed,
    };
    let hint = if kind == Refusal::ProgramNotFound {
        " (the file is there: its interpreter is not)"
    } else {
        ""
    };
    Err(Failure {
        kind,
        why: format!("execute {}: {error}{hint}", program.display()),
    })
}

fn zero_byte() -> Failure {
    Failure {
        kind: Refusal::Failed,
        why: "an argument or variable holds a zero byte".to_owned(),
    }
}

fn strings(list: &[Vec<u8>]) -> Result<Vec<CString>, Failure> {
    list.iter()
        .map(|text| CString::new(text.as_slice()).map_err(|_| zero_byte()))
        .collect()
}

/// Pipes and terminals become the user's, so that it can reopen /dev/stdout; and what is the host's /dev/null becomes the
/// container's. What does not work (a file of somebody else's, a user outside the namespace) stays as it is.
fn own_stdio(uid: u32) {
    for number in 0..3 {
        let stdio = fd::standard(number);
        let Ok(status) = fstat(stdio) else { continue };
        if is_null(&status) {
            if let Ok(null) = open(
                "/dev/null",
                OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
            ) && fstat(&null).is_ok_and(|inside| is_null(&inside))
            {
                let _ = fd::place(&null, number);
            }
        } else if status.st_uid != uid {
            let _ = fchown(stdio, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

fn is_null(status: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice && status.st_rdev == rustix::fs::makedev(1, 3)
}

/// Enters the working directory, making it if it is missing and `make`. Returns whether only the user may enter.
fn enter_directory(cwd: &Path, make: bool) -> Result<bool, Failure> {
    let cwd = if cwd.as_os_str().is_empty() {
        Path::new("/")
    } else {
        cwd
    };
    let says = |e: io::Error| Failure {
        kind: Refusal::Failed,
        why: format!("enter directory {}: {e}", cwd.display()),
    };
    if !cwd.is_absolute() {
        return Err(says(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not an absolute path",
        )));
    }
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::NOENT) if make => {
            std::fs::create_dir_all(cwd).map_err(says)?;
            rustix::process::chdir(cwd).map_err(|e| says(e.into()))?;
            Ok(false)
        }
        // Root may be less than the user on a network file system.
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) if make => Ok(true),
        Err(e) => Err(says(e.into())),
    }
}

/// CVE-2024-21626: a directory outside the container's root has no path in it.
fn verify_directory() -> Result<(), Failure> {
    let cwd = rustix::process::getcwd(Vec::new()).map_err(|e| failing("find the working directory")(e.into()))?;
    if cwd.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Failure {
        kind: Refusal::Failed,
        why: "the working directory is outside the container".to_owned(),
    })
}

fn variable<'a>(env: &'a [Vec<u8>], name: &[u8]) -> Option<&'a [u8]> {
    env.iter()
        .rev()
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

/// The policy's environment, with HOME in any case.
fn environment(policy: &Policy) -> Vec<Vec<u8>> {
    let mut env = policy.env.clone();
    if variable(&env, b"HOME").is_none() {
        let home = home_of(policy.uid).unwrap_or_else(|| b"/".to_vec());
        env.push([b"HOME=", home.as_slice()].concat());
    }
    env
}

/// The home directory of `uid` in the container's own /etc/passwd, which may be anything.
fn home_of(uid: u32) -> Option<Vec<u8>> {
    use std::io::Read;
    let passwd = open(
        "/etc/passwd",
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()?;
    if FileType::from_raw_mode(fstat(&passwd).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(passwd)
        .take(PASSWD_LIMIT)
        .read_to_end(&mut text)
        .ok()?;
    let uid = uid.to_string();
    text.split(|&b| b == b'\n').find_map(|entry| {
        let fields: Vec<&[u8]> = entry.split(|&b| b == b':').collect();
        (fields.len() >= 6 && fields[2] == uid.as_bytes() && !fields[5].is_empty()).then(|| fields[5].to_vec())
    })
}

/// Where the program is: as given if it holds a slash, else the first of PATH that can be executed.
fn find_program(policy: &Policy, env: &[Vec<u8>]) -> Result<PathBuf, Failure> {
    let name = policy
        .args
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Failure {
            kind: Refusal::Failed,
            why: "there is no program to execute".to_owned(),
        })?;
    let shown = String::from_utf8_lossy(name);
    let name = Path::new(OsStr::from_bytes(name));
    let refuse = |kind, why: &str| Failure {
        kind,
        why: format!("execute {shown}: {why}"),
    };
    if name.as_os_str().as_bytes().contains(&b'/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(e) => Err(refuse(kind_of(&e), &chain(&e))),
        };
    }
    let path = variable(env, b"PATH").unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for directory in path.split(|&b| b == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(e) if kind_of(&e) == Refusal::ProgramDenied => denied = Some(e),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some(e) => refuse(Refusal::ProgramDenied, &chain(&e)),
        None => refuse(
            Refusal::ProgramNotFound,
            "no such file or directory: executable file not found in $PATH",
        ),
    })
}

fn kind_of(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Refusal::ProgramDenied,
        _ => Refusal::ProgramNotFound,
    }
}

fn executable(path: &Path) -> io::Result<()> {
    let status = stat(path).map_err(|e| match e {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => {
            io::Error::new(io::ErrorKind::NotFound, "no such file or directory")
        }
        other => other.into(),
    })?;
    let denied = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile if status.st_mode & 0o111 == 0 => denied("permission denied: not executable"),
        FileType::RegularFile => Ok(()),
        _ => denied("permission denied: not a regular file"),
    }
}
