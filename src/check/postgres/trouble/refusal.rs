//! Why a server has refused a login, in words: by its code, and where one code has several reasons by the function of
//! PostgreSQL that said so. Its text is shown and decides nothing: servers speak many languages.

use std::net::IpAddr;

use super::{Place, Trouble};
use crate::check::fault::Fault;
use crate::check::postgres::quote::identifier;
use crate::config::{SslMode, UpstreamConfig};
use crate::wire::error::{ErrorResponse, SqlState};

/// What another database of the same server has told, where the one that is wanted is closed to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::check::postgres) struct Elsewhere {
    /// Groups that the leased role is in.
    pub(in crate::check::postgres) groups: Vec<String>,
    pub(in crate::check::postgres) databases: Vec<String>,
}

/// `28P01` or `28000`, said of the credential itself.
pub(super) fn of_credential(response: &ErrorResponse, place: &Place<'_>) -> Trouble {
    let vault_role = place.vault_path.replacen("/creds/", "/roles/", 1);
    if response.code == Some(SqlState::INVALID_AUTHORIZATION) {
        return Trouble::new(
            Fault::RoleNoLogin,
            "the role may not log in: it was made without LOGIN, or somebody took that away",
            format!("say LOGIN in the creation_statements of {vault_role}:\n{}", creation(place)),
        );
    }
    if place.accepted_elsewhere {
        return Trouble::new(
            Fault::RoleUnknownHere,
            "another host of the list takes the same credential and this one does not know it after 5 s: a replica that \
             is behind, a pooler that keeps what it once knew, or a server of another cluster",
            "-- on the primary, to see how far behind its replicas are:\n\
             SELECT application_name, state, replay_lag, pg_current_wal_lsn() - replay_lsn AS behind\n\
             FROM pg_stat_replication;\n\
             -- and, at a pooler, have it ask the server for roles: auth_query, auth_dbname",
        );
    }
    Trouble::new(
        Fault::RoleUnknown,
        "the server does not know the role that Vault has just made, or not with this password: Vault makes roles on \
         another server, its clock is behind the server's so that VALID UNTIL is over, or a pooler in between has a \
         list of users of its own",
        format!(
            "vault read {}\n-- connection_url there has to lead to the server of `upstream`, and \
             creation_statements have to say:\n{}",
            connection(place.vault_path),
            creation(place)
        ),
    )
}

/// A refusal of all else.
pub(super) fn of_session(response: &ErrorResponse, place: &Place<'_>) -> Trouble {
    let Some(code) = response.code else {
        return of_pooler(place);
    };
    match code {
        SqlState::INVALID_AUTHORIZATION => of_hba(place),
        SqlState::INVALID_PASSWORD => Trouble::new(
            Fault::ClientCertificateName,
            "pg_hba.conf says clientcert=verify-full, and the name in the certificate of sslcert is not the leased role's",
            "say clientcert=verify-ca there, since leased roles have a new name each, then:\nSELECT pg_reload_conf();",
        ),
        SqlState::INVALID_CATALOG_NAME => no_database(place),
        SqlState::INSUFFICIENT_PRIVILEGE if place.as_startup_role => no_member(place),
        SqlState::INSUFFICIENT_PRIVILEGE => no_connect(place),
        SqlState::TOO_MANY_CONNECTIONS => full(response, place),
        SqlState::CANNOT_CONNECT_NOW => Trouble::new(
            Fault::ServerStarting,
            "the server is starting, stopping, or a standby that lets nobody in",
            "wait until it is up; on a standby `hot_standby` must be on",
        ),
        SqlState::PROTOCOL_VIOLATION | SqlState::FEATURE_NOT_SUPPORTED => of_pooler(place),
        SqlState::INVALID_PARAMETER_VALUE if place.as_startup_role => no_role(place),
        code if code.is_of_class(&["53", "57", "58", "XX"]) => Trouble::new(
            Fault::ServerInTrouble,
            "the server cannot serve anybody now",
            "see the server's log",
        ),
        _ => Trouble::new(
            Fault::SessionRefused,
            "the server has taken the credential and then refused the session: a login trigger, or a setting of the \
             role or the database that it does not take",
            "-- what is set there:\n\
             SELECT datname, setrole::regrole, setconfig\n\
             FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase;\n\
             -- and what runs at a login to this database (PostgreSQL 17 and later):\n\
             SELECT evtname, evtfoid::regproc FROM pg_event_trigger WHERE evtevent = 'login';",
        ),
    }
}

fn of_hba(place: &Place<'_>) -> Trouble {
    let tls = if place.upstream.ssl_mode == SslMode::Disable { "no TLS" } else { "TLS" };
    Trouble::new(
        Fault::PgHba,
        format!(
            "pg_hba.conf has no line, or one that says reject, for leased roles from {} to database {} with {tls}",
            client_address(place.ours),
            identifier(place.database)
        ),
        format!(
            "-- in pg_hba.conf, in front of the line that holds now:\n{} {} all {} scram-sha-256\n-- then:\n\
             SELECT pg_reload_conf();",
            connection_type(place.upstream),
            identifier(place.database),
            client_address(place.ours)
        ),
    )
}

/// The first word of a line of `pg_hba.conf` for connections as the route makes them.
pub(in crate::check::postgres) fn connection_type(upstream: &UpstreamConfig) -> &'static str {
    let is_socket = |host: &crate::config::Host| matches!(host.place, crate::config::Place::Socket(_));
    match upstream.ssl_mode {
        _ if upstream.hosts.iter().any(is_socket) => "local",
        SslMode::Disable => "host",
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => "hostssl",
    }
}

