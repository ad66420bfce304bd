//! Images come, get names, are held, and go; daemons and disks fail in between.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::images::{found, layer, new, put};
use super::tape::{Tape, digest};
use super::{Place, names, open, wait_for_trash};
use crate::image::{ErrorKind, ImageConfig, ImageError, ImageUser, Images, NewImage};
use crate::model::ImageId;

#[test]
fn images_are_found_by_every_form_of_reference() {
    let mut place = Place::new();
    let image = put(&place.store, "busybox:1.36", "1000:50", &[layer(&place.store, "a")]);
    let hex = &image.id.as_str()[7..];
    for store in [place.store.clone(), {
        place.reopen();
        place.store.clone()
    }] {
        for reference in [
            "busybox:1.36",
            "docker.io/busybox:1.36",
            "index.docker.io/library/busybox:1.36",
            &image.repo_digests[0],
            &format!("busybox@{}", image.manifest_digest),
            &format!("busybox:1.36@{}", image.manifest_digest),
            &format!("busybox:moved@{}", image.manifest_digest),
            image.id.as_str(),
            hex,
            &hex[..12],
            &hex[..1],
            &format!("sha256:{}", &hex[..20]),
        ] {
            assert_eq!(found(&store, reference).as_ref(), Some(&image.id), "{reference}");
        }
        for reference in [
            "busybox",
            "busybox:1.37",
            "quay.io/library/busybox:1.36",
            "",
            "sha256:",
            "..",
            "x@sha256:1",
        ] {
            assert_eq!(found(&store, reference), None, "{reference}");
        }
        let known = store.snapshot().get(&image.id).unwrap().clone();
        assert_eq!(known.user, Some(ImageUser::Uid(1000)));
        assert_eq!((&known.repo_tags, &known.layers), (&image.repo_tags, &image.layers));
        assert_eq!(known.size_bytes, image.size_bytes);
        let documents = store.documents(&image.id).unwrap().unwrap();
        assert_eq!(digest(&documents.config), image.id.as_str());
        assert_eq!(digest(&documents.manifest), image.manifest_digest);
    }
}

#[test]
fn a_short_id_of_several_images_names_none() {
    let place = Place::new();
    let layers = [layer(&place.store, "a")];
    // Seventeen images have sixteen first digits.
    for n in 0..17 {
        put(&place.store, &format!("image{n}:latest"), &n.to_string(), &layers);
    }
    let snapshot = place.store.snapshot();
    let ambiguous = |digit: &str| matches!(snapshot.find(digit), Err(ImageError::Ambiguous { .. }));
    assert!("0123456789abcdef".chars().any(|digit| ambiguous(&digit.to_string())));
}

#[test]
fn the_user_is_a_number_or_a_name() {
    for (user, parsed) in [
        ("", None),
        (":0", None),
        ("0", Some(ImageUser::Uid(0))),
        ("1000", Some(ImageUser::Uid(1000))),
        ("1000:50", Some(ImageUser::Uid(1000))),
        ("www-data", Some(ImageUser::Name("www-data".into()))),
        ("name:grp", Some(ImageUser::Name("name".into()))),
        ("+5", Some(ImageUser::Name("+5".into()))),
        ("99999999999", Some(ImageUser::Name("99999999999".into()))),
    ] {
        assert_eq!(ImageUser::parse(user), parsed, "{user}");
    }
}

#[test]
fn references_gather_and_tags_move() {
    let mut place = Place::new();
    let layers = [layer(&place.store, "a")];
    let first = put(&place.store, "app:1", "1", &layers);
    let again = put(&place.store, "other:1", "1", &layers);
    assert_eq!(first.id, again.id);
    assert_eq!(
        again.repo_tags,
        ["docker.io/library/app:1", "docker.io/library/other:1"]
    );
    assert_eq!(again.repo_digests.len(), 2);
    let elsewhere = NewImage {
        repo_tag: Some("quay.io/app:2".into()),
        repo_digest: None,
        ..new("other:1", "1", &layers)
    };
    place.store.put_image(elsewhere.clone()).unwrap();
    assert_eq!(found(&place.store, "quay.io/app:2"), Some(first.id.clone()));
    // The same again changes nothing.
    let same = place.store.put_image(elsewhere).unwrap();
    assert_eq!((same.repo_tags.len(), same.repo_digests.len()), (3, 2));

    let second = put(&place.store, "app:1", "2", &layers);
    assert_ne!(first.id, second.id);
    for _ in 0..2 {
        assert_eq!(found(&place.store, "app:1"), Some(second.id.clone()));
        let loser = place.store.snapshot().get(&first.id).unwrap().clone();
        assert_eq!(loser.repo_tags, ["docker.io/library/other:1", "quay.io/app:2"]);
        assert_eq!(loser.repo_digests.len(), 2);
        place.reopen();
    }
}

