//! Credentials for sessions: fetches them from Vault, proves and publishes them, and keeps each alive while a session
//! holds it.
//!
//! A [`Chain`] is one task for each `vault_path`, on the control thread; `app` runs it until it is told to stop. It
//! owns the tasks of its requests, which end within their timeouts, and ends with them. What is to be done is
//! decided by pure tables: [`chain`] for the chain, [`state`], [`keeper`], [`proof`] and [`check`] for a generation,
//! [`schedule`] for points in time. The other files do it and feed the answers back.

mod aftermath;
mod budget;
mod chain;
mod check;
mod checking;
mod clock;
mod control;
mod end;
mod fetch;
mod gauges;
mod generation;
mod keeper;
mod learning;
mod promotion;
mod proof;
mod requests;
mod retire;
mod schedule;
pub(crate) mod simulation;
mod state;
mod static_role;
mod status;
mod term;
mod token;
mod upkeep;
mod upstreams;
mod warnings;
mod witness;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::chain::{ChainAction, ChainEvent, ChainState, Phase, View};
use self::check::Haste;
use self::clock::{Clock, Now};
use self::control::{Asked, Command};
use self::fetch::Fetch;
use self::generation::Generation;
use self::learning::Learning;
use self::requests::Report;
use self::status::LastError;
use self::warnings::Warnings;
use crate::credential::{Credential, Publisher, Suspicion};
use crate::ids::GenerationId;
use crate::telemetry::{Causes, Metrics, ResultLabels};
use crate::upstream::{Probe, UpstreamError};
use crate::vault::VaultApi;

pub(crate) use self::control::{ChainHandle, NoAnswer, Rotated};
pub(crate) use self::end::ChainEnd;
pub(crate) use self::static_role::StaticChain;
#[cfg(test)]
pub(crate) use self::status::RotationStatus;
pub(crate) use self::status::{ChainStatus, GenerationStatus, LastError as ChainError};
pub(crate) use self::token::{LiveToken, Requests};
pub(crate) use self::upstreams::Upstreams;
pub(crate) use self::witness::{Effect, Footing, MAX_WATCH, RoleWitness, Seen, Witness, watch};

/// Tries a credential at one upstream.
pub(crate) trait Prove: Send + Sync + 'static {
    /// Logs in and out again. The caller bounds the time.
    fn prove(&self, credential: &Credential) -> impl Future<Output = Result<(), UpstreamError>> + Send;

    /// A session on a credential.
    type Witness: Witness;

    /// Logs in to stay. The caller bounds the time.
    fn open(
        &self,
        credential: &Credential,
    ) -> impl Future<Output = Result<Self::Witness, UpstreamError>> + Send;
}

impl Prove for Probe {
    async fn prove(&self, credential: &Credential) -> Result<(), UpstreamError> {
        Self::prove(self, credential).await
    }

    type Witness = RoleWitness;

    async fn open(&self, credential: &Credential) -> Result<RoleWitness, UpstreamError> {
        Self::open(self, credential).await.map(RoleWitness::new)
    }
}

/// What one chain is for.
#[derive(Debug)]
pub(crate) struct ChainSettings<P = Probe> {
    pub(crate) vault_path: String,
    pub(crate) upstreams: watch::Receiver<Upstreams<P>>,
}

/// The succession of credentials of one `vault_path`.
pub(crate) struct Chain<V, P = Probe> {
    vault_path: Arc<str>,
    upstreams: upstreams::Current<P>,
    vault: Arc<V>,
    publisher: Publisher,
    waiting: watch::Receiver<usize>,
    metrics: Arc<Metrics>,
    clock: Clock,
    state: ChainState,
    fetch: Fetch,
    generations: BTreeMap<GenerationId, Generation>,
    last_generation: u64,
    learning: Learning,
    /// Revocations under way.
    revoking: usize,
    warnings: Warnings,
    /// When a token was looked up with success for the last time, on the boot clock.
    looked_up_at: Duration,
    last_error: Option<LastError>,
    handle: ChainHandle,
    commands: mpsc::Receiver<Command>,
    asked: Asked,
    /// When the clocks were last looked at.
    seen: (Now, Instant),
    tasks: JoinSet<Report>,
}

