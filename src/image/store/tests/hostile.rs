//! Archives that want out, or want too much.

use std::fs;
use std::os::unix::fs::symlink;

use super::tape::{Spec, Tape, digest, gzip, pax_records, zstd};
use super::{Compression, LayerError, Limits, Place, chain, names, reader};
use crate::image::{ErrorKind, ImageError};

fn assert_refused(tape: Tape, why: &str) {
    let error = Place::new().refuse(tape);
    assert!(matches!(error, LayerError::Refused { .. }), "{error:?}");
    assert!(chain(&error).contains(why), "{}", chain(&error));
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

fn assert_malformed(tape: Tape, why: &str) {
    let error = Place::new().refuse(tape);
    assert!(matches!(error, LayerError::Malformed { .. }), "{error:?}");
    assert!(chain(&error).contains(why), "{}", chain(&error));
}

#[test]
fn names_that_go_up_are_refused() {
    for name in ["../x", "a/../../x", "a/..", "..", "/..", "./../x"] {
        assert_refused(Tape::new().dir("a").file(name, "x"), "contains ..");
    }
    assert_refused(
        Tape::new().pax(&[("path", b"a/../../x")]).file("harmless", "x"),
        "contains ..",
    );
    let long = Spec {
        data: b"../../x\0".to_vec(),
        ..Spec::new(b'L', "././@LongLink")
    };
    assert_refused(Tape::new().put(long).file("harmless", "x"), "contains ..");
}

#[test]
fn absolute_names_are_below_the_layer() {
    let place = Place::new();
    let (_, diff) = place.unpack(Tape::new().file("/crisp-absolute", "x").dir("//crisp-dir//"));
    assert_eq!(names(&diff), ["crisp-absolute", "crisp-dir"]);
    assert!(fs::metadata("/crisp-absolute").is_err());
}

#[test]
fn symlinks_on_the_way_stay_in_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let place = Place::new();
    let tape = Tape::new()
        .symlink("absolute", out)
        .file("absolute/a", "a")
        .symlink("up", "../../../../../../../..")
        .file("up/b", "b")
        .dir("d")
        .symlink("d/again", "../absolute/deeper")
        .dir("d/again/c")
        .file("d/again/c/e", "e")
        .symlink("magic", "/proc/self/root")
        .file("magic/f", "f")
        .symlink("last", format!("{out}/victim"))
        .file("last", "replaced, not followed");
    let (_, diff) = place.unpack(tape);
    assert_eq!(names(outside.path()), [""; 0]);
    let inside = diff.join(&out[1..]);
    assert_eq!(fs::read(inside.join("a")).unwrap(), b"a");
    assert_eq!(fs::read(inside.join("deeper/c/e")).unwrap(), b"e");
    assert_eq!(fs::read(diff.join("b")).unwrap(), b"b");
    assert_eq!(fs::read(diff.join("proc/self/root/f")).unwrap(), b"f");
    assert!(fs::symlink_metadata(diff.join("last")).unwrap().is_file());
}

#[test]
fn a_directory_that_becomes_a_symlink_is_not_followed_by_what_comes_later() {
    // The directory is kept open while entries go into it; its replacement must end that.
    let outside = tempfile::tempdir().unwrap();
    let place = Place::new();
    let tape = Tape::new()
        .dir("d")
        .file("d/before", "x")
        .symlink("d", outside.path().to_str().unwrap())
        .file("d/after", "x")
        .put(Spec {
            mode: 0o777,
            ..Spec::dir("d2")
        });
    let (_, diff) = place.unpack(tape);
    assert_eq!(names(outside.path()), [""; 0]);
    assert!(diff.join("d").is_symlink());
    assert_eq!(names(&diff.join(&outside.path().to_str().unwrap()[1..])), ["after"]);
}

#[test]
fn loops_of_symlinks_are_refused() {
    assert_refused(
        Tape::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"),
        "too many symlinks",
    );
}

