//! What one session on the throw-away credential can tell of server, role and database; and a session like those of the
//! route, which stays open.

use std::time::{Duration, SystemTime};

use super::clock::{self, Ahead};
use super::host::{self, Logins, Tried, log_in, session_of};
use super::login;
use super::ownership::{self, Made};
use super::remains::{self, Belongings, Grants, Roles};
use super::role::{self, LeasedRole, StartupRole};
use super::room::{self, Room, Wanted};
use super::trouble::{Elsewhere, Place, fault};
use super::watched::Session;
use super::{Own, Visit, ask, naming, quote};
use crate::check::name::Name;
use crate::check::report::{Found, Recorder};
use crate::check::{Target, Who};
use crate::telemetry::Causes;
use crate::upstream::{Inquiry, QueryError};

/// Logs in at each host, then looks around on the one that serves. `None` where there is no session to watch.
pub(super) async fn look(
    visit: &Visit,
    own: Own<'_>,
    logins: &mut Logins,
    max_sessions: usize,
    record: &Recorder,
) -> Option<Session> {
    if !log_in_everywhere(visit, own, logins, record).await {
        return None;
    }
    let (mut session, subject) = Box::pin(choose(visit, own, record)).await?;
    let looking = Looking { visit, own, subject: &subject, record };
    let seen = Box::pin(looking.around(&mut session, max_sessions)).await;
    // Before the next one, which a CONNECTION LIMIT of one would not let in beside it.
    session.close().await;
    let (role, may_act) = seen?;
    Box::pin(looking.as_sessions_do(&role, may_act)).await
}

/// Whether a host has let us in. What a route's sessions were told, a file's readers would be.
async fn log_in_everywhere(visit: &Visit, own: Own<'_>, logins: &mut Logins, record: &Recorder) -> bool {
    let target = &visit.target;
    let (mut all, mut is_in) = (Vec::new(), false);
    for host in &visit.hosts {
        match logins.earlier(host, target).filter(|_| target.who == Who::Readers) {
            Some(let_in) => is_in |= let_in,
            None => all.push((host, Box::pin(host.try_login(own, &target.database)).await)),
        }
    }
    let is_taken = is_in || all.iter().any(|(_, tried)| tried.as_ref().is_some_and(Tried::has_accepted));
    for (host, tried) in all {
        let let_in = host.write(visit, tried, is_taken, record).await;
        logins.add(host, target, let_in);
        is_in |= let_in;
    }
    is_in
}

/// Logs in as sessions do, at the host that they would go to; says where.
async fn choose(visit: &Visit, own: Own<'_>, record: &Recorder) -> Option<(Inquiry, String)> {
    let choosing = async {
        match log_in(&visit.target.upstream, own, &visit.target.database, None).await {
            Ok(logged_in) => {
                let address = logged_in.address.host().to_string();
                login::judge_choice(&address, &visit.target.config).with((session_of(logged_in).0, address))
            }
            Err(error) => fault(&error, &visit.place(None, false, &Elsewhere::default())),
        }
    };
    let name = visit.hosts.iter().map(host::Host::name).collect::<Vec<_>>().join(",");
    let (session, address) = if login::is_choice(&visit.target.config) {
        record.step(Name::PostgresChoice, name, choosing).await?
    } else {
        // The step before has said all; where it goes wrong now, it is said all the same.
        let found = Box::pin(choosing).await;
        match found.into_value() {
            Ok(value) => value,
            Err(found) => {
                record.write(Name::PostgresChoice, name, Duration::ZERO, found).await;
                return None;
            }
        }
    };
    Some((session, format!("{address}/{}", visit.target.database)))
}

impl Visit {
    fn place<'a>(
        &'a self,
        ours: Option<std::net::IpAddr>,
        as_startup_role: bool,
        elsewhere: &'a Elsewhere,
    ) -> Place<'a> {
        Place {
            upstream: &self.target.config,
            database: &self.target.database,
            vault_path: &self.target.vault_path,
            startup_role: self.target.startup_role(),
            as_startup_role,
            ours,
            accepted_elsewhere: true,
            elsewhere,
        }
    }
}

/// Where we look, and for what.
struct Looking<'a> {
    visit: &'a Visit,
    own: Own<'a>,
    subject: &'a str,
    record: &'a Recorder,
}