/// What brings the chain's task back to work.
enum Wake {
    Stop,
    Report(Result<Report, JoinError>),
    Suspicion(Suspicion),
    Command(Command),
    ClientWaits,
    Upstreams,
    Due,
}

impl<V: VaultApi, P: Prove> Chain<V, P> {
    /// A chain that has done nothing yet.
    pub(crate) fn new(
        settings: ChainSettings<P>,
        vault: Arc<V>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self::with_clock(settings, vault, publisher, metrics, Arc::new(Now::read))
    }

    fn with_clock(
        settings: ChainSettings<P>,
        vault: Arc<V>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let vault_path: Arc<str> = settings.vault_path.into();
        let (handle, commands) = ChainHandle::new(Arc::clone(&vault_path), "leased");
        Self {
            vault_path,
            upstreams: upstreams::Current::new(settings.upstreams),
            vault,
            waiting: publisher.waiting(),
            publisher,
            metrics,
            seen: (clock(), Instant::now()),
            clock,
            state: ChainState::default(),
            fetch: Fetch::default(),
            generations: BTreeMap::new(),
            last_generation: 0,
            learning: Learning::default(),
            revoking: 0,
            warnings: Warnings::default(),
            looked_up_at: Duration::ZERO,
            last_error: None,
            handle,
            commands,
            asked: Asked::default(),
            tasks: JoinSet::new(),
        }
    }

    /// What an operator asks it by.
    pub(crate) fn handle(&self) -> ChainHandle {
        self.handle.clone()
    }

    /// Publishes credentials until `stop`, then revokes all of them within five seconds. Sessions should have
    /// ended before. Ends in no other way; may be dropped at any point, which revokes nothing.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> ChainEnd {
        self.feed(ChainEvent::Started);
        loop {
            match self.wake(&stop).await {
                Wake::Stop => return self.end().await,
                Wake::Report(Ok(report)) => self.on_report(report),
                Wake::Report(Err(error)) => self.on_fault(&error),
                Wake::Suspicion(suspicion) => self.on_suspicion(suspicion),
                Wake::Command(command) => self.on_command(command),
                Wake::ClientWaits => self.feed(ChainEvent::ClientWaits),
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
        let due = self.generations.values().filter_map(|generation| generation.next_due(now));
        let due = due.chain(self.state.attempt_at()).min().map(|at| at.saturating_sub(now.boot));
        due.unwrap_or(TICK).clamp(LEAST_PAUSE, TICK)
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::LoggedIn { asked_at, result } => self.on_logged_in(asked_at, result),
            Report::CredsRead { token, asked_at, result, token_is_dead } => {
                self.on_creds_read(&token, asked_at, result, token_is_dead);
            }
            Report::NoSibling { token, error } => self.on_no_sibling(&token, &error),
            Report::Probed { generation, prover, result } => {
                self.on_probed(generation, prover, result.as_ref());
            }
            Report::Checked { generation, asked_at, found } => self.on_checked(generation, asked_at, found),
            Report::Renewed { generation, kind, asked_at, result } => {
                self.on_renewed(generation, kind, asked_at, &result);
            }
            Report::TokenSeen { generation, asked_at, result } => {
                self.on_token_seen(generation, asked_at, result);
            }
            Report::Released(generation) => self.on_released(generation),
            Report::Revoked { with, result } => self.on_revoked(with, result),
            Report::Learned(tried) => self.on_learned(*tried),
            Report::RevocationDue(retired) => self.look_for(retired),
            Report::LookedFor { retired, result } => self.on_looked_for(&retired, &result),
            Report::Aborted => {}
            Report::ReadAborted => self.fetch.strays = self.fetch.strays.saturating_sub(1),
        }
    }

    /// A login that was rejected is reason enough for a new credential, as a client waits for it, if the rejected one
    /// is still offered. Whether its open sessions must end is looked into.
    fn on_suspicion(&mut self, suspicion: Suspicion) {
        match suspicion {
            Suspicion::Rejected(id) => {
                self.raise_check(id, Haste::Refused);
                if self.current().is_some_and(|current| current.id() == id) {
                    self.feed(ChainEvent::Rejected);
                }
            }
            Suspicion::Doubted(id) => self.raise_check(id, Haste::Doubted),
        }
    }

