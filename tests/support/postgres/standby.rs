//! A standby of a server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use rustix::process::Signal;

use super::super::PATIENCE;
use super::super::install::give;
use super::super::process::{Folder, Process, Spawn};
use super::Postgres;

impl Postgres {
    /// A hot standby that streams from this server, with the same certificate.
    pub(crate) async fn standby(&self) -> Self {
        let folder = Folder::create(self.uid);
        give(folder.path(), self.uid);
        let data = folder.path().join("data");
        let source = format!("host=127.0.0.1 port={} user=postgres password=postgres", self.port);
        let copy = Process::spawn(&Spawn {
            program: &self.bin.join("pg_basebackup"),
            arguments: &[
                format!("--dbname={source}"),
                format!("--pgdata={}", data.display()),
                "--write-recovery-conf".to_owned(),
                "--checkpoint=fast".to_owned(),
                "--no-sync".to_owned(),
            ],
            environment: &[("LC_ALL", "C")],
            folder: folder.path(),
            uid: self.uid,
            stop: Signal::KILL,
        });
        let status = copy.wait_exit(PATIENCE).await;
        assert!(status.success(), "pg_basebackup:\n{}", copy.lines().tail());
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        fs::copy(self.ca_file(), folder.path().join("ca.pem")).unwrap();

        let (process, bin) = (Mutex::default(), self.bin.clone());
        let mut standby = Self { process, folder, bin, uid: self.uid, port: 0, major: self.major };
        standby.launch_somewhere().await;
        standby
    }

    /// Makes a standby a primary.
    pub(crate) async fn promote(&self) {
        let promoted = self.query("postgres", "SELECT pg_promote(true, 600)").await;
        assert_eq!(promoted, [[Some("t".to_owned())]]);
    }
}
