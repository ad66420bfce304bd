//! Holds a pod's namespaces: waits, reaps what is orphaned to it as PID 1, and ends on SIGTERM or SIGINT.
//!
//! No standard library and no C runtime: two pages per pod. Each system call is made by hand, hence the `unsafe`.
//! Only when it is built along with the daemon, to be checked and not to be used, it is an ordinary program.

#![cfg_attr(not(feature = "daemon"), no_std, no_main)]

use core::arch::asm;

#[cfg(all(not(feature = "daemon"), target_arch = "x86_64"))]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "and $-16, %rsp",
    "call pause_main",
    "ud2",
    options(att_syntax)
);

#[cfg(all(not(feature = "daemon"), target_arch = "aarch64"))]
core::arch::global_asm!(".globl _start", "_start:", "mov x29, #0", "bl pause_main", "brk #1");

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const PRCTL: usize = 167;
    pub const EXIT_GROUP: usize = 94;
}

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIGCHLD: isize = 17;
const SIG_BLOCK: usize = 0;
const PR_SET_NAME: usize = 15;
const PR_SET_DUMPABLE: usize = 4;
const WNOHANG: usize = 1;
const WALL: usize = 0x4000_0000;

/// The signals that are waited for, as the kernel's set: bit n-1 is signal n.
static SIGNALS: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
static NAME: [u8; 6] = *b"pause\0";

/// # Safety
/// The arguments are as system call `number` wants them.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; what it does with the arguments is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    result
}

#[unsafe(no_mangle)]
extern "C" fn pause_main() -> ! {
    // SAFETY: the name and the set are static, all else is numbers; null means "not wanted".
    unsafe {
        call(number::PRCTL, PR_SET_NAME, &raw const NAME as usize, 0, 0);
        call(number::PRCTL, PR_SET_DUMPABLE, 0, 0, 0);
        call(number::RT_SIGPROCMASK, SIG_BLOCK, &raw const SIGNALS as usize, 0, 8);
        loop {
            match call(number::RT_SIGTIMEDWAIT, &raw const SIGNALS as usize, 0, 0, 8) {
                SIGTERM | SIGINT => loop {
                    call(number::EXIT_GROUP, 0, 0, 0, 0);
                },
                _ => while call(number::WAIT4, usize::MAX, 0, WNOHANG | WALL, 0) > 0 {},
            }
        }
    }
}

#[cfg(feature = "daemon")]
fn main() {
    pause_main()
}

#[cfg(not(feature = "daemon"))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
