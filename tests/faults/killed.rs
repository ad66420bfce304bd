//! The daemon is killed, or fails, at every step that it records: the next one finishes or undoes, the same request again
//! succeeds, containers never notice, and nothing is left.

use std::collections::BTreeSet;
use std::path::Path;

use crisp::cri;
use tonic::Status;

use crate::daemon::{Client, Machine, cgroup_driver};
use crate::pods::{COUNTER, IDLER, STUBBORN, container, counted, log_lines, logs, pod, start, until};

/// Every point that a pod meets in its life.
const POINTS: &[&str] = &[
    "run: recorded",
    "run: cgroup made",
    "run: network namespace made",
    "run: network added",
    "run: pause made",
    "run: network and pause up",
    "run: ready recorded",
    "run: committed",
    "create: cgroup made",
    "create: described",
    "create: recorded",
    "create: cgroup limited",
    "create: process made",
    "create: committed",
    "start: begun",
    "start: executed",
    "start: recorded",
    "container stop: signalled",
    "container stop: killed",
    "container remove: stopped",
    "container remove: recorded",
    "container remove: forgotten",
    "container remove: deleted by its runtime",
    "container remove: cgroup removed",
    "container remove: directories removed",
    "stop: recorded",
    "stop: containers ended",
    "stop: network released",
    "stop: pause ended",
    "stop: namespaces removed",
    "stop: cgroup removed",
    "remove: recorded",
    "remove: containers removed",
    "remove: cgroup parent removed",
    "remove: directories removed",
];

/// What has been done cannot fail any more: these only kill.
const BEYOND_FAILURE: &[&str] = &[
    "run: committed",
    "create: committed",
    "start: executed",
    "start: recorded",
];

/// Points of the image room; `images` tests them.
pub const PULL_POINTS: &[&str] = &[
    "pull: layer unpacked",
    "pull: layers published",
    "pull: image written",
    "pull: image recorded",
];

/// Points on the way back from a failure; `cancelled` tests them.
pub const UNDO_POINTS: &[&str] = &["create: cgroup unmade"];

/// Points with systemd as the cgroup driver alone: `hack/lane` runs these tests by it.
const SYSTEMD_POINTS: &[&str] = &["run: scope made"];

/// Every point that a pod meets with the driver under test.
fn points() -> impl Iterator<Item = &'static &'static str> {
    let further = if cgroup_driver() == "systemd" {
        SYSTEMD_POINTS
    } else {
        &[]
    };
    POINTS.iter().chain(further)
}

/// Story: a step that somebody adds, and its point, must not go without a test.
#[test]
fn every_fail_point_of_the_source_is_tested() {
    fn collect(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for call in ["fault::point(\"", "fault::blocking_point(\""] {
                found.extend(
                    text.split(call)
                        .skip(1)
                        .map(|rest| rest.split('"').next().unwrap().to_owned()),
                );
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let tested: BTreeSet<String> = POINTS
        .iter()
        .chain(PULL_POINTS)
        .chain(UNDO_POINTS)
        .chain(SYSTEMD_POINTS)
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(found, tested);
}

/// Sends requests; when a fault strikes, sees to it that the daemon lives, and sends the same one again.
struct Persistent<'a> {
    machine: &'a mut Machine,
    /// Its pods have a user namespace.
    change: fn(&mut cri::PodSandboxConfig),
    kills: bool,
    point: &'static str,
    struck: usize,
}

impl Persistent<'_> {
    async fn ask<T>(&mut self, what: &str, request: impl AsyncFn(Client) -> Result<T, Status>) -> T {
        let refusal = match request(self.machine.client()).await {
            Ok(answer) => return answer,
            Err(status) => status,
        };
        self.struck += 1;
        if self.kills {
            self.machine.died().await;
            self.machine.start().await;
        } else {
            assert!(refusal.message().contains("injected fault"), "{what}: {refusal:?}");
        }
        let again = request(self.machine.client()).await;
        again.unwrap_or_else(|status| {
            let (point, code) = (self.point, status.code());
            panic!("{point}: {what}, asked again: {code:?}: {}", status.message())
        })
    }

    /// A whole life of a pod with two containers.
    async fn live(&mut self, name: &str) {
        let mut pod_config = pod(self.machine, name);
        (self.change)(&mut pod_config);
        let pod_id = self
            .ask("RunPodSandbox", async |client| client.run_pod(&pod_config).await)
            .await;
        let mut ids = Vec::new();
        for (name, script) in [("idler", IDLER), ("stubborn", STUBBORN)] {
            let config = container(self.machine, name, script);
            let id = self
                .ask("CreateContainer", async |client| client.create(&pod_id, &config).await)
                .await;
            self.ask("StartContainer", async |client| client.start(&id).await).await;
            ids.push(id);
        }
        let client = self.machine.client();
        assert_eq!(
            client.exec(&ids[0], "echo alive", 10).await.expect("ExecSync").stdout,
            b"alive\n"
        );
        let (idler, stubborn) = (&ids[0], &ids[1]);
        self.ask("StopContainer", async |client| client.stop(idler, 30).await)
            .await;
        self.ask("RemoveContainer", async |client| client.remove(idler).await)
            .await;
        let client = self.machine.client();
        assert_eq!(
            client.status(stubborn).await.state(),
            cri::ContainerState::ContainerRunning
        );
        self.ask("StopPodSandbox", async |client| client.stop_pod(&pod_id).await)
            .await;
        self.ask("RemovePodSandbox", async |client| client.remove_pod(&pod_id).await)
            .await;
    }
}