#[test]
fn an_image_and_its_layers_must_agree() {
    let place = Place::new();
    let (a, b) = (layer(&place.store, "a"), layer(&place.store, "b"));
    let mut wrong = new("x:1", "", &[a.clone(), b.clone()]);
    for layers in [
        vec![a.clone()],
        vec![b.clone(), a.clone()],
        vec![a.clone(), b.clone(), b],
        vec![],
    ] {
        wrong.layers = layers;
        let error = place.store.put_image(wrong.clone()).unwrap_err();
        assert!(matches!(error, ImageError::MissingLayer { .. }), "{error:?}");
    }
    wrong.config_bytes = b"{}".to_vec();
    assert_eq!(place.store.put_image(wrong).unwrap_err().kind(), ErrorKind::Corrupt);
    let many = vec![a; 501];
    let error = place.store.put_image(new("x:1", "", &many)).unwrap_err();
    assert!(matches!(error, ImageError::TooManyLayers { layers: 501, .. }));
    assert_eq!(place.store.snapshot().images().count(), 0);
}

#[test]
fn removal_frees_what_no_other_image_needs() {
    let place = Place::new();
    place.store.settle().unwrap();
    let (base, top) = (layer(&place.store, "base"), layer(&place.store, "top"));
    let small = put(&place.store, "small:1", "", std::slice::from_ref(&base));
    let big = put(&place.store, "big:1", "", &[base.clone(), top.clone()]);
    put(&place.store, "big-too:1", "", &[base.clone(), top.clone()]);
    let (base_bytes, all) = (base.size_bytes, base.size_bytes + top.size_bytes);
    assert_eq!(big.size_bytes, all);
    drop((base, top));
    assert_eq!(place.store.usage().0, all);
    place.store.remove_image(&big.id).unwrap();
    assert_eq!(place.store.usage().0, base_bytes);
    assert_eq!(found(&place.store, "big:1"), None);
    assert_eq!(found(&place.store, "big-too:1"), None);
    place.store.remove_image(&big.id).unwrap();
    assert_eq!(place.store.lower_dirs(&small).len(), 1);
    assert!(place.store.lower_dirs(&small)[0].join("file-base").exists());
    place.store.remove_image(&small.id).unwrap();
    place.assert_nothing_left();
    assert_eq!(names(&place.path().join("manifests")), [""; 0]);
}

#[test]
fn a_held_image_goes_at_once_and_its_layers_with_the_last_lease() {
    let place = Place::new();
    place.store.settle().unwrap();
    let image = put(&place.store, "app:1", "", &[layer(&place.store, "a")]);
    let (one, two) = (
        place.store.hold(&image.id).unwrap(),
        place.store.hold(&image.id).unwrap(),
    );
    assert!(place.store.hold(&ImageId::new(digest(b"unknown"))).is_none());
    place.store.remove_image(&image.id).unwrap();
    place.store.remove_image(&image.id).unwrap();
    assert_eq!(found(&place.store, "app:1"), None);
    assert_eq!(found(&place.store, image.id.as_str()), None);
    assert!(place.store.snapshot().images().next().is_none());
    assert!(place.store.lower_dirs(&image)[0].join("file-a").exists());
    assert_eq!(place.store.usage().0, image.size_bytes);
    drop(one);
    assert!(place.store.lower_dirs(two.image())[0].join("file-a").exists());
    drop(two);
    place.assert_nothing_left();
    assert_eq!(names(&place.path().join("held")), [""; 0]);
}

