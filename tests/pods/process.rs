//! What runs, as whom, where, with what around it: the request's words over the image's.

use crisp::cri::{self, KeyValue};
use tonic::Code;

use crate::fixture::{Container, image, int, is_code, says, security, world};
use crate::handlers::is_external;
use crate::registry::reference;

fn variable(key: &str, value: &[u8]) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: value.to_vec(),
    }
}

fn of(name: &'static str) -> impl FnOnce(&mut cri::ContainerConfig) {
    move |config| config.image = Some(image(&reference(name)))
}

/// What the `talkative` image's script printed.
fn talk(container: &Container) -> Vec<String> {
    container.logged("entry");
    crate::fixture::eventually("four lines", || Some(container.log()).filter(|log| log.len() == 4))
        .into_iter()
        .map(|line| line.strip_prefix("stdout F ").expect("to stdout").to_owned())
        .collect()
}

#[test]
fn everything_from_the_image() {
    let pod = world().pod("from-image");
    let c = pod.start("c", &[], of("talkative"));
    assert_eq!(
        talk(&c),
        ["entry image-argument ", "env image image", "/made/by/crisp", "1000"]
    );
    assert_eq!(
        c.sh("id -u; pwd; echo $HOME $FROM"),
        "1000\n/made/by/crisp\n/home/alice image"
    );
    let pod = world().pod("from-nobody");
    let refused = pod.try_create({
        let mut config = pod.config("c", &[]);
        of("silent")(&mut config);
        config
    });
    let refused = refused.err().expect("nothing to run");
    assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
    assert!(
        says(&refused, "neither the container nor its image says what to run"),
        "{refused}"
    );
}

#[test]
fn the_request_over_the_image() {
    let pod = world().pod("over-image");
    let c = pod.start("c", &[], |config| {
        of("talkative")(config);
        config.args = vec!["of".into(), "the request".into()];
        config.envs = vec![variable("OVER", b"request")];
        config.working_dir = "/tmp/new/deep".into();
        security(config).run_as_user = int(0);
    });
    assert_eq!(
        talk(&c),
        ["entry of the request", "env image request", "/tmp/new/deep", "0"]
    );
    // A command replaces entrypoint and arguments both.
    let c = pod.start("d", &["/bin/sh", "-c", "echo \"$0|$*\"; sleep 1000"], of("talkative"));
    assert_eq!(c.logged("|"), ["stdout F /bin/sh|"]);
    let c = pod.start("e", &["/bin/sh", "-c", "echo \"$0|$*\"; sleep 1000"], |config| {
        of("talkative")(config);
        config.args = vec!["a".into(), "b".into()];
    });
    assert_eq!(c.logged("|"), ["stdout F a|b"]);
}

#[test]
fn bytes_that_are_no_text_arrive_in_the_environment() {
    let pod = world().pod("bytes");
    let value: Vec<u8> = (1..=255).collect();
    if is_external() {
        let mut config = pod.config("c", &["true"]);
        config.envs = vec![variable("BYTES", &value)];
        let refused = pod.try_create(config).err().expect("JSON has text only");
        assert!(says(&refused, "BYTES"), "{refused}");
        return;
    }
    let c = pod.idle("c", |config| {
        config.envs = vec![
            variable("BYTES", &value),
            variable("EMPTY", b""),
            variable("TWICE", b"1"),
            variable("TWICE", b"2"),
        ];
    });
    let expected: String = std::iter::once("BYTES=".as_bytes())
        .chain([value.as_slice()])
        .flatten()
        .map(|b| format!("{b:02x}"))
        .collect();
    for process in ["1", "self"] {
        // By xxd: the answer would be text otherwise.
        let seen = c.sh(&format!("cat /proc/{process}/environ | tr '\\0\\n' '\\n\\0' | grep -a '^BYTES=' | tr -d '\\n' | tr '\\0' '\\n' | xxd -p | tr -d '\\n'"));
        assert_eq!(seen, expected, "{process}");
    }
    assert_eq!(
        c.sh("echo \"${EMPTY-unset}|$TWICE|${PATH}|${HOME}\""),
        "|2|/usr/bin:/bin|/root"
    );
}

