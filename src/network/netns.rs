//! Network namespaces of pods: made on a thread of their own, kept alive by a bind mount at `<run>/netns/<id>`
//! (network_namespaces(7)), the form that CNI plugins take.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::{TcpSocket, TcpStream};

use crate::sys::netlink::{ACK, Family, Message, Socket};
use crate::sys::userns::{self, IdRange};

/// What these short-lived threads do needs little; the default of 2 MiB costs page tables.
const STACK_BYTES: usize = 256 << 10;
/// linux/magic.h
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Makes a network namespace with loopback up and binds it at `dir/id`, which must not exist; `dir` is made if missing.
/// A failure leaves nothing behind.
pub fn create(dir: &Path, id: &str) -> io::Result<PathBuf> {
    bind_new(dir, id, |path| {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback_up()?;
            bind("/proc/thread-self/ns/net", path)
        })
    })
}

/// As [`create`], in a new user namespace with the ids `ids`, which owns it and is returned.
pub fn create_owned(dir: &Path, id: &str, ids: IdRange) -> io::Result<OwnedFd> {
    let mut user = None;
    bind_new(dir, id, |path| {
        let made = userns::create(ids, true)?;
        let network = made.network.ok_or(io::ErrorKind::NotFound)?;
        run_in(&network, loopback_up)?;
        bind(&format!("/proc/self/fd/{}", network.as_raw_fd()), path)?;
        user = Some(made.user);
        Ok(())
    })?;
    user.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Makes the file `dir/id` for `make` to bind a namespace on, which is its last act.
fn bind_new(dir: &Path, id: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
    let path = dir.join(id);
    std::fs::create_dir_all(dir).map_err(|e| failed("create", dir, e))?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(|e| failed("create", &path, e))?;
    match make(&path) {
        Ok(()) => Ok(path),
        Err(error) => {
            // The mount is what comes last: if that failed there is only the file.
            let _ = std::fs::remove_file(&path);
            Err(failed("make a network namespace at", &path, error))
        }
    }
}

fn bind(namespace: &str, path: &Path) -> io::Result<()> {
    mount(Some(namespace), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Lets go of the namespace at `path` and removes the file. Fine if either is gone already. The namespace itself ends
/// with its last process or open descriptor.
pub fn remove(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue,
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(failed("unmount", path, error.into())),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

/// Opens the namespace at `path`; refuses a file that is not one (its mount is gone).
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path).map_err(|e| failed("open", path, e))?;
    let kind = rustix::fs::fstatfs(&file)
        .map_err(|e| failed("statfs", path, e.into()))?
        .f_type;
    if kind != NSFS_MAGIC {
        return Err(failed(
            "open",
            path,
            io::Error::new(io::ErrorKind::NotFound, "not a network namespace any more"),
        ));
    }
    Ok(file)
}

/// Runs `work` on a thread of its own inside the network namespace `netns`. Sockets opened there stay there.
pub fn run_in<T: Send>(netns: impl AsFd + Sync, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_a_thread(|| {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// What one connection to localhost in some network namespace needs of it. To enter it blocks, for a moment; to connect
/// may take long, and does not.
pub struct Sockets {
    v4: io::Result<TcpSocket>,
    v6: io::Result<TcpSocket>,
}

/// Makes [`Sockets`] in the namespace at `path`, or in that of the calling thread.
pub fn sockets(path: Option<&Path>) -> io::Result<Sockets> {
    let make = || {
        // A kernel may lack one of the families: that matters when it is its turn.
        Ok(Sockets {
            v4: TcpSocket::new_v4(),
            v6: TcpSocket::new_v6(),
        })
    };
    match path {
        Some(path) => run_in(open(path)?, make),
        None => make(),
    }
}

impl Sockets {
    /// Connects to `port`, IPv4 first, each within `deadline`. May be cancelled, and then nothing is left of it.
    pub async fn connect(self, port: u16, deadline: Duration) -> io::Result<TcpStream> {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        match connect(self.v4, v4, deadline).await {
            Ok(connection) => Ok(connection),
            Err(error) => connect(self.v6, v6, deadline).await.map_err(|_| error),
        }
    }
}

async fn connect(socket: io::Result<TcpSocket>, to: SocketAddr, deadline: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(deadline, socket?.connect(to)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connection timed out")),
    }
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Brings up `lo` in the namespace of the calling thread; the kernel then gives it 127.0.0.1 and ::1.
fn loopback_up() -> io::Result<()> {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&1i32.to_ne_bytes()); // lo is always the first link of a namespace
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    fixed[8..12].copy_from_slice(&up);
    fixed[12..16].copy_from_slice(&up);
    Socket::open(Family::Route)?.send(&mut [Message::new(libc::RTM_SETLINK, ACK, &fixed)])?;
    Ok(())
}

fn failed(op: &'static str, path: &Path, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), format!("{op} {}: {source}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[tokio::test]
    async fn a_namespace_is_made_entered_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = create(dir.path(), "one").unwrap();
        assert!(create(dir.path(), "one").is_err(), "an id is used once");
        let netns = open(&path).unwrap();
        let listener = run_in(&netns, || TcpListener::bind("127.0.0.1:80")).unwrap();
        let sockets = sockets(Some(&path)).unwrap();
        let client = sockets.connect(80, Duration::from_secs(1)).await.unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        drop(netns);
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
        assert!(
            !std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(dir.path().to_str().unwrap())
        );
    }

    /// Symptom: connections to a server that accepts none took a thread each, until the daemon had none left.
    #[tokio::test(start_paused = true)]
    async fn connections_that_wait_hold_no_thread() {
        let dir = tempfile::tempdir().unwrap();
        let path = create(dir.path(), "one").unwrap();
        let netns = open(&path).unwrap();
        let listener = run_in(&netns, || TcpListener::bind("127.0.0.1:80")).unwrap();
        // Room for one, which is there once the listener is readable.
        rustix::net::listen(&listener, 0).unwrap();
        let _queued = run_in(&netns, || std::net::TcpStream::connect("127.0.0.1:80")).unwrap();
        let mut readable = [rustix::event::PollFd::new(&listener, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut readable, None).unwrap();
        let deadline = Duration::from_secs(10);
        let waiting = (0..100).map(|_| sockets(Some(&path)).unwrap().connect(80, deadline));
        // The clock goes on only when all of them wait, on this one thread.
        for connected in futures_util::future::join_all(waiting).await {
            // Nobody listens by IPv6: what is told is IPv4's.
            assert_eq!(connected.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        remove(&path).unwrap();
    }

    #[test]
    fn a_namespace_can_belong_to_a_user_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let ids = IdRange {
            first: 300_000,
            count: 10,
        };
        let user = create_owned(dir.path(), "one", ids).unwrap();
        let path = dir.path().join("one");
        let netns = open(&path).unwrap();
        run_in(&netns, || TcpListener::bind("127.0.0.1:80")).unwrap();
        drop((user, netns));
        remove(&path).unwrap();
        let nobody = IdRange { first: 0, count: 0 };
        create_owned(dir.path(), "two", nobody).unwrap_err();
        assert!(!dir.path().join("two").exists(), "a failure left something behind");
    }

    #[test]
    fn a_file_without_its_mount_is_no_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("left");
        std::fs::write(&path, "").unwrap();
        assert_eq!(open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn making_one_is_cheap() {
        let dir = tempfile::tempdir().unwrap();
        let began = std::time::Instant::now();
        for n in 0..20 {
            create(dir.path(), &n.to_string()).unwrap();
        }
        let each = began.elapsed() / 20;
        for n in 0..20 {
            remove(&dir.path().join(n.to_string())).unwrap();
        }
        println!("{each:?} each");
        assert!(each < Duration::from_millis(50), "{each:?}");
    }
}
