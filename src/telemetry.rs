//! What an operator sees: the set-up of the log and every metric by name. Runs no task.
//!
//! Log lines carry a stable name in the field `event`; metrics are `pglease_…`, with no label that a client can
//! choose.

mod answers;
mod certificates;
mod figures;
mod files;
mod injector;
mod log;
pub(crate) mod scrape;
mod traffic;

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::sync::Arc;
use std::time::SystemTime;

pub(crate) use answers::{Answers, Failure, in_words, unix_now};
pub(crate) use certificates::{CertificateEnds, CertificateLabels};
use dashmap::DashMap;
pub(crate) use figures::Figures;
pub(crate) use files::{FileLabels, FileMetrics, FileResultLabels};
pub(crate) use injector::{InjectorMetrics, OutcomeLabels};
pub(crate) use log::{end_log, level, say_repeats, set_level, start_log};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
pub(crate) use traffic::{ByteCounter, Traffic};

use crate::config::RouteConfig;

/// An error with all that is behind it, in one line.
#[derive(Debug)]
pub(crate) struct Causes<'a>(pub(crate) &'a dyn Error);

impl Display for Causes<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Every metric of `pglease proxy`. Cheap to clone where a task wants its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Open sessions by the age of their credential, as of the last second.
    pub(crate) sessions: Family<GenerationLabels, Gauge>,
    /// Sessions whose lease is over and that go on, as of the last second.
    pub(crate) sessions_outlived_lease: Family<ChainLabels, Gauge>,
    /// Accept to close.
    pub(crate) session_seconds: Family<SessionEndLabels, Histogram, fn() -> Histogram>,
    /// Errors that the end of a session's role would explain.
    pub(crate) session_errors: Family<SqlStateLabels, Counter>,
    /// Relayed bytes.
    pub(crate) bytes: Traffic,
    pub(crate) cancel_requests: Family<ResultLabels, Counter>,
    /// With clients.
    pub(crate) tls_handshakes: Family<ResultLabels, Counter>,
    /// Sessions that wait for a credential.
    pub(crate) clients_waiting: Gauge,
    /// TCP connect to ReadyForQuery.
    pub(crate) upstream_connect_seconds: Histogram,
    /// Sessions that are logged in ahead and have no client yet.
    pub(crate) warm_sessions: Family<RouteLabels, Gauge>,
    /// What became of them, and of clients that might have had one.
    pub(crate) warm: Family<ResultLabels, Counter>,
    pub(crate) upstream_connect_failures: Family<ConnectFailureLabels, Counter>,
    /// Hosts that were asked in a login and did not serve, whatever became of the login.
    pub(crate) upstream_host_failures: Family<HostFailureLabels, Counter>,
    /// Logins that upstream refused for reason of our credential.
    pub(crate) upstream_auth_rejects: Counter,
    /// Unix time of the end of the current lease, as known now.
    pub(crate) lease_expiry: Family<ChainLabels, Gauge>,
    /// Unix time of the end of the current token, as known now.
    pub(crate) token_expiry: Family<ChainLabels, Gauge>,
    /// What Vault granted at the last renewal of the current lease: the whole of which its end leaves a part.
    pub(crate) lease_duration: Family<ChainLabels, Gauge>,
    /// The same of its token.
    pub(crate) token_duration: Family<ChainLabels, Gauge>,
    /// Generations that are there, as of the last second.
    pub(crate) generations: Family<StateLabels, Gauge>,
    pub(crate) lease_issued: Family<ResultLabels, Counter>,
    pub(crate) lease_renewals: Family<ResultLabels, Counter>,
    pub(crate) token_renewals: Family<ResultLabels, Counter>,
    pub(crate) lease_revocations: Family<ResultLabels, Counter>,
    pub(crate) rotations: Family<RotationLabels, Counter>,
    /// Leases that pglease could not revoke: they end by themselves.
    pub(crate) orphans: Counter,
    /// Leases that came to their end, and that Vault had not revoked 10 s later.
    pub(crate) revocations_blocked: Counter,
    pub(crate) vault_requests: Family<VaultLabels, Counter>,
    pub(crate) vault_request_seconds: Family<OperationLabels, Histogram, fn() -> Histogram>,
    pub(crate) files: FileMetrics,
    /// For `/status`, as the next.
    pub(crate) vault_answers: Answers,
    /// By host, as settings have it.
    pub(crate) host_answers: DashMap<String, Arc<Answers>>,
    pub(crate) config_reloads: Family<ResultLabels, Counter>,
    /// Unix time at which the settings in effect were read.
    pub(crate) config_loaded: Gauge,
    /// 1 while the file is of no use, and the settings before it are in effect.
    pub(crate) config_rejected: Gauge,
    pub(crate) certificates: CertificateEnds,
}

