//! crisp's own profile, call by call: every number of every architecture, by the table beside it.
//!
//! The filters are asked, the calls not made: a small interpreter runs them on what the kernel would show them. So that
//! it cannot lie, the kernel is asked the same, with a filter that answers a number of its own where the original allows.

use std::collections::BTreeMap;

use crisp::container::spec::seccomp::SeccompCache;
use crisp::container::spec::{SeccompSource, security};
use libseccomp::{ScmpArch, ScmpSyscall};

use super::ALL;
use super::filter::{ALLOWED, Call, X32_FLAG, X86, X86_64, answer, errno, of_the_kernel};

/// Number and arguments of [`Call`] by the table's columns: `AUDIT_ARCH_*`, and the flag that x32 has instead of one.
const ARCHITECTURES: [(&str, u32, u32); 3] = [("x86-64", X86_64, 0), ("x86", X86, 0), ("x32", X86_64, X32_FLAG)];

/// The newest call that crisp knows, and the end of what may be one.
const NEWEST: u32 = 471;
const END: u32 = 1024;

/// What a container has that asks for nothing.
const USUAL: &str = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP \
                     SETUID SYS_CHROOT";

/// capabilities(7), by number.
fn capabilities() -> impl Iterator<Item = &'static str> {
    (0..64).map_while(security::name)
}

fn bit(name: &str) -> u64 {
    1 << capabilities().position(|known| known == name).unwrap()
}

/// No capability, the usual ones, each alone, all of them.
fn bounding_sets() -> Vec<(String, u64)> {
    let usual = USUAL.split_whitespace().map(bit).fold(0, |set, bit| set | bit);
    let mut sets = vec![("none".to_owned(), 0), ("the usual".to_owned(), usual)];
    sets.extend(capabilities().map(|name| (name.to_owned(), bit(name))));
    sets.push(("all".to_owned(), ALL));
    sets
}

fn own_profile(cache: &SeccompCache, bounding: u64) -> std::sync::Arc<[u8]> {
    cache.compile(&SeccompSource::RuntimeDefault, bounding).unwrap().program
}

struct Line {
    name: &'static str,
    /// In the order of [`ARCHITECTURES`].
    numbers: [Option<u32>; 3],
    /// `None`: the arguments decide.
    answer: Option<u32>,
    capabilities: u64,
}

fn table() -> Vec<Line> {
    let lines = include_str!("table.txt").lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next().unwrap();
            let numbers = [(); 3].map(|()| fields.next().unwrap().parse().ok());
            let answer = match fields.next().unwrap() {
                "allowed" => Some(ALLOWED),
                "EPERM" => Some(errno(libc::EPERM)),
                "ENOSYS" => Some(errno(libc::ENOSYS)),
                "arguments" => None,
                other => panic!("{name}: {other}"),
            };
            let capabilities = fields.map(bit).fold(0, |set, bit| set | bit);
            Line {
                name,
                numbers,
                answer,
                capabilities,
            }
        })
        .collect()
}

/// The lines by the number of one architecture.
fn by_number(table: &[Line], architecture: usize) -> BTreeMap<u32, &Line> {
    let mut lines = BTreeMap::new();
    for line in table {
        if let Some(number) = line.numbers[architecture] {
            let other = lines.insert(number, line);
            assert!(other.is_none(), "{} and {}", line.name, other.unwrap().name);
        }
    }
    lines
}

