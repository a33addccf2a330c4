//! The exact words for what is wrong.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn unknown_names_come_with_the_nearest_known_one() {
    file_says(
        "[listen]\nmax_sesions = 5\n",
        "listen.max_sesions: unknown key (pglease.toml:10); did you mean listen.max_sessions?",
    );
    file_says("upstram = 1\n", "route.upstram: unknown key (pglease.toml:9); did you mean route.upstream?");
    file_says("[drian]\ngrace = 1\n", "drian: unknown key (pglease.toml:9); did you mean drain?");
    file_says(
        "[listen]\ndeadline = \"1s\"\n",
        "listen.deadline: unknown key (pglease.toml:10); did you mean drain.deadline?",
    );
    file_says("[colour]\nred = 1\n", "colour: unknown key (pglease.toml:9); remove it");
    file_says(
        "[\"listen.max_sessions\"]\n",
        "listen.max_sessions: unknown key (pglease.toml:9); did you mean listen.max_sessions?",
    );
    variable_says(
        "PGLEASE_VAULT_ADDR",
        "x",
        "PGLEASE_VAULT_ADDR: unknown variable; did you mean PGLEASE_VAULT_ADDRESS?",
    );
    variable_says(
        "PGLEASE_ROUTE_UPSTREAM",
        "x",
        "PGLEASE_ROUTE_UPSTREAM: unknown variable; did you mean PGLEASE_UPSTREAM?",
    );
    variable_says(
        "PGLEASE_CONFIG",
        "x",
        "PGLEASE_CONFIG: unknown variable; did you mean PGLEASE_CONFIG_FILE?",
    );
    variable_says("PGLEASE_ZEBRA", "x", "PGLEASE_ZEBRA: unknown variable; remove it");
}

#[test]
fn threads_are_some_or_auto() {
    for written in ["0", "-1", "65", "\"many\"", "\"\"", "\"1.5\""] {
        file_says(
            &format!("[listen]\nthreads = {written}\n"),
            &format!(
                "listen.threads = {written} (pglease.toml:10): neither a whole number from 1 to 64 nor \"auto\"; write \
                 one of them"
            ),
        );
    }
}

#[test]
fn socket_and_its_mode_are_judged() {
    file_says(
        "[listen]\nunix_socket_mode = \"rw\"\n",
        "listen.unix_socket_mode = \"rw\" (pglease.toml:10): not a file mode; write it in octal, like \"0660\"",
    );
    file_says(
        "[listen]\nunix_socket = \"DIR/token\"\n",
        "listen.unix_socket = \"token\" (pglease.toml:10): not a directory; name one that is there",
    );
    let dir = tempfile::Builder::new().prefix(&"d".repeat(100)).tempdir().unwrap();
    let file = format!("\n[listen]\nunix_socket = {:?}\n", dir.path());
    let said = Given::minimal_file(&file).errors();
    assert!(said.contains("and there is room for 107; name a directory with a shorter path"), "{said}");
}

