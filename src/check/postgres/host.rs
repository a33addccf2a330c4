//! One host of a route by itself: where it is, whether it is reached, what it shows in TLS, whether it takes the
//! credential.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{self, Instant};

use super::ask::{self, Row};
use super::login::Server;
use super::trouble::{Elsewhere, Place, fault};
use super::{Own, STEP, Visit, certificate, login};
use crate::check::fault::Fault;
use crate::check::name::Name;
use crate::check::report::{Found, Recorder};
use crate::check::{ANY_DATABASE, Target};
use crate::config::{self, UpstreamConfig};
use crate::telemetry::Causes;
use crate::upstream::{Address, Inquiry, LoggedIn, OnCredential, QueryError, Upstream, UpstreamError};
use crate::wire::startup::StartupParameters;

/// A host, and how far the way to it goes.
#[derive(Clone, Debug)]
pub(super) struct Host {
    config: UpstreamConfig,
    name: String,
    /// `None` where there is no way to it.
    reached: Option<Reached>,
}

#[derive(Clone, Debug)]
struct Reached {
    upstream: Arc<Upstream>,
    ours: Option<IpAddr>,
}

/// How a login at a host went.
#[derive(Debug)]
pub(super) struct Tried {
    took: Duration,
    /// How long it was rejected before.
    rejected_for: Duration,
    result: Result<Server, Refusal>,
    elsewhere: Elsewhere,
    /// Where a pooler has let us in.
    keys: Option<Keys>,
}

/// What came of logins with what drivers say at a session's start.
#[derive(Debug)]
enum Keys {
    /// These were refused, with this word on the first; all were taken where there are none.
    Refused(Vec<&'static str>, Option<UpstreamError>),
    Untold(UpstreamError),
}

#[derive(Debug)]
enum Refusal {
    Login(UpstreamError),
    Query(QueryError),
}

impl Host {
    /// Goes as far as TLS.
    pub(super) async fn reach(config: UpstreamConfig, host: &config::Host, record: &Recorder) -> Self {
        let name = host.to_string();
        let upstream = match Upstream::load(&config) {
            Ok(upstream) => Arc::new(upstream),
            Err(error) => {
                let found = Found::<()>::fault(
                    Fault::File,
                    Causes(&error).to_string(),
                    "a file that `upstream` names is not what it should be",
                    "correct sslrootcert, sslcert, sslkey or sslcrl in `upstream`, or the file",
                );
                record.write(Name::PostgresTls, &name, Duration::ZERO, found).await;
                return Self { config, name, reached: None };
            }
        };
        let reaching = reach(&upstream, &config);
        let Some((address, ours)) = record.step(Name::PostgresReach, &name, reaching).await else {
            return Self { config, name, reached: None };
        };
        let is_socket = matches!(host.place, config::Place::Socket(_));
        let handshake = async {
            match upstream.shake_hands(&address, Instant::now() + STEP).await {
                Ok(Some(shown)) => certificate::judge(&shown, &config, since_1970()),
                Ok(None) => certificate::judge_plain(is_socket),
                Err(error) => fault(&error, &place(&config, ours, &Elsewhere::default())),
            }
        };
        let is_secure = record.step(Name::PostgresTls, &name, handshake).await.is_some();
        Self { config, name, reached: is_secure.then_some(Reached { upstream, ours }) }
    }

    /// As settings have it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_as(&self, config: &UpstreamConfig) -> bool {
        self.config == *config
    }

    /// Logs in, and out again. Where the role is not known, tries for some seconds: replicas and poolers learn of a new
    /// one late. `None` where there is no way.
    pub(super) async fn try_login(&self, own: Own<'_>, database: &str) -> Option<Tried> {
        let Reached { upstream, .. } = self.reached.as_ref()?;
        let (begins_at, mut rejected_since) = (Instant::now(), None);
        let logged_in = loop {
            let tried = Box::pin(log_in(upstream, own, database, None)).await;
            match tried {
                Err(error) if error.on_credential() == OnCredential::Rejected => {
                    let since = *rejected_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= MAX_LAG {
                        break Err(error);
                    }
                    time::sleep(PAUSE_WHILE_REJECTED).await;
                }
                other => break other,
            }
        };
        let (mut elsewhere, mut keys) = (Elsewhere::default(), None);
        let (took, rejected_for) =
            (begins_at.elapsed(), rejected_since.map_or(Duration::ZERO, |since: Instant| since.elapsed()));
        let result = match logged_in {
            Ok(logged_in) => {
                let (mut session, greeted_as) = session_of(logged_in);
                let server = server(&mut session, greeted_as).await;
                session.close().await;
                if server.as_ref().is_ok_and(Server::is_behind_another) {
                    keys = Some(Box::pin(try_keys(upstream, own, database)).await);
                }
                server.map_err(Refusal::Query)
            }
            Err(error) => {
                if error.on_credential() == OnCredential::Accepted {
                    elsewhere = look_elsewhere(upstream, own).await.unwrap_or_default();
                }
                Err(Refusal::Login(error))
            }
        };
        Some(Tried { took, rejected_for, result, elsewhere, keys })
    }

