//! One generation as the chain keeps it: what it is, how it stands, and what its sessions are told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

use super::check::{Check, Haste};
use super::clock::{Deadline, Now};
use super::keeper::Keeper;
use super::proof::{Proof, ProofState};
use super::state::{LeaseEvent, LeaseState};
use super::token::{LiveToken, Requests};
use crate::credential::{Credential, Issued, LeaseEnd, Publisher, Revocation, Standing};
use crate::ids::{GenerationId, LeaseId};

/// A credential with its lease, its token and those who hold it.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) credential: Arc<Credential>,
    lease: LeaseId,
    pub(super) token: Arc<LiveToken>,
    /// Renewals of its lease.
    pub(super) requests: Arc<Requests>,
    pub(super) keeper: Keeper,
    pub(super) check: Check,
    /// Until it is proven or rejected.
    proof: Option<Proof>,
    state: LeaseState,
    /// From its promotion on.
    issued: Option<Issued>,
    /// The end that its sessions were told, and whether it is harmless.
    announced: Option<(Deadline, bool)>,
    /// Somebody ended it before its time, and its sessions were told so.
    is_revoked: bool,
    /// Whether its revocation has begun.
    is_being_revoked: bool,
}

impl Generation {
    pub(super) fn new(
        credential: Credential,
        lease: LeaseId,
        token: Arc<LiveToken>,
        keeper: Keeper,
        proof: Proof,
    ) -> Self {
        Self {
            credential: Arc::new(credential),
            lease,
            token,
            requests: Arc::default(),
            keeper,
            check: Check::default(),
            proof: Some(proof),
            state: LeaseState::Candidate,
            issued: None,
            announced: None,
            is_revoked: false,
            is_being_revoked: false,
        }
    }

    pub(super) fn id(&self) -> GenerationId {
        self.credential.generation
    }

    pub(super) fn lease(&self) -> &LeaseId {
        &self.lease
    }

    pub(super) fn user(&self) -> &str {
        &self.credential.user
    }

    pub(super) fn state(&self) -> LeaseState {
        self.state
    }

    pub(super) fn is_current(&self) -> bool {
        matches!(self.state, LeaseState::Current { .. })
    }

    pub(super) fn is_superseded(&self) -> bool {
        matches!(self.state, LeaseState::Superseded { .. })
    }

    /// Whether nothing is left to do for it.
    pub(super) fn is_done(&self) -> bool {
        self.state == LeaseState::Ended { holds: 0 }
    }

    /// Moves on. An impossible order of events is a fault of ours, and changes nothing.
    pub(super) fn apply(&mut self, event: LeaseEvent) {
        match self.state.on(event) {
            Ok(state) => self.state = state,
            Err(invalid) => {
                let (generation, db_role, lease) = (self.id(), self.user(), self.lease());
                error!(event = "lease.invalid_transition", %generation, db_role, %lease, error = %invalid);
            }
        }
    }

    /// Whether it goes on with this token.
    pub(super) fn uses(&self, token: &Arc<LiveToken>) -> bool {
        self.state.is_kept() && self.is_under(token)
    }

    /// Whether its lease was read with this token.
    pub(super) fn is_under(&self, token: &Arc<LiveToken>) -> bool {
        Arc::ptr_eq(&self.token, token)
    }

    /// Whether its revocation is due and not begun yet; it is begun then.
    pub(super) fn take_due_revocation(&mut self) -> bool {
        let begins = self.state == LeaseState::Revoking && !self.is_being_revoked;
        self.is_being_revoked |= begins;
        begins
    }

    /// Offers it to new sessions.
    pub(super) fn promote(&mut self, publisher: &Publisher) {
        self.issued = Some(publisher.promote(Arc::clone(&self.credential)));
        self.apply(LeaseEvent::Promoted);
    }

    /// How many sessions hold it.
    pub(super) fn sessions(&self) -> usize {
        self.issued.as_ref().map(Issued::sessions).unwrap_or_default()
    }

    /// How many files hold it.
    pub(super) fn files(&self) -> usize {
        self.issued.as_ref().map(Issued::files).unwrap_or_default()
    }

    /// Counts those who hold it.
    pub(super) fn count_holds(&mut self) -> usize {
        if let Some(issued) = &self.issued {
            let holds = *issued.holds().borrow();
            if holds != self.state.holds() {
                self.apply(LeaseEvent::Held(holds));
            }
        }
        self.state.holds()
    }

