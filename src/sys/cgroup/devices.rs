//! Device rules: lines of the v1 controller, or on cgroup2 a program that decides the same.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::hierarchy::Place;
use super::{Cgroup, DeviceRule, Resources, Warning, file};
use crate::sys::bpf::{self, Instruction};

/// Containers' rules are much the same: so many programs are kept loaded.
const PROGRAMS_KEPT: usize = 8;
const PROGRAM_NAME: &CStr = c"crisp_devices";

/// Programs by the rules that they enforce: the kernel checks and compiles each once.
#[derive(Debug, Default)]
pub(super) struct Programs {
    loaded: Mutex<Vec<(Vec<DeviceRule>, Arc<OwnedFd>)>>,
}

impl Programs {
    fn of(&self, rules: &[DeviceRule]) -> io::Result<Arc<OwnedFd>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = loaded.iter().position(|(known, _)| known == rules) {
            let found = loaded.remove(at);
            let program = found.1.clone();
            loaded.push(found);
            return Ok(program);
        }
        let program = Arc::new(bpf::load_device_program(&program(rules)?, PROGRAM_NAME)?);
        if loaded.len() == PROGRAMS_KEPT {
            loaded.remove(0);
        }
        loaded.push((rules.to_owned(), program.clone()));
        Ok(program)
    }
}

impl Cgroup {
    pub(super) fn apply_devices(&self, resources: &Resources, warnings: &mut Vec<Warning>) -> io::Result<()> {
        let rules = &resources.devices;
        if rules.is_empty() {
            return Ok(());
        }
        if let Some(Place::V1(root)) = self.hierarchy.place("devices") {
            return write_rules(&self.dir_below(root), rules);
        }
        match self.cgroup2_dir() {
            Some(dir) => attach_rules(&dir, rules, self.hierarchy.device_programs())
                .map_err(|e| file::failed("restrict the devices of", &dir, e)),
            None => {
                if rules.iter().any(|rule| !rule.allow) {
                    warnings.push(Warning::DevicesNotRestricted);
                }
                Ok(())
            }
        }
    }
}

fn write_rules(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    for same in rules.chunk_by(|rule, next| rule.allow == next.allow) {
        let name = if same[0].allow { "devices.allow" } else { "devices.deny" };
        let lines = same.iter().map(DeviceRule::line).collect::<io::Result<Vec<_>>>()?;
        file::write_each(&dir.join(name), &lines)?;
    }
    Ok(())
}

/// Takes the place of what was attached before in one step: there is no moment without rules.
fn attach_rules(dir: &Path, rules: &[DeviceRule], programs: &Programs) -> io::Result<()> {
    let cgroup = File::open(dir)?;
    let attached = bpf::attached_device_program(&cgroup)?;
    if attached.is_none() && rules.iter().all(|rule| rule.allow) {
        return Ok(());
    }
    bpf::attach_device_program(&cgroup, &*programs.of(rules)?, attached)
}

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Registers. The first holds the answer, the second the context until everything is read from it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const SCRATCH: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        opcode,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

const fn load(to: u8, offset: i16) -> Instruction {
    instruction(0x61, to, CONTEXT, offset, 0)
}

const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbc, to, from, 0, 0)
}

const fn and(to: u8, mask: i32) -> Instruction {
    instruction(0x54, to, 0, 0, mask)
}

const fn shift_right(to: u8, bits: i32) -> Instruction {
    instruction(0x74, to, 0, 0, bits)
}

/// Jumps that are aimed once the length of the rule is known.
const fn unless_equal(register: u8, value: i32) -> Instruction {
    instruction(0x56, register, 0, 0, value)
}

