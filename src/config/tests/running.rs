//! What may change while the process runs: every key, as the docs mark it.

use std::collections::BTreeSet;

use super::*;

/// A table, what stands in it before and after, and nothing else that changes.
const CHANGES: &[(&str, &str, &str)] = &[
    ("vault", "", "address = \"https://other:8200\""),
    ("vault", "", "namespace = \"x\""),
    ("vault", "", "ca_file = \"DIR/ca.pem\""),
    ("vault", "", "ca_dir = \"DIR\""),
    ("vault", "", "client_cert_file = \"DIR/ca.pem\"\nclient_key_file = \"DIR/key.pem\""),
    ("vault", "", "tls_server_name = \"x\""),
    ("vault", "", "skip_verify = true"),
    ("vault", "", "redirect_hosts = [\"x\"]"),
    ("vault", "", "proxy = \"http://proxy:3128\""),
    ("vault", "", "state_dir = \"DIR\""),
    ("vault.login", "", "method = \"jwt\""),
    ("vault.login", "", "mount = \"x\""),
    ("vault.login", "", "namespace = \"x\""),
    ("vault.login", "", "role = \"other\""),
    ("vault.login", "", "jwt_file = \"DIR/ca.pem\""),
    ("listen", "", "addresses = [\"localhost:1\"]"),
    ("listen", "", "unix_socket = \"DIR\""),
    ("listen", "", "unix_socket_mode = \"0600\""),
    ("listen", "", "auth = \"password\"\nauth_file = \"DIR/ca.pem\""),
    (
        "listen",
        "auth = \"password\"\nauth_file = \"DIR/key.pem\"",
        "auth = \"password\"\nauth_file = \"DIR/ca.pem\"",
    ),
    ("listen", PEER, "addresses = []\nunix_socket = \"DIR\"\nauth = \"peer\"\npeer_uids = [2]"),
    ("listen", "", "tls_cert_file = \"DIR/ca.pem\"\ntls_key_file = \"DIR/key.pem\""),
    ("listen", "", "max_sessions = 7"),
    ("listen", "", "threads = 2"),
    ("listen", "", "connect_wait = \"1s\""),
    ("drain", "", "accept_for = \"1s\""),
    ("drain", "", "grace = \"1s\""),
    ("drain", "", "deadline = \"1m\""),
    ("drain", "", "strict_exit = true"),
    ("http", "", "address = \"[::]:1111\""),
    ("admin", "", "address = \"127.0.0.1:1112\""),
    ("admin", "", "control = true"),
    ("log", "", "format = \"text\""),
    ("log", "", "level = \"debug\""),
    ("pod", "", "name = \"x\""),
    ("pod", "", "namespace = \"x\""),
    ("pod", "", "uid = \"x\""),
    ("pod", "", "memory_limit = \"64Mi\""),
    ("pod", "", "termination_grace = \"1m\""),
];

const PEER: &str = "addresses = []\nunix_socket = \"DIR\"\nauth = \"peer\"\npeer_uids = [1]";

/// Of login methods that need more than one key; what `method` does they do.
const LEFT_OUT: &[&str] = &[
    "vault.login.role_id",
    "vault.login.secret_id_file",
    "vault.login.secret_id_wrapped",
    "vault.login.token_file",
];

fn file(table: &str, lines: &str) -> String {
    let all = ["vault", "vault.login", "listen", "drain", "http", "admin", "log", "pod"];
    let needed = |table: &str| match table {
        "vault" => vec!["address = \"https://vault:8200\""],
        "vault.login" => vec!["role = \"web\"", "jwt_file = \"DIR/token\""],
        _ => vec![],
    };
    let mut text = String::new();
    for name in all {
        let lines = if name == table { lines } else { "" };
        let mut needed = needed(name);
        needed.retain(|line| !lines.starts_with(line.split(' ').next().unwrap()));
        text = [&text, "[", name, "]\n", lines, "\n", &needed.join("\n"), "\n"].concat();
    }
    text + "[[route]]\nupstream = \"postgresql://db/app\"\nvault_path = \"database/creds/db-app\"\n"
}

fn keys(table: &str, lines: &str) -> BTreeSet<String> {
    lines.lines().map(|line| format!("{table}.{}", line.split(' ').next().unwrap())).collect()
}

#[test]
fn keys_that_are_marked_take_effect_and_the_others_are_named() {
    let mut seen = BTreeSet::new();
    let mut given = Given::nothing();
    for (table, before, after) in CHANGES {
        given = given.file(&file(table, before));
        let old = given.load().unwrap_or_else(|errors| panic!("{before}: {errors}"));
        given = given.file(&file(table, after));
        let new = given.load().unwrap_or_else(|errors| panic!("{after}: {errors}"));

        let other = |line: &str| !before.lines().any(|known| known == line);
        let changed: Vec<&str> = after.lines().filter(|line| other(line)).collect();
        let changed = keys(table, &changed.join("\n"));
        let named = old.origin.fixed.differing(&new.origin.fixed);
        let fixed = changed.iter().filter(|key| !keys::find(key).unwrap().may_change());
        assert_eq!(named, fixed.map(String::as_str).collect::<Vec<_>>(), "{after}");

        let expected = if named.is_empty() { &new.config } else { &old.config };
        assert_eq!(&old.config.changed_to(new.config.clone()), expected, "{after}");
        seen.extend(changed);
    }
    let all = KEYS.iter().filter(|key| {
        key.is_read_by(Reads::Proxy)
            && !key.is_of_route()
            && !key.is_of_file()
            && !LEFT_OUT.contains(&key.name)
    });
    assert_eq!(seen, all.map(|key| key.name.to_owned()).collect());
}

#[test]
fn files_and_the_first_route_need_a_restart() {
    let of =
        |path: &str| format!("[[file]]\npath = \"DIR/{path}\"\nvault_path = \"database/creds/db-app\"\n");
    let load = |given: &Given| given.load().unwrap();
    // One directory for both, as their paths are in it.
    let changed = |text: &str| {
        let mut given = Given::nothing();
        given = given.file(&format!("{}{}", file("log", ""), of("one")));
        let old = load(&given);
        given = given.file(text);
        let new = load(&given);
        assert_eq!(old.config.changed_to(new.config.clone()).files, old.config.files);
        old.origin.fixed.differing(&new.origin.fixed)
    };
    let both = format!("{}{}", file("log", ""), of("one"));
    assert_eq!(changed(&both), [""; 0]);
    assert_eq!(changed(&file("log", "")), ["file"]);
    assert_eq!(changed(&format!("{both}keep = \"1h\"\n")), ["file"]);
    let (before, route) = both.split_once("[[route]]").unwrap();
    let (_, only_file) = route.split_once("[[file]]").unwrap();
    let only_file = format!("{before}[[file]]{only_file}");
    assert_eq!(changed(&only_file), ["route"]);
    let mut given = Given::nothing();
    given = given.file(&only_file);
    let old = load(&given);
    given = given.file(&both);
    let new = load(&given);
    assert_eq!(old.origin.fixed.differing(&new.origin.fixed), ["route"]);
    assert!(old.config.changed_to(new.config).routes.is_empty());
}