#[test]
fn hard_links_that_leave_the_layer_are_refused() {
    for target in ["../../etc/passwd", "/etc/passwd", "etc/passwd", "missing", "a/../b"] {
        let error = Place::new().refuse(Tape::new().dir("a").file("b", "b").hard_link("x", target));
        assert!(matches!(error, LayerError::Refused { .. }), "{target}: {error:?}");
    }
    // Through a symlink, absolute or upwards: the target is looked for inside the layer, where it is not.
    let tape = Tape::new().symlink("s", "/etc").hard_link("x", "s/passwd");
    assert_refused(tape, "not in this layer");
    let tape = Tape::new()
        .symlink("up", "../../../../../../..")
        .hard_link("x", "up/etc/passwd");
    assert_refused(tape, "not in this layer");
    assert_refused(Tape::new().dir("d").hard_link("x", "d"), "to a directory");
    assert_refused(Tape::new().hard_link("x", "/"), "to the root");
    assert_refused(
        Tape::new().file(".wh.gone", "").hard_link("x", "gone"),
        "not in this layer",
    );
}

#[test]
fn a_hard_link_to_a_symlink_is_a_second_name_of_the_symlink() {
    let place = Place::new();
    let (_, diff) = place.unpack(Tape::new().symlink("s", "/etc/passwd").hard_link("h", "s"));
    assert_eq!(fs::read_link(diff.join("h")).unwrap().to_str(), Some("/etc/passwd"));
}

#[test]
fn a_file_is_not_a_directory() {
    assert_refused(Tape::new().file("a", "x").file("a/b", "x"), "not a directory");
    assert_refused(Tape::new().file("/", "x"), "root of a layer is a directory");
    assert_refused(Tape::new().symlink("./", "/etc"), "root of a layer is a directory");
}

#[test]
fn devices_that_would_be_whiteouts_and_unknown_types_are_refused() {
    for kind in [b'3', b'4'] {
        assert_refused(Tape::new().put(Spec::new(kind, "dev")), "would be a whiteout");
    }
    for kind in [b'8', b'V', b'M', b'D', b'N', b's', 0xff] {
        assert_refused(Tape::new().put(Spec::new(kind, "x")), "unknown type");
    }
    assert_malformed(
        Tape::new().put(Spec {
            device: (0o10_000, 0),
            ..Spec::new(b'3', "dev")
        }),
        "device number is out of range",
    );
}

#[test]
fn whiteouts_of_nothing_and_of_what_is_above_are_refused() {
    for name in [".wh.", "a/.wh..", "a/.wh...", ".wh..."] {
        assert_refused(Tape::new().dir("a").file(name, ""), "whiteout of no name");
    }
}

#[test]
fn attributes_for_overlayfs_are_left_out() {
    let place = Place::new();
    let hostile: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.user.overlay.whiteout", b"y"),
        ("SCHILY.xattr.security.selinux", b"unconfined"),
        ("SCHILY.xattr.user.kept", b"1"),
    ];
    let (_, diff) = place.unpack(Tape::new().pax(hostile).file("f", "x").pax(hostile).dir("d"));
    for path in [diff.join("f"), diff.join("d")] {
        let mut list = vec![0; 1024];
        let len = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
        let list = String::from_utf8(list[..len].to_vec()).unwrap();
        assert!(!list.contains("overlay") && !list.contains("selinux"), "{list}");
        assert_eq!(super::xattr(&path, "user.kept").as_deref(), Some(&b"1"[..]));
    }
}

#[test]
fn names_that_no_system_can_have_are_refused() {
    let long = "n".repeat(256);
    assert_refused(
        Tape::new().pax(&[("path", long.as_bytes())]).file("x", "x"),
        "name is too long",
    );
    let deep = "d/".repeat(257);
    assert_refused(Tape::new().pax(&[("path", deep.as_bytes())]).file("x", "x"), "too deep");
    let long = "dir/".repeat(1100);
    assert_refused(Tape::new().pax(&[("path", long.as_bytes())]).file("x", "x"), "too long");
    assert_refused(Tape::new().symlink("s", ""), "symlink target");
    let target = "t".repeat(4096);
    assert_refused(
        Tape::new().pax(&[("linkpath", target.as_bytes())]).symlink("s", "t"),
        "symlink target",
    );
    assert_malformed(Tape::new().pax(&[("path", b"a\0b")]).file("x", "x"), "contains NUL");
}

