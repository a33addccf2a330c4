//! Whom the things belong to that sessions make. What a leased role owns is closed to the next one, and holds up its own
//! revocation: PostgreSQL drops no role that owns something (`2BP01`).

use super::ask::{self, Row};
use super::quote::{identifier, literal};
use super::role::LeasedRole;
use crate::check::Who;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::upstream::{Inquiry, QueryError};

/// A place where a role may make things, and whose right that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Creatable {
    pub(super) kind: Kind,
    pub(super) name: String,
    /// The roles that have the right and hand it on; `PUBLIC` is everybody.
    pub(super) by: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Schema,
    Database,
}

/// Where the session's own role may make things, schemas first.
pub(super) async fn creatable(session: &mut Inquiry) -> Result<Vec<Creatable>, QueryError> {
    let read = |row: &mut Row<'_>| {
        let kind = if row.text()? == "schema" { Kind::Schema } else { Kind::Database };
        let name = row.text()?.to_owned();
        let by = row.text().unwrap_or_default().split('\n').filter(|by| !by.is_empty());
        Some(Creatable { kind, name, by: by.map(str::to_owned).collect() })
    };
    ask::rows(session, CREATABLE, read).await
}

/// Without `startup_role`: what sessions make is the leased role's.
pub(super) fn judge_without_startup_role(places: &[Creatable], role: &LeasedRole, who: &Who) -> Found {
    if role.acts_as.is_some() {
        return Found::skipped(
            "cannot be told: a setting of role or database makes sessions act as another role, which a session may take \
             back",
        );
    }
    let Some(first) = places.first() else {
        return Found::fine("sessions can make nothing, so leased roles own nothing");
    };
    let named = |place: &Creatable| {
        let kind = if place.kind == Kind::Schema { "schema" } else { "database" };
        format!("{kind} {}", identifier(&place.name))
    };
    let all: Vec<_> = places.iter().map(named).collect();
    let cure = if let Some(group) = first.by.iter().find(|by| *by != PUBLIC && **by != role.name) {
        format!("say {}, so that what sessions make belongs to a role that stays", who.beginning_as(group))
    } else {
        let revokes: Vec<_> = places
            .iter()
            .flat_map(|place| {
                let kind = if place.kind == Kind::Schema { "SCHEMA" } else { "DATABASE" };
                let from = |by: &String| {
                    let by = if by == PUBLIC { PUBLIC.to_owned() } else { identifier(by) };
                    format!("REVOKE CREATE ON {kind} {} FROM {by};", identifier(&place.name))
                };
                place.by.iter().map(from).collect::<Vec<_>>()
            })
            .collect();
        format!(
            "have sessions begin as a role that owns the application's tables ({}), or, if it makes none:\n{}",
            who.place_of_role(),
            revokes.join("\n")
        )
    };
    Found::warning(
        Warning::MayOwn,
        format!("leased roles can make things in {}, and would own them", all.join(", ")),
        "the next credential could not change them, and where revocation drops the role it fails with 2BP01: the role \
         then stays, and can log in. So do user mappings, default privileges and subscriptions that sessions make",
        cure,
    )
}

/// What became of a table that was made with the rights of `startup_role`, and taken back.
#[derive(Debug)]
pub(super) enum Made {
    By(String),
    /// There is no schema that it may make tables in.
    Nowhere,
    Refused(QueryError),
}

/// Makes a table in a session that acts as `startup_role`, looks whose it is, and takes it back.
pub(super) async fn make(session: &mut Inquiry) -> Result<Made, QueryError> {
    let schemas = creatable(session).await?;
    let Some(Creatable { name, .. }) = schemas.iter().find(|place| place.kind == Kind::Schema) else {
        return Ok(Made::Nowhere);
    };
    let schema = identifier(name);
    // Nobody waits for a lock behind this.
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '2s'; CREATE TABLE {schema}.{TABLE} (); \
         SELECT pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class \
         WHERE relname = {} AND relnamespace = {}::pg_catalog.regnamespace; ROLLBACK",
        literal(TABLE),
        literal(&schema),
    );
    let made = ask::row(session, &sql, |row| row.text().map(str::to_owned)).await;
    if let Err(QueryError::Refused { .. }) = &made {
        session.ask("ROLLBACK").await?;
    }
    Ok(made.map_or_else(Made::Refused, Made::By))
}

