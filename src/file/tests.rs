//! A file over a chain that is a channel; the disk is real.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use secrecy::SecretString;
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::*;
use crate::credential::{self, DerivedKeys, Granted, Issued, Publisher, Revocation, Standing};

pub(super) fn credential(generation: u64) -> Credential {
    Credential {
        user: format!("v-{generation}"),
        password: SecretString::from(format!("secret-{generation}")),
        lease: Some(LeaseId::from("lease")),
        generation: GenerationId(generation),
        keys: DerivedKeys::default(),
        granted: Granted { duration: Duration::from_hours(1), renewable: true },
    }
}

/// A file, its chain, and what it runs on.
struct Stage {
    directory: TempDir,
    publisher: Publisher,
    status: watch::Receiver<FileStatus>,
    there: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Stage {
    fn begin(change: impl FnOnce(&mut FileConfig, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::begin_in(directory, change)
    }

    fn begin_in(directory: TempDir, change: impl FnOnce(&mut FileConfig, &Path)) -> Self {
        Self::begin_on(directory, change, |place| Arc::new(place))
    }

    fn begin_on(
        directory: TempDir,
        change: impl FnOnce(&mut FileConfig, &Path),
        disk: impl FnOnce(Place) -> Arc<dyn Disk>,
    ) -> Self {
        let (publisher, source) = credential::channel();
        let (metrics, stop) = (Arc::new(Metrics::new()), CancellationToken::new());
        let mut config = FileConfig {
            path: directory.path().join("db"),
            vault_path: "database/creds/db-app".to_owned(),
            format: FormatConfig::UsernamePassword,
            mode: 0o640,
            upstream: None,
            target: None,
            keep: None,
            on_change: OnChange::Nothing,
            optional: false,
        };
        change(&mut config, directory.path());
        let mut file = CredentialFile::new(&config, &metrics).unwrap();
        let place = disk(Place::new(&config.path, config.mode));
        let Shape { format, target, .. } = Arc::into_inner(file.shape).unwrap();
        file.shape = Arc::new(Shape { format, target, place });
        file.clear().unwrap();
        let (status, there, mut running) = (file.status(), file.there(), JoinSet::new());
        running.spawn(file.run(source, stop.clone()));
        Self { directory, publisher, status, there, metrics, stop, running }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("db")
    }

    fn content(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    async fn until(&mut self, is_so: impl FnMut(&FileStatus) -> bool) -> FileStatus {
        self.status.wait_for(is_so).await.unwrap().clone()
    }

    /// Promotes it, and waits until it is in the file.
    async fn write(&mut self, generation: u64) -> Issued {
        let issued = self.publisher.promote(credential(generation));
        let name = format!("g{generation}");
        self.until(|status| status.generation.as_ref() == Some(&name)).await;
        issued
    }

    async fn end(mut self) -> TempDir {
        self.stop.cancel();
        self.running.join_next().await.unwrap().unwrap();
        self.directory
    }
}

/// What says `metric` of the file `db`.
fn figure(metrics: &Metrics, metric: &str) -> String {
    let all = metrics.encode().unwrap();
    let line =
        all.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("{metric} in {all}"));
    line.rsplit_once(' ').unwrap().1.to_owned()
}

#[tokio::test]
async fn file_follows_its_chain_and_goes_with_it() {
    let mut stage = Stage::begin(|_, _| {});
    task::yield_now().await;
    assert!(!stage.path().exists() && !*stage.there.borrow());

    let first = stage.write(1).await;
    assert_eq!(stage.content(), "password: secret-1\nusername: v-1\n");
    assert!(*stage.there.borrow());
    assert_eq!(fs::metadata(stage.path()).unwrap().permissions().mode() & 0o777, 0o640);

    let second = stage.write(2).await;
    assert_eq!(stage.content(), "password: secret-2\nusername: v-2\n");
    let status = stage.until(|status| !status.kept.is_empty()).await;
    assert_eq!(status.kept, [KeptStatus { generation: "g1".to_owned(), until_at: None }]);
    assert_eq!((first.files(), second.files(), first.sessions()), (1, 1, 0));

    first.set_standing(Standing::Revoked(Revocation::ByVault));
    stage.until(|status| status.kept.is_empty()).await;
    assert_eq!(first.files(), 0);
    let directory = stage.end().await;
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    assert_eq!(second.files(), 0);
}

#[tokio::test]
async fn what_was_before_is_let_go_after_keep() {
    let mut stage = Stage::begin(|config, _| config.keep = Some(Duration::from_millis(1)));
    let first = stage.write(1).await;
    let _second = stage.write(2).await;
    first.holds().wait_for(|holds| *holds == 0).await.unwrap();
    let _directory = stage.end().await;
}

#[tokio::test]
async fn old_file_stays_until_the_new_one_can_be_written_and_its_credential_with_it() {
    let mut stage = Stage::begin(|config, _| config.keep = Some(Duration::ZERO));
    let first = stage.write(1).await;
    // So that the draft cannot be made.
    let draft = stage.directory.path().join(".db.pglease");
    fs::create_dir(&draft).unwrap();
    let second = stage.publisher.promote(credential(2));
    let status = stage.until(|status| status.state == FileState::Stale).await;
    assert_eq!(status.generation.as_deref(), Some("g1"));
    assert!(status.last_error.unwrap().says.contains(".db.pglease"));
    assert_eq!(stage.content(), "password: secret-1\nusername: v-1\n");
    assert_eq!((first.files(), second.files()), (1, 1));
    assert_eq!(figure(&stage.metrics, "pglease_file_stale{"), "1");

    // One that was never in the file is not kept.
    let _third = stage.publisher.promote(credential(3));
    second.holds().wait_for(|holds| *holds == 0).await.unwrap();
    fs::remove_dir(&draft).unwrap();
    stage.until(|status| status.state == FileState::Current).await;
    assert_eq!(stage.content(), "password: secret-3\nusername: v-3\n");
    first.holds().wait_for(|holds| *holds == 0).await.unwrap();
    assert_eq!(figure(&stage.metrics, "pglease_file_stale{"), "0");
    let _directory = stage.end().await;
}

/// A disk that begins a write and ends it when it is told to.
#[derive(Debug)]
struct SlowDisk {
    place: Place,
    begun: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Disk for SlowDisk {
    fn write(&self, content: &[u8]) -> Result<(), PlaceError> {
        self.begun.blocking_send(()).unwrap();
        self.go_on.lock().unwrap().blocking_recv();
        self.place.write(content)
    }

    fn remove(&self) -> Result<bool, PlaceError> {
        self.place.remove()
    }

    fn end(&self) -> Result<bool, PlaceError> {
        self.place.end()
    }
}

#[tokio::test]
async fn write_that_outlasts_the_end_puts_nothing_back() {
    let ((begun, mut has_begun), (go_on, go_on_rx)) = (mpsc::channel(1), mpsc::channel(2));
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(&directory.path().join("db"), 0o640);
    let disk = Arc::new(SlowDisk { place, begun, go_on: Mutex::new(go_on_rx) });
    let write = |content: &'static [u8]| {
        let disk = Arc::clone(&disk);
        task::spawn_blocking(move || disk.write(content))
    };
    go_on.send(()).await.unwrap();
    write(b"one").await.unwrap().unwrap();
    has_begun.recv().await.unwrap();

    let late = write(b"two");
    has_begun.recv().await.unwrap();
    assert!(disk.end().unwrap());
    go_on.send(()).await.unwrap();
    assert!(matches!(late.await.unwrap(), Err(PlaceError::Ended { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// A file on a disk that says when a write has begun, and ends it when it is told to.
fn on_slow_disk() -> (Stage, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((begun, has_begun), (go_on, go_on_rx)) = (mpsc::channel(1), mpsc::channel(2));
    let directory = tempfile::tempdir().unwrap();
    let slow = |place| Arc::new(SlowDisk { place, begun, go_on: Mutex::new(go_on_rx) }) as Arc<_>;
    (Stage::begin_on(directory, |_, _| {}, slow), has_begun, go_on)
}

#[tokio::test]
async fn one_that_an_operator_has_revoked_is_held_until_the_next_is_in_the_file() {
    let (mut stage, mut has_begun, go_on) = on_slow_disk();
    go_on.send(()).await.unwrap();
    let first = stage.write(1).await;
    has_begun.recv().await.unwrap();

    let _second = stage.publisher.promote(credential(2));
    has_begun.recv().await.unwrap();
    // The disk may take what time it likes.
    time::pause();
    first.set_standing(Standing::Revoked(Revocation::ByOperator));
    go_on.send(()).await.unwrap();
    first.holds().wait_for(|holds| *holds == 0).await.unwrap();
    time::resume();
    assert_eq!(stage.content(), "password: secret-2\nusername: v-2\n");
    let _directory = stage.end().await;
}

#[tokio::test]
async fn revoked_credential_in_the_file_is_not_called_current() {
    let mut stage = Stage::begin(|_, _| {});
    let first = stage.write(1).await;
    first.set_standing(Standing::Revoked(Revocation::ByVault));
    let status = stage.until(|status| status.state == FileState::Stale).await;
    assert_eq!(status.last_error.unwrap().says, "its credential was revoked before its time");
    let _second = stage.write(2).await;
    assert_eq!(stage.status.borrow().state, FileState::Current);
    let _directory = stage.end().await;
}

#[tokio::test]
async fn write_that_does_not_end_raises_an_alarm_until_it_does() {
    let (mut stage, mut has_begun, go_on) = on_slow_disk();
    go_on.send(()).await.unwrap();
    let first = stage.write(1).await;
    has_begun.recv().await.unwrap();

    let second = stage.publisher.promote(credential(2));
    has_begun.recv().await.unwrap();
    assert_eq!(figure(&stage.metrics, "pglease_file_stale{"), "0");
    time::pause();
    time::advance(MAX_WRITE).await;
    time::resume();
    let status = stage.until(|status| status.state == FileState::Stale).await;
    assert_eq!(status.last_error.unwrap().says, "the disk has not answered for 10s");
    assert_eq!(figure(&stage.metrics, "pglease_file_stale{"), "1");
    assert_eq!(stage.content(), "password: secret-1\nusername: v-1\n");
    assert_eq!((first.files(), second.files()), (1, 1));

    go_on.send(()).await.unwrap();
    stage.until(|status| status.state == FileState::Current).await;
    assert_eq!(stage.content(), "password: secret-2\nusername: v-2\n");
    assert_eq!(figure(&stage.metrics, "pglease_file_stale{"), "0");
    let _directory = stage.end().await;
}

#[tokio::test]
async fn left_over_file_is_removed_and_its_reader_told_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("db"), "old").unwrap();
    let told = directory.path().join("told");
    let script = format!("cat \"$PGLEASE_FILE_PATH\" >{}", told.display());
    let mut stage = Stage::begin_in(directory, |config, _| {
        config.on_change = OnChange::Command {
            program: "sh".to_owned(),
            arguments: vec!["-c".to_owned(), script],
            timeout: Duration::from_mins(5),
        };
    });
    assert!(!stage.path().exists());
    let _issued = stage.write(1).await;
    stage.until(|status| status.on_change.as_ref().is_some_and(|notice| notice.last_told_at.is_some())).await;
    assert_eq!(fs::read_to_string(told).unwrap(), stage.content());
    let _directory = stage.end().await;
}

#[tokio::test]
async fn reader_is_told_of_changes_until_it_hears() {
    let mut stage = Stage::begin(|config, directory| {
        let ready = directory.join("ready");
        config.on_change = OnChange::Command {
            program: "test".to_owned(),
            arguments: vec!["-e".to_owned(), ready.display().to_string()],
            timeout: Duration::from_mins(5),
        };
    });
    let _first = stage.write(1).await;
    let _second = stage.write(2).await;
    let untold =
        |status: &FileStatus| status.on_change.as_ref().is_some_and(|notice| notice.last_error.is_some());
    let status = stage.until(untold).await;
    assert!(status.on_change.unwrap().last_error.unwrap().says.contains("exit status: 1"));
    assert_eq!(figure(&stage.metrics, "pglease_file_untold{"), "1");
    // Nothing waits for it.
    let _third = stage.write(3).await;
    fs::write(stage.directory.path().join("ready"), "").unwrap();
    stage.until(|status| status.on_change.as_ref().is_some_and(|notice| notice.told)).await;
    assert_eq!(figure(&stage.metrics, "pglease_file_untold{"), "0");
    let _directory = stage.end().await;
}

#[tokio::test]
async fn what_a_command_says_is_shown_without_a_password_that_the_file_has_or_had() {
    let mut stage = Stage::begin(|config, _| {
        let script = "cat \"$PGLEASE_FILE_PATH\"; echo before: secret-1, next: secret-2; exit 1";
        config.on_change = OnChange::Command {
            program: "sh".to_owned(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            timeout: Duration::from_mins(5),
        };
    });
    let _first = stage.write(1).await;
    let _second = stage.write(2).await;
    let says = |status: &FileStatus| {
        Some(status.on_change.as_ref()?.last_error.as_ref()?.says.rsplit_once("it says: ")?.1.to_owned())
    };
    let status = stage.until(|status| says(status).is_some()).await;
    assert_eq!(says(&status).unwrap(), "password: *** username: v-2 before: ***, next: ***");
    let _directory = stage.end().await;
}

#[test]
fn template_that_is_wrong_says_where_and_of_which_file() {
    let mut config = FileConfig {
        path: "/vault/secrets/db".into(),
        vault_path: "database/creds/db-app".to_owned(),
        format: FormatConfig::Template(TemplateSource::Inline("a\n{{ oops }}".to_owned())),
        mode: 0o640,
        upstream: None,
        target: None,
        keep: None,
        on_change: OnChange::Nothing,
        optional: false,
    };
    let said = Causes(&format(&config).unwrap_err()).to_string();
    assert!(said.starts_with("file.template of \"/vault/secrets/db\": line 2, column 4: "), "{said}");
    config.format = FormatConfig::Template(TemplateSource::File("/nowhere/t".into()));
    let said = format(&config).unwrap_err().to_string();
    assert!(said.starts_with("file.template_file = \"/nowhere/t\""), "{said}");
}
