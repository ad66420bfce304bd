//! What a pod costs. `cargo test --test monitor cost -- --nocapture` prints the figures.

use std::time::Instant;

use crisp::monitor::Launcher;
use crisp::monitor::client::SandboxFds;

use crate::pod::{Pod, programs, sandbox, shell};

/// A figure of `/proc/<pid>/smaps_rollup`, in kB.
fn rollup(pid: i32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

fn private(pid: i32) -> u64 {
    rollup(pid, "Private_Clean") + rollup(pid, "Private_Dirty")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_and_its_pause_are_small() {
    const PODS: u64 = 20;
    let launcher = Launcher::load(&programs()).unwrap();
    let mut pods = Vec::new();
    let kernel_before = kernel_kb();
    for _ in 0..PODS {
        let mut pod = Pod::launch(&launcher, sandbox(), SandboxFds::default()).await;
        pod.run_to_end(shell("seq 1 1000")).await;
        pods.push((pod.run(shell("exec sleep 60")).await, pod));
    }
    // They give back what they do not need after a second without work.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let mean = |of: &dyn Fn(&Pod) -> u64| pods.iter().map(|(_, pod)| of(pod)).sum::<u64>() / PODS;
    let monitor = mean(&|pod| rollup(pod.monitor_pid, "Pss"));
    let pause = mean(&|pod| rollup(pod.pause.pid, "Pss"));
    println!(
        "monitor: {monitor} kB proportional, {} kB private",
        mean(&|pod| private(pod.monitor_pid))
    );
    println!(
        "pause: {pause} kB proportional, {} kB private",
        mean(&|pod| private(pod.pause.pid))
    );
    println!(
        "kernel, with the container's: {} kB per pod",
        (kernel_kb() - kernel_before) / PODS as i64
    );
    assert!(monitor + pause <= 300, "{monitor} + {pause} kB");
}

#[tokio::test(flavor = "multi_thread")]
async fn times() {
    const ROUNDS: usize = 60;
    let launcher = Launcher::load(&programs()).unwrap();
    let mut times: Vec<(&str, Vec<u128>)> = [
        "spawn + sandbox",
        "create",
        "start",
        "exit",
        "exec true",
        "monitor running",
        "pause running",
    ]
    .map(|name| (name, Vec::new()))
    .to_vec();
    for round in 0..ROUNDS {
        let dir = Pod::prepare();
        let start = Instant::now();
        let mut pod = Pod::launch_in(dir, &launcher, sandbox(), SandboxFds::default()).await;
        times[0].1.push(start.elapsed().as_micros());
        times[5].1.push(running_us(pod.monitor_pid));
        times[6].1.push(running_us(pod.pause.pid));
        let policy = shell("true");
        let start = Instant::now();
        let (container, _) = pod.create(policy).await;
        times[1].1.push(start.elapsed().as_micros());
        let start = Instant::now();
        pod.client.start(&container).await.unwrap();
        times[2].1.push(start.elapsed().as_micros());
        let start = Instant::now();
        pod.exit_of(&container).await;
        times[3].1.push(start.elapsed().as_micros());
        if round % 20 == 0 {
            let container = pod.run(shell("exec sleep 60")).await;
            for _ in 0..60 {
                let start = Instant::now();
                let mut policy = shell("");
                policy.args = vec![b"/bin/true".to_vec()];
                let (exit, ..) = pod.exec(&container, policy).await.unwrap();
                assert_eq!(exit.code, 0);
                times[4].1.push(start.elapsed().as_micros());
            }
        }
    }
    let pod = Pod::launch(&launcher, sandbox(), SandboxFds::default()).await;
    cpu(pod).await;
    for (name, mut times) in times {
        times.sort_unstable();
        println!("{name}: median {} us, best {} us", times[times.len() / 2], times[0]);
    }
}

/// The processor time of a process and of those of its children that it has reaped, in milliseconds.
fn processor_ms(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (11..15).map(|at| fields[at].parse::<u64>().unwrap() * 10).sum()
}

async fn cpu(mut pod: Pod) {
    const ROUNDS: u64 = 100;
    let before = processor_ms(pod.monitor_pid);
    for _ in 0..ROUNDS {
        let (container, _) = pod.create(shell("true")).await;
        pod.client.start(&container).await.unwrap();
        pod.exit_of(&container).await;
        pod.client.forget(&container).await.unwrap();
    }
    let between = processor_ms(pod.monitor_pid);
    let container = pod.run(shell("exec sleep 60")).await;
    let mut policy = shell("");
    policy.args = vec![b"/bin/true".to_vec()];
    for _ in 0..ROUNDS {
        pod.exec(&container, policy.clone()).await.unwrap();
    }
    let after = processor_ms(pod.monitor_pid);
    println!(
        "processor time: container {} us, exec {} us",
        (between - before) * 1000 / ROUNDS,
        (after - between) * 1000 / ROUNDS
    );
}

/// How long a process has been running, as the scheduler counts it.
fn running_us(pid: i32) -> u128 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<u128>().unwrap() / 1000
}

/// The kernel's own memory, in kB: of all the node, so it says something only when nothing else happens.
fn kernel_kb() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let fields = ["SUnreclaim:", "KernelStack:", "PageTables:", "Percpu:"];
    let value = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap();
    text.lines()
        .filter(|line| fields.iter().any(|field| line.starts_with(field)))
        .map(value)
        .sum()
}
