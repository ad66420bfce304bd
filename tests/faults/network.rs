//! CNI plugins that fail: the same request succeeds once they do not, and no address is lost.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crisp::cri;
use serde_json::json;
use tonic::Code;

use crate::daemon::Machine;
use crate::pods::{COUNTER, container, granted, namespaces, pod, start};

/// Debian's bridge behind a plugin that fails when it is told to.
struct Plugins {
    dir: PathBuf,
}

impl Plugins {
    fn install(machine: &mut Machine) -> Self {
        let dir = machine.dir().join("cni");
        let (bin, confs) = (dir.join("bin"), dir.join("net.d"));
        std::fs::create_dir_all(&bin).expect("a directory");
        std::fs::create_dir_all(&confs).expect("a directory");
        let installed = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
        let installed = installed
            .into_iter()
            .find(|dir| dir.join("bridge").exists())
            .expect("CNI plugins are installed");
        for name in ["bridge", "host-local"] {
            symlink(installed.join(name), bin.join(name)).expect("a link");
        }
        let here = dir.display();
        let script = format!(
            "#!/bin/sh\n\
             told() {{ echo '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"told to fail\"}}'; exit 1; }}\n\
             test -e {here}/fail-$CNI_COMMAND && told\n\
             test -e {here}/fail-after-$CNI_COMMAND || exec {here}/bin/bridge\n\
             {here}/bin/bridge > {here}/result && told\n"
        );
        std::fs::write(bin.join("moody"), script).expect("a script");
        std::fs::set_permissions(bin.join("moody"), std::fs::Permissions::from_mode(0o755)).expect("a script");
        let conf = json!({
            "cniVersion": "1.0.0", "name": "moody", "plugins": [{
                "type": "moody", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                "ipam": {"type": "host-local", "dataDir": dir.join("ipam"),
                         "ranges": [[{"subnet": "10.89.0.0/24"}]]},
            }],
        });
        std::fs::write(confs.join("10-moody.conflist"), conf.to_string()).expect("a file");
        let words = ["--network", "cni", "--cni-conf-dir", "", "--cni-bin-dir", ""].map(str::to_owned);
        machine.arguments = words.to_vec();
        machine.arguments[3] = confs.display().to_string();
        machine.arguments[5] = bin.display().to_string();
        Self { dir }
    }

    /// From now on, until [`Plugins::obey`], `command` fails before, or `after-` its work is done.
    fn fail(&self, command: &str) {
        std::fs::write(self.dir.join(format!("fail-{command}")), "").expect("a file");
    }

    fn obey(&self, command: &str) {
        std::fs::remove_file(self.dir.join(format!("fail-{command}"))).expect("it failed before");
    }

    /// Addresses that are given out.
    fn leases(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.join("ipam/moody"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("10.89."))
            .count()
    }
}

#[test]
fn an_add_that_fails_once_is_undone_and_the_same_request_succeeds() {
    Machine::test("cni-add", async |machine| {
        let plugins = Plugins::install(machine);
        let _registry = start(machine).await;
        let client = machine.client();
        client.warm_up(machine).await;
        assert_eq!(plugins.leases(), 0);
        let before = machine.look();
        for (number, when) in ["ADD", "after-ADD"].into_iter().enumerate() {
            let mut config = pod(machine, &format!("add-{number}"));
            config.port_mappings.clear();
            plugins.fail(when);
            let refusal = client.run_pod(&config).await.expect_err("the plugin fails");
            assert!(refusal.message().contains("told to fail"), "{refusal:?}");
            assert_eq!(client.pods().await, Vec::<String>::new());
            assert_eq!(plugins.leases(), 0, "{when}");
            machine.nothing_is_left_since(&before);
            plugins.obey(when);
            let id = client.run_pod(&config).await.expect("RunPodSandbox");
            assert_eq!(plugins.leases(), 1);
            let status = client.pod_status(&id).await;
            assert!(status.network.expect("a network").ip.starts_with("10.89.0."));
            client.end_pod(&id).await;
            assert_eq!(plugins.leases(), 0, "{when}");
            machine.nothing_is_left_since(&before);
        }
    });
}

