//! Database and user to upstream and `vault_path`, and the startup parameters that go there. Pure.

use std::sync::Arc;

use tokio::sync::watch;

use super::auth::Client;
use super::warm::Warm;
use crate::config::{AtLeaseEnd, RouteConfig};
use crate::credential::{CredentialSource, LeaseEnd};
use crate::upstream::Upstream;
use crate::wire::error::{ClientError, SqlState};
use crate::wire::startup::{StartupParameters, is_protocol_option};

/// Where sessions for a database and a user go, and on whose credentials.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) config: RouteConfig,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) source: CredentialSource,
    pub(crate) removed: Removal,
    /// Sessions that are logged in ahead; `None` where there are to be none.
    pub(crate) warm: Option<Arc<Warm>>,
}

/// When the sessions of a route end, once it was removed.
pub(crate) type Removal = Arc<watch::Sender<Option<LeaseEnd>>>;

impl Route {
    /// One that stays.
    #[cfg(test)]
    pub(crate) fn to_stay(config: RouteConfig, upstream: Arc<Upstream>, source: CredentialSource) -> Self {
        Self { config, upstream, source, removed: Removal::default(), warm: None }
    }

    fn matches(&self, client: &Client) -> bool {
        let is = |wanted: &Option<String>, given: &[u8]| {
            wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == given)
        };
        is(&self.config.database, &client.database) && is(&self.config.user, &client.user)
    }
}

/// No route for what the client asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no route for database {database:?} and user {user:?}")]
pub(crate) struct NoRoute {
    database: String,
    user: String,
}

impl NoRoute {
    pub(crate) fn client_error(&self) -> ClientError {
        let Self { database, user } = self;
        ClientError::fatal(SqlState::INVALID_CATALOG_NAME, format!("database \"{database}\" has no route"))
            .with_detail(format!("pglease has no route for database \"{database}\" and user \"{user}\"."))
    }
}

/// The first route whose database and user match.
pub(crate) fn find<'a>(routes: &'a [Route], client: &Client) -> Result<&'a Route, NoRoute> {
    routes.iter().find(|route| route.matches(client)).ok_or_else(|| {
        let name = |bytes| String::from_utf8_lossy(bytes).into_owned();
        NoRoute { database: name(&client.database), user: name(&client.user) }
    })
}

/// What goes upstream, but for `user`, which the credential brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outbound {
    pub(crate) parameters: StartupParameters,
    /// `Auto` where it depends on the end of the lease.
    pub(crate) at_lease_end: AtLeaseEnd,
}

/// The client's parameters as they are, except `database` (the route's, or else what the client meant: upstream's
/// own default would be the leased name), `role`, and those that speak to the next hop only.
pub(crate) fn outbound(client: &Client, config: &RouteConfig) -> Outbound {
    let mut parameters = client.message.parameters.clone();
    parameters.retain(|name| name != b"user" && name != b"database" && !is_protocol_option(name));
    let database =
        config.upstream.database.as_ref().map_or_else(|| client.database.clone(), |name| name.clone().into());
    parameters.push("database", database);

    let role = config.startup_role.as_ref().filter(|_| !names_role(&client.message.parameters));
    if let Some(role) = role {
        parameters.push("role", role.as_str());
    }
    // Rights that are the startup role's own do not end with the lease. Of a role that the client names itself nobody
    // knows that: it may be `none`.
    let at_lease_end = match config.at_lease_end {
        AtLeaseEnd::Auto if role.is_some() => AtLeaseEnd::Leave,
        as_written @ (AtLeaseEnd::Auto | AtLeaseEnd::Leave | AtLeaseEnd::Close) => as_written,
    };
    Outbound { parameters, at_lease_end }
}

/// Whether the client names a role of its own: as a parameter, or as `-c role=…`, `--role=…` in `options`.
fn names_role(parameters: &StartupParameters) -> bool {
    let is_role = |name: &[u8]| name.eq_ignore_ascii_case(b"role");
    let sets_role = |setting: &[u8]| setting.split(|&byte| byte == b'=').next().is_some_and(is_role);

    let options = split_options(parameters.get("options").unwrap_or_default());
    let mut options = options.iter().map(Vec::as_slice);
    parameters.iter().any(|(name, _)| is_role(name))
        || std::iter::from_fn(|| match options.next()? {
            b"-c" => Some(options.next().unwrap_or_default()),
            option => Some(option.strip_prefix(b"--").or(option.strip_prefix(b"-c")).unwrap_or_default()),
        })
        .any(sets_role)
}

