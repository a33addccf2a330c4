//! The way to Vault, as `vault` goes it for a chain: connection, login, creds, renewal, and all of it given back.
//!
//! The shell: what is asked, and in which order. What the answers mean is judged by the modules below, which are pure.

mod command;
mod identity;
mod policy;
mod refusal;
mod revocation;
mod term;
mod way;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{self, Instant};

use super::name::Name;
use super::report::{Found, Recorder};
use super::throwaway::{OwnCredential, OwnLogin, Throwaway};
use crate::config::{self, LoginMethod, VaultConfig};
use crate::ids::LeaseId;
use crate::vault::{Answer, Health, Identity, TokenKind, Vault, VaultApi};

use command::Commands;
use policy::Has;
use refusal::Asked;
use term::{Lease, Rotation, Token};

/// Vault, and what was learned of it on the way.
pub(super) struct Way {
    vault: Arc<Vault>,
    config: VaultConfig,
    record: Recorder,
    /// The paths to be read, each once.
    vault_paths: Vec<String>,
    health: Option<Health>,
    identity: Option<Identity>,
}

impl Way {
    pub(super) fn new(
        vault: Arc<Vault>,
        config: VaultConfig,
        vault_paths: Vec<String>,
        record: Recorder,
    ) -> Self {
        Self { vault, config, record, vault_paths, health: None, identity: None }
    }

    /// Looks Vault up, connects, begins TLS, and asks how it is. Whether a login is worth trying.
    pub(super) async fn reach(&mut self) -> bool {
        let is_reached = self.connect().await && self.shake_hands().await && self.ask_health().await;
        if !is_reached {
            self.record.skip(Name::VaultLogin, self.login_subject(), "there is no way to Vault").await;
        }
        is_reached
    }

    /// Every address by itself; requests take the first that answers.
    async fn connect(&self) -> bool {
        // Settings have it as a URL.
        let Some(hop) = self.vault.hop() else { return false };
        let place = format!("{}:{}", hop.host, hop.port);
        let looking = async {
            let found = within(lookup_host((hop.host.as_str(), hop.port))).await;
            match found.map(Iterator::collect::<Vec<SocketAddr>>) {
                Ok(addresses) if !addresses.is_empty() => {
                    let list = addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>();
                    Found::fine(list.join(", ")).with(addresses)
                }
                Ok(_) => way::unresolved(&hop, &io::ErrorKind::NotFound.into()),
                Err(error) => way::unresolved(&hop, &error),
            }
        };
        let Some(addresses) = self.record.step(Name::VaultResolve, place, looking).await else {
            return false;
        };
        let (mut tried, mut is_reached) = (Vec::new(), false);
        for address in addresses {
            let begins_at = Instant::now();
            let connected = within(TcpStream::connect(address)).await.map(drop);
            is_reached |= connected.is_ok();
            tried.push((address, begins_at.elapsed(), connected));
        }
        for (address, took, connected) in tried {
            let found = match connected {
                Ok(()) => Found::fine(if hop.is_proxy { "connected, to vault.proxy" } else { "connected" }),
                Err(error) => way::unreached(&hop, &error),
            };
            let found = if is_reached { found.at_most_a_warning() } else { found };
            self.record.write(Name::VaultConnect, address.to_string(), took, found).await;
        }
        is_reached
    }

    async fn shake_hands(&self) -> bool {
        let (Some(hop), address) = (self.vault.hop(), &self.config.address) else { return false };
        let work = async {
            match self.vault.shake_hands().await {
                Ok(None) => Found::fine("plain HTTP"),
                Ok(Some(shown)) => way::judge_tls(&shown, &self.config, now()),
                Err(error) => way::no_tls(&*error, &hop, &self.config),
            }
        };
        self.record.step(Name::VaultTls, address, work).await.is_some()
    }

    async fn ask_health(&mut self) -> bool {
        let (before, mut is_hidden) = (now(), false);
        let work = async {
            match self.vault.look_at_health().await {
                Ok(health) => way::judge_health(&health).with(health),
                // Something in front of Vault may keep it from others.
                Err(error) if error.answer() == Answer::Denied => {
                    is_hidden = true;
                    Found::skipped(error.to_string())
                }
                Err(error) => refusal::fault(&error, self.asked("")),
            }
        };
        self.health = self.record.step(Name::VaultHealth, &self.config.address, work).await;
        if let Some(seconds) = self.health.as_ref().and_then(|health| health.server_time_utc) {
            let ahead = way::ahead(seconds, before, now());
            self.record.write(Name::VaultClock, "", Duration::ZERO, way::judge_clock(ahead)).await;
        }
        self.health.is_some() || is_hidden
    }

