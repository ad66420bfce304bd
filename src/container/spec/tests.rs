//! Whole descriptions, from request and image to what libcontainer and the monitor get.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::image::{Config, ConfigBuilder, ImageConfiguration, ImageConfigurationBuilder};

use super::*;

mod mounts;

/// A request, an image and a root file system that tests change before they build.
struct World {
    root: tempfile::TempDir,
    sandbox: cri::PodSandboxConfig,
    container: cri::ContainerConfig,
    image: Config,
    namespaces: JoinPaths,
    cgroup_mounts: Vec<CgroupMount>,
    devices: Vec<Device>,
    host: HostFacts,
}

fn world() -> World {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    let path = |name: &str| Some(PathBuf::from(name));
    World {
        root,
        sandbox: cri::PodSandboxConfig::default(),
        container: cri::ContainerConfig {
            command: vec!["/bin/true".into()],
            ..Default::default()
        },
        image: Config::default(),
        namespaces: JoinPaths {
            net: path("/n"),
            ipc: path("/i"),
            uts: path("/u"),
            pid: path("/p"),
            user: None,
        },
        cgroup_mounts: Vec::new(),
        devices: Vec::new(),
        host: HostFacts::for_tests(),
    }
}

impl World {
    fn build(&self) -> Result<Built, SpecError> {
        let root = fs::File::open(self.root.path()).unwrap();
        let image: ImageConfiguration = ImageConfigurationBuilder::default()
            .config(self.image.clone())
            .build()
            .unwrap();
        let input = Input {
            sandbox: &self.sandbox,
            container: &self.container,
            image: &image,
            hostname: "pod",
            namespaces: &self.namespaces,
            cgroup_mounts: &self.cgroup_mounts,
            external: false,
            devices: &self.devices,
            host: &self.host,
        };
        let built = build(&input, root.as_fd())?;
        let again = again(&input, built.policy.clone())?;
        assert_eq!((&again.spec, &again.binds), (&built.spec, &built.binds));
        Ok(built)
    }

