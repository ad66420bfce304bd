//! What only a machine with pure cgroup v2, systemd as PID 1 and AppArmor can show: `hack/lane` runs this there.
//!
//! Needs root and `hack/build`; `systemd::` and `apparmor::` also CRISP_TEST_CGROUP_DRIVER=systemd, while `limits::` takes
//! either driver.

mod apparmor;
#[path = "../pods/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[path = "../support/handlers.rs"]
#[allow(dead_code)]
mod handlers;
mod limits;
#[path = "../pods/registry.rs"]
#[allow(dead_code)]
mod registry;
mod systemd;
