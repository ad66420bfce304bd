//! The socket: one daemon per directory, root only, until a signal comes.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use super::DaemonError;
use crate::api::{DeadlineLayer, ImageApi, MESSAGE_LIMIT_BYTES, Rooms, RuntimeApi};
use crate::cri::image_service_server::ImageServiceServer;
use crate::cri::runtime_service_server::RuntimeServiceServer;

/// Takes the directory for this daemon. The lock goes with the process, however that ends.
pub fn lock(run: &Path) -> Result<File, DaemonError> {
    fs::create_dir_all(run).map_err(DaemonError::path("make", run))?;
    let path = run.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(DaemonError::path("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::Taken { path: run.to_owned() }),
        Err(error) => Err(DaemonError::path("lock", &path)(error.into())),
    }
}

/// Listens on `socket`, root only. A socket that nobody answers on is an earlier daemon's and makes room.
pub fn listen(socket: &Path) -> Result<UnixListener, DaemonError> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).map_err(DaemonError::path("make", dir))?;
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(DaemonError::Taken {
            path: socket.to_owned(),
        });
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(DaemonError::path("remove", socket)(error));
        }
        _ => {}
    }
    // The mode must be right from the first moment on: the mask makes it so at bind.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(socket);
    rustix::process::umask(before);
    let listener = listener.map_err(DaemonError::path("listen on", socket))?;
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(DaemonError::path("set the mode of", socket))?;
    Ok(listener)
}

/// Serves both services until SIGTERM or SIGINT. What requests under way have begun is for the next daemon to finish or undo.
pub async fn serve(rooms: Rooms, listener: UnixListener) -> Result<(), DaemonError> {
    let runtime = RuntimeServiceServer::new(RuntimeApi::new(rooms.clone()))
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let image = ImageServiceServer::new(ImageApi::new(rooms))
        .max_decoding_message_size(MESSAGE_LIMIT_BYTES)
        .max_encoding_message_size(MESSAGE_LIMIT_BYTES);
    let told = |source| DaemonError::Host {
        what: "wait for signals",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(told)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(told)?;
    let server = Server::builder()
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(image)
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = server => served.map_err(DaemonError::Serve),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
