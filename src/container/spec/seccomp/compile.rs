//! A profile to BPF, by libseccomp and the instructions of [`super::newer`].

use std::io::{Read, Seek};
use std::{fs::File, io};

use libseccomp::error::SeccompErrno;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Filter, SeccompError, newer};

/// BPF_MAXINSNS.
const LONGEST: usize = 4096;
const INSTRUCTION: usize = 8;

/// MAX_ERRNO.
const LARGEST_ERRNO: u32 = 4095;

/// The processor's architecture and those of other programs that it runs.
#[cfg(target_arch = "x86_64")]
const FAMILY: [(Arch, ScmpArch); 3] = [
    (Arch::ScmpArchX86_64, ScmpArch::X8664),
    (Arch::ScmpArchX86, ScmpArch::X86),
    (Arch::ScmpArchX32, ScmpArch::X32),
];
#[cfg(target_arch = "x86_64")]
const THIRTY_TWO_BIT: Arch = Arch::ScmpArchX86;
#[cfg(target_arch = "aarch64")]
const FAMILY: [(Arch, ScmpArch); 2] = [
    (Arch::ScmpArchAarch64, ScmpArch::Aarch64),
    (Arch::ScmpArchArm, ScmpArch::Arm),
];
#[cfg(target_arch = "aarch64")]
const THIRTY_TWO_BIT: Arch = Arch::ScmpArchArm;

fn failed(op: &'static str) -> impl Fn(libseccomp::error::SeccompError) -> SeccompError {
    move |source| SeccompError::Compile { op, source }
}

/// Compiles `profile`. Its architectures count where this machine runs them, the processor's own always; a profile that
/// names none is for all of them, as otherwise a 32-bit program would be killed at its first system call.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
        return Err(SeccompError::Notify);
    }
    let flags = flags(profile.flags().as_deref().unwrap_or_default())?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(failed("begin"))?;
    filter
        .set_act_badarch(ScmpAction::KillProcess)
        .map_err(failed("set up"))?;
    // A search tree: logarithmic for what the kernel does not answer from its own cache of always allowed calls.
    filter.set_ctl_optimize(2).map_err(failed("set up"))?;
    filter.set_ctl_nnp(false).map_err(failed("set up"))?;
    let named = profile.architectures().as_ref().filter(|list| !list.is_empty());
    let serves = |name| named.is_none_or(|list| list.contains(&name));
    for (name, arch) in FAMILY {
        if serves(name) {
            filter.add_arch(arch).map_err(failed("add an architecture to"))?;
        }
    }
    let mut decided = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        add(&mut filter, rule, default, &mut decided)?;
    }
    decided.sort_by_key(|(number, _)| *number);
    decided.dedup_by_key(|(number, _)| *number);
    let beyond = (!is_permissive(default)).then(|| returns(ScmpAction::Errno(libc::ENOSYS)));
    let served = newer::Served {
        thirty_two_bit: serves(THIRTY_TWO_BIT),
        x32: serves(Arch::ScmpArchX32),
    };
    let mut program = newer::prefix(&decided, beyond, served);
    program.extend(export(&filter).map_err(|source| SeccompError::Export { op: "read", source })??);
    let size = program.len() / INSTRUCTION;
    if size > LONGEST {
        return Err(SeccompError::FilterTooLong { size, limit: LONGEST });
    }
    Ok(Filter {
        program: program.into(),
        flags,
    })
}

fn flags(list: &[LinuxSeccompFilterFlag]) -> Result<u32, SeccompError> {
    list.iter().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                // Whoever loads the filter has one thread: all of them have it.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                // How the agent is waited for.
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(SeccompError::Flag { flag: flag.to_string() });
                }
            })
    })
}

