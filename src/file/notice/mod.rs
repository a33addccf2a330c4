//! Telling the reader of a file that it has changed.
//!
//! One task for each file that somebody is told of. It tries again, ever more seldom, until it was heard or there is
//! something newer to tell. Nobody waits for it: what it cannot do holds no rotation up.

mod command;
mod http;
mod signal;

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::{task, time};
use tracing::{info, warn};
use url::Url;

use self::signal::Told;
use super::redact::Passwords;
use super::status::{FileError, FileStatus, NoticeStatus};
use crate::backoff::Backoff;
use crate::config::{FileSignal, OnChange};
use crate::ids::GenerationId;
use crate::telemetry::{Causes, FileLabels, FileResultLabels, Metrics, in_words, unix_now};

/// What there is to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    pub(super) generation: GenerationId,
}

/// Why the reader may not know.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoticeError {
    #[error("signal {name}")]
    Signal { name: String, source: signal::SignalError },
    #[error("request to {url}")]
    Http { url: String, source: http::HttpError },
    #[error("command {program}")]
    Command { program: String, source: command::CommandError },
}

/// Who tells the reader of one file.
#[derive(Debug)]
pub(super) struct Notifier {
    pub(super) path: Arc<str>,
    pub(super) how: OnChange,
    /// Kept out of what a command says.
    pub(super) passwords: Passwords,
    pub(super) news: watch::Receiver<Option<News>>,
    pub(super) status: watch::Sender<FileStatus>,
    pub(super) metrics: Arc<Metrics>,
}

impl Notifier {
    /// Tells whatever is new. Ends with whom it belongs to.
    pub(super) async fn run(mut self) -> Option<Infallible> {
        loop {
            self.news.changed().await.ok()?;
            let Some(news) = *self.news.borrow_and_update() else { continue };
            self.tell(news).await?;
        }
    }

    /// Returns when it was heard, or there is something newer; `None` where there will be nothing more.
    async fn tell(&mut self, news: News) -> Option<()> {
        let (mut backoff, mut told) = (Backoff::default(), Told::default());
        self.metrics.files.untold.get_or_create(&self.labels()).set(1);
        loop {
            let heard = self.try_once(&mut told).await;
            self.note(news, heard.as_ref().err());
            if heard.is_ok() {
                if self.is_newest() {
                    self.metrics.files.untold.get_or_create(&self.labels()).set(0);
                }
                return Some(());
            }
            let pause = backoff.next(MAX_PAUSE, 0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                newer = self.news.changed() => {
                    newer.ok()?;
                    self.news.mark_changed();
                    return Some(());
                }
                () = time::sleep(pause) => {}
            }
        }
    }

    /// One try. `told` have heard in those before it, where processes are told.
    async fn try_once(&self, told: &mut Told) -> Result<(), NoticeError> {
        match &self.how {
            OnChange::Nothing => Ok(()),
            OnChange::Signal { signal, name } => send(*signal, name, told)
                .await
                .map_err(|source| NoticeError::Signal { name: name.clone(), source }),
            OnChange::Http { url, timeout } => http::post(url, *timeout)
                .await
                .map_err(|source| NoticeError::Http { url: shown(url), source }),
            OnChange::Command { program, arguments, timeout } => {
                let run = command::Run {
                    program,
                    arguments,
                    path: &self.path,
                    passwords: &self.passwords,
                    timeout: *timeout,
                };
                run.run().await.map_err(|source| NoticeError::Command { program: program.clone(), source })
            }
        }
    }

    fn note(&self, news: News, error: Option<&NoticeError>) {
        let kind = kind(&self.how).unwrap_or_default();
        let (path, generation) = (&*self.path, news.generation);
        match error {
            None => info!(event = "file.reader_told", path, %generation, kind),
            Some(error) => {
                warn!(event = "file.reader_untold", path, %generation, kind, error = %Causes(error), "tried again");
            }
        }
        let labels =
            FileResultLabels { path: path.to_owned(), result: if error.is_none() { "ok" } else { "failed" } };
        self.metrics.files.notices.get_or_create(&labels).inc();
        self.status.send_modify(|status| {
            let NoticeStatus { told, last_told_at, last_error, .. } =
                status.on_change.get_or_insert_default();
            *told = error.is_none() && self.is_newest();
            match error {
                None => *last_told_at = Some(unix_now()),
                Some(error) => *last_error = Some(FileError { says: in_words(error), at: unix_now() }),
            }
        });
    }

    /// Whether nothing has come since, of which the reader is to be told as well.
    fn is_newest(&self) -> bool {
        !self.news.has_changed().unwrap_or(false)
    }

    fn labels(&self) -> FileLabels {
        FileLabels { path: self.path.to_string() }
    }
}

/// On a thread of its own: what `/proc` says of a process may be long in coming.
async fn send(signal: FileSignal, name: &str, told: &mut Told) -> Result<(), signal::SignalError> {
    let (name, mut known) = (name.to_owned(), mem::take(told));
    let sent = task::spawn_blocking(move || {
        let sent = signal::send(signal, &name, &mut known);
        (sent, known)
    });
    let (sent, known) = sent.await.map_err(|_| signal::SignalError::Fault)?;
    *told = known;
    sent
}

/// Without what may be secret.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// The word in `/status` and in the log; `None` where nobody is told.
pub(super) fn kind(how: &OnChange) -> Option<&'static str> {
    match how {
        OnChange::Nothing => None,
        OnChange::Signal { .. } => Some("signal"),
        OnChange::Http { .. } => Some("http"),
        OnChange::Command { .. } => Some("command"),
    }
}

/// Between two tries.
const MAX_PAUSE: Duration = Duration::from_mins(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_shown_without_its_query() {
        let url = Url::parse("http://127.0.0.1:8080/reload?token=secret#x").unwrap();
        assert_eq!(shown(&url), "http://127.0.0.1:8080/reload");
    }
}
