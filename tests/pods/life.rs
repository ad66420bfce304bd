//! Stopping and removing; names; ids.

use std::time::{Duration, Instant};

use crisp::cri::{ContainerState, PodSandboxState, Signal};
use tonic::Code;

use crate::fixture::{Container, Pod, image, is_code, says, world};
use crate::registry::reference;

const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 0.05; done";

fn deaf(pod: &Pod, name: &str) -> Container {
    let c = pod.start(name, &["sh", "-c", DEAF], |_| {});
    c.logged("ready");
    c
}

/// Writes the signals that it gets to its log, and ends at the one it is to end at.
fn listening(pod: &Pod, name: &str, change: impl FnOnce(&mut crisp::cri::ContainerConfig)) -> Container {
    let script = "for s in TERM USR1 INT QUIT 34; do trap \"echo got $s; exit 7\" $s; done; echo ready; while :; do sleep 0.05; done";
    let c = pod.start(name, &["sh", "-c", script], change);
    c.logged("ready");
    c
}

#[test]
fn the_stop_signal_is_the_requests_else_the_images_else_term() {
    let pod = world().pod("signals");
    let own = |reference: String, signal: Signal| {
        move |config: &mut crisp::cri::ContainerConfig| {
            config.image = Some(image(&reference));
            config.stop_signal = signal.into();
        }
    };
    for (name, of, signal, expected, told) in [
        ("default", "toolbox", Signal::RuntimeDefault, "TERM", Signal::Sigterm),
        ("image", "talkative", Signal::RuntimeDefault, "USR1", Signal::Sigusr1),
        ("request", "talkative", Signal::Sigint, "INT", Signal::Sigint),
        ("realtime", "toolbox", Signal::Sigrtmin, "34", Signal::Sigrtmin),
    ] {
        let c = listening(&pod, name, own(reference(of), signal));
        assert_eq!(c.status().stop_signal(), told, "{name}");
        c.stop(20).unwrap();
        let status = c.status();
        assert_eq!(
            (status.exit_code, status.state()),
            (7, ContainerState::ContainerExited),
            "{name}: {:?}",
            c.log()
        );
        assert!(
            c.log().contains(&format!("stdout F got {expected}")),
            "{name}: {:?}",
            c.log()
        );
    }
}

#[test]
fn a_grace_of_any_length_is_taken() {
    let pod = world().pod("any-grace");
    for (name, grace, code) in [
        ("for-ever", i64::MAX, 7),
        ("millennia", 100_000_000_000, 7),
        ("none", 0, 137),
        ("negative", -1, 137),
        ("most-negative", i64::MIN, 137),
    ] {
        let c = listening(&pod, name, |_| {});
        let began = Instant::now();
        c.stop(grace).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{name}");
        let status = c.status();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{name}");
        // Without grace there is no time to end by oneself.
        assert_eq!(status.exit_code, code, "{name}: {:?}", c.log());
    }
}

#[test]
fn grace_then_kill() {
    let pod = world().pod("grace");
    let c = deaf(&pod, "c");
    let began = Instant::now();
    c.stop(1).unwrap();
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let status = c.status();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    // Again: nothing to do.
    c.stop(1).unwrap();
    let c = deaf(&pod, "at-once");
    let began = Instant::now();
    c.stop(0).unwrap();
    // How fast is a matter of the runtime.
    let soon = Duration::from_millis(if world().if_crisp().is_some() { 900 } else { 5000 });
    assert!(began.elapsed() < soon, "{:?}", began.elapsed());
}

#[test]
fn a_container_that_never_ran_ends_without_grace() {
    let pod = world().pod("grace-created");
    let c = pod.create("created", &["sleep", "1000"], |_| {});
    let began = Instant::now();
    c.stop(20).unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(c.status().state(), ContainerState::ContainerExited);
}

#[test]
fn a_second_stop_shortens_the_first() {
    let pod = world().pod("shorter");
    let c = deaf(&pod, "c");
    let first = std::thread::spawn({
        let c = c.clone();
        move || c.stop(60)
    });
    std::thread::sleep(Duration::from_millis(300));
    let began = Instant::now();
    c.stop(1).unwrap();
    first.join().unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(c.status().exit_code, 137);
}

