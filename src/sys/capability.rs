//! Capabilities of this thread (capabilities(7)), as masks: bit n is capability number n.

use std::io;

/// Three sets of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

const VERSION_3: u32 = 0x2008_0522;

/// CAP_SYS_ADMIN as a mask.
pub const SYS_ADMIN: u64 = 1 << 21;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Reads the sets of this thread.
pub fn get() -> io::Result<Sets> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 of the interface reads and writes two elements, which live across the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if done != 0 {
        return Err(super::failed("capget", io::Error::last_os_error()));
    }
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Sets the sets of this thread.
pub fn set(sets: Sets) -> io::Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: as in `get`; the kernel only reads.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if done == 0 {
        Ok(())
    } else {
        Err(super::failed("capset", io::Error::last_os_error()))
    }
}

/// Takes everything that is not in `keep` from the bounding set.
pub fn bound(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // The kernel knows no such capability, nor any higher one.
            Some(libc::EINVAL) => Ok(()),
            _ => Err(super::failed("drop from the bounding set", error)),
        };
    }
    Ok(())
}

/// Makes `wanted` the ambient set; each must be permitted and inheritable.
pub fn set_ambient(wanted: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } != 0 {
        return Err(super::failed("clear the ambient set", io::Error::last_os_error()));
    }
    for capability in (0..64).filter(|c| wanted & (1 << c) != 0) {
        // SAFETY: no memory is involved.
        if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) } != 0 {
            return Err(super::failed("raise an ambient capability", io::Error::last_os_error()));
        }
    }
    Ok(())
}
