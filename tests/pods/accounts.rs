//! Users and groups: by number, by name, from the image; and what ContainerStatus says of them.

use crisp::cri::{self, LinuxContainerUser, SupplementalGroupsPolicy};
use tonic::Code;

use crate::fixture::{Container, Pod, image, int, is_code, says, security, world};
use crate::registry::reference;

fn told(container: &Container) -> LinuxContainerUser {
    container.status().user.unwrap().linux.unwrap()
}

/// Real uid and gid, and all groups, of the first process and of an exec.
fn ids(container: &Container) -> (i64, i64, Vec<i64>) {
    let read = |process: &str| {
        let text = container.sh(&format!(
            "sed -n 's/^\\(Uid\\|Gid\\|Groups\\):[[:space:]]*//p' /proc/{process}/status"
        ));
        let rows: Vec<Vec<i64>> = format!("{text}\n\n")
            .lines()
            .take(3)
            .map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect())
            .collect();
        assert!(
            rows[0].iter().all(|id| *id == rows[0][0]) && rows[1].iter().all(|id| *id == rows[1][0]),
            "{text}"
        );
        (rows[0][0], rows[1][0], rows[2].clone())
    };
    let (first, exec) = (read("1"), read("self"));
    assert_eq!(first, exec);
    first
}

#[track_caller]
fn check(
    pod: &Pod,
    name: &str,
    expected: (i64, i64, &[i64]),
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) {
    let c = pod.idle(name, |config| change(security(config)));
    let (uid, gid, groups) = (expected.0, expected.1, expected.2.to_vec());
    assert_eq!(ids(&c), (uid, gid, groups.clone()), "{name}");
    let status = told(&c);
    assert_eq!(
        (status.uid, status.gid, status.supplemental_groups),
        (uid, gid, groups),
        "{name}: told"
    );
}

#[test]
fn numbers_names_and_groups() {
    let pod = world().pod("accounts");
    check(&pod, "nothing", (0, 0, &[0]), |_| {});
    check(&pod, "uid", (1000, 1000, &[50, 63, 1000]), |s| {
        s.run_as_user = int(1000)
    });
    check(&pod, "unknown-uid", (4711, 0, &[0]), |s| s.run_as_user = int(4711));
    check(&pod, "gid", (1000, 44, &[44, 50, 63]), |s| {
        s.run_as_user = int(1000);
        s.run_as_group = int(44);
    });
    check(&pod, "name", (1000, 1000, &[50, 63, 1000]), |s| {
        s.run_as_username = "alice".into()
    });
    check(&pod, "more", (1000, 1000, &[7, 50, 63, 1000]), |s| {
        s.run_as_user = int(1000);
        s.supplemental_groups = vec![7, 50];
    });
}

#[test]
fn strict_takes_no_groups_from_the_image() {
    let pod = world().pod("accounts-strict");
    let strict = SupplementalGroupsPolicy::Strict.into();
    check(&pod, "alone", (1000, 1000, &[1000]), |s| {
        s.run_as_user = int(1000);
        s.supplemental_groups_policy = strict;
    });
    check(&pod, "with", (1000, 44, &[7, 44]), |s| {
        s.run_as_user = int(1000);
        s.run_as_group = int(44);
        s.supplemental_groups = vec![7];
        s.supplemental_groups_policy = strict;
    });
}

#[test]
fn the_images_user() {
    let pod = world().pod("accounts-image");
    let of = |name: &str| {
        let reference = reference(name);
        world().pull(&reference).unwrap();
        move |config: &mut cri::ContainerConfig| config.image = Some(image(&reference))
    };
    let c = pod.idle("alice", of("talkative"));
    assert_eq!(ids(&c), (1000, 1000, vec![50, 63, 1000]));
    let c = pod.idle("numbers", of("forms"));
    assert_eq!((ids(&c).0, ids(&c).1), (1000, 50));
    // The request is over the image, a group needs a user, and the image may be the one that says it.
    let c = pod.idle("group-over-image", |config| {
        of("talkative")(config);
        security(config).run_as_user = int(1000);
        security(config).run_as_group = int(63);
    });
    assert_eq!(ids(&c).1, 63);
}

#[test]
fn accounts_that_are_refused() {
    let pod = world().pod("accounts-refused");
    type Change = fn(&mut cri::LinuxContainerSecurityContext);
    let cases: [(&str, Change); 5] = [
        ("without a user", |s| s.run_as_group = int(5)),
        ("bob", |s| s.run_as_username = "bob".into()),
        ("-1", |s| s.run_as_user = int(-1)),
        ("4294967296", |s| s.run_as_user = int(1 << 32)),
        ("4294967297", |s| {
            s.run_as_user = int(1);
            s.supplemental_groups = vec![(1 << 32) + 1];
        }),
    ];
    for (words, change) in cases {
        let mut config = pod.config("c", &["true"]);
        change(security(&mut config));
        let refused = pod.try_create(config).err().expect(words);
        assert!(is_code(&refused, Code::InvalidArgument), "{words}: {refused}");
        assert!(says(&refused, words), "{words}: {refused}");
    }
}