    /// A task of ours panicked. Which one is not known, so all requests count as lost.
    fn on_fault(&mut self, fault: &JoinError) {
        error!(event = "lease.fault", vault_path = %self.vault_path, error = %fault);
        let now = self.now();
        for generation in self.generations.values_mut() {
            generation.keeper.forget_requests();
            generation.check.forget_request(now.boot);
            if let Some(proof) = generation.proof_mut() {
                proof.forget_requests(now.boot);
            }
        }
        self.forget_throw_away(Some(fault.id()));
        self.forget_attempt();
    }

    /// Does what time has made due.
    fn advance(&mut self) {
        let now = self.now();
        self.notice_jump(now);
        self.end_the_expired(now);
        self.renew_due(now);
        self.check_due(now);
        self.prove_due(now);
        self.judge_candidate(now);
        self.judge_current(now);
        self.rotate_due(now);
        self.feed(ChainEvent::Tick);
        self.learn_due(now);
        self.announce_ends(now);
        self.answer_closing();
        self.update_gauges();
    }

    /// After a suspension, or when somebody set the clock, what was planned is looked at anew.
    fn notice_jump(&mut self, now: Now) {
        let (seen, seen_at) = self.seen;
        self.seen = (now, Instant::now());
        let suspended = now.boot.saturating_sub(seen.boot).abs_diff(seen_at.elapsed());
        let jump = now.jump_since(seen).max(suspended);
        if jump > MAX_JUMP {
            warn!(event = "clock.jumped", vault_path = %self.vault_path, seconds = jump.as_secs());
            self.generations.values_mut().for_each(|generation| generation.reconsider(now));
        }
    }

    /// Takes the chain's table a step on, and does what it says.
    fn feed(&mut self, event: ChainEvent) {
        let before = self.state.phase();
        let (state, actions) = self.state.on(event, self.view());
        self.state = state;
        // While an attempt runs, it is as it was.
        if state.phase().is_stranded() || !state.phase().is_unserved() {
            self.publisher.note_rejection(state.phase().is_stranded());
        }
        if let (None, Some(trigger)) = (before.trigger(), state.phase().trigger()) {
            info!(event = "rotation.start", vault_path = %self.vault_path, trigger = %trigger);
        }
        for action in actions {
            match action {
                ChainAction::Renew => self.renew_before_attempt(),
                ChainAction::Begin => self.begin_attempt(),
                ChainAction::Abandon => self.abandon(before),
                ChainAction::Withdraw => self.publisher.withdraw(),
                ChainAction::Promote => self.promote(before.trigger()),
            }
        }
    }

    fn abandon(&mut self, before: Phase) {
        self.abandon_attempt();
        if let Some(trigger) = before.trigger() {
            info!(event = "rotation.abandoned", vault_path = %self.vault_path, trigger = %trigger);
            self.count_rotation(trigger, "abandoned");
        }
    }

    fn view(&self) -> View {
        let now = self.now();
        View {
            now: now.boot,
            left: self.current().map(|current| current.keeper.left(now)).unwrap_or_default(),
            clients_wait: *self.waiting.borrow() > 0,
            u: fastrand::f64(),
        }
    }

    fn now(&self) -> Now {
        (self.clock)()
    }

    fn current(&self) -> Option<&Generation> {
        self.generations.values().find(|generation| generation.is_current())
    }

    fn current_mut(&mut self) -> Option<&mut Generation> {
        self.generations.values_mut().find(|generation| generation.is_current())
    }
}

fn count(family: &Family<ResultLabels, Counter>, ok: bool) {
    family.get_or_create(&ResultLabels { result: if ok { "ok" } else { "failed" } }).inc();
}

/// For the log: a grant of 10 s that is a millisecond old says 10.
fn whole_seconds(span: Duration) -> u64 {
    span.saturating_add(Duration::from_millis(500)).as_secs()
}

/// The clocks are looked at as often.
const TICK: Duration = Duration::from_secs(1);

const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// The clocks may drift apart by so much between two ticks.
const MAX_JUMP: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
