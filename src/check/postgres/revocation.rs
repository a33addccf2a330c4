//! What the revocation of a throw-away did to its role and to an open session of it, and which `at_lease_end` goes with
//! that. Pure.

use super::quote::identifier;
use crate::check::fault::{Fault, Warning};
use crate::check::report::Found;
use crate::config::{AtLeaseEnd, RouteConfig};
use crate::lease::{Effect, MAX_WATCH};
use crate::telemetry::Causes;
use crate::upstream::QueryError;

/// What was seen from a session like those of the route.
#[derive(Debug)]
pub(super) enum Seen {
    Effect {
        effect: Effect,
        session: Afterwards,
    },
    /// The session cannot tell.
    Unclear(Option<QueryError>),
    /// Vault has accepted the revocation and the role is as before.
    Nothing,
}

/// What became of the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// It reads the table that it read before.
    LivesOn,
    /// It is refused that, with a code.
    Refused(String),
    Ended,
    /// There is no table that it could read before.
    Untold,
}

/// Judges it for one route.
pub(super) fn judge(seen: &Seen, route: &RouteConfig, db_role: &str) -> Found {
    let (effect, session) = match seen {
        Seen::Effect { effect, session } => (*effect, session),
        Seen::Unclear(error) => {
            let error = error.as_ref().map_or_else(String::new, |error| format!(": {}", Causes(error)));
            return Found::skipped(format!("cannot be told: the session that watched has ended{error}"));
        }
        Seen::Nothing => return blocked(db_role, &route.vault_path),
    };
    let has_startup_role = route.startup_role.is_some();
    let effective = match route.at_lease_end {
        AtLeaseEnd::Auto if has_startup_role || effect == Effect::NoLogin => AtLeaseEnd::Leave,
        AtLeaseEnd::Auto => AtLeaseEnd::Close,
        as_written @ (AtLeaseEnd::Leave | AtLeaseEnd::Close) => as_written,
    };
    let found = format!("{}; {}", of_role(effect), of_session(session));
    let hurts = match session {
        Afterwards::Refused(_) | Afterwards::Ended => true,
        // Where nothing could be tried, what the role lost tells.
        Afterwards::Untold => {
            effect == Effect::Terminated || (effect != Effect::NoLogin && !has_startup_role)
        }
        Afterwards::LivesOn => false,
    };
    let written = word(route.at_lease_end);
    match (effective, hurts) {
        (AtLeaseEnd::Leave, true) => Found::fault(
            Fault::SessionsHarmed,
            found,
            format!(
                "at_lease_end = {written} leaves sessions open over the end of their lease, and that harms them: the \
                 application would see errors in the middle of its work"
            ),
            if route.at_lease_end == AtLeaseEnd::Leave && !has_startup_role {
                "say at_lease_end = \"auto\" on the route: sessions then end with 57P01 before that, at an idle point; or \
                 have the vault_role's revocation_statements say:\nALTER ROLE \"{{name}}\" NOLOGIN;"
            } else {
                "say at_lease_end = \"close\" on the route: sessions then end with 57P01 before that, at an idle point"
            },
        ),
        (AtLeaseEnd::Leave, false) => {
            Found::fine(format!("{found}: at_lease_end = {written} leaves sessions open, which harms none"))
        }
        (AtLeaseEnd::Close, true) => {
            Found::fine(format!("{found}: at_lease_end = {written} ends sessions with 57P01 before that"))
        }
        (AtLeaseEnd::Close | AtLeaseEnd::Auto, _) => Found::fine(format!(
            "{found}: at_lease_end = {written} ends sessions all the same; \"auto\" would leave them open"
        )),
    }
}

fn of_role(effect: Effect) -> &'static str {
    match effect {
        Effect::NoLogin => "revocation takes the right to log in (NOLOGIN) and leaves the role",
        Effect::Dropped => "revocation drops the role",
        Effect::Stripped => "revocation takes memberships and privileges from the role",
        Effect::Denied => "revocation takes rights from the role",
        Effect::Terminated => "revocation ends the role's sessions",
    }
}

fn of_session(session: &Afterwards) -> String {
    match session {
        Afterwards::LivesOn => "a session that was open works on".to_owned(),
        Afterwards::Refused(code) => format!("a session that was open is refused its tables ({code})"),
        Afterwards::Ended => "a session that was open was ended (57P01)".to_owned(),
        Afterwards::Untold => {
            "there is no table here that an open session could have been tried with".to_owned()
        }
    }
}

