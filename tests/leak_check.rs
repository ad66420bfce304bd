//! The leak check finds what is left behind. Needs root.

#[path = "support/leak_check.rs"]
mod leak_check;

use std::process::Command;
use std::time::Duration;

use crisp::sys::cgroup::{Cgroup, Hierarchy};
use leak_check::{Scope, Snapshot};

/// Story: a check that looks in the wrong place passes for ever. So everything it must see is made here, seen, taken
/// away, and not seen any more.
#[test]
fn what_is_left_behind_is_found_and_what_is_taken_away_is_not() {
    let own = std::process::id();
    let dir = tempfile::tempdir().unwrap();
    let marker = format!("crisp-leak-{own}");
    let cgroup = format!("/crisp-test-{own}-leaks");
    let scope = Scope {
        commands: vec![marker.clone()],
        cgroups: vec![cgroup.clone()],
        directories: vec![dir.path().to_owned()],
        open_files_of: vec![own.cast_signed()],
        ..Scope::default()
    };
    let before = Snapshot::take(&scope);

    let script = dir.path().join(&marker);
    std::fs::write(&script, "#!/bin/sh\nsleep 1000 &\nwait\n").unwrap();
    let mut leaked = Command::new("/bin/sh").arg(&script).spawn().unwrap();
    let leaked_cgroup = Cgroup::create(&Hierarchy::detect().unwrap(), &format!("{cgroup}/inner")).unwrap();
    let open = std::fs::File::open(&script).unwrap();
    let point = dir.path().join("mount");
    std::fs::create_dir(&point).unwrap();
    let point_text = point.to_str().unwrap();
    assert!(
        Command::new("mount")
            .args(["-t", "tmpfs", "none", point_text])
            .status()
            .unwrap()
            .success()
    );

    let wanted = [
        format!("process {} /bin/sh", leaked.id()),
        "sleep 1000".to_owned(),
        format!("{cgroup}/inner"),
        format!("open file of process {own}: {}", script.display()),
        format!("mount of tmpfs / at {point_text}"),
        format!("file {}", script.display()),
    ];
    let mut found = Vec::new();
    for _ in 0..100 {
        found = before.diff(&Snapshot::take(&scope));
        if wanted.iter().all(|text| {
            found
                .iter()
                .any(|line| line.starts_with("+ ") && line.contains(text.as_str()))
        }) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for text in &wanted {
        assert!(
            found.iter().any(|line| line.contains(text.as_str())),
            "{text} not in {found:#?}"
        );
    }
    let late = Snapshot::take(&scope);

    drop(open);
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    std::fs::remove_dir(&point).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", leaked.id())).unwrap();
    leaked.kill().unwrap();
    leaked.wait().unwrap();
    for child in children.split_whitespace() {
        assert!(Command::new("kill").args(["-9", child]).status().unwrap().success());
    }
    std::fs::remove_file(&script).unwrap();
    leaked_cgroup.remove().unwrap();
    leaked_cgroup.parent().unwrap().remove().unwrap();

    assert_eq!(before.settled(&scope, Duration::from_secs(10)), Vec::<String>::new());
    assert!(
        late.settled(&scope, Duration::ZERO)
            .iter()
            .any(|line| line.starts_with("- "))
    );
    // The machine as a whole can be looked at, too.
    let whole = Scope {
        all_netns: true,
        ..Scope::default()
    };
    assert!(!Snapshot::take(&whole).diff(&Snapshot::default()).is_empty());
}
