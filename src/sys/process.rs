//! Making processes out of a program that has one thread, and attributes of the calling process.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::failed;

/// Which side of [`SingleThread::fork`] this is.
pub enum Forked {
    /// The caller, with the child's pid.
    Parent(i32),
    /// The child; it must end in `execve` or [`exit_now`].
    Child,
}

/// Proof that the program has one thread, without which a forked child may not allocate.
pub struct SingleThread(());

/// linux/sched.h; the constant of the libc crate is of too small a type.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

impl SingleThread {
    /// Checks it. Whoever holds the proof must never start a thread.
    pub fn claim() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self(()))
        } else {
            Err(io::Error::other(format!("{threads} threads where one was expected")))
        }
    }

    /// Forks.
    pub fn fork(&self) -> io::Result<Forked> {
        // SAFETY: there is one thread (the proof), so the child's locks are all free.
        match unsafe { libc::fork() } {
            -1 => Err(failed("fork", io::Error::last_os_error())),
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(pid)),
        }
    }

    /// As [`SingleThread::fork`], the child being born in the cgroup2 cgroup whose directory `cgroup` is: unlike a move
    /// through cgroup.procs that waits for nobody (clone3(2), CLONE_INTO_CGROUP).
    pub fn fork_into(&self, cgroup: Option<&OwnedFd>) -> io::Result<Forked> {
        let Some(cgroup) = cgroup else {
            return self.fork();
        };
        // SAFETY: the structure is of plain integers, for which zero is "nothing asked".
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = cgroup.as_raw_fd() as u64;
        // SAFETY: there is one thread, so the child's locks are all free; without CLONE_VM the child has a copy of memory
        // and stack, as after fork(2); `args` lives across the call and its size is given.
        match unsafe { libc::syscall(libc::SYS_clone3, &args, std::mem::size_of::<libc::clone_args>()) } {
            -1 => Err(failed("fork into a cgroup", io::Error::last_os_error())),
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(pid as i32)),
        }
    }

    /// Forks a child of this process's parent: a sibling. Ends with SIGCHLD to that parent.
    pub fn fork_sibling(&self) -> io::Result<Forked> {
        // With CLONE_PARENT the exit signal is this process's own; the kernel refuses another one.
        // SAFETY: there is one thread; without CLONE_VM the child has a copy of memory and stack, as after fork(2).
        match unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT, 0, 0, 0, 0) } {
            -1 => Err(failed("clone a sibling", io::Error::last_os_error())),
            0 => Ok(Forked::Child),
            pid => Ok(Forked::Parent(pid as i32)),
        }
    }
}

/// What a borrower of this process's memory is to do, and where it finds its pid.
#[cfg(feature = "monitor")]
struct Loan<F> {
    work: Option<F>,
    pid: libc::pid_t,
}

/// A stack of its own for who borrows this process's memory, with a page below it that nobody may touch.
#[cfg(feature = "monitor")]
struct Stack {
    from: *mut libc::c_void,
}

#[cfg(feature = "monitor")]
impl Stack {
    /// As large as that of a program; what is not touched is not there.
    const SIZE: usize = 8 << 20;
    const GUARD: usize = 64 << 10;

    fn new() -> io::Result<Self> {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let from = unsafe { libc::mmap(std::ptr::null_mut(), Self::SIZE, libc::PROT_NONE, kind, -1, 0) };
        if from == libc::MAP_FAILED {
            return Err(failed("map a stack", io::Error::last_os_error()));
        }
        let stack = Self { from };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is inside the mapping, which is nobody else's.
        if unsafe { libc::mprotect(stack.from.add(Self::GUARD), Self::SIZE - Self::GUARD, access) } != 0 {
            return Err(failed("open up a stack", io::Error::last_os_error()));
        }
        Ok(stack)
    }

    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one past the end of the mapping; its size is a multiple of every alignment that is asked of a stack.
        unsafe { self.from.add(Self::SIZE) }
    }
}

#[cfg(feature = "monitor")]
impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and who ran on it has ended or executes another program.
        unsafe { libc::munmap(self.from, Self::SIZE) };
    }
}

