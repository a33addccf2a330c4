//! How many sessions there is room for: at the server, in the database, and for one leased role.

use super::ask::{self, Row};
use super::quote::identifier;
use super::trouble::creation_in;
use crate::check::fault::Warning;
use crate::check::report::Found;
use crate::upstream::{Inquiry, QueryError};

/// Limits of a server and its database, and how much of them is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) max_connections: u64,
    /// For superusers, and from PostgreSQL 16 on for members of `pg_use_reserved_connections`.
    pub(super) reserved: u64,
    /// Sessions of anybody but this one.
    pub(super) in_use: u64,
    /// `None`: as many as the server takes.
    pub(super) database_limit: Option<u64>,
}

impl Room {
    pub(super) async fn ask(session: &mut Inquiry) -> Result<Self, QueryError> {
        let read = |row: &mut Row<'_>| {
            let (max_connections, reserved, in_use) = (row.number()?, row.number()?, row.number()?);
            let limit: i64 = row.number()?;
            Some(Self { max_connections, reserved, in_use, database_limit: u64::try_from(limit).ok() })
        };
        ask::row(session, ROOM, read).await
    }

    /// What others than superusers can have at all.
    fn all(self) -> u64 {
        self.max_connections.saturating_sub(self.reserved)
    }

    fn left(self) -> u64 {
        self.all().saturating_sub(self.in_use)
    }
}

/// What a route may want of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// `listen.max_sessions`.
    pub(super) max_sessions: u64,
    pub(super) role_limit: Option<u64>,
    pub(super) database: &'a str,
    pub(super) group: &'a str,
}

/// Judges whether as many sessions as pglease lets in find room.
pub(super) fn judge(room: Room, wanted: Wanted<'_>) -> Found {
    let Wanted { max_sessions, role_limit, database, group } = wanted;
    let database = identifier(database);
    let found =
        format!("{} of {} connections left; listen.max_sessions is {max_sessions}", room.left(), room.all());
    // pglease tries a credential before it uses it, and a new one while sessions are open.
    let needed = max_sessions.saturating_add(1);
    if let Some(limit) = role_limit.filter(|limit| *limit < needed) {
        return Found::warning(
            Warning::RoleLimit,
            format!("a leased role may have {limit} sessions, and listen.max_sessions is {max_sessions}"),
            "the CONNECTION LIMIT of creation_statements: whoever comes above it is refused with 53300, and the login that \
             pglease tries a credential with is one of them",
            format!(
                "set listen.max_sessions to {} or less, or say CONNECTION LIMIT {needed} or more in creation_statements, or \
                 none:\n{}",
                limit.saturating_sub(1),
                creation_in(group)
            ),
        );
    }
    if let Some(limit) = room.database_limit.filter(|limit| *limit < needed) {
        return Found::warning(
            Warning::DatabaseLimit,
            format!("database {database} takes {limit} sessions, and listen.max_sessions is {max_sessions}"),
            "its CONNECTION LIMIT: whoever comes above it is refused with 53300",
            format!("ALTER DATABASE {database} CONNECTION LIMIT -1;"),
        );
    }
    if room.all() < needed {
        return Found::warning(
            Warning::ServerSmall,
            found,
            format!(
                "the server takes {} connections, {} of them for superusers: an application that opens as many sessions as \
                 pglease allows is refused with 53300",
                room.max_connections, room.reserved
            ),
            format!(
                "set listen.max_sessions to what this pod needs, or, with a restart of the server:\n\
                 ALTER SYSTEM SET max_connections = {};",
                needed.saturating_add(room.reserved).saturating_add(room.in_use)
            ),
        );
    }
    if room.left() < needed {
        return Found::warning(
            Warning::ServerBusy,
            found,
            format!(
                "others have {} connections now: not all sessions that pglease allows find room",
                room.in_use
            ),
            "-- see who has them, and whether they need them:\n\
             SELECT usename, datname, application_name, state, count(*)\n\
             FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC;",
        );
    }
    Found::fine(found)
}

/// Of other roles' sessions everybody sees whose they are and in which database, and no more.
const ROOM: &str = "SELECT pg_catalog.current_setting('max_connections'), \
    pg_catalog.current_setting('superuser_reserved_connections')::int \
        + coalesce(pg_catalog.current_setting('reserved_connections', true)::int, 0), \
    (SELECT count(*) FROM pg_catalog.pg_stat_activity \
        WHERE usesysid IS NOT NULL AND datid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid()), \
    datconnlimit \
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::report::Outcome;

    #[test]
    fn every_limit_is_held_against_max_sessions() {
        let room = Room { max_connections: 100, reserved: 3, in_use: 10, database_limit: None };
        for (room, max_sessions, role_limit, expected, word) in [
            (room, 50, None, Outcome::Passed, ""),
            (room, 86, None, Outcome::Passed, ""),
            (room, 87, None, Outcome::Warning, "others have 10"),
            (room, 97, None, Outcome::Warning, "takes 100 connections, 3 of them"),
            (room, 1000, None, Outcome::Warning, "takes 100 connections, 3 of them"),
            (room, 50, Some(51), Outcome::Passed, ""),
            (room, 50, Some(50), Outcome::Warning, "CONNECTION LIMIT of creation_statements"),
            (Room { database_limit: Some(20), ..room }, 50, None, Outcome::Warning, "its CONNECTION LIMIT"),
            (Room { database_limit: Some(60), ..room }, 50, None, Outcome::Passed, ""),
            (Room { in_use: 500, ..room }, 5, None, Outcome::Warning, "others have 500"),
        ] {
            let wanted = Wanted { max_sessions, role_limit, database: "wizard", group: "app_rw" };
            let found = judge(room, wanted);
            assert_eq!(found.outcome(), expected, "{room:?} {max_sessions} {role_limit:?}");
            assert!(found.cause().unwrap_or_default().contains(word), "{found:?}");
        }
    }
}
