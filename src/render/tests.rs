use proptest::prelude::*;

use super::*;

fn secret<'a>(username: &'a str, password: &'a str) -> Secret<'a> {
    Secret { username, password, lease_id: "lease-1", lease_duration: 3600, renewable: true }
}

fn target() -> Target<'static> {
    Target {
        hosts: vec![("db-1", 5432), ("db-2", 5433)],
        database: "wizard",
        options: vec![
            ("sslmode", "verify-full"),
            ("sslrootcert", "/ca.pem"),
            ("target_session_attrs", "read-write"),
        ],
        service: "pglease",
    }
}

fn text(format: &Format, secret: &Secret<'_>, target: Option<&Target<'_>>) -> String {
    String::from_utf8(format.render(secret, target).unwrap().to_vec()).unwrap()
}

const ODD: &str = "it's \"a:b\\c\" =#!$`%@/é😀\t<&>";

#[test]
fn each_format_with_a_place_and_a_password_of_odd_characters() {
    for (format, expected) in [
        (
            Format::Json,
            "{\"password\":\"it's \\\"a:b\\\\c\\\" =#!$`%@/é😀\\t\\u003c\\u0026\\u003e\",\
             \"uri\":\"postgresql://v-app:it%27s%20%22a%3Ab%5Cc%22%20%3D%23%21%24%60%25%40%2F%C3%A9%F0%9F%98%80%09%3C%26%3E\
             @db-1:5432,db-2:5433/wizard?sslmode=verify-full\\u0026sslrootcert=%2Fca.pem\\u0026target_session_attrs=read-write\",\
             \"username\":\"v-app\"}\n",
        ),
        (
            Format::Env,
            "PGUSER=v-app\nPGPASSWORD=\"it's \\\"a:b\\\\c\\\" =#!\\$\\`%@/é😀\t<&>\"\nPGHOST=db-1,db-2\nPGPORT=5432,5433\n\
             PGDATABASE=wizard\nPGSSLMODE=verify-full\nPGSSLROOTCERT=/ca.pem\nPGTARGETSESSIONATTRS=read-write\n",
        ),
        (
            Format::Pgpass,
            "db-1:5432:wizard:v-app:it's \"a\\:b\\\\c\" =#!$`%@/é😀\t<&>\n\
             db-2:5433:wizard:v-app:it's \"a\\:b\\\\c\" =#!$`%@/é😀\t<&>\n",
        ),
        (
            Format::PgService,
            "[pglease]\nhost=db-1,db-2\nport=5432,5433\ndbname=wizard\nuser=v-app\npassword=it's \"a:b\\c\" =#!$`%@/é😀\t<&>\n\
             sslmode=verify-full\nsslrootcert=/ca.pem\ntarget_session_attrs=read-write\n",
        ),
        (
            Format::Uri,
            "postgresql://v-app:it%27s%20%22a%3Ab%5Cc%22%20%3D%23%21%24%60%25%40%2F%C3%A9%F0%9F%98%80%09%3C%26%3E\
             @db-1:5432,db-2:5433/wizard?sslmode=verify-full&sslrootcert=%2Fca.pem&target_session_attrs=read-write",
        ),
        (
            Format::Properties,
            "url=jdbc\\:postgresql\\://db-1\\:5432,db-2\\:5433/wizard?sslmode\\=verify-full&sslrootcert\\=%2Fca.pem\
             &targetServerType\\=primary\nusername=v-app\n\
             password=it's \"a\\:b\\\\c\" \\=\\#\\!$`%@/\\u00E9\\uD83D\\uDE00\\u0009<&>\n",
        ),
        (Format::UsernamePassword, "password: it's \"a:b\\c\" =#!$`%@/é😀\t<&>\nusername: v-app\n"),
    ] {
        assert_eq!(text(&format, &secret("v-app", ODD), Some(&target())), expected, "{format:?}");
    }
}

