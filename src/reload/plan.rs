//! What a reload changes. Pure.

use crate::config::{Config, RouteConfig};

/// The way from the settings in effect to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What is in effect afterwards.
    pub(crate) config: Config,
    /// Keys and tables whose values change, in the words of the file.
    pub(crate) changed: Vec<&'static str>,
    pub(crate) routes: Routes,
}

/// What becomes of routes. A route is told by its database and user: who asked for these is where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    pub(crate) added: Vec<RouteConfig>,
    /// As they are afterwards. Their sessions go on as they began.
    pub(crate) changed: Vec<RouteConfig>,
    /// Their sessions end.
    pub(crate) removed: Vec<RouteConfig>,
}

impl Plan {
    /// From `old`, which is in effect, to `new` as far as that may be.
    pub(crate) fn new(old: &Config, new: Config) -> Self {
        let config = old.changed_to(new);
        let (before, after) = (&old.listen, &config.listen);
        let compared = [
            ("listen.auth", before.auth != after.auth),
            ("listen.tls", before.tls != after.tls),
            ("listen.max_sessions", before.max_sessions != after.max_sessions),
            ("listen.connect_wait", before.connect_wait != after.connect_wait),
            ("route", old.routes != config.routes),
            ("drain", old.drain != config.drain),
            ("admin.control", old.admin.control != config.admin.control),
            ("log.level", old.log.level != config.log.level),
        ];
        let changed = compared.into_iter().filter(|(_, is_other)| *is_other).map(|(name, _)| name).collect();
        let routes = Routes::new(&old.routes, &config.routes);
        Self { config, changed, routes }
    }

    /// Whether nothing changes.
    pub(crate) fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Whether what this key or table sets changes.
    pub(crate) fn changes(&self, name: &str) -> bool {
        self.changed.contains(&name)
    }
}

impl Routes {
    fn new(old: &[RouteConfig], new: &[RouteConfig]) -> Self {
        let is_same = |one: &RouteConfig, other: &RouteConfig| {
            (&one.database, &one.user) == (&other.database, &other.user)
        };
        let mut routes = Self::default();
        for route in new {
            match old.iter().find(|before| is_same(before, route)) {
                None => routes.added.push(route.clone()),
                Some(before) if before != route => routes.changed.push(route.clone()),
                Some(_) => {}
            }
        }
        let is_gone = |before: &&RouteConfig| !new.iter().any(|route| is_same(before, route));
        routes.removed = old.iter().filter(is_gone).cloned().collect();
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::example_of;

    const FILE: &str = r#"
[vault]
address = "https://vault:8200"
[vault.login]
role = "web"
jwt_file = "DIR/token"
[listen]
max_sessions = 100
[[route]]
database = "shop"
upstream = "postgresql://db/shop"
vault_path = "database/creds/shop"
[[route]]
upstream = "postgresql://db/app"
vault_path = "database/creds/db-app"
[log]
level = "info"
"#;

    /// From [`FILE`] to the same with these words replaced.
    fn plan(replaced: &[(&str, &str)]) -> Plan {
        let new = replaced.iter().fold(FILE.to_owned(), |file, (old, new)| {
            assert!(file.contains(old), "{old}");
            file.replace(old, new)
        });
        Plan::new(&example_of(FILE), example_of(&new))
    }

    fn databases(routes: &[RouteConfig]) -> Vec<&str> {
        routes.iter().map(|route| route.database.as_deref().unwrap_or("*")).collect()
    }

    #[test]
    fn same_settings_change_nothing() {
        for replaced in [&[][..], &[("[listen]\n", "[listen]\n# nothing\n")], &[("100", "1_00")]] {
            let plan = plan(replaced);
            assert!(plan.is_empty(), "{plan:?}");
        }
    }

    #[test]
    fn routes_are_told_by_what_clients_ask_for() {
        let second =
            "[[route]]\nupstream = \"postgresql://db/app\"\nvault_path = \"database/creds/db-app\"\n";
        for (replaced, added, changed, removed) in [
            (&[(second, "")][..], &[][..], &[][..], &["*"][..]),
            (&[("\"shop\"", "\"store\"")], &["store"], &[], &["shop"]),
            (&[("db/shop", "other/shop")], &[], &["shop"], &[]),
            (&[("creds/db-app", "creds/read-only")], &[], &["*"], &[]),
            (
                &[(
                    second,
                    "[[route]]\nuser = \"bob\"\nupstream = \"postgresql://db/app\"\nvault_path = \"database/creds/db-app\"\n",
                )],
                &["*"],
                &[],
                &["*"],
            ),
            (&[("[log]", "optional = true\n[log]")], &[], &["*"], &[]),
        ] {
            let plan = plan(replaced);
            let Routes { added: a, changed: c, removed: r } = &plan.routes;
            assert_eq!([databases(a), databases(c), databases(r)], [added, changed, removed], "{replaced:?}");
            assert_eq!(plan.changed, ["route"], "{replaced:?}");
        }
    }

    #[test]
    fn order_of_routes_matters_and_makes_none_another() {
        let routes =
            "[[route]]\nuser = \"a\"\nupstream = \"postgresql://db/a\"\nvault_path = \"database/creds/a\"\n";
        let other = routes.replace("\"a\"", "\"b\"");
        let file = |routes: String| FILE.replace("[[route]]\nup", &format!("{routes}[[route]]\nup"));
        let (one, another) = (file(format!("{routes}{other}")), file(format!("{other}{routes}")));
        let plan = Plan::new(&example_of(&one), example_of(&another));
        assert_eq!((plan.changed.as_slice(), plan.routes), (&["route"][..], Routes::default()));
    }

    #[test]
    fn what_holds_from_the_start_stays_and_the_rest_changes() {
        let file = FILE
            .replace("100", "7")
            .replace("[listen]\n", "[listen]\naddresses = [\"localhost:1\"]\nconnect_wait = \"1s\"\n");
        let more = "[drain]\ndeadline = \"1m\"\n[http]\naddress = \"[::]:1111\"\n[admin]\ncontrol = true\naddress = \"127.0.0.1:2\"\n[pod]\nname = \"x\"\n[log]\nformat = \"text\"\n";
        let file =
            file.replace("[log]\n", more).replace("vault:8200", "elsewhere").replace("\"info\"", "\"debug\"");
        let (old, new) = (example_of(FILE), example_of(&file));
        let Plan { config, changed, routes } = Plan::new(&old, new.clone());
        assert_eq!(routes, Routes::default());
        assert_eq!(
            changed,
            ["listen.max_sessions", "listen.connect_wait", "drain", "admin.control", "log.level"]
        );
        assert_eq!(
            (&config.vault.address, config.http, &config.pod),
            (&old.vault.address, old.http, &old.pod)
        );
        assert_eq!((&config.listen.addresses, config.log.format), (&old.listen.addresses, old.log.format));
        assert_eq!((config.admin.address, config.admin.control), (old.admin.address, true));
        assert_eq!((config.listen.max_sessions, config.drain), (7, new.drain));
        assert_eq!((config.listen.connect_wait, config.log.level), (new.listen.connect_wait, new.log.level));
    }
}
