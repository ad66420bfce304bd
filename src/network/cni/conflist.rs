//! A network configuration list (CNI spec 1.1, section 1), or a single plugin's configuration taken as a list of one.

use serde_json::{Map, Value};

/// Versions of the spec that are spoken, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A configuration that names no version means this one.
const UNNAMED: &str = "0.2.0";
const PLUGINS: usize = 64;

/// A spec version, comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(usize);

impl Version {
    /// CHECK, and `prevResult` at DEL, came with this.
    pub const V0_4_0: Self = Self(4);
    /// GC and STATUS came with this.
    pub const V1_1_0: Self = Self(6);

    fn parse(text: &str) -> Option<Self> {
        VERSIONS.iter().position(|version| *version == text).map(Self)
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// A valid configuration list.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfList {
    pub name: String,
    pub version: Version,
    pub plugins: Vec<Plugin>,
    pub disable_check: bool,
    pub disable_gc: bool,
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// The executable's name; never a path.
    pub kind: String,
    pub capabilities: Vec<String>,
    conf: Map<String, Value>,
}

impl ConfList {
    /// Reads and checks `text`. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let name = list.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !is_name(&name) {
            return Err(format!("{name:?} is no name of a network"));
        }
        let version = version(&list)?;
        let flag = |key| {
            list.get(key)
                .is_some_and(|value| *value == Value::Bool(true) || value == "true")
        };
        let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
        let plugins = match list.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            Some(_) => return Err("plugins is no list".to_owned()),
            None => vec![Value::Object(list)],
        };
        if plugins.is_empty() || plugins.len() > PLUGINS {
            return Err(format!("it has {} plugins, which is not 1 to {PLUGINS}", plugins.len()));
        }
        let plugins = plugins.into_iter().map(Plugin::read).collect::<Result<_, _>>()?;
        Ok(Self {
            name,
            version,
            plugins,
            disable_check,
            disable_gc,
        })
    }
}

/// The newest version that both it and we speak.
fn version(list: &Map<String, Value>) -> Result<Version, String> {
    let named = match list.get("cniVersion") {
        None => UNNAMED,
        Some(version) => version.as_str().ok_or("cniVersion is no text")?,
    };
    let several = list
        .get("cniVersions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    several
        .chain([named])
        .filter_map(Version::parse)
        .max()
        .ok_or_else(|| format!("CNI version {named:?} is not known"))
}

impl Plugin {
    fn read(plugin: Value) -> Result<Self, String> {
        let Value::Object(mut conf) = plugin else {
            return Err("a plugin is no object".to_owned());
        };
        let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !is_name(&kind) {
            return Err(format!("{kind:?} is no name of a plugin"));
        }
        let capabilities = match conf.remove("capabilities") {
            Some(Value::Object(all)) => all
                .into_iter()
                .filter(|(_, on)| *on == Value::Bool(true))
                .map(|(c, _)| c)
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            kind,
            capabilities,
            conf,
        })
    }

    /// What this plugin reads from its standard input (section 3, "deriving execution configuration").
    pub fn execution(&self, list: &ConfList, runtime: Map<String, Value>, extra: Map<String, Value>) -> Value {
        let mut conf = self.conf.clone();
        conf.insert("name".into(), list.name.clone().into());
        conf.insert("cniVersion".into(), list.version.as_str().into());
        if !runtime.is_empty() {
            conf.insert("runtimeConfig".into(), runtime.into());
        }
        conf.extend(extra);
        Value::Object(conf)
    }
}

/// Names of networks and plugins: what the spec allows, which is no path.
fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_and_a_single_plugin_are_read() {
        let list = ConfList::parse(
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.0.0"],"name":"net","disableCheck":true,
                "plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true,"x":false}}]}"#,
        )
        .unwrap();
        assert_eq!(
            (list.name.as_str(), list.version, list.disable_check),
            ("net", Version::V1_1_0, true)
        );
        assert_eq!(list.plugins[1].capabilities, ["portMappings"]);
        let conf = list.plugins[1].execution(&list, Map::new(), Map::new());
        assert_eq!(
            conf.to_string(),
            r#"{"cniVersion":"1.1.0","name":"net","type":"portmap"}"#
        );
        let single = ConfList::parse(r#"{"name":"one","type":"ptp","mtu":9000}"#).unwrap();
        assert_eq!(single.version.as_str(), "0.2.0");
        assert_eq!(
            single.plugins[0].execution(&single, Map::new(), Map::new())["mtu"],
            9000
        );
    }

    #[test]
    fn what_is_unusable_is_refused() {
        for text in [
            "",
            "[]",
            "{\"name\":\"net\"",
            r#"{"plugins":[{"type":"bridge"}]}"#,
            r#"{"name":"net","plugins":[]}"#,
            r#"{"name":"net","plugins":{}}"#,
            r#"{"name":"net","plugins":[{"type":"../bin/sh"}]}"#,
            r#"{"name":"net","plugins":[{"type":"/bin/sh"}]}"#,
            r#"{"name":"net","plugins":[{"type":".."}]}"#,
            r#"{"name":"net","plugins":["bridge"]}"#,
            r#"{"name":"../net","type":"bridge"}"#,
            r#"{"name":"net","type":"bridge","cniVersion":"7.0.0"}"#,
            r#"{"name":"net","type":"bridge","cniVersion":1}"#,
        ] {
            assert!(ConfList::parse(text).is_err(), "{text}");
        }
    }
}