#[test]
fn a_held_image_that_is_pulled_again_is_an_image_again() {
    let place = Place::new();
    place.store.settle().unwrap();
    let image = put(&place.store, "app:1", "", &[layer(&place.store, "a")]);
    let lease = place.store.hold(&image.id).unwrap();
    place.store.remove_image(&image.id).unwrap();
    let layers = [place.store.has_layer(&image.layers[0]).unwrap()];
    put(&place.store, "app:2", "", &layers);
    drop((lease, layers));
    assert_eq!(
        place.store.snapshot().get(&image.id).unwrap().repo_tags,
        ["docker.io/library/app:2"]
    );
    assert!(place.store.lower_dirs(&image)[0].join("file-a").exists());
    place.store.remove_image(&image.id).unwrap();
    place.assert_nothing_left();
}

#[test]
fn leases_are_taken_again_after_a_restart() {
    let mut place = Place::new();
    place.store.settle().unwrap();
    let [held, gone, kept] = ["held", "gone", "kept"]
        .map(|name| put(&place.store, &format!("{name}:1"), name, &[layer(&place.store, name)]));
    for image in [&held, &gone] {
        // The daemon is killed: leases end without being dropped.
        std::mem::forget(place.store.hold(&image.id).unwrap());
        place.store.remove_image(&image.id).unwrap();
    }
    place.reopen();
    assert_eq!(place.store.snapshot().images().count(), 1);
    let lease = place.store.hold(&held.id).unwrap();
    place.store.settle().unwrap();
    assert!(place.store.hold(&gone.id).is_none());
    assert_eq!(place.store.usage().0, held.size_bytes + kept.size_bytes);
    assert!(place.store.lower_dirs(lease.image())[0].join("file-held").exists());
    drop(lease);
    assert_eq!(place.store.usage().0, kept.size_bytes);
}

#[test]
fn leases_that_go_with_the_daemon_take_no_layers_along() {
    let mut place = Place::new();
    place.store.settle().unwrap();
    let image = put(&place.store, "app:1", "", &[layer(&place.store, "a")]);
    let lease = place.store.hold(&image.id).unwrap();
    place.store.remove_image(&image.id).unwrap();
    // The daemon is asked to end: what it has in memory is dropped.
    place.store.keep();
    drop(lease);
    place.reopen();
    let lease = place.store.hold(&image.id).unwrap();
    place.store.settle().unwrap();
    assert!(place.store.lower_dirs(lease.image())[0].join("file-a").exists());
    drop(lease);
    place.assert_nothing_left();
}

#[test]
fn removal_before_the_daemon_knows_who_lives_keeps_the_layers() {
    let mut place = Place::new();
    let image = put(&place.store, "app:1", "", &[layer(&place.store, "a")]);
    place.reopen();
    place.store.remove_image(&image.id).unwrap();
    assert_eq!(found(&place.store, "app:1"), None);
    let lease = place.store.hold(&image.id).unwrap();
    drop(lease);
    let lease = place.store.hold(&image.id).unwrap();
    place.store.settle().unwrap();
    assert!(place.store.lower_dirs(&image)[0].join("file-a").exists());
    drop(lease);
    place.assert_nothing_left();
}