#[test]
fn an_exec_has_what_the_container_has() {
    let pod = world().pod("exec-like");
    let c = pod.idle("c", |config| {
        config.envs = vec![variable("MINE", b"yes")];
        config.working_dir = "/tmp".into();
        security(config).run_as_user = int(1000);
        security(config).run_as_group = int(50);
        security(config).supplemental_groups = vec![7];
    });
    // Not by a shell, which adds to it.
    let (first, exec) = (
        c.exec(&["cat", "/proc/1/environ"]),
        c.exec(&["cat", "/proc/self/environ"]),
    );
    assert!(first.stdout.contains("MINE=yes\0"), "{first:?}");
    assert_eq!(first, exec);
    let status = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/";
    assert_eq!(
        c.sh(&format!("{status}1/status")),
        c.sh(&format!("{status}self/status"))
    );
    assert_eq!(c.sh("pwd; readlink /proc/1/cwd"), "/tmp\n/tmp");
    let done = c.exec(&["sh", "-c", "echo out; echo err >&2; exit 42"]);
    assert_eq!(
        (done.code, done.stdout.as_str(), done.stderr.as_str()),
        (42, "out", "err")
    );
    assert_eq!(c.exec(&["sh", "-c", "kill -9 $$"]).code, 137);
    for namespace in ["mnt", "net", "ipc", "uts", "pid", "user", "cgroup"] {
        let seen = c.sh(&format!(
            "readlink /proc/1/ns/{namespace}; readlink /proc/self/ns/{namespace}"
        ));
        let (a, b) = seen.split_once('\n').unwrap();
        assert_eq!(a, b);
    }
}

#[test]
fn an_exec_that_cannot_run_says_why() {
    let pod = world().pod("exec-fails");
    let c = pod.idle("c", |_| {});
    let missing = c.try_exec(&["no-such-program"], 5).unwrap_err();
    assert!(says(&missing, "no-such-program"), "{missing}");
    let denied = c.try_exec(&["/etc/not-executable"], 5).unwrap_err();
    assert!(
        denied.message().to_lowercase().contains("permission denied"),
        "{denied}"
    );
    let empty = c.try_exec(&[], 5).unwrap_err();
    assert!(is_code(&empty, Code::InvalidArgument), "{empty}");
    // The daemon and the container are as before.
    assert_eq!(c.sh("echo fine"), "fine");
}

#[test]
fn an_argument_with_a_nul_is_refused() {
    let pod = world().pod("exec-nul");
    let refused = pod.idle("c", |_| {}).try_exec(&["echo", "nul\0"], 5).unwrap_err();
    assert!(is_code(&refused, Code::InvalidArgument), "{refused}");
}

