//! Archives that are right, in all forms, come out as they are.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::tape::{Spec, Tape, pax_records};
use super::{Place, is_whiteout, names, xattr};

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

#[test]
fn owners_modes_times_and_attributes() {
    let place = Place::new();
    let tape = Tape::new()
        .put(Spec {
            mode: 0o1777,
            mtime: 5,
            ..Spec::dir("tmp")
        })
        .put(Spec {
            mode: 0o2750,
            uid: 10,
            gid: 20,
            mtime: 7,
            ..Spec::dir("setgid")
        })
        .put(Spec {
            mode: 0o640,
            mtime: 1_234_567_890,
            ..Spec::file("setgid/f", "x")
        })
        .put(Spec {
            mode: 0o4755,
            uid: 1000,
            gid: 1001,
            ..Spec::file("setuid", "x")
        })
        .pax(&[
            ("SCHILY.xattr.security.capability", CAPABILITY),
            ("mtime", b"3.25"),
            ("uid", b"3000000"),
        ])
        .put(Spec {
            mode: 0o755,
            uid: 1,
            gid: 1,
            ..Spec::file("capable", "x")
        })
        .put(Spec {
            uid: 5,
            gid: 6,
            mtime: 9,
            ..Spec::symlink("link", "/nowhere")
        })
        .put(Spec {
            mode: 0,
            ..Spec::dir("closed")
        })
        .file("closed/f", "x");
    let (layer, diff) = place.unpack(tape);
    let stat = |name: &str| fs::symlink_metadata(diff.join(name)).unwrap();
    let tmp = stat("tmp");
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 5));
    let dir = stat("setgid");
    assert_eq!(
        (dir.mode() & 0o7777, dir.uid(), dir.gid(), dir.mtime()),
        (0o2750, 10, 20, 7)
    );
    // A directory's setgid bit is for those who write later.
    let file = stat("setgid/f");
    assert_eq!(
        (file.mode() & 0o7777, file.gid(), file.mtime()),
        (0o640, 0, 1_234_567_890)
    );
    let setuid = stat("setuid");
    assert_eq!(
        (setuid.mode() & 0o7777, setuid.uid(), setuid.gid()),
        (0o4755, 1000, 1001)
    );
    let capable = stat("capable");
    assert_eq!(
        (capable.uid(), capable.mtime(), capable.mtime_nsec()),
        (3_000_000, 3, 250_000_000)
    );
    assert_eq!(
        xattr(&diff.join("capable"), "security.capability").as_deref(),
        Some(CAPABILITY)
    );
    let link = stat("link");
    assert_eq!((link.uid(), link.gid(), link.mtime()), (5, 6, 9));
    assert_eq!(stat("closed").mode() & 0o7777, 0);
    assert_eq!(stat("closed/f").len(), 1);
    assert_eq!(layer.inodes, 9);
}

#[test]
fn the_umask_of_the_daemon_does_not_matter_and_is_not_changed() {
    // In a thread that does not share its umask with the other tests.
    let in_own_thread = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
        let strict = rustix::fs::Mode::from_raw_mode(0o077);
        rustix::process::umask(strict);
        let place = Place::new();
        let (_, diff) = place.unpack(Tape::new().put(Spec {
            mode: 0o666,
            ..Spec::file("f", "x")
        }));
        assert_eq!(rustix::process::umask(strict), strict);
        assert_eq!(fs::metadata(diff.join("f")).unwrap().mode() & 0o7777, 0o666);
    };
    std::thread::spawn(in_own_thread).join().unwrap();
}

