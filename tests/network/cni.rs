//! CNI: Debian's plugins with real packets, and plugins that misbehave.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::machine::{Machine, answers, answers_from, port, serve};
use crisp::network::{Mode, NetworkConfig, NetworkError, netns};

struct Node<'a> {
    machine: &'a Machine,
    config: NetworkConfig,
}

impl<'a> Node<'a> {
    /// A configuration directory and plugins of the test's own; what they are called with is in `calls`.
    fn new(machine: &'a Machine) -> Self {
        let (conf_dir, bin) = (machine.dir().join("net.d"), machine.dir().join("bin"));
        for dir in [&conf_dir, &bin] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let config = NetworkConfig {
            mode: Mode::Auto,
            conf_dir,
            plugin_dirs: vec![bin, "/usr/lib/cni".into()],
            plugin_deadline: Duration::from_secs(10),
            ..NetworkConfig::new(machine.run())
        };
        Self { machine, config }
    }

    fn conf(&self, name: &str, text: &str) {
        std::fs::write(self.config.conf_dir.join(name), text).unwrap();
    }

    /// A conflist of the plugins named.
    fn list(&self, version: &str, plugins: &[&str]) {
        let plugins: Vec<_> = plugins.iter().map(|kind| format!(r#"{{"type":"{kind}"}}"#)).collect();
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"net","plugins":[{}]}}"#,
            plugins.join(",")
        );
        self.conf("10-net.conflist", &text);
    }

    /// A plugin in shell. `$D` is the test's directory, `$IN` what came on standard input; each call is recorded.
    fn plugin(&self, name: &str, body: &str) {
        let dir = self.machine.dir().display().to_string();
        let path = self.config.plugin_dirs[0].join(name);
        let record = format!(
            "echo \"$CNI_COMMAND {name} netns=$CNI_NETNS\" >> $D/calls; IN=$(cat); echo \"$IN\" > $D/{name}.$CNI_COMMAND"
        );
        std::fs::write(&path, format!("#!/bin/sh\nD={dir}\n{record}\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.machine.dir().join("calls")).unwrap_or_default();
        text.lines()
            .map(|line| line.split(" netns=").next().unwrap().to_owned())
            .collect()
    }

    fn input(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.machine.sh(&format!("cat {}/{name}", self.machine.dir().display()))).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.dir().join(name)
    }
}

const RESULT: &str =
    r#"[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}'; exit 0"#;

#[test]
fn debians_bridge_portmap_and_host_local() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        let data = node.path("ipam");
        node.conf(
            "10-real.conflist",
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"real","plugins":[
                {{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
                  "ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.77.0.0/24"}}]],
                           "routes":[{{"dst":"0.0.0.0/0"}}]}}}},
                {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#,
                data.display()
            ),
        );
        let addresses = || {
            std::fs::read_dir(data.join("real"))
                .unwrap()
                .flatten()
                .filter(|e| e.file_name().to_string_lossy().starts_with("10."))
                .count()
        };
        machine.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
        let networks = machine.open(node.config.clone());
        let status = machine.wait(networks.status());
        assert!(status.ready && status.message.contains("real"), "{status:?}");
        let (web, other) = (
            machine.pod('a', &[port(crisp::network::Protocol::Tcp, 8080, 80)]),
            machine.pod('b', &[]),
        );
        let plan = machine.plan(&networks, &web);
        let recorded = serde_json::to_value(&plan).unwrap();
        assert_eq!(recorded["backend"]["cni"]["network"], "real");
        let attached = machine.wait(networks.add(&plan)).unwrap();
        assert_eq!(attached.ips[0].to_string(), "10.77.0.2");
        let others = machine.plan(&networks, &other);
        let other_attached = machine.wait(networks.add(&others)).unwrap();
        machine.wait(networks.check(&others, &other_attached)).unwrap();
        serve(&web, "0.0.0.0:80", "web");
        assert_eq!(answers(&other, "10.77.0.2:80").as_deref(), Some("web"));
        assert_eq!(
            answers_from(&machine.neighbour(), "192.0.2.1:8080").as_deref(),
            Some("web")
        );
        let here = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        assert_eq!(answers_from(&here, "127.0.0.1:8080").as_deref(), Some("web"));
        assert_eq!(addresses(), 2);
        machine.wait(networks.del(&plan, Some(&attached))).unwrap();
        machine.wait(networks.del(&plan, Some(&attached))).unwrap();
        assert_eq!(answers_from(&machine.neighbour(), "192.0.2.1:8080"), None);
        // the namespace is gone before DEL: the address must come back all the same
        netns::remove(&other.attachment.netns).unwrap();
        machine.del(&networks, &other);
        assert_eq!(addresses(), 0);
        assert_eq!(std::fs::read_dir(machine.run().join("network/cni")).unwrap().count(), 0);
    });
}

