//! The arrows between the rooms only go down: what a room may name of ours is in this table.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const EVERYTHING: &[&str] = &[
    "api",
    "config",
    "container",
    "cri",
    "events",
    "fault",
    "handler",
    "image",
    "model",
    "monitor",
    "network",
    "operation",
    "sandbox",
    "stats",
    "store",
    "streaming",
    "sys",
    "systemd",
    "undo",
];

/// Room, and the rooms it may use. `oci` may also use libcontainer; nobody else may.
const TABLE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &[]),
    ("undo", &[]),
    ("operation", &[]),
    ("fault", &[]),
    ("cri", &[]),
    ("systemd", &[]),
    ("config", &["model", "systemd"]),
    ("events", &["model", "cri"]),
    ("handler", &["model", "sys"]),
    ("store", &["model", "cri", "sys"]),
    ("image", &["model", "config", "sys", "undo", "fault"]),
    ("network", &["model", "config", "sys", "undo"]),
    ("oci", &["model", "sys"]),
    ("monitor", &["model", "sys", "oci"]),
    (
        "container",
        &[
            "model",
            "cri",
            "config",
            "sys",
            "undo",
            "operation",
            "fault",
            "store",
            "events",
            "handler",
            "image",
            "monitor",
        ],
    ),
    (
        "sandbox",
        &[
            "model",
            "cri",
            "config",
            "sys",
            "systemd",
            "undo",
            "operation",
            "fault",
            "store",
            "events",
            "handler",
            "network",
            "monitor",
            "container",
        ],
    ),
    ("streaming", &["model", "config", "sys", "store", "monitor"]),
    ("stats", &["model", "cri", "sys", "store", "image"]),
    (
        "api",
        &[
            "model",
            "cri",
            "config",
            "events",
            "handler",
            "image",
            "network",
            "streaming",
            "stats",
            "container",
            "sandbox",
            "monitor",
            "store",
            "sys",
        ],
    ),
    ("daemon", EVERYTHING),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room of a file: the first part of its path below src.
fn room_of(path: &Path) -> String {
    let below = path.strip_prefix(src()).expect("below src");
    let first = below
        .components()
        .next()
        .expect("a name")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The rooms that a text names by `crate::<room>` or `crate::{<room>, ...}`, comments left out.
fn named(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut rooms = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let room: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !room.is_empty() {
            rooms.insert(room);
        } else if let Some(list) = after.strip_prefix('{').and_then(|rest| rest.split(';').next()) {
            for part in list.split([',', '{', '}']) {
                rooms.insert(part.trim().split("::").next().unwrap_or_default().to_owned());
            }
        }
    }
    rooms.retain(|room| TABLE.iter().any(|(known, _)| known == room));
    rooms
}

#[test]
fn every_arrow_goes_down() {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let room = room_of(&file);
        if room == "lib" || room == "bin" {
            continue;
        }
        let (_, allowed) = TABLE
            .iter()
            .find(|(known, _)| *known == room)
            .unwrap_or_else(|| panic!("{}: the room {room} is not in the table", file.display()));
        let text = fs::read_to_string(&file).expect("readable");
        for used in named(&text) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: {room} may not use {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_must_stay_in_one_room_stays_there() {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let room = room_of(&file);
        let text = fs::read_to_string(&file).expect("readable");
        let code: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect();
        let names = |what: &str| code.iter().any(|line| line.contains(what));
        if names("libcontainer::") && !file.ends_with("oci/youki.rs") {
            wrong.push(format!("{}: only oci/youki.rs names libcontainer", file.display()));
        }
        if names("tonic::Status") && room != "api" {
            wrong.push(format!("{}: tonic::Status does not leave api", file.display()));
        }
        if (names("unsafe {") || names("unsafe fn")) && !["sys", "bin"].contains(&room.as_str()) {
            wrong.push(format!("{}: unsafe lives in sys", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A sync makes its caller wait for the disk, and for everybody else's writes: on the way of a pod, of a command and of a
/// line of a log there is none.
#[test]
fn nothing_on_the_way_of_a_pod_waits_for_the_disk() {
    let mut files = Vec::new();
    sources(&src(), &mut files);
    let rooms = ["monitor", "oci", "container", "sandbox", "store", "stats", "streaming"];
    let mut seen = 0;
    for file in files.iter().filter(|file| rooms.contains(&room_of(file).as_str())) {
        let text = fs::read_to_string(file).expect("readable");
        for call in [
            "fsync(",
            "fdatasync(",
            "syncfs(",
            "sync_all(",
            "sync_data(",
            "O_SYNC",
            "OFlags::SYNC",
            "OFlags::DSYNC",
        ] {
            let calls = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let found = calls.filter(|line| line.contains(call)).collect::<Vec<_>>();
            assert!(found.is_empty(), "{}: {found:?}", file.display());
        }
        seen += 1;
    }
    assert!(seen > 50, "the rooms have moved");
}

#[test]
fn the_table_sees_an_arrow_that_goes_up() {
    let text = "use crate::{model, sandbox::Sandboxes};\n// crate::api is only spoken of\nlet x = crate::store::now();";
    assert_eq!(
        named(text).into_iter().collect::<Vec<_>>(),
        ["model", "sandbox", "store"]
    );
}
