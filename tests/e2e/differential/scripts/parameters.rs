//! Parameters of the StartupMessage: each kind, good and bad.

use crate::differential::say::{query, startup};
use crate::differential::script::{Names, PROTOCOL_3_0, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = settings(names);
    scripts.extend(options(names));
    scripts.extend(databases(names));
    scripts.extend(replication(names));
    // From there on there are login triggers.
    if names.major >= 17 {
        scripts.extend(turned_away(names));
    }
    scripts
}

/// By a login trigger, with codes that are of passwords and roles elsewhere.
fn turned_away(names: &Names) -> Vec<Script> {
    let codes = ["28000", "28P01", "42501", "P0001"];
    let turned_away = |code| {
        let options = format!("-c turned.away={code}");
        let name = format!("turned away by a login trigger with {code}");
        Script::bare(name).send(names.startup(&[("options", &options)])).end()
    };
    codes.map(turned_away).into()
}

/// Asks for its own word back, if it is let in.
fn asking(name: String, names: &Names, parameters: &[(&str, &str)], sql: &str) -> Script {
    Script::bare(name).send([names.startup(parameters), query(sql)].concat()).ready(2).one_of_many()
}

fn settings(names: &Names) -> Vec<Script> {
    let long = "n".repeat(100);
    let owner = names.database.replacen("app", "app_owner", 1);
    let known: &[(&str, &str)] = &[
        ("application_name", "plain"),
        ("application_name", ""),
        ("application_name", "naïve ∞"),
        ("application_name", "\u{1}\u{7f}\t\n"),
        ("application_name", "a\"b'c\\d"),
        ("application_name", &long),
        ("APPLICATION_NAME", "upper"),
        ("client_encoding", "UTF8"),
        ("client_encoding", "utf-8"),
        ("client_encoding", "LATIN1"),
        ("client_encoding", "SQL_ASCII"),
        ("client_encoding", "EUC_JP"),
        ("client_encoding", "SJIS"),
        ("client_encoding", "bogus"),
        ("client_encoding", ""),
        ("DateStyle", "SQL, DMY"),
        ("datestyle", "German"),
        ("DateStyle", "bogus"),
        ("TimeZone", "Etc/GMT-3"),
        ("TimeZone", "<+03>-03"),
        ("TimeZone", "bogus"),
        ("IntervalStyle", "iso_8601"),
        ("IntervalStyle", "bogus"),
        ("extra_float_digits", "2"),
        ("extra_float_digits", "99"),
        ("search_path", "pg_catalog, public"),
        ("search_path", "\"$user\", \"a b\", nowhere"),
        ("search_path", ""),
        ("statement_timeout", "1min"),
        ("statement_timeout", "bogus"),
        ("statement_timeout", "-5"),
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_isolation", "bogus"),
        ("default_transaction_read_only", "on"),
        ("standard_conforming_strings", "off"),
        ("bytea_output", "escape"),
        ("geqo", "off"),
        ("geqo", "maybe"),
        ("work_mem", "4MB"),
        ("work_mem", "1kB"),
        ("work_mem", "4XB"),
        ("role", "none"),
        ("role", &owner),
        ("role", "nobody_such"),
        ("role", "postgres"),
        ("session_authorization", "nobody_such"),
        ("is_superuser", "on"),
        ("server_version", "1"),
        ("integer_datetimes", "on"),
        ("in_hot_standby", "on"),
        ("shared_buffers", "1MB"),
        ("max_connections", "7"),
        ("listen_addresses", "*"),
        ("log_statement", "all"),
        ("lc_messages", "C"),
        ("log_min_duration_statement", "0"),
        ("client_min_messages", "debug1"),
        ("client_min_messages", "error"),
        ("local_preload_libraries", ""),
        ("local_preload_libraries", "nowhere"),
        ("session_preload_libraries", "nowhere"),
        ("ignore_system_indexes", "on"),
        ("post_auth_delay", "0"),
        ("my.setting", "mine"),
        ("my.own.setting", "mine"),
        ("plpgsql.variable_conflict", "bogus"),
        ("bogus", "1"),
        ("1.2", "bad name"),
        ("a b", "bad name"),
        ("a.b c", "bad name"),
        ("ein.ümlaut", "ö"),
    ];
    let known = known.iter().map(|(name, value)| {
        let shown = if value.len() > 40 { "a long value" } else { value };
        let title = format!("{name} {shown:?}");
        asking(title, names, &[(name, value)], &format!("SELECT current_setting('{name}')"))
    });
    let several = [
        asking(
            "several parameters".to_owned(),
            names,
            &[("application_name", "several"), ("client_encoding", "LATIN1"), ("geqo", "off"), ("a.b", "ä")],
            "SELECT current_setting('a.b'), current_setting('geqo'), 'ä'",
        ),
        asking(
            "two values of one parameter".to_owned(),
            names,
            &[("application_name", "first"), ("application_name", "second")],
            "SHOW application_name",
        ),
        asking(
            "a bad value and then a good one".to_owned(),
            names,
            &[("work_mem", "bad"), ("work_mem", "4MB")],
            "SHOW work_mem",
        ),
        asking("two bad parameters".to_owned(), names, &[("bogus", "1"), ("work_mem", "bad")], "SELECT 1"),
        Script::bare("two users")
            .send(startup(
                PROTOCOL_3_0,
                &[("user", "nobody"), ("user", &names.user), ("database", &names.database)],
            ))
            .ready(1),
        asking(
            "value that is reset to".to_owned(),
            names,
            &[("work_mem", "5MB")],
            "SET work_mem = '6MB'; RESET work_mem; SHOW work_mem",
        ),
        asking("200 parameters".to_owned(), names, &[("a.b", "c"); 200], "SHOW a.b"),
    ];
    known.chain(several).collect()
}

