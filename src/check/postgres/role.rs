//! The leased role: what it may do, and whether it may become the route's `startup_role`.

use super::ask::{self, Row};
use super::clock::ValidUntil;
use super::quote::{identifier, literal};
use super::trouble::creation_in;
use crate::check::Who;
use crate::check::fault::{Fault, Warning};
use crate::check::report::Found;
use crate::upstream::{Inquiry, QueryError};

/// A role as a session on it sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LeasedRole {
    pub(super) name: String,
    /// Whether it acts as another one although nobody has asked for that.
    pub(super) acts_as: Option<String>,
    pub(super) valid_until: ValidUntil,
    /// `None`: any number of sessions.
    pub(super) connection_limit: Option<u64>,
    pub(super) is_superuser: bool,
    pub(super) groups: Vec<Group>,
}

/// A role that it is a member of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    /// Whether its rights hold without SET ROLE.
    pub(super) inherited: bool,
}

impl LeasedRole {
    pub(super) async fn ask(session: &mut Inquiry) -> Result<Self, QueryError> {
        let read = |row: &mut Row<'_>| {
            let (name, acts_as) = (row.text()?.to_owned(), row.text()?.to_owned());
            let valid_until = match row.text() {
                None => ValidUntil::None,
                Some(left) => ValidUntil::Left(left.parse().ok()?),
            };
            let limit: i64 = row.number()?;
            Some(Self {
                acts_as: (acts_as != name).then_some(acts_as),
                name,
                valid_until,
                connection_limit: u64::try_from(limit).ok(),
                is_superuser: row.yes()?,
                groups: Vec::new(),
            })
        };
        let role = ask::row(session, ROLE, read).await?;
        let groups = ask::rows(session, GROUPS, |row| {
            Some(Group { name: row.text()?.to_owned(), inherited: row.yes()? })
        });
        Ok(Self { groups: groups.await?, ..role })
    }

    /// Where what it leaves should go: the route's `startup_role`, or else a group.
    pub(super) fn heir(&self, startup_role: Option<&str>) -> String {
        let group = self.groups.first().map(|group| group.name.as_str());
        startup_role.or(group).map_or_else(|| "<a role that stays>".to_owned(), identifier)
    }
}

/// Without `startup_role`: whether sessions have any right.
pub(super) fn judge_without_startup_role(role: &LeasedRole, who: &Who) -> Found {
    if role.is_superuser {
        return Found::warning(
            Warning::ActsAsSuperuser,
            "sessions act as the leased role, which is a superuser",
            "whoever gets hold of one credential can do everything",
            "have creation_statements make a role without SUPERUSER that is in a group with the rights it needs",
        );
    }
    let usable: Vec<_> =
        role.groups.iter().filter(|group| group.inherited).map(|group| identifier(&group.name)).collect();
    match (role.groups.first(), usable.as_slice()) {
        (Some(group), []) if role.acts_as.is_none() => Found::warning(
            Warning::InheritsNothing,
            "sessions act as the leased role, which inherits the rights of none of its groups",
            format!(
                "the role is a member of {} without INHERIT, so its rights hold for who becomes that role only",
                identifier(&group.name)
            ),
            format!("say {}, or INHERIT in creation_statements", who.beginning_as(&group.name)),
        ),
        (None, _) => Found::fine("none: sessions act as the leased role, which is in no group"),
        (Some(_), _) => match &role.acts_as {
            Some(other) => {
                Found::fine(format!("none: a setting of role or database makes sessions act as {other}"))
            }
            None => Found::fine(format!(
                "none: sessions act as the leased role, a member of {}",
                usable.join(", ")
            )),
        },
    }
}

/// What a server says of the route's `startup_role`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StartupRole {
    pub(super) is_member: bool,
    /// From PostgreSQL 16 on a membership may be one without it.
    pub(super) may_set: bool,
    pub(super) is_superuser: bool,
}

impl StartupRole {
    /// `None`: there is no such role.
    pub(super) async fn ask(
        session: &mut Inquiry,
        name: &str,
        version: u32,
    ) -> Result<Option<Self>, QueryError> {
        let right = if version >= 160_000 { "SET" } else { "MEMBER" };
        let sql = format!(
            "SELECT pg_catalog.pg_has_role(session_user, oid, 'MEMBER'), \
                    pg_catalog.pg_has_role(session_user, oid, '{right}'), rolsuper \
             FROM pg_catalog.pg_roles WHERE rolname = {}",
            literal(name)
        );
        let read = |row: &mut Row<'_>| {
            Some(Self { is_member: row.yes()?, may_set: row.yes()?, is_superuser: row.yes()? })
        };
        Ok(ask::rows(session, &sql, read).await?.pop())
    }
}

