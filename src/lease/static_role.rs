//! The password of a static role: read with a login of its own, proven, offered, and read again when Vault changes it.
//!
//! There is no lease, and nothing to revoke but the token: the `db_role` stays, and sessions that are open are left
//! alone. A new password is a new generation. [`plan`] decides when Vault is asked, [`tenure`] keeps the token,
//! [`super::proof`] the proof; all of them are pure. One task for each chain, which owns the tasks of its requests and
//! ends with them; `app` runs it until it is told to stop.

mod asked;
mod plan;
mod tenure;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::asked::Ask;
use self::plan::{Plan, View};
use self::tenure::Tenure;
use super::chain::Trigger;
use super::check::LEAST_PAUSE_WHEN_DOUBTED;
use super::clock::{Clock, Now};
use super::control::{ChainHandle, Command};
use super::proof::Proof;
use super::status::LastError;
use super::token::LiveToken;
use super::{ChainEnd, ChainSettings, LEAST_PAUSE, MAX_JUMP, Prove, TICK, end, gauges, token, upstreams};
use crate::credential::{Credential, Issued, Publisher, Suspicion};
use crate::ids::GenerationId;
use crate::telemetry::Metrics;
use crate::upstream::{Probe, UpstreamError};
use crate::vault::{Answer, Grant, StaticCredential, VaultApi, VaultError};

/// The succession of passwords of one static role.
pub(crate) struct StaticChain<V, P = Probe> {
    vault_path: Arc<str>,
    upstreams: upstreams::Current<P>,
    vault: Arc<V>,
    publisher: Publisher,
    waiting: watch::Receiver<usize>,
    metrics: Arc<Metrics>,
    clock: Clock,
    plan: Plan,
    tenure: Option<Tenure>,
    /// What Vault said last.
    last_read: Option<Arc<Credential>>,
    /// Read, and not offered yet.
    candidate: Option<Password>,
    current: Option<Password>,
    /// Offered before, as long as sessions hold them.
    superseded: Vec<Issued>,
    last_generation: u64,
    /// Revocations under way.
    revoking: usize,
    warned: bool,
    last_error: Option<LastError>,
    handle: ChainHandle,
    /// When a doubt last had the password read, on the boot clock.
    doubted_at: Option<Duration>,
    commands: mpsc::Receiver<Command>,
    asks: Vec<Ask>,
    ends: bool,
    /// When the clocks were last looked at.
    seen: (Now, Instant),
    tasks: JoinSet<Report>,
}

/// A password with the proof that is still open, and the chain's claim on it from its promotion on.
#[derive(Debug)]
struct Password {
    credential: Arc<Credential>,
    proof: Option<Proof>,
    issued: Option<Issued>,
    /// Why it takes the place of another; `None` for the first.
    trigger: Option<Trigger>,
}

/// The end of one task.
#[derive(Debug)]
enum Report {
    LoggedIn {
        asked_at: Now,
        result: Result<(Arc<LiveToken>, Grant), VaultError>,
    },
    Read {
        token: Arc<LiveToken>,
        result: Result<StaticCredential, VaultError>,
        token_is_dead: bool,
    },
    Renewed {
        token: Arc<LiveToken>,
        asked_at: Now,
        result: Result<Grant, VaultError>,
    },
    /// `result` is `None` where the probe took too long.
    Probed {
        generation: GenerationId,
        prover: usize,
        result: Option<Result<(), UpstreamError>>,
    },
    Revoked(Result<(), VaultError>),
    /// A read ended with its token's revocation.
    ReadAborted,
    /// A renewal did.
    RenewalAborted,
}

/// What brings the task back to work.
enum Wake {
    Stop,
    Report(Result<Report, JoinError>),
    Suspicion(Suspicion),
    Command(Command),
    ClientWaits,
    Upstreams,
    Due,
}

impl<V: VaultApi, P: Prove> StaticChain<V, P> {
    /// A chain that has done nothing yet.
    pub(crate) fn new(
        settings: ChainSettings<P>,
        vault: Arc<V>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::with_clock(settings, vault, publisher, metrics, Arc::new(Now::read))
    }

