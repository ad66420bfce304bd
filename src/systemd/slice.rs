//! Names of slices, and where in the cgroup tree they are (systemd.slice(5), systemd.unit(5)).

use std::fmt;

/// The longest name of a unit, in bytes (UNIT_NAME_MAX, less the zero).
const NAME_BYTES: usize = 255;

/// Why a text is no name of a slice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of a slice: {why}")]
pub struct SliceError {
    name: String,
    why: &'static str,
}

/// The name of a slice: `a-b.slice` is below `a.slice`; `-.slice` is the root of all.
#[derive(Clone, PartialEq, Eq)]
pub struct Slice(String);

impl Slice {
    /// Takes a name as systemd does: letters, digits and `:-_.\`, each dash between two parts that are not empty. The
    /// path of the slice's cgroup names it, too.
    pub fn parse(name: &str) -> Result<Self, SliceError> {
        let refuse = |why| {
            Err(SliceError {
                name: name.to_owned(),
                why,
            })
        };
        if let Some((_, last)) = name.rsplit_once('/') {
            return match Self::parse(last) {
                Ok(slice) if slice.cgroup() == name => Ok(slice),
                _ => refuse("nor the path of one, which the cgroup driver systemd needs"),
            };
        }
        if name.len() > NAME_BYTES {
            return refuse("longer than 255 bytes");
        }
        let Some(stem) = name.strip_suffix(".slice") else {
            return refuse("it does not end in .slice");
        };
        if stem == "-" {
            return Ok(Self(name.to_owned()));
        }
        if !stem
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b":-_.\\".contains(&b))
        {
            return refuse("a character that no slice has");
        }
        if stem.split('-').any(str::is_empty) {
            return refuse("an empty part between dashes");
        }
        Ok(Self(name.to_owned()))
    }

    /// The name, `.slice` included.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The path of its cgroup from the root: empty for the root, else absolute.
    pub fn cgroup(&self) -> String {
        let stem = self.0.strip_suffix(".slice").unwrap_or(&self.0);
        if stem == "-" {
            return String::new();
        }
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        ends.map(|end| format!("/{}.slice", &stem[..end])).collect()
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Slice;

    #[test]
    fn a_slice_is_below_those_that_its_name_begins_with() {
        let at = |name: &str| Slice::parse(name).unwrap().cgroup();
        assert_eq!(at("-.slice"), "");
        assert_eq!(at("system.slice"), "/system.slice");
        assert_eq!(
            at("kubepods-besteffort-pod1_2.slice"),
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice"
        );
        assert_eq!(at("a\\x2db.slice"), "/a\\x2db.slice");
        assert_eq!(at("a.slice.slice"), "/a.slice.slice");
        assert_eq!(at("/a.slice"), "/a.slice");
        assert_eq!(at("/a.slice/a-b.slice"), "/a.slice/a-b.slice");
    }

    #[test]
    fn what_systemd_would_not_take_is_refused() {
        for bad in [
            "",
            ".slice",
            "a",
            "a.scope",
            "/kubepods/a",
            "/b.slice/a.slice",
            "/a-b.slice",
            "a.slice/a-b.slice",
            "/",
            "/-.slice",
            "a.slice/b.slice",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "--.slice",
            "a b.slice",
            "a\n.slice",
            "a@b.slice",
            "\u{e9}.slice",
            "../a.slice",
        ] {
            assert!(Slice::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Slice::parse(&format!("{}.slice", "a".repeat(250))).is_err());
    }
}