    /// Writes down how the login went, beside those at the other hosts. Gives back whether it went well.
    pub(super) async fn write(
        &self,
        visit: &Visit,
        tried: Option<Tried>,
        accepted_elsewhere: bool,
        record: &Recorder,
    ) -> bool {
        let Some(Tried { took, rejected_for, result, elsewhere, keys }) = tried else {
            record.skip(Name::PostgresLogin, &self.name, "there is no way to this host").await;
            return false;
        };
        let found = match result {
            Ok(server) => login::judge(&server, &self.config, rejected_for),
            Err(Refusal::Query(error)) => {
                Found::skipped(format!("logged in; what the server is cannot be told: {}", Causes(&error)))
            }
            Err(Refusal::Login(error)) => {
                let ours = self.reached.as_ref().and_then(|reached| reached.ours);
                let place = Place {
                    database: &visit.target.database,
                    vault_path: &visit.target.vault_path,
                    startup_role: visit.target.startup_role(),
                    accepted_elsewhere,
                    ..place(&self.config, ours, &elsewhere)
                };
                fault(&error, &place)
            }
        };
        let is_in = record.write(Name::PostgresLogin, &self.name, took, found).await.is_some();
        let found = match keys {
            None => return is_in,
            Some(Keys::Refused(refused, word)) => {
                login::judge_keys(&refused, word.as_ref().map(|word| Causes(word).to_string()))
            }
            Some(Keys::Untold(error)) => Found::skipped(format!("cannot be told: {}", Causes(&error))),
        };
        record.write(Name::PostgresParameters, &self.name, Duration::ZERO, found).await;
        is_in
    }

    pub(super) fn ours(&self) -> Option<IpAddr> {
        self.reached.as_ref().and_then(|reached| reached.ours)
    }
}

impl Tried {
    /// Whether the host has taken the credential, whatever came then.
    pub(super) fn has_accepted(&self) -> bool {
        match &self.result {
            Ok(_) | Err(Refusal::Query(_)) => true,
            Err(Refusal::Login(error)) => error.on_credential() == OnCredential::Accepted,
        }
    }
}

/// How the logins at hosts went.
#[derive(Debug, Default)]
pub(super) struct Logins(Vec<Ended>);

/// A login that was tried.
#[derive(Debug)]
struct Ended {
    host: UpstreamConfig,
    database: String,
    vault_path: String,
    /// Whether it went well.
    is_in: bool,
}

impl Logins {
    pub(super) fn add(&mut self, host: &Host, target: &Target, is_in: bool) {
        let Target { database, vault_path, .. } = target;
        let (database, vault_path) = (database.clone(), vault_path.clone());
        self.0.push(Ended { host: host.config.clone(), database, vault_path, is_in });
    }

    /// How that at this host went for somebody else, if there was one.
    pub(super) fn earlier(&self, host: &Host, target: &Target) -> Option<bool> {
        let same = (&host.config, &target.database, &target.vault_path);
        let ended = self.0.iter().find(|ended| (&ended.host, &ended.database, &ended.vault_path) == same);
        ended.map(|ended| ended.is_in)
    }
}

/// Looks the host up and connects to each of its addresses; gives the first that answers, and our own.
async fn reach(upstream: &Upstream, config: &UpstreamConfig) -> Found<(Address, Option<IpAddr>)> {
    let (elsewhere, mut reached, mut failed) = (Elsewhere::default(), Vec::new(), Vec::new());
    let addresses = match upstream.look_up(Instant::now() + STEP).await {
        Ok(addresses) => addresses,
        Err(error) => return fault(&error, &place(config, None, &elsewhere)),
    };
    let limit = config.connect_timeout.map_or(STEP, |limit| limit.min(STEP));
    for address in addresses {
        match upstream.knock(&address, Instant::now() + limit).await {
            Ok(ours) => reached.push((address, ours)),
            Err(error) => failed.push((address, error)),
        }
    }
    let named = |address: &Address| address.socket().to_string();
    let Some((first, ours)) = reached.first().cloned() else {
        return match failed.first() {
            Some((_, error)) => fault(error, &place(config, None, &elsewhere)),
            None => Found::skipped("the host has no address"),
        };
    };
    let all: Vec<_> = reached.iter().map(|(address, _)| named(address)).collect();
    let found = format!("connected to {}", all.join(", "));
    let found = match failed.first() {
        None => Found::fine(found),
        // A name with addresses of both families, and a server on one of them, is in order: the other is asked in vain.
        Some((address, error)) => {
            Found::fine(format!("{found}; not to {}: {}", named(address), Causes(error)))
        }
    };
    found.with((first, ours))
}