#[test]
fn without_a_place_there_are_user_and_password_alone() {
    let secret = secret("v-app", "aB3-");
    assert_eq!(text(&Format::Json, &secret, None), "{\"password\":\"aB3-\",\"username\":\"v-app\"}\n");
    assert_eq!(text(&Format::Env, &secret, None), "PGUSER=v-app\nPGPASSWORD=aB3-\n");
    assert_eq!(text(&Format::Properties, &secret, None), "username=v-app\npassword=aB3-\n");
    for format in [Format::Pgpass, Format::PgService, Format::Uri] {
        assert!(matches!(format.render(&secret, None), Err(RenderError::NoTarget { .. })), "{format:?}");
    }
}

#[test]
fn socket_and_ipv6_are_written_as_each_reader_wants_them() {
    let target = Target {
        hosts: vec![("/run/pg", 5432), ("::1", 5433)],
        database: "",
        options: Vec::new(),
        service: "s",
    };
    let secret = secret("u", "p");
    assert_eq!(text(&Format::Uri, &secret, Some(&target)), "postgresql://u:p@%2Frun%2Fpg:5432,[::1]:5433/");
    assert_eq!(
        text(&Format::Pgpass, &secret, Some(&target)),
        "/run/pg:5432:*:u:p\nlocalhost:5432:*:u:p\n\\:\\:1:5433:*:u:p\n"
    );
    assert_eq!(
        text(&Format::PgService, &secret, Some(&target)),
        "[s]\nhost=/run/pg,::1\nport=5432,5433\nuser=u\npassword=p\n"
    );
    assert_eq!(text(&Format::Properties, &secret, Some(&target)), "username=u\npassword=p\n");
}

#[test]
fn what_a_format_cannot_say_is_an_error() {
    let target = target();
    for (format, password, error) in [
        (Format::Pgpass, "a\nb", RenderError::LineBreak { format: "pgpass" }),
        (Format::Pgpass, "a\r", RenderError::LineBreak { format: "pgpass" }),
        (Format::PgService, "a\nb", RenderError::LineBreak { format: "pg_service" }),
        (Format::PgService, "a ", RenderError::TrailingSpace),
        (Format::PgService, "a\r", RenderError::TrailingSpace),
        (Format::PgService, &"x".repeat(1020), RenderError::LongLine { max_len: 1020 }),
        (Format::Json, "a\0b", RenderError::ZeroByte),
    ] {
        assert_eq!(format.render(&secret("u", password), Some(&target)).unwrap_err(), error, "{password:?}");
    }
}

/// Without the backslash that says that what follows is meant as it is.
fn unescaped(characters: impl Iterator<Item = char>) -> String {
    let (mut value, mut characters) = (String::new(), characters);
    while let Some(character) = characters.next() {
        value.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    value
}

/// As a shell reads `NAME="…"`.
fn shell_value(text: &str, name: &str) -> String {
    let (_, after) = text.split_once(&format!("{name}=")).unwrap();
    let Some(quoted) = after.strip_prefix('"') else {
        return after.lines().next().unwrap_or_default().to_owned();
    };
    let (mut value, mut characters) = (String::new(), quoted.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    value
}

proptest! {
    #[test]
    fn any_password_comes_back(password in "[^\0]*") {
        let secret = secret("v-app", &password);
        let target = target();

        let json: serde_json::Value = serde_json::from_str(&text(&Format::Json, &secret, Some(&target))).unwrap();
        prop_assert_eq!(json["password"].as_str().unwrap(), password.as_str());

        // `Url` knows one host only.
        let single = Target { hosts: vec![("db-1", 5432)], ..target.clone() };
        let uri = url::Url::parse(&text(&Format::Uri, &secret, Some(&single))).unwrap();
        let encoded = uri.password().unwrap_or_default().replace('+', "%2B");
        let read = url::form_urlencoded::parse(format!("p={encoded}").as_bytes()).next().unwrap().1.into_owned();
        prop_assert_eq!(&read, &password);

        prop_assert_eq!(shell_value(&text(&Format::Env, &secret, None), "PGPASSWORD"), password.as_str());

        if let Ok(line) = Format::Pgpass.render(&secret, Some(&single)) {
            let line = String::from_utf8(line.to_vec()).unwrap();
            let escaped = line.strip_prefix("db-1:5432:wizard:v-app:").unwrap().strip_suffix('\n').unwrap();
            prop_assert_eq!(unescaped(escaped.chars()), password.as_str());
        }
        prop_assert!(text(&Format::Properties, &secret, None).is_ascii());
    }
}