#[test]
fn times_before_the_epoch_and_after_2038() {
    let place = Place::new();
    let (_, diff) = place.unpack(
        Tape::new()
            .pax(&[("mtime", b"-2.5")])
            .file("old", "x")
            .pax(&[("mtime", b"5000000000")])
            .file("new", "x"),
    );
    let old = fs::metadata(diff.join("old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-3, 500_000_000));
    assert_eq!(fs::metadata(diff.join("new")).unwrap().mtime(), 5_000_000_000);
}

#[test]
fn long_names_in_every_form() {
    let place = Place::new();
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let target = format!("/{}", "t".repeat(300));
    let gnu = |kind: u8, text: &str| Spec {
        data: format!("{text}\0").into_bytes(),
        ..Spec::new(kind, "././@LongLink")
    };
    let tape = Tape::new()
        .put(gnu(b'L', &format!("gnu/{name}")))
        .file("cut", "gnu")
        .put(gnu(b'K', &target))
        .put(gnu(b'L', &format!("gnu/{name}-link")[..]))
        .symlink("cut", "cut")
        .pax(&[("path", format!("pax/{name}").as_bytes())])
        .file("cut", "pax")
        .pax(&[("path", b"pax/hard"), ("linkpath", format!("pax/{name}").as_bytes())])
        .hard_link("cut", "cut")
        .put(Spec::file("f".repeat(100), "prefix").patch(345, "ustar/".to_owned() + &"p".repeat(140)))
        .pax(&[("path", "n\u{e4}me\n".as_bytes())])
        .file("cut", "utf8");
    let (_, diff) = place.unpack(tape.file(b"bytes\xff", "raw"));
    assert_eq!(fs::read(diff.join("gnu").join(&name)).unwrap(), b"gnu");
    assert_eq!(
        fs::read_link(diff.join("gnu").join(name.clone() + "-link"))
            .unwrap()
            .to_str(),
        Some(&target[..])
    );
    assert_eq!(fs::read(diff.join("pax").join(&name)).unwrap(), b"pax");
    assert_eq!(fs::metadata(diff.join("pax/hard")).unwrap().nlink(), 2);
    assert_eq!(
        fs::read(diff.join("ustar").join("p".repeat(140)).join("f".repeat(100))).unwrap(),
        b"prefix"
    );
    assert_eq!(fs::read(diff.join("n\u{e4}me\n")).unwrap(), b"utf8");
    assert_eq!(
        fs::read(diff.join(Path::new(std::ffi::OsStr::from_bytes(b"bytes\xff")))).unwrap(),
        b"raw"
    );
}

#[test]
fn old_and_odd_headers() {
    let place = Place::new();
    let v7 = |spec: Spec| Spec { kind: 0, ..spec }.patch(257, [0; 8]);
    let tape = Tape::new()
        .put(v7(Spec::dir("dir/")))
        .put(v7(Spec::file("dir/f", "seven")))
        .put(Spec::file("contiguous", "x").patch(156, "7"))
        .put(Spec {
            data: pax_records(&[("path", b"global")]),
            ..Spec::new(b'g', "pax_global_header")
        })
        .put(
            Spec::file("binary", "")
                .patch(124, b"\x80\0\0\0\0\0\0\0\0\0\0\0")
                .patch(108, b"\x80\0\0\0\0\x2d\xc6\xc0"),
        )
        // Links have no data whatever their size says.
        .put(Spec {
            size: Some(4096),
            ..Spec::hard_link("hard", "dir/f")
        })
        .pax(&[("size", b"3")])
        .put(Spec {
            size: Some(0),
            ..Spec::file("pax-size", "abc")
        })
        .put(Spec::new(b'6', "fifo"))
        .put(Spec {
            device: (1, 3),
            mode: 0o666,
            ..Spec::new(b'3', "null")
        })
        .put(Spec {
            device: (4095, 1_048_575),
            ..Spec::new(b'4', "block")
        });
    let (layer, diff) = place.unpack(tape);
    assert_eq!(fs::read(diff.join("dir/f")).unwrap(), b"seven");
    assert_eq!(fs::metadata(diff.join("binary")).unwrap().uid(), 3_000_000);
    assert_eq!(fs::read(diff.join("pax-size")).unwrap(), b"abc");
    assert_eq!(fs::metadata(diff.join("hard")).unwrap().nlink(), 2);
    assert!(!diff.join("global").exists());
    let kind = |name: &str| fs::symlink_metadata(diff.join(name)).unwrap();
    assert!(kind("fifo").file_type().is_fifo());
    assert!(kind("null").file_type().is_char_device());
    assert_eq!(
        (kind("null").rdev(), kind("null").mode() & 0o7777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert!(kind("block").file_type().is_block_device());
    assert_eq!(kind("block").rdev(), rustix::fs::makedev(4095, 1_048_575));
    assert_eq!(layer.inodes, 9);
}

#[test]
fn an_archive_may_end_without_its_end() {
    let place = Place::new();
    place.ingest(&Tape::new().file("a", "x").0).unwrap();
    place.ingest(&Tape::new().file("b", "x").raw(&[0; 512]).0).unwrap();
    place
        .ingest(&Tape::new().file("c", "x").raw(&[0; 10240]).raw(b"whatever follows").0)
        .unwrap();
    place.ingest(&[]).unwrap();
}

#[test]
fn files_with_holes_in_every_form() {
    let place = Place::new();
    let mut expected = vec![0u8; 3 << 20];
    expected[..5].copy_from_slice(b"begin");
    expected[1 << 20..(1 << 20) + 3].copy_from_slice(b"mid");
    let size = (3 << 20).to_string();
    let middle = (1 << 20).to_string();
    let pair = |offset: u64, len: u64| format!("{offset:011o}\0{len:011o}\0").into_bytes();

    // The third pair of the old form goes into a block of its own.
    let mut more = [0; 512];
    more[..24].copy_from_slice(&pair(3 << 20, 0));
    let map = [pair(0, 5), pair(1 << 20, 3), pair(1 << 21, 0), pair(1 << 21, 0)].concat();
    let old = Spec {
        size: Some(8),
        ..Spec::new(b'S', "old")
    }
    .patch(257, "ustar  \0")
    .patch(386, map)
    .patch(482, [1])
    .patch(483, format!("{:011o}\0", 3 << 20));
    let mut data = b"beginmid".to_vec();
    data.resize(512, 0);
    let mut with_map = format!("3\n0\n5\n{middle}\n3\n{size}\n0\n").into_bytes();
    with_map.resize(512, 0);
    with_map.extend(b"beginmid");
    let map_0_1 = format!("0,5,{middle},3,{size},0");
    let tape = Tape::new()
        .put(old)
        .raw(&more)
        .raw(&data)
        .pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"5"),
            ("GNU.sparse.offset", middle.as_bytes()),
            ("GNU.sparse.numbytes", b"3"),
        ])
        .file("pax-0.0", "beginmid")
        .pax(&[
            ("GNU.sparse.name", b"pax-0.1"),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map_0_1.as_bytes()),
        ])
        .file("GNUSparseFile.1/x", "beginmid")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"pax-1.0"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .file("GNUSparseFile.2/x", with_map)
        .file("after", "x");
    let (layer, diff) = place.unpack(tape);
    for name in ["old", "pax-0.0", "pax-0.1", "pax-1.0"] {
        assert!(fs::read(diff.join(name)).unwrap() == expected, "{name}");
        assert!(
            fs::metadata(diff.join(name)).unwrap().blocks() * 512 < 1 << 20,
            "{name} has no holes"
        );
    }
    assert_eq!(names(&diff), ["after", "old", "pax-0.0", "pax-0.1", "pax-1.0"]);
    assert!(layer.size_bytes < 1 << 20);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    let tape = Tape::new()
        .file("file-file", "first, longer")
        .file("file-file", "second")
        .dir("dir-file")
        .file("dir-file/inside", "x")
        .file("dir-file", "file")
        .file("file-dir", "x")
        .dir("file-dir")
        .file("file-dir/inside", "x")
        .symlink("link-file", "file-file")
        .file("link-file", "own")
        .file("target", "target")
        .symlink("link-dir", "dir-file")
        .dir("link-dir")
        .dir("kept")
        .file("kept/inside", "x")
        .put(Spec {
            mode: 0o700,
            ..Spec::dir("kept")
        })
        .file("h", "x")
        .hard_link("h", "h")
        .file("other", "other")
        .hard_link("h", "other")
        .put(Spec {
            device: (1, 3),
            ..Spec::new(b'3', "node")
        })
        .symlink("node", "x");
    let (layer, diff) = place.unpack(tape);
    let read = |name: &str| fs::read_to_string(diff.join(name)).unwrap();
    assert_eq!(read("file-file"), "second");
    assert_eq!(read("dir-file"), "file");
    assert_eq!(names(&diff.join("file-dir")), ["inside"]);
    assert_eq!(read("link-file"), "own");
    assert!(fs::symlink_metadata(diff.join("link-dir")).unwrap().is_dir());
    assert_eq!(names(&diff.join("kept")), ["inside"]);
    assert_eq!(fs::metadata(diff.join("kept")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(read("h"), "other");
    assert!(diff.join("node").is_symlink());
    // Counted anew, without what was replaced: the root, 3 directories and 2 files in them, 5 files, 1 symlink.
    assert_eq!(layer.inodes, 12);
    // What hid a lower layer's directory still does as a directory.
    assert_eq!(
        xattr(&diff.join("file-dir"), "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
}

#[test]
fn whiteouts_and_opaque_directories() {
    let place = Place::new();
    let tape = Tape::new()
        .dir("etc")
        .file("etc/.wh.passwd", "")
        .file(".wh.gone", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "x")
        .file("late/f", "x")
        .file("late/.wh..wh..opq", "")
        // What this layer has under a name stays, whichever comes first.
        .file(".wh.file-after", "")
        .file("file-after", "x")
        .file("file-before", "x")
        .file(".wh.file-before", "")
        .file(".wh.dir-after", "")
        .dir("dir-after")
        .dir("dir-before")
        .file(".wh.dir-before", "")
        .file(".wh.implicit", "")
        .file("implicit/f", "x")
        .file(".wh.twice", "")
        .file(".wh.twice", "")
        // aufs' own.
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", "x")
        .file(".wh..wh.aufs", "");
    let (_, diff) = place.unpack(tape);
    assert!(is_whiteout(&diff.join("etc/passwd")));
    assert!(is_whiteout(&diff.join("gone")));
    assert!(is_whiteout(&diff.join("twice")));
    let opaque = |name: &str| xattr(&diff.join(name), "trusted.overlay.opaque").as_deref() == Some(b"y");
    for name in ["opaque", "late", "dir-after", "dir-before", "implicit"] {
        assert!(opaque(name), "{name}");
    }
    assert!(!opaque("etc"));
    assert_eq!(fs::read(diff.join("file-after")).unwrap(), b"x");
    assert_eq!(fs::read(diff.join("file-before")).unwrap(), b"x");
    assert!(names(&diff).iter().all(|name| !name.starts_with(".wh.")));
}

#[test]
fn gnu_tars_own_archives_come_out_the_same() {
    // An archiver that is not ours, in both of its forms, over everything it knows.
    let source = tempfile::tempdir().unwrap();
    let script = r#"
        set -e
        mkdir -p deep/$(printf 'd%.0s' $(seq 150)) && cp /bin/true deep/d*/
        truncate -s 4M holes && printf x | dd of=holes bs=1 seek=2000000 conv=notrunc status=none
        cp /etc/passwd one && ln one two && ln -s ../one link
        mkfifo pipe && mknod null c 1 3 && chown 70000:70001 one && chmod 6711 one
        # GNU's own form has whole seconds.
        find . -exec touch -h -d @1234567890 {} +
    "#;
    let run = |program: &str, args: &[&str]| {
        let done = std::process::Command::new(program)
            .args(args)
            .current_dir(source.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    };
    run("sh", &["-c", script]);
    for format in ["gnu", "pax", "posix"] {
        let place = Place::new();
        let archive = run(
            "tar",
            &[
                "--format",
                format,
                "--sparse",
                "--xattrs",
                "--numeric-owner",
                "-cf",
                "-",
                ".",
            ],
        );
        let layer = place.ingest(&archive).unwrap();
        let diff = place.path().join("layers").join(&layer.diff_id[7..]).join("diff");
        let list = |dir: &Path| {
            let listing = std::process::Command::new("sh")
                .args([
                    "-c",
                    "find . ! -type d -printf '%p %y %m %U %G %s %n %T@ %l\n' | sort; md5sum one holes deep/*/*",
                ])
                .current_dir(dir)
                .output()
                .unwrap();
            String::from_utf8(listing.stdout).unwrap()
        };
        assert_eq!(list(&diff), list(source.path()), "{format}");
    }
}
