//! Runtime handlers: what makes the containers of a pod. `""` is libcontainer, built in; the others are external OCI
//! runtimes, by their command line.
//!
//! - `features`: what a runtime says of itself. - `delete`: has it forget a container.

mod delete;
mod features;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use delete::{DeleteError, delete};
pub use features::Features;

use crate::model::OciRuntime;

/// One that can be named by a pod.
#[derive(Debug)]
pub struct Handler {
    /// None: libcontainer.
    pub runtime: Option<OciRuntime>,
    pub features: Features,
}

/// A name that no handler has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to find runtime handler {handler:?}: configured are {known:?}")]
pub struct UnknownHandler {
    handler: String,
    known: Vec<String>,
}

/// All handlers. They do not change while the daemon lives.
#[derive(Debug)]
pub struct Handlers {
    handlers: BTreeMap<String, Handler>,
    /// Mount points that no external runtime sees.
    pub hidden: Vec<PathBuf>,
}

impl Handlers {
    /// The built-in handler and `runtimes`, each of which is asked now, all at once, what it can do. One that does not
    /// answer has none of the features.
    ///
    /// `cgroup2_beside_v1` is where a cgroup2 is mounted beside cgroup v1, if so: crun refuses to work there, and crisp alone
    /// uses that hierarchy. Runtimes do not see it; their processes are born in the right place.
    pub async fn open(runtimes: BTreeMap<String, OciRuntime>, cgroup2_beside_v1: Option<&Path>) -> Self {
        let asked = runtimes.into_iter().map(|(name, runtime)| async {
            let features = features::ask(&name, &runtime).await;
            let runtime = Some(runtime);
            (name, Handler { runtime, features })
        });
        let mut handlers: BTreeMap<_, _> = futures_util::future::join_all(asked).await.into_iter().collect();
        let built_in = Handler {
            runtime: None,
            features: Features::BUILT_IN,
        };
        handlers.insert(String::new(), built_in);
        Self {
            handlers,
            hidden: cgroup2_beside_v1.map(Path::to_owned).into_iter().collect(),
        }
    }

    /// The handler of this name.
    pub fn find(&self, name: &str) -> Result<&Handler, UnknownHandler> {
        self.handlers.get(name).ok_or_else(|| UnknownHandler {
            handler: name.to_owned(),
            known: self.handlers.keys().cloned().collect(),
        })
    }

    /// All, by name: the built-in one first.
    pub fn list(&self) -> impl Iterator<Item = (&str, &Handler)> {
        self.handlers.iter().map(|(name, handler)| (name.as_str(), handler))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_built_in_handler_comes_first_and_an_unknown_one_is_told_with_those_there_are() {
        let runtime = OciRuntime {
            path: "/bin/false".into(),
            options: Vec::new(),
            annotations: Vec::new(),
        };
        let runtimes = BTreeMap::from([("zz".to_owned(), runtime.clone()), ("aa".to_owned(), runtime)]);
        let handlers = Handlers::open(runtimes, None).await;
        let names: Vec<&str> = handlers.list().map(|(name, _)| name).collect();
        assert_eq!(names, ["", "aa", "zz"]);
        let told = handlers.find("kata").expect_err("there is none").to_string();
        assert_eq!(
            told,
            r#"failed to find runtime handler "kata": configured are ["", "aa", "zz"]"#
        );
        assert!(handlers.find("").expect("built in").features.recursive_read_only_mounts);
        assert_eq!(handlers.find("aa").expect("configured").features, Features::default());
    }
}
