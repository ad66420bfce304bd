//! crisp's own profile: what is not listed is denied with EPERM.
//!
//! Denied to every container: keys (not namespaced), io_uring (goes round this filter), userfaultfd, kexec, swap,
//! quotas, module loading, the clock, raw I/O ports, file handles; creating namespaces and everything about mounts;
//! vsock (reaches the hypervisor) and AF_ALG (much kernel code for what user space does as well). Some of it comes
//! back with the capability that the kernel asks for anyway.
//!
//! The measure is the default of containerd: all that it allows is allowed, with the capability that it asks for, but
//! families of sockets that nobody has made yet. What is allowed beyond it can do nothing that an allowed call cannot: unshare of no namespace, signals as a 32-bit program
//! without `rt_` asks for them, uprobe (from the kernel's own trampoline only), and with SYS_ADMIN pivot_root (as CRI-O) and
//! open_tree_attr. What CRI-O allows and containerd does not is denied: keyctl, and without their capabilities mounts,
//! setns, syslog, reboot, fanotify_init, pidfd_getfd and the memory policies.
//!
//! A 32-bit program reaches the families of sockets through socketcall, whose arguments no filter sees; denied, most of
//! them would have no network.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::super::built;
use super::super::security::bit;

/// Always allowed, by what it is about. Names that an architecture does not have do no harm.
const ALLOWED: &[&str] = &[
    // Files and directories.
    "access chdir chmod chown chown32 close close_range creat dup dup2 dup3 faccessat faccessat2 fchdir fchmod",
    "fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 flock fstat fstat64 fstatat64 fstatfs fstatfs64",
    "futimesat getcwd getdents getdents64 lchown lchown32 link linkat lstat lstat64 mkdir mkdirat mknod mknodat",
    "name_to_handle_at newfstatat open openat openat2 readlink readlinkat rename renameat renameat2 rmdir stat",
    "stat64 statfs statfs64 statmount statx listmount symlink symlinkat truncate truncate64 umask unlink unlinkat",
    "utime utimensat utimensat_time64 utimes",
    "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr",
    "lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat",
    "fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    // Reading and writing.
    "_llseek _newselect cachestat copy_file_range epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait",
    "epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 fadvise64 fadvise64_64 arm_fadvise64_64 fallocate",
    "fdatasync fsync ftruncate ftruncate64 io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64",
    "io_setup io_submit ioctl lseek pipe pipe2 poll ppoll ppoll_time64 pread64 preadv preadv2 pselect6",
    "pselect6_time64 pwrite64 pwritev pwritev2 read readahead readv select sendfile sendfile64 splice sync",
    "sync_file_range sync_file_range2 arm_sync_file_range syncfs tee vmsplice write writev",
    // Memory.
    "brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2",
    "mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease",
    "remap_file_pages",
    // Processes and threads.
    "arch_prctl capget capset execve execveat exit exit_group fork get_robust_list get_thread_area getcpu getegid",
    "getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority",
    "getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get",
    "ioprio_set landlock_add_rule landlock_create_ruleset landlock_restrict_self modify_ldt pidfd_open",
    "pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace rseq sched_get_priority_max",
    "sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler",
    "sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam",
    "sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address set_tls setfsgid",
    "setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32",
    "setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sysinfo",
    "times ugetrlimit uname uprobe uretprobe vfork wait4 waitid waitpid breakpoint cacheflush",
    // What /proc/self/attr says and takes, checked by the security modules all the same.
    "lsm_get_self_attr lsm_list_modules lsm_set_self_attr",
    // Signals and waiting.
    "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake kill pause restart_syscall rt_sigaction",
    "rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait",
    "rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaction sigaltstack signal signalfd signalfd4 sigpending",
    "sigprocmask sigreturn sigsuspend tgkill tkill",
    // Time. Setting it is the capability's affair: adjtimex also reads.
    "adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64",
    "clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create",
    "timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create",
    "timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Sockets and System V, POSIX IPC.
    "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg",
    "recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair",
    "ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64",
    "mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt",
    "shmget getrandom",
];

/// Allowed with one capability.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    ("SYSLOG", "syslog"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree open_tree_attr perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns \
         syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
];

/// Denied as if the kernel did not have it: programs then do without, which they do not after EPERM.
const NOT_THERE: &str = "file_getattr file_setattr listns rseq_slice_yield";

