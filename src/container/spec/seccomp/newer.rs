//! System calls that are newer than the installed libseccomp, and those that are newer than crisp.
//!
//! A program that tries a new system call falls back on ENOSYS, but takes EPERM for the answer: with a C library
//! newer than the filter, chmod would stop working. So a few instructions before libseccomp's program decide about
//! system calls that libseccomp has no name for, and answer ENOSYS to all that nobody here has a name for.

/// Linux names, with their numbers in ascending order; the same on all architectures from 424 on.
const NUMBERS: [(&str, u32); 22] = [
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
    ("rseq_slice_yield", 471),
];

/// x86-64 alone.
const NATIVE_NUMBERS: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];

const NEWEST: u32 = 471;
/// Above it are the private calls of 32-bit ARM and the flag of x32.
const END: u32 = 1024;
const X32: u32 = 0x4000_0000;

/// `AUDIT_ARCH_*` of the processor and of the 32-bit programs that it runs.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: (u32, u32) = (0xc000_003e, 0x4000_0003);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: (u32, u32) = (0xc000_00b7, 0x4000_0028);

/// A system call outside of libseccomp's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number {
    number: u32,
    native_only: bool,
}

/// The system call of this name, if it is in the tables here.
pub fn number(name: &str) -> Option<Number> {
    let find = |table: &[(&str, u32)]| {
        table
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
    };
    if let Some(number) = find(&NUMBERS) {
        return Some(Number {
            number,
            native_only: false,
        });
    }
    let native = if cfg!(target_arch = "x86_64") {
        find(&NATIVE_NUMBERS)
    } else {
        None
    };
    native.map(|number| Number {
        number,
        native_only: true,
    })
}

/// One instruction (struct sock_filter).
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

fn step(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        k,
    }
}

/// A jump to the end, whose distance is not known yet.
const TO_THE_END: Instruction = Instruction {
    code: JUMP,
    jump_true: 0,
    jump_false: 0,
    k: u32::MAX,
};

/// Whose programs a filter is for, beside the processor's own. Other programs are the affair of what comes after.
#[derive(Clone, Copy)]
pub struct Served {
    pub thirty_two_bit: bool,
    pub x32: bool,
}

/// The instructions to put before a program: `decided` with what each returns (`SECCOMP_RET_*`), and what any
/// number beyond [`NEWEST`] returns. Everything else runs on into the program.
pub fn prefix(decided: &[(Number, u32)], beyond: Option<u32>, served: Served) -> Vec<u8> {
    if decided.is_empty() && beyond.is_none() {
        return Vec::new();
    }
    let (native, other) = ARCHITECTURES;
    let answers = |native_only| {
        let of_kind = decided
            .iter()
            .filter(move |(number, _)| number.native_only == native_only);
        of_kind.flat_map(|(number, returns)| [step(JUMP_EQUAL, number.number, 0, 1), step(RETURN, *returns, 0, 0)])
    };
    // x32 has the architecture of x86-64 and a flag in the number: else what is denied here could be had with the flag.
    // It is not told of new ones: it has calls of its own, from 512 on.
    let mut of_x32 = Vec::new();
    if served.x32 {
        of_x32.push(step(AND, !X32, 0, 0));
        of_x32.extend(answers(false));
    }
    of_x32.push(TO_THE_END);
    let over = u8::try_from(of_x32.len()).expect("the table of numbers is short");
    let mut of_native = vec![step(LOAD, NUMBER, 0, 0), step(JUMP_GREATER_OR_EQUAL, X32, 0, over)];
    of_native.extend(of_x32);
    of_native.extend(answers(true));
    // Over the three instructions of the other architecture.
    of_native.push(step(JUMP, 3, 0, 0));
    let over = u8::try_from(of_native.len()).expect("the table of native numbers is short");

    let mut program = vec![step(LOAD, ARCHITECTURE, 0, 0), step(JUMP_EQUAL, native, 0, over)];
    program.extend(of_native);
    let of_other = u8::from(served.thirty_two_bit);
    program.extend([
        step(JUMP_EQUAL, other, of_other, 0),
        TO_THE_END,
        step(LOAD, NUMBER, 0, 0),
    ]);
    let mut of_both: Vec<Instruction> = answers(false).collect();
    if let Some(returns) = beyond {
        of_both.push(step(JUMP_GREATER_OR_EQUAL, NEWEST + 1, 0, 2));
        of_both.push(step(JUMP_GREATER_OR_EQUAL, END, 1, 0));
        of_both.push(step(RETURN, returns, 0, 0));
    }
    let over = u8::try_from(of_both.len()).expect("the table of numbers is short");
    program.push(step(JUMP_GREATER_OR_EQUAL, NUMBERS[0].1, 0, over));
    program.extend(of_both);
    let length = program.len();
    for (n, instruction) in program.iter_mut().enumerate() {
        if instruction.code == JUMP && instruction.k == TO_THE_END.k {
            instruction.k = u32::try_from(length - n - 1).expect("the tables here are short");
        }
    }
    program.iter().flat_map(|instruction| instruction.bytes()).collect()
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        let (code, k) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [
            code[0],
            code[1],
            self.jump_true,
            self.jump_false,
            k[0],
            k[1],
            k[2],
            k[3],
        ]
    }
}