    /// Reads what to log in with, and logs in.
    pub(super) async fn log_in(&mut self, throwaway: &Throwaway) -> Option<OwnLogin> {
        let subject = match &self.config.login.method {
            LoginMethod::Kubernetes { jwt_file: path, .. }
            | LoginMethod::Jwt { jwt_file: path, .. }
            | LoginMethod::AppRole { secret_id_file: path, .. }
            | LoginMethod::TokenFile { token_file: path } => path.display().to_string(),
            LoginMethod::Cert { .. } => "vault.client_cert_file".to_owned(),
        };
        let reading = async {
            match self.vault.read_identity() {
                Ok(identity) => identity::judge(&identity, now()).with(identity),
                Err(error) => refusal::fault(&error, self.asked("")),
            }
        };
        self.identity = self.record.step(Name::VaultIdentity, subject, reading).await;
        if let LoginMethod::AppRole { wrapped: true, .. } = self.config.login.method {
            let because = "the wrapping token can be opened once, and that is for the proxy";
            self.record.skip(Name::VaultLogin, self.login_subject(), because).await;
            return None;
        }
        let first = self.vault_paths.first().map_or("", String::as_str);
        let work = async {
            match throwaway.log_in().await {
                Ok(login) => Found::fine(format!("a token for {}", term::life(login.grant.ttl))).with(login),
                Err(error) => refusal::fault(&error, self.asked(first)),
            }
        };
        self.record.step(Name::VaultLogin, self.login_subject(), work).await
    }

    /// Reads a credential of this path.
    pub(super) async fn read_creds(
        &self,
        throwaway: &Throwaway,
        login: &OwnLogin,
        vault_path: &str,
    ) -> Option<OwnCredential> {
        let work = async {
            let read = if config::is_static(vault_path) {
                throwaway.read_static_creds(login, vault_path).await
            } else {
                throwaway.read_creds(login, vault_path).await
            };
            match read {
                Ok(made) => {
                    let OwnCredential { credential, grant } = &made;
                    let life = term::life(grant.ttl);
                    let found = match credential.lease {
                        Some(_) => format!("{} for {life}", credential.user),
                        None => format!("{}, of a static role; another password in {life}", credential.user),
                    };
                    Found::fine(found).with(made)
                }
                Err(error) => refusal::fault(&error, self.asked(vault_path)),
            }
        };
        self.record.step(Name::VaultCreds, vault_path, work).await
    }

    /// How long token and leases last, whether both are renewed, and what of that the policies do not allow.
    pub(super) async fn look_ahead(
        &self,
        throwaway: &Throwaway,
        login: &OwnLogin,
        credentials: &[(&str, &OwnCredential)],
    ) {
        let commands = Commands { config: &self.config };
        let mut tried = Vec::new();
        let token = self.look_at_token(throwaway, login, &mut tried).await;
        let mut leases = Vec::new();
        for (vault_path, own) in credentials {
            if let Some(id) = &own.credential.lease {
                let work = async {
                    let lease = self.look_at_lease(throwaway, login, (id, own), &mut tried).await;
                    term::judge_lease(&lease, vault_path, commands).with(lease)
                };
                if let Some(lease) = self.record.step(Name::VaultLease, *vault_path, work).await {
                    leases.push((*vault_path, lease));
                }
            }
        }
        self.look_at_policies(login, &token, !leases.is_empty(), &tried).await;
        for (vault_path, lease) in &leases {
            let (token, method) = (&token, &self.config.login.method);
            let jwt_left = self.jwt_left();
            let rotation = Rotation { token, lease, jwt_left, vault_path, method };
            let found = term::judge_rotation(rotation, commands);
            self.record.write(Name::VaultRotation, *vault_path, Duration::ZERO, found).await;
        }
    }

    async fn look_at_token(
        &self,
        throwaway: &Throwaway,
        login: &OwnLogin,
        tried: &mut Vec<(String, Has)>,
    ) -> Token {
        let begins_at = Instant::now();
        let (own, kind) = (login.token.token(), login.token.kind());
        login.token.look_up_once(&*self.vault).await;
        let facts = self.vault.look_at_self(own).await.map_err(|error| error.answer());
        tried.push((policy::LOOK_UP_SELF.to_owned(), has(facts.as_ref().err())));
        let renewed = if kind == TokenKind::Service && login.grant.ttl.is_some() && login.grant.renewable {
            let renewal = self.vault.renew_self(own, RENEW_TIMEOUT);
            let renewed = throwaway.renew(None, login.grant.ttl, renewal).await;
            let renewed = renewed.map_err(|error| error.answer());
            tried.push((policy::RENEW_SELF.to_owned(), has(renewed.as_ref().err())));
            Some(renewed)
        } else {
            None
        };
        let token = Token { kind, granted: login.grant, facts: facts.ok(), renewed };
        let commands = Commands { config: &self.config };
        let found = term::judge_token(&token, &self.config.login.method, commands);
        self.record.write(Name::VaultToken, "", begins_at.elapsed(), found).await;
        token
    }