    /// Ends when no session holds it any more.
    pub(super) fn released(&self) -> impl Future<Output = ()> + use<> {
        let holds = self.issued.as_ref().map(Issued::holds);
        async move {
            if let Some(mut holds) = holds {
                // An error means that the chain has let go of it: then nobody waits for this.
                let _ = holds.wait_for(|&holds| holds == 0).await;
            }
        }
    }

    pub(super) fn proof(&self) -> Option<&Proof> {
        self.proof.as_ref()
    }

    pub(super) fn proof_mut(&mut self) -> Option<&mut Proof> {
        self.proof.as_mut()
    }

    /// Whether upstreams of all routes have accepted it.
    pub(super) fn is_proven(&self) -> bool {
        self.proof.as_ref().is_none_or(|proof| proof.state() == ProofState::Proven)
    }

    /// Whether sessions can reconnect with it, as far as upstreams have said.
    pub(super) fn is_accepted(&self) -> bool {
        self.proof.as_ref().is_none_or(Proof::is_accepted)
    }

    /// Drops the proof, which is done.
    pub(super) fn end_proof(&mut self) {
        self.proof = None;
    }

    /// Has its sessions end, as it was ended before its time.
    pub(super) fn announce_revocation(&mut self, by: Revocation) {
        self.is_revoked = true;
        if let Some(issued) = &self.issued {
            issued.set_standing(Standing::Revoked(by));
        }
    }

    /// Whether it is looked into where something speaks against it: what is offered or held. A candidate has its proof.
    pub(super) fn is_checked(&self) -> bool {
        self.is_current() || self.is_superseded()
    }

    /// Has it looked into.
    pub(super) fn raise_check(&mut self, haste: Haste, now: Now) {
        if self.is_checked() {
            self.check.raise(haste, now.boot);
        }
    }

    /// Tells the sessions of a generation that is rotated out how its lease stands: that it ends, if its end is final
    /// and there is a successor to reconnect with. What the end does to them is waited for as long as none of them
    /// can be spared.
    pub(super) fn announce(&mut self, now: Now, outlook: Outlook) {
        let Some(issued) = self.issued.as_ref().filter(|_| !self.is_revoked) else { return };
        let ending = match self.state {
            LeaseState::Superseded { .. } | LeaseState::Ended { .. } if outlook.has_successor => {
                self.keeper.window()
            }
            LeaseState::Candidate
            | LeaseState::Current { .. }
            | LeaseState::Superseded { .. }
            | LeaseState::Revoking
            | LeaseState::Ended { .. } => None,
        };
        let ending =
            ending.filter(|(_, window)| !outlook.is_verdict_awaited || window.boundary_from <= now.boot);
        let harmless = outlook.is_harmless;
        let announced = ending.map(|(end, _)| (end, harmless));
        if self.announced == announced {
            return;
        }
        self.announced = announced;
        issued.set_standing(ending.map_or(Standing::Kept, |(_, window)| {
            Standing::Ending(LeaseEnd {
                idle_from: instant(now, window.idle_from),
                boundary_from: instant(now, window.boundary_from),
                cut_at: instant(now, window.cut_at),
                harmless,
            })
        }));
    }

    /// What its sessions are told.
    pub(super) fn standing(&self) -> Standing {
        self.issued.as_ref().map(Issued::standing).unwrap_or_default()
    }

    /// After a jump of the clocks: what was told is told anew, and what is far gone is renewed.
    pub(super) fn reconsider(&mut self, now: Now) {
        self.announced = None;
        self.keeper.reconsider(now);
    }

    /// When something falls due, on the boot clock.
    pub(super) fn next_due(&self, now: Now) -> Option<Duration> {
        if !self.state.is_kept() {
            return None;
        }
        let proof = self.proof.as_ref().and_then(|proof| proof.next_due(now.boot));
        let last_moments = self.keeper.window().map(|(_, window)| window.boundary_from);
        let last_moments = last_moments.filter(|&at| at > now.boot);
        proof
            .into_iter()
            .chain(self.check.next_due())
            .chain(last_moments)
            .chain(self.keeper.next_due(now))
            .min()
    }
}

/// What is known for the sessions of a lease that ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// They can reconnect.
    pub(super) has_successor: bool,
    /// Whether the end does them harm is being found out.
    pub(super) is_verdict_awaited: bool,
    /// It does them none.
    pub(super) is_harmless: bool,
}

/// The moment of the boot clock on the clock that sessions wait by; now, where it is past.
fn instant(now: Now, boot: Duration) -> Instant {
    Instant::now() + boot.saturating_sub(now.boot)
}