#[test]
fn plugins_run_in_order_with_what_they_are_due() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.conf(
            "10-net.conflist",
            r#"{"cniVersion":"0.4.0","cniVersions":["1.1.0"],"name":"net","plugins":[
                {"type":"one","capabilities":{"portMappings":true},"keep":1},{"type":"two"}]}"#,
        );
        node.plugin("one", &format!("env | grep ^CNI_ > $D/env; {RESULT}"));
        node.plugin("two", RESULT);
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[port(crisp::network::Protocol::Udp, 53, 5353)]);
        let plan = machine.plan(&networks, &pod);
        let attached = machine.wait(networks.add(&plan)).unwrap();
        assert_eq!(attached.ips[0].to_string(), "10.9.0.7");
        let one = node.input("one.ADD");
        assert_eq!(one["runtimeConfig"]["portMappings"][0]["hostPort"], 53);
        assert_eq!(
            (&one["cniVersion"], &one["name"], &one["keep"]),
            (&"1.1.0".into(), &"net".into(), &1.into())
        );
        assert!(one.get("capabilities").is_none() && one.get("prevResult").is_none());
        let two = node.input("two.ADD");
        assert_eq!(two["prevResult"]["ips"][0]["address"], "10.9.0.7/24");
        assert!(two.get("runtimeConfig").is_none());
        let environment = std::fs::read_to_string(node.path("env")).unwrap();
        let id = pod.attachment.sandbox_id.as_str();
        for expected in [
            "CNI_COMMAND=ADD".to_owned(),
            format!("CNI_CONTAINERID={id}"),
            format!("CNI_NETNS={}", pod.attachment.netns.display()),
            "CNI_IFNAME=eth0".to_owned(),
            format!(
                "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=uid"
            ),
        ] {
            assert!(
                environment.lines().any(|line| line == expected),
                "{expected} is not in {environment}"
            );
        }
        machine.wait(networks.check(&plan, &attached)).unwrap();
        machine.wait(networks.gc(std::slice::from_ref(&plan))).unwrap();
        assert_eq!(
            node.input("two.GC")["cni.dev/valid-attachments"],
            serde_json::json!([{"containerID": id, "ifname": "eth0"}])
        );
        machine.wait(networks.del(&plan, Some(&attached))).unwrap();
        assert_eq!(node.input("one.DEL")["prevResult"]["ips"][0]["address"], "10.9.0.7/24");
        assert_eq!(
            node.calls(),
            [
                "ADD one",
                "ADD two",
                "CHECK one",
                "CHECK two",
                "GC one",
                "GC two",
                "DEL two",
                "DEL one"
            ]
        );
    });
}

/// Symptom elsewhere: a plugin fails once, the runtime forgets to undo, and the address is lost for ever.
#[test]
fn an_add_that_fails_once_is_undone_and_then_succeeds() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.0.0", &["ipam", "flaky"]);
        node.plugin("ipam", &format!("case $CNI_COMMAND in ADD) touch $D/ip-$CNI_CONTAINERID;; DEL) rm -f $D/ip-$CNI_CONTAINERID;; esac; {RESULT}"));
        node.plugin(
            "flaky",
            &format!(
                "if [ $CNI_COMMAND = ADD ] && [ ! -e $D/once ]; then touch $D/once; \
                 echo '{{\"code\":11,\"msg\":\"try again later\",\"details\":\"busy\"}}'; exit 1; fi; {RESULT}"
            ),
        );
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[]);
        let ip = node.path(&format!("ip-{}", pod.attachment.sandbox_id));
        let error = machine.try_add(&networks, &pod).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CNI plugin flaky failed ADD: try again later: busy (code 11)"
        );
        assert!(!ip.exists(), "the address of the failed ADD is lost");
        assert_eq!(node.calls(), ["ADD ipam", "ADD flaky", "DEL flaky", "DEL ipam"]);
        machine.add(&networks, &pod);
        assert!(ip.exists());
        machine.del(&networks, &pod);
        assert!(!ip.exists());
    });
}

