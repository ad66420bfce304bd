//! What verbose answers tell people and their tools.

use std::path::PathBuf;

use crisp::cri;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use crate::fixture::{OwnWorld, ask, resources, security};

/// An entry of a list, by the value of one of its members.
fn entry<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let mut entries = list.as_array().unwrap().iter();
    entries
        .find(|entry| entry[key] == value)
        .unwrap_or_else(|| panic!("no {key} {value} in {list}"))
}

#[test]
fn a_container_is_told_as_an_oci_runtime_specification_also_after_a_restart() {
    let own = OwnWorld::new("verbose");
    let pod = own.0.pod("told");
    let source = own.0.directory("source");
    let c = pod.idle("c", |config| {
        security(config).masked_paths.push("/proc/kcore".into());
        *resources(config) = cri::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        };
        config.envs.push(cri::KeyValue {
            key: "NAME".into(),
            value: "value".into(),
        });
        config.mounts.push(cri::Mount {
            container_path: "/mnt".into(),
            host_path: source.display().to_string(),
            readonly: true,
            ..Default::default()
        });
    });
    own.0.crisps_dir();
    let spec = c.info()["runtimeSpec"].clone();
    assert_eq!(spec["process"]["args"], json!(["sleep", "100000"]));
    assert!(
        spec["process"]["env"]
            .as_array()
            .unwrap()
            .contains(&json!("NAME=value"))
    );
    let bounding = spec["process"]["capabilities"]["bounding"].as_array().unwrap().clone();
    assert!(bounding.contains(&json!("CAP_CHOWN")) && !bounding.contains(&json!("CAP_SYS_ADMIN")));
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], c.cgroup());
    assert_eq!(linux["resources"]["memory"], json!({ "limit": 64 << 20 }));
    assert_eq!(linux["resources"]["cpu"], json!({ "shares": 512 }));
    assert!(linux["maskedPaths"] == json!(["/proc/kcore"]));
    let pause = pod.pid();
    assert_eq!(
        entry(&linux["namespaces"], "type", "ipc")["path"],
        format!("/proc/{pause}/ns/ipc")
    );
    assert_eq!(
        entry(&linux["namespaces"], "type", "network")["path"],
        pod.info()["netns"]
    );
    let bind = entry(&spec["mounts"], "destination", "/mnt");
    assert_eq!(bind["source"], source.display().to_string());
    assert!(bind["options"].as_array().unwrap().contains(&json!("ro")));
    assert_eq!(c.info()["runtimeSpecError"], Value::Null);
    own.0.restart();
    assert_eq!(c.info()["runtimeSpec"], spec);
}

#[test]
fn a_pod_is_told_with_its_namespaces() {
    let pod = crate::fixture::world().pod_with("told-pod", |config| {
        let linux = config.linux.get_or_insert_default();
        linux
            .sysctls
            .insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    });
    pod.world.crisps_dir();
    let info = pod.info();
    let spec = &info["runtimeSpec"];
    assert_eq!(
        (&spec["hostname"], &spec["linux"]["cgroupsPath"]),
        (&json!("told-pod"), &info["cgroup"])
    );
    assert_eq!(
        spec["linux"]["sysctl"],
        json!({ "net.ipv4.ip_unprivileged_port_start": "80" })
    );
    let namespaces = &spec["linux"]["namespaces"];
    let of = |kind: &str| PathBuf::from(entry(namespaces, "type", kind)["path"].as_str().unwrap());
    assert_eq!(json!(of("network")), info["netns"]);
    for kind in ["mount", "uts", "ipc", "network"] {
        assert!(of(kind).exists(), "{kind}: {}", of(kind).display());
    }
    assert!(
        !namespaces
            .as_array()
            .unwrap()
            .iter()
            .any(|namespace| namespace["type"] == "user")
    );
}

/// What the node tells of itself.
fn status(own: &OwnWorld) -> cri::StatusResponse {
    ask(own.0.runtime().status(cri::StatusRequest { verbose: true })).unwrap()
}

#[test]
fn the_node_tells_where_pods_get_their_network_from() {
    let own = OwnWorld::new("cniconfig");
    own.0.crisps_dir();
    let told: Value = serde_json::from_str(&status(&own).info["cniconfig"]).unwrap();
    assert_eq!(told["network"], json!({ "name": "embedded" }));
    assert!(told["confDir"].is_string(), "{told}");
}

#[test]
fn a_runtime_that_cannot_write_its_records_is_not_ready() {
    let own = OwnWorld::new("read-only");
    let dir = own.0.crisps_dir().join("d/lib");
    let ready = || {
        let conditions = status(&own).status.unwrap().conditions;
        let ready = conditions.iter().find(|condition| condition.r#type == "RuntimeReady");
        ready.unwrap().clone()
    };
    assert!(ready().status);
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        }
    }
    mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let mounted = Mounted(dir.clone());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &dir, None::<&str>, flags, None::<&str>).unwrap();
    let told = ready();
    assert_eq!((told.status, told.reason.as_str()), (false, "StateNotWritable"));
    assert!(told.message.contains(dir.to_str().unwrap()), "{told:?}");
    drop(mounted);
    assert!(ready().status);
}
