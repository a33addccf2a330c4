//! The programs of the servers in `target/servers`, fetched by `fetch.py` where they are not there yet.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Where things are.
pub(crate) struct Install {
    /// The program `bao`.
    pub(crate) openbao: PathBuf,
    /// A folder with `bin`, `lib`, `share`.
    pub(crate) postgres: PathBuf,
    /// A data folder as initdb leaves it, to be copied. Its superuser is `postgres`, with that password.
    pub(crate) cluster: PathBuf,
    /// Who PostgreSQL runs as, where that is not us: it refuses to run as root.
    pub(crate) postgres_uid: Option<u32>,
}

impl Install {
    /// What there is for this major of PostgreSQL. Takes a while the first time, and says so on stderr.
    pub(crate) fn of(major: u16) -> Self {
        let mut fetch = Command::new("python3");
        fetch.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/fetch.py")).arg(major.to_string());
        fetch.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = fetch.output().expect("python3, to run tests/support/fetch.py");
        assert!(output.status.success(), "the servers of the tests are not there: see above");

        let places: Value = serde_json::from_slice(&output.stdout).expect("JSON of fetch.py");
        let path = |pointer: &str| PathBuf::from(places.pointer(pointer).unwrap().as_str().unwrap());
        Self {
            openbao: path("/openbao"),
            postgres: path(&format!("/postgresql/{major}/install")),
            cluster: path(&format!("/postgresql/{major}/cluster")),
            postgres_uid: places["postgresql_uid"].as_u64().map(|uid| u32::try_from(uid).unwrap()),
        }
    }
}

/// Copies a folder with everything in it, modes included, and gives the copy to `owner`.
pub(crate) fn copy_folder(from: &Path, to: &Path, owner: Option<u32>) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_folder(&from, &to, owner);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
            give(&to, owner);
        }
    }
    let mode = fs::metadata(from).unwrap().mode();
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
    give(to, owner);
}

/// Makes `path` belong to `owner`.
pub(crate) fn give(path: &Path, owner: Option<u32>) {
    if owner.is_some() {
        chown(path, owner, owner).unwrap();
    }
}