#[test]
fn what_a_crash_leaves_is_removed_at_the_next_start() {
    let mut place = Place::new();
    let image = put(&place.store, "good:1", "", &[layer(&place.store, "good")]);
    let broken: Vec<_> = ["record", "config", "layer", "twice"]
        .map(|name| put(&place.store, &format!("{name}:1"), name, &[layer(&place.store, name)]))
        .into();
    let dir = place.path();
    let of = |n: usize| dir.join("manifests").join(&broken[n].id.as_str()[7..]);
    fs::write(of(0).join("record.json"), b"").unwrap();
    fs::write(of(1).join("config.json"), b"{\"changed\":1}").unwrap();
    fs::remove_file(
        place.store.lower_dirs(&broken[2])[0]
            .parent()
            .unwrap()
            .join("meta.json"),
    )
    .unwrap();
    fs::create_dir(dir.join("held").join(&broken[3].id.as_str()[7..])).unwrap();
    fs::write(of(3).join("record.json.new"), b"half").unwrap();
    fs::create_dir_all(dir.join("layers/tmp-77-0/diff/some/where")).unwrap();
    fs::create_dir(dir.join("layers").join("ab".repeat(32))).unwrap();
    fs::create_dir(dir.join("manifests/tmp-77-1")).unwrap();
    fs::create_dir_all(dir.join("trash/77-2/deep")).unwrap();
    fs::write(dir.join("trash/file"), b"x").unwrap();
    place.reopen();
    place.wait_for_trash();
    let known: Vec<_> = place
        .store
        .snapshot()
        .images()
        .map(|image| image.repo_tags[0].clone())
        .collect();
    let mut expected = vec!["docker.io/library/good:1", "docker.io/library/twice:1"];
    expected.sort_by_key(|tag| found(&place.store, tag));
    assert_eq!(known, expected);
    assert_eq!(names(&dir.join("held")), [""; 0]);
    assert_eq!(names(&dir.join("manifests")).len(), 2);
    assert!(place.store.lower_dirs(&image)[0].join("file-good").exists());
    // Layers of the damaged images wait for the next pull, then go.
    assert_eq!(names(&dir.join("layers")).len(), 4);
    place.store.sweep(Duration::ZERO);
    place.wait_for_trash();
    assert_eq!(names(&dir.join("layers")).len(), 2);
}

#[test]
fn layers_of_an_unfinished_pull_wait_for_their_grace() {
    let mut place = Place::new();
    let first = layer(&place.store, "a");
    let id = first.diff_id.clone();
    place.store.sweep(Duration::ZERO);
    assert!(place.store.has_layer(&id).is_some());
    drop(first);
    place.store.sweep(Duration::from_secs(60));
    place.reopen();
    place.store.sweep(Duration::from_secs(60));
    assert!(place.store.has_layer(&id).is_some());
    place.store.sweep(Duration::ZERO);
    assert!(place.store.has_layer(&id).is_none());
    place.assert_nothing_left();
}

/// Layers are on the disk for certain once an image is recorded with them, and not before.
#[test]
fn a_boot_takes_the_layers_that_no_image_was_recorded_with() {
    let place = Place::new();
    let kept = layer(&place.store, "kept");
    put(&place.store, "kept:1", "", std::slice::from_ref(&kept));
    let lost = layer(&place.store, "lost").diff_id.clone();
    let mut config = ImageConfig::new(place.path());
    let Place { dir, store } = place;
    drop(store);
    let reopened = crate::image::store::Store::open(&config).unwrap();
    assert!(
        reopened.has_layer(&lost).is_some(),
        "the same boot: what is in memory is whole"
    );
    drop(reopened);
    config.boot_id = "another".into();
    for _ in 0..2 {
        let store = crate::image::store::Store::open(&config).unwrap();
        assert!(store.has_layer(&lost).is_none());
        assert!(store.has_layer(&kept.diff_id).is_some());
        drop(store);
    }
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_room_sweeps_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ImageConfig::new(dir.path().join("images"));
    config.orphan_grace = Duration::from_millis(50);
    let images = Images::open(config).await.unwrap();
    for seed in ["a", "b"] {
        let pulled = layer(images.store(), seed);
        assert_eq!(images.fs_usage().await.used_bytes, pulled.size_bytes);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(images.store().has_layer(&pulled.diff_id).is_some());
        drop(pulled);
        let gone = async {
            while images.fs_usage().await.used_bytes > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone)
            .await
            .expect("the layer is swept");
    }
}