/// Ours, as a line of `pg_hba.conf` has it. A Unix socket has none.
pub(super) fn client_address(ours: Option<IpAddr>) -> String {
    ours.map_or_else(String::new, |ours| format!("{ours}/{}", if ours.is_ipv4() { 32 } else { 128 }))
}

fn no_database(place: &Place<'_>) -> Trouble {
    let others = &place.elsewhere.databases;
    let there = if others.is_empty() { String::new() } else { format!("; it has {}", others.join(", ")) };
    Trouble::new(
        Fault::DatabaseMissing,
        format!("the server has no database {}{there}", identifier(place.database)),
        format!("correct the database in `upstream`, or:\nCREATE DATABASE {};", identifier(place.database)),
    )
}

fn no_connect(place: &Place<'_>) -> Trouble {
    let database = identifier(place.database);
    Trouble::new(
        Fault::ConnectNotAllowed,
        format!("leased roles may not connect to database {database}"),
        format!("GRANT CONNECT ON DATABASE {database} TO {};", group(place)),
    )
}

fn no_member(place: &Place<'_>) -> Trouble {
    let role = place.startup_role.map(identifier).unwrap_or_default();
    Trouble::new(
        Fault::StartupRoleNoMember,
        format!("leased roles may not become {role}, the route's startup_role"),
        format!(
            "have creation_statements of {} make members of it (and, from PostgreSQL 16 on, Vault's own user may hand \
             the membership on, by GRANT {role} TO <that user> WITH ADMIN OPTION):\n{}",
            place.vault_path.replacen("/creds/", "/roles/", 1),
            creation(place)
        ),
    )
}

fn no_role(place: &Place<'_>) -> Trouble {
    let role = place.startup_role.map(identifier).unwrap_or_default();
    Trouble::new(
        Fault::StartupRoleMissing,
        format!("there is no role {role}, the route's startup_role"),
        format!(
            "correct startup_role of the route, or make the role, and leased roles its members:\n\
             CREATE ROLE {role} NOLOGIN;"
        ),
    )
}

/// `53300` is said of three limits, by three functions of PostgreSQL's: the same ones from 14 to 18.
fn full(response: &ErrorResponse, place: &Place<'_>) -> Trouble {
    let database = identifier(place.database);
    let (fault, cause, cure) = match response.routine() {
        Some("InitializeSessionUserId") => (
            Fault::RoleLimitReached,
            "the CONNECTION LIMIT of the leased role is reached".to_owned(),
            format!(
                "say CONNECTION LIMIT -1, or more than listen.max_sessions, in the creation_statements of {}:\n{}",
                place.vault_path.replacen("/creds/", "/roles/", 1),
                creation(place)
            ),
        ),
        Some("CheckMyDatabase") => (
            Fault::DatabaseLimitReached,
            format!("the CONNECTION LIMIT of database {database} is reached"),
            format!("ALTER DATABASE {database} CONNECTION LIMIT -1;"),
        ),
        _ => (
            Fault::ServerFull,
            "the server has no connection left for roles that are no superuser's".to_owned(),
            "-- who has them:\n\
             SELECT usename, datname, application_name, state, count(*)\n\
             FROM pg_stat_activity GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC;\n\
             -- and, if they are needed, with a restart:\n\
             ALTER SYSTEM SET max_connections = 200;"
                .to_owned(),
        ),
    };
    Trouble::new(fault, cause, cure)
}

fn of_pooler(place: &Place<'_>) -> Trouble {
    let Some(role) = place.startup_role.filter(|_| place.as_startup_role) else {
        return Trouble::new(
            Fault::PoolerRefusesStartup,
            "what refuses is no PostgreSQL, but a pooler or proxy in between that does not know leased roles, or not \
             what a session may say at its start",
            "have the pooler ask the server for roles (in PgBouncer: auth_query and auth_user), or connect to \
             PostgreSQL itself",
        );
    };
    let role = identifier(role);
    Trouble::new(
        Fault::PoolerRefusesRole,
        "a pooler in between refuses the startup parameter `role`, which startup_role is sent as",
        format!(
            "take startup_role out of the route, say at_lease_end = \"leave\", and have creation_statements do it \
             instead:\n{}\nALTER ROLE \"{{{{name}}}}\" SET role = {role};",
            creation(place)
        ),
    )
}

/// The group of leased roles, or what to put in its place.
fn group(place: &Place<'_>) -> String {
    let known = place.elsewhere.groups.first().map(String::as_str).or(place.startup_role);
    known.map_or_else(|| "<the group of IN ROLE in creation_statements>".to_owned(), identifier)
}

/// What creation statements should be.
pub(in crate::check::postgres) fn creation_in(group: &str) -> String {
    format!(
        "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {group};"
    )
}

fn creation(place: &Place<'_>) -> String {
    let group = place.startup_role.map_or_else(|| group(place), identifier);
    creation_in(&group)
}

/// Where Vault has the connection: its name is the `vault_role`'s `db_name`.
fn connection(vault_path: &str) -> String {
    let mount = vault_path.split("/creds/").next().unwrap_or(vault_path);
    format!("{mount}/config/<db_name of {}>", vault_path.replacen("/creds/", "/roles/", 1))
}