#[test]
fn removing_needs_no_stop_and_can_be_repeated() {
    let pod = world().pod("remove");
    let c = deaf(&pod, "c");
    let pid = c.pid();
    c.remove().unwrap();
    c.remove().unwrap();
    assert_eq!(c.try_status().unwrap_err().code(), Code::NotFound);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    // A pod goes with what is in it, by remove alone.
    let inside = deaf(&pod, "inside");
    pod.try_stop().unwrap();
    assert_eq!(pod.status().state(), PodSandboxState::SandboxNotready);
    assert_eq!(inside.status().state(), ContainerState::ContainerExited);
    let refused = pod
        .try_create(pod.config("late", &["true"]))
        .err()
        .expect("the pod is stopped");
    assert!(is_code(&refused, Code::FailedPrecondition), "{refused}");
    assert!(says(&refused, "not ready"), "{refused}");
    for _ in 0..2 {
        pod.try_remove().unwrap();
    }
    assert_eq!(inside.try_status().unwrap_err().code(), Code::NotFound);
    if let Some(dir) = world().if_crisp() {
        for part in ["lib/pods", "run/pods"] {
            assert!(!dir.join("d").join(part).join(&pod.id).exists(), "{part}");
        }
    }
}

#[test]
fn a_name_belongs_to_one() {
    let pod = world().pod("names");
    let refused = world().try_pod("names", |_| {}).err().expect("the pod's name is taken");
    assert!(is_code(&refused, Code::AlreadyExists), "{refused}");
    assert!(says(&refused, &pod.id), "{refused}");
    // Another attempt is another name.
    let _next = world().pod_with("names", |config| config.metadata.as_mut().unwrap().attempt = 1);
    let c = pod.create("c", &["true"], |_| {});
    let refused = pod
        .try_create(pod.config("c", &["true"]))
        .err()
        .expect("the container's name is taken");
    assert!(is_code(&refused, Code::AlreadyExists), "{refused}");
    assert!(says(&refused, &c.id), "{refused}");
    pod.create("c", &["true"], |config| config.metadata.as_mut().unwrap().attempt = 1);
    // Exited, it still has it; removed, it has not.
    c.start().unwrap();
    c.exited();
    let refused = pod.try_create(pod.config("c", &["true"])).err().unwrap();
    assert!(is_code(&refused, Code::AlreadyExists), "{refused}");
    c.remove().unwrap();
    pod.create("c", &["true"], |_| {});
}

#[test]
fn a_request_that_comes_again_while_it_is_under_way_gets_the_first_ones_result() {
    let pod = world().pod("comes-again");
    let config = pod.config("c", &["sleep", "1000"]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.try_create(config.clone()))).collect();
        asked
            .into_iter()
            .filter_map(|asked| asked.join().unwrap().ok())
            .map(|c| c.id)
            .collect()
    });
    assert!(!ids.is_empty() && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let request = crisp::cri::ListContainersRequest {
        filter: Some(crisp::cri::ContainerFilter {
            pod_sandbox_id: pod.id.clone(),
            ..Default::default()
        }),
    };
    assert_eq!(
        crate::fixture::ask(world().runtime().list_containers(request))
            .unwrap()
            .containers
            .len(),
        1
    );
}

#[test]
fn the_beginning_of_an_id_is_enough() {
    let pod = world().pod("short");
    let c = pod.idle("c", |_| {});
    let short = Container {
        id: c.id[..13].to_owned(),
        ..c.clone()
    };
    assert_eq!(short.status().id, c.id);
    assert_eq!(short.sh("echo by a short id"), "by a short id");
    let request = crisp::cri::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id[..13].to_owned(),
        verbose: false,
    };
    let status = crate::fixture::ask(world().runtime().pod_sandbox_status(request))
        .unwrap()
        .status
        .unwrap();
    assert_eq!(status.id, pod.id);
    let nobody = Container {
        id: String::new(),
        ..c.clone()
    };
    let refused = nobody.try_status().unwrap_err();
    assert!(
        refused.code() == Code::NotFound || is_code(&refused, Code::InvalidArgument),
        "{refused}"
    );
    short.stop(0).unwrap();
    short.remove().unwrap();
    assert_eq!(c.try_status().unwrap_err().code(), Code::NotFound);
}