fn options(names: &Names) -> Vec<Script> {
    let options = [
        "-c geqo=off",
        "-cgeqo=off",
        "--geqo=off",
        "--statement-timeout=7s",
        "-c geqo=off -c geqo=on",
        "  -c   geqo=off  ",
        "\t-c\tgeqo=off\n",
        "",
        "   ",
        "-c a.b=c\\ d",
        "-c a.b=\\\\",
        "-c a.b=c\\",
        "-c bogus=1",
        "-c geqo=bogus",
        "-c geqo",
        "-c",
        "-c =",
        "-c geqo=",
        "--geqo",
        "--bogus=1",
        "--",
        "---",
        "-",
        "geqo=off",
        "-c geqo=off garbage",
        "-e",
        "-E",
        "-f s",
        "-f q",
        "-j",
        "-O",
        "-P",
        "-s",
        "-S 8192",
        "-tpa",
        "-tzz",
        "-W 0",
        "-d 5",
        "-B 100",
        "-D /tmp",
        "-F",
        "-h 127.0.0.1",
        "-i",
        "-k /tmp",
        "-l",
        "-N 5",
        "-p 5432",
        "-r /tmp/x",
        "-v 3",
        "-C geqo",
        "-n",
        "-T",
        "-x",
        "-?",
        "--help",
        "--version",
        "-V",
        "-c role=none",
        "-c role=nobody_such",
        "-c session_authorization=nobody_such",
        "-c client_encoding=LATIN1",
        "-c search_path=a,b",
        "-c default_transaction_deferrable=on -c application_name=from_options",
        "dbname",
        "--single",
    ];
    let scripts = options.into_iter().map(|options| {
        let title = format!("options {options:?}");
        asking(
            title,
            names,
            &[("options", options)],
            "SELECT current_setting('geqo'), current_setting('a.b', true)",
        )
    });
    let twice = asking(
        "options twice".to_owned(),
        names,
        &[("options", "-c geqo=off"), ("options", "-c a.b=c")],
        "SELECT current_setting('geqo'), current_setting('a.b', true)",
    );
    let against = asking(
        "option against a parameter".to_owned(),
        names,
        &[("work_mem", "5MB"), ("options", "-c work_mem=6MB")],
        "SHOW work_mem",
    );
    scripts.chain([twice, against]).collect()
}

fn databases(names: &Names) -> Vec<Script> {
    let long = "d".repeat(80);
    let databases =
        ["nowhere", "template0", "template1", "postgres", "Postgres", "a\"b", "ä", "a b", "-c", &long];
    let scripts = databases.into_iter().map(|database| {
        let pairs = [("user", names.user.as_str()), ("database", database)];
        Script::bare(format!("database {database:?}"))
            .send([startup(PROTOCOL_3_0, &pairs), query("SELECT current_database()")].concat())
            .ready(2)
    });
    let user = || ("user", names.user.as_str());
    let more = [
        Script::bare("no database").send(startup(PROTOCOL_3_0, &[user()])).ready(1),
        Script::bare("empty database").send(startup(PROTOCOL_3_0, &[user(), ("database", "")])).ready(1),
        Script::bare("two databases")
            .send(startup(PROTOCOL_3_0, &[user(), ("database", "nowhere"), ("database", &names.database)]))
            .ready(1),
        Script::bare("dbname").send(startup(PROTOCOL_3_0, &[user(), ("dbname", &names.database)])).ready(1),
        asking(
            "no such database and a bad parameter".to_owned(),
            names,
            &[("database", "nowhere"), ("bogus", "1")],
            "",
        ),
    ];
    scripts.chain(more).collect()
}

fn replication(names: &Names) -> Vec<Script> {
    let values =
        ["true", "on", "yes", "1", "database", "false", "off", "no", "0", "bogus", "", "TRUE", "Database"];
    let scripts = values.into_iter().map(|value| {
        asking(format!("replication {value:?}"), names, &[("replication", value)], "SHOW TimeZone")
    });
    let more = [
        Script::bare("replication without a database")
            .send(startup(PROTOCOL_3_0, &[("user", &names.user), ("replication", "true")]))
            .ready(1),
        Script::bare("replication in no such database")
            .send(startup(
                PROTOCOL_3_0,
                &[("user", &names.user), ("replication", "database"), ("database", "nowhere")],
            ))
            .ready(1),
        asking(
            "replication with a parameter".to_owned(),
            names,
            &[
                ("replication", "database"),
                ("application_name", "walreceiver"),
                ("options", "-c datestyle=ISO"),
            ],
            "SHOW DateStyle",
        ),
        asking(
            "replication with a bad one".to_owned(),
            names,
            &[("replication", "true"), ("bogus", "1")],
            "",
        ),
    ];
    scripts.chain(more).collect()
}