/// Gives the pod a user namespace.
fn own_users(config: &mut cri::PodSandboxConfig) {
    let mapping = vec![cri::IdMapping {
        host_id: 1 << 20,
        container_id: 0,
        length: 65_536,
    }];
    let context = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    context.namespace_options.get_or_insert_default().userns_options = Some(cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: mapping.clone(),
        gids: mapping,
    });
}

/// Gives the pod a sysctl of its interface: pause waits for the network then, and is not made beside it.
fn interface_sysctl(config: &mut cri::PodSandboxConfig) {
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.conf.eth0.log_martians".to_owned(), "1".to_owned());
}

/// A container that nothing may disturb.
struct Bystander {
    pod_id: String,
    id: String,
    pid: i32,
}

impl Bystander {
    async fn new(machine: &Machine) -> Self {
        let client = machine.client();
        let pod_id = client.run_pod(&pod(machine, "bystander")).await.expect("RunPodSandbox");
        let id = client.launch(&pod_id, &container(machine, "counter", COUNTER)).await;
        let log = logs(machine, "bystander").join("counter.log");
        until("it counts", async || counted(&log_lines(&log)) > 2).await;
        let pid = client.container_pid(&id).await;
        Self { pod_id, id, pid }
    }

    async fn noticed_nothing(&self, machine: &Machine) {
        let client = machine.client();
        assert!(client.is_ready(&self.pod_id).await);
        let status = client.status(&self.id).await;
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
        assert_eq!(client.container_pid(&self.id).await, self.pid);
        assert_eq!(
            client.exec(&self.id, "echo alive", 10).await.expect("ExecSync").stdout,
            b"alive\n"
        );
        counted(&log_lines(&logs(machine, "bystander").join("counter.log")));
    }

    async fn end(self, machine: &Machine) {
        let log = logs(machine, "bystander").join("counter.log");
        assert!(counted(&log_lines(&log)) > 20, "it did not count");
        machine.client().end_pod(&self.pod_id).await;
    }
}

async fn every_point(
    machine: &mut Machine,
    kills: bool,
    change: fn(&mut cri::PodSandboxConfig),
    points: impl Iterator<Item = &&'static str>,
) {
    let _registry = start(machine).await;
    machine.client().warm_up(machine).await;
    let empty = machine.look();
    let bystander = Bystander::new(machine).await;
    let alone = machine.look();
    for (number, point) in points.enumerate() {
        machine.kill();
        machine
            .start_with(&format!("{}@{point}", if kills { "kill" } else { "error" }))
            .await;
        let mut life = Persistent {
            machine,
            kills,
            change,
            point,
            struck: 0,
        };
        life.live(&format!("pod-{number}")).await;
        assert_eq!(life.struck, 1, "{point}: the fault did not strike");
        bystander.noticed_nothing(machine).await;
        assert_eq!(
            machine.client().pods().await,
            std::slice::from_ref(&bystander.pod_id),
            "{point}"
        );
        assert_eq!(
            machine.client().containers().await,
            std::slice::from_ref(&bystander.id),
            "{point}"
        );
        machine.nothing_is_left_since(&alone);
        eprintln!("{point}: done");
    }
    bystander.end(machine).await;
    machine.nothing_is_left_since(&empty);
}

#[test]
fn killed_at_every_point_the_daemon_finishes_or_undoes() {
    Machine::test("kill", async |machine| {
        every_point(machine, true, |_| {}, points()).await
    });
}

#[test]
fn failing_at_every_point_the_daemon_undoes_and_the_same_request_succeeds() {
    let points = points().filter(|point| !BEYOND_FAILURE.contains(point));
    Machine::test("error", async |machine| {
        every_point(machine, false, |_| {}, points).await
    });
}

/// Where a pod's user namespace makes a difference: while there is something of it, and while its containers use it.
const POINTS_OF_USERS: &[&str] = &[
    "run: network namespace made",
    "run: network added",
    "run: pause made",
    "run: ready recorded",
    "create: described",
    "create: process made",
    "start: executed",
    "stop: network released",
    "container remove: directories removed",
];

#[test]
fn killed_with_a_pod_that_has_a_user_namespace_the_daemon_finishes_or_undoes() {
    Machine::test("kill-users", async |machine| {
        every_point(machine, true, own_users, POINTS_OF_USERS.iter()).await
    });
}

/// Where it makes a difference whether pause is made beside the network or after it.
const POINTS_OF_THE_NETWORK: &[&str] = &["run: network namespace made", "run: network added", "run: pause made"];

#[test]
fn killed_or_failing_with_a_pod_whose_pause_waits_for_its_network_the_daemon_finishes_or_undoes() {
    for kills in [true, false] {
        Machine::test("kill-sysctl", async |machine| {
            every_point(machine, kills, interface_sysctl, POINTS_OF_THE_NETWORK.iter()).await
        });
    }
}
