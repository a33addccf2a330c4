//! The seam between sessions and leases: what a session knows of a lease, and no more.
//!
//! A chain publishes through a [`Publisher`] and keeps an [`Issued`] for each credential it published; sessions
//! ask a [`CredentialSource`] and get a [`Hold`]. No task runs here.

mod keys;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::ids::{GenerationId, LeaseId};

pub(crate) use keys::DerivedKeys;

/// What one logs in to PostgreSQL with.
#[derive(Debug)]
pub(crate) struct Credential {
    /// The `db_role`.
    pub(crate) user: String,
    pub(crate) password: SecretString,
    /// `None` for the credential of a static role.
    pub(crate) lease: Option<LeaseId>,
    pub(crate) generation: GenerationId,
    /// What the password comes to, so that it is computed once.
    pub(crate) keys: DerivedKeys,
    pub(crate) granted: Granted,
}

/// What Vault said of a lease when it was read; nothing of a static role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) duration: Duration,
    pub(crate) renewable: bool,
}

/// What the chain has to say to the sessions that hold one of its credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The lease is kept alive, or nobody could reconnect if its sessions ended.
    #[default]
    Kept,
    /// The lease ends for good and a proven successor is there: `at_lease_end` decides.
    Ending(LeaseEnd),
    /// The credential was revoked before its time: its sessions end now, whatever `at_lease_end` says.
    Revoked(Revocation),
}

/// Who had a credential revoked before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// Somebody at Vault revoked its lease or its token.
    ByVault,
    /// pglease was asked for it: `rotate --close`.
    ByOperator,
}

impl Standing {
    /// The word in `/status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Ending(_) => "ending",
            Self::Revoked(_) => "revoked",
        }
    }
}

/// When the sessions of an ending lease are told, where they are told at all. Ordered: each at or after the one
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseEnd {
    /// From here sessions that have been idle for a while end, spread up to `boundary_from`.
    pub(crate) idle_from: Instant,
    /// From here all end that are outside a running statement.
    pub(crate) boundary_from: Instant,
    /// The end of the lease: whatever is left ends.
    pub(crate) cut_at: Instant,
    /// Known to do open sessions no harm: the revocation only takes away the right to log in.
    pub(crate) harmless: bool,
}

/// What a session has to say against the credential that it logs in with, or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspicion {
    /// Upstream did not accept it at login.
    Rejected(GenerationId),
    /// Something happened in an open session that the end of its role would explain, and other things would too.
    Doubted(GenerationId),
}

/// No credential came in time, or none will come any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no credential is published any more")]
pub(crate) struct SourceClosed;

#[derive(Debug)]
struct Generation {
    credential: Arc<Credential>,
    holds: watch::Sender<usize>,
    /// Those of files among them.
    of_files: AtomicUsize,
    standing: watch::Sender<Standing>,
}

/// The two ends of one chain's credentials.
pub(crate) fn channel() -> (Publisher, CredentialSource) {
    let (current, current_rx) = watch::channel(None);
    let (suspicions_tx, suspicions) = mpsc::channel(SUSPICIONS);
    let (waiting_tx, waiting) = watch::channel(0);
    let desk = Arc::new(Desk { suspicions: suspicions_tx, users: watch::Sender::new(0) });
    let (proven, rejected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));

    (
        Publisher {
            current,
            suspicions,
            waiting,
            proven: Arc::clone(&proven),
            rejected: Arc::clone(&rejected),
        },
        CredentialSource { current: current_rx, desk, waiting: Arc::new(waiting_tx), proven, rejected },
    )
}

/// The chain's end: offers credentials to new sessions and hears how they fare.
#[derive(Debug)]
pub(crate) struct Publisher {
    current: watch::Sender<Option<Arc<Generation>>>,
    suspicions: mpsc::Receiver<Suspicion>,
    waiting: watch::Receiver<usize>,
    proven: Arc<AtomicBool>,
    rejected: Arc<AtomicBool>,
}

impl Publisher {
    /// Offers `credential` to new sessions in place of the one before it. When this returns, nobody takes a new
    /// hold on that one.
    pub(crate) fn promote(&self, credential: impl Into<Arc<Credential>>) -> Issued {
        let generation = Arc::new(Generation {
            credential: credential.into(),
            holds: watch::Sender::new(0),
            of_files: AtomicUsize::new(0),
            standing: watch::Sender::new(Standing::Kept),
        });
        self.current.send_replace(Some(Arc::clone(&generation)));
        Issued { generation }
    }

