//! What `/status` says: docs/status.md. Nothing secret. What a client chose, the names of its database and its
//! application, is text of bounded length.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::log::LogStatus;
use super::process::ProcessStatus;
use super::verdict::{self, Finding};
use super::{Admin, ask_all};
use crate::config::{AtLeaseEnd, Config, LoginMethod, PodConfig, RouteConfig, UpstreamConfig, VaultConfig};
use crate::file::FileStatus;
use crate::lease::{ChainHandle, ChainStatus, NoAnswer};
use crate::reload;
use crate::roster::{Line, Load, State};
use crate::telemetry::{Answers, CertificateLabels, Failure, Figures, Metrics, RouteLabels, unix_now};

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    /// `serving`, `draining` or `cut`.
    pub(super) phase: &'static str,
    pub(super) config: reload::Status,
    pub(super) log: LogStatus,
    /// What it comes to: who is at fault. The worst first; at least one.
    pub(super) verdict: Vec<Finding>,
    /// Unix time, as all that ends in `at`.
    pub(super) now: u64,
    pub(super) pod: PodStatus,
    pub(super) process: ProcessStatus,
    pub(super) vault: VaultStatus,
    pub(super) upstreams: UpstreamsStatus,
    pub(super) chains: Vec<ChainStatus>,
    pub(super) routes: Vec<RouteStatus>,
    /// In the order of the settings.
    pub(super) files: Vec<FileStatus>,
    /// Those that pglease shows to others.
    pub(super) certificates: Vec<CertificateStatus>,
    pub(super) sessions: SessionsStatus,
}

/// Where it runs, by Kubernetes' word.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct PodStatus {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

/// What settings say of Vault.
#[derive(Clone, Debug, Default)]
struct VaultPlace {
    address: String,
    login_method: &'static str,
}

impl VaultPlace {
    fn of(config: &VaultConfig) -> Self {
        let login_method = match config.login.method {
            LoginMethod::Kubernetes { .. } => "kubernetes",
            LoginMethod::Jwt { .. } => "jwt",
            LoginMethod::AppRole { .. } => "approle",
            LoginMethod::Cert { .. } => "cert",
            LoginMethod::TokenFile { .. } => "token_file",
        };
        Self { address: config.address.clone(), login_method }
    }
}

/// Vault, as it answers.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct VaultStatus {
    pub(super) address: String,
    pub(super) login_method: &'static str,
    /// Whether the last request went wrong.
    pub(super) failing: bool,
    /// Unix time of the last request that went well.
    pub(super) last_ok_at: Option<u64>,
    pub(super) last_error: Option<ErrorStatus>,
    /// By what was asked.
    pub(super) requests: Vec<RequestsStatus>,
}

/// What failed last, be it made good since.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ErrorStatus {
    pub(super) operation: &'static str,
    pub(super) kind: &'static str,
    /// HTTP status or SQLSTATE.
    pub(super) code: Option<String>,
    /// As in the log.
    pub(super) says: String,
    pub(super) at: u64,
}

/// Requests of one kind.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RequestsStatus {
    pub(super) operation: String,
    #[serde(flatten)]
    pub(super) figures: FiguresStatus,
}

/// How many, and how long they took.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct FiguresStatus {
    pub(super) count: u64,
    /// Of these.
    pub(super) failures: u64,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

/// All upstreams.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct UpstreamsStatus {
    /// Of sessions, at whichever host.
    pub(super) logins: FiguresStatus,
    /// Each once, in the order of the routes and of the files that name one.
    pub(super) hosts: Vec<HostStatus>,
    /// Which of them serve together.
    #[serde(skip)]
    pub(super) groups: Vec<Group>,
}

/// The hosts of one upstream, of a route or a file, and whose credential it takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) vault_path: String,
    pub(super) hosts: Vec<String>,
}

/// One host of an upstream, as it answers logins: those of sessions and those that prove a credential.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct HostStatus {
    /// As settings have it.
    pub(super) host: String,
    pub(super) logins: u64,
    pub(super) failures: u64,
    /// Whether the last login went wrong.
    pub(super) failing: bool,
    pub(super) last_ok_at: Option<u64>,
    /// How long that one took.
    pub(super) last_ok_seconds: Option<f64>,
    pub(super) last_error: Option<ErrorStatus>,
}

/// One route, in the order in which they are tried.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RouteStatus {
    /// `*` is any.
    pub(super) database: String,
    pub(super) user: String,
    pub(super) upstream: String,
    /// Names the chain.
    pub(super) vault_path: String,
    pub(super) startup_role: Option<String>,
    pub(super) at_lease_end: &'static str,
    /// Sessions that are to be logged in ahead, and that are now.
    pub(super) warm: usize,
    pub(super) warm_ready: i64,
    pub(super) optional: bool,
}

/// A certificate that pglease shows to others.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct CertificateStatus {
    /// The one that names it.
    pub(super) setting: &'static str,
    pub(super) file: String,
    pub(super) ends_at: u64,
}