#[test]
fn symlinks_do_not_make_trees_deeper_than_names_may() {
    // Each target is short, the way along them is not; the remover would need a descriptor a level.
    let half = "d/".repeat(200);
    let tape = Tape::new()
        .pax(&[("path", half.as_bytes())])
        .dir("x")
        .pax(&[("linkpath", half.as_bytes())])
        .symlink("s", "x")
        .pax(&[("path", format!("s/{half}").as_bytes())])
        .dir("x");
    assert_refused(tape, "too deep");
}

#[test]
fn numbers_that_lie_are_refused() {
    let negative = [0xff_u8; 12];
    assert_malformed(
        Tape::new().put(Spec::file("x", "").patch(124, negative)),
        "size is negative",
    );
    let huge = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_malformed(Tape::new().put(Spec::file("x", "").patch(124, huge)), "too big");
    assert_malformed(
        Tape::new().put(Spec::file("x", "").patch(124, b"-0000000001\0")),
        "not octal",
    );
    assert_malformed(
        Tape::new().put(Spec::file("x", "").patch(108, [0xff; 8])),
        "owner is out of range",
    );
    assert_malformed(
        Tape::new().pax(&[("uid", b"4294967295")]).file("x", ""),
        "owner is out of range",
    );
    assert_malformed(
        Tape::new().pax(&[("gid", b"-1")]).file("x", ""),
        "owner is out of range",
    );
    assert_malformed(Tape::new().pax(&[("size", b"-1")]).file("x", ""), "malformed");
    assert_malformed(
        Tape::new().pax(&[("size", b"99999999999999999999")]).file("x", ""),
        "too big",
    );
    assert_malformed(Tape::new().pax(&[("mtime", b"soon")]).file("x", ""), "malformed");
    let huge_extension = Spec {
        size: Some(1 << 40),
        ..Spec::new(b'x', "PaxHeaders/x")
    };
    assert_malformed(Tape::new().put(huge_extension), "too big");
    let huge_name = Spec {
        size: Some(1 << 40),
        ..Spec::new(b'L', "././@LongLink")
    };
    assert_malformed(Tape::new().put(huge_name), "too big");
}

/// 300 KiB that say something about the next entry.
fn big_extension(kind: u8) -> Spec {
    let text = vec![b'n'; 300 << 10];
    let data = match kind {
        b'L' | b'K' => text,
        _ => pax_records(&[("comment", &text[..])]),
    };
    Spec {
        data,
        ..Spec::new(kind, "extension")
    }
}

#[test]
fn what_is_said_about_one_entry_is_bounded_over_all_its_headers() {
    // Only the single header was bounded: a small image whose entry had thousands of them, which compress to nothing,
    // took the daemon's memory, or hours over its attributes.
    for kinds in [b"xxxx", b"XXXX", b"gggg", b"LLLL", b"KKKK", b"xLKg"] {
        let tape = kinds
            .iter()
            .fold(Tape::new(), |tape, kind| tape.put(big_extension(*kind)));
        assert_malformed(tape.file("f", "x"), "extended headers of one entry are too big");
    }
    let tape = ["a", "b"].iter().fold(Tape::new(), |tape, name| {
        (0..3)
            .fold(tape, |tape, _| tape.put(big_extension(b'x')))
            .file(name, "x")
    });
    let place = Place::new();
    let (_, diff) = place.unpack(tape);
    assert_eq!(names(&diff), ["a", "b"], "what another entry's headers say counts");
}

