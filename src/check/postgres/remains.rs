//! What leased roles have left behind: themselves, what they own, and their entries in access lists.

use super::ask::{self, Row};
use super::quote::{identifier, literal};
use super::trouble::creation_in;
use crate::check::Who;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::upstream::{Inquiry, QueryError};

/// How many roles of one kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Roles {
    pub(super) all: u64,
    /// Ended by a revocation that leaves the role.
    pub(super) no_login: u64,
    /// Past their VALID UNTIL, and able to log in but for that.
    pub(super) expired: u64,
    /// Whether there is the function of `deploy/postgres/reaper.sql`.
    pub(super) has_reaper: bool,
}

impl Roles {
    pub(super) async fn ask(session: &mut Inquiry, pattern: &str) -> Result<Self, QueryError> {
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE NOT rolcanlogin), \
                count(*) FILTER (WHERE rolcanlogin AND rolvaliduntil < pg_catalog.now() - interval '1 minute'), \
                pg_catalog.to_regnamespace('pglease') IS NOT NULL \
             FROM pg_catalog.pg_roles WHERE rolname ~ {}",
            literal(pattern)
        );
        let read = |row: &mut Row<'_>| {
            let (all, no_login, expired) = (row.number()?, row.number()?, row.number()?);
            Some(Self { all, no_login, expired, has_reaper: row.yes()? })
        };
        ask::row(session, &sql, read).await
    }
}

/// Judges how many roles stay behind.
pub(super) fn judge_roles(roles: Roles, pattern: &str) -> Found {
    let Roles { all, no_login, expired, has_reaper } = roles;
    let found =
        format!("{all} roles of this vault_role, {no_login} of them ended, {expired} expired and not ended");
    if expired > 0 {
        return Found::warning(
            Warning::RolesExpired,
            found,
            "Vault has not ended roles whose time is over: its revocation fails and was given up, or Vault was away; only \
             VALID UNTIL keeps them out",
            format!(
                "-- which they are; Vault's log says why:\n\
                 SELECT rolname, rolvaliduntil FROM pg_roles\n\
                 WHERE rolname ~ {} AND rolcanlogin AND rolvaliduntil < now();\n\
                 -- and for each, after what it owns has been dealt with:\n\
                 DROP ROLE \"…\";",
                literal(pattern)
            ),
        );
    }
    if no_login >= MANY {
        let cure = if has_reaper {
            "-- as a member of app_reaper, and regularly (deploy/postgres/reaper-cronjob.yaml):\n\
             SELECT * FROM pglease.reap();"
        } else {
            "-- as a superuser, in the application's database:\n\
             \\i deploy/postgres/reaper.sql\nSELECT * FROM pglease.reap();\n\
             -- and regularly: deploy/postgres/reaper-cronjob.yaml"
        };
        return Found::warning(
            Warning::RolesPileUp,
            found,
            "revocation leaves each role, as NOLOGIN does, and nobody drops them: the catalogue grows for ever",
            cure,
        );
    }
    Found::fine(found)
}

/// Things of one role in one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Belongings {
    pub(super) role: String,
    /// `None`: of the whole server.
    pub(super) database: Option<String>,
    /// Catalogues, as `pg_class`, and how many rows of each.
    pub(super) kinds: Vec<String>,
    pub(super) count: u64,
    pub(super) is_here: bool,
}

impl Belongings {
    /// Of the roles of one kind, some of which may be many.
    pub(super) async fn ask(session: &mut Inquiry, pattern: &str) -> Result<Vec<Self>, QueryError> {
        let sql = format!(
            "SELECT r.rolname, b.datname, pg_catalog.string_agg(DISTINCT d.classid::pg_catalog.regclass::text, ','), \
                count(*), d.dbid = 0 OR b.datname = pg_catalog.current_database() \
             FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid \
                LEFT JOIN pg_catalog.pg_database b ON b.oid = d.dbid \
             WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'o' \
                AND r.rolname ~ {} \
                AND NOT (b.datname = pg_catalog.current_database() \
                    AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                    AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = d.objid AND c.relpersistence = 't')) \
             GROUP BY r.rolname, b.datname, d.dbid ORDER BY r.rolname, b.datname LIMIT 100",
            literal(pattern)
        );
        let read = |row: &mut Row<'_>| {
            let (role, database) = (row.text()?.to_owned(), row.text().map(str::to_owned));
            let kinds = row.text()?.split(',').map(str::to_owned).collect();
            Some(Self { role, database, kinds, count: row.number()?, is_here: row.yes()? })
        };
        ask::rows(session, &sql, read).await
    }
}