    /// Notes whether what is offered was rejected and nothing better could be had.
    pub(crate) fn note_rejection(&self, rejected: bool) {
        self.rejected.store(rejected, Ordering::Relaxed);
    }

    /// Notes that upstream has accepted what is offered.
    pub(crate) fn note_proof(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Offers nothing: new sessions wait.
    pub(crate) fn withdraw(&self) {
        self.current.send_replace(None);
    }

    /// What sessions have to say against a credential; `None` once every source and hold is gone. Cancel safe.
    pub(crate) async fn suspicion(&mut self) -> Option<Suspicion> {
        self.suspicions.recv().await
    }

    /// How many sessions wait for a credential.
    pub(crate) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.clone()
    }
}

/// The chain's claim on a credential that it published.
#[derive(Debug)]
pub(crate) struct Issued {
    generation: Arc<Generation>,
}

impl Issued {
    /// How many sessions and files hold it, as it changes.
    pub(crate) fn holds(&self) -> watch::Receiver<usize> {
        self.generation.holds.subscribe()
    }

    /// How many files hold it.
    pub(crate) fn files(&self) -> usize {
        self.generation.of_files.load(Ordering::Relaxed)
    }

    /// How many sessions hold it.
    pub(crate) fn sessions(&self) -> usize {
        let holds = *self.generation.holds.borrow();
        holds.saturating_sub(self.files())
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.generation.credential
    }

    /// Whether its sessions have been told to end.
    pub(crate) fn is_revoked(&self) -> bool {
        matches!(self.standing(), Standing::Revoked(_))
    }

    /// What the sessions that hold it have been told.
    pub(crate) fn standing(&self) -> Standing {
        *self.generation.standing.borrow()
    }

    /// Tells the sessions that hold it.
    pub(crate) fn set_standing(&self, standing: Standing) {
        self.generation.standing.send_if_modified(|old| {
            let changed = *old != standing;
            *old = standing;
            changed
        });
    }
}

/// The sessions' end of one chain.
#[derive(Clone, Debug)]
pub(crate) struct CredentialSource {
    current: watch::Receiver<Option<Arc<Generation>>>,
    desk: Arc<Desk>,
    waiting: Arc<watch::Sender<usize>>,
    proven: Arc<AtomicBool>,
    rejected: Arc<AtomicBool>,
}

/// Where the sessions of a chain are known.
#[derive(Debug)]
struct Desk {
    suspicions: mpsc::Sender<Suspicion>,
    /// How many hold a credential of the chain, or wait for one.
    users: watch::Sender<usize>,
}

impl Desk {
    /// A full queue means that the chain has more of the same news than it can use.
    fn report(&self, suspicion: Suspicion) {
        let _ = self.suspicions.try_send(suspicion);
    }
}

impl CredentialSource {
    /// A hold on the current credential, waiting until there is one. Has no limit of its own. Cancel safe: a
    /// caller that goes away while it waits frees its place.
    pub(crate) async fn hold(&self) -> Result<Hold, SourceClosed> {
        self.hold_where(|_| true, User::new(&self.desk)).await
    }

    /// A hold on a credential newer than `rejected`, which upstream did not accept. The chain is told, and
    /// fetches one for all who wait. Cancel safe.
    pub(crate) async fn replace(&self, rejected: Hold) -> Result<Hold, SourceClosed> {
        let generation = rejected.credential().generation;
        let user = User::new(&self.desk);
        drop(rejected);
        self.desk.report(Suspicion::Rejected(generation));
        self.hold_where(|newer| newer > generation, user).await
    }

    /// A file's hold on the first credential that is offered and is not `before`. While one is offered a file does not
    /// count among those who wait: what it has serves. Cancel safe.
    pub(crate) async fn next(&self, before: Option<GenerationId>) -> Result<Hold, SourceClosed> {
        let user = User::new(&self.desk);
        let mut current = self.current.clone();
        let mut place = None;
        loop {
            match &*current.borrow_and_update() {
                Some(generation) if Some(generation.credential.generation) != before => {
                    return Ok(Hold::of_file(Arc::clone(generation), user));
                }
                Some(_) => place = None,
                None => {
                    place.get_or_insert_with(|| Place::take(&self.waiting));
                }
            }
            current.changed().await.map_err(|_| SourceClosed)?;
        }
    }