#[test]
fn a_del_that_fails_is_tried_until_it_succeeds_and_no_address_is_lost() {
    Machine::test("cni-del", async |machine| {
        let plugins = Plugins::install(machine);
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        let mut config = pod(machine, "del");
        config.port_mappings.clear();
        let client = machine.client();
        let id = client.run_pod(&config).await.expect("RunPodSandbox");
        let container_id = client.launch(&id, &container(machine, "counter", COUNTER)).await;
        plugins.fail("DEL");
        for _ in 0..2 {
            let refusal = client.stop_pod(&id).await.expect_err("the plugin fails");
            assert!(
                refusal.code() == Code::Internal && refusal.message().contains("told to fail"),
                "{refusal:?}"
            );
            assert!(!client.is_ready(&id).await);
            client.exited(&container_id).await;
            client.remove_pod(&id).await.expect_err("its address would be lost");
            assert_eq!(plugins.leases(), 1);
        }
        machine.kill();
        machine.start().await;
        let client = machine.client();
        client.stop_pod(&id).await.expect_err("the plugin fails");
        assert_eq!(plugins.leases(), 1);
        assert_eq!(
            client.pods().await,
            std::slice::from_ref(&id),
            "a pod that holds an address is seen"
        );
        plugins.obey("DEL");
        client.stop_pod(&id).await.expect("StopPodSandbox");
        assert_eq!(plugins.leases(), 0);
        client.remove_pod(&id).await.expect("RemovePodSandbox");
        machine.nothing_is_left_since(&before);
    });
}

/// Story: an ADD that fails after it has taken an address is undone by DEL. When that fails too, and the record of the pod
/// goes, nobody will ever give the address back (containerd#5768).
#[test]
fn an_add_whose_undoing_fails_is_undone_later() {
    Machine::test("cni-both", async |machine| {
        let plugins = Plugins::install(machine);
        let _registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        let mut config = pod(machine, "both");
        config.port_mappings.clear();
        for daemon_lives in [true, false] {
            plugins.fail("after-ADD");
            plugins.fail("DEL");
            machine.client().run_pod(&config).await.expect_err("the plugin fails");
            assert_eq!(plugins.leases(), 1);
            plugins.obey("after-ADD");
            // The same request waits for no luck: it says what stands in its way.
            let refusal = machine
                .client()
                .run_pod(&config)
                .await
                .expect_err("its first try still holds an address");
            assert!(refusal.message().contains("told to fail"), "{refusal:?}");
            if !daemon_lives {
                machine.kill();
                machine.start().await;
            }
            plugins.obey("DEL");
            let client = machine.client();
            let id = client.run_pod(&config).await.expect("RunPodSandbox");
            assert_eq!(plugins.leases(), 1);
            assert_eq!(client.pods().await, std::slice::from_ref(&id));
            client.end_pod(&id).await;
            assert_eq!(plugins.leases(), 0);
            machine.nothing_is_left_since(&before);
        }
    });
}

/// Nobody has configured the network: nodes start like that, and what configures it is a pod on the node's network.
#[test]
fn without_a_network_the_node_is_not_ready_and_pods_on_its_own_network_run() {
    Machine::test("cni-none", async |machine| {
        let confs = machine.dir().join("none.d");
        std::fs::create_dir(&confs).expect("a directory");
        machine.arguments = ["--network", "cni", "--cni-conf-dir"].map(str::to_owned).to_vec();
        machine.arguments.push(confs.display().to_string());
        let _registry = start(machine).await;
        let mut client = machine.client();
        let status = granted(client.runtime.status(cri::StatusRequest { verbose: false })).await;
        let conditions = status.status.expect("a status").conditions;
        let ready: Vec<_> = conditions.iter().map(|c| (c.r#type.as_str(), c.status)).collect();
        assert_eq!(ready, [("RuntimeReady", true), ("NetworkReady", false)]);
        assert!(
            !conditions[1].reason.is_empty() && conditions[1].message.contains("none.d"),
            "{:?}",
            conditions[1]
        );
        let refusal = client
            .run_pod(&pod(machine, "lonely"))
            .await
            .expect_err("no network, no pod");
        assert!(refusal.message().contains("none.d"), "{refusal:?}");
        assert_eq!(client.pods().await, Vec::<String>::new());

        let mut config = pod(machine, "node");
        config.port_mappings.clear();
        let linux = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        let mut options = namespaces(cri::NamespaceMode::Container);
        options.network = cri::NamespaceMode::Node.into();
        linux.expect("a security context").namespace_options = Some(options);
        let id = client.run_pod(&config).await.expect("RunPodSandbox");
        let mut of_node = container(machine, "c", COUNTER);
        let linux = of_node.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options = Some(options_of(&config));
        let container_id = client.launch(&id, &of_node).await;
        let netns = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("it lives");
        assert_eq!(netns(client.container_pid(&container_id).await), netns(machine.pid()));
        client.end_pod(&id).await;
    });
}

fn options_of(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security
        .and_then(|security| security.namespace_options.clone())
        .expect("they were set")
}