#[test]
fn every_call_is_answered_as_the_table_says_with_every_capability() {
    let (table, cache) = (table(), SeccompCache::default());
    let mut wrong = Vec::new();
    for (set, bounding) in bounding_sets() {
        let program = own_profile(&cache, bounding);
        for (n, (architecture, audit, flag)) in ARCHITECTURES.into_iter().enumerate() {
            let lines = by_number(&table, n);
            for number in 0..END + 76 {
                // map_shadow_stack, which x32 does not have: whether its number there is denied depends on libseccomp.
                if (number, flag) == (453, X32_FLAG) {
                    continue;
                }
                let (name, expected) = match lines.get(&number) {
                    Some(line) if line.capabilities & bounding != 0 => (line.name, ALLOWED),
                    Some(line) => match line.answer {
                        Some(answer) => (line.name, answer),
                        None => continue,
                    },
                    // What there is not yet; x32 has calls of its own there.
                    None if number > NEWEST && number < END && flag == 0 => ("-", errno(libc::ENOSYS)),
                    None => ("-", errno(libc::EPERM)),
                };
                let found = answer(&program, &Call::new(audit, number | flag, 0));
                if found != expected {
                    wrong.push(format!(
                        "{architecture} {number} {name}, capabilities {set}: {found:#x}, not {expected:#x}"
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_table_has_every_call_that_there_is() {
    let table = table();
    for (n, (architecture, scmp)) in [
        ("x86-64", ScmpArch::X8664),
        ("x86", ScmpArch::X86),
        ("x32", ScmpArch::X32),
    ]
    .into_iter()
    .enumerate()
    {
        let lines = by_number(&table, n);
        let flag = ARCHITECTURES[n].2;
        for number in (0..=NEWEST).chain(512..560) {
            let known = ScmpSyscall::from_raw_syscall((number | flag) as i32)
                .get_name_by_arch(scmp)
                .ok();
            let listed = lines.get(&number).map(|line| line.name);
            assert!(
                known.is_none() || listed == known.as_deref(),
                "{architecture} {number}: {known:?}, in the table {listed:?}"
            );
        }
    }
    let lines = by_number(&table, 0);
    for number in (0..=336).chain(424..=NEWEST) {
        assert!(lines.contains_key(&number), "x86-64 {number} is not in the table");
    }
}

/// The calls of the table, by their names, with a first argument.
fn calls(table: &[Line], name: &str, argument: u64) -> Vec<Call> {
    let line = table.iter().find(|line| line.name == name).unwrap();
    let numbers = line.numbers.into_iter().zip(ARCHITECTURES);
    numbers
        .filter_map(|(number, (_, audit, flag))| Some(Call::new(audit, number? | flag, argument)))
        .collect()
}

/// Name, argument, whether it is allowed without SYS_ADMIN.
fn by_argument() -> Vec<(&'static str, u64, bool)> {
    let mut cases = Vec::new();
    let thread =
        (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
    let newtime = 0x80;
    let namespaces = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    for name in ["clone", "unshare"] {
        cases.push((name, 0, true));
        cases.push((name, thread, true));
        for namespace in namespaces {
            cases.push((name, namespace as u64, false));
            cases.push((name, namespace as u64 | thread, false));
        }
        cases.push((
            name,
            namespaces.into_iter().fold(0, |all, flag| all | flag as u64),
            false,
        ));
    }
    // There the exit signal is, and no namespace of time.
    cases.push(("clone", libc::SIGCHLD as u64, true));
    cases.push(("clone", newtime, true));
    cases.push(("unshare", newtime, false));

    for family in 0..64 {
        cases.push(("socket", family, family < 46 && family != 38 && family != 40));
    }
    // The kernel takes an int.
    for family in [38, 40, 99, 0xffff_ffff] {
        cases.push(("socket", family, false));
    }
    for persona in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        cases.push(("personality", persona, true));
    }
    for persona in [1, 6, 9, 0x4_0000, 0x2_0001, 0x6_0008, 0x40_0000, 0xffff_fffe] {
        cases.push(("personality", persona, false));
    }
    cases
}

#[test]
fn arguments_decide_about_namespaces_families_of_sockets_and_personalities() {
    let (table, cache) = (table(), SeccompCache::default());
    let usual = USUAL.split_whitespace().map(bit).fold(0, |set, bit| set | bit);
    let answered = |name: &str, bounding, call: &Call| {
        let found = answer(&own_profile(&cache, bounding), call);
        assert!(
            found == ALLOWED || found == errno(libc::EPERM),
            "{name} {call:x?}: {found:#x}"
        );
        found == ALLOWED
    };
    for (name, argument, allowed) in by_argument() {
        for call in calls(&table, name, argument) {
            assert_eq!(answered(name, 0, &call), allowed, "{name} {call:x?}");
            assert_eq!(answered(name, usual, &call), allowed, "{name} {call:x?}");
            let with_admin = allowed || ["clone", "unshare"].contains(&name);
            assert_eq!(answered(name, bit("SYS_ADMIN"), &call), with_admin, "{name} {call:x?}");
            assert_eq!(answered(name, ALL, &call), with_admin, "{name} {call:x?}");
        }
    }
    // Of x86-64 alone an argument has more bits than the kernel takes of it: they must not make another one of it.
    for family in [38, 40] {
        let call = Call::new(X86_64, libc::SYS_socket as u32, 1 << 32 | family);
        assert!(!answered("socket", ALL, &call), "socket {call:x?}");
    }
    for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS] {
        for number in [libc::SYS_clone, libc::SYS_unshare] {
            let call = Call::new(X86_64, number as u32, 1 << 32 | namespace as u64);
            assert!(!answered("of a namespace", 0, &call), "{call:x?}");
        }
    }
}

#[test]
fn the_kernel_answers_as_the_interpreter_does() {
    let (table, cache) = (table(), SeccompCache::default());
    let mut calls: Vec<Call> = ARCHITECTURES
        .into_iter()
        .flat_map(|(_, audit, flag)| (0..END + 76).map(move |number| Call::new(audit, number | flag, 0)))
        .collect();
    calls.extend(
        by_argument()
            .iter()
            .flat_map(|(name, argument, _)| self::calls(&table, name, *argument)),
    );
    calls.push(Call::new(X86_64, libc::SYS_socket as u32, 1 << 32 | 38));
    for (set, bounding) in bounding_sets() {
        let program = own_profile(&cache, bounding);
        for (call, found) in calls.iter().zip(of_the_kernel(&program, &calls)) {
            let Some(found) = found else { continue };
            let expected = answer(&program, call);
            assert_eq!(found, expected, "{call:x?}, capabilities {set}");
        }
    }
}