/// Logs in with all of [`KEYS`], and with each by itself where that is refused: who refuses names the first alone.
async fn try_keys(upstream: &Upstream, own: Own<'_>, database: &str) -> Keys {
    let tried = async |keys: &[(&str, &str)]| match log_in_with(upstream, own, database, keys).await {
        Ok(logged_in) => {
            session_of(logged_in).0.close().await;
            Ok(None)
        }
        Err(error @ UpstreamError::Refused { .. }) => Ok(Some(error)),
        Err(error) => Err(Keys::Untold(error)),
    };
    let trying = async {
        let word = tried(KEYS).await?;
        let mut refused = Vec::new();
        if word.is_some() {
            for key in KEYS {
                if tried(&[*key]).await?.is_some() {
                    refused.push(key.0);
                }
            }
        }
        Ok(Keys::Refused(refused, word))
    };
    trying.await.unwrap_or_else(|untold| untold)
}

/// Logs in at whichever host `upstream` has.
pub(super) async fn log_in(
    upstream: &Upstream,
    own: Own<'_>,
    database: &str,
    role: Option<&str>,
) -> Result<LoggedIn, UpstreamError> {
    let role = role.map(|role| ("role", role));
    log_in_with(upstream, own, database, role.as_slice()).await
}

/// The same with further startup parameters.
async fn log_in_with(
    upstream: &Upstream,
    own: Own<'_>,
    database: &str,
    further: &[(&str, &str)],
) -> Result<LoggedIn, UpstreamError> {
    let mut parameters = StartupParameters::default();
    parameters.push("database", database);
    parameters.push("application_name", "pglease check");
    for (name, value) in further {
        parameters.push(name, value);
    }
    upstream.log_in(own.credential, &parameters, Instant::now() + STEP).await
}

/// The session, and the pid that it was greeted with.
pub(super) fn session_of(logged_in: LoggedIn) -> (Inquiry, Option<i32>) {
    let greeted_as = logged_in.cancel.as_ref().map(|cancel| cancel.key.pid);
    (Inquiry::new(logged_in), greeted_as)
}

pub(super) async fn server(session: &mut Inquiry, greeted_as: Option<i32>) -> Result<Server, QueryError> {
    let read = |row: &mut Row<'_>| {
        let (version, in_recovery, read_only, pid) =
            (row.number()?, row.yes()?, row.text()? == "on", row.number()?);
        Some(Server { version, in_recovery, read_only, pid, greeted_as, was_authenticated: None })
    };
    let server = ask::row(session, SERVER, read).await?;
    let was_authenticated = match server.version {
        // `system_user` says how we have shown who we are, and nothing where nobody has asked.
        160_000.. => {
            Some(ask::row(session, "SELECT system_user IS NOT NULL", |row| Some(row.text()? == "t")).await?)
        }
        _ => None,
    };
    Ok(Server { was_authenticated, ..server })
}

/// Groups and databases, as the one database that nearly every server has shows them.
async fn look_elsewhere(upstream: &Upstream, own: Own<'_>) -> Option<Elsewhere> {
    let logged_in = Box::pin(log_in(upstream, own, ANY_DATABASE, None)).await.ok()?;
    let (mut session, _) = session_of(logged_in);
    let text = |row: &mut Row<'_>| row.text().map(str::to_owned);
    let groups = ask::rows(&mut session, GROUPS, text).await;
    let databases = ask::rows(&mut session, DATABASES, text).await;
    session.close().await;
    Some(Elsewhere { groups: groups.ok()?, databases: databases.ok()? })
}

/// A place in which only the host is known.
fn place<'a>(upstream: &'a UpstreamConfig, ours: Option<IpAddr>, elsewhere: &'a Elsewhere) -> Place<'a> {
    Place {
        upstream,
        database: "",
        vault_path: "",
        startup_role: None,
        as_startup_role: false,
        ours,
        accepted_elsewhere: false,
        elsewhere,
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

const SERVER: &str = "SELECT pg_catalog.current_setting('server_version_num'), pg_catalog.pg_is_in_recovery(), \
    pg_catalog.current_setting('transaction_read_only'), pg_catalog.pg_backend_pid()";

const GROUPS: &str = "SELECT g.rolname FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid \
    JOIN pg_catalog.pg_roles r ON r.oid = m.member WHERE r.rolname = session_user ORDER BY 1";

const DATABASES: &str =
    "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1 LIMIT 20";

/// Startup parameters that drivers send and poolers refuse unless they are told to let them pass: JDBC's driver sends the
/// one always, libpq and others the other where a connection string or `PGOPTIONS` has it. With values that do no harm.
const KEYS: &[(&str, &str)] = &[("extra_float_digits", "2"), ("options", "-c geqo=on")];

/// As a proof of a credential has it.
const MAX_LAG: Duration = Duration::from_secs(5);
const PAUSE_WHILE_REJECTED: Duration = Duration::from_millis(250);
