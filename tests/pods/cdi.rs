//! Devices by the Container Device Interface.

use std::fs;
use std::path::Path;

use crisp::cri;
use tonic::{Code, Status};

use crate::fixture::{Container, Pod, is_code, options, says, world};
use crate::userns::own_users;

/// A specification file of one device, `crisp.test/<class>=it`.
fn specify(class: &str, edits: &serde_json::Value) {
    let dir = world().crisps_dir().join("cdi/etc");
    fs::create_dir_all(&dir).unwrap();
    let spec = serde_json::json!({
        "cdiVersion": "0.6.0", "kind": format!("crisp.test/{class}"),
        "containerEdits": {"env": ["OF_ALL=yes"]},
        "devices": [{"name": "it", "containerEdits": edits}],
    });
    // Published as vendors should: at once.
    let part = dir.join(format!("{class}.part"));
    fs::write(&part, spec.to_string()).unwrap();
    fs::rename(part, dir.join(format!("{class}.json"))).unwrap();
}

fn with(device: &str) -> impl FnOnce(&mut cri::ContainerConfig) {
    move |config| config.cdi_devices = vec![cri::CdiDevice { name: device.into() }]
}

fn refused(pod: &Pod, device: &str) -> Status {
    let mut config = pod.config("refused", &["true"]);
    with(device)(&mut config);
    pod.try_create(config).err().expect("refused")
}

fn full(driver: &Path) -> serde_json::Value {
    serde_json::json!({
        "env": ["GPU=it"],
        "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "rw", "fileMode": 0o660, "gid": 44}],
        "mounts": [{"hostPath": driver, "containerPath": "/usr/driver", "options": ["ro", "nosuid", "rbind"]}],
        "additionalGids": [4242],
    })
}

fn has_it(c: &Container) {
    assert_eq!(
        c.sh("echo $GPU $OF_ALL; head -c 2 /dev/gpu0 | xxd -p; cat /usr/driver/lib"),
        "it yes\n0000\nthe driver"
    );
    assert_ne!(c.exec(&["touch", "/usr/driver/x"]).code, 0);
    assert!(c.sh("id -G").split(' ').any(|group| group == "4242"));
}

fn driver() -> std::path::PathBuf {
    let driver = world().directory("cdi-driver");
    fs::write(driver.join("lib"), "the driver").unwrap();
    driver
}

#[test]
fn a_container_gets_what_its_device_stands_for() {
    specify("full", &full(&driver()));
    let pod = world().pod("cdi");
    let c = pod.idle("by-field", with("crisp.test/full=it"));
    has_it(&c);
    assert_eq!(c.sh("stat -c '%a %g' /dev/gpu0"), "660 44");
    let c = pod.idle("by-annotation", |config| {
        config
            .annotations
            .insert("cdi.k8s.io/a".into(), "crisp.test/full=it".into());
    });
    has_it(&c);
    let c = pod.idle("none", |_| {});
    assert_eq!(c.exec(&["test", "-e", "/dev/gpu0"]).code, 1);
    // What was asked for is what is told.
    assert_eq!(c.status().mounts, []);
}

#[test]
fn in_a_user_namespace_too() {
    specify("users", &full(&driver()));
    let pod = world().pod_with("cdi-users", |config| options(config).userns_options = own_users());
    has_it(&pod.idle("c", with("crisp.test/users=it")));
}

#[test]
fn a_device_that_is_not_there_or_cannot_be_is_refused_by_name() {
    let pod = world().pod("cdi-bad");
    let status = refused(&pod, "crisp.test/none=it");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(says(&status, "crisp.test/none=it"), "{status}");
    let status = refused(&pod, "no name");
    assert!(is_code(&status, Code::InvalidArgument), "{status}");
    let hook = serde_json::json!({"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]});
    specify("hooked", &hook);
    let status = refused(&pod, "crisp.test/hooked=it");
    assert!(is_code(&status, Code::FailedPrecondition), "{status}");
    assert!(
        says(&status, "hooks") && says(&status, "crisp.test/hooked=it"),
        "{status}"
    );
}

#[test]
fn a_changed_file_counts_for_the_next_container() {
    let pod = world().pod("cdi-changed");
    for value in ["one", "two"] {
        specify("changing", &serde_json::json!({"env": [format!("GPU={value}")]}));
        assert_eq!(pod.idle(value, with("crisp.test/changing=it")).sh("echo $GPU"), value);
    }
}