    /// Returns when no session holds a credential of the chain or waits for one. Cancel safe.
    pub(crate) async fn unused(&self) {
        // Fails only without a sender, which is ours.
        let _ = self.desk.users.subscribe().wait_for(|users| *users == 0).await;
    }

    /// Returns when the chain has ended. Cancel safe.
    pub(crate) async fn ended(&self) {
        let mut current = self.current.clone();
        while current.changed().await.is_ok() {}
    }

    /// Whether there is a credential for a session that came now.
    pub(crate) fn is_ready(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Whether a session that came now would be served, as far as is known: there is a credential, and it was not
    /// rejected without a successor.
    pub(crate) fn is_usable(&self) -> bool {
        self.is_ready() && !self.rejected.load(Ordering::Relaxed)
    }

    /// Which credential a session that came now would get.
    pub(crate) fn generation(&self) -> Option<GenerationId> {
        self.current.borrow().as_ref().map(|current| current.credential.generation)
    }

    /// Returns when that is another one. Cancel safe.
    pub(crate) async fn other_than(&self, generation: Option<GenerationId>) {
        let is_other = |current: &Option<Arc<Generation>>| {
            current.as_ref().map(|current| current.credential.generation) != generation
        };
        if self.current.clone().wait_for(is_other).await.is_err() {
            // Nobody publishes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Whether there has ever been one that upstream had accepted.
    pub(crate) fn was_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// How many sessions wait for a credential.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        *self.waiting.borrow()
    }

    async fn hold_where(
        &self,
        wanted: impl Fn(GenerationId) -> bool,
        user: User,
    ) -> Result<Hold, SourceClosed> {
        let mut current = self.current.clone();
        let mut place = None;
        loop {
            // The hold is counted under the channel's read lock, so that after `promote` no late one is taken.
            if let Some(generation) = &*current.borrow_and_update()
                && wanted(generation.credential.generation)
            {
                return Ok(Hold::new(Arc::clone(generation), user));
            }
            place.get_or_insert_with(|| Place::take(&self.waiting));
            current.changed().await.map_err(|_| SourceClosed)?;
        }
    }
}

/// A place among those who wait, given back on drop.
struct Place<'a>(&'a watch::Sender<usize>);

impl<'a> Place<'a> {
    fn take(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|waiting| *waiting += 1);
        Self(waiting)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// One who holds a credential or waits for one, counted until it is dropped.
#[derive(Debug)]
struct User(Arc<Desk>);

impl User {
    fn new(desk: &Arc<Desk>) -> Self {
        desk.users.send_modify(|users| *users += 1);
        Self(Arc::clone(desk))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.users.send_modify(|users| *users = users.saturating_sub(1));
    }
}

/// A session's claim on a credential: while it lives, the lease is kept alive as long as Vault agrees. Given
/// back on drop.
#[derive(Debug)]
pub(crate) struct Hold {
    generation: Arc<Generation>,
    is_of_file: bool,
    user: User,
}

impl Hold {
    fn new(generation: Arc<Generation>, user: User) -> Self {
        generation.holds.send_modify(|holds| *holds += 1);
        Self { generation, is_of_file: false, user }
    }

    fn of_file(generation: Arc<Generation>, user: User) -> Self {
        generation.of_files.fetch_add(1, Ordering::Relaxed);
        let mut hold = Self::new(generation, user);
        hold.is_of_file = true;
        hold
    }

    /// Tells the chain that the credential may have ended. It looks into that.
    pub(crate) fn doubt(&self) {
        self.user.0.report(Suspicion::Doubted(self.credential().generation));
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.generation.credential
    }

    /// What becomes of the lease, as it changes.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.generation.standing.subscribe()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.is_of_file {
            self.generation.of_files.fetch_sub(1, Ordering::Relaxed);
        }
        self.generation.holds.send_modify(|holds| *holds = holds.saturating_sub(1));
    }
}

/// Suspicions that may wait for the chain; more of them would say nothing new.
const SUSPICIONS: usize = 16;

#[cfg(test)]
mod tests;
