//! `[[file]]`.

use super::*;

/// The smallest file, without a route.
const FILES_ONLY: &str = r#"[vault]
address = "https://vault:8200"
[vault.login]
role = "web"
jwt_file = "DIR/token"
"#;

const FILE: &str = "[[file]]\npath = \"DIR/db\"\nvault_path = \"database/creds/db-app\"\n";

fn only(more: &str) -> Given {
    Given::nothing().file(&format!("{FILES_ONLY}{FILE}{more}"))
}

/// The same beside the route of the same path.
fn beside(more: &str) -> Given {
    Given::minimal_file(&format!("{FILE}{more}"))
}

#[test]
fn file_needs_a_path_and_a_vault_path_and_no_route() {
    let given = only("");
    let config = given.config();
    assert!(config.routes.is_empty());
    let expected = FileConfig {
        path: given.dir.path().join("db"),
        vault_path: "database/creds/db-app".to_owned(),
        format: FormatConfig::UsernamePassword,
        mode: 0o640,
        upstream: None,
        target: None,
        keep: None,
        on_change: OnChange::Nothing,
        optional: false,
    };
    assert_eq!(config.files, [expected]);
    let errors = Given::nothing().file(&format!("{FILES_ONLY}[[file]]\n")).errors();
    assert!(errors.contains("file.path: not set (pglease.toml:6); write path into the [[file]]"), "{errors}");
    assert!(errors.contains("file.vault_path: not set (pglease.toml:6)"), "{errors}");
}

#[test]
fn files_come_by_a_variable_too() {
    let given = Given::minimum().variable("PGLEASE_FILES", FILE);
    let config = given.config();
    assert_eq!((config.routes.len(), config.files.len()), (1, 1));

    let twice = beside("").variable("PGLEASE_FILES", FILE);
    assert!(twice.errors().contains("also the path of the [[file]] at pglease.toml:9"), "{}", twice.errors());
    for (text, expected) in [
        ("[log]\nlevel = \"info\"", "log.level = … (PGLEASE_FILES:2): not in a [[file]]"),
        ("[[file]]\npat = 1", "file.pat: unknown key (PGLEASE_FILES:2); did you mean file.path?"),
        ("oops", "PGLEASE_FILES:1: not TOML"),
        ("file = 3", "file = 3 (PGLEASE_FILES:1): not an array of tables; write [[file]]"),
        (
            "[[file]]\non_change = \"x\"",
            "file.on_change = \"…\" (PGLEASE_FILES:2): not a table; write [file.on_change]",
        ),
    ] {
        let errors = Given::minimum().variable("PGLEASE_FILES", text).errors();
        assert!(errors.contains(expected), "{text}: {errors}");
    }
}

#[test]
fn formats_that_name_a_server_have_it_from_the_file_or_from_the_only_route() {
    let target = |given: &Given| given.config().files[0].target.clone();
    let of_route = TargetConfig {
        hosts: vec![("db".to_owned(), 5432)],
        database: "app".to_owned(),
        options: vec![("sslmode".to_owned(), "verify-full".to_owned())],
        service: "pglease".to_owned(),
    };
    for format in ["pgpass", "pg_service", "uri", "properties", "json", "env"] {
        assert_eq!(target(&beside(&format!("format = \"{format}\"\n"))), Some(of_route.clone()), "{format}");
    }
    for format in ["username-password", "template\"\ntemplate = \"{{ with secret }}"] {
        assert_eq!(target(&beside(&format!("format = \"{format}\"\n"))), None, "{format}");
    }
    assert_eq!(target(&only("format = \"json\"\n")), None);

    let own = "format = \"pg_service\"\nservice = \"shop\"\nupstream = \"host=a,b port=1,2 dbname=shop target_session_attrs=any \
               sslmode=disable target_session_attrs=read-write\"\n";
    let given = only(own);
    let expected = TargetConfig {
        hosts: vec![("a".to_owned(), 1), ("b".to_owned(), 2)],
        database: "shop".to_owned(),
        options: vec![
            ("sslmode".to_owned(), "disable".to_owned()),
            ("target_session_attrs".to_owned(), "read-write".to_owned()),
        ],
        service: "shop".to_owned(),
    };
    assert_eq!(target(&given), Some(expected));
    assert_eq!(given.config().files[0].upstream.as_ref().map(|upstream| upstream.hosts.len()), Some(2));
}

