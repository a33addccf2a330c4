//! What an operator asks of the chain of a static role: to read the password now, or how things stand.

use tokio::sync::oneshot;
use tracing::warn;

use super::{Password, StaticChain};
use crate::credential::{Issued, Revocation};
use crate::lease::control::{Command, Rotated};
use crate::lease::status::{ChainStatus, GenerationStatus};
use crate::lease::{Prove, whole_seconds};
use crate::vault::VaultApi;

/// Somebody who wants the password that Vault has now.
#[derive(Debug)]
pub(super) struct Ask {
    /// The sessions on older passwords are to end.
    close: bool,
    read: Read,
    answer: oneshot::Sender<Rotated>,
}

/// How far the read for it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// One that was sent before does not count.
    Wanted,
    Sent,
    Done,
}

impl<V: VaultApi, P: Prove> StaticChain<V, P> {
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Status { answer } => {
                // Whoever asked may have gone.
                let _ = answer.send(self.status());
            }
            Command::Rotate { close, answer } => {
                // What nobody waits for any more is wanted all the same, for its sessions' sake.
                self.asks.retain(|ask| ask.close || !ask.answer.is_closed());
                self.asks.push(Ask { close, read: Read::Wanted, answer });
                self.plan.read_soon(self.now().boot);
            }
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        !self.asks.is_empty()
    }

    /// A read goes out.
    pub(super) fn note_read_sent(&mut self) {
        self.move_asks(Read::Wanted, Read::Sent);
    }

    /// It was answered: `ok` where with a password.
    pub(super) fn note_read(&mut self, ok: bool) {
        self.move_asks(Read::Sent, if ok { Read::Done } else { Read::Wanted });
        if ok && self.asks.iter().any(|ask| ask.read == Read::Wanted) {
            self.plan.read_soon(self.now().boot);
        }
    }

    /// The password that was read was rejected.
    pub(super) fn note_refusal(&mut self) {
        self.move_asks(Read::Done, Read::Wanted);
    }

    fn move_asks(&mut self, from: Read, to: Read) {
        self.asks.iter_mut().filter(|ask| ask.read == from).for_each(|ask| ask.read = to);
    }

    /// Answers those whose password serves; with `close` when no session is left on an older one.
    pub(super) fn answer_asks(&mut self) {
        let Some(current) = self.current.as_ref().filter(|_| self.candidate.is_none()) else { return };
        let rotated = Rotated {
            generation: current.credential.generation,
            db_role: current.credential.user.clone(),
            orphans: 0,
        };
        if self.asks.iter().any(|ask| ask.close && ask.read == Read::Done) {
            self.superseded.retain(|old| *old.holds().borrow() > 0);
            for old in self.superseded.iter().filter(|old| !old.is_revoked()) {
                old.set_standing(crate::credential::Standing::Revoked(Revocation::ByOperator));
                warn!(
                    event = "lease.closed",
                    vault_path = %self.vault_path,
                    generation = %old.credential().generation,
                    db_role = old.credential().user,
                    sessions = old.sessions(),
                    "an operator has its sessions ended",
                );
            }
        }
        let are_gone = self.superseded.is_empty();
        let is_done = |ask: &mut Ask| ask.read == Read::Done && (!ask.close || are_gone);
        for ask in self.asks.extract_if(.., is_done) {
            let _ = ask.answer.send(rotated.clone());
        }
    }

    fn status(&self) -> ChainStatus {
        let state = match (&self.current, self.plan.is_rejected()) {
            (None, _) => "fetch",
            (Some(_), true) => "rotating",
            (Some(_), false) => "serving",
        };
        let token_seconds =
            self.tenure.as_ref().and_then(|tenure| tenure.left(self.now())).map(whole_seconds);
        let offered = |issued: &Issued, state| GenerationStatus {
            generation: issued.credential().generation.to_string(),
            state,
            db_role: issued.credential().user.clone(),
            lease: None,
            age_seconds: None,
            lease_seconds: None,
            token_seconds,
            lease_ttl_seconds: None,
            token_ttl_seconds: None,
            password_seconds: None,
            password_ttl_seconds: None,
            end_is_final: false,
            proven: true,
            holders: issued.sessions(),
            files: issued.files(),
            standing: issued.standing().as_str(),
        };
        let superseded = self.superseded.iter().map(|issued| offered(issued, "superseded"));
        let current = self.current.iter().filter_map(|current| {
            let status = offered(current.issued.as_ref()?, "current");
            let (left, whole) = self.plan.until_change(self.now().boot).unzip();
            Some(GenerationStatus {
                proven: current.proof.is_none(),
                password_seconds: left.map(whole_seconds),
                password_ttl_seconds: whole.map(whole_seconds),
                ..status
            })
        });
        ChainStatus {
            current: self
                .current
                .as_ref()
                .map(|current: &Password| current.credential.generation.to_string()),
            last_error: self.last_error.clone(),
            end_is_harmless: Some(true),
            clients_waiting: *self.waiting.borrow(),
            revocations: self.revoking,
            generations: superseded.chain(current).collect(),
            ..ChainStatus::empty(&self.handle, state)
        }
    }
}
