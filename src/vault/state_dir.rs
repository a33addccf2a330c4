//! `vault.state_dir`: pglease's own tokens on a memory volume, so that what a crash leaves behind is revoked at the next
//! start instead of living to the end of its TTL. Nothing is ever resumed from it.
//!
//! A token is written before anything is read with it, and removed when it was revoked or has ended. One process at a
//! time has the directory: its lock ends with the process, however that ends. Runs no task; files are small, and a
//! memory volume answers at once.

use std::collections::HashMap;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ring::digest;
use rustix::fs::{Access, FlockOperation};
use rustix::io::Errno;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use tracing::warn;
use zeroize::Zeroizing;

use super::Token;

/// The directory, locked.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// Holds the lock.
    _directory: File,
    /// When each token that is kept ends, by the name of its file; `None` where it does not.
    ends: Mutex<HashMap<String, Option<Instant>>>,
}

/// A token that another process has left behind.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) token: Token,
    name: String,
}

/// Why the directory is of no use. The setting is named by the caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("it cannot be opened")]
    Unopened(#[source] io::Error),
    #[error("it cannot be written to; name a directory that this user may write to")]
    NotWritable(#[source] Errno),
    #[error("another pglease uses it; give each process a directory of its own")]
    InUse,
    #[error("it cannot be locked; use a memory volume")]
    NotLockable(#[source] Errno),
}

impl StateDir {
    /// Takes possession of a directory. Warns of what others could see of it.
    pub(super) fn open(path: &Path) -> Result<Self, StateDirError> {
        let directory = File::open(path).map_err(StateDirError::Unopened)?;
        rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(StateDirError::NotWritable)?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == Errno::WOULDBLOCK { StateDirError::InUse } else { StateDirError::NotLockable(error) }
        })?;
        if !is_in_memory(&directory) {
            warn!(event = "state_dir.not_in_memory", ?path, "tokens would be written to a disk: use a tmpfs");
        }
        if directory.metadata().is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
            warn!(
                event = "state_dir.world_readable",
                ?path,
                "others may list it, though not read the tokens"
            );
        }
        Ok(Self { path: path.to_owned(), _directory: directory, ends: Mutex::default() })
    }

    /// Writes a token down that ends after `ttl`. Where that fails, pglease goes on without.
    pub(super) fn keep(&self, token: &Token, ttl: Option<Duration>) {
        self.forget_ended();
        let name = name_of(token);
        if let Err(error) = self.write(&name, token.0.expose_secret().as_bytes()) {
            warn!(event = "state_dir.write_failed", path = ?self.path, %error, "a crash would leave this token behind");
        }
        self.note_end(name, ttl);
    }

    /// Notes that a token that is kept was renewed.
    pub(super) fn renewed(&self, token: &Token, ttl: Option<Duration>) {
        let name = name_of(token);
        if self.ends().contains_key(&name) {
            self.note_end(name, ttl);
        }
    }

    /// Removes a token that is of no use any more.
    pub(super) fn forget(&self, token: &Token) {
        let name = name_of(token);
        if self.ends().remove(&name).is_some() {
            self.remove(&name);
        }
    }

    /// The tokens of other processes. What is no token is removed, or left alone where it is not ours, and said.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let mut found = Vec::new();
        let (mut broken, mut foreign) = (0, 0);
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            match entry.file_name().into_string() {
                Ok(name) if name == LAST_START => {}
                Ok(name) if name.starts_with(PREFIX) => match read_token(&entry) {
                    Ok(Some(_)) if self.ends().contains_key(&name) => {}
                    Ok(Some(token)) => found.push(Leftover { token, name }),
                    Ok(None) => {
                        broken += 1;
                        self.remove(&name);
                    }
                    Err(_) => foreign += 1,
                },
                Ok(_) | Err(_) => foreign += 1,
            }
        }
        if broken > 0 {
            warn!(event = "state_dir.broken_files", path = ?self.path, files = broken, "removed");
        }
        if foreign > 0 {
            warn!(event = "state_dir.foreign_files", path = ?self.path, files = foreign, "left alone");
        }
        found
    }

    /// Removes what was left behind.
    pub(super) fn clear(&self, leftover: &Leftover) {
        self.remove(&leftover.name);
    }

    /// How long to wait before credentials are fetched, so that a process that crashes again and again makes few of
    /// them.
    pub(super) fn pause(&self) -> Duration {
        let text = fs::read_to_string(self.path.join(LAST_START)).unwrap_or_default();
        let last = text.trim().parse().map(Duration::from_millis);
        last.map_or(Duration::ZERO, |last| pause_after(last, unix_now()))
    }

    /// Notes that credentials are fetched from now on.
    pub(super) fn note_start(&self) {
        if let Err(error) = self.write(LAST_START, unix_now().as_millis().to_string().as_bytes()) {
            warn!(event = "state_dir.write_failed", path = ?self.path, %error, "the next start may come too soon");
        }
    }

    /// All of it or nothing, for this user alone.
    fn write(&self, name: &str, text: &[u8]) -> io::Result<()> {
        let draft = self.path.join(format!("{name}{DRAFT}"));
        // One that a crash has left there may belong to somebody else.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&draft, self.path.join(name))
    }

    fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.path.join(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(event = "state_dir.remove_failed", path = ?self.path, %error);
        }
    }

    /// Removes the tokens that have come to their end by themselves.
    fn forget_ended(&self) {
        let now = Instant::now();
        let is_over = |_: &String, end: &mut Option<Instant>| end.is_some_and(|end| end <= now);
        let ended: Vec<_> = self.ends().extract_if(is_over).collect();
        for (name, _) in ended {
            self.remove(&name);
        }
    }

    fn note_end(&self, name: String, ttl: Option<Duration>) {
        let end = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
        self.ends().insert(name, end);
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Instant>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file holds; `None` where that is no token, an error where it is none of ours.
fn read_token(entry: &DirEntry) -> io::Result<Option<Token>> {
    if !entry.file_type()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_CAPACITY));
    match File::open(entry.path())?.take(MAX_TOKEN_LEN).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(None),
        Err(error) => return Err(error),
    }
    let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    Ok(is_token.then(|| Token(SecretString::from(text.as_str()))))
}

