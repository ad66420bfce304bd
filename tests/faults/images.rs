//! Pulls whose daemon dies, whose registry lies, is cut or hangs, and whose client goes away.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crisp::cri;
use serde_json::json;
use tonic::{Code, Status};

use crate::daemon::Machine;
use crate::killed::PULL_POINTS;
use crate::pods::{container, granted, pod, pull, start, until};
use crate::registry::{Conduct, Registry, busybox, sha256};

const SIZE: usize = 600_000;

/// A layer with one file of bytes that do not repeat soon.
fn layer(seed: u8) -> (Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = (0..SIZE).map(|n| (n * n / 7) as u8 ^ seed).collect();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "large", content.as_slice())
        .expect("in memory");
    (builder.into_inner().expect("in memory"), content)
}

fn layers(machine: &Machine) -> PathBuf {
    machine.state_dir().join("lib/images/layers")
}

/// Names in the store that are no layer: what is being unpacked.
fn unfinished(machine: &Machine) -> Vec<String> {
    let entries = std::fs::read_dir(layers(machine)).expect("the store");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.len() != 64).collect()
}

async fn remove(machine: &Machine, reference: &str) {
    let image = Some(cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    });
    granted(machine.client().images.remove_image(cri::RemoveImageRequest { image })).await;
}

/// Pulls and starts a container from it: every layer is whole.
async fn is_whole(machine: &Machine, reference: &str, archive: &[u8], content: &[u8]) {
    let digest = sha256(archive);
    let file = layers(machine)
        .join(digest.trim_start_matches("sha256:"))
        .join("diff/large");
    assert!(
        std::fs::read(file).expect("the layer is there") == content,
        "the layer is not what was offered"
    );
    let client = machine.client();
    let pod_id = client.run_pod(&pod(machine, "whole")).await.expect("RunPodSandbox");
    let mut config = container(machine, "whole", "exec /bin/cat /large > /dev/null");
    config.image = Some(cri::ImageSpec {
        image: reference.to_owned(),
        ..Default::default()
    });
    let id = client.launch(&pod_id, &config).await;
    assert_eq!(client.exited(&id).await.exit_code, 0);
    client.end_pod(&pod_id).await;
}

#[test]
fn killed_in_mid_pull_the_next_daemon_pulls_and_nothing_half_is_left() {
    Machine::test("mid-pull", async |machine| {
        let registry = start(machine).await;
        machine.client().warm_up(machine).await;
        let before = machine.look();
        let (archive, content) = layer(1);
        let reference = registry.offer("large", &[busybox(), archive.clone()], json!({}));

        registry.conduct(Conduct::Hang(SIZE / 2));
        let (client, pulled) = (machine.client(), reference.clone());
        let pulling = tokio::spawn(async move { pull(&client, &pulled).await });
        until("a layer is half here", async || {
            !unfinished(machine).is_empty() && registry.hanging() > 0
        })
        .await;
        machine.kill();
        assert!(pulling.await.expect("no panic").is_err());
        assert!(!unfinished(machine).is_empty());
        registry.conduct(Conduct::Honest);
        machine.start().await;
        assert_eq!(unfinished(machine), Vec::<String>::new());
        pull(&machine.client(), &reference).await.expect("an honest registry");
        is_whole(machine, &reference, &archive, &content).await;
        remove(machine, &reference).await;

        for point in PULL_POINTS {
            machine.kill();
            machine.start_with(&format!("kill@{point}")).await;
            pull(&machine.client(), &reference).await.expect_err("the daemon dies");
            machine.died().await;
            machine.start().await;
            assert_eq!(unfinished(machine), Vec::<String>::new(), "{point}");
            pull(&machine.client(), &reference)
                .await
                .unwrap_or_else(|status| panic!("{point}: {status:?}"));
            is_whole(machine, &reference, &archive, &content).await;
            remove(machine, &reference).await;
        }
        machine.nothing_is_left_since(&before);
    });
}

async fn refused(machine: &Machine, registry: &Registry, conduct: Conduct, reference: &str) -> Status {
    registry.conduct(conduct);
    let refusal = pull(&machine.client(), reference).await.expect_err("a lie");
    registry.conduct(Conduct::Honest);
    refusal
}

#[test]
fn a_registry_that_lies_gets_nothing_in_and_one_that_is_cut_is_asked_for_the_rest() {
    Machine::test("liar", async |machine| {
        let registry = start(machine).await;
        let before = machine.look();
        let (archive, content) = layer(2);
        let reference = registry.offer("large", &[busybox(), archive.clone()], json!({}));

        let refusal = refused(machine, &registry, Conduct::Lie, &reference).await;
        assert_eq!(refusal.code(), Code::DataLoss, "{refusal:?}");
        machine.nothing_is_left_since(&before);
        let refusal = refused(machine, &registry, Conduct::Short, &reference).await;
        assert!(refusal.message().contains("large"), "{refusal:?}");
        machine.nothing_is_left_since(&before);

        registry.conduct(Conduct::Cut(SIZE / 3));
        pull(&machine.client(), &reference)
            .await
            .expect("each answer brings something");
        assert!(registry.asked() >= 3, "{} requests", registry.asked());
        is_whole(machine, &reference, &archive, &content).await;
    });
}

#[test]
fn a_pull_whose_client_goes_away_stops_at_once() {
    Machine::test("cancelled-pull", async |machine| {
        let registry = start(machine).await;
        let before = machine.look();
        let (archive, _) = layer(3);
        let reference = registry.offer("large", &[archive], json!({}));
        registry.conduct(Conduct::Hang(SIZE / 2));
        let client = machine.client();
        let pulling = tokio::spawn(async move { pull(&client, &reference).await });
        until("a layer is half here", async || {
            !unfinished(machine).is_empty() && registry.hanging() > 0
        })
        .await;
        pulling.abort();
        let begin = Instant::now();
        until("the connection is closed", async || registry.hanging() == 0).await;
        until("the layer is gone", async || unfinished(machine).is_empty()).await;
        assert!(
            begin.elapsed() < Duration::from_secs(3),
            "it took {:?}",
            begin.elapsed()
        );
        machine.nothing_is_left_since(&before);
    });
}
