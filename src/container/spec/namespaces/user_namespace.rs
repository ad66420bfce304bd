//! What a request may say of a pod's user namespace (KEP-127): one range of ids, from 0, for users and groups.

use super::super::error::SpecError;
use crate::cri;
use crate::cri::NamespaceMode;

const MODE: &str = "user namespace mode";
const UIDS: &str = "uids of the user namespace";
const GIDS: &str = "gids of the user namespace";

/// Checks the user namespace of a sandbox whose other namespaces are `options`.
pub fn check(user: &cri::UserNamespace, options: &cri::NamespaceOption) -> Result<(), SpecError> {
    let refuse = |mode: NamespaceMode, reason| Err(SpecError::invalid(MODE, mode.as_str_name(), reason));
    match NamespaceMode::try_from(user.mode) {
        Ok(NamespaceMode::Node) if user.uids.is_empty() && user.gids.is_empty() => return Ok(()),
        Ok(mode @ NamespaceMode::Node) => return refuse(mode, "takes no mappings"),
        Ok(NamespaceMode::Pod) => {}
        Ok(mode) => return refuse(mode, "makes no sense for a sandbox"),
        Err(_) => return Err(SpecError::invalid(MODE, user.mode.to_string(), "is unknown")),
    }
    if options.pid() == NamespaceMode::Node {
        return refuse(NamespaceMode::Pod, "does not go with the node's pid namespace");
    }
    for (what, map) in [(UIDS, &user.uids), (GIDS, &user.gids)] {
        check_map(what, map)?;
    }
    if user.uids != user.gids {
        return Err(SpecError::invalid(
            GIDS,
            shown(&user.gids),
            "are not mapped as the uids are",
        ));
    }
    Ok(())
}

fn check_map(what: &'static str, map: &[cri::IdMapping]) -> Result<(), SpecError> {
    let refuse = |reason| Err(SpecError::invalid(what, shown(map), reason));
    let [mapping] = map else {
        return refuse(if map.is_empty() {
            "are not mapped"
        } else {
            "have more than one mapping"
        });
    };
    if mapping.container_id != 0 {
        return refuse("do not map the container's id 0");
    }
    if mapping.length == 0 {
        return refuse("are none: the mapping's length is 0");
    }
    // The largest number is no id: it stands for "leave as it is" (chown(2)).
    if mapping.host_id.checked_add(mapping.length).is_none() {
        return refuse("reach beyond the last id of the node");
    }
    Ok(())
}

/// A container lives in the user namespace of its sandbox: what it says of its own is the same, or it is refused.
pub fn same(user: &cri::UserNamespace, sandbox: Option<&cri::NamespaceOption>) -> Result<(), SpecError> {
    let of_sandbox = sandbox.and_then(|options| options.userns_options.as_ref());
    let same = match of_sandbox {
        Some(of_sandbox) => user == of_sandbox,
        None => user.mode() == NamespaceMode::Node && user.uids.is_empty() && user.gids.is_empty(),
    };
    if same {
        return Ok(());
    }
    let mode = NamespaceMode::try_from(user.mode);
    let mode = mode.map_or_else(|_| user.mode.to_string(), |mode| mode.as_str_name().to_owned());
    Err(SpecError::invalid(
        "user namespace of the container:",
        format!("{mode} {} {}", shown(&user.uids), shown(&user.gids)),
        "is not that of its sandbox",
    ))
}

/// As in `/proc/<pid>/uid_map`: inside, outside, how many.
fn shown(map: &[cri::IdMapping]) -> String {
    let entry = |mapping: &cri::IdMapping| format!("{} {} {}", mapping.container_id, mapping.host_id, mapping.length);
    map.iter().map(entry).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> Vec<cri::IdMapping> {
        vec![cri::IdMapping {
            host_id,
            container_id,
            length,
        }]
    }

    fn user(mode: NamespaceMode, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> cri::UserNamespace {
        cri::UserNamespace {
            mode: mode.into(),
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }
    }

    #[test]
    fn one_mapping_from_id_0_for_users_and_groups() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = map(0, 1000, 9);
        let two = [good.clone(), map(9, 5000, 9)].concat();
        for (mode, uids, gids, refusal) in [
            (Node, vec![], vec![], None),
            (Pod, good.clone(), good.clone(), None),
            (Pod, map(0, u32::MAX - 9, 9), map(0, u32::MAX - 9, 9), None),
            (Node, good.clone(), good.clone(), Some("takes no mappings")),
            (Pod, good.clone(), map(0, 1000, 8), Some("not mapped as the uids")),
            (Pod, good.clone(), map(0, 1001, 9), Some("not mapped as the uids")),
            (Pod, map(1, 1000, 9), map(1, 1000, 9), Some("id 0")),
            (Pod, map(0, 1000, 0), map(0, 1000, 0), Some("length is 0")),
            (
                Pod,
                map(0, u32::MAX - 9, 10),
                map(0, u32::MAX - 9, 10),
                Some("beyond the last id"),
            ),
            (Pod, two.clone(), two.clone(), Some("more than one mapping")),
            (Pod, vec![], vec![], Some("are not mapped")),
            (Pod, good.clone(), vec![], Some("gids")),
            (Container, vec![], vec![], Some("CONTAINER")),
            (Target, good.clone(), good.clone(), Some("TARGET")),
        ] {
            let told = check(&user(mode, &uids, &gids), &cri::NamespaceOption::default());
            match (told, refusal) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{words}: {error}"),
                (told, expected) => panic!("{mode:?} {uids:?} {gids:?}: {told:?}, not {expected:?}"),
            }
        }
        let node_pids = cri::NamespaceOption {
            pid: Node.into(),
            ..Default::default()
        };
        let error = check(&user(Pod, &good, &good), &node_pids).unwrap_err().to_string();
        assert!(error.contains("node's pid namespace"), "{error}");
    }

    #[test]
    fn a_container_says_the_same_as_its_sandbox_or_nothing() {
        use NamespaceMode::{Node, Pod};
        let own = user(Pod, &map(0, 1000, 9), &map(0, 1000, 9));
        let with = |user: Option<cri::UserNamespace>| cri::NamespaceOption {
            userns_options: user,
            ..Default::default()
        };
        let node = user(Node, &[], &[]);
        for (of_container, of_sandbox, sound) in [
            (&own, Some(own.clone()), true),
            (&node, None, true),
            (&node, Some(node.clone()), true),
            (&node, Some(own.clone()), false),
            (&own, None, false),
            (&user(Pod, &map(0, 2000, 9), &map(0, 2000, 9)), Some(own.clone()), false),
        ] {
            let sandbox = with(of_sandbox);
            assert_eq!(same(of_container, Some(&sandbox)).is_ok(), sound, "{of_container:?}");
        }
    }
}
