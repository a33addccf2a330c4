//! What is made of files, and made anew when they change. Runs no task: whoever needs it looks, which costs one
//! `stat` a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A value by the files of now, or, where those are of no use, by the last ones that were.
#[derive(Debug)]
pub(crate) struct Reread<T> {
    current: Mutex<Current<T>>,
}

#[derive(Debug)]
struct Current<T> {
    value: T,
    stamps: Vec<Stamp>,
}

/// What there is to be said of the files since they were looked at last.
#[derive(Debug)]
pub(crate) enum Change<E> {
    None,
    Reread,
    /// The value is still that of the files before. Said once for each change.
    Failed(E),
}

/// What tells a file from the one that was there before: a renamed or replaced one has another inode, a rewritten one
/// another time or length. `None` where there is none.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T: Clone> Reread<T> {
    /// Makes the first value. A directory among `paths` stands for itself and all that is in it.
    pub(crate) fn new<E>(paths: &[PathBuf], make: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = stamps(paths);
        Ok(Self { current: Mutex::new(Current { value: make()?, stamps }) })
    }

    /// The value to use now, made anew where one of `paths` has changed. Blocks for as long as `make` does.
    pub(crate) fn get<E>(&self, paths: &[PathBuf], make: impl FnOnce() -> Result<T, E>) -> (T, Change<E>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(paths);
        let mut change = Change::None;
        if stamps != current.stamps {
            current.stamps = stamps;
            change = match make() {
                Ok(value) => {
                    current.value = value;
                    Change::Reread
                }
                Err(error) => Change::Failed(error),
            };
        }
        (current.value.clone(), change)
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

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_of_any_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("ca")).unwrap();
        let paths = [path("ca"), path("cert"), path("key")];
        let mut seen = stamps(&paths);
        let mut is_new = || {
            let now = stamps(&paths);
            std::mem::replace(&mut seen, now.clone()) != now
        };
        assert!(!is_new());
        for name in ["cert", "key", "ca/one.pem"] {
            fs::write(path(name), "a").unwrap();
            assert!(is_new(), "{name} is there");
            fs::write(path("next"), "b").unwrap();
            fs::rename(path("next"), path(name)).unwrap();
            assert!(is_new(), "{name} is replaced");
            fs::write(path(name), "longer").unwrap();
            assert!(is_new(), "{name} is rewritten");
        }
        fs::remove_file(path("ca/one.pem")).unwrap();
        assert!(is_new());
    }

    #[test]
    fn broken_file_is_said_once_and_leaves_the_value_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("number")];
        let read = || fs::read_to_string(&paths[0]).unwrap().parse::<u32>();
        fs::write(&paths[0], "1").unwrap();
        let number = Reread::new(&paths, read).unwrap();

        assert!(matches!(number.get(&paths, read), (1, Change::None)));
        fs::write(&paths[0], "none").unwrap();
        assert!(matches!(number.get(&paths, read), (1, Change::Failed(_))));
        assert!(matches!(number.get(&paths, read), (1, Change::None)));
        fs::write(&paths[0], "21").unwrap();
        assert!(matches!(number.get(&paths, read), (21, Change::Reread)));

        fs::write(&paths[0], "none").unwrap();
        assert!(Reread::new(&paths, read).is_err());
    }
}