#[test]
fn wrong_shapes_in_the_file_name_the_right_one() {
    file_says(
        "[listen]\nmax_sessions = \"many\"\n",
        "listen.max_sessions = \"many\" (pglease.toml:10): a string where an integer is expected; write it like 1000",
    );
    file_says(
        "[drain]\ngrace = 30\n",
        "drain.grace = 30 (pglease.toml:10): an integer where a string is expected; write it like \"30s\"",
    );
    file_says(
        "[listen]\naddresses = \"localhost:5432\"\n",
        "listen.addresses = \"localhost:5432\" (pglease.toml:10): a string where an array of strings is expected; \
         write it like [\"one\", \"two\"]",
    );
    assert_eq!(
        Given::nothing()
            .file(&MINIMAL_FILE.replace("\"postgresql://db/app\"", "[\"postgresql://u:p@db\"]"))
            .errors(),
        "route.upstream = […] (pglease.toml:7): an array where a string is expected; write it like \
         \"postgresql://db.example.com:5432/app\""
    );
    assert_eq!(
        Given::minimum().file("drain = 5\n").errors(),
        "drain = 5 (pglease.toml:1): not a table; write [drain]"
    );
    assert_eq!(
        Given::minimum().file("[route]\nupstream = \"x\"\n").errors(),
        "route = {…} (pglease.toml:1): not an array of tables; write [[route]]"
    );
    assert_eq!(
        Given::minimum().file("route = [1]\n").errors(),
        "route = 1 (pglease.toml:1): not an array of tables; write [[route]]"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let says = |text: &str, expected: &str| assert_eq!(Given::nothing().file(text).errors(), expected);

    says("[vault\n", "pglease.toml:1: not TOML: unclosed table, expected `]`");
    says("\n\nx = \n", "pglease.toml:3: not TOML: string values must be quoted, expected literal string");
    says("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "pglease.toml:3: not TOML: duplicate key");
    assert_eq!(
        Given::nothing().arguments(&["--config-file", "DIR/empty"]).errors(),
        "config_file = \"empty\" (--config-file): the file is empty; fill it, or name another"
    );
    assert_eq!(
        Given::nothing().arguments(&["--config-file", "/"]).errors(),
        "config_file = \"/\" (--config-file): not a regular file; name one that can be read again and again"
    );
}

#[test]
fn a_file_as_deep_as_it_is_long_is_refused() {
    for text in [format!("x = {}", "[".repeat(100_000)), format!("x = {}", "{a=".repeat(100_000))] {
        let errors = Given::nothing().file(&text).errors();
        assert!(errors.starts_with("pglease.toml:1: not TOML: "), "{}", errors.len());
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    flag_says(
        "--drain-grace=-5s",
        "drain.grace = \"-5s\" (--drain-grace): negative; a duration is \"0s\" or more",
    );
    flag_says(
        "--drain-grace=5",
        "drain.grace = \"5\" (--drain-grace): has no unit; write it like \"30s\", \"5m\" or \"1h 30m\"",
    );
    flag_says(
        "--drain-deadline=11y",
        "drain.deadline = \"11y\" (--drain-deadline): longer than ten years; make it shorter",
    );
    flag_says(
        "--listen-connect-wait=0s",
        "listen.connect_wait = \"0s\" (--listen-connect-wait): leaves no time; make it longer than that",
    );
    flag_says(
        "--listen-max-sessions=0",
        "listen.max_sessions = 0 (--listen-max-sessions): not a whole number from 1 to 1000000; write one",
    );
    flag_says(
        "--optional=yes",
        "route.optional = \"yes\" (--optional): neither true nor false; write one of them",
    );
    flag_says(
        "--at-lease-end=drop",
        "route.at_lease_end = \"drop\" (--at-lease-end): no such choice; use \"auto\", \"leave\" or \"close\"",
    );
    flag_says(
        "--http-address=localhost:9632",
        "http.address = \"localhost:9632\" (--http-address): not an IP address with a port; write it like \
         \"[::]:9632\"",
    );
    flag_says("--database=", "route.database = \"\" (--database): empty; write something");
    flag_says(
        "--vault-address=vault:8200",
        "vault.address = \"vault:8200\" (--vault-address): not an address of Vault; write it like \
         \"https://vault.vault.svc:8200\"",
    );
    flag_says(
        "--vault-path=database/db-app",
        "route.vault_path = \"database/db-app\" (--vault-path): not of the form \"<mount>/creds/<role>\" or \
         \"<mount>/static-creds/<role>\"; write it like \"database/creds/db-app\"",
    );
    flag_says(
        "--vault-login-jwt-file=DIR/empty",
        "vault.login.jwt_file = \"empty\" (--vault-login-jwt-file): the file is empty; fill it, or name another",
    );
    flag_says(
        "--vault-ca-file=DIR/none",
        "vault.ca_file = \"none\" (--vault-ca-file): cannot be read: No such file or directory (os error 2); name a \
         file that is there and that this user may read",
    );
    flag_says(
        "--upstream=postgresql://db?sslrootcert=DIR/empty",
        "route.upstream = \"postgresql://db?sslrootcert=empty\" (--upstream): sslrootcert \"empty\": the file is \
         empty; fill it, or name another",
    );
}

#[test]
fn files_that_are_something_else_are_refused() {
    flag_says(
        "--vault-ca-file=DIR/token",
        "vault.ca_file = \"token\" (--vault-ca-file): the file holds no certificate; name a PEM file with one",
    );
    flag_says(
        "--upstream=postgresql://db?sslrootcert=DIR/token",
        "route.upstream = \"postgresql://db?sslrootcert=token\" (--upstream): sslrootcert \"token\": the file holds \
         no certificate; name a PEM file with one",
    );
    let given = Given::nothing().arguments(&["--config-file", "DIR/other"]);
    let says = |bytes: &[u8], problem: &str| {
        std::fs::write(given.dir.path().join("other"), bytes).unwrap();
        assert_eq!(given.errors(), format!("config_file = \"other\" (--config-file): {problem}"));
    };
    says(b"[log]\nlevel = \"\xff\"\n", "the file is not UTF-8; write it in UTF-8");
    says(&vec![b'#'; 1024 * 1024 + 1], "the file is larger than 1048576 bytes; name the right one");
}

#[test]
fn files_of_an_upstream_are_looked_at_each() {
    let upstream =
        "postgresql://db?sslcert=DIR/ca.pem&sslkey=DIR/own.key&sslcrl=DIR/token&sslcrldir=DIR/empty";
    let upstream = format!("--upstream={upstream}");
    let given = Given::nothing().arguments(&[upstream.as_str(), "--vault-path=database/creds/db-app"]);
    let key = given.dir.path().join("own.key");
    std::fs::write(&key, "-----BEGIN PRIVATE KEY-----\n").unwrap();
    std::fs::set_permissions(&key, Permissions::from_mode(0o604)).unwrap();
    let told = given.errors();
    for problem in [
        "sslkey \"own.key\": others may read the file; give it the mode 0600, or 0640 where it is root's, as they could \
         use the key",
        "sslcrl \"token\": the file holds no list of revoked certificates in PEM; fill it, or name another",
        "sslcrldir \"empty\": not a directory",
    ] {
        assert!(told.contains(problem), "{problem}: {told}");
    }
    assert!(!told.contains(": sslcert \""), "{told}");
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    assert!(!given.errors().contains(": sslkey \""));
}

#[test]
fn variable_that_is_not_utf8_is_named() {
    let mut errors = Vec::new();
    env::read([("PGLEASE_DATABASE".into(), OsString::from_vec(vec![0xff]))], &mut errors);
    let errors = ConfigErrors::new(errors).to_string();
    assert_eq!(errors, "PGLEASE_DATABASE: not UTF-8; write it in UTF-8");
}

/// What is said behind key, value and place.
#[track_caller]
fn problem_of(argument: &str, problem: &str) {
    let errors = Given::minimum().arguments(&[argument]).errors();
    assert_eq!(errors.split_once("): ").map(|(_, said)| said), Some(problem), "{errors}");
}

#[test]
fn each_problem_has_its_cure() {
    for (argument, problem) in [
        ("--database=a\u{7}", "holds a control character; remove it"),
        ("--drain-grace=soon", "not a duration; write one like \"30s\", \"5m\" or \"1h 30m\""),
        (
            "--listen-addresses=db",
            "\"db\" is neither localhost nor an IP address, with a port; write it like \"localhost:5432\"",
        ),
        (
            "--vault-address=https://a:b@vault",
            "holds a user or password; remove it, as Vault knows pglease by its login",
        ),
        ("--vault-address=https://vault?x=1", "has a query or fragment; end it before the ? or #"),
        ("--vault-address=https://vault/a//b", "has an empty name in its path; write single slashes"),
        (
            "--vault-path=v1/database/creds/a",
            "begins with the API's \"v1/\"; leave that out: \"<mount>/creds/<role>\"",
        ),
        (
            "--vault-path=database/creds/a.",
            "the role \"a.\" cannot be one of Vault's; use letters, digits, \"_\", and between them \"-\" and \".\"",
        ),
        (
            "--vault-path=data base/creds/a",
            "not a path of Vault's; write names with single slashes between them, without spaces, %, ? or #",
        ),
        (
            "--vault-redirect-hosts=vault,https://vault:8200",
            "\"https://vault:8200\" is neither a name nor an IP address; write it without scheme, port and path",
        ),
        (
            "--vault-tls-server-name=https://vault",
            "neither a name nor an IP address that a certificate could be for; write one",
        ),
        (
            "--vault-proxy=socks5://proxy:1080",
            "not an HTTP proxy; write it like \"http://proxy.example.com:3128\"",
        ),
        (
            "--vault-proxy=http://a:b@proxy:3128",
            "holds a user or password, which pglease does not send; remove it",
        ),
        ("--vault-ca-dir=DIR/token", "not a directory; name one that is there"),
        ("--vault-state-dir=DIR/token", "not a directory; name one that is there"),
        ("--vault-login-mount=auth/kubernetes", "begins with \"auth/\"; leave that out"),
        ("--upstream=postgresql://db/a%07", "has a dbname with a control character; remove it"),
        (
            "--upstream=host=db connect_timeout=soon",
            "connect_timeout is not a number of seconds up to ten years; write it like connect_timeout=10",
        ),
        ("--upstream=host='db", "has an opening ' without a closing one; write \\' for a ' within a value"),
        (
            "--upstream=postgresql://db/100%",
            "has a % that is not followed by two hexadecimal digits; write %25 for a %",
        ),
        ("--upstream=postgresql://db/%00", "has a percent-encoding of a zero byte; remove it"),
        ("--upstream=postgresql://db/%ff", "has a percent-encoding that is not UTF-8; encode UTF-8"),
        (
            "--upstream=postgresql://[::1",
            "has no IPv6 address between its brackets; write it like [2001:db8::1]:5432",
        ),
        ("--upstream=postgresql://a:1/2@db/app", "has an @ behind its host; write %40 for an @ in a name"),
        (
            "--upstream=postgresql://db?sslmode",
            "has a query parameter that is not keyword=value; write ?keyword=value&keyword=value, %3D for a = in a \
             value",
        ),
    ] {
        problem_of(argument, problem);
    }
}

#[test]
fn addresses_that_let_anybody_in_or_collide_are_refused() {
    flag_says(
        "--listen-addresses=0.0.0.0:5432",
        "listen.addresses = [\"0.0.0.0:5432\"] (--listen-addresses): \"0.0.0.0:5432\" is no loopback address, and \
         with listen.auth = \"trust\" whoever reaches it would be let in; use \"localhost:5432\", or listen.auth = \
         \"password\"",
    );
    flag_says(
        "--listen-addresses=localhost:1,[::1]:1",
        "listen.addresses = [\"localhost:1\", \"[::1]:1\"] (--listen-addresses): \"[::1]:1\" is named twice; remove \
         one",
    );
    flag_says(
        "--listen-addresses=0.0.0.0:1,0.0.0.0:2",
        "listen.addresses = [\"0.0.0.0:1\", \"0.0.0.0:2\"] (--listen-addresses): \"0.0.0.0:1\" is no loopback \
         address, and with listen.auth = \"trust\" whoever reaches it would be let in; use \"localhost:5432\", or \
         listen.auth = \"password\"\nlisten.addresses = [\"0.0.0.0:1\", \"0.0.0.0:2\"] (--listen-addresses): \
         \"0.0.0.0:2\" is no loopback address, and with listen.auth = \"trust\" whoever reaches it would be let in; use \
         \"localhost:5432\", or listen.auth = \"password\"",
    );
    let given = Given::minimum().arguments(&[
        "--listen-auth=password",
        "--listen-auth-file=DIR/token",
        "--listen-addresses=127.0.0.1:1,0.0.0.0:1",
    ]);
    assert_eq!(
        given.errors(),
        "listen.addresses = [\"127.0.0.1:1\", \"0.0.0.0:1\"] (--listen-addresses): \"0.0.0.0:1\" is named twice; \
         remove one",
    );
    flag_says(
        "--listen-addresses=,",
        "listen.addresses = [] (--listen-addresses): nowhere to connect to; name an address, like \"localhost:5432\"",
    );
    flag_says(
        "--admin-address=0.0.0.0:9633",
        "admin.address = \"0.0.0.0:9633\" (--admin-address): no loopback address; use one like \"127.0.0.1:9633\"",
    );
    flag_says(
        "--admin-address=localhost",
        "admin.address = \"localhost\" (--admin-address): not an IP address with a port; write it like \
         \"127.0.0.1:9633\"",
    );
    flag_says(
        "--admin-address=127.0.0.1:5432",
        "admin.address = \"127.0.0.1:5432\" (--admin-address): the port of listen.addresses = [\"localhost:5432\"] \
         (default) as well; choose another",
    );
    flag_says(
        "--admin-address=127.0.0.1:9632",
        "admin.address = \"127.0.0.1:9632\" (--admin-address): the port of http.address = \"[::]:9632\" (default) \
         as well; choose another",
    );
    file_says(
        "[admin]\naddress = \"\"\ncontrol = true\n",
        "admin.control = true (pglease.toml:11): there is no admin.address to be asked at; write one, or leave this \
         out",
    );
    flag_says(
        "--http-address=0.0.0.0:5432",
        "http.address = \"0.0.0.0:5432\" (--http-address): the port of listen.addresses = [\"localhost:5432\"] \
         (default) as well; choose another",
    );
    assert!(Given::minimum().arguments(&["--http-address=127.0.0.2:5432"]).load().is_ok());
}

#[test]
fn settings_that_contradict_each_other_name_each_other() {
    variable_says(
        "PGLEASE_DRAIN_GRACE",
        "30s",
        "drain.grace = \"30s\" (PGLEASE_DRAIN_GRACE): longer than drain.deadline = \"20s\" (default); make it at \
         most that",
    );
    file_says(
        "[drain]\naccept_for = \"10s\"\ndeadline = \"5s\"\n",
        "drain.accept_for = \"10s\" (pglease.toml:10): longer than drain.deadline = \"5s\" (pglease.toml:11); make \
         it at most that",
    );
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_their_places() {
    let given = Given::nothing()
        .file("[drain]\ngrace = \"5\"\n[log]\nlvl = 1\n[[route]]\nvault_path = \"x\"\n")
        .variable("PGLEASE_NOPE_NOPE", "1")
        .variable("PGLEASE_LOG_FORMAT", "xml")
        .variable("PGLEASE_VAULT_LOGIN_JWT_FILE", "DIR/token")
        .arguments(&["--http-address=x"]);
    let expected = [
        "drain.grace = \"5\" (pglease.toml:2): has no unit; write it like \"30s\", \"5m\" or \"1h 30m\"",
        "log.lvl: unknown key (pglease.toml:4); did you mean log.level?",
        "route.upstream: not set (pglease.toml:5); set --upstream or PGLEASE_UPSTREAM, or upstream in the file's \
         [[route]]",
        "route.vault_path = \"x\" (pglease.toml:6): not of the form \"<mount>/creds/<role>\" or \
         \"<mount>/static-creds/<role>\"; write it like \"database/creds/db-app\"",
        "log.format = \"xml\" (PGLEASE_LOG_FORMAT): no such choice; use \"json\" or \"text\"",
        "http.address = \"x\" (--http-address): not an IP address with a port; write it like \"[::]:9632\"",
        "PGLEASE_NOPE_NOPE: unknown variable; remove it",
        "vault.address: not set; set --vault-address or PGLEASE_VAULT_ADDRESS, or address in the file's [vault]",
        "vault.login.role: not set; set --vault-login-role or PGLEASE_VAULT_LOGIN_ROLE, or role in the file's \
         [vault.login]",
    ];

    assert_eq!(given.errors().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn what_the_settings_give_up_is_a_warning_once() {
    let more = "database = \"a\"\n[[route]]\nupstream = \"host=db sslmode=disable\"\nvault_path = \
                \"database/creds/b\"\ndatabase = \"b\"\n[[route]]\nupstream = \"host=db sslmode=disable\"\n\
                vault_path = \"database/creds/c\"\n";
    let given = Given::minimal_file(more).variable("VAULT_ADDR", "http://vault:8200");

    assert_eq!(
        given.load().unwrap().warnings,
        [
            "vault.address http://vault:8200 is plain HTTP: whoever is on the way reads tokens and database \
             passwords; use https://",
            "upstream db:5432 has sslmode=disable: whoever is on the way reads and changes queries and rows; use \
             sslmode=verify-full",
        ]
    );
    let blind = Given::minimum().variable("VAULT_SKIP_VERIFY", "true").load().unwrap().warnings;
    assert!(blind[0].starts_with("vault.skip_verify is on: "), "{blind:?}");
    let require = Given::minimum().arguments(&["--upstream=host=db sslmode=require"]);
    assert_eq!(
        require.load().unwrap().warnings,
        [
            "upstream db:5432 has sslmode=require: its certificate is not verified, so whoever is on the way can pose as \
          the server; use sslmode=verify-full"
        ]
    );
}

#[test]
fn no_error_shows_what_may_be_a_secret() {
    let token = "hvs.CAESIJcanary5ecret0123456789";
    for upstream in [
        "postgresql://app:canary5ecret@db/app",
        "postgresql://app:canary5ecret@db:x/app?sslmode=prefer",
        "postgresql://app:canary5ecret/app",
        "postgresql://app:canary/5ecret@db/app",
        "postgresql://app:12/canary5ecret@db/app",
        "postgresql://db/app?password=canary5ecret",
        "postgresql://db/app?pass%77ord=canary5ecret&sslmode=%",
        "postgresql://db/app?passwrod=canary5ecret",
        "host=db password=canary5ecret",
        "host=db password='canary5ecret",
        "host=db password=my canary5ecret",
        "host=db password=my canary5ecret=x",
        "host=db passwrod=canary5ecret",
        "jdbc:postgresql://app:canary5ecret@db/app",
    ] {
        let errors = Given::minimum().arguments(&[&format!("--upstream={upstream}")]).errors();
        assert!(errors.starts_with("route.upstream = ") && !errors.contains("5ecret"), "{errors}");
    }
    for argument in [
        "--vault-address=https://app:canary5ecret@vault:8200".to_owned(),
        format!("--vault-login-jwt-file={token}"),
        format!("--vault-login-token-file={token}"),
        format!("--vault-login-secret-id-file={token}"),
    ] {
        let errors = Given::minimum().arguments(&[&argument]).errors();
        assert!(!errors.contains("5ecret"), "{errors}");
    }
    let errors = Given::minimum().variable("PGLEASE_PASSWORD", "canary5ecret").errors();
    assert!(!errors.contains("5ecret"), "{errors}");
}
