//! Who a container runs as: the request's and the image's words, looked up in the image's own passwd and group.

use std::os::fd::BorrowedFd;

use oci_spec::image::ImageConfiguration;

use super::error::SpecError;
use super::policy::User;
use crate::cri;
use crate::cri::SupplementalGroupsPolicy;

mod accounts;

use accounts::{Accounts, Passwd};

/// The largest id: larger ones have turned negative, or into root, in programs that keep ids in 32 bits.
const LARGEST_ID: i64 = i32::MAX as i64;

/// A process may be in this many groups (NGROUPS_MAX).
const MOST_GROUPS: u64 = 65_536;

const UMASK: u32 = 0o022;

/// A user and their home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: User,
    /// An absolute path, `/` where the image does not say.
    pub home: Vec<u8>,
}

/// A user or group by name or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Id(u32),
    Name(String),
}

/// Resolves the identity. A name comes before a number, the request before the image's USER; a group without a user
/// is refused. The primary group is also one of the supplementary ones, as a login would have it.
pub fn resolve(
    container: &cri::ContainerConfig,
    image: &ImageConfiguration,
    rootfs: BorrowedFd<'_>,
) -> Result<Identity, SpecError> {
    let context = container
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default();
    let (user, group) = match asked(&context)? {
        Some(asked) => asked,
        None => of_image(image)?,
    };
    let accounts = Accounts::read(rootfs)?;
    let entry = match &user {
        Who::Id(uid) => accounts.by_uid(*uid),
        Who::Name(name) => {
            let found = accounts.by_name(name);
            Some(found.ok_or_else(|| SpecError::UnknownUser { user: shown(name) })?)
        }
    };
    let uid = match (&user, &entry) {
        (Who::Id(uid), _) => *uid,
        (Who::Name(_), Some(entry)) => entry.uid,
        (Who::Name(name), None) => return Err(SpecError::UnknownUser { user: shown(name) }),
    };
    let gid = match group {
        Some(Who::Id(gid)) => gid,
        Some(Who::Name(name)) => accounts
            .group(&name)
            .ok_or_else(|| SpecError::UnknownGroup { group: shown(&name) })?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut gids = vec![gid];
    for asked in &context.supplemental_groups {
        gids.push(id("supplemental group", *asked)?);
    }
    match SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(SupplementalGroupsPolicy::Merge) => {
            gids.extend(
                entry
                    .as_ref()
                    .map(|entry| accounts.groups_of(&entry.name))
                    .unwrap_or_default(),
            );
        }
        Ok(SupplementalGroupsPolicy::Strict) => {}
        Err(_) => {
            let value = context.supplemental_groups_policy.to_string();
            return Err(SpecError::invalid(
                "supplemental groups policy",
                value,
                "does not exist",
            ));
        }
    }
    gids.sort_unstable();
    gids.dedup();
    let size = gids.len() as u64;
    if size > MOST_GROUPS {
        return Err(SpecError::TooLarge {
            what: "number of groups of the user",
            size,
            limit: MOST_GROUPS,
        });
    }
    let home = entry.map(home).unwrap_or_else(|| b"/".to_vec());
    Ok(Identity {
        user: User {
            uid,
            gid,
            additional_gids: gids,
            umask: UMASK,
        },
        home,
    })
}

/// Checks what needs no image: numbers, and that a group has a user.
pub(super) fn check(context: &cri::LinuxContainerSecurityContext) -> Result<(), SpecError> {
    asked(context)?;
    for group in &context.supplemental_groups {
        id("supplemental group", *group)?;
    }
    Ok(())
}

/// The user of the request, and the group if one is named.
fn asked(context: &cri::LinuxContainerSecurityContext) -> Result<Option<(Who, Option<Who>)>, SpecError> {
    let group = context.run_as_group.as_ref().map(|gid| gid.value);
    let user = if !context.run_as_username.is_empty() {
        Some(who("user name", &context.run_as_username)?)
    } else {
        context
            .run_as_user
            .as_ref()
            .map(|uid| id("user", uid.value).map(Who::Id))
            .transpose()?
    };
    match (user, group) {
        (Some(user), Some(gid)) => Ok(Some((user, Some(Who::Id(id("group", gid)?))))),
        (Some(user), None) => Ok(Some((user, None))),
        (None, Some(gid)) => Err(SpecError::GroupWithoutUser { gid }),
        (None, None) => Ok(None),
    }
}

/// The image's USER: `user`, `uid`, `user:group`, `uid:gid`, mixed; nothing is root.
fn of_image(image: &ImageConfiguration) -> Result<(Who, Option<Who>), SpecError> {
    let text = image
        .config()
        .as_ref()
        .and_then(|config| config.user().as_deref())
        .unwrap_or_default();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let user = if user.is_empty() {
        Who::Id(0)
    } else {
        who("user of the image", user)?
    };
    let group = if group.is_empty() {
        None
    } else {
        Some(who("group of the image", group)?)
    };
    Ok((user, group))
}

/// Digits are a number, with every bound checked, never a name.
fn who(what: &'static str, text: &str) -> Result<Who, SpecError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        let number = text
            .parse::<i64>()
            .map_err(|_| SpecError::invalid(what, text, "is out of range"))?;
        return id(what, number).map(Who::Id);
    }
    if text.contains([':', '\n', '\0']) {
        return Err(SpecError::invalid(what, text, "is no name"));
    }
    Ok(Who::Name(text.to_owned()))
}

fn id(what: &'static str, number: i64) -> Result<u32, SpecError> {
    match u32::try_from(number) {
        Ok(id) if number <= LARGEST_ID => Ok(id),
        _ => Err(SpecError::invalid(what, number.to_string(), "is out of range")),
    }
}

fn home(entry: Passwd) -> Vec<u8> {
    let sound = entry.home.starts_with(b"/") && entry.home.len() < libc::PATH_MAX as usize && !entry.home.contains(&0);
    if sound { entry.home } else { b"/".to_vec() }
}

fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
