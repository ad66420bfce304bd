//! Programs that the kernel asks before a process of a cgroup touches a device (bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::failed;

/// One instruction of the kernel's virtual machine (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub opcode: u8,
    /// The destination register in the low four bits, the source in the high ones.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// Cgroups above and below may have programs of their own: systemd attaches some, a nested container manager too.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// Enough for what other managers may have attached to one cgroup; the kernel's own bound is 64.
const PROGRAMS: usize = 64;

/// Room for every form of `union bpf_attr`: the kernel reads zeroes as "not given".
#[repr(C, align(8))]
struct Attributes([u8; 128]);

impl Attributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn bytes(mut self, offset: usize, value: &[u8]) -> Self {
        self.0[offset..offset + value.len()].copy_from_slice(value);
        self
    }

    fn read_u32(&self, offset: usize) -> u32 {
        u32::from_ne_bytes(self.0[offset..offset + 4].try_into().expect("four bytes"))
    }

    /// Gives what the call returns: a descriptor or zero.
    fn call(&mut self, command: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the attributes are larger than any form of them that the kernel knows today, and it is told their
        // size; pointers in them are to what the callers below keep alive until this returns.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        match result {
            0.. => Ok(result as libc::c_int),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn call_for_fd(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the commands that come here return a new descriptor, which nobody else has (close-on-exec is set).
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Has the kernel check and compile `program`, which returns 1 to allow an access and 0 to refuse it.
pub fn load_device_program(program: &[Instruction], name: &CStr) -> io::Result<OwnedFd> {
    // Without a license the kernel takes no program; helpers for GPL programs only are not called.
    let license = c"Apache-2.0";
    let name = name.to_bytes();
    Attributes::new()
        .u32(0, PROG_TYPE_CGROUP_DEVICE)
        .u32(4, u32::try_from(program.len()).unwrap_or(u32::MAX))
        .u64(8, program.as_ptr() as u64)
        .u64(16, license.as_ptr() as u64)
        .bytes(48, &name[..name.len().min(15)])
        .call_for_fd(PROG_LOAD)
        .map_err(|e| failed("bpf(BPF_PROG_LOAD) of device rules", e))
}

/// Has the kernel ask `program` for all processes of the cgroup2 directory `cgroup` and below it, instead of `replaced`
/// where that is given.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd, replaced: Option<OwnedFd>) -> io::Result<()> {
    let flags = ALLOW_MULTI | if replaced.is_some() { REPLACE } else { 0 };
    Attributes::new()
        .u32(0, cgroup.as_fd().as_raw_fd() as u32)
        .u32(4, program.as_fd().as_raw_fd() as u32)
        .u32(8, ATTACH_TYPE_CGROUP_DEVICE)
        .u32(12, flags)
        .u32(16, replaced.as_ref().map_or(0, |fd| fd.as_raw_fd() as u32))
        .call(PROG_ATTACH)
        .map(drop)
        .map_err(|e| failed("bpf(BPF_PROG_ATTACH) of device rules", e))
}

/// The program attached last to the cgroup2 directory `cgroup` itself, if there is any.
pub fn attached_device_program(cgroup: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS];
    let mut query = Attributes::new()
        .u32(0, cgroup.as_fd().as_raw_fd() as u32)
        .u32(4, ATTACH_TYPE_CGROUP_DEVICE)
        .u64(16, ids.as_mut_ptr() as u64)
        .u32(24, PROGRAMS as u32);
    query
        .call(PROG_QUERY)
        .map_err(|e| failed("bpf(BPF_PROG_QUERY) of device rules", e))?;
    let count = query.read_u32(24) as usize;
    let Some(id) = count.checked_sub(1).and_then(|last| ids.get(last).copied()) else {
        return Ok(None);
    };
    Attributes::new()
        .u32(0, id)
        .call_for_fd(PROG_GET_FD_BY_ID)
        .map(Some)
        .map_err(|e| failed("bpf(BPF_PROG_GET_FD_BY_ID) of device rules", e))
}