#[tokio::test]
async fn the_room_lists_finds_and_removes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ImageConfig::new(dir.path().join("images"));
    config.pinned = vec!["docker.io/library/pause:*".into()];
    let images = Images::open(config).await.unwrap();
    images.settle().await.unwrap();
    let pause = put(images.store(), "pause:3", "", &[layer(images.store(), "p")]);
    let app = put(images.store(), "app:1", "name:group", &[layer(images.store(), "a")]);
    assert!(pause.pinned && !app.pinned);
    assert_eq!(app.user, Some(ImageUser::Name("name".into())));
    assert_eq!(images.list().len(), 2);
    assert_eq!(images.find("app:1").unwrap().id, app.id);
    assert!(images.documents(&app.id).await.unwrap().is_some());
    images.remove(&app.id.as_str()[7..20]).await.unwrap();
    images.remove("app:1").await.unwrap();
    images.remove("never:1").await.unwrap();
    images.remove("not//a reference").await.unwrap();
    assert!(images.documents(&app.id).await.unwrap().is_none());
    assert_eq!(images.list().len(), 1);
    let usage = images.fs_usage().await;
    assert_eq!(
        (usage.used_bytes, usage.mountpoint),
        (pause.size_bytes, dir.path().join("images"))
    );
}

#[test]
fn everything_at_once() {
    let place = Place::new();
    place.store.settle().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &place.store;
            scope.spawn(move || {
                for round in 0..25 {
                    let name = format!("app{}:1", (thread + round) % 3);
                    let image = put(store, &name, &name, &[layer(store, "shared"), layer(store, &name)]);
                    let lease = store.hold(&image.id);
                    if let Some(lease) = &lease {
                        for dir in store.lower_dirs(lease.image()) {
                            assert!(dir.exists());
                        }
                    }
                    store.remove_image(&image.id).unwrap();
                    drop(lease);
                    store
                        .snapshot()
                        .images()
                        .for_each(|image| assert!(!image.repo_tags.is_empty()));
                }
            });
        }
    });
    let left: Vec<_> = place.store.snapshot().images().map(|image| image.id.clone()).collect();
    left.iter().for_each(|id| place.store.remove_image(id).unwrap());
    // Whose image another thread removed while it was still being put has pinned its layers beyond that: they are orphans.
    place.store.sweep(Duration::ZERO);
    place.assert_nothing_left();
    assert_eq!(names(&place.path().join("held")), [""; 0]);
}

/// Runs `test` with an own mount namespace in which `dir` is a small file system.
fn with_small_disk(test: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            let private = nix::mount::MsFlags::MS_PRIVATE | nix::mount::MsFlags::MS_REC;
            nix::mount::mount(none, "/", none, private, none).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("none"), dir.path(), Some("tmpfs"), flags, Some("size=4m")).unwrap();
            test(dir.path());
            nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        });
    });
}

#[test]
fn a_full_disk_fails_pulls_and_not_removals() {
    // Symptom elsewhere: "cannot delete images at 100 %", since deleting writes a database first.
    with_small_disk(|dir| {
        let store = open(dir);
        store.settle().unwrap();
        let firsts = [layer(&store, "first")];
        let first = put(&store, "first:1", "1", &firsts);
        let held = put(&store, "held:1", "2", &[layer(&store, "held")]);
        let lease = store.hold(&held.id).unwrap();
        let archive = Tape::new().file("big", vec![1; 8 << 20]).end();
        let result = store.ingest_layer(
            &digest(&archive),
            super::Compression::None,
            super::reader(&archive),
            &super::Limits::default(),
        );
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Exhausted);
        wait_for_trash(&dir.join("images"));
        // Now really full.
        let pulled = layer(&store, "pulled");
        let mut filler = fs::File::create(dir.join("filler")).unwrap();
        while std::io::Write::write(&mut filler, &[1; 4096]).is_ok() {}
        assert_eq!(store.free_bytes().unwrap(), 0);
        let error = store
            .put_image(new("pulled:1", "3", std::slice::from_ref(&pulled)))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!(found(&store, "pulled:1"), None);
        let error = store.put_image(new("x:1", "1", &firsts)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!(found(&store, "x:1"), None);
        assert_eq!(found(&store, "first:1"), Some(first.id.clone()));
        drop((pulled, firsts));

        store.remove_image(&held.id).unwrap();
        store.remove_image(&first.id).unwrap();
        drop(lease);
        assert_eq!(store.usage(), (0, 0));
        let images = dir.join("images");
        wait_for_trash(&images);
        for left in ["trash", "layers", "manifests", "held"] {
            assert_eq!(names(&images.join(left)), [""; 0], "{left}");
        }
        assert!(store.free_bytes().unwrap() > 0);
    });
}
