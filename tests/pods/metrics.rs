//! Metrics: what is described is told, with its labels in order, and moves with what it measures (A1-33 to A1-35).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crisp::cri::{self, MetricType};

use crate::fixture::{Container, HOST_ADDRESS, Pod, ask, eventually, resources, wait, world};

/// Values by the metric's name and its own labels.
type Samples = BTreeMap<(String, Vec<String>), u64>;

/// What a kubelet's users know from cAdvisor.
const NAMES: &str = "
    container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
    container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
    container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total
    container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
    container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
    container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt
    container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
    container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes
    container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
    container_network_receive_packets_dropped_total container_network_receive_packets_total
    container_network_transmit_bytes_total container_network_transmit_errors_total
    container_network_transmit_packets_dropped_total container_network_transmit_packets_total
    container_oom_events_total container_pressure_cpu_stalled_seconds_total
    container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total
    container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
    container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period
    container_spec_cpu_quota container_spec_cpu_shares container_spec_memory_limit_bytes
    container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
    container_start_time_seconds container_threads container_threads_max container_ulimits_soft";

/// Where a kernel may have nothing to count.
const MAY_LACK_SAMPLES: &[&str] = &[
    // Without a block device below the container's files, or before anything was moved.
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    // cgroup2 records no peak, and without the controller nothing is counted.
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_memory_swap",
];

/// What every sample is labelled with, in this order.
const BASE: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// The labels that a metric has beside those, in cAdvisor's order.
fn own_labels(name: &str) -> &'static [&'static str] {
    match name {
        "container_cpu_usage_seconds_total" => &["cpu"],
        "container_memory_failures_total" => &["failure_type", "scope"],
        "container_blkio_device_usage_total" => &["device", "major", "minor", "operation"],
        "container_ulimits_soft" => &["ulimit"],
        _ if name.starts_with("container_hugetlb_") => &["pagesize"],
        _ if name.starts_with("container_fs_") => &["device"],
        _ if name.starts_with("container_network_") => &["interface"],
        _ => &[],
    }
}

/// Whether this can be the value of the label `key`: no two of a metric's own labels have a value in common.
fn can_be(key: &str, value: &str) -> bool {
    match key {
        "cpu" => value == "total",
        "failure_type" => ["pgfault", "pgmajfault"].contains(&value),
        "scope" => ["container", "hierarchy"].contains(&value),
        "operation" => ["Read", "Write"].contains(&value),
        "major" | "minor" => value.parse::<u32>().is_ok(),
        // A file of /dev, or numbers where there is none.
        "device" => {
            value.starts_with("/dev/") || value.split(':').filter(|number| number.parse::<u32>().is_ok()).count() == 2
        }
        "ulimit" => value == "max_open_files",
        "pagesize" => value.ends_with('B') && value.starts_with(|c: char| c.is_ascii_digit()),
        "interface" => value == "eth0",
        _ => panic!("nobody knows the label {key}"),
    }
}

fn descriptors() -> BTreeMap<String, Vec<String>> {
    let request = cri::ListMetricDescriptorsRequest {};
    let listed = ask(world().runtime().list_metric_descriptors(request))
        .unwrap()
        .descriptors;
    let count = listed.len();
    let by_name: BTreeMap<_, _> = listed.into_iter().map(|d| (d.name, d.label_keys)).collect();
    assert_eq!(by_name.len(), count, "a name is described twice");
    by_name
}

fn of_pod(pod: &Pod) -> cri::PodSandboxMetrics {
    let request = cri::ListPodSandboxMetricsRequest {};
    let listed = ask(world().runtime().list_pod_sandbox_metrics(request)).unwrap();
    let mut found = listed
        .pod_metrics
        .into_iter()
        .filter(|found| found.pod_sandbox_id == pod.id);
    let metrics = found.next().expect("its metrics");
    assert!(found.next().is_none(), "the pod is listed twice");
    metrics
}

/// The samples of a container, by name and own labels.
fn samples(pod: &Pod, container: &Container) -> Samples {
    let of_pod = of_pod(pod);
    let of_one = of_pod
        .container_metrics
        .into_iter()
        .find(|found| found.container_id == container.id);
    let metrics = of_one.expect("its metrics").metrics;
    let by_label = metrics.into_iter().map(|metric| {
        let own = metric.label_values[6..].to_vec();
        ((metric.name, own), metric.value.unwrap().value)
    });
    by_label.collect()
}

