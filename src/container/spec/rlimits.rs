//! Resource limits of containers, whatever the limits of the daemon's unit.

use oci_spec::runtime::PosixRlimitType;

use super::host::HostFacts;
use super::policy::Rlimit;
use super::security::SYS_RESOURCE;

/// 1024 is what programs that use select(2) expect; the hard limit is what a program that needs more may raise it
/// to. An infinite soft limit makes programs that close every descriptor up to it spin for minutes.
const NOFILE_SOFT: u64 = 1024;
const NOFILE_HARD: u64 = 524_288;

/// The limits of every container. Hard limits can be raised by CAP_SYS_RESOURCE only.
pub fn resolve(host: &HostFacts) -> Vec<Rlimit> {
    let may_raise = host.bounding & SYS_RESOURCE != 0;
    let hard = if may_raise {
        NOFILE_HARD
    } else {
        NOFILE_HARD.min(host.nofile_hard)
    };
    vec![Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: NOFILE_SOFT.min(hard),
        hard,
    }]
}

/// The OCI name of a limit that [`resolve`] gives out.
pub fn oci_name(resource: u32) -> PosixRlimitType {
    debug_assert_eq!(resource, libc::RLIMIT_NOFILE);
    PosixRlimitType::RlimitNofile
}

#[cfg(test)]
mod tests {
    use super::{HostFacts, SYS_RESOURCE, resolve};

    #[test]
    fn open_files_are_limited_independent_of_the_daemon_where_it_may_raise_limits() {
        let able = HostFacts {
            nofile_hard: 20_000,
            ..HostFacts::for_tests()
        };
        let bound = HostFacts {
            bounding: !SYS_RESOURCE,
            ..able.clone()
        };
        let tight = HostFacts {
            nofile_hard: 512,
            ..bound.clone()
        };
        for (host, soft, hard) in [(able, 1024, 524_288), (bound, 1024, 20_000), (tight, 512, 512)] {
            let limits = resolve(&host);
            assert_eq!((limits.len(), limits[0].soft, limits[0].hard), (1, soft, hard));
        }
    }
}
