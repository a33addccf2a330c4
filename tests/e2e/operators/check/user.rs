//! Checks by a user who is bound by the modes of files, as root is not.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::Patient;
use crate::BINARY;
use crate::check::{Checked, run_by};
use crate::support::install::Install;
use crate::support::postgres::PostgresOptions;
use crate::support::process::{Folder, copy_program};

/// A user, and what he may read.
pub(super) struct User {
    /// Where it is not ours.
    pub(super) uid: Option<u32>,
    folder: Folder,
}

impl User {
    /// The one that PostgreSQL runs as: ours, or where we are root that of nobody.
    pub(super) fn of_postgresql() -> Self {
        let uid = Install::of(PostgresOptions::default().major).postgres_uid;
        let folder = Folder::create(uid);
        copy_program(Path::new(BINARY), &folder.path().join("pglease"));
        Self { uid, folder }
    }

    /// A check of these settings, which say where the pod's token is.
    pub(super) async fn check(&self, patient: &Patient<'_>, settings: &str) -> Checked {
        let [program, file, jwt] =
            ["pglease", "pglease.toml", "token"].map(|name| self.folder.path().join(name));
        let of_world = patient.world.jwt_file();
        fs::copy(&of_world, &jwt).unwrap();
        fs::write(&file, settings.replace(of_world.to_str().unwrap(), jwt.to_str().unwrap())).unwrap();
        for readable in [&jwt, &file] {
            fs::set_permissions(readable, fs::Permissions::from_mode(0o644)).unwrap();
        }
        Checked::of(&run_by(self.command(program).into(), &file, &["--json"]).await)
    }

    /// Run by this user.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        command
    }
}