#[test]
fn a_del_that_fails_frees_what_it_can_and_is_repeated_with_the_stored_configuration() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.0.0", &["ipam", "stubborn"]);
        node.plugin(
            "ipam",
            &format!("case $CNI_COMMAND in ADD) touch $D/ip;; DEL) rm -f $D/ip;; esac; {RESULT}"),
        );
        node.plugin(
            "stubborn",
            &format!("if [ $CNI_COMMAND = DEL ]; then echo x >> $D/tries; [ $(wc -l < $D/tries) -ge 3 ] || {{ echo no >&2; exit 3; }}; fi; {RESULT}"),
        );
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[]);
        let plan = machine.plan(&networks, &pod);
        let attached = machine.wait(networks.add(&plan)).unwrap();
        // the configuration changes, and the daemon restarts, while the pod lives
        std::fs::remove_dir_all(&node.config.conf_dir).unwrap();
        drop(networks);
        let networks = machine.open(node.config.clone());
        for _ in 0..2 {
            let error = machine.wait(networks.del(&plan, Some(&attached))).unwrap_err();
            assert!(
                error.to_string().contains("stubborn failed DEL") && error.to_string().contains("no"),
                "{error}"
            );
            assert!(!node.path("ip").exists(), "what works is not held up by what does not");
        }
        netns::remove(&pod.attachment.netns).unwrap();
        machine.wait(networks.del(&plan, Some(&attached))).unwrap();
        assert!(
            std::fs::read_to_string(node.path("calls"))
                .unwrap()
                .ends_with("DEL ipam netns=\n")
        );
    });
}

#[test]
fn a_plugin_that_hangs_is_killed_with_its_children() {
    Machine::run_test(|machine| {
        let mut node = Node::new(machine);
        node.config.plugin_deadline = Duration::from_millis(600);
        node.list("1.0.0", &["hang"]);
        node.plugin(
            "hang",
            &format!("if [ $CNI_COMMAND = ADD ]; then sleep 987 & echo $! > $D/child; wait; fi; {RESULT}"),
        );
        let networks = machine.open(node.config.clone());
        let began = Instant::now();
        let error = machine.try_add(&networks, &machine.pod('a', &[])).unwrap_err();
        assert!(
            matches!(error, NetworkError::PluginDeadline { command: "ADD", .. }),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        let child = std::fs::read_to_string(node.path("child")).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{status}");
        assert_eq!(node.calls(), ["ADD hang", "DEL hang"]);
    });
}

#[test]
fn garbage_is_no_result() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.0.0", &["odd"]);
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[]);
        for (body, expected) in [
            ("echo garbage", "no usable result"),
            ("", "no JSON object"),
            ("echo '[]'", "no JSON object"),
            ("echo '{}'", "no address"),
            ("[ $CNI_COMMAND != ADD ] || yes | head -c 20000000", "no usable result"),
            ("kill -9 $$", "signal: 9"),
            (
                "echo 'cannot reach the database' >&2; exit 1",
                "cannot reach the database",
            ),
        ] {
            node.plugin("odd", body);
            let error = crate::machine::chain(&machine.try_add(&networks, &pod).unwrap_err());
            assert!(error.contains(expected), "{body}: {error}");
        }
        std::fs::remove_file(node.config.plugin_dirs[0].join("odd")).unwrap();
        assert!(matches!(
            machine.try_add(&networks, &pod),
            Err(NetworkError::PluginMissing { .. })
        ));
        assert!(!machine.wait(networks.status()).ready);
    });
}

/// Something that a plugin leaves running may hold its output open for ever.
#[test]
fn a_plugin_that_leaves_a_child_behind_does_not_hold_up_the_pod() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.0.0", &["daemonic"]);
        node.plugin(
            "daemonic",
            &format!("[ $CNI_COMMAND != ADD ] || {{ sleep 5 < /dev/null & }}; {RESULT}"),
        );
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[]);
        let began = Instant::now();
        machine.add(&networks, &pod);
        machine.del(&networks, &pod);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    });
}

