//! Pseudoterminals of a devpts that is not to be trusted.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, openat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use super::failed;

/// linux/magic.h
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

pub struct Pty {
    pub master: OwnedFd,
    /// Close-on-exec, and nobody's controlling terminal yet.
    pub slave: OwnedFd,
}

/// Opens a new terminal by the `ptmx` of a devpts, seen from `at`. What is there may have been put there by a container: it must
/// be the device itself, and the other end is asked from the kernel and not looked for by name (CVE-2025-52565).
pub fn open(at: impl AsFd, ptmx: &str) -> io::Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = openat(at, ptmx, flags, Mode::empty()).map_err(|e| failed(&format!("open {ptmx}"), e))?;
    let status = fstat(&master)?;
    let genuine = fstatfs(&master)?.f_type as u64 == DEVPTS_SUPER_MAGIC
        && FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(5, 2);
    if !genuine {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{ptmx} is not the device that it should be"),
        ));
    }
    rustix::io::ioctl_fionbio(&master, false)?;
    unlockpt(&master).map_err(|e| failed("unlock a terminal", e))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(|e| failed("open the other end of a terminal", e))?;
    Ok(Pty { master, slave })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;

    #[test]
    fn a_terminal_has_two_ends_and_nothing_else_is_one() {
        let pty = open(CWD, "/dev/pts/ptmx").unwrap();
        rustix::io::write(&pty.slave, b"hello").unwrap();
        let mut heard = [0; 5];
        rustix::io::read(&pty.master, &mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        for other in ["/dev/null", "/dev/tty0-that-is-not-there", "/etc/passwd"] {
            assert!(open(CWD, other).is_err(), "{other}");
        }
    }
}
