//! Which entry of an index is for this machine.

use std::fmt;

use serde::Deserialize;

/// An operating system and a processor, in Go's names as the image specification wants them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// This machine.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" if cfg!(target_feature = "v7") => ("arm", "v7"),
            "arm" if cfg!(target_feature = "v6") => ("arm", "v6"),
            "arm" => ("arm", "v5"),
            "loongarch64" => ("loong64", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            other => (other, ""),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// How well something for `offered` runs here: the lower the better, `None` not at all.
    pub(super) fn rank(&self, offered: &Platform) -> Option<usize> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let ladder: &[&str] = match (self.architecture.as_str(), self.variant.as_str()) {
            ("amd64", _) => &["", "v1"],
            ("arm64", _) => &["v8", "", "v8.0"],
            ("arm", "v7") => &["v7", "", "v6", "v5"],
            ("arm", "v6") => &["v6", "", "v5"],
            ("arm", _) => &["v5", ""],
            (_, own) => return (offered.variant == own || offered.variant.is_empty()).then_some(0),
        };
        ladder.iter().position(|variant| *variant == offered.variant)
    }

    /// Whether a configuration that says it is for `offered` runs here; what it leaves out it does not deny.
    pub(super) fn takes(&self, offered: &Platform) -> bool {
        (offered.os.is_empty() || offered.os == self.os)
            && (offered.architecture.is_empty() || offered.architecture == self.architecture)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Platform;

    fn platform(architecture: &str, variant: &str) -> Platform {
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    #[test]
    fn an_arm_takes_its_own_variant_first_and_then_older_ones() {
        let host = platform("arm", "v7");
        let ranks: Vec<_> = ["v7", "v6", "v5", "v8"]
            .map(|variant| host.rank(&platform("arm", variant)))
            .into();
        assert_eq!(ranks, [Some(0), Some(2), Some(3), None]);
        assert_eq!(platform("arm64", "v8").rank(&platform("arm", "v7")), None);
        assert_eq!(platform("arm64", "v8").rank(&platform("arm64", "")), Some(1));
    }

    #[test]
    fn an_amd64_does_not_take_what_needs_a_newer_processor() {
        let host = platform("amd64", "");
        assert_eq!(host.rank(&platform("amd64", "")), Some(0));
        assert_eq!(host.rank(&platform("amd64", "v3")), None);
        assert_eq!(
            host.rank(&Platform {
                os: "windows".to_owned(),
                ..platform("amd64", "")
            }),
            None
        );
    }
}
