//! Filters tried out: a child installs one, makes system calls, and reports each one's error.

use std::os::raw::c_long;

use crisp::container::spec::SeccompSource;
use crisp::container::spec::seccomp::SeccompCache;

use super::{ALL, SYS_ADMIN, SYS_CHROOT};

/// A system call: number and arguments.
pub type Call = (c_long, [c_long; 4]);

pub fn call(number: c_long) -> Call {
    (number, [0; 4])
}

pub fn with(number: c_long, first: c_long) -> Call {
    (number, [first, 0, 0, 0])
}

/// Makes the calls in a child behind the filter; 0 or the error number of each.
fn errors(filter: &[u8], calls: &[Call]) -> Vec<i32> {
    assert_eq!(filter.len() % 8, 0);
    let instructions: Vec<libc::sock_filter> = filter
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).unwrap(),
        filter: instructions.as_ptr().cast_mut(),
    };
    let mut results = vec![-1i32; calls.len()];
    let (mut reader, writer) = std::io::pipe().unwrap();
    let out = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: the child makes system calls only, on memory made before the fork, and ends by _exit.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) != 0
            {
                libc::_exit(1);
            }
            for ((number, a), result) in calls.iter().zip(results.iter_mut()) {
                *result = match libc::syscall(*number, a[0], a[1], a[2], a[3]) {
                    // A child that clone made.
                    0 if *number == libc::SYS_clone => libc::_exit(0),
                    -1 => *libc::__errno_location(),
                    _ => 0,
                };
            }
            libc::write(out, results.as_ptr().cast(), results.len() * 4);
            libc::_exit(0);
        }
        drop(writer);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the child ended with {status:#x}"
        );
        bytes
            .chunks_exact(4)
            .map(|b| i32::from_ne_bytes(b.try_into().unwrap()))
            .collect()
    }
}

pub fn check(filter: &[u8], cases: &[(&str, Call, i32)]) {
    let calls: Vec<Call> = cases.iter().map(|(_, call, _)| *call).collect();
    for ((what, _, expected), found) in cases.iter().zip(errors(filter, &calls)) {
        assert_eq!(found, *expected, "{what}");
    }
}

#[test]
fn the_runtimes_own_profile_call_by_call() {
    let filter = SeccompCache::default()
        .compile(&SeccompSource::RuntimeDefault, SYS_CHROOT)
        .unwrap()
        .program;
    let newuts = libc::CLONE_NEWUTS as c_long;
    let sigchld = libc::SIGCHLD as c_long;
    check(
        &filter,
        &[
            ("getpid", call(libc::SYS_getpid), 0),
            ("close of nothing", with(libc::SYS_close, -1), libc::EBADF),
            ("fchmodat2 (452)", with(452, -1), libc::EFAULT),
            ("futex_wake (454)", with(454, 0), libc::EINVAL),
            ("mseal (462)", call(462), 0),
            ("file_getattr (468)", call(468), libc::ENOSYS),
            ("lsm_list_modules (461)", call(461), libc::EFAULT),
            ("a call of the future (472)", call(472), libc::ENOSYS),
            ("the last number that may be one", call(1023), libc::ENOSYS),
            ("clone3", call(libc::SYS_clone3), libc::ENOSYS),
            ("clone of a process", with(libc::SYS_clone, sigchld), 0),
            (
                "clone of a namespace",
                with(libc::SYS_clone, newuts | sigchld),
                libc::EPERM,
            ),
            ("unshare of nothing", with(libc::SYS_unshare, 0), 0),
            ("unshare of a namespace", with(libc::SYS_unshare, newuts), libc::EPERM),
            (
                "unshare of the time namespace",
                with(libc::SYS_unshare, 0x80),
                libc::EPERM,
            ),
            ("setns", with(libc::SYS_setns, -1), libc::EPERM),
            ("mount", call(libc::SYS_mount), libc::EPERM),
            ("open_tree", call(libc::SYS_open_tree), libc::EPERM),
            ("bpf", call(libc::SYS_bpf), libc::EPERM),
            ("io_uring_setup", call(libc::SYS_io_uring_setup), libc::EPERM),
            ("keyctl", call(libc::SYS_keyctl), libc::EPERM),
            ("userfaultfd", call(libc::SYS_userfaultfd), libc::EPERM),
            ("sethostname", call(libc::SYS_sethostname), libc::EPERM),
            ("chroot with its capability", call(libc::SYS_chroot), libc::EFAULT),
            ("personality Linux", with(libc::SYS_personality, 0), 0),
            ("personality asked", with(libc::SYS_personality, 0xffff_ffff), 0),
            (
                "personality without randomised addresses",
                with(libc::SYS_personality, 0x004_0000),
                libc::EPERM,
            ),
            ("ptrace", with(libc::SYS_ptrace, 99), libc::ESRCH),
            (
                "socket unix",
                with(libc::SYS_socket, libc::AF_UNIX as c_long),
                libc::ESOCKTNOSUPPORT,
            ),
            (
                "socket alg",
                with(libc::SYS_socket, libc::AF_ALG as c_long),
                libc::EPERM,
            ),
            (
                "socket vsock",
                with(libc::SYS_socket, libc::AF_VSOCK as c_long),
                libc::EPERM,
            ),
            (
                "socket alg as far as the kernel looks",
                with(libc::SYS_socket, 1 << 32 | libc::AF_ALG as c_long),
                libc::EPERM,
            ),
            ("socket of an unknown family", with(libc::SYS_socket, 99), libc::EPERM),
        ],
    );
}