#[cfg(feature = "monitor")]
impl SingleThread {
    /// Makes a sibling of this process (a child of its parent) that does `work`, and ends if that returns. It is
    /// told its pid as this process's pid namespace counts it, which need not be its own.
    ///
    /// The sibling has its own descriptors, but this process's memory; this process rests until it executes or has ended.
    /// Nothing is copied, then, but `work` leaves this process's memory as it happens: the caller should have nothing more to
    /// do than to end. Errors: clone(2).
    pub fn lend_to_sibling<F: FnOnce(i32)>(&self, work: F) -> io::Result<()> {
        extern "C" fn begin<F: FnOnce(i32)>(loan: *mut libc::c_void) -> libc::c_int {
            // SAFETY: it is the loan below, whose owner rests and does not look at it until this process is another's or gone.
            let loan = unsafe { &mut *loan.cast::<Loan<F>>() };
            if let Some(work) = loan.work.take() {
                work(loan.pid);
            }
            0
        }
        let stack = Stack::new()?;
        let mut loan = Loan {
            work: Some(work),
            pid: 0,
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
        let at = &raw mut loan;
        // SAFETY: there is one thread, and it does not go on before the new process has left this memory (CLONE_VFORK): at any
        // time one of the two runs on it, on a stack of its own. `loan` and the stack outlive the call. The pid is written
        // before the new process begins.
        let made = unsafe { libc::clone(begin::<F>, stack.top(), flags, at.cast(), &raw mut (*at).pid) };
        if made == -1 {
            return Err(failed("clone a sibling", io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// Ends this process at once: no destructors, no exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Leaves the namespaces of `flags` (CLONE_NEW*) for new ones.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no CLONE_VM or the like is among the flags, so memory stays as it is.
    if unsafe { libc::unshare(flags) } == 0 {
        Ok(())
    } else {
        Err(failed("unshare", io::Error::last_os_error()))
    }
}

/// Enters the namespace `fd` of kind `flag` (CLONE_NEW*), or those named by `flag` of the process `fd` is a pidfd of.
pub fn enter(fd: impl AsFd, flag: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::setns(fd.as_fd().as_raw_fd(), flag) } == 0 {
        Ok(())
    } else {
        Err(failed("setns", io::Error::last_os_error()))
    }
}

/// Sets every signal to its default action, real-time signals included. An execve keeps what is ignored and resets the
/// rest, so what this process and its children execute starts with the defaults.
pub fn reset_signals() {
    for signo in 1..=64 {
        if signo == libc::SIGKILL || signo == libc::SIGSTOP {
            continue;
        }
        // The C library keeps 32 and 33 for itself and refuses them; hence the system call. Its structure is
        // handler, flags, restorer, mask: all zero is SIG_DFL.
        let default = [0_u64; 4];
        // SAFETY: the structure is as large as the kernel's and lives across the call; no old action is asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signo,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                8,
            )
        };
    }
}

/// Unblocks every signal.
pub fn unblock_signals() {
    let none = 0_u64;
    // SAFETY: the set is eight bytes, as the size says.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            8,
        )
    };
}

/// Blocks every signal and returns a descriptor that reports SIGCHLD.
pub fn signal_fd() -> io::Result<OwnedFd> {
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    SigSet::all()
        .thread_block()
        .map_err(|e| failed("block signals", io::Error::from(e)))?;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    let fd = SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| failed("signalfd", io::Error::from(e)))?;
    fd.as_fd().try_clone_to_owned()
}

/// Whether others may trace this process and read its /proc files.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, u64::from(dumpable))
}

/// This process gets `signo` when its parent dies; 0 for none.
pub fn set_parent_death_signal(signo: i32) -> io::Result<()> {
    prctl("PR_SET_PDEATHSIG", libc::PR_SET_PDEATHSIG, signo as u64)
}

/// Has what `command` executes die with the thread that starts it.
#[cfg(feature = "monitor")]
pub fn tie_to_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and execve there is one system call and no allocation.
    unsafe { command.pre_exec(|| set_parent_death_signal(libc::SIGKILL)) };
}

/// Has what `command` executes see a copy of this process's mounts, in which nothing is mounted on `hidden`. What it mounts goes
/// with it.
#[cfg(feature = "daemon")]
pub fn give_own_mounts(command: &mut std::process::Command, hidden: Vec<std::ffi::CString>) {
    use std::os::unix::process::CommandExt;
    let last = || Err(io::Error::last_os_error());
    let enter = move || {
        // SAFETY: no CLONE_VM or the like is among the flags; the strings are literals, or live in the closure; null means "none".
        unsafe {
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return last();
            }
            let flags = libc::MS_PRIVATE | libc::MS_REC;
            let none = std::ptr::null();
            if libc::mount(none, c"/".as_ptr(), none, flags, std::ptr::null()) != 0 {
                return last();
            }
            for path in &hidden {
                if libc::umount2(path.as_ptr(), libc::MNT_DETACH) != 0 {
                    return last();
                }
            }
        }
        Ok(())
    };
    // SAFETY: between fork and execve there are system calls only, and no allocation.
    unsafe { command.pre_exec(enter) };
}

/// Orphans below this process become its children.
pub fn set_subreaper() -> io::Result<()> {
    prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, 1)
}