/// The sessions that have a seat.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SessionsStatus {
    pub(super) open: usize,
    pub(super) max: usize,
    /// Those that run them.
    pub(super) threads: Vec<ThreadStatus>,
    /// How many do what.
    pub(super) states: StatesStatus,
    /// The oldest first, [`MAX_LISTED`] at most.
    pub(super) list: Vec<SessionStatus>,
}

/// One data thread.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ThreadStatus {
    /// As the system has it.
    pub(super) thread: String,
    /// Those that are no session among them: new ones go where there are fewest.
    pub(super) connections: usize,
}

/// How many sessions do what.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct StatesStatus {
    pub(super) waiting: usize,
    pub(super) login: usize,
    pub(super) idle: usize,
    pub(super) in_transaction: usize,
    pub(super) active: usize,
    pub(super) closing: usize,
}

/// One session.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SessionStatus {
    /// As in the log.
    pub(super) session: String,
    pub(super) state: &'static str,
    pub(super) state_seconds: u64,
    pub(super) age_seconds: u64,
    /// What its client asked for.
    pub(super) database: String,
    pub(super) application_name: String,
    /// Of the client: an address, or the user of a process at a Unix socket.
    pub(super) client: String,
    pub(super) vault_path: String,
    /// None before it has a credential.
    pub(super) generation: Option<String>,
    /// Of the backend that serves it.
    pub(super) pid: Option<i32>,
    pub(super) frontend_bytes: u64,
    pub(super) backend_bytes: u64,
}

impl Status {
    pub(super) async fn of(admin: &Admin) -> Self {
        let phase = admin.phase.borrow().as_str();
        let config = admin.config.borrow().clone();
        let (chains, in_effect) = (admin.chains.borrow().clone(), Arc::clone(&admin.in_effect.borrow()));
        let chains = ask_all(chains, |chain| async move {
            let status = chain.status().await;
            status.unwrap_or_else(|silence| silent(&chain, silence))
        });
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION"),
            phase,
            config,
            log: LogStatus::of(&in_effect.log),
            verdict: Vec::new(),
            chains: chains.await,
            now: unix_now(),
            pod: PodStatus::of(&in_effect.pod),
            process: ProcessStatus::read(),
            vault: VaultStatus::of(&VaultPlace::of(&in_effect.vault), &admin.metrics),
            upstreams: UpstreamsStatus::of(&in_effect, &admin.metrics),
            routes: in_effect.routes.iter().map(|route| RouteStatus::of(route, &admin.metrics)).collect(),
            certificates: CertificateStatus::all(&admin.metrics),
            files: admin.files.iter().map(|file| file.borrow().clone()).collect(),
            sessions: SessionsStatus::of(&admin.roster.lines(), in_effect.listen.max_sessions, &admin.loads),
        };
        status.verdict = verdict::verdict(&status);
        status
    }
}

impl PodStatus {
    fn of(pod: &PodConfig) -> Self {
        Self { name: pod.name.clone(), namespace: pod.namespace.clone() }
    }
}

impl VaultStatus {
    fn of(place: &VaultPlace, metrics: &Metrics) -> Self {
        let requests = metrics.vault_figures().into_iter();
        Self {
            address: place.address.clone(),
            login_method: place.login_method,
            failing: metrics.vault_answers.is_failing(),
            last_ok_at: metrics.vault_answers.last_ok().map(|(at, _)| at),
            last_error: metrics.vault_answers.last_failure().map(ErrorStatus::of),
            requests: requests
                .map(|(operation, figures)| RequestsStatus {
                    operation,
                    figures: FiguresStatus::of(&figures),
                })
                .collect(),
        }
    }
}

impl ErrorStatus {
    fn of(Failure { operation, kind, code, says, at }: Failure) -> Self {
        Self { operation, kind, code, says, at }
    }
}

impl FiguresStatus {
    fn of(figures: &Figures) -> Self {
        let Figures { count, failures, p50, p99 } = *figures;
        // To the microsecond.
        let rounded = |seconds: f64| (seconds * 1e6).round() / 1e6;
        Self { count, failures, p50_seconds: p50.map(rounded), p99_seconds: p99.map(rounded) }
    }
}

impl UpstreamsStatus {
    fn of(config: &Config, metrics: &Metrics) -> Self {
        let mut seen = BTreeSet::new();
        let of_routes = config.routes.iter().map(|route| (&route.vault_path, &route.upstream));
        let of_files = config.files.iter();
        let of_files = of_files.filter_map(|file| Some((&file.vault_path, file.upstream.as_ref()?)));
        let group = |(vault_path, upstream): (&String, &UpstreamConfig)| Group {
            vault_path: vault_path.clone(),
            hosts: upstream.hosts.iter().map(ToString::to_string).collect(),
        };
        let groups: Vec<_> = of_routes.chain(of_files).map(group).collect();
        let hosts = groups.iter().flat_map(|group| group.hosts.iter().cloned());
        let host = |host: String| {
            let answers =
                metrics.host_answers.get(&host).map(|answers| HostStatus::of(&host, answers.value()));
            answers.unwrap_or_else(|| HostStatus { host, ..HostStatus::default() })
        };
        Self {
            logins: FiguresStatus::of(&metrics.login_figures()),
            hosts: hosts.filter(|host| seen.insert(host.clone())).map(host).collect(),
            groups,
        }
    }
}

