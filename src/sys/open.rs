//! Opening what others name, below a root (openat2(2)).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// How often a look-up begins anew: each time something else on the machine has been renamed or mounted meanwhile.
const TRIES: u32 = 128;

/// openat2(2). A look-up that must not leave its root says EAGAIN when anything was renamed or mounted, anywhere, while it
/// went up by `..` or a symlink: it does not know then whether it is still inside, and is to be asked again.
pub fn openat2(
    root: impl AsFd,
    path: impl Arg,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    path.into_with_c_str(|path| {
        let mut last = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            #[expect(clippy::disallowed_methods, reason = "this is what others are to call")]
            let opened = rustix::fs::openat2(&root, path, flags, mode, resolve);
            last = opened;
            if !matches!(last, Err(Errno::AGAIN)) {
                break;
            }
        }
        last
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn renames_elsewhere_do_not_fail_a_look_up() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("root/a/b")).unwrap();
        std::fs::write(at("root/file"), "").unwrap();
        std::fs::create_dir(at("one")).unwrap();
        let root = std::fs::File::open(at("root")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    std::fs::rename(at("one"), at("two")).unwrap();
                    std::fs::rename(at("two"), at("one")).unwrap();
                }
            });
            for _ in 0..20_000 {
                let path = "a/b/../../a/b/../../a/b/../../a/b/../../file";
                let opened = openat2(
                    &root,
                    path,
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::IN_ROOT,
                );
                if let Err(error) = opened {
                    done.store(true, Ordering::Relaxed);
                    panic!("{error}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