#[test]
fn attributes_of_one_entry_are_bounded_over_all_its_headers() {
    let keys: Vec<String> = (0..1025).map(|n| format!("SCHILY.xattr.left-out.{n}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"1"[..])).collect();
    let tape = |records: &[(&str, &[u8])]| {
        let (some, others) = records.split_at(512);
        Tape::new().pax(some).pax(others).file("f", "x")
    };
    assert_malformed(tape(&records), "too many extended attributes");
    Place::new().unpack(tape(&records[..1024]));
}

#[test]
fn a_wrong_checksum_and_what_is_no_archive_are_refused() {
    let mut bytes = Tape::new().file("a", "x").0;
    bytes[0] = b'b';
    assert_malformed(Tape(bytes), "checksum");
    assert_malformed(Tape(b"<html>no archive</html>".repeat(100)), "");
    assert_malformed(Tape::new().raw(&[0; 512]).file("a", "x"), "after a block of zeros");
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &[u8], size: &[u8]| {
        Tape::new()
            .pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
            .file("s", "abc")
    };
    assert_malformed(sparse(b"0,3", b"2"), "past the end");
    assert_malformed(sparse(b"0,2", b"100"), "disagree");
    assert_malformed(sparse(b"10,2,5,1", b"100"), "backwards");
    assert_malformed(sparse(b"10", b"100"), "without a length");
    let keys: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9"),
    ];
    assert_malformed(Tape::new().pax(keys).file("s", "x".repeat(512)), "map is malformed");
    assert_malformed(Tape::new().pax(keys).file("s", "1\n"), "cut off");
    let mut long = b"99999999\n".to_vec();
    long.resize(512, b'\n');
    assert_malformed(Tape::new().pax(keys).file("s", long), "too long");
}

#[test]
fn limits_hold() {
    let files = (0..20)
        .fold(Tape::new(), |tape, n| tape.file(format!("f{n}"), "x"))
        .end();
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    assert!(matches!(
        Place::new().refuse_bytes(&files, &limits),
        LayerError::Limit {
            what: "entries",
            limit: 10
        }
    ));
    let limits = Limits {
        layer_bytes: 4096,
        ..Limits::default()
    };
    assert!(matches!(
        Place::new().refuse_bytes(&files, &limits),
        LayerError::Limit {
            what: "bytes",
            limit: 4096
        }
    ));

    // Entries that make nothing new count, too: here extended headers only.
    let headers = (0..60)
        .fold(Tape::new(), |tape, _| tape.pax(&[("comment", b"x")]))
        .end();
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    assert!(matches!(
        Place::new().refuse_bytes(&headers, &limits),
        LayerError::Malformed { .. }
    ));

    let big = Tape::new().file("big", "x".repeat(5000)).end();
    let limits = Limits {
        file_bytes: 4999,
        ..Limits::default()
    };
    assert!(matches!(
        Place::new().refuse_bytes(&big, &limits),
        LayerError::Limit {
            what: "bytes in one file",
            ..
        }
    ));
    let holes = Tape::new()
        .pax(&[("GNU.sparse.size", b"1000000"), ("GNU.sparse.map", b"0,1")])
        .file("s", "x")
        .end();
    let error = Place::new().refuse_bytes(&holes, &limits);
    assert!(matches!(
        error,
        LayerError::Limit {
            what: "bytes in one file",
            ..
        }
    ));
    assert_eq!(error.kind(), ErrorKind::Exhausted);
}

#[test]
fn bombs_are_stopped_by_their_ratio() {
    let archive = Tape::new().file("zeros", vec![0; 32 << 20]).end();
    let limits = Limits {
        ratio: 100,
        ratio_from_bytes: 1 << 20,
        ..Limits::default()
    };
    for (compression, bytes) in [(Compression::Gzip, gzip(&archive)), (Compression::Zstd, zstd(&archive))] {
        let place = Place::new();
        let result = place
            .store
            .ingest_layer(&digest(&archive), compression, reader(&bytes), &limits);
        place.assert_nothing_left();
        assert!(
            matches!(
                result,
                Err(ImageError::Layer {
                    source: LayerError::Limit {
                        what: "bytes per compressed byte",
                        ..
                    },
                    ..
                })
            ),
            "{result:?}"
        );
        // Below the size from which the ratio counts it is a layer as any other.
        place
            .store
            .ingest_layer(&digest(&archive), compression, reader(&bytes), &Limits::default())
            .unwrap();
    }
}

#[test]
fn a_prepared_symlink_in_the_stores_place_is_not_used() {
    // Whoever can write to the store is root; still, leftovers of any type are removed by name and not followed.
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("kept"), "x").unwrap();
    let mut place = Place::new();
    symlink(outside.path(), place.path().join("layers/tmp-1-0")).unwrap();
    symlink(outside.path(), place.path().join("trash/1-0")).unwrap();
    place.reopen();
    place.assert_nothing_left();
    assert_eq!(names(outside.path()), ["kept"]);
}
