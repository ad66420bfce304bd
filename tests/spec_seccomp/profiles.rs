//! Profiles of files: what is in force, and what is refused.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crisp::container::spec::SeccompSource;
use crisp::container::spec::seccomp::{Filter, SeccompCache, SeccompError};

use super::kernel::{call, check, with};
use super::{ALL, SYS_ADMIN, SYS_CHROOT};

fn file(json: &str) -> (tempfile::NamedTempFile, SeccompSource) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(json.as_bytes()).unwrap();
    let source = SeccompSource::Localhost(file.path().to_owned());
    (file, source)
}

fn compile_for(json: &str, bounding: u64) -> Result<Filter, SeccompError> {
    let (_file, source) = file(json);
    SeccompCache::default().compile(&source, bounding)
}

fn compile(json: &str) -> Result<Filter, SeccompError> {
    compile_for(json, ALL)
}

/// An error with its causes.
fn said(error: &SeccompError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[test]
fn a_profile_that_allows_and_one_that_denies() {
    let denies = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["sethostname","fchmodat2"],"action":"SCMP_ACT_ERRNO"},
        {"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":42}]}"#;
    check(
        &compile(denies).unwrap().program,
        &[
            ("sethostname", call(libc::SYS_sethostname), libc::EPERM),
            ("fchmodat2 (452)", call(452), libc::EPERM),
            ("getpid", call(libc::SYS_getpid), 42),
            ("getppid", call(libc::SYS_getppid), 0),
            ("a call of the future", call(470), libc::ENOSYS),
        ],
    );
    let allows = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_AARCH64","SCMP_ARCH_S390X"],
        "archMap":[],"syscalls":[
        {"names":["write","exit_group","exit","no_such_call"],"action":"SCMP_ACT_ALLOW"},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"valueTwo":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
        {"names":["unshare"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1024,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
    check(
        &compile(allows).unwrap().program,
        &[
            ("getpid", call(libc::SYS_getpid), libc::ENOSYS),
            ("personality 8", with(libc::SYS_personality, 8), 0),
            ("personality 0: alternatives", with(libc::SYS_personality, 0), 0),
            ("personality 9", with(libc::SYS_personality, 9), libc::ENOSYS),
            ("unshare without the bit", with(libc::SYS_unshare, 0x200), 0),
            ("unshare with the bit", with(libc::SYS_unshare, 0x400), libc::ENOSYS),
        ],
    );
}

#[test]
fn profiles_that_cannot_be_honoured_are_refused() {
    let profile = |rest: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rest}}}"#);
    let rule = |rest: &str| profile(&format!(r#""syscalls":[{{{rest}}}]"#));
    for (json, part) in [
        ("{".to_owned(), "parse"),
        ("[]".to_owned(), "parse"),
        (r#"{"syscalls":[]}"#.to_owned(), "parse"),
        (r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#.to_owned(), "parse"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(), "agent"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s"}"#.to_owned(),
            "agent",
        ),
        (rule(r#""names":["getpid"],"action":"SCMP_ACT_NOTIFY""#), "agent"),
        (
            rule(r#""names":["no_such_call"],"action":"SCMP_ACT_ERRNO""#),
            "not known",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":70000"#),
            "error number",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#),
            "argument 6",
        ),
        (
            rule(
                r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"valueTwo":2,"op":"SCMP_CMP_EQ"}]"#,
            ),
            r#"argument 0 of "getpid" by SCMP_CMP_EQ with two values"#,
        ),
        (
            rule(
                r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_ABOUT"}]"#,
            ),
            "SCMP_CMP_ABOUT",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_KILL","errnoRet":1"#),
            "an error number for SCMP_ACT_KILL",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","errno":"EWRONG""#),
            "EWRONG",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","errno":"ENOSYS","errnoRet":1"#),
            "ENOSYS",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","unless":{}"#),
            "unknown field `unless`",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","includes":{"users":[0]}"#),
            "unknown field `users`",
        ),
        (
            rule(r#""names":["getpid"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"new"}"#),
            r#"kernel "new""#,
        ),
        (profile(r#""defaultErrnoRet":1"#), "an error number for SCMP_ACT_ALLOW"),
        (profile(r#""listenerMetadata":"x""#), "agent"),
        (profile(r#""sysalls":[]"#), "unknown field `sysalls`"),
        (profile(r#""architectures":["SCMP_ARCH_Z80"]"#), "SCMP_ARCH_Z80"),
        (
            profile(r#""architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]"#),
            "only one can be followed",
        ),
        (
            profile(r#""flags":["SECCOMP_FILTER_FLAG_NEW"]"#),
            r#"the flag "SECCOMP_FILTER_FLAG_NEW", which is not supported"#,
        ),
        (
            profile(r#""flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#),
            r#"the flag "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV""#,
        ),
    ] {
        let error = said(&compile(&json).unwrap_err());
        assert!(error.contains(part), "{json}: {error}");
    }
    assert!(matches!(
        compile(&" ".repeat((1 << 20) + 1)),
        Err(SeccompError::TooLarge { .. })
    ));
    let cache = SeccompCache::default();
    for path in ["/no/such/profile", "/dev/zero", "/tmp"] {
        let error = cache.compile(&SeccompSource::Localhost(PathBuf::from(path)), ALL);
        assert!(matches!(error, Err(SeccompError::Read { .. })), "{path}: {error:?}");
    }
}

#[test]
fn flags_are_those_of_the_file() {
    for (flags, expected) in [
        ("", 0),
        (r#","flags":null"#, 0),
        (r#","flags":[]"#, 0),
        // The one thread that loads a filter is all there are.
        (r#","flags":["SECCOMP_FILTER_FLAG_TSYNC"]"#, 0),
        (r#","flags":["SECCOMP_FILTER_FLAG_LOG"]"#, libc::SECCOMP_FILTER_FLAG_LOG),
        (
            r#","flags":["SECCOMP_FILTER_FLAG_SPEC_ALLOW","SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_LOG"]"#,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW | libc::SECCOMP_FILTER_FLAG_LOG,
        ),
    ] {
        let filter = compile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{flags}}}"#)).unwrap();
        assert_eq!(filter.flags as libc::c_ulong, expected, "{flags}");
    }
    let own = SeccompCache::default()
        .compile(&SeccompSource::RuntimeDefault, 0)
        .unwrap();
    assert_eq!(own.flags, 0);
}

/// The files that come with Docker and Podman have rules for the containers with a capability. With the condition left
/// out, as it would be by who reads only what the OCI specification has, every container would have them.
#[test]
fn rules_for_some_containers_are_for_those() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"defaultErrno":"ENOSYS","comment":"of a distribution",
        "archMap":[{"architecture":"SCMP_ARCH_LOONGARCH64","subArchitectures":null},
                   {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
                   {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
        "syscalls":[
        {"names":["write","exit_group","close"],"action":"SCMP_ACT_ALLOW","args":[],"comment":"","includes":{},"excludes":{}},
        {"name":"getpid","action":"SCMP_ACT_ALLOW","args":null},
        {"names":["setns"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["setns"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"errno":"EPERM","excludes":{"caps":["CAP_SYS_ADMIN","CAP_BPF"]}},
        {"names":["chroot"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN","CAP_SYS_CHROOT"]}},
        {"names":["umask"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","arm64"],"minKernel":"3.10"}},
        {"names":["getppid"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}},
        {"names":["getuid"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["s390x"]}},
        {"names":["geteuid"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"999.0"}},
        {"names":["getgid"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"4.8"}},
        {"names":["getegid"],"action":"SCMP_ACT_ERRNO","errno":"EACCES"}]}"#;
    let cases = |setns, chroot| {
        [
            ("getpid, by one name", call(libc::SYS_getpid), 0),
            ("setns", with(libc::SYS_setns, -1), setns),
            ("chroot", call(libc::SYS_chroot), chroot),
            ("umask", with(libc::SYS_umask, 0o22), 0),
            ("getppid", call(libc::SYS_getppid), libc::ENOSYS),
            ("getuid", call(libc::SYS_getuid), 0),
            ("geteuid", call(libc::SYS_geteuid), libc::ENOSYS),
            ("getgid", call(libc::SYS_getgid), libc::ENOSYS),
            ("getegid", call(libc::SYS_getegid), libc::EACCES),
        ]
    };
    let (_file, source) = file(json);
    let cache = SeccompCache::default();
    for (bounding, setns, chroot) in [
        (0, libc::EPERM, libc::ENOSYS),
        (SYS_ADMIN, libc::EBADF, libc::ENOSYS),
        (SYS_CHROOT, libc::EPERM, libc::ENOSYS),
        (SYS_ADMIN | SYS_CHROOT, libc::EBADF, libc::EFAULT),
    ] {
        check(
            &cache.compile(&source, bounding).unwrap().program,
            &cases(setns, chroot),
        );
        // And so for a runtime that compiles it itself: it is told of the rules that are for this container.
        let told = cache.profile(&source, bounding).unwrap();
        let setns = told
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.names().contains(&"setns".to_owned()));
        assert_eq!(setns.count(), 1);
    }
}

/// Linux x86-64 may run programs of x32: the same calls by numbers with a flag.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_denied_is_denied_to_x32_too() {
    let denies = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["sethostname","fchmodat2","listns"],"action":"SCMP_ACT_ERRNO","errnoRet":42}]}"#;
    let x32 = |number| call(0x4000_0000 | number);
    check(
        &compile(denies).unwrap().program,
        &[
            ("sethostname", x32(libc::SYS_sethostname), 42),
            ("fchmodat2 (452)", x32(452), 42),
            ("listns (470)", x32(470), 42),
        ],
    );
}

/// Programs of an architecture that is left out are killed at any call, those that libseccomp does not know too.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_profile_serves_the_architectures_that_it_names() {
    use super::filter::{ALLOWED, Call, X32_FLAG, X86, X86_64, answer};
    const KILLED: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    for (architectures, x86, x32) in [
        (r#""architectures":["SCMP_ARCH_X86_64"]"#, KILLED, KILLED),
        (r#""architectures":["SCMP_ARCH_S390X"]"#, KILLED, KILLED),
        (
            r#""architectures":["SCMP_ARCH_X86","SCMP_ARCH_X86_64"]"#,
            ALLOWED,
            KILLED,
        ),
        (r#""architectures":["SCMP_ARCH_X32"]"#, KILLED, ALLOWED),
        (
            r#""archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}]"#,
            ALLOWED,
            KILLED,
        ),
        (r#""archMap":[{"architecture":"SCMP_ARCH_X86_64"}]"#, KILLED, KILLED),
        (r#""archMap":[{"architecture":"SCMP_ARCH_S390X"}]"#, KILLED, KILLED),
        (r#""architectures":[],"archMap":null"#, ALLOWED, ALLOWED),
    ] {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO",{architectures},
                "syscalls":[{{"names":["getpid","listns"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        let program = compile(&json).unwrap().program;
        for (architecture, getpid, expected) in [(X86_64, 39, ALLOWED), (X86, 20, x86), (X86_64, X32_FLAG | 39, x32)] {
            let listns = getpid & X32_FLAG | 470;
            for number in [getpid, listns] {
                let found = answer(&program, &Call::new(architecture, number, 0));
                assert_eq!(found, expected, "{architectures}: {architecture:#x} {number:#x}");
            }
        }
    }
}

#[test]
fn a_filter_is_compiled_once_and_again_when_its_file_changes() {
    let cache = SeccompCache::default();
    let started = Instant::now();
    let first = cache.compile(&SeccompSource::RuntimeDefault, SYS_CHROOT).unwrap();
    let compiled = started.elapsed();
    let started = Instant::now();
    // Capabilities that the profile does not ask for make no difference.
    let again = cache.compile(&SeccompSource::RuntimeDefault, SYS_CHROOT | 1).unwrap();
    let cached = started.elapsed();
    assert!(Arc::ptr_eq(&first.program, &again.program));
    println!(
        "compiled in {compiled:?}, found in {cached:?}, {} instructions",
        first.program.len() / 8
    );

    let (mut profile, source) = file(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let before = cache.compile(&source, 0).unwrap();
    let same = || Arc::ptr_eq(&before.program, &cache.compile(&source, 0).unwrap().program);
    assert!(same());
    profile.write_all(b" ").unwrap();
    assert!(!same());
}