/// Judges what leased roles own. `heir` is the role that it should go to.
pub(super) fn judge_belongings(all: &[Belongings], heir: &str, who: &Who) -> Found {
    if all.is_empty() {
        return Found::fine("leased roles own nothing");
    }
    let count: u64 = all.iter().map(|belongings| belongings.count).sum();
    let mut roles: Vec<_> = all.iter().map(|belongings| belongings.role.as_str()).collect();
    roles.dedup();
    let mut kinds: Vec<_> =
        all.iter().flat_map(|belongings| &belongings.kinds).map(|kind| plural(kind)).collect();
    kinds.sort_unstable();
    kinds.dedup();

    let mut cure = Vec::new();
    if !matches!(who, Who::Clients { startup_role: Some(_), .. }) {
        let place = who.place_of_role();
        cure.push(format!("-- so that no more come: {place}; then, for these, as a superuser:"));
    }
    for Belongings { role, database, is_here, .. } in all.iter().take(MAX_SHOWN) {
        let role = identifier(role);
        if let Some(database) = database.as_ref().filter(|_| !is_here) {
            cure.push(format!("-- in database {}:", identifier(database)));
        }
        cure.push(format!("REASSIGN OWNED BY {role} TO {heir};\nDROP OWNED BY {role};"));
    }
    if let Some(more) = all.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        cure.push(format!("-- and {more} more"));
    }
    Found::warning(
        Warning::Belongings,
        format!("things belong to {}: {} ({count} in all)", plural_roles(roles.len()), kinds.join(", ")),
        "a role that owns something cannot be dropped: where revocation does that it fails with 2BP01, is blocked, and the \
         role can still log in; what it owns is closed to the next credential, and what runs as its owner stops with it",
        cure.join("\n"),
    )
}

/// Entries of leased roles in access lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grants {
    /// Things that were granted to our own role itself.
    pub(super) own: u64,
    /// The longest access list of a table, and how long it is.
    pub(super) longest: Option<(String, u64)>,
}

impl Grants {
    pub(super) async fn ask(session: &mut Inquiry) -> Result<Self, QueryError> {
        let read = |row: &mut Row<'_>| {
            let own = row.number()?;
            let longest = row.text().map(str::to_owned).zip(row.number());
            Some(Self { own, longest })
        };
        ask::row(session, GRANTS, read).await
    }
}

/// Judges whether access lists grow with each credential.
pub(super) fn judge_grants(grants: &Grants, group: Option<&str>) -> Found {
    let longest = match &grants.longest {
        Some((table, entries)) => {
            format!("; the longest access list is that of {table}, with {entries} entries")
        }
        None => String::new(),
    };
    let is_long = grants.longest.as_ref().is_some_and(|(_, entries)| *entries >= LONG);
    let making = if group.is_none() { "CREATE ROLE app_rw NOLOGIN;\n" } else { "" };
    let group = group.map_or_else(|| "app_rw".to_owned(), identifier);
    if grants.own > 0 {
        return Found::warning(
            Warning::GrantsToRole,
            format!("rights on {} things are granted to the leased role itself{longest}", grants.own),
            "each credential adds an entry to the access list of each table, which stays as long as the role does; at some \
             17,000 no more fit (54000), and PostgreSQL makes no role that is to have a right there",
            format!(
                "-- grant to a group, once:\n{making}\
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {group};\n\
                 -- and have creation_statements make members of it, and grant nothing:\n{}",
                creation_in(&group)
            ),
        );
    }
    if is_long {
        return Found::warning(
            Warning::AccessListLong,
            format!("nothing is granted to the leased role itself{longest}"),
            "others have been granted rights one by one, leased roles of another kind perhaps; at some 17,000 entries no \
             more fit (54000)",
            "-- to whom, by the beginnings of their names:\n\
             SELECT left(pg_get_userbyid(grantee), 12), count(*)\n\
             FROM pg_class, aclexplode(relacl) GROUP BY 1 ORDER BY 2 DESC LIMIT 10;\n\
             -- and for each role that is not needed any more:\nDROP OWNED BY \"…\";",
        );
    }
    Found::fine(format!("all rights come from groups{longest}"))
}

