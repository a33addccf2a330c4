//! How a file stands, for `/status`: nothing secret.

use serde::Serialize;

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct FileStatus {
    pub(crate) path: String,
    /// Names the chain.
    pub(crate) vault_path: String,
    pub(crate) format: &'static str,
    pub(crate) optional: bool,
    pub(crate) state: FileState,
    /// The one in it.
    pub(crate) generation: Option<String>,
    /// Unix time, as all that ends in `at`.
    pub(crate) written_at: Option<u64>,
    /// Those that were in it, and are kept alive for its readers; the oldest first.
    pub(crate) kept: Vec<KeptStatus>,
    /// What was wrong last, whether or not it has been made good since.
    pub(crate) last_error: Option<FileError>,
    /// None where nobody is told of changes.
    pub(crate) on_change: Option<NoticeStatus>,
}

/// What a reader finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileState {
    /// Nothing: there has been no credential yet.
    #[default]
    Waiting,
    /// The credential that serves.
    Current,
    /// An older one, or none, as the one that serves cannot be written; or one that was revoked.
    Stale,
    /// Nothing: pglease ends.
    Removed,
}

impl FileState {
    /// The word in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Removed => "removed",
        }
    }
}

/// One that was in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KeptStatus {
    pub(crate) generation: String,
    /// When it is let go by `keep`; none where it is kept to the end of its lease.
    pub(crate) until_at: Option<u64>,
}

/// What failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FileError {
    /// As in the log.
    pub(crate) says: String,
    pub(crate) at: u64,
}

/// How its reader was told of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct NoticeStatus {
    /// `signal`, `http` or `command`.
    pub(crate) kind: &'static str,
    /// The reader knows of what is in the file, as far as that can be told.
    pub(crate) told: bool,
    pub(crate) last_told_at: Option<u64>,
    /// Whether or not it has been made good since.
    pub(crate) last_error: Option<FileError>,
}