#[test]
fn a_timeout_kills_the_whole_tree_of_an_exec() {
    let pod = world().pod("exec-timeout");
    let c = pod.idle("c", |_| {});
    let began = std::time::Instant::now();
    let script = "trap '' TERM; sleep 4242 & setsid sleep 4243 & sleep 4244";
    let late = c.try_exec(&["sh", "-c", script], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(began.elapsed().as_millis() < 4000, "{:?}", began.elapsed());
    assert_eq!(c.sh("ps -o args | grep -c '[s]leep 424' || true"), "0");
    assert_eq!(
        c.sh("ps -o args | grep -c '[s]leep 100000'"),
        "1",
        "the container itself was hit"
    );
}

#[test]
fn a_timeout_of_any_length_is_taken() {
    let pod = world().pod("exec-any-timeout");
    let c = pod.idle("c", |_| {});
    for seconds in [i64::MAX, 100_000_000_000, 0] {
        let done = c.try_exec(&["echo", "done"], seconds).unwrap();
        assert_eq!(
            (done.exit_code, done.stdout.as_slice()),
            (0, b"done\n".as_slice()),
            "{seconds}"
        );
    }
}

#[test]
fn an_exec_does_not_wait_for_what_it_leaves_behind() {
    let pod = world().pod("exec-behind");
    let c = pod.idle("c", |_| {});
    let began = std::time::Instant::now();
    let done = c.exec(&["sh", "-c", "sleep 5555 & echo done"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "done"));
    assert!(began.elapsed().as_millis() < 3000, "{:?}", began.elapsed());
    assert_eq!(c.sh("ps -o args | grep -c '[s]leep 5555'"), "1", "it may go on");
}

#[test]
fn output_beyond_16_mib_is_cut_and_hangs_nobody() {
    let pod = world().pod("exec-much");
    let c = pod.idle("c", |_| {});
    let done = c
        .try_exec(
            &["sh", "-c", "head -c 10485760 /dev/zero; head -c 5000000 /dev/zero >&2"],
            30,
        )
        .unwrap();
    assert_eq!(
        (done.stdout.len(), done.stderr.len(), done.exit_code),
        (10 << 20, 5_000_000, 0)
    );
    // 16 MiB of each is more than a message may be: what a client could not take would be an error.
    let limit = crate::fixture::MESSAGE_LIMIT;
    for (script, streams) in [
        ("head -c 20000000 /dev/zero", 1),
        ("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2", 2),
        ("head -c 20000000 /dev/zero; head -c 1000 /dev/zero >&2; exit 3", 3),
    ] {
        let done = c.try_exec(&["sh", "-c", script], 30).unwrap();
        let (stdout, stderr) = (done.stdout.len(), done.stderr.len());
        assert!(
            stdout + stderr > limit - 1024 && stdout + stderr < limit,
            "{script}: {stdout} {stderr}"
        );
        match streams {
            1 => assert_eq!(stderr, 0),
            2 => assert!(stdout.abs_diff(stderr) <= 1024, "{stdout} {stderr}"),
            _ => assert_eq!((stderr, done.exit_code), (1000, 3)),
        }
    }
}

#[test]
fn stdin_is_empty_unless_asked_for() {
    let pod = world().pod("stdin");
    let c = pod.start("c", &["sh", "-c", "cat; echo end; exec sleep 1000"], |_| {});
    c.logged("end");
    // External runtimes leave a process the node's, whose path is another one in the container.
    let null = |shown: String| shown == "/dev/null" || (is_external() && shown == "/null");
    assert!(null(c.sh("cat; readlink /proc/self/fd/0")));
    assert!(null(c.sh("readlink /proc/1/fd/0")));
}

#[test]
fn a_terminal_is_one() {
    let pod = world().pod("tty");
    let c = pod.start(
        "c",
        &["sh", "-c", "tty; test -t 1 && echo terminal $TERM; exec sleep 1000"],
        |config| config.tty = true,
    );
    let log = c.logged("terminal");
    assert!(
        log.contains(&"stdout F /dev/pts/0".to_owned()) && log.contains(&"stdout F terminal xterm".to_owned()),
        "{log:?}"
    );
    assert_eq!(
        c.sh("readlink /proc/1/fd/2; test -c /dev/console && echo console"),
        "/dev/pts/0\nconsole"
    );
}

#[test]
fn annotations_and_labels_are_kept_byte_for_byte() {
    let strange = [
        ("plain", "value"),
        ("empty", ""),
        ("with spaces", " leading and trailing "),
        ("ünï/cödé.example", "日本語 \u{1F600}"),
        ("newlines", "a\nb\r\n\tc\0d"),
        ("json", r#"{"quoted": "\"", "n": [1, 2]}"#),
    ];
    let map = || {
        strange
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let pod = world().pod_with("labels", |config| {
        config.labels = map();
        config.annotations = map();
    });
    let status = pod.status();
    assert_eq!((&status.labels, &status.annotations), (&map(), &map()));
    let c = pod.create("c", &["true"], |config| {
        config.labels = map();
        config.annotations = map();
    });
    let status = c.status();
    assert_eq!((&status.labels, &status.annotations), (&map(), &map()));
    assert_eq!(status.metadata.unwrap().name, "c");
}

/// What CRI-O and containerd let annotations do: devices, namespaces, files, limits.
const OF_OTHERS: [(&str, &str); 14] = [
    ("io.kubernetes.cri-o.Devices", "/dev/fuse:/dev/fuse:rwm"),
    ("devices.crio.io", "/dev/fuse:/dev/fuse:rwm"),
    ("io.kubernetes.cri-o.ShmSize", "1Mi"),
    ("shm-size.crio.io", "1Mi"),
    ("io.kubernetes.cri-o.userns-mode", "auto:size=65536"),
    ("io.kubernetes.cri-o.umask", "077"),
    ("umask.crio.io", "077"),
    ("seccomp-profile.kubernetes.cri-o.io/POD", "unconfined"),
    ("io.kubernetes.cri-o.unified-cgroup.c", "pids.max=1"),
    ("io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw", "true"),
    ("cpu-load-balancing.crio.io", "disable"),
    ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
    ("io.kubernetes.cri-o.LinkLogs", "logs"),
    ("run.oci.keep_original_groups", "1"),
];

/// Those that containerd refuses where it is not configured for them.
const OF_CONTAINERD: [(&str, &str); 3] = [
    ("io.kubernetes.cri.untrusted-workload", "true"),
    ("io.kubernetes.cri.rdt-class", "gold"),
    ("io.kubernetes.cri.blockio-class", "gold"),
];

/// CRI: annotations "should not influence" what the runtime does.
#[test]
fn annotations_that_mean_something_to_others_mean_nothing() {
    let own = OF_CONTAINERD.into_iter().filter(|_| world().if_crisp().is_some());
    let annotations: std::collections::BTreeMap<_, _> = OF_OTHERS
        .into_iter()
        .chain(own)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let script = "umask; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|Cpus_allowed)' /proc/1/status; cat /proc/1/limits; \
                  cat /proc/1/uid_map /proc/1/oom_score_adj; ls -l /dev | sed 's/ .* / /'; df -k /dev/shm | tail -1; \
                  awk '{print $2, $3}' /proc/mounts; tr '\\0' '\\n' < /proc/1/environ | grep -v ^HOSTNAME";
    let [plain, annotated] =
        [("annotated-not", Default::default()), ("annotated", annotations)].map(|(name, annotations)| {
            let pod = world().pod_with(name, |config| config.annotations.clone_from(&annotations));
            let c = pod.idle("c", |config| config.annotations.clone_from(&annotations));
            assert_eq!(
                (pod.status().annotations, c.status().annotations),
                (annotations.clone(), annotations)
            );
            c.sh(script)
        });
    assert_eq!(plain, annotated);
}