/// The daemon is killed while an ADD runs. The plugin lives on, and takes its address after the successor's DEL, unless
/// that waits.
#[test]
fn del_waits_for_the_add_of_a_daemon_that_is_no_more() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.0.0", &["slow"]);
        node.plugin(
            "slow",
            &format!("case $CNI_COMMAND in ADD) sleep 1; touch $D/ip;; DEL) rm -f $D/ip;; esac; {RESULT}"),
        );
        let networks = machine.open(node.config.clone());
        let pod = machine.pod('a', &[]);
        let plan = machine.plan(&networks, &pod);
        // as the dead daemon did it: the plugin shares the lock of its standard input
        let lock = machine.run().join("network/cni");
        std::fs::create_dir_all(&lock).unwrap();
        let plugin = node.config.plugin_dirs[0].join("slow");
        machine.sh(&format!(
            "(flock 0; CNI_COMMAND=ADD exec {} > /dev/null 2>&1) 0<>{} & sleep 0.2",
            plugin.display(),
            lock.join(pod.attachment.sandbox_id.as_str()).display()
        ));
        machine.wait(networks.del(&plan, None)).unwrap();
        assert!(!node.path("ip").exists());
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!node.path("ip").exists(), "the address came after DEL");
        assert_eq!(node.calls(), ["ADD slow", "DEL slow"]);
    });
}

#[test]
fn a_configuration_takes_over_for_new_pods_and_each_pod_leaves_as_it_came() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.plugin("fake", RESULT);
        let networks = machine.open(node.config.clone());
        let status = || machine.wait(networks.status());
        assert!(
            status().ready && status().message.contains("embedded"),
            "{:?}",
            status()
        );
        let (first, second) = (machine.pod('a', &[]), machine.pod('b', &[]));
        let embedded = machine.plan(&networks, &first);
        machine.wait(networks.add(&embedded)).unwrap();
        node.list("1.0.0", &["fake"]);
        assert!(status().ready && status().message.contains("CNI"), "{:?}", status());
        let cni = machine.plan(&networks, &second);
        machine.wait(networks.add(&cni)).unwrap();
        node.conf("10-net.conflist", "{ broken");
        assert!(
            !status().ready && status().message.contains("10-net.conflist"),
            "{:?}",
            status()
        );
        assert!(
            machine
                .wait(async { networks.plan(second.attachment.clone()) })
                .is_err()
        );
        std::fs::remove_dir_all(&node.config.conf_dir).unwrap();
        assert!(
            status().ready && status().message.contains("embedded"),
            "{:?}",
            status()
        );
        machine.wait(networks.del(&cni, None)).unwrap();
        machine.wait(networks.del(&embedded, None)).unwrap();
        machine.settle(&networks);
        assert_eq!(node.calls(), ["ADD fake", "DEL fake"]);
        machine.assert_nothing_left();

        let forced = machine.open(NetworkConfig {
            mode: Mode::Cni,
            run: machine.dir().join("cni"),
            ..node.config.clone()
        });
        let status = machine.wait(forced.status());
        assert!(
            !status.ready && status.message.contains("no CNI configuration"),
            "{status:?}"
        );
    });
}

#[test]
fn a_network_whose_plugin_is_not_available_is_not_ready() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        node.list("1.1.0", &["moody"]);
        node.plugin("moody", "echo '{\"code\":50,\"msg\":\"no controller\"}'; exit 1");
        let networks = machine.open(node.config.clone());
        let status = machine.wait(networks.status());
        assert!(!status.ready && status.message.contains("no controller"), "{status:?}");
        machine.wait(networks.status());
        assert_eq!(node.calls(), ["STATUS moody"], "an answer is good for a few seconds");
    });
}

#[test]
fn the_network_in_force_is_told_without_what_its_plugins_are_told() {
    Machine::run_test(|machine| {
        let node = Node::new(machine);
        let networks = machine.open(node.config.clone());
        assert_eq!(networks.describe()["network"]["name"], "embedded");
        let text = r#"{"cniVersion":"1.0.0","name":"lan","plugins":[{"type":"loopback","password":"secret"}]}"#;
        node.conf("10-lan.conflist", text);
        let told = networks.describe();
        assert_eq!(told["network"]["name"], "lan");
        assert_eq!(told["network"]["plugins"], serde_json::json!(["loopback"]));
        assert_eq!(told["confDir"], node.config.conf_dir.display().to_string());
        assert!(!told.to_string().contains("secret"), "{told}");
        node.conf("10-lan.conflist", "{");
        let error = networks.describe()["network"]["error"].to_string();
        assert!(error.contains("10-lan.conflist"), "{error}");
    });
}
