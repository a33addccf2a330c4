//! Credential files: for programs that want the credential itself.
//!
//! One task for each `[[file]]`, on the control thread, from the start to the end of the process. A credential that is
//! promoted is rendered (`render`) and put in place (`place`); the one before it is kept alive for readers that have
//! not looked yet (`keeping`); the reader is told by a task of its own (`notice`). At the end the file is removed, after
//! which the chain may revoke.

mod keeping;
mod notice;
mod place;
mod redact;
mod status;

use std::fs;
use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use crate::backoff::Backoff;
use crate::config::{FileConfig, FormatConfig, OnChange, TargetConfig, TemplateSource};
use crate::credential::{Credential, CredentialSource, Hold, SourceClosed, Standing};
use crate::ids::{GenerationId, LeaseId};
use crate::render::{Format, RenderError, Secret, Target, Template, TemplateError};
use crate::telemetry::{Causes, FileLabels, FileResultLabels, Metrics, in_words, unix_now};

use keeping::{Keeping, at};
use notice::{News, Notifier};
use place::{Disk, Place, PlaceError};
use redact::Passwords;
use status::KeptStatus;
pub(crate) use status::{FileError, FileState, FileStatus, NoticeStatus};

/// Why a file cannot be had as settings want it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileSetupError {
    #[error("file.template of {path:?}")]
    Template { path: PathBuf, source: TemplateError },
    #[error("file.template_file = {template:?} of {path:?}")]
    TemplateFile { path: PathBuf, template: PathBuf, source: TemplateError },
    #[error("file.template_file = {template:?} of {path:?} cannot be read; name a file of text")]
    Unreadable { path: PathBuf, template: PathBuf, source: io::Error },
    #[error("file.path = {path:?}: what is there from before cannot be removed; remove it, or name another")]
    LeftOver { path: PathBuf, source: PlaceError },
}

/// What to make of a credential: the template is read and understood.
pub(crate) fn format(config: &FileConfig) -> Result<Format, FileSetupError> {
    let path = || config.path.clone();
    let parse = |text: &str| Template::parse(text, &config.vault_path);
    Ok(match &config.format {
        FormatConfig::UsernamePassword => Format::UsernamePassword,
        FormatConfig::Json => Format::Json,
        FormatConfig::Env => Format::Env,
        FormatConfig::Pgpass => Format::Pgpass,
        FormatConfig::PgService => Format::PgService,
        FormatConfig::Uri => Format::Uri,
        FormatConfig::Properties => Format::Properties,
        FormatConfig::Template(TemplateSource::Inline(text)) => {
            Format::Template(parse(text).map_err(|source| FileSetupError::Template { path: path(), source })?)
        }
        FormatConfig::Template(TemplateSource::File(template)) => {
            let unreadable =
                |source| FileSetupError::Unreadable { path: path(), template: template.clone(), source };
            let text = fs::read_to_string(template).map_err(unreadable)?;
            let wrong =
                |source| FileSetupError::TemplateFile { path: path(), template: template.clone(), source };
            Format::Template(parse(&text).map_err(wrong)?)
        }
    })
}

/// A file, and all that its task has.
#[derive(Debug)]
pub(crate) struct CredentialFile {
    config: FileConfig,
    path: Arc<str>,
    shape: Arc<Shape>,
    metrics: Arc<Metrics>,
    status: watch::Sender<FileStatus>,
    news: watch::Sender<Option<News>>,
    /// Whether there has been a credential in the file.
    there: watch::Sender<bool>,
    /// The newest that was promoted.
    seen: Option<GenerationId>,
    /// It, where the file does not have it yet.
    wanted: Option<Hold>,
    /// What the file has, where that is the newest.
    inside: Option<Hold>,
    /// Whether it was revoked, and that was said.
    is_revoked: bool,
    /// What the file had before.
    keeping: Keeping,
    /// Of all of these.
    passwords: Passwords,
    writing: Writing,
    backoff: Backoff,
    /// A reader may be there that has read what a process before this one wrote.
    has_reader: bool,
}

/// What is written, and where.
#[derive(Debug)]
struct Shape {
    format: Format,
    target: Option<TargetConfig>,
    place: Arc<dyn Disk>,
}