/// Faults that a `pg_hba.conf` has: number of the line, and what is wrong. Few may look at it.
pub(super) async fn hba_faults(session: &mut Inquiry) -> Result<Option<Vec<(u64, String)>>, QueryError> {
    let may = ask::row(session, MAY_SEE_HBA, |row| Some(row.text()? == "t")).await?;
    if !may {
        return Ok(None);
    }
    let read = |row: &mut Row<'_>| Some((row.number()?, row.text()?.to_owned()));
    ask::rows(session, HBA_FAULTS, read).await.map(Some)
}

pub(super) fn judge_hba(faults: &[(u64, String)]) -> Found {
    let Some((line, fault)) = faults.first() else {
        return Found::fine("every line of pg_hba.conf can be read");
    };
    Found::warning(
        Warning::PgHbaUnreadable,
        format!("line {line} of pg_hba.conf cannot be read: {fault}"),
        "the server goes by what it read before, and does not start again with this",
        "-- after the lines were corrected:\n\
         SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL;\nSELECT pg_reload_conf();",
    )
}

fn plural_roles(count: usize) -> String {
    if count == 1 { "1 leased role".to_owned() } else { format!("{count} leased roles") }
}

/// What a catalogue has, for people.
fn plural(catalogue: &str) -> &str {
    match catalogue {
        "pg_class" => "tables, sequences or views",
        "pg_default_acl" => "default privileges",
        "pg_user_mapping" => "user mappings",
        "pg_subscription" => "subscriptions",
        "pg_proc" => "functions",
        "pg_namespace" => "schemas",
        "pg_type" => "types",
        "pg_database" => "databases",
        "pg_largeobject_metadata" => "large objects",
        other => other.strip_prefix("pg_").unwrap_or(other),
    }
}

const GRANTS: &str = "SELECT \
    (SELECT count(*) FROM pg_catalog.pg_shdepend d JOIN pg_catalog.pg_roles r ON r.oid = d.refobjid \
        WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'a' \
            AND d.dbid IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) \
            AND r.rolname = session_user), \
    longest.name, longest.entries \
    FROM (SELECT 1) AS one LEFT JOIN LATERAL ( \
        SELECT c.oid::pg_catalog.regclass::text AS name, pg_catalog.cardinality(c.relacl) AS entries \
        FROM pg_catalog.pg_class c WHERE c.relacl IS NOT NULL ORDER BY 2 DESC LIMIT 1) AS longest ON true";

const MAY_SEE_HBA: &str = "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_hba_file_rules()', 'EXECUTE') \
    AND pg_catalog.has_table_privilege('pg_catalog.pg_hba_file_rules', 'SELECT')";

const HBA_FAULTS: &str = "SELECT line_number, error FROM pg_catalog.pg_hba_file_rules \
    WHERE error IS NOT NULL ORDER BY 1 LIMIT 10";