fn value(samples: &Samples, name: &str, labels: &[&str]) -> u64 {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    *samples
        .get(&(name.to_owned(), labels))
        .unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn every_metric_is_described_and_told_with_its_labels() {
    let descriptors = descriptors();
    let expected: BTreeSet<&str> = NAMES.split_whitespace().collect();
    assert_eq!(
        descriptors.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        expected
    );
    for (name, keys) in &descriptors {
        let expected: Vec<&str> = BASE.iter().chain(own_labels(name)).copied().collect();
        assert_eq!(keys, &expected, "{name}");
    }
    let pod = world().pod("metrics");
    let c = pod.idle("c", |config| {
        let limits = resources(config);
        limits.cpu_period = 100_000;
        limits.cpu_quota = 50_000;
        limits.memory_limit_in_bytes = 256 << 20;
    });
    c.sh("dd if=/dev/urandom of=/tmp/f bs=1M count=2 2>/dev/null");
    // Writable layers are measured in the background where a request would take long otherwise.
    let told = eventually("the writable layer is measured", || {
        let told = of_pod(&pod);
        let mut of_containers = told.container_metrics.iter().flat_map(|container| &container.metrics);
        let measured = of_containers.any(|metric| metric.name == "container_fs_usage_bytes");
        measured.then_some(told)
    });
    assert_eq!(told.container_metrics.len(), 1);
    let of_container = &told.container_metrics[0].metrics;
    let (c_cgroup, c_image) = (c.cgroup(), c.status().image.expect("an image").image);
    let pod_cgroup = pod.info()["cgroup"].as_str().expect("a path").to_owned();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
    for metric in told.metrics.iter().chain(of_container) {
        let name = &metric.name;
        let own = own_labels(name);
        assert_eq!(metric.label_values.len(), BASE.len() + own.len(), "{name}");
        let (base, values) = metric.label_values.split_at(BASE.len());
        for (key, value) in own.iter().zip(values) {
            assert!(can_be(key, value), "{name}: {key} is {value:?}");
        }
        if let [device, major, minor, _] = values
            && !device.starts_with("/dev/")
        {
            assert_eq!(*device, format!("{major}:{minor}"));
        }
        assert!((now - metric.timestamp).abs() < 60_000_000_000, "{name}");
        let network = name.starts_with("container_network_");
        // A pod's image is none.
        let (id, image, container) = match network {
            true => (&pod.id, "", "POD"),
            false => (&c.id, c_image.as_str(), "c"),
        };
        let cgroup = if network { &pod_cgroup } else { &c_cgroup };
        assert_eq!(base, [cgroup, id, image, container, "metrics", "tests"], "{name}");
        let counts = metric.name.ends_with("_total") && metric.name != "container_fs_inodes_total";
        let counts = counts || metric.name == "container_memory_failcnt";
        assert_eq!(metric.metric_type() == MetricType::Counter, counts, "{}", metric.name);
    }
    let told: BTreeSet<&str> = told
        .metrics
        .iter()
        .chain(of_container)
        .map(|metric| metric.name.as_str())
        .collect();
    let psi = Path::new("/proc/pressure/cpu").exists();
    let lacking: Vec<_> = expected
        .difference(&told)
        .filter(|name| !MAY_LACK_SAMPLES.contains(name) && (psi || !name.contains("_pressure_")))
        .collect();
    assert!(lacking.is_empty(), "described and never told: {lacking:?}");
}

#[test]
fn metrics_move_with_what_they_measure() {
    let pod = world().pod("metrics-move");
    let c = pod.idle("c", |config| {
        let limits = resources(config);
        limits.cpu_period = 100_000;
        limits.cpu_quota = 20_000;
        limits.cpu_shares = 300;
        limits.memory_limit_in_bytes = 200 << 20;
    });
    let before = samples(&pod, &c);
    let get = |name: &str| value(&before, name, &[]);
    assert_eq!(get("container_processes"), 1);
    assert_eq!(get("container_threads"), 1);
    assert_eq!(
        (
            get("container_spec_cpu_quota"),
            get("container_spec_cpu_period"),
            get("container_spec_cpu_shares")
        ),
        (20_000, 100_000, 300)
    );
    assert_eq!(get("container_spec_memory_limit_bytes"), 200 << 20);
    assert_eq!(
        get("container_start_time_seconds"),
        c.status().started_at as u64 / 1_000_000_000
    );
    assert!(value(&before, "container_ulimits_soft", &["max_open_files"]) > 0);
    assert!(get("container_file_descriptors") >= 3 && get("container_sockets") == 0);
    // A process that holds 20 files and one that listens; 40 MiB of memory; 3 MB of files.
    c.sh(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; dd if=/dev/zero of=/tmp/f bs=1M count=3 2>/dev/null",
    );
    let hold = (3..23).map(|n| format!("exec {n}</dev/null; ")).collect::<String>();
    c.sh(&format!(
        "sh -c '{hold} sleep 1000' >/dev/null 2>&1 & nc -l -p 4711 >/dev/null 2>&1 </dev/null &"
    ));
    let seen = |what: &str, enough: &dyn Fn(&Samples) -> bool| {
        eventually(what, || Some(samples(&pod, &c)).filter(enough));
    };
    seen("a socket", &|now| value(now, "container_sockets", &[]) >= 1);
    seen("the files", &|now| {
        let mut figures = now.iter();
        figures.any(|((name, _), value)| name == "container_fs_usage_bytes" && *value >= 3_000_000)
    });
    // Work until it shows, on a machine that does a lot else.
    let mut after = samples(&pod, &c);
    for _ in 0..60 {
        if value(&after, "container_cpu_usage_seconds_total", &["total"]) >= 2 {
            break;
        }
        let script = "while :; do :; done";
        assert_eq!(c.exec(&["timeout", "2", "sh", "-c", script]).code, 143);
        after = samples(&pod, &c);
    }
    assert!(value(&after, "container_cpu_usage_seconds_total", &["total"]) >= 2);
    let grown = |name: &str| value(&after, name, &[]).saturating_sub(value(&before, name, &[]));
    assert!(grown("container_processes") >= 2 && grown("container_threads") >= 2);
    assert!(
        grown("container_file_descriptors") >= 20,
        "{}",
        grown("container_file_descriptors")
    );
    assert!(grown("container_memory_usage_bytes") >= 30 << 20);
    assert!(value(&after, "container_memory_max_usage_bytes", &[]) >= 40 << 20);
    assert!(grown("container_cpu_cfs_periods_total") > 10);
    assert!(grown("container_cpu_cfs_throttled_periods_total") > 0);
    let faults = |samples: &_| value(samples, "container_memory_failures_total", &["pgfault", "hierarchy"]);
    assert!(faults(&after) > faults(&before) + 1000);
    assert!(value(&after, "container_last_seen", &[]) >= get("container_last_seen"));
    for kind in ["cpu", "memory", "io"] {
        if Path::new("/proc/pressure").join(kind).exists() {
            let waiting = format!("container_pressure_{kind}_waiting_seconds_total");
            assert!(value(&after, &waiting, &[]) >= value(&before, &waiting, &[]));
        }
    }
}

#[test]
fn a_pods_traffic_is_counted_and_the_nodes_is_not() {
    let (pod, node) = (
        world().pod("metrics-net"),
        world().pod_with("metrics-node", |config| {
            crate::fixture::options(config).network = cri::NamespaceMode::Node.into();
        }),
    );
    let c = pod.idle("c", |_| {});
    let traffic = || {
        let told = of_pod(&pod).metrics;
        let get = |name: &str| {
            let mut found = told.iter().filter(|metric| metric.name == name);
            let metric = found.next().unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(metric.label_values[6], "eth0");
            assert!(found.next().is_none());
            metric.value.unwrap().value
        };
        [
            get("container_network_receive_packets_total"),
            get("container_network_transmit_bytes_total"),
        ]
    };
    let before = traffic();
    c.sh(&format!("ping -c 3 -i 0.2 -s 1000 {HOST_ADDRESS} > /dev/null"));
    let after = traffic();
    assert!(
        after[0] >= before[0] + 3 && after[1] >= before[1] + 3000,
        "{before:?} {after:?}"
    );
    assert!(of_pod(&node).metrics.is_empty());
}

#[test]
fn the_stream_has_what_the_list_has_and_the_ended_have_nothing() {
    let pod = world().pod("metrics-stream");
    let (running, ended) = (pod.idle("a", |_| {}), pod.start("b", &["true"], |_| {}));
    ended.exited();
    let request = cri::StreamPodSandboxMetricsRequest {};
    let mut stream = ask(world().runtime().stream_pod_sandbox_metrics(request)).unwrap();
    let mut found = Vec::new();
    while let Some(message) = wait(stream.message()).unwrap() {
        let mine = message.pod_sandbox_metrics.into_iter();
        found.extend(mine.filter(|metrics| metrics.pod_sandbox_id == pod.id));
    }
    assert_eq!(found.len(), 1);
    let ids: Vec<_> = found[0]
        .container_metrics
        .iter()
        .map(|of| of.container_id.clone())
        .collect();
    assert_eq!(ids, [running.id]);
    pod.try_stop().unwrap();
    let request = cri::ListPodSandboxMetricsRequest {};
    let listed = ask(world().runtime().list_pod_sandbox_metrics(request))
        .unwrap()
        .pod_metrics;
    assert!(listed.iter().all(|metrics| metrics.pod_sandbox_id != pod.id));
}
