use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

use super::*;

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
# comment:x:5:5::/c:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
broken line
short:x:7
app:x:1000:1001::/home/app:/bin/sh
twin:x:1000:2002::/home/twin:/bin/sh
huge:x:4294967296:4294967296::/h:/bin/sh
minus:x:-1:0::/h:/bin/sh
nohome:x:1003:1003:::/bin/sh
relative:x:1004:1004::home/x:/bin/sh
12:x:4000:4000::/twelve:/bin/sh
:x:4001:4001::/nameless:/bin/sh
";
const GROUP: &str = "\
root:x:0:
staff:x:50:app,daemon
wheel:x:10:daemon
many:x:60:other,app
app2:x:61:application
bad:x:x:app
huge:x:4294967296:app
predefined:x:50000:app
";

struct World {
    root: tempfile::TempDir,
    context: cri::LinuxContainerSecurityContext,
    image_user: &'static str,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
    fs::write(root.path().join("etc/group"), GROUP).unwrap();
    World {
        root,
        context: Default::default(),
        image_user: "",
    }
}

impl World {
    fn resolve(&self) -> Result<Identity, SpecError> {
        let linux = cri::LinuxContainerConfig {
            security_context: Some(self.context.clone()),
            ..Default::default()
        };
        let container = cri::ContainerConfig {
            linux: Some(linux),
            ..Default::default()
        };
        let config = ConfigBuilder::default().user(self.image_user).build().unwrap();
        let image = ImageConfigurationBuilder::default().config(config).build().unwrap();
        let root = fs::File::open(self.root.path()).unwrap();
        resolve(&container, &image, root.as_fd())
    }

    fn user(mut self, uid: i64) -> Self {
        self.context.run_as_user = Some(cri::Int64Value { value: uid });
        self
    }

    fn group(mut self, gid: i64) -> Self {
        self.context.run_as_group = Some(cri::Int64Value { value: gid });
        self
    }

    fn name(mut self, name: &str) -> Self {
        self.context.run_as_username = name.into();
        self
    }

    fn image(mut self, user: &'static str) -> Self {
        self.image_user = user;
        self
    }
}

fn shown(identity: &Identity) -> String {
    let user = &identity.user;
    format!(
        "{}:{} {:?} {}",
        user.uid,
        user.gid,
        user.additional_gids,
        String::from_utf8_lossy(&identity.home)
    )
}

#[test]
fn who_a_container_runs_as() {
    for (world, expected) in [
        (world(), "0:0 [0] /root"),
        (world().user(0), "0:0 [0] /root"),
        (world().user(1000), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().user(1000).group(7), "1000:7 [7, 50, 60, 50000] /home/app"),
        (world().user(9999), "9999:0 [0] /"),
        (world().user(9999).group(9), "9999:9 [9] /"),
        (world().name("app"), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().name("twin"), "1000:2002 [2002] /home/twin"),
        (world().name("app").user(1), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().name("daemon").group(5), "1:5 [5, 10, 50] /usr/sbin"),
        (world().name("12"), "12:0 [0] /"),
        (world().image("app"), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().image("1000"), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().image("1002"), "1002:0 [0] /"),
        (world().image("1003:1004"), "1003:1004 [1004] /"),
        (world().image("app:wheel"), "1000:10 [10, 50, 60, 50000] /home/app"),
        (world().image("app:"), "1000:1001 [50, 60, 1001, 50000] /home/app"),
        (world().image(":wheel"), "0:10 [10] /root"),
        (world().image("app").user(1), "1:1 [1, 10, 50] /usr/sbin"),
        (world().name("nohome"), "1003:1003 [1003] /"),
        (world().name("relative"), "1004:1004 [1004] /"),
    ] {
        assert_eq!(shown(&world.resolve().unwrap()), expected);
    }
}

#[test]
fn supplemental_groups_are_merged_with_the_images_or_strictly_the_requests() {
    let mut merged = world().user(1000);
    merged.context.supplemental_groups = vec![1234, 50, 1234];
    assert_eq!(
        merged.resolve().unwrap().user.additional_gids,
        [50, 60, 1001, 1234, 50000]
    );
    merged.context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    assert_eq!(merged.resolve().unwrap().user.additional_gids, [50, 1001, 1234]);
    merged.context.supplemental_groups_policy = 7;
    assert!(matches!(merged.resolve(), Err(SpecError::Invalid { .. })));
}