/// Roles that a reaper which runs each hour may leave until the next run.
const MANY: u64 = 100;
/// Entries of one access list that no handful of groups makes.
const LONG: u64 = 1000;
/// Roles whose cure is printed.
const MAX_SHOWN: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;
    use crate::config::AtLeaseEnd;

    #[test]
    fn roles_that_stay_behind_are_told_of_when_they_are_many_or_not_ended() {
        let few = Roles { all: 5, no_login: 3, expired: 0, has_reaper: false };
        for (roles, expected, word) in [
            (Roles::default(), Outcome::Passed, ""),
            (few, Outcome::Passed, ""),
            (Roles { no_login: 100, ..few }, Outcome::Warning, "\\i deploy/postgres/reaper.sql"),
            (Roles { no_login: 100, has_reaper: true, ..few }, Outcome::Warning, "as a member of app_reaper"),
            (Roles { expired: 1, ..few }, Outcome::Warning, "rolname ~ '^v-[0-9]$'"),
        ] {
            let found = judge_roles(roles, "^v-[0-9]$");
            assert_eq!(found.outcome(), expected, "{roles:?}");
            assert!(found.cure().unwrap_or_default().contains(word), "{found:?}");
        }
    }

    #[test]
    fn cure_of_belongings_names_each_role_where_its_things_are() {
        let of = |role: &str, database: Option<&str>, kinds: &[&str], is_here| Belongings {
            role: role.to_owned(),
            database: database.map(str::to_owned),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            count: 2,
            is_here,
        };
        let at_lease_end = AtLeaseEnd::Auto;
        let clients = |startup_role: Option<&str>| Who::Clients {
            startup_role: startup_role.map(str::to_owned),
            at_lease_end,
        };
        assert_eq!(judge_belongings(&[], "app_owner", &Who::Readers).outcome(), Outcome::Passed);
        let all = [
            of("v-1", Some("wizard"), &["pg_class", "pg_user_mapping"], true),
            of("v-1", Some("other"), &["pg_default_acl"], false),
            of("v-2", None, &["pg_subscription", "pg_ts_dict"], true),
        ];
        let found = judge_belongings(&all, "app_owner", &clients(None));
        assert_eq!(
            found.found(),
            "things belong to 2 leased roles: default privileges, subscriptions, tables, sequences or views, ts_dict, \
             user mappings (6 in all)"
        );
        assert_eq!(
            found.cure().unwrap(),
            "-- so that no more come: startup_role on the route; then, for these, as a superuser:\n\
             REASSIGN OWNED BY \"v-1\" TO app_owner;\nDROP OWNED BY \"v-1\";\n\
             -- in database other:\n\
             REASSIGN OWNED BY \"v-1\" TO app_owner;\nDROP OWNED BY \"v-1\";\n\
             REASSIGN OWNED BY \"v-2\" TO app_owner;\nDROP OWNED BY \"v-2\";"
        );
        let many: Vec<_> =
            (0..9).map(|number| of(&format!("v-{number}"), None, &["pg_class"], true)).collect();
        let found = judge_belongings(&many, "app_owner", &clients(Some("app_owner")));
        assert!(found.cure().unwrap().ends_with("DROP OWNED BY \"v-4\";\n-- and 4 more"), "{found:?}");
    }

    #[test]
    fn access_lists_that_grow_with_each_credential_are_told_of() {
        let longest = |entries| Some(("t".to_owned(), entries));
        for (own, longest, expected) in [
            (0, None, Outcome::Passed),
            (0, longest(4), Outcome::Passed),
            (0, longest(1000), Outcome::Warning),
            (2, longest(4), Outcome::Warning),
        ] {
            let grants = Grants { own, longest };
            assert_eq!(judge_grants(&grants, Some("app_rw")).outcome(), expected, "{grants:?}");
        }
        let found = judge_grants(&Grants { own: 1, longest: None }, Some("App"));
        assert!(found.cure().unwrap().contains("IN ROLE \"App\";"), "{found:?}");
    }

    #[test]
    fn lines_that_the_server_cannot_read_are_told_of() {
        assert_eq!(judge_hba(&[]).outcome(), Outcome::Passed);
        let found = judge_hba(&[(7, "invalid method".to_owned())]);
        assert_eq!(found.outcome(), Outcome::Warning);
        assert!(found.found().contains("line 7") && found.found().contains("invalid method"));
    }
}
