//! A Vault and an upstream that keep the rules of the real ones, as far as the chain can tell.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Mutex;

use secrecy::{ExposeSecret, SecretString};

use super::*;
use crate::ids::LeaseId;
use crate::lease::witness::{Footing, Witness};
use crate::upstream::{OnCredential, QueryError};
use crate::vault::{Grant, Lease, Login, StaticCredential, Token, TokenKind, VaultError};
use crate::wire::error::{ErrorResponse, SqlState};

/// What a request gets instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Status(u16),
    Unreachable,
    /// Nothing until the caller's time is up.
    Silence,
    /// Something that is not Vault's.
    Malformed,
}

/// Grants, caps, and ends tokens and leases by the virtual clock.
pub(super) struct FakeVault {
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) lease_ttl: u64,
    pub(super) lease_max: u64,
    pub(super) token_ttl: u64,
    pub(super) token_max: u64,
    pub(super) renewable: bool,
    pub(super) token_kind: TokenKind,
    /// Which token is in the file, where somebody else writes it.
    pub(super) foreign: usize,
    /// Life of the JWT file's content at each login; renew-self is refused when it is over.
    pub(super) jwt_life: Option<u64>,
    pub(super) delay: Duration,
    /// Password of the static role, and when it changes.
    pub(super) password: (&'static str, Instant),
    faults: HashMap<Operation, Fault>,
    /// Whether leases stay when they come to their end.
    pub(super) revocation_is_blocked: bool,
    requests: Vec<(Operation, Instant)>,
    tokens: HashMap<String, Span>,
    leases: HashMap<String, (String, Span)>,
    reading: HashSet<String>,
    made: usize,
}

#[derive(Clone, Copy)]
struct Span {
    began: Instant,
    ends: Instant,
    revoked: bool,
}

impl Span {
    fn new(seconds: u64) -> Self {
        let began = Instant::now();
        Self { began, ends: began + secs(seconds), revoked: false }
    }

    fn lives(&self) -> bool {
        !self.revoked && Instant::now() < self.ends
    }

    /// Grants `ttl` within `max`, in whole seconds; `None` at the maximum.
    fn extend(&mut self, ttl: u64, max: u64) -> Option<Duration> {
        let left = (self.began + secs(max)).saturating_duration_since(Instant::now());
        let granted = left.min(secs(ttl));
        if granted < secs(1) {
            return None;
        }
        self.ends = Instant::now() + granted;
        Some(secs(granted.as_secs()))
    }
}

impl Default for FakeVault {
    /// Leases of 10 s up to an hour under tokens of an hour.
    fn default() -> Self {
        let state = State {
            lease_ttl: 10,
            lease_max: 3_600,
            token_ttl: 3_600,
            token_max: 86_400,
            renewable: true,
            token_kind: TokenKind::Service,
            foreign: 1,
            jwt_life: None,
            delay: ms(5),
            password: ("first", Instant::now() + secs(3_600)),
            faults: HashMap::new(),
            revocation_is_blocked: false,
            requests: Vec::new(),
            tokens: HashMap::new(),
            leases: HashMap::new(),
            reading: HashSet::new(),
            made: 0,
        };
        Self { state: Mutex::new(state) }
    }
}

impl FakeVault {
    /// Changes its settings.
    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub(super) fn fail(&self, operation: Operation, fault: Fault) {
        self.state.lock().unwrap().faults.insert(operation, fault);
    }

    pub(super) fn fail_all(&self, fault: Fault) {
        for operation in OPERATIONS {
            self.fail(operation, fault);
        }
    }

