//! A file system that answers as much as a test needs, and the rest never: linux/fuse.h, version 7.31.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::daemon::Machine;

pub const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
const STATX: u32 = 52;

/// The root directory of such a file system, mounted. Whoever waits for an answer gets an error when it is dropped.
pub struct HungFileSystem {
    pub dir: PathBuf,
    asked: Arc<Mutex<BTreeSet<u32>>>,
    over: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl HungFileSystem {
    /// Nothing in it is ever found; `has_root` is whether it says at least that its root is a directory.
    pub fn mount(machine: &Machine, has_root: bool) -> Self {
        let dir = machine.dir().join("hung");
        std::fs::create_dir(&dir).expect("a directory");
        let mut options = File::options();
        let device = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/fuse");
        let device = device.expect("the kernel has FUSE");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).expect("no NUL");
        rustix::mount::mount(
            "hung",
            &dir,
            "fuse",
            rustix::mount::MountFlags::empty(),
            data.as_c_str(),
        )
        .expect("root may mount it");
        let (asked, over) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let server = {
            let (asked, over) = (asked.clone(), over.clone());
            std::thread::spawn(move || serve(device, has_root, &asked, &over))
        };
        Self {
            dir,
            asked,
            over,
            server: Some(server),
        }
    }

    /// Whether somebody has made this request: with one that is not answered they wait for it now.
    pub fn was_asked(&self, operation: u32) -> bool {
        self.asked.lock().expect("no panic holds it").contains(&operation)
    }
}

impl Drop for HungFileSystem {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // The device is closed by its end, and with it every request.
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: File, has_root: bool, asked: &Mutex<BTreeSet<u32>>, over: &AtomicBool) {
    let mut request = vec![0; 256 << 10];
    while !over.load(Ordering::Relaxed) {
        match device.read(&mut request) {
            Ok(length) => {
                let operation = u32::from_ne_bytes(request[4..8].try_into().expect("four bytes"));
                let unique: [u8; 8] = request[8..16].try_into().expect("eight bytes");
                let answer = match operation {
                    INIT => Some((0, init())),
                    GETATTR if has_root => Some((0, attributes())),
                    // Who is told so asks for the attributes by the older request.
                    STATX if has_root => Some((-libc::ENOSYS, Vec::new())),
                    _ => None,
                };
                if let Some((error, body)) = answer {
                    let length = u32::try_from(16 + body.len()).expect("short");
                    let head = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), &unique].concat();
                    device.write_all(&[head, body].concat()).expect("the kernel takes it");
                }
                assert!(length >= 40, "a request has a head");
                asked.lock().expect("no panic holds it").insert(operation);
            }
            // Nothing is asked, or a request was taken back.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::NotFound | ErrorKind::Interrupted
                ) =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            // It is mounted nowhere any more.
            Err(_) => return,
        }
    }
}

/// struct fuse_init_out: the version, and no more than every kernel can do.
fn init() -> Vec<u8> {
    let mut body = [0; 64];
    for (at, value) in [(0, 7u32), (4, 31), (8, 1 << 16), (20, 1 << 16), (24, 1)] {
        body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    body.to_vec()
}

/// struct fuse_attr_out: a directory, root's, for an hour.
fn attributes() -> Vec<u8> {
    let mut body = [0; 104];
    for (at, value) in [
        (0, 3600u32),
        (16, 1),
        (16 + 60, 0o40_755),
        (16 + 64, 2),
        (16 + 80, 4096),
    ] {
        body[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    body.to_vec()
}
