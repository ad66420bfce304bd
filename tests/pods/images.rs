//! Images: found by whatever they are called, removed with all their tags, and what they take up.

use crisp::cri;
use tonic::Code;

use crate::fixture::{OwnWorld, World, ask, image, is_code, says, world};
use crate::registry::reference;

fn status(world: &World, reference: &str) -> Option<cri::Image> {
    let request = cri::ImageStatusRequest {
        image: Some(image(reference)),
        verbose: false,
    };
    ask(world.images().image_status(request)).unwrap().image
}

fn remove(world: &World, reference: &str) {
    let request = cri::RemoveImageRequest {
        image: Some(image(reference)),
    };
    ask(world.images().remove_image(request)).unwrap();
}

#[test]
fn an_image_is_found_by_every_name_it_has() {
    let tag = reference("forms");
    let id = world().pull(&tag).unwrap();
    let found = status(world(), &tag).expect("just pulled");
    assert_eq!(
        (found.id.as_str(), found.repo_tags.as_slice()),
        (id.as_str(), [tag.clone()].as_slice())
    );
    let digest = found.repo_digests.first().expect("a digest").clone();
    assert!(digest.starts_with("127.0.0.1:5005/forms@sha256:"), "{digest}");
    assert_eq!((found.uid, found.username.as_str()), (crate::fixture::int(1000), ""));
    assert!(found.size > 1 << 20, "{}", found.size);
    let bare = id.strip_prefix("sha256:").unwrap();
    for name in [
        &id,
        bare,
        &bare[..12],
        &digest,
        &format!("{tag}@{}", digest.split('@').nth(1).unwrap()),
    ] {
        assert_eq!(
            status(world(), name).map(|image| image.id).as_deref(),
            Some(id.as_str()),
            "{name}"
        );
    }
    for name in [
        "127.0.0.1:5005/forms:absent",
        "127.0.0.1:5005/forms",
        &"0".repeat(64),
        "forms:1",
    ] {
        assert_eq!(status(world(), name), None, "{name}");
    }
    let verbose = cri::ImageStatusRequest {
        image: Some(image(&tag)),
        verbose: true,
    };
    let info = ask(world().images().image_status(verbose)).unwrap().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["config"]["User"], "1000:50");
    // The same string everywhere.
    let pod = world().pod("image-ids");
    let c = pod.create("c", &["true"], |config| config.image = Some(image(&digest)));
    let told = c.status();
    assert_eq!(
        (told.image_id, told.image_ref, told.image.unwrap().image),
        (id.clone(), id, digest)
    );
}

#[test]
fn every_tag_goes_with_the_image_and_removing_can_be_repeated() {
    let (one, two) = ("127.0.0.1:5005/tags:1", "127.0.0.1:5005/tags:2");
    let id = world().pull(one).unwrap();
    assert_eq!(world().pull(two).unwrap(), id);
    let mut tags = status(world(), one).unwrap().repo_tags;
    tags.sort();
    assert_eq!(tags, [one, two]);
    remove(world(), one);
    for name in [one, two, &id] {
        assert_eq!(status(world(), name), None, "{name}");
        remove(world(), name);
    }
    remove(world(), "127.0.0.1:5005/never:1");
    assert_eq!(world().pull(one).unwrap(), id);
    remove(world(), &id);
    assert_eq!(status(world(), one), None);
}

#[test]
fn containers_of_a_removed_image_run_on() {
    let tag = reference("in-use");
    world().pull(&tag).unwrap();
    let pod = world().pod("in-use");
    let c = pod.idle("c", |config| config.image = Some(image(&tag)));
    remove(world(), &tag);
    assert_eq!(status(world(), &tag), None);
    assert_eq!(
        c.sh("ls -l /ballast | awk '{print $5}'; wc -c < /ballast"),
        "1048576\n1048576"
    );
    assert_eq!(c.sh("echo still here; id -u"), "still here\n0");
    let mut config = pod.config("d", &["true"]);
    config.image = Some(image(&tag));
    let refused = pod.try_create(config).err().expect("the image is gone");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(says(&refused, &tag), "{refused}");
    c.stop(0).unwrap();
    c.remove().unwrap();
    assert!(world().pull(&tag).is_ok());
}

#[test]
fn what_images_take_up_moves_with_them() {
    // Alone: other tests pull and remove, too.
    let own = OwnWorld::new("images");
    let used = || {
        let info = ask(own.0.images().image_fs_info(cri::ImageFsInfoRequest {})).unwrap();
        assert_eq!((info.image_filesystems.len(), info.container_filesystems.len()), (1, 1));
        let filesystem = info.image_filesystems[0].clone();
        assert!(filesystem.timestamp > 0);
        assert!(std::path::Path::new(&filesystem.fs_id.unwrap().mountpoint).is_dir());
        (
            filesystem.used_bytes.unwrap().value,
            filesystem.inodes_used.unwrap().value,
        )
    };
    let before = used();
    assert!(before.0 > 1 << 20, "{before:?}");
    own.0.pull(&reference("moves")).unwrap();
    let with = used();
    // A layer of 1 MiB is new, the other one is shared.
    let grown = with.0 - before.0;
    assert!(((1 << 20)..(1 << 20) + 200_000).contains(&grown), "{before:?} {with:?}");
    assert!(with.1 > before.1);
    remove(own.0, &reference("moves"));
    let after = used();
    assert!(
        after.0 <= before.0 + 100_000 && after.1 <= before.1 + 2,
        "{before:?} {after:?}"
    );
}

#[test]
fn a_pull_that_cannot_be_says_why() {
    for (reference, code) in [
        ("127.0.0.1:5005/toolbox:absent", Code::NotFound),
        ("127.0.0.1:5005/no/such/repository:1", Code::NotFound),
        ("127.0.0.1:5005/UPPER:1", Code::InvalidArgument),
        ("127.0.0.1:1/nobody/listens:1", Code::Unavailable),
    ] {
        let refused = world().pull(reference).unwrap_err();
        assert!(is_code(&refused, code), "{refused}");
        assert!(says(&refused, reference.rsplit_once(':').unwrap().0), "{refused}");
    }
}