fn add(
    filter: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
    decided: &mut Vec<(newer::Number, u32)>,
) -> Result<(), SeccompError> {
    let action = action(rule.action(), rule.errno_ret())?;
    if action == default {
        return Ok(());
    }
    for name in rule.names() {
        let args = rule.args().as_deref().unwrap_or_default();
        let conditions = args
            .iter()
            .map(|arg| condition(name, arg))
            .collect::<Result<Vec<_>, _>>()?;
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            match newer::number(name) {
                Some(number) if conditions.is_empty() => decided.push((number, returns(action))),
                Some(_) => return Err(SeccompError::ArgumentsOfNewSyscall { syscall: name.clone() }),
                // What nobody knows cannot be called, but what is to be denied might exist all the same.
                None if is_permissive(action) || !is_permissive(default) => {}
                None => {
                    return Err(SeccompError::UnknownSyscall {
                        syscall: name.chars().take(64).collect(),
                    });
                }
            }
            continue;
        };
        // One rule of libseccomp looks at an argument once; several conditions on one argument are alternatives.
        let repeats = args
            .iter()
            .enumerate()
            .any(|(n, arg)| args[..n].iter().any(|a| a.index() == arg.index()));
        if repeats {
            for condition in conditions {
                tolerate(filter.add_rule_conditional(action, syscall, &[condition]).map(drop))?;
            }
        } else {
            tolerate(filter.add_rule_conditional(action, syscall, &conditions).map(drop))?;
        }
    }
    Ok(())
}

/// A rule that is there already is no error.
fn tolerate(result: Result<(), libseccomp::error::SeccompError>) -> Result<(), SeccompError> {
    match result {
        Err(error) if error.errno() == Some(SeccompErrno::EEXIST) => Ok(()),
        result => result.map_err(failed("add a rule to")),
    }
}

fn is_permissive(action: ScmpAction) -> bool {
    matches!(action, ScmpAction::Allow | ScmpAction::Log)
}

fn condition(syscall: &str, arg: &LinuxSeccompArg) -> Result<ScmpArgCompare, SeccompError> {
    let index = arg.index();
    if index > 5 {
        return Err(SeccompError::ArgumentIndex {
            syscall: syscall.chars().take(64).collect(),
            index,
        });
    }
    let second = arg.value_two().unwrap_or_default();
    if second != 0 && arg.op() != LinuxSeccompOperator::ScmpCmpMaskedEq {
        return Err(SeccompError::SecondValue {
            syscall: syscall.chars().take(64).collect(),
            index,
            operator: arg.op(),
        });
    }
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), second),
    };
    Ok(ScmpArgCompare::new(index as u32, operator, value))
}

/// An error number belongs to the actions that answer one (OCI runtime specification, `errnoRet`).
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    let answers = matches!(
        action,
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
    );
    if errno.is_some() && !answers {
        return Err(SeccompError::ErrnoOfAction { action });
    }
    let errno = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno if errno <= LARGEST_ERRNO => ScmpAction::Errno(errno.cast_signed()),
        LinuxSeccompAction::ScmpActErrno => return Err(SeccompError::Errno { value: errno }),
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Notify),
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).map_err(|_| SeccompError::Errno { value: errno })?)
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

/// `SECCOMP_RET_*` of an action.
fn returns(action: ScmpAction) -> u32 {
    const DATA: u32 = 0xffff;
    match action {
        ScmpAction::Allow => libc::SECCOMP_RET_ALLOW,
        ScmpAction::Log => libc::SECCOMP_RET_LOG,
        ScmpAction::Trace(value) => libc::SECCOMP_RET_TRACE | u32::from(value),
        ScmpAction::Errno(errno) => libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & DATA),
        ScmpAction::Trap => libc::SECCOMP_RET_TRAP,
        ScmpAction::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

/// The bytes of the compiled filter; libseccomp 2.5 writes to descriptors only.
fn export(filter: &ScmpFilterContext) -> io::Result<Result<Vec<u8>, SeccompError>> {
    let mut file = File::from(memfd_create("seccomp", MemfdFlags::CLOEXEC)?);
    if let Err(error) = filter.export_bpf(&file) {
        return Ok(Err(failed("write")(error)));
    }
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Ok(bytes))
}
