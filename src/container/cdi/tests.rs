use std::fs;
use std::path::{Path, PathBuf};

use super::apply;
use crate::cri;

const YAML: &str = "
cdiVersion: 0.6.0
kind: vendor.com/gpu
containerEdits:
  env: [COMMON=yes]
devices:
- name: \"0\"
  annotations: {a: b}
  containerEdits:
    env:
    - GPU=0
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/zero
      permissions: rw
      fileMode: 0o640
    mounts:
    - {hostPath: /usr, containerPath: /usr/driver, options: [ro, nosuid, rbind]}
    additionalGids: [44, 0]
- name: made
  containerEdits:
    deviceNodes: [{path: /dev/made, type: c, major: 10, minor: 200, uid: 5, gid: 6}]
";

fn json(device: &str, edits: &str) -> String {
    format!(
        r#"{{"cdiVersion":"0.5.0","kind":"vendor.com/x","devices":[{{"name":"{device}","containerEdits":{edits}}}]}}"#
    )
}

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn dirs(&self) -> [PathBuf; 2] {
        ["etc", "run"].map(|dir| self.0.path().join(dir))
    }

    fn ask(&self, names: &[&str]) -> Result<super::Edited, String> {
        let device = |name: &&str| cri::CdiDevice {
            name: (*name).to_owned(),
        };
        let config = cri::ContainerConfig {
            cdi_devices: names.iter().map(device).collect(),
            ..Default::default()
        };
        apply(&config, &self.dirs()).map_err(|error| crate::model::chain(&error))
    }
}

#[test]
fn a_device_brings_nodes_variables_mounts_and_groups() {
    let node = Node::new();
    node.write("etc/gpu.yaml", YAML);
    let edited = node.ask(&["vendor.com/gpu=0", "vendor.com/gpu=made"]).unwrap();
    let envs: Vec<_> = edited.config.envs.iter().map(|env| env.key.as_str()).collect();
    assert_eq!(envs, ["COMMON", "GPU"], "what is for all devices comes once");
    let mount = &edited.config.mounts[0];
    assert!(mount.readonly && mount.mount_options == ["nosuid"] && mount.container_path == "/usr/driver");
    let context = edited.config.linux.unwrap().security_context.unwrap();
    assert_eq!(context.supplemental_groups, [44]);
    let [zero, made] = &edited.devices[..] else {
        panic!("{:?}", edited.devices)
    };
    assert_eq!(
        (zero.major, zero.minor, zero.mode, zero.access.as_str()),
        (1, 5, 0o640, "rw")
    );
    assert_eq!(
        (zero.host.as_path(), zero.path.as_path()),
        (Path::new("/dev/zero"), Path::new("/dev/gpu0"))
    );
    assert_eq!((made.major, made.minor, made.uid, made.gid), (10, 200, 5, 6));
}

#[test]
fn nothing_is_read_for_a_container_without_devices() {
    let config = cri::ContainerConfig::default();
    assert!(apply(&config, &["/proc/self/mem".into()]).unwrap().devices.is_empty());
}

#[test]
fn the_later_directory_wins_and_two_files_of_one_quarrel() {
    let node = Node::new();
    node.write("etc/a.json", &json("d", r#"{"env":["FROM=etc"]}"#));
    node.write("run/a.json", &json("d", r#"{"env":["FROM=run"]}"#));
    let value = |node: &Node| {
        node.ask(&["vendor.com/x=d"])
            .map(|edited| edited.config.envs[0].value.clone())
    };
    assert_eq!(value(&node).unwrap(), b"run");
    node.write("run/b.json", &json("d", "{}"));
    let told = value(&node).unwrap_err();
    assert!(told.contains("run/a.json") && told.contains("run/b.json"), "{told}");
    fs::remove_file(node.dirs()[1].join("b.json")).unwrap();
    fs::remove_file(node.dirs()[1].join("a.json")).unwrap();
    assert_eq!(value(&node).unwrap(), b"etc", "the files are read anew");
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let unknown = Node::new();
    unknown.write("etc/broken.json", "{").write(
        "etc/odd.yaml",
        "cdiVersion: 1.0.0\nkind: a/b\ndevices: []\nsurprise: 1\n",
    );
    let told = unknown.ask(&["vendor.com/x=d"]).unwrap_err();
    for words in ["vendor.com/x=d", "broken.json", "odd.yaml", "surprise"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    for (edits, words) in [
        (
            r#"{"hooks":[{"hookName":"createContainer","path":"/bin/true"}]}"#,
            "hooks",
        ),
        (r#"{"netDevices":[{}]}"#, "network devices"),
        (r#"{"intelRdt":{}}"#, "Intel RDT"),
        (r#"{"env":["NOTHING"]}"#, "NOTHING"),
        (
            r#"{"mounts":[{"hostPath":"/no/driver","containerPath":"/d"}]}"#,
            "/no/driver",
        ),
        (
            r#"{"mounts":[{"hostPath":"/usr","containerPath":"/d","options":["odd"]}]}"#,
            "odd",
        ),
        (
            r#"{"mounts":[{"hostPath":"/usr","containerPath":"/d","type":"tmpfs"}]}"#,
            "tmpfs",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/no-such-device"}]}"#,
            "/dev/no-such-device",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/a","hostPath":"/etc/passwd"}]}"#,
            "no device",
        ),
        (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "another type"),
        (
            r#"{"deviceNodes":[{"path":"/dev/null","permissions":"x"}]}"#,
            "permissions",
        ),
        (r#"{"unknownEdit":[]}"#, "unknownEdit"),
    ] {
        let node = Node::new();
        node.write("etc/a.json", &json("d", edits));
        let told = node.ask(&["vendor.com/x=d"]).unwrap_err();
        assert!(
            told.contains(words) && told.contains("vendor.com/x=d"),
            "{words}: {told}"
        );
    }
}