    pub(super) fn recover(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// When requests of a kind came.
    pub(super) fn requests(&self, operation: Operation) -> Vec<Instant> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|(of, _)| *of == operation).map(|(_, at)| *at).collect()
    }

    pub(super) fn count(&self, operation: Operation) -> usize {
        self.requests(operation).len()
    }

    pub(super) fn living_leases(&self) -> usize {
        let state = self.state.lock().unwrap();
        let lives = |(token, lease): &&(String, Span)| lease.lives() && state.tokens[token].lives();
        state.leases.values().filter(lives).count()
    }

    pub(super) fn living_tokens(&self) -> usize {
        self.state.lock().unwrap().tokens.values().filter(|token| token.lives()).count()
    }

    /// Ends every token, as an operator would.
    pub(super) fn revoke_all(&self) {
        self.state.lock().unwrap().tokens.values_mut().for_each(|token| token.revoked = true);
    }

    /// Renews every token, as its keeper would.
    pub(super) fn renew_tokens(&self) {
        let mut state = self.state.lock().unwrap();
        let ends = Instant::now() + secs(state.token_ttl);
        state.tokens.values_mut().for_each(|token| token.ends = ends);
    }

    /// Ends every lease, as an operator would.
    pub(super) fn revoke_leases(&self) {
        self.state.lock().unwrap().leases.values_mut().for_each(|(_, lease)| lease.revoked = true);
    }

    /// Notes the request and waits; then the fault that is set for it, if any.
    async fn arrive(&self, operation: Operation, timeout: Duration) -> Result<(), VaultError> {
        let (delay, fault) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push((operation, Instant::now()));
            (state.delay, state.faults.get(&operation).copied())
        };
        match fault {
            None => {
                time::sleep(delay.min(timeout)).await;
                if delay >= timeout { Err(VaultError::NoAnswer { operation, source: None }) } else { Ok(()) }
            }
            Some(Fault::Unreachable) => Err(VaultError::NoConnection { operation, source: None }),
            Some(Fault::Silence) => {
                time::sleep(timeout).await;
                Err(VaultError::NoAnswer { operation, source: None })
            }
            Some(Fault::Malformed) => {
                Err(VaultError::Unusable { operation, source: crate::vault::Unusable::NoLease })
            }
            Some(Fault::Status(status)) => Err(refused(operation, status)),
        }
    }

    fn check(&self, operation: Operation, token: &Token) -> Result<(), VaultError> {
        let state = self.state.lock().unwrap();
        let lives = state.tokens.get(token.text()).is_some_and(Span::lives);
        if lives { Ok(()) } else { Err(refused(operation, 403)) }
    }
}

impl VaultApi for FakeVault {
    async fn log_in(&self) -> Result<Login, VaultError> {
        self.arrive(Operation::Login, secs(15)).await?;
        let mut state = self.state.lock().unwrap();
        let ttl = state.token_ttl;
        let is_foreign = state.token_kind == TokenKind::Foreign;
        let number = if is_foreign { state.foreign } else { state.tokens.len() + 1 };
        let text = format!("s.{number}");
        let span = *state.tokens.entry(text.clone()).or_insert_with(|| Span::new(ttl));
        let left = span.ends.saturating_duration_since(Instant::now()).as_secs();
        if left == 0 || span.revoked {
            return Err(refused(Operation::Login, 403));
        }
        Ok(Login {
            token: Token::from_text(&text),
            kind: state.token_kind,
            grant: Grant {
                ttl: Some(secs(left)),
                renewable: state.renewable && state.token_kind != TokenKind::Batch,
            },
            jwt_expiry: state.jwt_life.map(|life| wall() + secs(life)),
        })
    }

    async fn look_up_self(&self, token: &Token) -> Result<Grant, VaultError> {
        self.arrive(Operation::LookUpSelf, secs(5)).await?;
        self.check(Operation::LookUpSelf, token)?;
        Ok(Grant { ttl: None, renewable: true })
    }

    async fn read_creds(&self, token: &Token, _: &str, timeout: Duration) -> Result<Lease, VaultError> {
        let _reading = Reading::begin(self, token);
        self.arrive(Operation::ReadCreds, timeout).await?;
        self.check(Operation::ReadCreds, token)?;
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let (id, user) = (format!("lease-{}", state.made), format!("v-{}", state.made));
        let ttl = state.lease_ttl;
        state.leases.insert(id.clone(), (token.text().to_owned(), Span::new(ttl)));
        Ok(Lease {
            id: LeaseId::from(id.as_str()),
            grant: Grant { ttl: Some(secs(ttl)), renewable: state.renewable },
            user,
            password: SecretString::from("secret"),
        })
    }

    async fn renew_lease(
        &self,
        token: &Token,
        lease: &LeaseId,
        timeout: Duration,
    ) -> Result<Grant, VaultError> {
        self.arrive(Operation::RenewLease, timeout).await?;
        self.check(Operation::RenewLease, token)?;
        let mut state = self.state.lock().unwrap();
        let (ttl, max) = (state.lease_ttl, state.lease_max);
        let (_, span) = state.leases.get_mut(lease.as_str()).unwrap();
        let granted = if span.lives() { span.extend(ttl, max) } else { None };
        let ttl = granted.ok_or_else(|| refused(Operation::RenewLease, 400))?;
        Ok(Grant { ttl: Some(ttl), renewable: true })
    }

