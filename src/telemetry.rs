//! What an operator sees: the set-up of the log and every metric by name. Runs no task.
//!
//! Log lines carry a stable name in the field `event`; metrics are `pglease_…`, with no label that a client can
//! choose.

mod injector;

use std::error::Error;
use std::fmt::{Display, Formatter};
use std::io;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogConfig, LogFormat};

pub(crate) use injector::{InjectorMetrics, OutcomeLabels};

/// Starts the log on stderr: this crate's lines at the level asked for, those of its libraries from `warn` up.
pub(crate) fn start_log(config: &LogConfig) -> Result<(), TryInitError> {
    let libraries = config.level.min(tracing::Level::WARN);
    let filter =
        Targets::new().with_target("pglease", config.level).with_default(LevelFilter::from(libraries));
    let lines = match config.format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_target(false)
            .with_writer(io::stderr)
            .boxed(),
        LogFormat::Text => fmt::layer().with_target(false).with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()
}

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
    pub(crate) bytes: Family<DirectionLabels, Counter>,
    pub(crate) cancel_requests: Family<ResultLabels, Counter>,
    /// With clients.
    pub(crate) tls_handshakes: Family<ResultLabels, Counter>,
    /// Sessions that wait for a credential.
    pub(crate) clients_waiting: Gauge,
    /// TCP connect to ReadyForQuery.
    pub(crate) upstream_connect_seconds: Histogram,
    pub(crate) upstream_connect_failures: Family<ConnectFailureLabels, Counter>,
    /// Hosts that were asked in a login and did not serve, whatever became of the login.
    pub(crate) upstream_host_failures: Family<HostFailureLabels, Counter>,
    /// Logins that upstream refused for reason of our credential.
    pub(crate) upstream_auth_rejects: Counter,
    /// Unix time of the end of the current lease, as known now.
    pub(crate) lease_expiry: Family<ChainLabels, Gauge>,
    /// Unix time of the end of the current token, as known now.
    pub(crate) token_expiry: Family<ChainLabels, Gauge>,
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
            bytes: Family::default(),
            cancel_requests: Family::default(),
            tls_handshakes: Family::default(),
            clients_waiting: Gauge::default(),
            upstream_connect_seconds: request_seconds(),
            upstream_connect_failures: Family::default(),
            upstream_host_failures: Family::default(),
            upstream_auth_rejects: Counter::default(),
            lease_expiry: Family::default(),
            token_expiry: Family::default(),
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
        };
        metrics.register_sessions();
        metrics.register_leases();
        metrics
    }

    /// The text that Prometheus scrapes, in the OpenMetrics format.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        encode(&self.registry)
    }

    fn register_sessions(&mut self) {
        let registry = &mut self.registry;
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
        let registry = &mut self.registry;
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
}

/// The chain a figure belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ChainLabels {
    pub(crate) vault_path: String,
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

/// One that says which pglease this is.
fn registry() -> Registry {
    let mut registry = Registry::with_prefix("pglease");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of this pglease", build);
    registry
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
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Metrics with one sample of each that has labels.
    fn touched() -> Metrics {
        let metrics = Metrics::new();
        let word = "word";
        let result = || ResultLabels { result: word };
        let chain = || ChainLabels { vault_path: "database/creds/db-app".to_owned() };
        let generation = GenerationLabels { vault_path: chain().vault_path, generation: word };
        let failure = ConnectFailureLabels { reason: word, sqlstate: String::new() };

        let _ = metrics.sessions.get_or_create(&generation);
        let _ = metrics.sessions_outlived_lease.get_or_create(&chain());
        let _ = metrics.session_seconds.get_or_create(&SessionEndLabels { reason: word });
        let _ = metrics.session_errors.get_or_create(&SqlStateLabels { sqlstate: word.to_owned() });
        let _ = metrics.bytes.get_or_create(&DirectionLabels { direction: word });
        let _ = metrics.cancel_requests.get_or_create(&result());
        let _ = metrics.tls_handshakes.get_or_create(&result());
        let _ = metrics.upstream_connect_failures.get_or_create(&failure);
        let host = HostFailureLabels { host: "db:5432".to_owned(), reason: word };
        let _ = metrics.upstream_host_failures.get_or_create(&host);
        metrics.lease_expiry.get_or_create(&chain()).set(1_700_000_000);
        let _ = metrics.token_expiry.get_or_create(&chain());
        let _ =
            metrics.generations.get_or_create(&StateLabels { vault_path: chain().vault_path, state: word });
        let _ = metrics.lease_issued.get_or_create(&result());
        let _ = metrics.token_renewals.get_or_create(&result());
        metrics.lease_renewals.get_or_create(&result()).inc();
        let _ = metrics.lease_revocations.get_or_create(&result());
        let _ = metrics.rotations.get_or_create(&RotationLabels { trigger: word, result: word });
        let _ = metrics.vault_requests.get_or_create(&VaultLabels { op: word, code: word.to_owned() });
        let _ = metrics.vault_request_seconds.get_or_create(&OperationLabels { op: word });
        metrics
    }

    /// Names in the braces of a sample, but for a histogram's own.
    fn labels(sample: &str) -> Vec<&str> {
        let inside = sample
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .map_or("", |(inside, _)| inside);
        let names = inside.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
        names.filter(|name| *name != "le").collect()
    }

    #[test]
    fn scrape_carries_names_units_and_labels() {
        let text = touched().encode().unwrap();
        for line in [
            "pglease_build_info{version=\"",
            "pglease_lease_renewals_total{result=\"word\"} 1\n",
            "pglease_lease_expiry_timestamp_seconds{vault_path=\"database/creds/db-app\"} 1700000000\n",
            "pglease_clients_waiting 0\n",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }

    /// The table that docs have of what is scraped.
    pub(super) fn docs_table(text: &str) -> String {
        let mut table = "| metric | type | labels | what it counts |\n| --- | --- | --- | --- |\n".to_owned();
        for block in text.split("# HELP ").skip(1) {
            let (name, rest) = block.split_once(' ').unwrap();
            let (help, rest) = rest.split_once(".\n# TYPE ").unwrap();
            let (kind, rest) = rest.split_once('\n').unwrap();
            let kind = kind.rsplit(' ').next().unwrap();
            let sample = rest.lines().find(|line| line.starts_with(name)).unwrap();
            let labels: Vec<_> = labels(sample).into_iter().map(|label| format!("`{label}`")).collect();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            let _ = writeln!(table, "| `{name}{suffix}` | {kind} | {} | {help} |", labels.join(", "));
        }
        table
    }

    #[test]
    fn docs_list_every_metric() {
        let table = docs_table(&touched().encode().unwrap());
        let docs = include_str!("../docs/metrics.md");
        assert!(docs.contains(&table), "docs/metrics.md should have:\n\n{table}");
    }
}
