//! What containers see of layers put together, by the kernel's own overlayfs.

use std::fs;
use std::path::Path;

use super::images::put;
use super::tape::{Spec, Tape};
use super::{Place, names};
use crate::image::Image;

/// Mounts what an image's containers would see, and lets `look` see it.
fn mounted(place: &Place, image: &Image, look: impl FnOnce(&Path)) {
    let (upper, work) = (place.dir.path().join("upper"), place.dir.path().join("work"));
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(&work).unwrap();
    let mount = crate::sys::mount::overlay(&place.store.lower_dirs(image), &upper, &work).unwrap();
    look(Path::new(&format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&mount)
    )));
    drop(mount);
    // An overlay's work directory of a volatile mount is not used twice.
    fs::remove_dir_all(upper).unwrap();
    fs::remove_dir_all(work).unwrap();
}

#[test]
fn layers_hide_and_replace_what_is_below() {
    let place = Place::new();
    let base = Tape::new()
        .dir("etc")
        .file("etc/passwd", "x")
        .file("etc/kept", "x")
        .dir("cache")
        .file("cache/old", "x")
        .dir("again")
        .file("again/old", "x")
        .file("file", "x");
    let top = Tape::new()
        .dir("etc")
        .file("etc/.wh.passwd", "")
        .dir("cache")
        .file("cache/.wh..wh..opq", "")
        .file("cache/new", "x")
        .file(".wh.again", "")
        .dir("again")
        .file(".wh.file", "");
    let layers = [place.unpack(base.clone()).0, place.unpack(top).0];
    let image = put(&place.store, "app:1", "", &layers);
    mounted(&place, &image, |root| {
        assert_eq!(names(root), ["again", "cache", "etc"]);
        assert_eq!(names(&root.join("etc")), ["kept"]);
        assert_eq!(names(&root.join("cache")), ["new"]);
        assert_eq!(names(&root.join("again")), [""; 0]);
    });
    // A root that hides everything ends the stack; overlayfs does not look there.
    let all = place.unpack(Tape::new().file(".wh..wh..opq", "").file("only", "x")).0;
    let image = put(&place.store, "app:2", "", &[layers[0].clone(), all]);
    mounted(&place, &image, |root| assert_eq!(names(root), ["only"]));
    // The same layer twice, and layers of nothing: overlayfs takes each directory once.
    let nothing = place
        .unpack(Tape::new().put(Spec {
            mode: 0o700,
            uid: 3,
            ..Spec::dir("./")
        }))
        .0;
    let (a, b) = (layers[0].clone(), layers[1].clone());
    let image = put(
        &place.store,
        "app:3",
        "",
        &[a.clone(), b, nothing.clone(), a, nothing.clone()],
    );
    assert_eq!(place.store.lower_dirs(&image).len(), 2);
    assert_eq!((image.root.mode, image.root.uid), (0o700, 3));
    mounted(&place, &image, |root| {
        assert_eq!(names(&root.join("etc")), ["kept", "passwd"])
    });
    let image = put(&place.store, "app:4", "", &[nothing.clone(), nothing]);
    mounted(&place, &image, |root| assert_eq!(names(root), [""; 0]));
}

#[test]
fn directories_without_an_entry_look_as_they_do_below() {
    // Symptom where layers are unpacked alone: /tmp loses its sticky bit, and a /lib that is a symlink below is
    // hidden with everything in it, as soon as a layer of a tool that writes no parents adds a file there.
    use std::os::unix::fs::MetadataExt;
    let mut place = Place::new();
    let base = Tape::new()
        .put(Spec {
            mode: 0o1777,
            mtime: 77,
            ..Spec::dir("tmp")
        })
        .dir("usr")
        .put(Spec {
            mode: 0o750,
            uid: 7,
            gid: 8,
            ..Spec::dir("usr/lib")
        })
        .file("usr/lib/libc", "libc")
        .file("usr/lib/old", "old")
        .symlink("lib", "usr/lib")
        .symlink("lib64", "/lib")
        .dir("plain")
        .dir("own")
        .file("own/below", "x");
    let top = Tape::new()
        .file("tmp/new", "x")
        .file("lib/mine", "mine")
        .file("lib64/deeper/er", "deep")
        .file("lib/.wh.old", "")
        .file("plain/new", "x")
        .file("fresh/new", "x")
        .put(Spec {
            mode: 0o700,
            ..Spec::dir("own")
        })
        .file("own/implicit/new", "x")
        .hard_link("lib/second", "lib/mine");
    let usual = Tape::new().file("plain/other", "x");
    let base = place.unpack(base).0;
    let (top, top_dir) = place.unpack(top);
    let usual = place.unpack(usual).0;
    let image = put(&place.store, "app:1", "", &[base.clone(), top.clone(), usual.clone()]);
    let look = |root: &Path| {
        let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((stat("tmp").mode() & 0o7777, stat("tmp").mtime()), (0o1777, 77));
        assert!(root.join("lib").is_symlink() && root.join("lib64").is_symlink());
        let lib = stat("usr/lib");
        assert_eq!((lib.mode() & 0o7777, lib.uid(), lib.gid()), (0o750, 7, 8));
        assert_eq!(names(&root.join("usr/lib")), ["deeper", "libc", "mine", "second"]);
        assert_eq!(fs::read(root.join("usr/lib/deeper/er")).unwrap(), b"deep");
        assert_eq!(stat("usr/lib/mine").ino(), stat("usr/lib/second").ino());
        assert_eq!(names(&root.join("plain")), ["new", "other"]);
        assert_eq!(
            (stat("own").mode() & 0o7777, stat("fresh").mode() & 0o7777),
            (0o700, 0o755)
        );
        assert_eq!(names(&root.join("own")), ["below", "implicit"]);
    };
    mounted(&place, &image, look);
    // Only the layer that needs it was made anew, and the layer itself is as it was.
    assert_eq!(
        place.store.lower_dirs(&image)[0],
        place.path().join("layers").join(&usual.diff_id[7..]).join("diff")
    );
    assert_eq!(
        place.store.lower_dirs(&image)[2],
        place.path().join("layers").join(&base.diff_id[7..]).join("diff")
    );
    assert_eq!(names(&top_dir), ["fresh", "lib", "lib64", "own", "plain", "tmp"]);
    let shared = put(&place.store, "app:2", "2", &[base.clone(), top.clone()]);
    assert_eq!(place.store.lower_dirs(&image)[1], place.store.lower_dirs(&shared)[0]);
    let alone = put(&place.store, "app:3", "3", std::slice::from_ref(&top));
    assert_eq!(place.store.lower_dirs(&alone), [top_dir]);
    drop((base, top, usual));
    place.reopen();
    let image = place.store.snapshot().get(&image.id).unwrap().clone();
    mounted(&place, &image, look);
    place.store.settle().unwrap();
    for image in [image, shared, alone] {
        place.store.remove_image(&image.id).unwrap();
    }
    place.assert_nothing_left();
}