/// CLONE_NEW{CGROUP,UTS,IPC,USER,PID,NET,NS}.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// CLONE_NEWTIME; for clone(2) the bit is part of the exit signal.
const TIME_NAMESPACE: u64 = 0x80;

/// Execution domains: Linux, Linux 32-bit, each also reporting a 2.6 version, and asking what it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const AF_ALG: u64 = 38;
/// Of the families from AF_ALG on all that there are but itself and AF_VSOCK (40): NFC, KCM, QIPCRTR, SMC, XDP, MCTP.
const LATE_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// The capabilities that change the profile.
pub fn relevant_capabilities() -> u64 {
    WITH_CAPABILITY.iter().fold(0, |set, (name, _)| set | bit(name))
}

/// The profile for a container with these capabilities at most.
pub fn profile(bounding: u64) -> LinuxSeccomp {
    let mut rules: Vec<LinuxSyscall> = ALLOWED.iter().map(|names| allow(names, Vec::new())).collect();
    for (capability, names) in WITH_CAPABILITY {
        if bounding & bit(capability) != 0 {
            rules.push(allow(names, Vec::new()));
        }
    }
    if bounding & bit("SYS_ADMIN") == 0 {
        rules.push(allow("clone", vec![without_bits(NAMESPACE_FLAGS)]));
        rules.push(allow("unshare", vec![without_bits(NAMESPACE_FLAGS | TIME_NAMESPACE)]));
        // Its flags are in memory, out of a filter's sight. The C library falls back to clone.
        rules.push(deny("clone3", libc::ENOSYS));
    }
    for personality in PERSONALITIES {
        rules.push(allow(
            "personality",
            vec![compare(LinuxSeccompOperator::ScmpCmpEq, personality)],
        ));
    }
    // Not "all but the denied ones": the kernel takes 32 bits of the argument and a filter sees 64, so a denied family with
    // a bit above would be another one here and itself there.
    rules.push(allow("socket", vec![compare(LinuxSeccompOperator::ScmpCmpLt, AF_ALG)]));
    for family in LATE_FAMILIES {
        rules.push(allow("socket", vec![compare(LinuxSeccompOperator::ScmpCmpEq, family)]));
    }
    rules.push(deny(NOT_THERE, libc::ENOSYS));
    let profile = LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::EPERM.unsigned_abs())
        .syscalls(rules);
    built(profile.build())
}

fn allow(names: &str, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    built(
        LinuxSyscallBuilder::default()
            .names(names)
            .action(LinuxSeccompAction::ScmpActAllow)
            .args(args)
            .build(),
    )
}

fn deny(names: &str, errno: i32) -> LinuxSyscall {
    let names: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
    let rule = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActErrno);
    built(rule.errno_ret(errno.unsigned_abs()).build())
}

/// The first argument compared with `value`.
fn compare(operator: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    built(
        LinuxSeccompArgBuilder::default()
            .index(0usize)
            .value(value)
            .op(operator)
            .build(),
    )
}

/// The first argument has none of `bits`.
fn without_bits(bits: u64) -> LinuxSeccompArg {
    let arg = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(bits)
        .value_two(0u64);
    built(arg.op(LinuxSeccompOperator::ScmpCmpMaskedEq).build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_is_listed_twice_and_every_name_exists() {
        let mut seen = BTreeSet::new();
        for name in ALLOWED.iter().flat_map(|names| names.split_whitespace()) {
            assert!(seen.insert(name), "{name} is listed twice");
        }
        let conditional = WITH_CAPABILITY.iter().flat_map(|(_, names)| names.split_whitespace());
        for name in conditional.clone() {
            assert!(!seen.contains(name), "{name} is allowed anyway");
        }
        seen.extend(conditional);
        seen.extend(NOT_THERE.split_whitespace());
        for name in seen {
            let known = libseccomp::ScmpSyscall::from_name(name).is_ok();
            assert!(
                known || super::super::newer::number(name).is_some(),
                "{name} does not exist"
            );
        }
    }

    #[test]
    fn clone_of_namespaces_depends_on_sys_admin() {
        let names = |bounding| -> Vec<String> {
            let profile = profile(bounding);
            profile
                .syscalls()
                .iter()
                .flatten()
                .flat_map(|rule| rule.names().clone())
                .collect()
        };
        assert!(names(bit("SYS_ADMIN")).contains(&"setns".to_owned()));
        assert!(!names(0).contains(&"setns".to_owned()));
    }
}