#[test]
fn what_is_out_of_range_unknown_or_incomplete_is_refused() {
    for (world, part) in [
        (world().group(5), "without a user"),
        (world().group(5).image("app"), "without a user"),
        (world().user(-1), "out of range"),
        (world().user(1 << 31), "out of range"),
        (world().user(1 << 32), "out of range"),
        (world().user(1).group(-1), "out of range"),
        (world().user(1).group(1 << 32), "out of range"),
        (world().name("4294967296"), "out of range"),
        (world().name("99999999999999999999999"), "out of range"),
        (world().name("-1"), "out of range"),
        (world().name("nobody"), "no user"),
        (world().name("huge"), "no user"),
        (world().name("minus"), "no user"),
        (world().name("a:b"), "is no name"),
        (world().image("4294967296"), "out of range"),
        (world().image("0:4294967296"), "out of range"),
        (world().image("-1"), "out of range"),
        (world().image("nobody"), "no user"),
        (world().image("app:nogroup"), "no group"),
        (world().image("app:huge"), "no group"),
        (world().image("app:staff:x"), "is no name"),
    ] {
        let error = world.resolve().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut groups = world().user(1);
    groups.context.supplemental_groups = vec![1 << 32];
    assert!(groups.resolve().unwrap_err().to_string().contains("out of range"));
}

#[test]
fn without_files_numbers_work_and_names_do_not() {
    let bare = || {
        let world = world();
        fs::remove_dir_all(world.root.path().join("etc")).unwrap();
        world
    };
    assert_eq!(shown(&bare().user(5).resolve().unwrap()), "5:0 [0] /");
    assert_eq!(shown(&bare().resolve().unwrap()), "0:0 [0] /");
    assert!(matches!(
        bare().name("app").resolve(),
        Err(SpecError::UnknownUser { .. })
    ));
    let blocked = bare();
    fs::write(blocked.root.path().join("etc"), "not a directory").unwrap();
    assert_eq!(shown(&blocked.user(5).resolve().unwrap()), "5:0 [0] /");
}

/// An image's passwd is whatever its author wants it to be. Before it was looked at through the container's own
/// root, a symlink read the host's; before it was limited, a sparse file ate the daemon's memory; a FIFO hung it.
#[test]
fn hostile_files_neither_lead_out_nor_hang_nor_fill_memory() {
    let hostile = || {
        let world = world().name("victim");
        let path = world.root.path().join("etc/passwd");
        fs::remove_file(&path).unwrap();
        (world, path)
    };
    let secret = tempfile::tempdir().unwrap();
    fs::write(secret.path().join("passwd"), "victim:x:4242:4242::/:/bin/sh\n").unwrap();
    let outside = secret.path().join("passwd");
    let up = format!("../../../../../../../../..{}", outside.display());
    for target in [outside.to_str().unwrap(), &up] {
        let (world, path) = hostile();
        symlink(target, path).unwrap();
        assert!(
            matches!(world.resolve(), Err(SpecError::UnknownUser { .. })),
            "{target}"
        );
    }
    let (world, path) = hostile();
    symlink("/proc/self/root", path).unwrap();
    assert!(world.resolve().is_err());

    let (world, path) = hostile();
    fs::write(world.root.path().join("inside"), "victim:x:77:78::/:/bin/sh\n").unwrap();
    symlink("/inside", path).unwrap();
    assert_eq!(shown(&world.resolve().unwrap()), "77:78 [78] /");

    let (world, path) = hostile();
    fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(world.resolve(), Err(SpecError::TooLarge { .. })));

    let (world, path) = hostile();
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    assert!(matches!(world.resolve(), Err(SpecError::Read { .. })));

    let (world, path) = hostile();
    fs::create_dir(path).unwrap();
    assert!(matches!(world.resolve(), Err(SpecError::Read { .. })));

    let (world, path) = hostile();
    let mut bytes: Vec<u8> = (0..=255u8).cycle().take(1 << 20).collect();
    bytes.extend(b"\nvictim:x:8:9:\xff\xfe:/h\xc3ome:\n");
    fs::write(path, bytes).unwrap();
    let found = world.resolve().unwrap();
    assert_eq!(
        (found.user.uid, found.user.gid, &found.home[..]),
        (8, 9, &b"/h\xc3ome"[..])
    );
}

#[test]
fn more_groups_than_the_kernel_takes_are_refused_not_cut() {
    let world = world().name("app");
    let lines: String = (0..70_000).map(|gid| format!("g{gid}:x:{gid}:app\n")).collect();
    fs::write(world.root.path().join("etc/group"), lines).unwrap();
    assert!(matches!(world.resolve(), Err(SpecError::TooLarge { .. })));
}
