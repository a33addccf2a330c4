//! What is made of files, and made anew when they change.
//!
//! Whoever needs it looks, at most once a second for all of them. Looking, reading and making are done on a thread
//! that may block, one for each [`Reread`] and only as long as that takes: the bytes of sessions never wait for a disk,
//! and who needs the value waits for a slow one no longer than [`PATIENCE`].

#[cfg(test)]
mod tests;

use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs, iter};

use tokio::sync::watch;
use tokio::task;
use tokio::time::{self, Instant};

/// A value by the files of a second ago at most, or, where those are of no use, by the last ones that were.
pub(crate) struct Reread<T, E>(Arc<Inner<T, E>>);

struct Inner<T, E> {
    /// A directory stands for itself and all that is in it.
    paths: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    tell: Tell<T, E>,
    current: Mutex<Current<T>>,
    last_look: watch::Sender<Look>,
}

struct Current<T> {
    value: T,
    /// Of the files when `value` was made of them, or when that failed.
    stamps: Vec<Stamp>,
    failure: Option<Failure>,
}

/// There is a newer state of the files than that of the value.
struct Failure {
    causes: Vec<String>,
    /// Before files that have not changed are read again: what is wrong may be elsewhere.
    pause: Duration,
    again_at: Instant,
}

type Tell<T, E> = Box<dyn Fn(Result<&T, &E>) + Send + Sync>;

/// One look at the files.
#[derive(Clone, Copy, Debug)]
struct Look {
    began: Instant,
    is_over: bool,
}

/// What tells a file from the one that was there before: a renamed or replaced one has another inode, a rewritten one
/// another time or length. `None` where there is none.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T, E> Reread<T, E>
where
    T: Clone + Send + 'static,
    E: Error + 'static,
{
    /// Makes the first value, here and now. Later ones are made on another thread, where `tell` is called as well: with a
    /// new value, and with why there is none, then once for each change of the files or of the cause.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
        tell: impl Fn(Result<&T, &E>) + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(&paths);
        let current = Current { value: make()?, stamps, failure: None };
        Ok(Self(Arc::new(Inner {
            paths,
            make: Box::new(make),
            tell: Box::new(tell),
            current: Mutex::new(current),
            last_look: watch::Sender::new(Look { began: Instant::now(), is_over: true }),
        })))
    }

    /// The value to use now. Where the files have not been looked at for [`INTERVAL`] they are first, unless that
    /// takes longer than [`PATIENCE`]. Cancel safe: a look that has begun goes on.
    pub(crate) async fn get(&self) -> T {
        let mut looks = self.0.last_look.subscribe();
        if let Some(look) = UnderWay::begin(&self.0) {
            // Its end is awaited below, by whoever comes meanwhile.
            drop(task::spawn_blocking(move || look.0.look()));
        }
        let until = looks.borrow().began + PATIENCE;
        // Over or not, the value is what it is by now.
        let _ = time::timeout_at(until, looks.wait_for(|look| look.is_over)).await;
        self.value()
    }

    /// The value as the last look has left it.
    pub(crate) fn value(&self) -> T {
        self.0.lock().value.clone()
    }
}

impl<T, E> fmt::Debug for Reread<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread").field("paths", &self.0.paths).finish_non_exhaustive()
    }
}

/// A look for as long as it lives, however it ends.
struct UnderWay<T, E>(Arc<Inner<T, E>>);

impl<T, E> UnderWay<T, E> {
    /// `None` where it is too early for one, or another has not ended.
    fn begin(inner: &Arc<Inner<T, E>>) -> Option<Self> {
        let now = Instant::now();
        let begins = inner.last_look.send_if_modified(|look| {
            let is_due = look.is_over && now >= look.began + INTERVAL;
            if is_due {
                *look = Look { began: now, is_over: false };
            }
            is_due
        });
        begins.then(|| Self(Arc::clone(inner)))
    }
}

impl<T, E> Drop for UnderWay<T, E> {
    fn drop(&mut self) {
        self.0.last_look.send_modify(|look| look.is_over = true);
    }
}

impl<T, E> Inner<T, E>
where
    T: Clone,
    E: Error + 'static,
{
    /// Blocks for as long as the disk and `make` do.
    fn look(&self) {
        let now = stamps(&self.paths);
        if !self.lock().wants(&now) {
            return;
        }
        let (stamps, made) = self.make(now);
        match made {
            Ok(value) => {
                *self.lock() = Current { value: value.clone(), stamps, failure: None };
                (self.tell)(Ok(&value));
            }
            Err(error) => {
                if self.lock().fails(stamps, &error) {
                    (self.tell)(Err(&error));
                }
            }
        }
    }

    /// A value of files that were the same before and after, as far as that can be had: of a certificate and its key
    /// one may have been replaced when the other is read.
    fn make(&self, mut before: Vec<Stamp>) -> (Vec<Stamp>, Result<T, E>) {
        let mut tries = 1;
        loop {
            let made = (self.make)();
            let after = stamps(&self.paths);
            if after == before || tries == MAX_TRIES {
                return (before, made);
            }
            before = after;
            tries += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Current<T>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Current<T> {
    /// Whether files with these stamps are worth reading.
    fn wants(&self, stamps: &[Stamp]) -> bool {
        let is_due = |failure: &Failure| Instant::now() >= failure.again_at;
        stamps != self.stamps || self.failure.as_ref().is_some_and(is_due)
    }

    /// Takes note of files that are of no use; says whether that is news.
    fn fails(&mut self, stamps: Vec<Stamp>, error: &(dyn Error + 'static)) -> bool {
        let causes: Vec<_> =
            iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect();
        let before = self.failure.take().filter(|failure| stamps == self.stamps && failure.causes == causes);
        let pause = before.as_ref().map_or(INTERVAL, |failure| (failure.pause * 2).min(MAX_PAUSE));
        self.failure = Some(Failure { causes, pause, again_at: Instant::now() + pause });
        self.stamps = stamps;
        before.is_none()
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    let mut stamps = Vec::with_capacity(paths.len());
    for path in paths {
        stamps.push(stamp(path));
        if path.is_dir() {
            let entries = fs::read_dir(path).into_iter().flatten();
            let mut inside: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
            inside.sort();
            stamps.extend(inside.iter().map(|path| stamp(path)));
        }
    }
    stamps
}

/// Of what a link leads to, which is how the kubelet replaces the files of a volume: all at once, by one link.
fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// For a look, counted from its begin. Reading a few files takes a hundredth of it.
const PATIENCE: Duration = Duration::from_millis(250);
/// Before files that were of no use and have not changed are read again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Of reading files that change meanwhile, in one look.
const MAX_TRIES: usize = 3;
