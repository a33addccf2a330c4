//! What a person sees: how things stand each second, and what pglease does as it does it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::time::{self, Instant, MissedTickBehavior};

use super::application::{Application, Tally};
use super::say;
use super::support::pglease::Pglease;
use super::support::process::Lines;
use super::support::world::World;

/// Tells a person.
pub(crate) struct Progress<'a> {
    world: &'a World<'a>,
    pglease: &'a Pglease,
    log: Lines,
    /// Lines of the log that have been told.
    told: usize,
    began: Instant,
    /// Leased users in the order of their coming: they are called by number.
    users: Vec<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(world: &'a World<'a>, pglease: &'a Pglease) -> Self {
        let log = pglease.lines().clone();
        Self { world, pglease, log, told: 0, began: Instant::now(), users: Vec::new() }
    }

    /// Tells of the application and of what pglease does about leases, until the caller has seen enough.
    pub(crate) async fn follow(&mut self, application: &Application) {
        let mut second = time::interval_at(self.began + SECOND, SECOND);
        second.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = second.tick() => self.tell_state(application.tally()).await,
                Some(lines) = self.log.after(self.told) => self.tell_events(&lines, is_about_leases),
            }
        }
    }

    /// Tells all that pglease does, as long as it does anything.
    pub(crate) async fn follow_log(&mut self) {
        while let Some(lines) = self.log.after(self.told).await {
            self.tell_events(&lines, |_| true);
        }
    }

    /// Tells what pglease has done since.
    pub(crate) fn tell_rest(&mut self) {
        let lines = self.log.since(self.told);
        self.tell_events(&lines, is_about_leases);
    }

    async fn tell_state(&mut self, tally: &Tally) {
        let sessions = self.sessions().await;
        let newest = tally.newest_user();
        let current = if newest.is_empty() { "user not known yet".to_owned() } else { self.name(&newest) };
        let lease = self.seconds_left("pglease_lease_expiry_timestamp_seconds").await;
        let token = self.seconds_left("pglease_token_expiry_timestamp_seconds").await;
        say(&format!(
            "{:>3} s  {current:<7}  lease {lease:>2} s, token {token:>2} s left  sessions: {sessions:<24}  \
             {:>6} queries, {} failed",
            self.began.elapsed().as_secs(),
            tally.queries(),
            tally.failed(),
        ));
    }

    /// How many sessions each leased user has, as PostgreSQL counts them.
    async fn sessions(&mut self) -> String {
        let sql =
            "SELECT usename, count(*) FROM pg_stat_activity WHERE starts_with(usename, 'v-') GROUP BY 1";
        let rows = self.world.superuser.rows(sql).await;
        let counts = rows.into_iter().filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(user), Some(count)]) => Some((user, count)),
            _ => None,
        });
        let mut sessions: Vec<_> = counts.map(|(user, count)| (self.number(&user), count)).collect();
        sessions.sort();
        let sessions: Vec<_> =
            sessions.into_iter().map(|(number, count)| format!("{count} of user {number}")).collect();
        sessions.join(", ")
    }

    fn name(&mut self, user: &str) -> String {
        format!("user {}", self.number(user))
    }

    /// The number of a user. Introduces those that are new.
    fn number(&mut self, user: &str) -> usize {
        if let Some(index) = self.users.iter().position(|known| known == user) {
            return index + 1;
        }
        self.users.push(user.to_owned());
        say(&format!("       user {} is {user}", self.users.len()));
        self.users.len()
    }

    /// From now to the Unix time that `metric` says.
    async fn seconds_left(&self, metric: &str) -> u64 {
        let end = self.pglease.metric(metric, "").await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Duration::try_from_secs_f64(end).unwrap_or_default().saturating_sub(now).as_secs()
    }

    fn tell_events(&mut self, lines: &[String], wanted: impl Fn(&Value) -> bool) {
        self.told += lines.len();
        for line in lines {
            // What is not an event is worth seeing all the more.
            match serde_json::from_str::<Value>(line) {
                Ok(event) if wanted(&event) => {
                    let user = event.get("db_role").and_then(Value::as_str).map(|user| self.name(user));
                    say(&format!("       {}", described(&event, user)));
                }
                Ok(_) => {}
                Err(_) => say(&format!("       {line}")),
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// What is about one of the application's sessions would drown the rest, unless something is wrong.
fn is_about_leases(event: &Value) -> bool {
    let name = event["event"].as_str().unwrap_or_default();
    event["level"] != "INFO" || !name.starts_with("session.")
}

/// An event in one line: its name, whom it is about, its other fields, its words.
fn described(event: &Value, user: Option<String>) -> String {
    let mut words = vec![format!("{:<17}", event["event"].as_str().unwrap_or("-"))];
    words.extend(user);
    let said_already = ["db_role", "event", "level", "message", "span", "timestamp", "vault_path"];
    for (key, value) in event.as_object().into_iter().flatten() {
        if !said_already.contains(&key.as_str()) {
            words.push(
                value.as_str().map_or_else(|| format!("{key}={value}"), |text| format!("{key}={text}")),
            );
        }
    }
    words.extend(event["message"].as_str().map(|message| format!("({message})")));
    words.join(" ")
}