impl HostStatus {
    fn of(host: &str, answers: &Answers) -> Self {
        let [ok, failures] = answers.counts();
        let last_ok = answers.last_ok();
        Self {
            host: host.to_owned(),
            logins: ok + failures,
            failures,
            failing: answers.is_failing(),
            last_ok_at: last_ok.map(|(at, _)| at),
            last_ok_seconds: last_ok.map(|(_, took)| took.as_secs_f64()),
            last_error: answers.last_failure().map(ErrorStatus::of),
        }
    }
}

/// A chain that says nothing of itself.
fn silent(chain: &ChainHandle, silence: NoAnswer) -> ChainStatus {
    let state = match silence {
        NoAnswer::Ended => "ended",
        NoAnswer::NotYet => "silent",
    };
    ChainStatus::empty(chain, state)
}

impl RouteStatus {
    fn of(route: &RouteConfig, metrics: &Metrics) -> Self {
        let labels = RouteLabels::of(route);
        let warm_ready = metrics.warm_sessions.get(&labels).map_or(0, |ready| ready.get());
        let RouteLabels { database, user } = labels;
        Self {
            database,
            user,
            warm: route.warm,
            warm_ready,
            upstream: route.upstream.to_string(),
            vault_path: route.vault_path.clone(),
            startup_role: route.startup_role.clone(),
            at_lease_end: match route.at_lease_end {
                AtLeaseEnd::Auto => "auto",
                AtLeaseEnd::Leave => "leave",
                AtLeaseEnd::Close => "close",
            },
            optional: route.optional,
        }
    }
}

impl CertificateStatus {
    fn all(metrics: &Metrics) -> Vec<Self> {
        let known = metrics.certificates.known().into_iter();
        known.map(|(CertificateLabels { setting, file }, ends_at)| Self { setting, file, ends_at }).collect()
    }
}

impl SessionsStatus {
    fn of(lines: &[impl AsRef<Line>], max: usize, loads: &[(String, Load)]) -> Self {
        let mut states = StatesStatus::default();
        for line in lines {
            let count = match line.as_ref().state() {
                State::Waiting => &mut states.waiting,
                State::Login => &mut states.login,
                State::Idle => &mut states.idle,
                State::InTransaction => &mut states.in_transaction,
                State::Active => &mut states.active,
                State::Closing => &mut states.closing,
            };
            *count += 1;
        }
        let list = lines.iter().take(MAX_LISTED).map(|line| SessionStatus::of(line.as_ref())).collect();
        let threads = loads
            .iter()
            .map(|(thread, load)| ThreadStatus { thread: thread.clone(), connections: load.connections() });
        Self { open: lines.len(), max, threads: threads.collect(), states, list }
    }
}

impl SessionStatus {
    fn of(line: &Line) -> Self {
        let [frontend_bytes, backend_bytes] = line.bytes();
        Self {
            session: line.session.to_string(),
            state: line.state().as_str(),
            state_seconds: line.in_state().as_secs(),
            age_seconds: line.age().as_secs(),
            database: line.database().to_owned(),
            application_name: line.application_name().to_owned(),
            client: line.peer.to_string(),
            vault_path: line.vault_path().to_owned(),
            generation: line.generation().map(|generation| generation.to_string()),
            pid: line.pid(),
            frontend_bytes,
            backend_bytes,
        }
    }
}

/// Sessions that are listed one by one.
pub(super) const MAX_LISTED: usize = 1000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::ids::SessionId;
    use crate::roster::{Newcomer, Roster};

    #[tokio::test]
    async fn oldest_sessions_are_listed_and_all_are_counted() {
        let roster = Arc::new(Roster::default());
        let newcomer = |id| Newcomer {
            session: SessionId(id),
            began: Instant::now(),
            peer: crate::net::Peer::Unix { uid: 1000 },
            database: "wizard",
            application_name: "",
            vault_path: "database/creds/db-app",
        };
        let listed: Vec<_> = (1..=1500).rev().map(|id| roster.enter(newcomer(id))).collect();
        listed[0].line().enter(State::Active);
        let sessions = SessionsStatus::of(&roster.lines(), 2000, &[]);
        assert_eq!((sessions.open, sessions.max, sessions.list.len()), (1500, 2000, MAX_LISTED));
        assert_eq!((sessions.states.login, sessions.states.active), (1499, 1));
        let ends =
            [&sessions.list[0], &sessions.list[MAX_LISTED - 1]].map(|session| session.session.as_str());
        assert_eq!(ends, ["s1", "s1000"]);
        assert_eq!(
            (sessions.list[0].client.as_str(), sessions.list[0].generation.as_deref()),
            ("uid 1000", None)
        );
    }
}