/// From here on, nothing that is executed gives new privileges.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Whether permitted capabilities outlive a change of user.
pub fn set_keep_capabilities(keep: bool) -> io::Result<()> {
    prctl("PR_SET_KEEPCAPS", libc::PR_SET_KEEPCAPS, u64::from(keep))
}

/// Names this process (`comm`, at most 15 bytes).
pub fn set_name(name: &CStr) {
    // SAFETY: the name is a string that lives across the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

fn prctl(name: &str, option: libc::c_int, value: u64) -> io::Result<()> {
    // SAFETY: the options used here take a number; no memory is involved.
    if unsafe { libc::prctl(option, value, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(failed(name, io::Error::last_os_error()))
    }
}

/// Sets the supplementary groups, then all group ids, then all user ids, of this (the only) thread.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer is to `groups.len()` ids that live across the call. The bare calls are meant: the C
    // library's would signal other threads, of which there are none.
    unsafe {
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) != 0 {
            return Err(failed("setgroups", io::Error::last_os_error()));
        }
        if libc::syscall(libc::SYS_setresgid, gid, gid, gid) != 0 {
            return Err(failed("setresgid", io::Error::last_os_error()));
        }
        if libc::syscall(libc::SYS_setresuid, uid, uid, uid) != 0 {
            return Err(failed("setresuid", io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Makes this thread user and group `id` as far as files go (setfsuid(2)), without root's privileges over them unless
/// that is root.
pub fn set_files_id(id: u32) {
    // SAFETY: numbers only. The group first: without privilege it could not be changed any more.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, id);
        libc::syscall(libc::SYS_setfsuid, id);
    }
}

/// Raises the soft limit of open files of this process to its hard one: the usual soft limit is for programs that know
/// select(2), and a daemon has some descriptors for every pod.
pub fn allow_all_descriptors() -> io::Result<()> {
    let (soft, hard) = limit_of(libc::RLIMIT_NOFILE).ok_or_else(io::Error::last_os_error)?;
    if soft < hard {
        prlimit(libc::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// Limits resource number `resource` (RLIMIT_*) of this process; `u64::MAX` is no limit. Where this process may not raise
/// its own hard limit that high, the limits are cut to it.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    match (prlimit(resource, soft, hard), limit_of(resource)) {
        (Err(e), Some((_, most))) if e.kind() == io::ErrorKind::PermissionDenied => {
            prlimit(resource, soft.min(most), hard.min(most))
        }
        (done, _) => done,
    }
}

fn prlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the structure lives across the call; the old limit is not asked for.
    let done = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null::<u8>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(failed("prlimit", io::Error::last_os_error()))
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    /// As a shell says it: the exit code, or 128 and the signal.
    pub code: i32,
    /// The signal that killed it, or 0.
    pub signal: i32,
}

/// Reaps one child that has ended, if there is one.
pub fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        Ended {
            pid,
            code: 128 + signal,
            signal,
        }
    } else {
        Ended {
            pid,
            code: libc::WEXITSTATUS(status),
            signal: 0,
        }
    };
    Some(ended)
}

/// Returns free memory to the kernel.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only the allocator's own free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A connected pair of sockets that keep the bounds of messages, close-on-exec.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed("socketpair", e))
}

/// The window size of the terminal `terminal`, in characters.
pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal, size).map_err(|e| failed("set the window size", e))
}

/// Raises the hard limit of `resource` as far as this process may, so that a later and less privileged [`set_limit`] works.
pub fn raise_limit(resource: u32, soft: u64, hard: u64) {
    if limit_of(resource).is_some_and(|(_, now)| now < hard) {
        // What is not allowed here is cut by `set_limit`.
        let _ = prlimit(resource, soft, hard);
    }
}

fn limit_of(resource: u32) -> Option<(u64, u64)> {
    let mut now = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives across the call; no new limit is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::null::<libc::rlimit64>(),
            &raw mut now,
        )
    };
    (done == 0).then_some((now.rlim_cur, now.rlim_max))
}

/// Gives up the pages of the program's own code and constants. What is used again is mapped again; the rest, most of it
/// touched once at the start or by chance of its neighbourhood, stays out.
#[cfg(feature = "monitor")]
pub fn release_code() {
    unsafe extern "C" {
        // The linker's names for where the program begins and where its code ends; what is written to comes after.
        static __executable_start: u8;
        static etext: u8;
    }
    const PAGE: usize = 4096;
    let from = (&raw const __executable_start as usize).next_multiple_of(PAGE);
    let to = (&raw const etext as usize) / PAGE * PAGE;
    if to > from {
        // SAFETY: the range holds only what was mapped from the program's file and is never written to, so that what is
        // dropped comes back as it was. The kernel checks the range.
        unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) };
    }
}