const fn if_equal(register: u8, value: i32) -> Instruction {
    instruction(0x16, register, 0, 0, value)
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [
        instruction(0xb7, ANSWER, 0, 0, allow as i32),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The program for `rules`: the last rule that speaks of an access decides, as with the v1 controller, whose default
/// is to allow.
///
/// Several rules for one device that allow different kinds of access allow them together, as they do on v1.
fn program(rules: &[DeviceRule]) -> io::Result<Vec<Instruction>> {
    // struct bpf_cgroup_dev_ctx: access in the high half and kind in the low half of the first word, major, minor.
    let mut program = vec![
        load(ACCESS, 0),
        copy(KIND, ACCESS),
        and(KIND, 0xffff),
        shift_right(ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in merged(rules)?.iter().rev() {
        let decided = rule_program(rule, &mut program);
        if decided {
            return Ok(program);
        }
    }
    program.extend(answer(true));
    Ok(program)
}

struct Rule {
    allow: bool,
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Whether the rule is for all accesses: nothing after it is ever reached, which the kernel would refuse.
fn rule_program(rule: &Rule, program: &mut Vec<Instruction>) -> bool {
    let mut conditions = Vec::new();
    match rule.kind {
        'b' => conditions.push(unless_equal(KIND, BLOCK)),
        'c' => conditions.push(unless_equal(KIND, CHARACTER)),
        _ => {
            program.extend(answer(rule.allow));
            return true;
        }
    }
    if rule.access != MKNOD | READ | WRITE {
        conditions.push(copy(SCRATCH, ACCESS));
        if rule.allow {
            conditions.push(and(SCRATCH, !i32::from(rule.access)));
            conditions.push(unless_equal(SCRATCH, 0));
        } else {
            conditions.push(and(SCRATCH, i32::from(rule.access)));
            conditions.push(if_equal(SCRATCH, 0));
        }
    }
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            conditions.push(unless_equal(register, number as i32));
        }
    }
    let end = conditions.len() + answer(rule.allow).len();
    for (at, condition) in conditions.iter_mut().enumerate() {
        if matches!(condition.opcode, 0x56 | 0x16) {
            condition.offset = (end - at - 1) as i16;
        }
    }
    program.extend(conditions);
    program.extend(answer(rule.allow));
    false
}

/// The rules from the last one for everything on; neighbours for one device as one.
fn merged(rules: &[DeviceRule]) -> io::Result<Vec<Rule>> {
    let mut merged: Vec<Rule> = Vec::new();
    for rule in rules {
        rule.line()?;
        if rule.kind == 'a' {
            merged.clear();
        }
        let rule = Rule {
            allow: rule.allow,
            kind: rule.kind,
            major: rule.major,
            minor: rule.minor,
            access: access_bits(&rule.access),
        };
        let same = |known: &Rule| {
            (known.allow, known.kind, known.major, known.minor) == (rule.allow, rule.kind, rule.major, rule.minor)
        };
        match merged.last_mut() {
            Some(known) if same(known) => known.access |= rule.access,
            _ => merged.push(rule),
        }
    }
    Ok(merged)
}

fn access_bits(access: &str) -> u8 {
    access.bytes().fold(0, |bits, letter| {
        bits | match letter {
            b'm' => MKNOD,
            b'r' => READ,
            _ => WRITE,
        }
    })
}

impl DeviceRule {
    /// Everything, allowed or denied.
    pub fn all(allow: bool) -> Self {
        Self {
            allow,
            kind: 'a',
            major: None,
            minor: None,
            access: "rwm".to_owned(),
        }
    }

    /// `c 1:3 rwm`; for everything just `a`, which also clears the exceptions made so far.
    fn line(&self) -> io::Result<String> {
        let access_is_fine = !self.access.is_empty() && self.access.bytes().all(|b| b"rwm".contains(&b));
        if !matches!(self.kind, 'a' | 'b' | 'c') || !access_is_fine {
            return Err(file::invalid(format!(
                "device rule {self:?}: not a kind of device or kind of access"
            )));
        }
        if self.kind == 'a' {
            return Ok("a".to_owned());
        }
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        Ok(format!(
            "{} {}:{} {}",
            self.kind,
            number(self.major),
            number(self.minor),
            self.access
        ))
    }
}

#[cfg(test)]
mod tests;