#[test]
fn readers_are_told_in_one_way() {
    let on_change =
        |more: &str| only(&format!("[file.on_change]\n{more}")).config().files[0].on_change.clone();
    let timeout = Duration::from_secs(10);
    assert_eq!(
        on_change("signal = \"SIGHUP\"\nprocess = \"java\"\n"),
        OnChange::Signal { signal: FileSignal::Hangup, name: "java".to_owned() }
    );
    assert_eq!(
        on_change("command = [\"/bin/reload\", \"--now\", \"\"]\ntimeout = \"1m\"\n"),
        OnChange::Command {
            program: "/bin/reload".to_owned(),
            arguments: vec!["--now".to_owned(), String::new()],
            timeout: Duration::from_mins(1)
        }
    );
    for url in ["http://127.0.0.1:8080/reload", "http://localhost/-/reload?x", "http://[::1]:1/"] {
        let expected = OnChange::Http { url: url.parse().unwrap(), timeout };
        assert_eq!(on_change(&format!("url = \"{url}\"\n")), expected);
    }
}

#[test]
fn what_cannot_be_is_an_error_with_its_cure() {
    let given = only("");
    let link = given.dir.path().join("link");
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    for (more, expected) in [
        (
            "format = \"jsn\"",
            "file.format = \"jsn\" (pglease.toml:9): no such choice; use \"username-password\", ",
        ),
        ("mode = \"rw\"", "not a file mode; write it in octal"),
        ("keep = \"1\"", "has no unit"),
        ("format = \"template\"", "needs template or template_file; write one of them"),
        (
            "format = \"template\"\ntemplate = \"x\"\ntemplate_file = \"DIR/token\"",
            "is there as well; remove one",
        ),
        ("template = \"x\"", "only of use with format = \"template\"; remove it, or change format"),
        ("service = \"x\"", "only of use with format = \"pg_service\""),
        ("format = \"uri\"", "none is known: 0 routes have this vault_path; write upstream"),
        ("format = \"uri\"\nupstream = \"host=db\"", "tells of a database, and none is named"),
        ("upstream = \"host=db password=x\"", "holds a password"),
        ("on_change = { signal = \"SIGKILL\", process = \"x\" }", "no such choice; use \"SIGHUP\""),
        ("on_change = { signal = \"SIGHUP\" }", "file.on_change.process: not set"),
        ("on_change = { process = \"x\" }", "file.on_change.signal: not set"),
        ("on_change = { signal = \"SIGHUP\", process = \"/bin/x\" }", "no name of a process"),
        ("on_change = { url = \"http://example.com/\" }", "does not lead to loopback"),
        ("on_change = { url = \"https://localhost/\" }", "does not lead to loopback"),
        ("on_change = { url = \"http://u:p@localhost/\" }", "does not lead to loopback"),
        ("on_change = { command = [\"\", \"x\"] }", "names no program"),
        (
            "on_change = { command = [\"x\"], url = \"http://localhost/\" }",
            "is there as well; remove one of them",
        ),
        ("on_change = { timeout = \"3s\" }", "nothing to take time"),
        ("on_change = { comand = [\"x\"] }", "did you mean file.on_change.command?"),
    ] {
        let errors = only(&format!("{more}\n")).errors();
        assert!(errors.contains(expected), "{more}: {errors}");
    }
    for (path, expected) in [
        ("db", "a relative path; begin it with /"),
        ("DIR", "a directory; name a file in it"),
        ("DIR/", "a directory; name a file in it"),
        ("DIR/new/", "no name of a file; end it with one"),
        (
            "DIR/nowhere/db",
            "cannot be used: No such file or directory (os error 2); name a file in one that pglease",
        ),
        ("DIR/token/db", "is none; name a file in one that pglease may write to"),
        // Not even for root.
        ("/proc/sys/db", "cannot be written to: Permission denied"),
        ("/dev/null", "there and not a regular file; remove it, or name another"),
    ] {
        let file = FILE.replace("DIR/db", path);
        let errors = Given::nothing().file(&format!("{FILES_ONLY}{file}")).errors();
        assert!(errors.contains(expected) && errors.contains("file.path = "), "{path}: {errors}");
    }
    let file = FILE.replace("DIR/db", link.to_str().unwrap());
    let errors = Given::nothing().file(&format!("{FILES_ONLY}{file}")).errors();
    assert!(errors.contains("a link; name what it leads to"), "{errors}");
}

#[test]
fn path_that_two_files_have_is_found_however_it_is_written() {
    let same = FILE.replace("DIR/db", "DIR/./db");
    let errors = only(&same).errors();
    assert!(
        errors.contains("also the path of the [[file]] at pglease.toml:6; give each its own"),
        "{errors}"
    );
}

#[test]
fn mode_that_lets_all_read_is_a_warning() {
    assert!(only("mode = \"0660\"\n").load().unwrap().warnings.is_empty());
    let warnings = only("mode = \"0644\"\n").load().unwrap().warnings;
    assert!(
        warnings[0].starts_with("file.mode 0644 of /") && warnings[0].ends_with("use 0640, or 0600"),
        "{warnings:?}"
    );
}