/// Tells nothing of the token, which nobody can guess.
fn name_of(token: &Token) -> String {
    let hash = digest::digest(&digest::SHA256, token.0.expose_secret().as_bytes());
    let digits = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
    format!("{PREFIX}{}", digits.collect::<String>())
}

/// Linux, `statfs(2)`: the file system's type.
fn is_in_memory(directory: &File) -> bool {
    let kind = rustix::fs::fstatfs(directory).ok().and_then(|statfs| u64::try_from(statfs.f_type).ok());
    kind.is_some_and(|kind| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
}

/// What is left of the time between two starts. A start in the future is a clock that was set.
fn pause_after(last: Duration, now: Duration) -> Duration {
    let pause = last.saturating_add(BETWEEN_STARTS).saturating_sub(now);
    if pause > BETWEEN_STARTS { Duration::ZERO } else { pause }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A start that comes sooner after the last one is delayed.
const BETWEEN_STARTS: Duration = Duration::from_secs(10);

/// Of the name of a token's file.
const PREFIX: &str = "token-";

/// Ends the name of a file that is being written.
const DRAFT: &str = ".new";

/// Unix time, in milliseconds, at which credentials were last begun to be fetched.
const LAST_START: &str = "last-start";

/// Tokens of either server are about a hundred bytes long, but opaque.
const TOKEN_CAPACITY: usize = 1024;
const MAX_TOKEN_LEN: u64 = 16 * 1024;

/// Linux, `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn token(text: &str) -> Token {
        Token::from_text(text)
    }

    #[tokio::test]
    async fn token_is_there_for_the_next_process_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        for text in ["s.first", "s.second"] {
            dir.keep(&token(text), Some(Duration::from_mins(1)));
        }
        dir.forget(&token("s.first"));
        assert!(dir.leftovers().is_empty());
        drop(dir);

        let dir = StateDir::open(folder.path()).unwrap();
        let leftovers = dir.leftovers();
        assert!(matches!(&leftovers[..], [left] if left.token.text() == "s.second"), "{leftovers:?}");
        dir.clear(&leftovers[0]);
        assert!(names(folder.path()).is_empty());
    }

    #[tokio::test]
    async fn file_is_for_this_user_alone_and_its_name_tells_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        dir.keep(&token("s.canary"), None);
        let [name] = &names(folder.path())[..] else { panic!("one file") };
        assert!(name.starts_with("token-") && !name.contains("canary"), "{name}");
        let file = folder.path().join(name);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(file).unwrap(), "s.canary");
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_have_ended_are_removed_with_the_next_login() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        let secs = |secs| Some(Duration::from_secs(secs));
        dir.keep(&token("s.ends"), secs(10));
        dir.keep(&token("s.renewed"), secs(10));
        dir.keep(&token("s.endless"), None);
        tokio::time::advance(Duration::from_secs(9)).await;
        dir.renewed(&token("s.renewed"), secs(10));
        dir.renewed(&token("s.stranger"), secs(10));
        tokio::time::advance(Duration::from_secs(1)).await;
        dir.keep(&token("s.next"), secs(10));
        assert_eq!(names(folder.path()).len(), 3);
        dir.forget(&token("s.ends"));
        assert_eq!(names(folder.path()).len(), 3);
    }

    #[tokio::test]
    async fn what_is_no_token_is_removed_and_what_is_not_ours_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, text) in [
            ("token-1", &b"s.half-written"[..]),
            ("token-2.new", b"s.draft"),
            ("token-3", b""),
            ("token-4", b"two\nlines"),
            ("token-5", b"\xff\xfe"),
            ("notes.txt", b"somebody else's"),
            ("last-start", b"garbage"),
        ] {
            fs::write(path(name), text).unwrap();
        }
        fs::create_dir(path("token-directory")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", path("token-link")).unwrap();

        let dir = StateDir::open(folder.path()).unwrap();
        let mut found: Vec<_> = dir.leftovers().iter().map(|left| left.token.text().to_owned()).collect();
        found.sort();
        assert_eq!(found, ["s.draft", "s.half-written"]);
        assert_eq!(
            names(folder.path()),
            ["last-start", "notes.txt", "token-1", "token-2.new", "token-directory", "token-link"]
        );
        assert_eq!(dir.pause(), Duration::ZERO);
    }

    #[tokio::test]
    async fn one_process_has_it_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        assert!(matches!(StateDir::open(folder.path()), Err(StateDirError::InUse)));
        drop(first);
        StateDir::open(folder.path()).unwrap();
        let missing = folder.path().join("missing");
        assert!(matches!(StateDir::open(&missing), Err(StateDirError::Unopened(_))));
    }

    #[tokio::test]
    async fn write_that_fails_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::create_dir(&path).unwrap();
        let dir = StateDir::open(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        dir.keep(&token("s.1"), None);
        dir.note_start();
        dir.forget(&token("s.1"));
        assert!(dir.leftovers().is_empty());
    }

    #[test]
    fn start_comes_ten_seconds_after_the_last_or_at_once_where_the_clock_was_set() {
        let ms = Duration::from_millis;
        for (last, now, pause) in [
            (100_000, 100_000, 10_000),
            (100_000, 103_500, 6_500),
            (100_000, 110_000, 0),
            (100_000, 500_000, 0),
            (100_001, 100_000, 0),
            (900_000, 100_000, 0),
        ] {
            assert_eq!(pause_after(ms(last), ms(now)), ms(pause), "{last} {now}");
        }
        assert_eq!(pause_after(Duration::MAX, ms(0)), Duration::ZERO);
    }

    #[tokio::test]
    async fn start_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        assert_eq!(dir.pause(), Duration::ZERO);
        let begun = Instant::now();
        dir.note_start();
        let pause = dir.pause();
        let in_all = pause + begun.elapsed();
        assert!(pause <= Duration::from_secs(10) && in_all >= Duration::from_secs(9), "{pause:?}");
    }
}