    async fn renew_self(&self, token: &Token, timeout: Duration) -> Result<Grant, VaultError> {
        self.arrive(Operation::RenewSelf, timeout).await?;
        self.check(Operation::RenewSelf, token)?;
        let mut state = self.state.lock().unwrap();
        let (ttl, max, jwt_life) = (state.token_ttl, state.token_max, state.jwt_life);
        let span = state.tokens.get_mut(token.text()).unwrap();
        if jwt_life.is_some_and(|life| span.began + secs(life) <= Instant::now()) {
            return Err(refused(Operation::RenewSelf, 403));
        }
        let ttl = span.extend(ttl, max).ok_or_else(|| refused(Operation::RenewSelf, 500))?;
        Ok(Grant { ttl: Some(ttl), renewable: true })
    }

    async fn look_up_lease(&self, token: &Token, lease: &LeaseId) -> Result<Grant, VaultError> {
        self.arrive(Operation::LookUpLease, secs(5)).await?;
        self.check(Operation::LookUpLease, token)?;
        let state = self.state.lock().unwrap();
        let (of, span) = &state.leases[lease.as_str()];
        if !(span.lives() && state.tokens[of].lives() || state.revocation_is_blocked) {
            return Err(refused(Operation::LookUpLease, 400));
        }
        let left = span.ends.saturating_duration_since(Instant::now());
        Ok(Grant { ttl: Some(secs(left.as_secs())), renewable: state.renewable })
    }

    async fn expire_lease(&self, token: &Token, lease: &LeaseId) -> Result<(), VaultError> {
        self.arrive(Operation::ExpireLease, secs(2)).await?;
        self.check(Operation::ExpireLease, token)?;
        let mut state = self.state.lock().unwrap();
        state.leases.get_mut(lease.as_str()).unwrap().1.ends = Instant::now() + secs(1);
        Ok(())
    }

    async fn read_static_creds(&self, token: &Token, _: &str) -> Result<StaticCredential, VaultError> {
        self.arrive(Operation::ReadStaticCreds, secs(15)).await?;
        self.check(Operation::ReadStaticCreds, token)?;
        let (password, changes_at) = self.state.lock().unwrap().password;
        let ttl = secs(changes_at.saturating_duration_since(Instant::now()).as_secs());
        Ok(StaticCredential { user: "st".to_owned(), password: SecretString::from(password), ttl })
    }

    async fn revoke_self(&self, token: &Token) -> Result<(), VaultError> {
        let beside = self.state.lock().unwrap().reading.contains(token.text());
        assert!(!beside, "a creds read is under way under the token that is revoked");
        assert_eq!(self.state.lock().unwrap().token_kind, TokenKind::Service, "it is not ours to revoke");
        self.arrive(Operation::RevokeSelf, secs(2)).await?;
        self.check(Operation::RevokeSelf, token)?;
        self.state.lock().unwrap().tokens.get_mut(token.text()).unwrap().revoked = true;
        Ok(())
    }
}

/// A creds read under way.
struct Reading<'a>(&'a FakeVault, String);

impl<'a> Reading<'a> {
    fn begin(vault: &'a FakeVault, token: &Token) -> Self {
        let token = token.text().to_owned();
        vault.state.lock().unwrap().reading.insert(token.clone());
        Self(vault, token)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().reading.remove(&self.1);
    }
}

fn refused(operation: Operation, status: u16) -> VaultError {
    VaultError::Refused { operation, status, texts: String::new(), retry_after: None }
}

/// Unix time of the virtual clock, as far as no test has put it forward.
fn wall() -> Duration {
    thread_local! {
        static START: Instant = Instant::now();
    }
    WALL_START + START.with(Instant::elapsed)
}

/// What an upstream says to a probe login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Accepts,
    Rejects,
    Refuses(&'static str),
    Unreachable,
    Silent,
    Panics,
}

/// What a session sees of its role, from the second look on: the first is before the revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fate {
    #[default]
    Untouched,
    NoLogin,
    /// Loses its login at one look and its memberships at the next.
    NoLoginThenStripped,
    Dropped,
    /// The session gets this code.
    Told(&'static str),
    ConnectionLost,
    Panics,
}

