//! Capabilities: names, the default set, adding and dropping, and what this host can give.

use super::super::error::SpecError;
use super::super::host::HostFacts;
use super::super::policy::CapabilitySets;
use crate::cri;

/// Names in the order of their numbers (linux/capability.h), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const ALL: u64 = (1 << NAMES.len()) - 1;

/// The bit of CAP_SYS_RESOURCE.
pub const SYS_RESOURCE: u64 = 1 << 24;

/// What a container has unless told otherwise; the set that images are built for.
const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// The name of capability `number`, without `CAP_`.
pub fn name(number: usize) -> Option<&'static str> {
    NAMES.get(number).copied()
}

/// The names of a set.
pub(super) fn names(set: u64) -> Vec<&'static str> {
    NAMES
        .iter()
        .enumerate()
        .filter(|(n, _)| set & (1 << n) != 0)
        .map(|(_, name)| *name)
        .collect()
}

/// The bit of a capability of [`NAMES`].
pub fn bit(name: &str) -> u64 {
    let number = NAMES
        .iter()
        .position(|n| *n == name)
        .expect("only names of the table are used here");
    1 << number
}

/// One name, in any case, with or without `CAP_`: its bit, or all bits for `ALL`.
fn parse(text: &str) -> Result<u64, SpecError> {
    let upper = text.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(ALL);
    }
    let number = NAMES.iter().position(|name| *name == short);
    number.map(|n| 1 << n).ok_or_else(|| SpecError::UnknownCapability {
        name: text.chars().take(64).collect(),
    })
}

/// A list: whether it holds `ALL`, and the capabilities that it names one by one.
fn parse_list(list: &[String]) -> Result<(bool, u64), SpecError> {
    let mut single = 0;
    let mut all = false;
    for text in list {
        match parse(text)? {
            ALL => all = true,
            bit => single |= bit,
        }
    }
    Ok((all, single))
}

/// The sets of a container, and what was asked for but is outside the daemon's own bounding set.
///
/// `ALL` is applied before single names, so that "all but one" and "none but one" can be said. Inheritable stays
/// empty but for ambient capabilities: file capabilities must not make more of them.
pub fn resolve(
    context: &cri::LinuxContainerSecurityContext,
    host: &HostFacts,
) -> Result<(CapabilitySets, u64), SpecError> {
    let asked = context.capabilities.clone().unwrap_or_default();
    let (add_all, add) = parse_list(&asked.add_capabilities)?;
    let (drop_all, drop) = parse_list(&asked.drop_capabilities)?;
    let (ambient_all, ambient) = parse_list(&asked.add_ambient_capabilities)?;
    let mut wanted = DEFAULT.into_iter().map(bit).fold(0, |set, bit| set | bit);
    let mut ambient = if ambient_all { ALL } else { ambient };
    if add_all {
        wanted = ALL;
    }
    if drop_all {
        wanted = 0;
    }
    wanted = (wanted | add | ambient) & !drop;
    ambient &= !drop;
    if context.privileged {
        wanted = ALL;
    }
    let set = wanted & host.bounding;
    ambient &= set;
    let sets = CapabilitySets {
        bounding: set,
        effective: set,
        permitted: set,
        inheritable: ambient,
        ambient,
    };
    Ok((sets, wanted & !host.bounding))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Added, dropped, ambient, and the result in words.
    type Case = (
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
        &'static str,
    );

    const CASES: &[Case] = &[
        (&[], &[], &[], "default"),
        (&["NET_ADMIN"], &[], &[], "default NET_ADMIN"),
        (
            &["cap_net_admin"],
            &["CAP_CHOWN", "chown"],
            &[],
            "default NET_ADMIN -CHOWN",
        ),
        (&["ALL"], &[], &[], "all"),
        (&["cap_all"], &["CHOWN"], &[], "all -CHOWN"),
        (&[], &["ALL"], &[], ""),
        (&["SYS_TIME"], &["All"], &[], "SYS_TIME"),
        (&["SYS_TIME"], &["SYS_TIME"], &[], "default"),
        (&[], &["ALL"], &["NET_BIND_SERVICE"], "NET_BIND_SERVICE"),
        (&["ALL"], &["ALL"], &[], ""),
    ];

    fn context(add: &[&str], drop: &[&str], ambient: &[&str]) -> cri::LinuxContainerSecurityContext {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = cri::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            add_ambient_capabilities: own(ambient),
        };
        cri::LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..Default::default()
        }
    }

    fn expected(text: &str) -> u64 {
        text.split_whitespace().fold(0, |set, word| match word {
            "default" => DEFAULT.into_iter().map(bit).fold(set, |set, bit| set | bit),
            "all" => ALL,
            word => match word.strip_prefix('-') {
                Some(dropped) => set & !parse(dropped).unwrap(),
                None => set | parse(word).unwrap(),
            },
        })
    }

    #[test]
    fn all_comes_before_single_names_and_names_are_read_in_every_form() {
        for (add, drop, ambient, result) in CASES {
            let (sets, cut) = resolve(&context(add, drop, ambient), &HostFacts::for_tests()).unwrap();
            let all_but_ambient = [sets.bounding, sets.effective, sets.permitted];
            assert_eq!(all_but_ambient, [expected(result); 3], "{add:?} {drop:?} {ambient:?}");
            assert_eq!(cut, 0);
            assert_eq!(sets.inheritable, sets.ambient);
            assert_eq!(
                sets.ambient,
                ambient.iter().map(|name| parse(name).unwrap()).sum::<u64>()
            );
        }
    }

    #[test]
    fn what_the_daemon_lacks_is_cut_and_reported() {
        let host = HostFacts {
            bounding: ALL & !SYS_RESOURCE,
            ..HostFacts::for_tests()
        };
        let (sets, cut) = resolve(&context(&["ALL"], &[], &["SYS_RESOURCE"]), &host).unwrap();
        assert_eq!(sets.bounding, ALL & !SYS_RESOURCE);
        assert_eq!(sets.ambient, 0);
        assert_eq!(names(cut), ["SYS_RESOURCE"]);
        assert_eq!(name(24), Some("SYS_RESOURCE"));
    }

    #[test]
    fn an_unknown_name_is_refused_wherever_it_stands() {
        for case in [
            context(&["CAP_FLY"], &[], &[]),
            context(&[], &["FLY"], &[]),
            context(&[], &[], &[""]),
        ] {
            let error = resolve(&case, &HostFacts::for_tests());
            assert!(matches!(error, Err(SpecError::UnknownCapability { .. })), "{error:?}");
        }
    }

    #[test]
    fn the_default_is_the_well_known_mask() {
        let (sets, _) = resolve(&Default::default(), &HostFacts::for_tests()).unwrap();
        assert_eq!(sets.effective, 0xa804_25fb);
    }
}