/// Judges what a session with `startup_role` has made.
pub(super) fn judge_made(made: &Made, startup_role: &str) -> Found {
    let quoted = identifier(startup_role);
    match made {
        Made::By(owner) if owner == startup_role => {
            Found::fine(format!("what sessions make belongs to {quoted} (a table was made and rolled back)"))
        }
        Made::By(owner) => Found::warning(
            Warning::OwnedByOther,
            format!("what sessions make belongs to {}, not to {quoted}", identifier(owner)),
            "a setting of the role or the database, or an event trigger, gives it away",
            format!(
                "-- see what is set there, and which triggers run:\n\
                 SELECT * FROM pg_db_role_setting;\nSELECT evtname, evtevent, evtfoid::regproc FROM pg_event_trigger;\n\
                 -- and take back what gives away what {quoted} should own"
            ),
        ),
        Made::Nowhere => Found::fine(format!("{quoted} may make tables in no schema, so sessions make none")),
        Made::Refused(error) => Found::skipped(format!("cannot be told: {error}")),
    }
}

/// Rights are the role's own, and those that it has as a member of others. In one column each, with a line for each.
const CREATABLE: &str = "SELECT 'schema', n.nspname, (SELECT string_agg(DISTINCT \
        CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END, E'\\n') \
        FROM pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a \
        WHERE a.privilege_type = 'CREATE' \
            AND (a.grantee = 0 OR pg_catalog.pg_has_role(current_user, a.grantee, 'USAGE'))) \
    FROM pg_catalog.pg_namespace n \
    WHERE pg_catalog.has_schema_privilege(current_user, n.oid, 'CREATE') \
        AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
    UNION ALL \
    SELECT 'database', d.datname, (SELECT string_agg(DISTINCT \
        CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END, E'\\n') \
        FROM pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a \
        WHERE a.privilege_type = 'CREATE' \
            AND (a.grantee = 0 OR pg_catalog.pg_has_role(current_user, a.grantee, 'USAGE'))) \
    FROM pg_catalog.pg_database d \
    WHERE d.datname = pg_catalog.current_database() \
        AND pg_catalog.has_database_privilege(current_user, d.oid, 'CREATE') \
    ORDER BY 1 DESC, 2";

const PUBLIC: &str = "PUBLIC";

/// Nobody's table is called so.
const TABLE: &str = "pglease_check_7c1f5d0a";

#[cfg(test)]
mod tests {
    use super::super::clock::ValidUntil;
    use super::*;
    use crate::check::report::Outcome;

    fn role(acts_as: Option<&str>) -> LeasedRole {
        LeasedRole {
            name: "v-1".to_owned(),
            acts_as: acts_as.map(str::to_owned),
            valid_until: ValidUntil::None,
            connection_limit: None,
            is_superuser: false,
            groups: Vec::new(),
        }
    }

    fn place(kind: Kind, name: &str, by: &[&str]) -> Creatable {
        Creatable { kind, name: name.to_owned(), by: by.iter().map(|by| (*by).to_owned()).collect() }
    }

    #[test]
    fn what_leased_roles_could_own_is_named_with_what_prevents_it() {
        let public = place(Kind::Schema, "public", &[PUBLIC]);
        let owned = place(Kind::Schema, "App", &["app_owner"]);
        let database = place(Kind::Database, "wizard", &["v-1"]);
        for (places, expected, cure) in [
            (vec![], Outcome::Passed, ""),
            (vec![public.clone()], Outcome::Warning, "REVOKE CREATE ON SCHEMA public FROM PUBLIC;"),
            (vec![owned], Outcome::Warning, "say ALTER ROLE \"{{name}}\" SET role = app_owner; in"),
            (
                vec![public, database],
                Outcome::Warning,
                "REVOKE CREATE ON SCHEMA public FROM PUBLIC;\nREVOKE CREATE ON DATABASE wizard FROM \"v-1\";",
            ),
        ] {
            let found = judge_without_startup_role(&places, &role(None), &Who::Readers);
            assert_eq!(found.outcome(), expected, "{places:?}");
            assert!(found.cure().unwrap_or_default().contains(cure), "{found:?}");
        }
        assert_eq!(
            judge_without_startup_role(&[], &role(Some("app")), &Who::Readers).outcome(),
            Outcome::Skipped
        );
    }

    #[test]
    fn what_is_made_is_to_be_the_startup_roles() {
        for (made, expected) in [
            (Made::By("app_owner".to_owned()), Outcome::Passed),
            (Made::By("v-1".to_owned()), Outcome::Warning),
            (Made::Nowhere, Outcome::Passed),
            (Made::Refused(QueryError::Closed), Outcome::Skipped),
        ] {
            assert_eq!(judge_made(&made, "app_owner").outcome(), expected, "{made:?}");
        }
    }
}