impl Metrics {
    /// The metrics, all registered. Those with labels appear with their first count.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: registry(),
            sessions: Family::default(),
            sessions_outlived_lease: Family::default(),
            session_seconds: Family::new_with_constructor(session_seconds),
            session_errors: Family::default(),
            bytes: Traffic::default(),
            cancel_requests: Family::default(),
            tls_handshakes: Family::default(),
            clients_waiting: Gauge::default(),
            upstream_connect_seconds: request_seconds(),
            warm_sessions: Family::default(),
            warm: Family::default(),
            upstream_connect_failures: Family::default(),
            upstream_host_failures: Family::default(),
            upstream_auth_rejects: Counter::default(),
            lease_expiry: Family::default(),
            token_expiry: Family::default(),
            lease_duration: Family::default(),
            token_duration: Family::default(),
            generations: Family::default(),
            lease_issued: Family::default(),
            lease_renewals: Family::default(),
            token_renewals: Family::default(),
            lease_revocations: Family::default(),
            rotations: Family::default(),
            orphans: Counter::default(),
            revocations_blocked: Counter::default(),
            vault_requests: Family::default(),
            vault_request_seconds: Family::new_with_constructor(request_seconds),
            files: FileMetrics::default(),
            vault_answers: Answers::default(),
            host_answers: DashMap::default(),
            config_reloads: Family::default(),
            config_loaded: Gauge::default(),
            config_rejected: Gauge::default(),
            certificates: CertificateEnds::default(),
        };
        metrics.register_sessions();
        metrics.register_leases();
        metrics.register_config();
        metrics.files.register(ours(&mut metrics.registry));
        metrics
    }

    /// All of them, in the OpenMetrics format.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        encode(&self.registry)
    }

    fn register_sessions(&mut self) {
        let registry = ours(&mut self.registry);
        registry.register("sessions", "Open sessions, as of the last second, by whether their credential is the current one or a superseded one", self.sessions.clone());
        registry.register(
            "sessions_outlived_lease",
            "Open sessions whose lease is over, as of the last second",
            self.sessions_outlived_lease.clone(),
        );
        registry.register_with_unit(
            "session",
            "Time from accept to close, by the reason of the end as in the log event session.end",
            Unit::Seconds,
            self.session_seconds.clone(),
        );
        registry.register(
            "session_errors",
            "Errors of upstream in open sessions that a role which has ended would explain, with everyday reasons of their own: 42501, 42704, 57P01",
            self.session_errors.clone(),
        );
        registry.register(
            "bytes",
            "Bytes relayed: frontend is client to upstream, backend upstream to client",
            self.bytes.clone(),
        );
        registry.register(
            "cancel_requests",
            "CancelRequests: delivered, failed, or miss where the key is no session's: a late client or a guess",
            self.cancel_requests.clone(),
        );
        registry.register(
            "tls_handshakes",
            "TLS handshakes with clients: ok or failed",
            self.tls_handshakes.clone(),
        );
        registry.register(
            "clients_waiting",
            "Sessions that wait for a credential",
            self.clients_waiting.clone(),
        );
        registry.register_with_unit(
            "upstream_connect",
            "Time of a login at an upstream that succeeded, from connect to ReadyForQuery",
            Unit::Seconds,
            self.upstream_connect_seconds.clone(),
        );
        registry.register(
            "warm_sessions",
            "Sessions that are logged in ahead, with route.warm, and have no client yet",
            self.warm_sessions.clone(),
        );
        registry.register(
            "warm",
            "Clients of a route with route.warm: hit where a session was ready, miss where not; and sessions that no client had: expired at the age of a minute, flushed for a rotation, a reload, a drain or a client without room, closed by upstream, stuck where it could not be given to the thread of its client, or failed to log in; panic where a bug of pglease ended what was ready",
            self.warm.clone(),
        );
        registry.register(
            "upstream_connect_failures",
            "Logins at an upstream that failed; sqlstate is empty where upstream said none",
            self.upstream_connect_failures.clone(),
        );
        registry.register(
            "upstream_host_failures",
            "Hosts that were asked in a login and did not serve it, whether or not another one did; proofs of a credential count, too",
            self.upstream_host_failures.clone(),
        );
        registry.register(
            "upstream_auth_rejects",
            "Logins at which an upstream did not accept the leased credential",
            self.upstream_auth_rejects.clone(),
        );
    }

    fn register_leases(&mut self) {
        let registry = ours(&mut self.registry);
        registry.register_with_unit(
            "lease_expiry_timestamp",
            "Unix time at which the current lease ends, as known now; absent while there is none",
            Unit::Seconds,
            self.lease_expiry.clone(),
        );
        registry.register_with_unit(
            "token_expiry_timestamp",
            "Unix time at which the current token ends, as known now; absent while there is none, or where it does not end",
            Unit::Seconds,
            self.token_expiry.clone(),
        );
        registry.register_with_unit(
            "lease_duration",
            "Time that Vault granted the current lease at its last renewal; absent while there is none",
            Unit::Seconds,
            self.lease_duration.clone(),
        );
        registry.register_with_unit(
            "token_duration",
            "Time that Vault granted the current token at its last renewal, of one that somebody else keeps the longest seen; absent as its end is",
            Unit::Seconds,
            self.token_duration.clone(),
        );
        registry.register(
            "generations",
            "Credentials of a chain by their state, as of the last second: candidate, current, superseded, revoking, or ended with open sessions",
            self.generations.clone(),
        );
        registry.register("lease_issued", "Reads of a credential: ok or failed", self.lease_issued.clone());
        registry.register("lease_renewals", "Renewals of a lease: ok or failed", self.lease_renewals.clone());
        registry.register("token_renewals", "Renewals of a token: ok or failed", self.token_renewals.clone());
        registry.register(
            "lease_revocations",
            "Revocations of a lease: ok or failed",
            self.lease_revocations.clone(),
        );
        registry.register(
            "rotations",
            "Rotations by what set them off: ok, unproven where no upstream gave a verdict, failed for each attempt that came to nothing, or abandoned where a renewal made it needless",
            self.rotations.clone(),
        );
        registry.register(
            "orphans",
            "Leases that pglease could not revoke: they end by themselves",
            self.orphans.clone(),
        );
        registry.register(
            "lease_revocations_blocked",
            "Leases that came to their end, and that Vault had not revoked 10 s later",
            self.revocations_blocked.clone(),
        );
        registry.register(
            "vault_requests",
            "Requests to Vault; code is the HTTP status, or none where no answer came",
            self.vault_requests.clone(),
        );
        registry.register_with_unit(
            "vault_request",
            "Time of a request to Vault",
            Unit::Seconds,
            self.vault_request_seconds.clone(),
        );
    }

    fn register_config(&mut self) {
        let registry = ours(&mut self.registry);
        registry.register(
            "config_reloads",
            "Reloads of the settings: ok, unchanged where there was nothing to do, or rejected",
            self.config_reloads.clone(),
        );
        registry.register_with_unit(
            "config_loaded_timestamp",
            "Unix time at which the settings in effect were read",
            Unit::Seconds,
            self.config_loaded.clone(),
        );
        registry.register(
            "config_rejected",
            "1 while the file is of no use and the settings before it are in effect, else 0",
            self.config_rejected.clone(),
        );
        self.certificates.register(registry);
    }
}

