//! What an operator asks of a chain: a rotation now, or how things stand.
//!
//! `admin` asks by a [`ChainHandle`]; the chain's task answers between two steps of its own.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time;
use tracing::warn;

use super::chain::{ChainEvent, Trigger};
use super::status::ChainStatus;
use super::{Chain, Prove};
use crate::credential::Revocation;
use crate::ids::GenerationId;
use crate::vault::VaultApi;

/// A question to a chain.
#[derive(Debug)]
pub(super) enum Command {
    /// A new credential, now; with `close` the sessions on older ones end once it serves.
    Rotate {
        close: bool,
        answer: oneshot::Sender<Rotated>,
    },
    Status {
        answer: oneshot::Sender<ChainStatus>,
    },
}

/// A rotation that was asked for, once it is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rotated {
    /// What serves now.
    pub(crate) generation: GenerationId,
    pub(crate) db_role: String,
    /// Leases of older generations that could not be revoked, where their sessions were to end.
    pub(crate) orphans: usize,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAnswer {
    #[error("the chain has ended")]
    Ended,
    #[error("not done yet: it goes on")]
    NotYet,
}

/// Asks one chain. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ChainHandle {
    vault_path: Arc<str>,
    kind: &'static str,
    commands: mpsc::Sender<Command>,
}

impl ChainHandle {
    /// The two ends of a chain's questions.
    pub(super) fn new(vault_path: Arc<str>, kind: &'static str) -> (Self, mpsc::Receiver<Command>) {
        let (commands, asked) = mpsc::channel(COMMANDS);
        (Self { vault_path, kind, commands }, asked)
    }

    pub(crate) fn vault_path(&self) -> &str {
        &self.vault_path
    }

    /// Whether it answers nobody any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.commands.is_closed()
    }

    /// `leased` or `static`.
    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// A new credential, now: returns when it serves, with `close` when the older ones are revoked as well. Whoever
    /// asks while a rotation is under way gets the outcome of that one. Waits for [`MAX_ROTATION_WAIT`]; what is not
    /// done by then stays wanted. Cancel safe: so does what nobody waits for any more.
    pub(crate) async fn rotate(&self, close: bool) -> Result<Rotated, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Rotate { close, answer }, answered, MAX_ROTATION_WAIT).await
    }

    /// How the chain stands.
    pub(crate) async fn status(&self) -> Result<ChainStatus, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        self.ask(Command::Status { answer }, answered, MAX_STATUS_WAIT).await
    }

    async fn ask<T>(
        &self,
        command: Command,
        answered: oneshot::Receiver<T>,
        limit: Duration,
    ) -> Result<T, NoAnswer> {
        let asked = async {
            self.commands.send(command).await.map_err(|_| NoAnswer::Ended)?;
            answered.await.map_err(|_| NoAnswer::Ended)
        };
        time::timeout(limit, asked).await.unwrap_or(Err(NoAnswer::NotYet))
    }
}

/// The rotation that an operator wants, and who waits for what of it.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// The sessions on older generations are to end with it.
    pub(super) close: bool,
    /// Until the successor serves.
    waiting: Vec<(bool, oneshot::Sender<Rotated>)>,
    /// The successor serves; until the older generations are gone.
    closing: Vec<(Rotated, oneshot::Sender<Rotated>)>,
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Status { answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(self.status());
            }
            Command::Rotate { close, answer } => {
                self.asked.close |= close;
                self.asked.waiting.retain(|(_, answer)| !answer.is_closed());
                self.asked.waiting.push((close, answer));
                self.feed(ChainEvent::RotationDue(Trigger::Asked));
            }
        }
    }

    /// `id` serves: whoever asked for it is answered, and the sessions on older ones end where that was asked for.
    pub(super) fn answer_rotation(&mut self, id: GenerationId) {
        let asked = mem::take(&mut self.asked);
        self.asked.closing = asked.closing;
        let Some(db_role) = self.generations.get(&id).map(|generation| generation.user().to_owned()) else {
            return;
        };
        if asked.close {
            self.close_older_than(id);
        }
        let rotated = Rotated { generation: id, db_role, orphans: 0 };
        for (close, answer) in asked.waiting {
            if close {
                self.asked.closing.push((rotated.clone(), answer));
            } else {
                let _ = answer.send(rotated.clone());
            }
        }
    }

    /// Ends the sessions on all generations before `id`. Each is revoked when the last of its sessions has let go.
    fn close_older_than(&mut self, id: GenerationId) {
        for generation in self.generations.range_mut(..id).map(|(_, generation)| generation) {
            if generation.count_holds() > 0 {
                let sessions = generation.sessions();
                generation.announce_revocation(Revocation::ByOperator);
                warn!(
                    event = "lease.closed",
                    vault_path = %self.vault_path,
                    generation = %generation.id(),
                    db_role = generation.user(),
                    lease = %generation.lease(),
                    sessions,
                    "an operator has its sessions ended",
                );
            }
        }
    }

    /// Answers those who wait until the older generations are gone.
    pub(super) fn answer_closing(&mut self) {
        let oldest = self.generations.keys().next().copied();
        let gone = |rotated: &Rotated| oldest.is_none_or(|oldest| oldest >= rotated.generation);
        for (rotated, answer) in self.asked.closing.extract_if(.., |(rotated, _)| gone(rotated)) {
            let _ = answer.send(rotated);
        }
    }

    /// Tells those who wait for a revocation that one was not accepted.
    pub(super) fn note_orphan(&mut self, of: GenerationId) {
        let older = |rotated: &&mut (Rotated, _)| of < rotated.0.generation;
        self.asked.closing.iter_mut().filter(older).for_each(|(rotated, _)| rotated.orphans += 1);
    }
}

/// Of a rotation: longer than the budget of new credentials holds one up.
const MAX_ROTATION_WAIT: Duration = Duration::from_secs(25);

/// Of a chain that does other things between two questions.
const MAX_STATUS_WAIT: Duration = Duration::from_secs(1);

/// Questions that may wait for the chain.
const COMMANDS: usize = 16;