impl Looking<'_> {
    /// All that can be told as the leased role itself. Gives the role, and whether sessions can act as they should.
    async fn around(&self, session: &mut Inquiry, max_sessions: usize) -> Option<(LeasedRole, bool)> {
        let startup_role = self.visit.target.startup_role();
        self.clock(session).await;
        let role = match LeasedRole::ask(session).await {
            Ok(role) => role,
            Err(error) => {
                self.skip(Name::PostgresStartupRole, &error).await;
                return None;
            }
        };
        self.valid_until(&role).await;
        let may_act = self.startup_role(session, &role).await;
        if startup_role.is_none() {
            let judge = |places: Vec<_>| {
                ownership::judge_without_startup_role(&places, &role, &self.visit.target.who)
            };
            self.step(Name::PostgresOwnership, ownership::creatable(session), judge).await;
        }
        let heir = role.heir(startup_role);
        // How many sessions readers have, nobody has told.
        if self.visit.target.who != Who::Readers {
            let wanted = Wanted {
                max_sessions: u64::try_from(max_sessions).unwrap_or(u64::MAX),
                role_limit: role.connection_limit,
                database: &self.visit.target.database,
                group: &heir,
            };
            self.step(Name::PostgresConnections, Room::ask(session), |room| room::judge(room, wanted)).await;
        }
        self.remains(session, &role, &heir).await;
        match remains::hba_faults(session).await {
            Ok(Some(faults)) => self.write(Name::PostgresHba, remains::judge_hba(&faults)).await,
            // Nobody but superusers may see it, and that is in order.
            Ok(None) => {}
            Err(error) => self.skip(Name::PostgresHba, &error).await,
        }
        Some((role, may_act))
    }

    async fn clock(&self, session: &mut Inquiry) {
        let now = || {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        };
        let before = now();
        let asked = ask::row(session, CLOCK, |row| row.text()?.parse::<f64>().ok()).await;
        let judge = |theirs| clock::judge_clock(Ahead::of(theirs, before, now()));
        self.step(Name::PostgresClock, async { asked }, judge).await;
    }

    async fn valid_until(&self, role: &LeasedRole) {
        // A role that stays has no end that a lease could be held against.
        let Some(ttl) = self.own.ttl else { return };
        let left = ttl.saturating_sub(self.own.since.elapsed());
        let found = clock::judge_valid_until(role.valid_until, left, &self.visit.target.vault_path);
        self.write(Name::PostgresValidUntil, found).await;
    }

    /// Whether the route's sessions may begin as they are to.
    async fn startup_role(&self, session: &mut Inquiry, role: &LeasedRole) -> bool {
        let target = &self.visit.target;
        let Some(name) = target.startup_role() else {
            self.write(Name::PostgresStartupRole, role::judge_without_startup_role(role, &target.who)).await;
            return true;
        };
        let asking = async {
            let server = host::server(session, None).await?;
            StartupRole::ask(session, name, server.version).await
        };
        let found = match asking.await {
            Ok(seen) => role::judge_startup_role(name, seen, role, &target.vault_path),
            Err(error) => Found::skipped(format!("cannot be told: {}", Causes(&error))),
        };
        self.record.write(Name::PostgresStartupRole, self.subject, Duration::ZERO, found).await.is_some()
    }

    async fn remains(&self, session: &mut Inquiry, role: &LeasedRole, heir: &str) {
        let group = role.groups.first().map(|group| group.name.as_str());
        self.step(Name::PostgresGrants, Grants::ask(session), |grants| remains::judge_grants(&grants, group))
            .await;
        if self.own.ttl.is_none() {
            // A static role is the only one of its kind, and may own things.
            return;
        }
        let Some(pattern) = naming::pattern(&role.name) else {
            let because = format!(
                "cannot be told: nothing in the name {} looks random, so other leased roles are not known by theirs",
                quote::identifier(&role.name)
            );
            self.record.skip(Name::PostgresBelongings, self.subject, &*because).await;
            self.record.skip(Name::PostgresStaleRoles, self.subject, because).await;
            return;
        };
        let who = &self.visit.target.who;
        let judge = |all: Vec<Belongings>| remains::judge_belongings(&all, heir, who);
        self.step(Name::PostgresBelongings, Belongings::ask(session, &pattern), judge).await;
        let judge = |roles| remains::judge_roles(roles, &pattern);
        self.step(Name::PostgresStaleRoles, Roles::ask(session, &pattern), judge).await;
    }

    /// Logs in as sessions of the route do, has what they make looked at, and stays.
    async fn as_sessions_do(&self, role: &LeasedRole, may_act: bool) -> Option<Session> {
        let startup_role = self.visit.target.startup_role();
        if !may_act {
            let because = "postgres.startup_role failed";
            self.record.skip(Name::PostgresOwnership, self.subject, because).await;
            return None;
        }
        let Target { upstream, database, .. } = &self.visit.target;
        let logged_in = match log_in(upstream, self.own, database, startup_role).await {
            Ok(logged_in) => logged_in,
            Err(error) => {
                let ours = self.visit.hosts.iter().find_map(host::Host::ours);
                let elsewhere = Elsewhere::default();
                let place = self.visit.place(ours, startup_role.is_some(), &elsewhere);
                self.write(Name::PostgresStartupRole, fault::<()>(&error, &place)).await;
                return None;
            }
        };
        let (mut session, _) = session_of(logged_in);
        if let Some(startup_role) = startup_role {
            self.ownership(&mut session, startup_role).await;
        }
        Session::begin(
            session,
            self.visit.target.clone(),
            self.subject.to_owned(),
            role.name.clone(),
            self.own,
        )
        .await
    }

    async fn ownership(&self, session: &mut Inquiry, startup_role: &str) {
        let making = async {
            let server = host::server(session, None).await?;
            if server.in_recovery || server.read_only {
                Ok(None)
            } else {
                ownership::make(session).await.map(Some)
            }
        };
        let judge = |made: Option<Made>| match made {
            Some(made) => ownership::judge_made(&made, startup_role),
            None => Found::skipped("cannot be told on a server that is read-only"),
        };
        self.step(Name::PostgresOwnership, making, judge).await;
    }

    /// Asks, and writes down what the answer means; where there is none, that it cannot be told.
    async fn step<T>(
        &self,
        name: Name,
        asking: impl Future<Output = Result<T, QueryError>>,
        judge: impl FnOnce(T) -> Found,
    ) {
        let work = async {
            match asking.await {
                Ok(answer) => judge(answer),
                Err(error) => Found::skipped(format!("cannot be told: {}", Causes(&error))),
            }
        };
        self.record.step(name, self.subject, work).await;
    }

    async fn write<T>(&self, name: Name, found: Found<T>) {
        self.record.write(name, self.subject, Duration::ZERO, found).await;
    }

    async fn skip(&self, name: Name, error: &QueryError) {
        self.record.skip(name, self.subject, format!("cannot be told: {}", Causes(error))).await;
    }
}

/// In seconds since 1970, at the moment of the answer.
const CLOCK: &str = "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8";