/// An upstream that tells everyone the same.
#[derive(Default)]
pub(super) struct FakeUpstream {
    mood: Mutex<Mood>,
    /// Users that it rejects in any mood that lets others in.
    rejected: Mutex<HashSet<String>>,
    /// Every other is rejected, where one is set.
    password: Mutex<Option<&'static str>>,
    probes: AtomicU64,
    fate: Mutex<Fate>,
    witnesses: AtomicU64,
}

impl FakeUpstream {
    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Lets this user in no more.
    pub(super) fn reject(&self, user: &str) {
        self.rejected.lock().unwrap().insert(user.to_owned());
    }

    pub(super) fn set_password(&self, password: &'static str) {
        *self.password.lock().unwrap() = Some(password);
    }

    pub(super) fn accepts(&self, password: &SecretString) -> bool {
        self.password.lock().unwrap().is_none_or(|known| known == password.expose_secret())
    }

    pub(super) fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// What becomes of roles from here.
    pub(super) fn doom(&self, fate: Fate) {
        *self.fate.lock().unwrap() = fate;
    }

    /// Sessions that were opened to watch a role.
    pub(super) fn witnesses(&self) -> u64 {
        self.witnesses.load(Ordering::Relaxed)
    }

    fn answer(&self, credential: &Credential) -> Result<(), UpstreamError> {
        let address = "db:5432".to_owned();
        let mut mood = *self.mood.lock().unwrap();
        if mood == Mood::Accepts && self.rejected.lock().unwrap().contains(&credential.user)
            || !self.accepts(&credential.password)
        {
            mood = Mood::Rejects;
        }
        match mood {
            Mood::Accepts | Mood::Silent => Ok(()),
            Mood::Rejects => Err(UpstreamError::CredentialRejected { address, response: response("28P01") }),
            Mood::Refuses(code) => {
                let credential = match code {
                    "28000" => OnCredential::Doubtful,
                    code if code.starts_with('5') => OnCredential::Nothing,
                    _ => OnCredential::Accepted,
                };
                Err(UpstreamError::Refused { address, response: response(code), credential })
            }
            Mood::Unreachable => {
                Err(UpstreamError::Connect { address, source: io::ErrorKind::ConnectionRefused.into() })
            }
            Mood::Panics => panic!("scripted"),
        }
    }
}

fn response(code: &str) -> ErrorResponse {
    ErrorResponse { code: SqlState::parse(code.as_bytes()), ..ErrorResponse::parse(b"") }
}

/// A session that watches its role.
pub(super) struct FakeWitness {
    upstream: Arc<FakeUpstream>,
    looks: u32,
}

impl Witness for FakeWitness {
    async fn look(&mut self) -> Result<Option<Footing>, QueryError> {
        self.looks += 1;
        let footing = Footing { can_login: true, memberships: 2, dependencies: 1 };
        let without_login = Footing { can_login: false, ..footing };
        let fate = *self.upstream.fate.lock().unwrap();
        match fate {
            _ if self.looks == 1 => Ok(Some(footing)),
            Fate::Untouched => Ok(Some(footing)),
            Fate::NoLoginThenStripped if self.looks > 2 => {
                Ok(Some(Footing { memberships: 0, ..without_login }))
            }
            Fate::NoLogin | Fate::NoLoginThenStripped => Ok(Some(without_login)),
            Fate::Dropped => Ok(None),
            Fate::Told(code) => Err(QueryError::Refused { response: response(code) }),
            Fate::ConnectionLost => Err(QueryError::Closed),
            Fate::Panics => panic!("scripted"),
        }
    }

    async fn close(self) {}
}

impl Prove for Arc<FakeUpstream> {
    async fn prove(&self, credential: &Credential) -> Result<(), UpstreamError> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        if *self.mood.lock().unwrap() == Mood::Silent {
            std::future::pending::<()>().await;
        }
        self.answer(credential)
    }

    type Witness = FakeWitness;

    async fn open(&self, credential: &Credential) -> Result<FakeWitness, UpstreamError> {
        self.prove(credential).await?;
        self.witnesses.fetch_add(1, Ordering::Relaxed);
        Ok(Self::Witness { upstream: Self::clone(self), looks: 0 })
    }
}

pub(super) const OPERATIONS: [Operation; 8] = [
    Operation::Login,
    Operation::LookUpSelf,
    Operation::LookUpLease,
    Operation::ReadCreds,
    Operation::ReadStaticCreds,
    Operation::RenewLease,
    Operation::RenewSelf,
    Operation::RevokeSelf,
];

/// Unix time at which a test begins.
pub(super) const WALL_START: Duration = secs(1_700_000_000);