#[test]
fn capabilities_bring_calls_back() {
    let cache = SeccompCache::default();
    let without = cache.compile(&SeccompSource::RuntimeDefault, 0).unwrap();
    check(&without.program, &[("chroot", call(libc::SYS_chroot), libc::EPERM)]);
    let filter = cache.compile(&SeccompSource::RuntimeDefault, SYS_ADMIN).unwrap();
    check(
        &filter.program,
        &[
            ("setns", with(libc::SYS_setns, -1), libc::EBADF),
            ("mount", call(libc::SYS_mount), libc::EFAULT),
            ("clone3", call(libc::SYS_clone3), libc::EINVAL),
            ("open_tree_attr (467)", with(467, -1), libc::EINVAL),
            ("chroot", call(libc::SYS_chroot), libc::EPERM),
            ("io_uring_setup", call(libc::SYS_io_uring_setup), libc::EPERM),
        ],
    );
    let all = cache.compile(&SeccompSource::RuntimeDefault, ALL).unwrap();
    check(&all.program, &[("chroot", call(libc::SYS_chroot), libc::EFAULT)]);
}

/// The number that the C library uses for the 32-bit view of a call is looked at by that architecture's rules.
#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_are_filtered_by_their_own_numbers() {
    use std::arch::asm;
    let filter = SeccompCache::default()
        .compile(&SeccompSource::RuntimeDefault, 0)
        .unwrap()
        .program;
    // getpid is 20, mount 21, unshare 310, rt_tgsigqueueinfo 335 (uretprobe of x86-64), chroot 61, a future one 472.
    let calls = [20, 21, 310, 61, 472, 335];
    let instructions: Vec<[u8; 8]> = filter.chunks_exact(8).map(|b| b.try_into().unwrap()).collect();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let out = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: as in `errors`; the inline system calls take no pointers.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            let program = libc::sock_fprog {
                len: instructions.len() as u16,
                filter: instructions.as_ptr().cast_mut().cast(),
            };
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) != 0 {
                libc::_exit(1);
            }
            let mut results = [0i32; 6];
            for (number, result) in calls.iter().zip(results.iter_mut()) {
                let mut value: i64 = *number;
                // unshare(CLONE_NEWUTS); the others have no use for the argument.
                asm!("push rbx", "mov ebx, {flags:e}", "int 0x80", "pop rbx",
                     flags = in(reg) 0x0400_0000, inout("rax") value,
                     in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0);
                *result = value as i32;
            }
            libc::write(out, results.as_ptr().cast(), 24);
            libc::_exit(0);
        }
        drop(writer);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the child ended with {status:#x}"
        );
        let results: Vec<i32> = bytes
            .chunks_exact(4)
            .map(|b| i32::from_ne_bytes(b.try_into().unwrap()))
            .collect();
        assert!(results[0] > 0, "getpid");
        assert_eq!(results[1..5], [-libc::EPERM, -libc::EPERM, -libc::EPERM, -libc::ENOSYS]);
        assert_eq!(results[5], -libc::EFAULT, "rt_tgsigqueueinfo is allowed");
    }
}
