//! The lines for v1; the program for cgroup2, run step by step here.

use super::*;

fn rule(allow: bool, kind: char, major: Option<u32>, minor: Option<u32>, access: &str) -> DeviceRule {
    DeviceRule {
        allow,
        kind,
        major,
        minor,
        access: access.into(),
    }
}

#[test]
fn device_rules_are_written_as_the_kernel_reads_them() {
    assert_eq!(DeviceRule::all(false).line().unwrap(), "a");
    assert_eq!(rule(true, 'c', Some(1), Some(3), "rwm").line().unwrap(), "c 1:3 rwm");
    assert_eq!(rule(true, 'b', None, None, "m").line().unwrap(), "b *:* m");
    for bad in [
        rule(true, 'x', None, None, "rwm"),
        rule(true, 'c', None, None, ""),
        rule(true, 'c', None, None, "rwx"),
    ] {
        assert!(bad.line().is_err(), "{bad:?}");
        assert!(program(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
    }
}

/// A machine that knows the few instructions of a device program: whether `access` is allowed.
fn decide(program: &[Instruction], kind: i32, major: u32, minor: u32, access: u8) -> bool {
    let context = [u32::from(access) << 16 | kind as u32, major, minor];
    let mut registers = [0_u32; 6];
    let mut at = 0;
    for _ in 0..program.len() {
        let now = program[at];
        let (to, from) = (usize::from(now.registers & 15), usize::from(now.registers >> 4));
        at += 1;
        match now.opcode {
            0x61 => registers[to] = context[now.offset as usize / 4],
            0xbc => registers[to] = registers[from],
            0x54 => registers[to] &= now.immediate as u32,
            0x74 => registers[to] >>= now.immediate,
            0xb7 => registers[to] = now.immediate as u32,
            0x56 if registers[to] != now.immediate as u32 => at += now.offset as usize,
            0x16 if registers[to] == now.immediate as u32 => at += now.offset as usize,
            0x56 | 0x16 => {}
            0x95 => return registers[0] == 1,
            other => panic!("instruction {other:#x}"),
        }
    }
    panic!("no end");
}

#[test]
fn the_last_rule_that_speaks_of_an_access_decides() {
    let program = program(&[
        rule(true, 'c', Some(9), Some(9), "rwm"),
        DeviceRule::all(false),
        rule(true, 'c', None, None, "m"),
        rule(true, 'c', Some(1), Some(3), "rwm"),
        rule(true, 'b', Some(8), None, "r"),
        rule(true, 'b', Some(8), None, "w"),
        rule(true, 'c', Some(5), None, "rw"),
        rule(false, 'c', Some(5), Some(1), "w"),
    ])
    .unwrap();
    for (kind, major, minor, access, allowed) in [
        (CHARACTER, 1, 3, READ | WRITE, true),
        (CHARACTER, 1, 3, MKNOD, true),
        (CHARACTER, 1, 5, READ, false),
        (CHARACTER, 1, 5, MKNOD, true),
        (CHARACTER, 1, 5, MKNOD | READ, false),
        (BLOCK, 1, 3, READ, false),
        (BLOCK, 1, 3, MKNOD, false),
        // Two rules for one device together; the third kind of access is still refused.
        (BLOCK, 8, 7, READ | WRITE, true),
        (BLOCK, 8, 7, MKNOD, false),
        (CHARACTER, 5, 0, READ | WRITE, true),
        // A refusal of one kind of access refuses what asks for it among others.
        (CHARACTER, 5, 1, READ | WRITE, false),
        (CHARACTER, 5, 1, READ, true),
        // What came before "everything" is forgotten.
        (CHARACTER, 9, 9, READ, false),
    ] {
        assert_eq!(
            decide(&program, kind, major, minor, access),
            allowed,
            "kind {kind} {major}:{minor} access {access}"
        );
    }
}

#[test]
fn without_a_word_for_everything_the_rest_is_allowed() {
    let program = program(&[rule(false, 'c', Some(u32::MAX), None, "rwm")]).unwrap();
    assert!(decide(&program, CHARACTER, 1, 3, READ));
    assert!(!decide(&program, CHARACTER, u32::MAX, 3, READ));
    let all = super::program(&[DeviceRule::all(true)]).unwrap();
    assert!(decide(&all, BLOCK, 1, 1, READ | WRITE | MKNOD));
}
