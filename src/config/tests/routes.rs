//! Routes: which there are, and what each may say.

use super::*;

#[test]
fn one_route_is_made_by_flags_alone_and_lists_are_comma_separated() {
    let given = Given::nothing().arguments(&[
        "--vault-address=https://vault:8200",
        "--vault-login-role=web",
        "--vault-login-jwt-file=DIR/token",
        "--upstream=postgresql://db/app",
        "--vault-path=database/creds/db-app",
        "--database=wizard",
        "--user=app",
        "--startup-role=app_owner",
        "--at-lease-end=leave",
        "--optional",
        "--listen-addresses=localhost:5432, 127.0.0.2:5432,",
    ]);
    let config = given.config();

    let [route] = config.routes.as_slice() else { panic!("one route") };
    assert_eq!((route.database.as_deref(), route.user.as_deref()), (Some("wizard"), Some("app")));
    assert_eq!((route.at_lease_end, route.optional), (AtLeaseEnd::Leave, true));
    assert_eq!(config.listen.addresses.len(), 2);
    assert!(!Given::minimum().arguments(&["--optional=false"]).config().routes[0].optional);
}

#[test]
fn the_files_only_route_gives_way_to_flags_and_variables() {
    let given = Given::minimal_file("")
        .variable("PGLEASE_DATABASE", "wizard")
        .arguments(&["--upstream", "postgresql://other/app"]);
    let config = given.config();

    let [route] = config.routes.as_slice() else { panic!("one route") };
    assert_eq!(
        (route.database.as_deref(), route.upstream.to_string().as_str()),
        (Some("wizard"), "other:5432")
    );
    assert_eq!(route.vault_path, "database/creds/db-app");
}

#[test]
fn warm_sessions_are_not_of_standbys_which_keep_theirs_when_they_are_promoted() {
    for (wanted, is_allowed) in [
        ("any", true),
        ("primary", true),
        ("read-write", true),
        ("standby", false),
        ("prefer-standby", false),
    ] {
        let upstream = format!("postgresql://db/app?target_session_attrs={wanted}");
        let given = Given::minimum().variable("PGLEASE_UPSTREAM", &upstream).variable("PGLEASE_WARM", "2");
        let outcome = given.load().map(|loaded| loaded.config.routes[0].warm);
        match outcome {
            Ok(warm) => assert_eq!((is_allowed, warm), (true, 2), "{wanted}"),
            Err(errors) => assert!(!is_allowed && errors.contains("promoted"), "{errors}"),
        }
    }
}

#[test]
fn a_route_that_can_never_match_is_refused() {
    let route = |clients: &str| {
        format!("[[route]]\n{clients}\nupstream = \"host=db\"\nvault_path = \"database/creds/a\"\n")
    };
    let errors = |routes: &[&str]| {
        let routes: String = routes.iter().map(|clients| route(clients)).collect();
        Given::nothing().file(&MINIMAL_FILE.replace("[[route]]", "[[route]]\ndatabase = \"first\"").replace(
            "vault_path = \"database/creds/db-app\"\n",
            &format!("vault_path = \"database/creds/db-app\"\n{routes}"),
        ))
    };
    let shadowed = "route: can never match (pglease.toml:14), as the one before it at pglease.toml:10 takes all its \
                    clients; write it before that one, or remove it";

    assert_eq!(errors(&["user = \"a\"", "user = \"a\""]).errors(), shadowed);
    assert_eq!(errors(&["user = \"a\"", "user = \"a\"\ndatabase = \"b\""]).errors(), shadowed);
    assert_eq!(errors(&["", "database = \"*\""]).errors(), shadowed);
    assert!(errors(&["user = \"a\"", "user = \"b\"", "database = \"b\"", ""]).load().is_ok());
    assert_eq!(
        errors(&["database = \"first\""]).errors(),
        "route: can never match (pglease.toml:10), as the one before it at pglease.toml:6 takes all its clients; \
         write it before that one, or remove it"
    );
}

#[test]
fn flags_cannot_be_meant_for_one_of_several_routes() {
    let more = "database = \"a\"\n[[route]]\nupstream = \"host=db\"\nvault_path = \"database/creds/b\"\n";
    let given = Given::minimal_file(more).arguments(&["--user=x"]);

    assert_eq!(
        given.errors(),
        "route.user = \"x\" (--user): the file has 2 routes, and this may be meant for any of them; write it into \
         its [[route]]"
    );
}

#[test]
fn no_route_at_all_names_the_three_that_make_one() {
    let mut given = Given::minimum();
    given.variables.retain(|(name, _)| !["PGLEASE_UPSTREAM", "PGLEASE_VAULT_PATH"].contains(&name.as_str()));

    assert_eq!(
        given.errors(),
        "route: none given; set --upstream, --vault-path and --vault-login-role (PGLEASE_UPSTREAM, \
         PGLEASE_VAULT_PATH, PGLEASE_VAULT_LOGIN_ROLE), or write [[route]] or [[file]] into the file of \
         --config-file (PGLEASE_CONFIG_FILE)"
    );
}

#[test]
fn upstream_errors_say_what_to_write() {
    flag_says(
        "--upstream=postgresql://app:pw@db/app",
        "route.upstream = \"postgresql://***@db/app\" (--upstream): holds a password; remove it, as pglease logs in \
         with what it leases\nroute.upstream = \"postgresql://***@db/app\" (--upstream): holds a user; remove it, as \
         pglease logs in with what it leases",
    );
    flag_says(
        "--upstream=host=db sslmod=require port=x",
        "route.upstream = \"host=db sslmod=***\" (--upstream): \"sslmod\": unknown keyword; did you mean \
         sslmode?\nroute.upstream = \"host=db sslmod=***\" (--upstream): has a port that is not a number from 1 to \
         65535; write it like 5432",
    );
}