/// The chain a figure belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ChainLabels {
    pub(crate) vault_path: String,
}

/// A route, as settings have it; `*` is any.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RouteLabels {
    pub(crate) database: String,
    pub(crate) user: String,
}

impl RouteLabels {
    pub(crate) fn of(route: &RouteConfig) -> Self {
        let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
        Self { database: any(&route.database), user: any(&route.user) }
    }
}

/// The chain, and how old the credential is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct GenerationLabels {
    pub(crate) vault_path: String,
    /// `current` or `superseded`.
    pub(crate) generation: &'static str,
}

/// The chain, and how a credential stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabels {
    pub(crate) vault_path: String,
    /// As in `/status`.
    pub(crate) state: &'static str,
}

/// Why a session ended, in the words of the session's log line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SessionEndLabels {
    pub(crate) reason: &'static str,
}

/// What upstream said: one of a few codes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SqlStateLabels {
    pub(crate) sqlstate: String,
}

/// Which way bytes went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DirectionLabels {
    /// Of the messages: `frontend` is client to upstream, `backend` upstream to client.
    pub(crate) direction: &'static str,
}

/// How something ended: `ok`, `failed`, or a word of its own where there are more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ResultLabels {
    pub(crate) result: &'static str,
}

/// Why a rotation began, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RotationLabels {
    pub(crate) trigger: &'static str,
    pub(crate) result: &'static str,
}

/// Why an upstream login failed. `sqlstate` is empty where upstream said none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ConnectFailureLabels {
    pub(crate) reason: &'static str,
    pub(crate) sqlstate: String,
}

/// A host of an upstream, as settings have it, and why it did not serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HostFailureLabels {
    pub(crate) host: String,
    pub(crate) reason: &'static str,
}

/// What Vault was asked and answered; `code` is the HTTP status, or `none` where there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VaultLabels {
    pub(crate) op: &'static str,
    pub(crate) code: String,
}

/// What Vault was asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabels {
    pub(crate) op: &'static str,
}

/// One that says which pglease this is, and since when it runs.
fn registry() -> Registry {
    let mut registry = Registry::default();
    let start = Gauge::<i64>::default();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    start.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    // The name that every library of Prometheus gives it.
    let help = "Unix time at which this process began";
    registry.register_with_unit("process_start_time", help, Unit::Seconds, start);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    ours(&mut registry).register("build", "Version of this pglease", build);
    registry
}

/// The part of it whose names begin with `pglease_`.
fn ours(registry: &mut Registry) -> &mut Registry {
    registry.sub_registry_with_prefix("pglease")
}

fn encode(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}

fn request_seconds() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

fn session_seconds() -> Histogram {
    Histogram::new([0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0])
}

#[cfg(test)]
mod tests;
