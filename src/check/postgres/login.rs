//! What a login that went well has shown of the server, and which host serves. Pure.

use std::time::Duration;

use super::trouble::connection_type;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::config::{Host, LoadBalanceHosts, TargetSessionAttrs, UpstreamConfig};

/// A server, as a session sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// `server_version_num`.
    pub(super) version: u32,
    pub(super) in_recovery: bool,
    pub(super) read_only: bool,
    /// Its own word on the session's pid, and that of who let us in.
    pub(super) pid: i32,
    pub(super) greeted_as: Option<i32>,
    /// Whether it has asked who we are; `None` where it does not say, as before PostgreSQL 16.
    pub(super) was_authenticated: Option<bool>,
}

impl Server {
    pub(super) fn kind(&self) -> &'static str {
        match (self.in_recovery, self.read_only) {
            (true, _) => "standby",
            (false, true) => "primary, read-only",
            (false, false) => "primary",
        }
    }

    /// Whether somebody else has let us in than who we talk to.
    pub(super) fn is_behind_another(&self) -> bool {
        self.greeted_as != Some(self.pid)
    }

    fn named(&self) -> String {
        format!("PostgreSQL {}.{}, {}", self.version / 10_000, self.version % 10_000, self.kind())
    }
}

/// Judges a login; `rejected_for` is how long this host did not know the role.
pub(super) fn judge(server: &Server, upstream: &UpstreamConfig, rejected_for: Duration) -> Found {
    let late = if rejected_for.is_zero() {
        String::new()
    } else {
        format!(", after not knowing the role for {:.1} s", rejected_for.as_secs_f64())
    };
    let found = format!("{}{late}", server.named());
    if server.is_behind_another() {
        return Found::warning(
            Warning::Pooler,
            format!("{found}, behind something else"),
            "a pooler is in between: what a session sets may be another's, and leases are renewed for sessions that it \
             keeps by itself; a cancel, LISTEN and prepared statements work as far as it does them",
            "connect to PostgreSQL itself, or have the pooler keep one server connection for each of its clients \
             (pool_mode = session) and close it with the client",
        );
    }
    if server.was_authenticated == Some(false) {
        return Found::warning(
            Warning::Trust,
            format!("{found}, which let us in without a password"),
            "pg_hba.conf says trust for us: anybody who can connect is let in as any role",
            format!(
                "-- in pg_hba.conf, in place of trust in the line that holds: {} … scram-sha-256\n-- then:\n\
                 SELECT pg_reload_conf();",
                connection_type(upstream)
            ),
        );
    }
    Found::fine(found)
}

/// Judges which startup parameters of drivers a pooler refuses, and how it has said so.
pub(super) fn judge_keys(refused: &[&str], word: Option<String>) -> Found {
    let Some(word) = word else {
        return Found::fine("the pooler takes extra_float_digits and options, which drivers send");
    };
    // Together and not by itself: neither is to blame alone.
    let refused =
        if refused.is_empty() { "extra_float_digits, options".to_owned() } else { refused.join(", ") };
    Found::warning(
        Warning::PoolerRefusesKeys,
        format!("the pooler refuses what drivers send at a session's start ({refused}): {word}"),
        "clients that send it get no session: JDBC's driver always sends extra_float_digits, and whoever sets options or \
         PGOPTIONS sends that",
        format!(
            "# in pgbouncer.ini, which then lets it pass and does nothing with it:\n\
             ignore_startup_parameters = {refused}\n\
             # and have what clients want so set by ALTER ROLE … SET or ALTER DATABASE … SET"
        ),
    )
}

/// Judges the host that sessions go to, of several, or of one that has to be of some kind.
pub(super) fn judge_choice(address: &str, upstream: &UpstreamConfig) -> Found {
    let wanted = upstream.target_session_attrs.as_str();
    let any = match upstream.load_balance_hosts {
        LoadBalanceHosts::Disable => "",
        LoadBalanceHosts::Random => " this time: load_balance_hosts=random takes them in any order",
    };
    Found::fine(format!(
        "{address} serves{any}; target_session_attrs={wanted}, {} hosts",
        upstream.hosts.len()
    ))
}

/// Whether there is a choice to speak of.
pub(super) fn is_choice(upstream: &UpstreamConfig) -> bool {
    upstream.hosts.len() > 1 || upstream.target_session_attrs != TargetSessionAttrs::Any
}

/// The upstream with one host alone, of whatever kind that is.
pub(super) fn alone(upstream: &UpstreamConfig, host: &Host) -> UpstreamConfig {
    UpstreamConfig {
        hosts: vec![host.clone()],
        target_session_attrs: TargetSessionAttrs::Any,
        load_balance_hosts: LoadBalanceHosts::Disable,
        ..upstream.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    #[test]
    fn login_tells_of_poolers_and_of_trust() {
        let server = Server {
            version: 180_006,
            in_recovery: false,
            read_only: false,
            pid: 7,
            greeted_as: Some(7),
            was_authenticated: Some(true),
        };
        let upstream = UpstreamConfig::plain("db", 5432);
        for (server, expected, word) in [
            (server.clone(), Outcome::Passed, "PostgreSQL 18.6, primary"),
            (
                Server { was_authenticated: None, version: 140_023, ..server.clone() },
                Outcome::Passed,
                "14.23",
            ),
            (Server { in_recovery: true, read_only: true, ..server.clone() }, Outcome::Passed, "standby"),
            (Server { read_only: true, ..server.clone() }, Outcome::Passed, "primary, read-only"),
            (Server { greeted_as: Some(8), ..server.clone() }, Outcome::Warning, "behind something else"),
            (Server { greeted_as: None, ..server.clone() }, Outcome::Warning, "behind something else"),
            (Server { was_authenticated: Some(false), ..server }, Outcome::Warning, "without a password"),
        ] {
            let found = judge(&server, &upstream, Duration::ZERO);
            assert_eq!(found.outcome(), expected, "{server:?}");
            assert!(found.found().contains(word), "{found:?}");
        }
    }

    #[test]
    fn parameters_that_a_pooler_refuses_are_named_in_the_line_that_lets_them_pass() {
        assert_eq!(judge_keys(&[], None).outcome(), Outcome::Passed);
        for (refused, line) in [
            (&["options"][..], "\nignore_startup_parameters = options\n"),
            (
                &["extra_float_digits", "options"],
                "\nignore_startup_parameters = extra_float_digits, options\n",
            ),
            (&[], "\nignore_startup_parameters = extra_float_digits, options\n"),
        ] {
            let found = judge_keys(refused, Some("unsupported startup parameter".to_owned()));
            assert_eq!(found.outcome(), Outcome::Warning);
            assert!(found.cure().unwrap().contains(line), "{found:?}");
            assert!(found.found().ends_with(": unsupported startup parameter"), "{found:?}");
        }
    }

    #[test]
    fn host_that_serves_is_of_interest_where_there_are_others_or_a_kind_is_wanted() {
        let one = UpstreamConfig::plain("db", 5432);
        let wanted = UpstreamConfig { target_session_attrs: TargetSessionAttrs::Primary, ..one.clone() };
        let two = UpstreamConfig { hosts: [one.hosts.clone(), one.hosts.clone()].concat(), ..wanted.clone() };
        assert_eq!([&one, &wanted, &two].map(is_choice), [false, true, true]);
        assert_eq!(alone(&two, &one.hosts[0]), one);
    }
}