/// Words between white space, as the server splits them: a backslash takes the next character as it is.
fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut word) = (Vec::new(), None::<Vec<u8>>);
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_whitespace() || byte == b'\x0b' {
            words.extend(word.take());
        } else {
            let literal = if byte == b'\\' { bytes.next() } else { Some(byte) };
            word.get_or_insert_default().extend(literal);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamConfig;
    use crate::credential;
    use crate::session::auth;
    use crate::session::encryption::Transport;
    use crate::wire::startup::{PROTOCOL_3_0, ProtocolVersion, StartupMessage};

    fn config() -> RouteConfig {
        RouteConfig {
            database: None,
            user: None,
            upstream: UpstreamConfig::plain("postgres", 5432),
            vault_path: "database/creds/db-app".to_owned(),
            startup_role: None,
            at_lease_end: AtLeaseEnd::Auto,
            max_session_age: None,
            warm: 0,
            optional: false,
        }
    }

    fn client(pairs: &[(&str, &str)]) -> Client {
        let mut parameters = StartupParameters::default();
        for (name, value) in pairs {
            parameters.push(*name, *value);
        }
        let message = StartupMessage { version: ProtocolVersion(PROTOCOL_3_0), parameters };
        auth::identify(message, Transport::test()).unwrap()
    }

    fn pairs(outbound: &Outbound) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        outbound.parameters.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn first_route_that_matches_both_serves() {
        let (_publisher, source) = credential::channel();
        let route = |database: Option<&str>, user: Option<&str>| {
            let config =
                RouteConfig { database: database.map(Into::into), user: user.map(Into::into), ..config() };
            let upstream = Arc::new(Upstream::load(&config.upstream).unwrap());
            Route::to_stay(config, upstream, source.clone())
        };
        let routes =
            [route(Some("wizard"), Some("admin")), route(Some("wizard"), None), route(None, Some("admin"))];
        let found = |user, database| {
            let client = client(&[("user", user), ("database", database)]);
            find(&routes, &client)
                .ok()
                .and_then(|found| routes.iter().position(|route| std::ptr::eq(route, found)))
        };

        assert_eq!(found("admin", "wizard"), Some(0));
        assert_eq!(found("alice", "wizard"), Some(1));
        assert_eq!(found("admin", "other"), Some(2));
        assert_eq!(found("alice", "other"), None);
        assert_eq!(found("Admin", "other"), None);
    }

    #[test]
    fn parameters_go_on_but_for_those_that_are_ours() {
        let client = client(&[
            ("user", "alice"),
            ("application_name", "app"),
            ("_pq_.x", "1"),
            ("a.b", "c"),
            ("user", "bob"),
        ]);
        let outbound = outbound(&client, &config());
        assert_eq!(
            pairs(&outbound),
            owned(&[("application_name", "app"), ("a.b", "c"), ("database", "bob")])
        );
        assert_eq!(outbound.at_lease_end, AtLeaseEnd::Auto);
    }

    #[test]
    fn route_renames_the_database_and_brings_the_role() {
        let mut config = RouteConfig { startup_role: Some("app_owner".to_owned()), ..config() };
        config.upstream.database = Some("wizard_prod".to_owned());
        let asking = client(&[("user", "alice"), ("database", "wizard")]);

        let sent = outbound(&asking, &config);
        assert_eq!(pairs(&sent), owned(&[("database", "wizard_prod"), ("role", "app_owner")]));
        assert_eq!(sent.at_lease_end, AtLeaseEnd::Leave);
        for configured in [AtLeaseEnd::Close, AtLeaseEnd::Leave] {
            config.at_lease_end = configured;
            assert_eq!(outbound(&asking, &config).at_lease_end, configured);
        }
    }

    #[test]
    fn client_that_names_a_role_gets_what_it_asked_for() {
        let config = RouteConfig { startup_role: Some("app_owner".to_owned()), ..config() };
        let own_role = |name, value| {
            let outbound = outbound(&client(&[("user", "alice"), (name, value)]), &config);
            let has_startup_role = pairs(&outbound).contains(&("role".into(), "app_owner".into()));
            let expected = if has_startup_role { AtLeaseEnd::Leave } else { AtLeaseEnd::Auto };
            assert_eq!(outbound.at_lease_end, expected);
            !has_startup_role
        };
        for (name, value) in [
            ("role", "reader"),
            ("ROLE", "reader"),
            ("options", "-c role=reader"),
            ("options", "-crole=reader"),
            ("options", " -c work_mem=1MB  --role=reader"),
            ("options", "-c Role=none"),
            ("options", "\\-c\trole=a\\ b"),
        ] {
            assert!(own_role(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("options", "-c work_mem=1MB"),
            ("options", "-c search_path=role"),
            ("options", "-c my.role=x"),
            ("options", "-c"),
            ("options", "role=x"),
            ("roles", "x"),
        ] {
            assert!(!own_role(name, value), "{name}={value}");
        }
    }
}