/// Where the file is on its way to what it should be.
#[derive(Debug)]
enum Writing {
    Idle,
    UnderWay {
        /// The one that is written.
        hold: Hold,
        task: JoinSet<Result<(), WriteError>>,
        /// When it takes too long; `None` where that has been said.
        late_from: Option<Instant>,
    },
    /// It failed, and is tried again.
    Waiting {
        until: Instant,
    },
}

/// Why the file is not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("a bug of pglease")]
    Fault,
}

/// What brings the file's task back to work.
enum Wake {
    Stop,
    Promoted(Result<Hold, SourceClosed>),
    Written(Result<(), WriteError>),
    Late,
    TryAgain,
    Released(GenerationId, keeping::Release),
    /// What is in the file was revoked.
    Revoked,
}

impl CredentialFile {
    /// One that is not there yet. Blocks on its template.
    pub(crate) fn new(config: &FileConfig, metrics: &Arc<Metrics>) -> Result<Self, FileSetupError> {
        let format = format(config)?;
        let place = Arc::new(Place::new(&config.path, config.mode));
        let path: Arc<str> = config.path.display().to_string().into();
        metrics.files.stale.get_or_create(&FileLabels { path: path.to_string() }).set(0);
        let on_change = notice::kind(&config.on_change).map(|kind| NoticeStatus {
            kind,
            told: true,
            ..NoticeStatus::default()
        });
        let status = FileStatus {
            path: path.to_string(),
            vault_path: config.vault_path.clone(),
            format: config.format.as_str(),
            optional: config.optional,
            on_change,
            ..FileStatus::default()
        };
        Ok(Self {
            path,
            shape: Arc::new(Shape { format, target: config.target.clone(), place }),
            metrics: Arc::clone(metrics),
            status: watch::Sender::new(status),
            news: watch::Sender::new(None),
            seen: None,
            wanted: None,
            inside: None,
            is_revoked: false,
            keeping: Keeping::default(),
            passwords: Passwords::default(),
            writing: Writing::Idle,
            there: watch::Sender::new(false),
            backoff: Backoff::default(),
            has_reader: false,
            config: config.clone(),
        })
    }

    /// Removes what a process before this one has left: nobody keeps it alive. Blocks on the disk.
    pub(crate) fn clear(&mut self) -> Result<(), FileSetupError> {
        let removed = self.shape.place.remove();
        self.has_reader =
            removed.map_err(|source| FileSetupError::LeftOver { path: self.config.path.clone(), source })?;
        if self.has_reader {
            warn!(event = "file.left_over", path = &*self.path, "of a process that could not remove it");
        }
        Ok(())
    }

    /// How it stands, as it changes.
    pub(crate) fn status(&self) -> watch::Receiver<FileStatus> {
        self.status.subscribe()
    }

    /// Whether there has been a credential in it.
    pub(crate) fn there(&self) -> watch::Receiver<bool> {
        self.there.subscribe()
    }

    /// Keeps the file until `stop`, then removes it. Ends in no other way; may be dropped at any point, which leaves
    /// it there.
    pub(crate) async fn run(mut self, source: CredentialSource, stop: CancellationToken) {
        let mut notifier = JoinSet::new();
        if self.config.on_change != OnChange::Nothing {
            let (path, metrics) = (Arc::clone(&self.path), Arc::clone(&self.metrics));
            let (how, passwords) = (self.config.on_change.clone(), self.passwords.clone());
            let (news, status) = (self.news.subscribe(), self.status.clone());
            notifier.spawn(Notifier { path, how, passwords, news, status, metrics }.run());
        }
        loop {
            match self.wake(&source, &stop).await {
                Wake::Stop => break,
                Wake::Promoted(Ok(hold)) => self.on_promoted(hold),
                // The chain has ended: nothing newer will come.
                Wake::Promoted(Err(SourceClosed)) => {
                    stop.cancelled().await;
                    break;
                }
                Wake::Written(result) => self.on_written(result),
                Wake::Late => self.on_late(),
                Wake::TryAgain => self.write(),
                Wake::Revoked => self.on_revoked(),
                Wake::Released(generation, why) => {
                    info!(event = "file.released", path = &*self.path, %generation, reason = why.as_str());
                    self.publish_kept();
                }
            }
        }
        drop(notifier);
        self.remove().await;
    }