/// Judges `name`, which the route's sessions are to begin with.
pub(super) fn judge_startup_role(
    name: &str,
    seen: Option<StartupRole>,
    role: &LeasedRole,
    vault_path: &str,
) -> Found {
    let vault_role = vault_path.replacen("/creds/", "/roles/", 1);
    let quoted = identifier(name);
    let statement = creation_in(&quoted);
    match seen {
        None => {
            let groups: Vec<_> = role.groups.iter().map(|group| identifier(&group.name)).collect();
            let groups = if groups.is_empty() {
                "no other role either".to_owned()
            } else {
                format!("{}, of which startup_role may be one", groups.join(", "))
            };
            Found::fault(
                Fault::StartupRoleMissing,
                format!("there is no role {quoted}"),
                format!(
                    "startup_role names what the server does not have; the leased role is a member of {groups}"
                ),
                format!(
                    "correct startup_role of the route, or, with leased roles as its members:\nCREATE ROLE {quoted} NOLOGIN;"
                ),
            )
        }
        Some(StartupRole { may_set: false, is_member, .. }) => {
            let (fault, cause, cure) = if is_member {
                (
                    Fault::StartupRoleNoSet,
                    format!("the leased role is a member of {quoted}, but by a grant WITH SET FALSE"),
                    format!(
                        "have creation_statements of {vault_role} say so behind CREATE ROLE:\n\
                         GRANT {quoted} TO \"{{{{name}}}}\" WITH SET TRUE;"
                    ),
                )
            } else {
                (
                    Fault::StartupRoleNoMember,
                    format!("the leased role is no member of {quoted}"),
                    format!(
                        "have creation_statements of {vault_role} make members of it; from PostgreSQL 16 on Vault's own \
                         user needs {quoted} WITH ADMIN OPTION for that:\n{statement}"
                    ),
                )
            };
            Found::fault(fault, format!("leased roles may not become {quoted}"), cause, cure)
        }
        Some(StartupRole { is_superuser: true, .. }) => Found::warning(
            Warning::StartupRoleSuperuser,
            format!("sessions act as {quoted}, a superuser"),
            "whoever gets hold of one credential can do everything",
            "name a role without SUPERUSER that owns the application's tables",
        ),
        Some(_) => Found::fine(format!("leased roles may become {quoted}")),
    }
}

/// `clock_timestamp`, as a transaction's time stands still.
const ROLE: &str = "SELECT session_user, current_user, \
    CASE WHEN rolvaliduntil < 'infinity' THEN \
        extract(epoch FROM rolvaliduntil - pg_catalog.clock_timestamp())::float8 END, \
    rolconnlimit, rolsuper \
    FROM pg_catalog.pg_roles WHERE rolname = session_user";

/// Those that it was made a member of, not those that these are in.
const GROUPS: &str = "SELECT DISTINCT g.rolname, pg_catalog.pg_has_role(m.member, g.oid, 'USAGE') \
    FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid \
    JOIN pg_catalog.pg_roles r ON r.oid = m.member WHERE r.rolname = session_user ORDER BY 1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::{Class, Outcome};
    use crate::config::AtLeaseEnd;

    fn leased(groups: &[(&str, bool)]) -> LeasedRole {
        let groups = groups.iter().map(|&(name, inherited)| Group { name: name.to_owned(), inherited });
        LeasedRole {
            name: "v-db-app-x".to_owned(),
            acts_as: None,
            valid_until: ValidUntil::None,
            connection_limit: None,
            is_superuser: false,
            groups: groups.collect(),
        }
    }

    fn clients() -> Who {
        Who::Clients { startup_role: None, at_lease_end: AtLeaseEnd::Auto }
    }

    #[test]
    fn role_that_inherits_nothing_needs_a_startup_role() {
        let superuser = LeasedRole { is_superuser: true, ..leased(&[]) };
        let set = LeasedRole { acts_as: Some("app_owner".to_owned()), ..leased(&[("app_owner", false)]) };
        for (role, expected, word) in [
            (leased(&[("app_rw", true)]), Outcome::Passed, "a member of app_rw"),
            (leased(&[("app_owner", false), ("app_rw", true)]), Outcome::Passed, "a member of app_rw"),
            (leased(&[("app_owner", false)]), Outcome::Warning, "inherits the rights of none"),
            (leased(&[]), Outcome::Passed, "in no group"),
            (set, Outcome::Passed, "act as app_owner"),
            (superuser, Outcome::Warning, "superuser"),
        ] {
            let found = judge_without_startup_role(&role, &clients());
            assert_eq!(found.outcome(), expected, "{role:?}");
            assert!(found.found().contains(word), "{found:?}");
        }
        for (who, word) in [
            (clients(), "startup_role = \"app_owner\" on the route"),
            (Who::Readers, "ALTER ROLE \"{{name}}\" SET role = app_owner;"),
        ] {
            let found = judge_without_startup_role(&leased(&[("app_owner", false)]), &who);
            assert!(found.cure().unwrap().contains(word), "{found:?}");
        }
    }

    #[test]
    fn startup_role_has_to_be_there_and_to_be_taken_on() {
        let seen = |is_member, may_set, is_superuser| Some(StartupRole { is_member, may_set, is_superuser });
        for (seen, expected, cure) in [
            (None, Outcome::Failed(Class::Configuration), "CREATE ROLE app_owner NOLOGIN;"),
            (seen(false, false, false), Outcome::Failed(Class::Permission), "IN ROLE app_owner;"),
            (seen(true, false, false), Outcome::Failed(Class::Permission), "WITH SET TRUE;"),
            (seen(true, true, true), Outcome::Warning, "without SUPERUSER"),
            (seen(true, true, false), Outcome::Passed, ""),
        ] {
            let found = judge_startup_role("app_owner", seen, &leased(&[]), "database/creds/db-app");
            assert_eq!(found.outcome(), expected, "{seen:?}");
            assert!(found.cure().unwrap_or_default().contains(cure), "{found:?}");
        }
    }

    #[test]
    fn what_a_role_leaves_goes_to_one_that_stays() {
        assert_eq!(leased(&[("app_rw", true)]).heir(Some("App")), "\"App\"");
        assert_eq!(leased(&[("app_rw", true)]).heir(None), "app_rw");
        assert_eq!(leased(&[]).heir(None), "<a role that stays>");
    }
}
