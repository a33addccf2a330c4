//! The file itself: written whole or not at all, and removed. Blocks on the disk.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Where the content of a file goes; a fake in tests. Blocks.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Puts `content` there in place of what is. A reader finds the one or the other, whole. On an error what was there
    /// is there still.
    fn write(&self, content: &[u8]) -> Result<(), PlaceError>;

    /// Removes it; `false` where there is none.
    fn remove(&self) -> Result<bool, PlaceError>;

    /// Removes it for good: a write that is under way, or comes later, puts nothing there.
    fn end(&self) -> Result<bool, PlaceError>;
}

/// Where a file is, and who may read it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// In the same directory, so that a rename is one step for whoever reads.
    draft: PathBuf,
    mode: u32,
    /// Whether it was removed for good; held while a file is moved to its place.
    has_ended: Mutex<bool>,
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("making {path:?}")]
    Make { path: PathBuf, source: io::Error },
    #[error("writing {path:?}")]
    Write { path: PathBuf, source: io::Error },
    #[error("moving it to {path:?}")]
    Move { path: PathBuf, source: io::Error },
    #[error("{path:?} was removed for good")]
    Ended { path: PathBuf },
    #[error("removing {path:?}")]
    Remove { path: PathBuf, source: io::Error },
}

impl Place {
    pub(super) fn new(path: &Path, mode: u32) -> Self {
        let mut draft = OsString::from(".");
        draft.push(path.file_name().unwrap_or_default());
        draft.push(DRAFT);
        Self { path: path.to_owned(), draft: path.with_file_name(draft), mode, has_ended: Mutex::new(false) }
    }

    fn write_draft(&self, content: &[u8]) -> Result<(), PlaceError> {
        let make = |source| PlaceError::Make { path: self.draft.clone(), source };
        let write = |source| PlaceError::Write { path: self.draft.clone(), source };
        // A draft that a crash has left.
        remove(&self.draft)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(NOBODY_ELSE)
            .open(&self.draft)
            .map_err(make)?;
        // Before there is anything to read, and whatever the umask is.
        file.set_permissions(Permissions::from_mode(self.mode)).map_err(make)?;
        file.write_all(content).map_err(write)?;
        file.sync_all().map_err(write)?;
        drop(file);
        self.publish()?;
        self.sync_directory();
        Ok(())
    }

    /// A disk may have taken so long that the file is gone for good, and its credential revoked.
    fn publish(&self) -> Result<(), PlaceError> {
        let has_ended = self.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_ended {
            return Err(PlaceError::Ended { path: self.path.clone() });
        }
        fs::rename(&self.draft, &self.path)
            .map_err(|source| PlaceError::Move { path: self.path.clone(), source })
    }

    /// Makes the rename last, where that can be had: readers have the new file whatever becomes of it, and after a crash
    /// of the machine neither is of any use.
    fn sync_directory(&self) {
        let directory = self.path.parent().map(File::open);
        let _ = directory.map(|directory| directory.and_then(|directory| directory.sync_all()));
    }
}

impl Disk for Place {
    fn write(&self, content: &[u8]) -> Result<(), PlaceError> {
        let written = self.write_draft(content);
        if written.is_err() {
            // Half of a secret is of no use to anybody.
            let _ = fs::remove_file(&self.draft);
        }
        written
    }

    /// Removes it, and what is left of a draft; `false` where there is none. What is no file is left alone.
    fn remove(&self) -> Result<bool, PlaceError> {
        remove(&self.draft)?;
        remove(&self.path)
    }

    fn end(&self) -> Result<bool, PlaceError> {
        *self.has_ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.remove()
    }
}

fn remove(path: &Path) -> Result<bool, PlaceError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => fs::remove_file(path).map(|()| true),
        Ok(_) => Err(io::Error::other("not a regular file")),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.map_err(|source| PlaceError::Remove { path: path.to_owned(), source }),
    }
}

/// Ends the name of a draft.
const DRAFT: &str = ".pglease";
/// Until it has its own mode.
const NOBODY_ELSE: u32 = 0o600;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn place(directory: &Path, mode: u32) -> Place {
        Place::new(&directory.join("db"), mode)
    }

    #[test]
    fn file_is_replaced_as_a_whole_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), 0o640);
        place.write(b"one").unwrap();
        let first = File::open(&place.path).unwrap();
        place.write(b"two").unwrap();

        assert_eq!(fs::read(&place.path).unwrap(), b"two");
        assert_eq!(io::read_to_string(first).unwrap(), "one");
        assert_eq!(fs::metadata(&place.path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(place.remove().unwrap());
        assert!(!place.remove().unwrap());
    }

    #[test]
    fn what_a_crash_has_left_is_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), 0o600);
        fs::write(&place.draft, "half").unwrap();
        place.write(b"whole").unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), b"whole");
        fs::write(&place.draft, "half").unwrap();
        assert!(place.remove().unwrap());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_file_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), 0o600);
        fs::create_dir(&place.path).unwrap();
        assert!(matches!(place.write(b"x"), Err(PlaceError::Move { .. })));
        assert!(matches!(place.remove(), Err(PlaceError::Remove { .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn old_file_stays_where_the_new_one_cannot_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path(), 0o600);
        place.write(b"one").unwrap();
        // Neither removed nor made anew: as where the directory is not ours any more.
        fs::create_dir(&place.draft).unwrap();
        assert!(place.write(b"two").is_err());
        assert_eq!(fs::read(&place.path).unwrap(), b"one");
    }
}
