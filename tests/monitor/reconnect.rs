//! The daemon goes and comes back; the pod does not notice.

use std::io::Write;

use crisp::monitor::Client;
use crisp::monitor::client::Event;
use crisp::monitor::frame::Outgoing;
use crisp::monitor::protocol::{Call, ContainerState, Empty, Hello, Request, SOCKET};

use crate::pod::{Pod, eventually, is_alive, programs, shell};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_learns_what_happened_meanwhile() {
    let mut pod = Pod::new().await;
    let (created, _) = pod.create(shell("true")).await;
    let running = pod.run(shell("exec sleep 60")).await;
    let (ends, process) = pod
        .create(shell("until test -e /tmp/go; do sleep 0.02; done; echo gone; exit 5"))
        .await;
    pod.client.start(&ends).await.unwrap();
    pod.exec(&ends, shell("touch /tmp/go; sleep 0.01")).await.ok();
    let run_dir = pod.run_dir();
    // The old daemon goes, with whatever it still had to read.
    let (client, snapshot, events) = Client::connect(&run_dir).await.unwrap();
    eventually("the container has ended", || !is_alive(process.pid)).await;
    assert_eq!(
        pod.client.signal(&running, 0).await.unwrap_err().to_string(),
        "the monitor is gone"
    );
    while let Ok(event) = pod.events.try_recv() {
        assert!(matches!(event, Event::Exited { .. } | Event::Lost));
    }
    assert_eq!(
        (snapshot.monitor_pid, snapshot.pause),
        (pod.monitor_pid, Some(pod.pause))
    );
    drop((client, events));

    let (client, snapshot, _events) = Client::connect(&run_dir).await.unwrap();
    let state = |id: &str| {
        let found = snapshot
            .containers
            .iter()
            .find(|container| container.container_id == id)
            .unwrap();
        (found.state(), found.exit.map(|exit| exit.code))
    };
    assert_eq!(state(created.as_str()), (ContainerState::Created, None));
    assert_eq!(state(running.as_str()), (ContainerState::Running, None));
    assert_eq!(state(ends.as_str()), (ContainerState::Exited, Some(5)));
    assert_eq!(pod.log_of(&ends), ["stdout F gone"]);
    client.signal(&running, 9).await.unwrap();
    client.start(&created).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_on_and_exits_are_recorded_while_no_daemon_is_there() {
    let mut pod = Pod::new().await;
    let container = pod.run(shell("sleep 0.1; seq 1 50000; exit 4")).await;
    let (client, events) = (
        pod.client.clone(),
        std::mem::replace(&mut pod.events, tokio::sync::mpsc::unbounded_channel().1),
    );
    drop((client, events));
    let run_dir = pod.run_dir();
    let record = run_dir.join("exits").join(&container);
    eventually("the exit is recorded", || record.exists()).await;
    assert_eq!(pod.log_of(&container).len(), 50_000);
    let (_client, snapshot, mut events) = Client::connect(&run_dir).await.unwrap();
    assert_eq!(snapshot.containers[0].exit.unwrap().code, 4);
    assert!(events.try_recv().is_err(), "what the snapshot says is no event");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_does_not_read_stops_no_log() {
    let mut pod = Pod::new().await;
    // Speaks, and never listens.
    let socket = std::os::unix::net::UnixStream::connect(pod.run_dir().join(SOCKET)).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut outgoing = Outgoing::default();
    for id in 0..200_000 {
        let call = if id == 0 {
            Call::Hello(Hello { version: 1 })
        } else {
            Call::Shutdown(Empty {})
        };
        outgoing
            .push(
                &Request {
                    id,
                    roles: Vec::new(),
                    call: Some(call),
                },
                Vec::new(),
            )
            .unwrap();
    }
    let flooding = std::thread::spawn(move || {
        // Until it is thrown out.
        while outgoing
            .flush(&socket)
            .is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
        {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    eventually("it is thrown out", || flooding.is_finished()).await;
    let (client, _, events) = Client::connect(&pod.run_dir()).await.unwrap();
    (pod.client, pod.events) = (client, events);
    let (exit, log) = pod.run_to_end(shell("echo still here")).await;
    assert_eq!((exit.code, log), (0, vec!["stdout F still here".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_ends_the_connection_and_not_the_monitor() {
    let pod = Pod::new().await;
    for nonsense in [
        &b"\xff\xff\xff\xff"[..],
        b"\x03\x00\x00\x00\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut socket = std::os::unix::net::UnixStream::connect(pod.run_dir().join(SOCKET)).unwrap();
        socket.write_all(nonsense).unwrap();
        let _ = std::io::Read::read(&mut socket, &mut [0; 16]);
    }
    let (client, snapshot, _events) = Client::connect(&pod.run_dir()).await.unwrap();
    assert_eq!(snapshot.pause, Some(pod.pause));
    client.stop_sandbox().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_without_a_pod_ends_with_its_daemon() {
    let launcher = crisp::monitor::Launcher::load(&programs()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (client, _events) = launcher
        .spawn(&crisp::model::SandboxId::new(crate::pod::new_id()), dir.path())
        .await
        .unwrap();
    let pid = client.monitor_pid();
    assert!(is_alive(pid));
    drop(client);
    eventually("the monitor is gone", || !is_alive(pid)).await;
    assert!(!dir.path().join(SOCKET).exists());
}
