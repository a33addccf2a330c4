//! What the revocation of a throw-away did to its role and to an open session of it, and which `at_lease_end` goes with
//! that. Pure.

use super::quote::identifier;
use crate::check::fault::{Fault, Warning};
use crate::check::report::Found;
use crate::check::{Target, Who};
use crate::config::AtLeaseEnd;
use crate::lease::{Effect, MAX_WATCH};
use crate::telemetry::Causes;
use crate::upstream::QueryError;

/// What was seen from a session like those of the route or the file.
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

/// Judges what a session of the target has seen for the sessions of `who`: of the target itself, or of readers of its
/// credential.
pub(super) fn judge(seen: &Seen, target: &Target, who: &Who, db_role: &str) -> Found {
    let (effect, session) = match seen {
        Seen::Effect { effect, session } => (*effect, session),
        Seen::Unclear(error) => {
            let error = error.as_ref().map_or_else(String::new, |error| format!(": {}", Causes(error)));
            return Found::skipped(format!("cannot be told: the session that watched has ended{error}"));
        }
        Seen::Nothing => return blocked(db_role, &target.vault_path),
    };
    match who {
        Who::Clients { at_lease_end, startup_role } => {
            for_clients(effect, session, *at_lease_end, startup_role.is_some())
        }
        // What a session that began as another role has met with, one of theirs need not.
        Who::Readers if target.startup_role().is_some() => {
            for_readers(effect, &Afterwards::Untold, &target.vault_path)
        }
        Who::Readers => for_readers(effect, session, &target.vault_path),
    }
}

fn for_clients(
    effect: Effect,
    session: &Afterwards,
    at_lease_end: AtLeaseEnd,
    has_startup_role: bool,
) -> Found {
    let effective = match at_lease_end {
        AtLeaseEnd::Auto if has_startup_role || effect == Effect::NoLogin => AtLeaseEnd::Leave,
        AtLeaseEnd::Auto => AtLeaseEnd::Close,
        as_written @ (AtLeaseEnd::Leave | AtLeaseEnd::Close) => as_written,
    };
    let found = format!("{}; {}", of_role(effect), of_session(session));
    let hurts = hurts(effect, session, has_startup_role);
    let written = word(at_lease_end);
    match (effective, hurts) {
        (AtLeaseEnd::Leave, true) => Found::fault(
            Fault::SessionsHarmed,
            found,
            format!(
                "at_lease_end = {written} leaves sessions open over the end of their lease, and that harms them: the \
                 application would see errors in the middle of its work"
            ),
            if at_lease_end == AtLeaseEnd::Leave && !has_startup_role {
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

/// pglease is not in the way of these, and cannot end them before.
fn for_readers(effect: Effect, session: &Afterwards, vault_path: &str) -> Found {
    if !hurts(effect, session, false) {
        return Found::fine(format!("{}: sessions of the file's readers work on", of_role(effect)));
    }
    let vault_role = vault_path.replacen("/creds/", "/roles/", 1);
    Found::warning(
        Warning::ReadersHarmed,
        format!("{}; sessions of the file's readers are open over that", of_role(effect)),
        "pglease is not in between and cannot end them before: at the end of each lease statements of old sessions fail in \
         the middle of the readers' work",
        format!(
            "have the revocation_statements of {vault_role} leave open sessions alone:\n\
             ALTER ROLE \"{{{{name}}}}\" NOLOGIN;\n\
             -- or the readers' pools end each connection well before the lease's max_ttl (maxLifetime)"
        ),
    )
}

/// Whether the end of the lease harms such a session.
fn hurts(effect: Effect, session: &Afterwards, has_startup_role: bool) -> bool {
    match session {
        Afterwards::Refused(_) | Afterwards::Ended => true,
        // Where nothing could be tried, what the role lost tells.
        Afterwards::Untold => {
            effect == Effect::Terminated || (effect != Effect::NoLogin && !has_startup_role)
        }
        Afterwards::LivesOn => false,
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
    use std::sync::Arc;

    use super::*;
    use crate::check::report::{Class, Outcome};
    use crate::config::UpstreamConfig;
    use crate::upstream::Upstream;

    fn target(who: Who) -> Target {
        let config = UpstreamConfig::plain("db", 5432);
        let upstream = Arc::new(Upstream::load(&config).unwrap());
        let vault_path = "database/creds/db-app".to_owned();
        Target { config, upstream, database: "app".to_owned(), vault_path, who }
    }

    fn clients(at_lease_end: AtLeaseEnd, startup_role: Option<&str>) -> Who {
        Who::Clients { startup_role: startup_role.map(str::to_owned), at_lease_end }
    }

    fn judged(seen: &Seen, who: &Who) -> Found {
        judge(seen, &target(who.clone()), who, "v-1")
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
            let found = judged(&Seen::Effect { effect, session }, &clients(at_lease_end, startup_role));
            assert_eq!(found.outcome(), expected, "{said}");
            assert!(format!("{found:?}").replace("\\\"", "\"").contains(word), "{said}: {found:?}");
        }
        let who = clients(Auto, None);
        assert_eq!(judged(&Seen::Unclear(None), &who).outcome(), Outcome::Skipped);
        let found = judged(&Seen::Nothing, &who);
        assert_eq!(found.outcome(), Outcome::Warning);
        assert!(found.cure().unwrap().contains("revocation_statements of database/roles/db-app"));
    }

    #[test]
    fn readers_of_a_file_are_harmed_by_what_takes_rights_away() {
        let route = clients(AtLeaseEnd::Auto, Some("app_owner"));
        let denied = || Afterwards::Refused("42501".to_owned());
        for (effect, session, seen_by, expected) in [
            (Effect::NoLogin, Afterwards::LivesOn, &Who::Readers, Outcome::Passed),
            (Effect::NoLogin, Afterwards::Untold, &Who::Readers, Outcome::Passed),
            (Effect::NoLogin, Afterwards::LivesOn, &route, Outcome::Passed),
            (Effect::Denied, Afterwards::LivesOn, &Who::Readers, Outcome::Passed),
            (Effect::Dropped, denied(), &Who::Readers, Outcome::Warning),
            (Effect::Dropped, Afterwards::Untold, &Who::Readers, Outcome::Warning),
            // A session that began as the owner works on, and one of a reader would not.
            (Effect::Dropped, Afterwards::LivesOn, &route, Outcome::Warning),
            (Effect::Terminated, Afterwards::Ended, &Who::Readers, Outcome::Warning),
        ] {
            let said = format!("{effect:?} {session:?} {seen_by:?}");
            let seen = Seen::Effect { effect, session };
            let found = judge(&seen, &target(seen_by.clone()), &Who::Readers, "v-1");
            assert_eq!(found.outcome(), expected, "{said}: {found:?}");
            assert!(found.cure().is_none_or(|cure| cure.contains("of database/roles/db-app")), "{found:?}");
        }
    }
}
