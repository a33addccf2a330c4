//! The Unix socket: a file that clients find by its name, `.s.PGSQL.<port>`, in a directory of theirs.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use super::{BACKLOG, BindError};
use crate::config::UnixSocket;

/// A socket and its file, which is removed on drop.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: StdUnixListener,
    pub(super) file: SocketFile,
}

/// The file of a socket of ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    /// One that has taken its place is somebody else's.
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(event = "listen.socket_left", path = %self.path.display(), %error, "the socket's file stays");
        }
    }
}

/// Opens the socket of `port`. What a dead process has left there is replaced.
///
/// While it does so it holds the directory's lock, so that of two processes that find the same dead socket one takes
/// its place and the other one finds it taken.
pub(super) fn bind(config: &UnixSocket, port: u16) -> Result<Bound, BindError> {
    let path = config.path(port);
    let failed = |source| BindError::Unix { path: path.clone(), source };
    let _lock = lock(&config.directory).map_err(failed)?;
    remove_dead(&path)?;

    let bound = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        let file = SocketFile { id: id(&path)?, path: path.clone() };
        // Nobody can connect before it listens, so nobody has while its mode was another.
        fs::set_permissions(&path, Permissions::from_mode(config.mode))?;
        socket.listen(BACKLOG)?;
        Ok(Bound { listener: socket.into(), file })
    };
    bound().map_err(failed)
}

/// Until the file is closed.
fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..LOCK_TRIES {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => thread::sleep(LOCK_PAUSE),
            // A file system without locks: nobody else has one, either.
            Ok(()) | Err(_) => return Ok(file),
        }
    }
    Err(io::Error::new(ErrorKind::WouldBlock, "another process keeps the directory locked"))
}

/// Removes a socket that nobody listens at.
fn remove_dead(path: &Path) -> Result<(), BindError> {
    let failed = |source| BindError::Unix { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(BindError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let connected = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Else it waits for room in the other's queue, for ever if that one stands still.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match connected() {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        // Its queue is full, so there is somebody.
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(failed(error)),
        Ok(()) | Err(_) => Err(BindError::UnixInUse { path: path.to_owned() }),
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Others hold the lock for less than one pause.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    #[test]
    fn socket_has_its_mode_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o777] {
            let bound = bind(&UnixSocket { directory: dir.path().into(), mode }, 5433).unwrap();
            let path = dir.path().join(".s.PGSQL.5433");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode);
            StdUnixStream::connect(&path).unwrap();
            drop(bound);
            assert!(!path.exists());
        }
    }

    #[test]
    fn dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = UnixSocket { directory: dir.path().into(), mode: 0o660 };
        let path = config.path(5432);
        // Dropped without its file being removed, as when a process is killed.
        drop(StdUnixListener::bind(&path).unwrap());
        let first = bind(&config, 5432).unwrap();
        assert!(matches!(bind(&config, 5432), Err(BindError::UnixInUse { path: taken }) if taken == path));
        bind(&config, 5433).unwrap();

        // A successor's file is not ours to remove.
        fs::remove_file(&path).unwrap();
        let second = StdUnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);

        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        assert!(matches!(bind(&config, 5432), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn directory_that_is_gone_or_locked_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = UnixSocket { directory: dir.path().join("gone"), mode: 0o660 };
        let error = bind(&gone, 5432).unwrap_err();
        assert!(error.to_string().starts_with("listen.unix_socket: "), "{error}");
    }

    #[test]
    fn socket_of_a_process_that_accepts_nobody_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".s.PGSQL.5432");
        let stopped = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        stopped.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        stopped.listen(0).unwrap();
        let waiting: Vec<_> = std::iter::repeat_with(|| {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            client.connect(&SockAddr::unix(&path).unwrap()).map(|()| client)
        })
        .map_while(Result::ok)
        .collect();
        assert!(matches!(remove_dead(&path), Err(BindError::UnixInUse { .. })), "{} wait", waiting.len());
        assert!(path.exists());
    }
}