fn word(at_lease_end: AtLeaseEnd) -> &'static str {
    match at_lease_end {
        AtLeaseEnd::Auto => "\"auto\"",
        AtLeaseEnd::Leave => "\"leave\"",
        AtLeaseEnd::Close => "\"close\"",
    }
}

fn blocked(db_role: &str, vault_path: &str) -> Found {
    let vault_role = vault_path.replacen("/creds/", "/roles/", 1);
    let role = identifier(db_role);
    Found::warning(
        Warning::RevocationBlocked,
        format!("{MAX_WATCH:?} after Vault has accepted the revocation {role} can still log in"),
        "the statements fail or wait: the role owns something (2BP01), Vault's user has no right on a table or a sequence \
         of schema public (42501), or a lock is held; Vault tries again about six times, says why in its own log only, and \
         gives up",
        format!(
            "have the revocation_statements of {vault_role} be what cannot fail:\n\
             ALTER ROLE \"{{{{name}}}}\" NOLOGIN;\n\
             -- or, where leased roles own nothing:\nDROP ROLE IF EXISTS \"{{{{name}}}}\";\n\
             -- and end this one by hand:\nALTER ROLE {role} NOLOGIN;"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::{Class, Outcome};
    use crate::config::UpstreamConfig;

    fn route(at_lease_end: AtLeaseEnd, startup_role: Option<&str>) -> RouteConfig {
        RouteConfig {
            database: None,
            user: None,
            upstream: UpstreamConfig::plain("db", 5432),
            vault_path: "database/creds/db-app".to_owned(),
            startup_role: startup_role.map(str::to_owned),
            at_lease_end,
            max_session_age: None,
            warm: 0,
            optional: false,
        }
    }

    #[test]
    fn at_lease_end_is_held_against_what_the_end_does() {
        use AtLeaseEnd::{Auto, Close, Leave};
        let denied = || Afterwards::Refused("42501".to_owned());
        let fault = Outcome::Failed(Class::Configuration);
        let owner = Some("app_owner");
        for (effect, session, at_lease_end, startup_role, expected, word) in [
            (Effect::NoLogin, Afterwards::LivesOn, Auto, None, Outcome::Passed, "leaves sessions open"),
            (Effect::NoLogin, Afterwards::LivesOn, Leave, None, Outcome::Passed, "leaves sessions open"),
            (Effect::NoLogin, Afterwards::Untold, Auto, None, Outcome::Passed, "leaves sessions open"),
            (Effect::NoLogin, Afterwards::LivesOn, Close, None, Outcome::Passed, "all the same"),
            (Effect::Dropped, denied(), Auto, None, Outcome::Passed, "57P01 before that"),
            (Effect::Dropped, denied(), Close, None, Outcome::Passed, "57P01 before that"),
            (Effect::Dropped, denied(), Leave, None, fault, "at_lease_end = \"auto\""),
            (Effect::Dropped, Afterwards::Untold, Leave, None, fault, "at_lease_end = \"auto\""),
            (Effect::Dropped, Afterwards::LivesOn, Auto, owner, Outcome::Passed, "leaves sessions open"),
            (Effect::Dropped, Afterwards::LivesOn, Leave, owner, Outcome::Passed, "leaves sessions open"),
            (Effect::Dropped, Afterwards::Untold, Auto, owner, Outcome::Passed, "leaves sessions open"),
            (Effect::Stripped, denied(), Auto, owner, fault, "at_lease_end = \"close\""),
            (Effect::Terminated, Afterwards::Ended, Auto, None, Outcome::Passed, "57P01 before that"),
            (Effect::Terminated, Afterwards::Ended, Auto, owner, fault, "at_lease_end = \"close\""),
            (Effect::Terminated, Afterwards::Ended, Leave, None, fault, "at_lease_end = \"auto\""),
            (Effect::Terminated, Afterwards::Ended, Close, owner, Outcome::Passed, "57P01 before that"),
        ] {
            let said = format!("{effect:?} {session:?} {at_lease_end:?} {startup_role:?}");
            let found = judge(&Seen::Effect { effect, session }, &route(at_lease_end, startup_role), "v-1");
            assert_eq!(found.outcome(), expected, "{said}");
            assert!(format!("{found:?}").replace("\\\"", "\"").contains(word), "{said}: {found:?}");
        }
        let route = route(Auto, None);
        assert_eq!(judge(&Seen::Unclear(None), &route, "v-1").outcome(), Outcome::Skipped);
        let found = judge(&Seen::Nothing, &route, "v-1");
        assert_eq!(found.outcome(), Outcome::Warning);
        assert!(found.cure().unwrap().contains("revocation_statements of database/roles/db-app"));
    }
}