    pub(super) fn with_clock(
        settings: ChainSettings<P>,
        vault: Arc<V>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let vault_path: Arc<str> = settings.vault_path.into();
        let (handle, commands) = ChainHandle::new(Arc::clone(&vault_path), "static");
        Self {
            vault_path,
            upstreams: upstreams::Current::new(settings.upstreams),
            vault,
            waiting: publisher.waiting(),
            publisher,
            metrics,
            seen: (clock(), Instant::now()),
            clock,
            plan: Plan::default(),
            tenure: None,
            last_read: None,
            candidate: None,
            current: None,
            superseded: Vec::new(),
            last_generation: 0,
            doubted_at: None,
            revoking: 0,
            warned: false,
            last_error: None,
            handle,
            commands,
            asks: Vec::new(),
            ends: false,
            tasks: JoinSet::new(),
        }
    }

    /// What an operator asks it by.
    pub(crate) fn handle(&self) -> ChainHandle {
        self.handle.clone()
    }

    /// Publishes passwords until `stop`, then revokes its token within five seconds. Ends in no other way; may be
    /// dropped at any point, which revokes nothing.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> ChainEnd {
        self.advance();
        loop {
            match self.wake(&stop).await {
                Wake::Stop => return self.end().await,
                Wake::Report(Ok(report)) => self.on_report(report),
                Wake::Report(Err(error)) => self.on_fault(&error),
                Wake::Suspicion(suspicion) => self.on_suspicion(suspicion),
                Wake::Command(command) => self.on_command(command),
                Wake::ClientWaits => self.hurry(),
                Wake::Upstreams => self.change_upstreams(),
                Wake::Due => {}
            }
            self.advance();
        }
    }

    /// Cancel safe.
    async fn wake(&mut self, stop: &CancellationToken) -> Wake {
        let pause = self.pause();
        tokio::select! {
            biased;
            () = stop.cancelled() => Wake::Stop,
            Some(report) = self.tasks.join_next() => Wake::Report(report),
            Some(suspicion) = self.publisher.suspicion() => Wake::Suspicion(suspicion),
            Some(command) = self.commands.recv() => Wake::Command(command),
            Ok(()) = self.waiting.changed() => Wake::ClientWaits,
            () = self.upstreams.changed() => Wake::Upstreams,
            () = time::sleep(pause) => Wake::Due,
        }
    }

    /// Until the next thing to do, a tick at most.
    fn pause(&self) -> Duration {
        let now = self.now();
        let proofs = self.passwords().filter_map(|password| password.proof.as_ref()?.next_due(now.boot));
        let token = self.tenure.as_ref().and_then(|tenure| tenure.next_due(now));
        let login = self.plan.next_login().filter(|_| self.needs_login(now));
        let read = self.plan.next_read().filter(|_| self.has_living_token(now));
        let due = proofs.chain(token).chain(login).chain(read).min();
        due.map_or(TICK, |at| at.saturating_sub(now.boot)).clamp(LEAST_PAUSE, TICK)
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::LoggedIn { asked_at, result } => self.on_logged_in(asked_at, result),
            Report::Read { token, result, token_is_dead } => self.on_read(&token, result, token_is_dead),
            Report::Renewed { token, asked_at, result } => self.on_renewed(&token, asked_at, &result),
            Report::Probed { generation, prover, result } => {
                self.on_probed(generation, prover, result.as_ref());
            }
            Report::Revoked(result) => self.on_revoked(&result),
            Report::ReadAborted => {
                let view = self.view();
                self.plan.read_failed(Answer::Lost, view);
                self.note_read(false);
            }
            Report::RenewalAborted => {}
        }
    }

    /// News only if the password is still the current one. A doubt costs one look at it, now and then.
    fn on_suspicion(&mut self, suspicion: Suspicion) {
        let (Suspicion::Rejected(suspect) | Suspicion::Doubted(suspect)) = suspicion;
        if self.current.as_ref().is_none_or(|current| current.credential.generation != suspect) {
            return;
        }
        match suspicion {
            Suspicion::Rejected(_) => self.note_rejection(),
            Suspicion::Doubted(_) => {
                let now = self.now().boot;
                if self.doubted_at.is_none_or(|doubted_at| now >= doubted_at + LEAST_PAUSE_WHEN_DOUBTED) {
                    self.doubted_at = Some(now);
                    self.plan.read_soon(now);
                }
            }
        }
    }

    fn note_rejection(&mut self) {
        if self.plan.rejected(self.now().boot) {
            info!(event = "rotation.start", vault_path = %self.vault_path, trigger = %Trigger::Rejected);
        }
    }

    /// A task of ours panicked. Which one is not known, so all requests count as lost.
    fn on_fault(&mut self, fault: &JoinError) {
        error!(event = "lease.fault", vault_path = %self.vault_path, error = %fault);
        let (now, view) = (self.now(), self.view());
        self.plan.forget_requests(view);
        self.note_read(false);
        if let Some(tenure) = &mut self.tenure {
            tenure.forget_request();
        }
        for proof in self.passwords_mut().filter_map(|password| password.proof.as_mut()) {
            proof.forget_requests(now.boot);
        }
    }

    fn hurry(&mut self) {
        if *self.waiting.borrow() > 0 {
            let view = self.view();
            self.plan.hurry(view);
        }
    }

    /// Does what time has made due.
    fn advance(&mut self) {
        let now = self.now();
        self.notice_jump(now);
        self.log_in_due(now);
        self.renew_due(now);
        self.read_due(now);
        self.prove_due(now);
        self.judge_candidate(now);
        self.judge_current();
        self.answer_asks();
        self.update_gauges();
    }

    /// After a suspension, or when somebody set the clock, Vault may have changed the password long ago.
    fn notice_jump(&mut self, now: Now) {
        let (seen, seen_at) = self.seen;
        self.seen = (now, Instant::now());
        let suspended = now.boot.saturating_sub(seen.boot).abs_diff(seen_at.elapsed());
        let jump = now.jump_since(seen).max(suspended);
        if jump > MAX_JUMP {
            warn!(event = "clock.jumped", vault_path = %self.vault_path, seconds = jump.as_secs());
            self.plan.read_soon(now.boot);
            if let Some(tenure) = &mut self.tenure {
                tenure.reconsider(now);
            }
        }
    }

    /// Revokes the token after the requests under it. Takes five seconds at most.
    async fn end(mut self) -> ChainEnd {
        let began = Instant::now();
        self.ends = true;
        // Nobody is answered any more, and is told so at once.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        self.asks.clear();
        self.publisher.withdraw();
        if let Some(tenure) = self.tenure.take() {
            self.release(&tenure);
        }
        let mut end = ChainEnd::default();
        while self.revoking > 0 || self.plan.is_logging_in() {
            let limit = if self.revoking > 0 { end::MAX_END } else { token::MAX_WAIT };
            match time::timeout_at(began + limit, self.tasks.join_next()).await {
                Ok(Some(Ok(report))) => {
                    if let Report::Revoked(result) = &report {
                        *(if result.is_ok() { &mut end.revoked } else { &mut end.failed }) += 1;
                    }
                    self.on_report(report);
                }
                Ok(Some(Err(fault))) => self.on_fault(&fault),
                Ok(None) | Err(_) => break,
            }
        }
        end.failed += self.revoking;
        gauges::forget(&self.metrics, &self.vault_path);
        info!(event = "lease.chain_ended", vault_path = %self.vault_path, revoked = end.revoked, failed = end.failed);
        end
    }

    fn view(&self) -> View {
        View {
            now: self.now().boot,
            serves: self.current.is_some(),
            clients_wait: *self.waiting.borrow() > 0,
            u: fastrand::f64(),
        }
    }

    fn now(&self) -> Now {
        (self.clock)()
    }

    fn needs_login(&self, now: Now) -> bool {
        !self.tenure.as_ref().is_some_and(|tenure| tenure.is_fit(now))
    }

    fn has_living_token(&self, now: Now) -> bool {
        self.tenure.as_ref().is_some_and(|tenure| tenure.lives(now))
    }

    fn passwords(&self) -> impl Iterator<Item = &Password> {
        self.current.iter().chain(&self.candidate)
    }

    fn passwords_mut(&mut self) -> impl Iterator<Item = &mut Password> {
        self.current.iter_mut().chain(&mut self.candidate)
    }
}