    /// Cancel safe.
    async fn wake(&mut self, source: &CredentialSource, stop: &CancellationToken) -> Wake {
        let inside = self.inside.as_ref().filter(|_| !self.is_revoked);
        let writing = &mut self.writing;
        let written = async {
            match writing {
                Writing::Idle => pending().await,
                Writing::Waiting { until } => {
                    time::sleep_until(*until).await;
                    Wake::TryAgain
                }
                Writing::UnderWay { task, late_from, .. } => tokio::select! {
                    biased;
                    written = task.join_next() => match written {
                        Some(Ok(result)) => Wake::Written(result),
                        Some(Err(_)) | None => Wake::Written(Err(WriteError::Fault)),
                    },
                    () = at(*late_from) => Wake::Late,
                },
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            wake = written => wake,
            promoted = source.next(self.seen) => Wake::Promoted(promoted),
            Some((generation, why)) = self.keeping.next() => Wake::Released(generation, why),
            () = revoked(inside) => Wake::Revoked,
        }
    }

    /// The one before it is kept alive from now on for what may become of it, and for a time that settings limit only
    /// once the file has the next.
    fn on_promoted(&mut self, hold: Hold) {
        self.seen = Some(hold.credential().generation);
        // One that was waited with to be written never got into the file.
        self.wanted = Some(hold);
        if let Some(old) = self.inside.take() {
            self.keep(old);
        }
        match self.writing {
            Writing::UnderWay { .. } => {}
            Writing::Idle | Writing::Waiting { .. } => self.write(),
        }
    }

    /// PostgreSQL knows one password of a static role: that of the next.
    fn keep(&mut self, old: Hold) {
        if old.credential().lease.is_some() {
            self.keeping.keep(old);
        }
    }

    /// Begins to write the one that is wanted.
    fn write(&mut self) {
        self.writing = Writing::Idle;
        let Some(hold) = self.wanted.take() else { return };
        let Credential { generation, password, .. } = hold.credential();
        self.passwords.add(*generation, password);
        let content = self.shape.render(hold.credential());
        let shape = Arc::clone(&self.shape);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let content = content?;
            let written = task::spawn_blocking(move || shape.place.write(&content)).await;
            Ok(written.map_err(|_| WriteError::Fault)??)
        });
        self.writing = Writing::UnderWay { hold, task, late_from: Some(Instant::now() + MAX_WRITE) };
    }

    fn on_written(&mut self, result: Result<(), WriteError>) {
        let Writing::UnderWay { hold, .. } = std::mem::replace(&mut self.writing, Writing::Idle) else {
            return;
        };
        self.count(result.is_ok());
        self.keeping.note_write();
        match result {
            Ok(()) => self.on_placed(hold),
            Err(error) => self.on_failed(hold, &error),
        }
    }

    /// The file has it.
    fn on_placed(&mut self, hold: Hold) {
        self.backoff.reset();
        let Credential { user, lease, generation, .. } = hold.credential();
        info!(
            event = "file.written",
            path = &*self.path,
            vault_path = self.config.vault_path,
            %generation,
            db_role = user,
            lease = lease.as_ref().map(tracing::field::display),
        );
        if let Some(keep) = self.config.keep {
            self.keeping.limit(Instant::now() + keep);
        }
        let is_told = self.there.send_replace(true) || self.has_reader;
        if is_told && self.config.on_change != OnChange::Nothing {
            self.news.send_replace(Some(News { generation: *generation }));
        }
        let generation = generation.to_string();
        let is_newest = self.wanted.is_none();
        if is_newest {
            self.inside = Some(hold);
            self.is_revoked = false;
        } else {
            self.keep(hold);
            self.write();
        }
        self.status.send_modify(|status| {
            status.state = if is_newest { FileState::Current } else { FileState::Stale };
            status.generation = Some(generation);
            status.written_at = Some(unix_now());
            if let Some(notice) = status.on_change.as_mut().filter(|_| is_told) {
                notice.told = false;
            }
        });
        self.publish_kept();
    }

    /// A write cannot be given up: it goes on, and what was in the file is in it until then.
    fn on_late(&mut self) {
        let Writing::UnderWay { hold, late_from, .. } = &mut self.writing else { return };
        *late_from = None;
        error!(
            event = "file.write_late",
            path = &*self.path,
            vault_path = self.config.vault_path,
            generation = %hold.credential().generation,
            "the disk does not answer"
        );
        self.set_stale(format!("the disk has not answered for {}", humantime::format_duration(MAX_WRITE)));
        self.metrics.files.stale.get_or_create(&FileLabels { path: self.path.to_string() }).set(1);
    }

    /// The next one is on its way.
    fn on_revoked(&mut self) {
        self.is_revoked = true;
        self.set_stale("its credential was revoked before its time".to_owned());
    }

    fn set_stale(&self, says: String) {
        self.status.send_modify(|status| {
            status.state = FileState::Stale;
            status.last_error = Some(FileError { says, at: unix_now() });
        });
    }

    /// What was in the file is in it still.
    fn on_failed(&mut self, hold: Hold, error: &WriteError) {
        error!(
            event = "file.write_failed",
            path = &*self.path,
            vault_path = self.config.vault_path,
            generation = %hold.credential().generation,
            error = %Causes(error),
            "what was there stays; tried again"
        );
        self.passwords.forget(hold.credential().generation);
        self.set_stale(in_words(error));
        self.publish_kept();
        self.wanted.get_or_insert(hold);
        let pause = self.backoff.next(MAX_PAUSE, 0.5 + fastrand::f64() / 2.0);
        self.writing = Writing::Waiting { until: Instant::now() + pause };
    }

    fn count(&self, ok: bool) {
        let path = self.path.to_string();
        let result = if ok { "ok" } else { "failed" };
        self.metrics.files.writes.get_or_create(&FileResultLabels { path: path.clone(), result }).inc();
        self.metrics.files.stale.get_or_create(&FileLabels { path }).set(i64::from(!ok));
    }

    fn publish_kept(&self) {
        let now = (Instant::now(), unix_now());
        let at = |until: Instant| now.1 + until.saturating_duration_since(now.0).as_secs();
        let kept = self.keeping.list().map(|(generation, until)| KeptStatus {
            generation: generation.to_string(),
            until_at: until.map(at),
        });
        let kept = kept.collect();
        self.status.send_modify(|status| status.kept = kept);
    }

    /// Takes the file away, so that nobody begins with a credential that is about to be revoked.
    async fn remove(mut self) {
        if let Writing::UnderWay { task, .. } = &mut self.writing {
            // Or it would be put there afterwards.
            let _ = time::timeout(MAX_LAST_WRITE, task.join_next()).await;
        }
        let shape = Arc::clone(&self.shape);
        let removal = task::spawn_blocking(move || shape.place.end());
        let removed = match time::timeout(MAX_LAST_WRITE, removal).await {
            Ok(Ok(removed)) => removed.map_err(|error| Causes(&error).to_string()),
            Ok(Err(_)) => Err("a bug of pglease".to_owned()),
            Err(_) => Err("the disk does not answer".to_owned()),
        };
        let path = &*self.path;
        match removed {
            Ok(true) => info!(event = "file.removed", path),
            Ok(false) => {}
            Err(error) => warn!(event = "file.not_removed", path, error, "its credential is revoked"),
        }
        self.status.send_modify(|status| status.state = FileState::Removed);
    }
}

impl Shape {
    fn render(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        let lease_id = credential.lease.as_ref().map(LeaseId::as_str).unwrap_or_default();
        let secret = Secret {
            username: &credential.user,
            password: credential.password.expose_secret(),
            lease_id,
            lease_duration: credential.granted.duration.as_secs(),
            renewable: credential.granted.renewable,
        };
        self.format.render(&secret, self.target.as_ref().map(target).as_ref())
    }
}

fn target(config: &TargetConfig) -> Target<'_> {
    Target {
        hosts: config.hosts.iter().map(|(host, port)| (host.as_str(), *port)).collect(),
        database: &config.database,
        options: config.options.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())).collect(),
        service: &config.service,
    }
}

/// Returns when it is; never where there is none. Cancel safe.
async fn revoked(hold: Option<&Hold>) {
    let Some(hold) = hold else { return pending().await };
    // The other end is in the hold itself.
    let _ = hold.standing().wait_for(|standing| matches!(standing, Standing::Revoked(_))).await;
}

/// Between two tries.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// For a write; what takes longer is told of.
const MAX_WRITE: Duration = Duration::from_secs(10);
/// At the end, for a disk that does not answer.
const MAX_LAST_WRITE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
