//! Images as volumes, and the volumes that images declare.

use std::fs;
use std::path::Path;

use crisp::cri;
use tonic::Code;

use crate::fixture::{OwnWorld, ask, eventually, image, int, says, security, world};
use crate::mounts::{bind, read_only, refused, with};
use crate::registry::reference;

#[test]
fn an_image_is_mounted_as_a_volume() {
    let pod = world().pod("image-volume");
    let volume = |sub_path: &str, at: &str| cri::Mount {
        image: Some(image(&reference("toolbox"))),
        image_sub_path: sub_path.to_owned(),
        ..read_only(Path::new(""), at)
    };
    let c = pod.idle("c", with(vec![volume("", "/image"), volume("data", "/part")]));
    assert_eq!(
        c.sh("cat /image/data/note /part/note; ls /part"),
        "from the imagefrom the imagenote"
    );
    assert_ne!(c.exec(&["touch", "/part/x"]).code, 0);
    assert_ne!(c.exec(&["touch", "/image/x"]).code, 0);
}

#[test]
fn a_part_of_an_image_is_looked_for_inside_it() {
    world().pull(&reference("layered")).unwrap();
    let pod = world().pod("image-part");
    let volume = |sub_path: &str| cri::Mount {
        image: Some(image(&reference("layered"))),
        image_sub_path: sub_path.to_owned(),
        ..read_only(Path::new(""), "/part")
    };
    let status = refused(&pod, volume("no/such"));
    assert!(says(&status, "no/such"), "{status}");
    for link in ["escape", "absolute"] {
        let c = pod.idle(link, with(vec![volume(link)]));
        assert_eq!(c.sh("cat /part/passwd"), crate::registry::PASSWD.trim_end(), "{link}");
    }
    for outside in ["../etc", "/etc", "a/../../etc"] {
        assert!(says(&refused(&pod, volume(outside)), "leaves the image"), "{outside}");
    }
}

#[test]
fn an_image_that_is_a_volume_is_told_and_kept_while_its_container_lives() {
    let own = OwnWorld::new("image-volume");
    let world = own.0;
    let tag = reference("volume");
    let image_id = world.pull(&tag).unwrap();
    let ballast = || {
        let layers = fs::read_dir(world.crisps_dir().join("d/lib/images/layers")).unwrap();
        layers
            .filter(|layer| layer.as_ref().unwrap().path().join("diff/ballast").exists())
            .count()
    };
    {
        let pod = world.pod("image-volume");
        let volume = cri::Mount {
            image: Some(image(&tag)),
            ..read_only(Path::new(""), "/v")
        };
        let c = pod.idle(
            "c",
            with(vec![volume.clone(), bind(&world.directory("beside"), "/beside")]),
        );
        let told = || {
            c.status()
                .mounts
                .into_iter()
                .map(|mount| mount.image.unwrap_or_default().image_ref)
        };
        assert_eq!(told().collect::<Vec<_>>(), [image_id.as_str(), ""]);
        let request = cri::RemoveImageRequest {
            image: Some(image(&tag)),
        };
        ask(world.images().remove_image(request)).unwrap();
        assert_eq!(c.sh("wc -c < /v/ballast"), "1048576");
        world.restart();
        assert_eq!(c.sh("wc -c < /v/ballast"), "1048576");
        assert_eq!(told().collect::<Vec<_>>(), [image_id.as_str(), ""]);
        assert_eq!(ballast(), 1, "the layer went with the image");
        assert_eq!(refused(&pod, volume).code(), Code::NotFound);
    }
    eventually("the layer goes with the container", || (ballast() == 0).then_some(()));
}

#[test]
fn the_images_volumes_have_the_images_content_and_are_the_containers_own() {
    let pod = world().pod("volumes");
    let of = |config: &mut cri::ContainerConfig| {
        config.image = Some(image(&reference("talkative")));
        security(config).run_as_user = int(0);
    };
    let c = pod.idle("c", of);
    assert_eq!(
        c.sh("cat /data/note; stat -c '%a %u %g' /data/note; ls -A /fresh"),
        "from the image640 1000 1000"
    );
    assert_eq!(
        c.sh("awk '$2 == \"/data\" || $2 == \"/fresh\"' /proc/mounts | wc -l"),
        "2"
    );
    c.sh("echo changed > /data/note; echo new > /fresh/new");
    assert_eq!(pod.idle("d", of).sh("cat /data/note; ls -A /fresh"), "from the image");
    // What the request mounts there is there instead.
    let dir = world().directory("volumes");
    let c = pod.idle("e", |config| {
        of(config);
        config.mounts = vec![bind(&dir, "/data")];
    });
    assert_eq!(c.sh("ls -A /data"), "");
}
