//! What a compiled filter answers: by an interpreter, and by the kernel without a call being made.

use std::arch::asm;

/// `AUDIT_ARCH_*`.
pub const X86_64: u32 = 0xc000_003e;
pub const X86: u32 = 0x4000_0003;
pub const X32_FLAG: u32 = 0x4000_0000;

/// `SECCOMP_RET_ALLOW`.
pub const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

/// `SECCOMP_RET_ERRNO` with this number.
pub fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// What a filter sees of a call that has only a first argument.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    architecture: u32,
    number: u32,
    argument: u64,
}

impl Call {
    pub fn new(architecture: u32, number: u32, argument: u64) -> Self {
        Self {
            architecture,
            number,
            argument,
        }
    }

    /// A word of struct seccomp_data: number, architecture, instruction pointer, six arguments.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.architecture,
            16 => self.argument as u32,
            20 => (self.argument >> 32) as u32,
            24..64 if offset.is_multiple_of(4) => 0,
            _ => panic!("a filter loads the word at {offset}"),
        }
    }

    /// Whether the kernel can be asked: of these it asks no filter (uretprobe, uprobe), and the child needs one.
    fn can_be_asked(&self) -> bool {
        self.architecture != X86_64 || ![335, 336, EXIT_GROUP].contains(&self.number)
    }
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const EXIT_GROUP: u32 = libc::SYS_exit_group as u32;

fn instructions(program: &[u8]) -> Vec<libc::sock_filter> {
    assert_eq!(program.len() % 8, 0);
    program
        .chunks_exact(8)
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect()
}

/// `SECCOMP_RET_*` of `program` for `call`.
pub fn answer(program: &[u8], call: &Call) -> u32 {
    let word = |at: usize| u32::from_ne_bytes(program[at..at + 4].try_into().unwrap());
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let here = at * 8;
        let code = u16::from_ne_bytes(program[here..here + 2].try_into().unwrap());
        let (jump_true, jump_false, k) = (program[here + 2], program[here + 3], word(here + 4));
        at += 1;
        let jump = |so| usize::from(if so { jump_true } else { jump_false });
        match code {
            LOAD => accumulator = call.word(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQUAL => at += jump(accumulator == k),
            JUMP_GREATER => at += jump(accumulator > k),
            JUMP_GREATER_OR_EQUAL => at += jump(accumulator >= k),
            RETURN => return k,
            _ => panic!("a filter has the instruction {code:#x}"),
        }
    }
}

/// What a call is told that the original would allow: no kernel has this error.
const MARK: i32 = 2000;

/// `program` with [`MARK`] for every "allowed", but for the call by which the child ends.
fn harmless(program: &[u8]) -> Vec<libc::sock_filter> {
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut changed = vec![
        step(LOAD, 4, 0, 0),
        step(JUMP_EQUAL, X86_64, 0, 3),
        step(LOAD, 0, 0, 0),
        step(JUMP_EQUAL, EXIT_GROUP, 0, 1),
        step(RETURN, ALLOWED, 0, 0),
    ];
    changed.extend(instructions(program).into_iter().map(|mut instruction| {
        if instruction.code == RETURN {
            let kind = instruction.k & libc::SECCOMP_RET_ACTION_FULL;
            assert!([ALLOWED, libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_KILL_PROCESS].contains(&kind));
            if kind == ALLOWED {
                instruction.k = errno(MARK);
            }
        }
        instruction
    }));
    changed
}

/// A call as the architecture's programs make it: 0 or more, or the negative error.
///
/// # Safety
///
/// A filter must refuse the call.
unsafe fn make(call: &Call) -> i64 {
    if call.architecture == X86_64 {
        // SAFETY: by the caller's promise nothing is done.
        return match unsafe { libc::syscall(i64::from(call.number), call.argument, 0, 0, 0, 0, 0) } {
            // SAFETY: the thread's own.
            -1 => i64::from(unsafe { -*libc::__errno_location() }),
            other => other,
        };
    }
    let mut result = i64::from(call.number);
    // SAFETY: by the caller's promise nothing is done; older kernels clear the upper registers.
    unsafe {
        asm!("push rbx", "mov ebx, {argument:e}", "int 0x80", "pop rbx",
             argument = in(reg) call.argument as u32, inout("rax") result,
             in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0,
             out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    i64::from(result as i32)
}

/// What the kernel makes of `program` for each call, as [`answer`] says it; `None` where it cannot be asked.
pub fn of_the_kernel(program: &[u8], calls: &[Call]) -> Vec<Option<u32>> {
    let mut instructions = harmless(program);
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).unwrap(),
        filter: instructions.as_mut_ptr(),
    };
    let size = calls.len() * size_of::<i64>();
    // SAFETY: the mapping is shared with the child, which writes within it; it makes calls that the filter refuses, on
    // memory made before the fork, and ends by _exit.
    unsafe {
        let shared = libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(shared, libc::MAP_FAILED);
        let results = std::slice::from_raw_parts_mut(shared.cast::<i64>(), calls.len());
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) != 0
            {
                libc::_exit(1);
            }
            for (call, result) in calls.iter().zip(results.iter_mut()) {
                if call.can_be_asked() {
                    *result = make(call);
                }
            }
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the child ended with {status:#x}"
        );
        let told = results.to_vec();
        libc::munmap(shared, size);
        calls
            .iter()
            .zip(told)
            .map(|(call, result)| {
                let error = i32::try_from(-result).ok().filter(|error| (1..4096).contains(error));
                match error {
                    _ if !call.can_be_asked() => None,
                    Some(MARK) => Some(ALLOWED),
                    Some(error) => Some(errno(error)),
                    None => panic!("{call:x?} was made and returned {result}"),
                }
            })
            .collect()
    }
}