    /// Looks it up, stretches it to learn its maximum, and renews it as the proxy does, which undoes that.
    async fn look_at_lease(
        &self,
        throwaway: &Throwaway,
        login: &OwnLogin,
        (id, own): (&LeaseId, &OwnCredential),
        tried: &mut Vec<(String, Has)>,
    ) -> Lease {
        let (token, commands) = (login.token.token(), Commands { config: &self.config });
        let looked_up = self.vault.look_up_lease(token, id).await.map_err(|error| error.answer());
        tried.push((commands.policy_path(policy::LOOK_UP), has(looked_up.as_ref().err())));
        let stretched = throwaway.renew(Some(id), None, self.vault.stretch_lease(token, id)).await;
        let renewal = self.vault.renew_lease(token, id, RENEW_TIMEOUT);
        let renewed = throwaway.renew(Some(id), own.grant.ttl, renewal).await;
        let renewed = renewed.map_err(|error| error.answer());
        tried.push((commands.policy_path(policy::RENEW), has(renewed.as_ref().err())));
        let is_capped_by_token = login.token.kind() == TokenKind::Batch;
        let longest = stretched.ok().and_then(|grant| grant.ttl).filter(|_| !is_capped_by_token);
        Lease { granted: own.grant, renewed, longest }
    }

    /// What was tried tells, where the token may not ask.
    async fn look_at_policies(
        &self,
        login: &OwnLogin,
        token: &Token,
        has_leases: bool,
        tried: &[(String, Has)],
    ) {
        let commands = Commands { config: &self.config };
        let work = async {
            let rights = policy::needed(token.kind, has_leases, commands);
            let paths: Vec<String> = rights.iter().map(|right| right.path.clone()).collect();
            let told = self.vault.list_capabilities(login.token.token(), &paths).await.unwrap_or_default();
            let known = rights.into_iter().map(|right| {
                let by_trial =
                    tried.iter().find(|(path, _)| *path == right.path).map_or(Has::Unknown, |(_, has)| *has);
                let has = match policy::by_capabilities(&right, &told) {
                    Has::Unknown => by_trial,
                    // Behind another namespace's name it is asked in vain.
                    Has::No if by_trial == Has::Yes => Has::Yes,
                    told @ (Has::Yes | Has::No) => told,
                };
                (right, has)
            });
            let policies = token.facts.as_ref().map_or(&[][..], |facts| &facts.policies);
            policy::judge(&known.collect::<Vec<_>>(), policies)
        };
        self.record.step(Name::VaultPolicy, "", work).await;
    }

    /// Of the login's JWT, where tokens are renewed only while that holds: OpenBao's kubernetes method.
    fn jwt_left(&self) -> Option<Duration> {
        let is_vault = self.health.as_ref().is_some_and(|health| health.version.starts_with("1."));
        match (&self.config.login.method, &self.identity) {
            (LoginMethod::Kubernetes { .. }, Some(Identity::Jwt { claims: Some(claims), .. }))
                if !is_vault =>
            {
                claims.expires_at.map(|end| end.saturating_sub(now()))
            }
            _ => None,
        }
    }

    fn asked<'a>(&'a self, vault_path: &'a str) -> Asked<'a> {
        Asked { config: &self.config, identity: self.identity.as_ref(), vault_path, now: now() }
    }

    fn login_subject(&self) -> String {
        match &self.config.login.method {
            LoginMethod::Kubernetes { mount, role, .. } | LoginMethod::Jwt { mount, role, .. } => {
                format!("auth/{mount} as {role}")
            }
            LoginMethod::AppRole { mount, .. } | LoginMethod::Cert { mount, role: None } => {
                format!("auth/{mount}")
            }
            LoginMethod::Cert { mount, role: Some(role) } => format!("auth/{mount} as {role}"),
            LoginMethod::TokenFile { .. } => "a token in a file".to_owned(),
        }
    }
}

/// Gives everything back, and says what could not be. `true`: all of it is, or there was nothing.
pub(super) async fn give_back(throwaway: &Throwaway, record: &Recorder) -> bool {
    let work = async {
        match throwaway.give_back().await {
            Some(given) => revocation::judge(&given),
            None => Found::skipped("nothing was made"),
        }
    };
    record.step(Name::VaultRevoke, "", work).await.is_some()
}

/// Whether a request that ended so was allowed.
fn has(refusal: Option<&Answer>) -> Has {
    match refusal {
        None => Has::Yes,
        Some(Answer::Denied) => Has::No,
        Some(_) => Has::Unknown,
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    time::timeout(CONNECT_TIMEOUT, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// As requests have it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest that the proxy gives a renewal.
const RENEW_TIMEOUT: Duration = Duration::from_secs(15);
