//! Names of devices: `vendor/class=device`.

use super::CdiError;
use crate::cri;

/// Annotations whose names begin so list devices, too, separated by commas.
const ANNOTATION: &str = "cdi.k8s.io/";

/// More than any container has.
const MOST: usize = 256;

/// The name of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub text: String,
    /// `vendor/class`
    pub kind: String,
    pub device: String,
}

/// The devices that a container names, by field or annotation, each once.
pub fn requested(config: &cri::ContainerConfig) -> Result<Vec<Name>, CdiError> {
    let by_field = config.cdi_devices.iter().map(|device| device.name.as_str());
    let annotations = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    let by_annotation = annotations.flat_map(|(_, value)| value.split(',').map(str::trim));
    let mut names: Vec<Name> = Vec::new();
    for text in by_field.chain(by_annotation) {
        let name = parse(text)
            .filter(|_| names.len() < MOST)
            .ok_or_else(|| CdiError::Name {
                name: text.chars().take(120).collect(),
            })?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn parse(text: &str) -> Option<Name> {
    let (kind, device) = text.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let sound = is_word(vendor, "_-.") && is_word(class, "_-.") && is_word(device, "_-.:");
    sound.then(|| Name {
        text: text.to_owned(),
        kind: kind.to_owned(),
        device: device.to_owned(),
    })
}

/// Letters and digits, and within them some of `marks`.
fn is_word(text: &str, marks: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(is_plain) && text.ends_with(is_plain) && text.chars().all(|c| is_plain(c) || marks.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_vendor_class_and_device() {
        let name = parse("vendor.com/net-class=card:0.1").unwrap();
        assert_eq!(
            (name.kind.as_str(), name.device.as_str()),
            ("vendor.com/net-class", "card:0.1")
        );
        for bad in [
            "", "a/b", "a=b", "/b=c", "a/=c", "a/b=", "a/b=c/d", "a/b=c=d", "-a/b=c", "a/b=c ", "a/../b=c", "a/b=..",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn devices_are_named_by_field_and_annotation() {
        let config = cri::ContainerConfig {
            cdi_devices: vec![cri::CdiDevice { name: "a/b=1".into() }],
            annotations: [
                ("cdi.k8s.io/x".to_owned(), "a/b=1, a/b=2".to_owned()),
                ("other".to_owned(), "not a name".to_owned()),
            ]
            .into(),
            ..Default::default()
        };
        let names: Vec<_> = requested(&config).unwrap().into_iter().map(|name| name.text).collect();
        assert_eq!(names, ["a/b=1", "a/b=2"]);
        let bad = cri::ContainerConfig {
            annotations: [("cdi.k8s.io/x".to_owned(), "nonsense".to_owned())].into(),
            ..Default::default()
        };
        assert!(requested(&bad).unwrap_err().to_string().contains("nonsense"));
    }
}