    fn context(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        let linux = self.container.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn sandbox_context(&mut self) -> &mut cri::LinuxSandboxSecurityContext {
        let linux = self.sandbox.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn mount(&mut self, container_path: &str) {
        let host_path = format!("/host{container_path}");
        let container_path = container_path.to_owned();
        self.container.mounts.push(cri::Mount {
            container_path,
            host_path,
            ..Default::default()
        });
    }
}

fn words(list: &[Vec<u8>]) -> Vec<String> {
    list.iter()
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        .collect()
}

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn command_and_arguments_follow_the_cris_table() {
    for (entrypoint, cmd, command, args, expected) in [
        (&["e"][..], &["c"][..], &[][..], &[][..], Some(&["e", "c"][..])),
        (&["e"], &["c"], &["k"], &[], Some(&["k"])),
        (&["e"], &["c"], &[], &["a"], Some(&["e", "a"])),
        (&["e"], &["c"], &["k"], &["a", "b"], Some(&["k", "a", "b"])),
        (&[], &["c"], &[], &[], Some(&["c"])),
        (&[], &[], &[], &["a"], Some(&["a"])),
        (&["e"], &[], &[], &[], Some(&["e"])),
        (&[], &[], &[], &[], None),
        (&[], &[], &[""], &[], None),
    ] {
        let mut world = world();
        let image = ConfigBuilder::default().entrypoint(own(entrypoint)).cmd(own(cmd));
        world.image = image.build().unwrap();
        world.container.command = own(command);
        world.container.args = own(args);
        match (world.build(), expected) {
            (Ok(built), Some(expected)) => assert_eq!(words(&built.policy.args), expected),
            (Err(SpecError::NothingToRun), None) => {}
            (found, expected) => panic!("{found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn the_environment_is_the_images_under_the_requests_and_may_be_binary() {
    let mut world = world();
    world.image = ConfigBuilder::default()
        .env(own(&["A=image", "B=image=", "NAME", "PATH=/image", "HOSTNAME=x"]))
        .build()
        .unwrap();
    world.container.tty = true;
    world.container.envs = vec![
        cri::KeyValue {
            key: "B".into(),
            value: vec![0xff, 0xfe],
        },
        cri::KeyValue {
            key: "C".into(),
            value: b"1".to_vec(),
        },
        cri::KeyValue {
            key: "C".into(),
            value: b"2".to_vec(),
        },
    ];
    let built = world.build().unwrap();
    let expected: [&[u8]; 7] = [
        b"PATH=/image",
        b"HOSTNAME=x",
        b"TERM=xterm",
        b"A=image",
        b"B=\xff\xfe",
        b"C=2",
        b"HOME=/",
    ];
    assert_eq!(built.policy.env, expected);
    assert!(built.policy.terminal);

    for (key, value) in [("", &b"v"[..]), ("A=B", b"v"), ("A\0", b"v"), ("A", b"v\0")] {
        world.container.envs = vec![cri::KeyValue {
            key: key.into(),
            value: value.to_vec(),
        }];
        assert!(matches!(world.build(), Err(SpecError::Invalid { .. })), "{key:?}");
    }
}

#[test]
fn an_image_may_have_hundreds_of_thousands_of_variables() {
    // Within every bound: each was looked for among all before it, which kept a processor for minutes.
    let mut world = world();
    let names = || (0..300_000).map(|n| format!("V{n}"));
    let variables = names().map(|name| name + "=a").chain(names().map(|name| name + "=b"));
    world.image = ConfigBuilder::default()
        .env(variables.collect::<Vec<_>>())
        .build()
        .unwrap();
    world.container.envs = vec![cri::KeyValue {
        key: "V7".into(),
        value: b"c".to_vec(),
    }];
    let env = words(&world.build().unwrap().policy.env);
    // PATH and HOSTNAME before them, HOME behind them.
    assert_eq!(env.len(), 300_003);
    assert_eq!(env[2..5], ["V0=b", "V1=b", "V2=b"]);
    assert_eq!(env[9], "V7=c");
    assert_eq!(env[300_001], "V299999=b");
}

#[test]
fn an_environment_is_refused_as_soon_as_its_names_are_too_much() {
    // What comes last is wrong, too: if that is said, all before it was put together in vain.
    let mut world = world();
    let names = (0..300_000).map(|n| format!("VARIABLE_{n:09}="));
    world.image = ConfigBuilder::default()
        .env(names.chain(["=".to_owned()]).collect::<Vec<_>>())
        .build()
        .unwrap();
    match world.build() {
        Err(SpecError::TooLarge { what, .. }) => assert_eq!(what, "names of the environment together"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_execve_would_refuse_is_refused_before() {
    let mut world = world();
    world.container.args = vec!["a\0b".into()];
    assert!(matches!(world.build(), Err(SpecError::Invalid { .. })));
    world.container.args = vec!["a".repeat(128 * 1024)];
    assert!(matches!(world.build(), Err(SpecError::TooLarge { .. })));
    world.container.args = vec!["a".repeat(100 * 1024); 70];
    assert!(matches!(world.build(), Err(SpecError::TooLarge { .. })));
    world.container.args = vec!["a".repeat(100 * 1024); 10];
    assert!(world.build().is_ok());
}

#[test]
fn the_working_directory_is_absolute_and_libcontainer_does_not_need_it() {
    for (image, container, expected) in [
        ("", "", "/"),
        ("/image", "", "/image"),
        ("/image", "/mine", "/mine"),
        ("rel", "", "/rel"),
    ] {
        let mut world = world();
        world.image = ConfigBuilder::default().working_dir(image).build().unwrap();
        if image.is_empty() {
            world.image.set_working_dir(None);
        }
        world.container.working_dir = container.into();
        let built = world.build().unwrap();
        assert_eq!(built.policy.cwd, Path::new(expected));
        assert_eq!(built.spec.process().as_ref().unwrap().cwd(), Path::new("/"));
    }
}

#[test]
fn an_exec_is_the_container_but_for_what_it_runs() {
    let built = world().build().unwrap();
    let exec = exec_process(&built.policy, &own(&["ls", "-l"]), true).unwrap();
    assert_eq!(words(&exec.args), ["ls", "-l"]);
    assert!(exec.terminal && words(&exec.env).contains(&"TERM=xterm".to_owned()));
    let quiet = exec_process(&built.policy, &own(&["ls"]), false).unwrap();
    assert_eq!(
        quiet,
        Policy {
            args: vec![b"ls".to_vec()],
            ..built.policy.clone()
        }
    );
    for refused in [&[][..], &[""]] {
        assert!(matches!(
            exec_process(&built.policy, &own(refused), false),
            Err(SpecError::NothingToRun)
        ));
    }
    assert!(exec_process(&built.policy, &own(&["ls\0"]), false).is_err());
}

#[test]
fn libcontainer_gets_nothing_that_it_would_do_wrong() {
    let mut world = world();
    world.context().seccomp = Some(cri::SecurityProfile::default());
    world.context().readonly_rootfs = true;
    world.context().masked_paths = own(&["/proc/kcore"]);
    world.context().readonly_paths = own(&["/proc/sys"]);
    let built = world.build().unwrap();
    let process = built.spec.process().as_ref().unwrap();
    let linux = built.spec.linux().as_ref().unwrap();
    assert!(process.capabilities().is_none() && process.oom_score_adj().is_none());
    assert!(process.no_new_privileges().is_none() && process.apparmor_profile().is_none());
    assert!(linux.seccomp().is_none() && linux.resources().is_none() && linux.cgroups_path().is_none());
    assert!(built.spec.hostname().is_none() && linux.sysctl().is_none());
    let root = built.spec.root().as_ref().unwrap();
    assert_eq!((root.path().to_str(), root.readonly()), (Some(ROOTFS), Some(true)));
    assert_eq!(linux.masked_paths().as_deref(), Some(&own(&["/proc/kcore"])[..]));
    assert_eq!(linux.readonly_paths().as_deref(), Some(&own(&["/proc/sys"])[..]));
    assert_eq!(built.policy.seccomp, Some(SeccompSource::RuntimeDefault));
    assert_eq!(built.stop_signal, libc::SIGTERM);
}

#[test]
fn oom_score_adj_is_kept_within_its_bounds() {
    for (asked, expected) in [
        (0, Some(0)),
        (-1000, Some(-1000)),
        (1000, Some(1000)),
        (1001, None),
        (i64::MIN, None),
    ] {
        let mut world = world();
        let resources = cri::LinuxContainerResources {
            oom_score_adj: asked,
            ..Default::default()
        };
        world.container.linux = Some(cri::LinuxContainerConfig {
            resources: Some(resources),
            ..Default::default()
        });
        assert_eq!(world.build().ok().map(|built| built.policy.oom_score_adj), expected);
    }
}

#[test]
fn a_privileged_container_may_use_all_devices() {
    let mut world = world();
    world.sandbox_context().privileged = true;
    world.context().privileged = true;
    world.devices = devices::lookup(&world.container).unwrap();
    let built = world.build().unwrap();
    assert_eq!(built.resources.devices.len(), 1);
    assert!(built.spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len() > 5);
}
