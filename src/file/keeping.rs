//! Credentials that the file had before the one in it: kept alive for readers that have not looked yet, as nobody can
//! count them.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::{self, Instant};

use crate::credential::{Hold, Revocation, Standing};
use crate::ids::GenerationId;

/// Holds on them, each with a task that lets it go when it is due. They end with this.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    tasks: JoinSet<Release>,
    kept: Vec<Kept>,
}

/// One that is kept.
#[derive(Debug)]
struct Kept {
    generation: GenerationId,
    task: task::Id,
    until: watch::Sender<Until>,
}

/// How long one is kept.
#[derive(Clone, Copy, Debug, Default)]
struct Until {
    /// `None`: to the end of its lease.
    limit: Option<Instant>,
    /// The write of the next one has ended, well or not: before, this one is in the file.
    has_written: bool,
}

/// Why one is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// It was kept for as long as settings say.
    Kept,
    /// Its lease is over.
    Ended,
    /// It was revoked before its time.
    Revoked,
    /// A bug of pglease's.
    Fault,
}

impl Release {
    /// The word in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
            Self::Fault => "fault",
        }
    }
}

impl Keeping {
    /// Keeps what is held to the end of its lease.
    pub(super) fn keep(&mut self, hold: Hold) {
        let generation = hold.credential().generation;
        let (until, limit) = watch::channel(Until::default());
        let task = self.tasks.spawn(async move { due(&hold, limit).await }).id();
        self.kept.push(Kept { generation, task, until });
    }

    /// Keeps those that have no such limit to that time at most.
    pub(super) fn limit(&self, limit: Instant) {
        for kept in &self.kept {
            kept.until.send_if_modified(|until| until.limit.replace(until.limit.unwrap_or(limit)).is_none());
        }
    }

    /// The write of the one after these has ended.
    pub(super) fn note_write(&self) {
        for kept in &self.kept {
            kept.until.send_modify(|until| until.has_written = true);
        }
    }

    /// The next one that was let go; `None` where there is none. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<(GenerationId, Release)> {
        let (task, release) = match self.tasks.join_next_with_id().await? {
            Ok((task, release)) => (task, release),
            // A bug in it lets it go all the same.
            Err(error) => (error.id(), Release::Fault),
        };
        let place = self.kept.iter().position(|kept| kept.task == task)?;
        Some((self.kept.remove(place).generation, release))
    }

    /// Each with its limit, the oldest first.
    pub(super) fn list(&self) -> impl Iterator<Item = (GenerationId, Option<Instant>)> {
        self.kept.iter().map(|kept| (kept.generation, kept.until.borrow().limit))
    }
}

/// Returns when what is held is to be let go.
async fn due(hold: &Hold, mut until: watch::Receiver<Until>) -> Release {
    let mut standing = hold.standing();
    let mut written_by = None;
    loop {
        let Until { limit, has_written } = *until.borrow_and_update();
        let (end, why) = match *standing.borrow_and_update() {
            // It is alive until it is let go.
            Standing::Revoked(Revocation::ByOperator) if !has_written => {
                let by = *written_by.get_or_insert_with(|| Instant::now() + MAX_WRITE_WAIT);
                (Some(by), Release::Revoked)
            }
            Standing::Revoked(_) => return Release::Revoked,
            Standing::Ending(end) => (Some(end.cut_at), Release::Ended),
            Standing::Kept => (None, Release::Ended),
        };
        tokio::select! {
            biased;
            () = at(end) => return why,
            () = at(limit) => return Release::Kept,
            // The other end is in the hold itself.
            _ = standing.changed() => {}
            Ok(()) = until.changed() => {}
        }
    }
}

/// Returns then; never where there is no such time. Cancel safe.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => time::sleep_until(time).await,
        None => pending().await,
    }
}

/// For the next one to be in the file, where an operator has this one revoked.
const MAX_WRITE_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{self, Issued, LeaseEnd, Publisher};
    use crate::file::tests::credential;

    async fn held(publisher: &Publisher, source: &credential::CredentialSource) -> (Issued, Hold) {
        let issued = publisher.promote(credential(1));
        (issued, source.next(None).await.unwrap())
    }

    fn ending(seconds: u64) -> Standing {
        let cut_at = Instant::now() + Duration::from_secs(seconds);
        Standing::Ending(LeaseEnd { idle_from: cut_at, boundary_from: cut_at, cut_at, harmless: true })
    }

    #[tokio::test(start_paused = true)]
    async fn superseded_credential_is_held_as_long_as_settings_or_its_lease_say() {
        let second = Duration::from_secs(1);
        for (keep, end, after, release) in [
            (Some(second * 60), None, second * 60, Release::Kept),
            (None, Some(30), second * 30, Release::Ended),
            (Some(second * 60), Some(30), second * 30, Release::Ended),
            (Some(second * 10), Some(30), second * 10, Release::Kept),
            (None, Some(0), Duration::ZERO, Release::Revoked),
        ] {
            let (publisher, source) = credential::channel();
            let (issued, hold) = held(&publisher, &source).await;
            let mut keeping = Keeping::default();
            let began = Instant::now();
            keeping.keep(hold);
            if let Some(keep) = keep {
                keeping.limit(Instant::now() + keep);
            }
            issued.set_standing(match end {
                Some(0) => Standing::Revoked(Revocation::ByVault),
                Some(seconds) => ending(seconds),
                None => Standing::Kept,
            });
            assert_eq!((*issued.holds().borrow(), issued.sessions(), issued.files()), (1, 0, 1));
            assert_eq!(keeping.next().await, Some((GenerationId(1), release)));
            assert_eq!(began.elapsed().as_secs(), after.as_secs());
            assert_eq!((*issued.holds().borrow(), issued.files()), (0, 0));
            assert_eq!(keeping.list().count(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_an_operator_has_revoked_waits_for_a_write_only_so_long() {
        for (has_written, after) in [(false, MAX_WRITE_WAIT), (true, Duration::ZERO)] {
            let (publisher, source) = credential::channel();
            let (issued, hold) = held(&publisher, &source).await;
            let mut keeping = Keeping::default();
            let began = Instant::now();
            keeping.keep(hold);
            issued.set_standing(Standing::Revoked(Revocation::ByOperator));
            if has_written {
                keeping.note_write();
            }
            assert_eq!(keeping.next().await, Some((GenerationId(1), Release::Revoked)));
            assert_eq!(began.elapsed().as_secs(), after.as_secs());
        }
    }

    #[tokio::test]
    async fn one_whose_task_has_a_fault_is_let_go() {
        let mut keeping = Keeping::default();
        let task = keeping.tasks.spawn(async { panic!("a fault of a test") }).id();
        let until = watch::Sender::new(Until::default());
        keeping.kept.push(Kept { generation: GenerationId(1), task, until });
        assert_eq!(keeping.next().await, Some((GenerationId(1), Release::Fault)));
        assert_eq!(keeping.list().count(), 0);
    }
}
