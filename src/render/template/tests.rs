use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

const VAULT_PATH: &str = "database/creds/db-app";

fn secret<'a>(username: &'a str, password: &'a str) -> Secret<'a> {
    Secret { username, password, lease_id: "lease-1", lease_duration: 3600, renewable: true }
}

fn render(text: &str) -> String {
    let template = Template::parse(text, VAULT_PATH).unwrap_or_else(|error| panic!("{text}: {error}"));
    String::from_utf8(template.render(&secret("v-app", "pass")).unwrap().to_vec()).unwrap()
}

/// What Go made of it: `tests/recorded/templates/record.go`.
#[derive(Deserialize)]
struct Recorded {
    template: String,
    username: String,
    password: String,
    lease_id: String,
    lease_duration: u64,
    renewable: bool,
    output: String,
}

#[test]
fn everything_is_rendered_byte_for_byte_as_by_go() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/templates/rendered.json");
    let all: Vec<Recorded> = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert!(all.len() > 300);
    for recorded in all {
        let Recorded { template: text, username, password, lease_id, lease_duration, renewable, output } =
            recorded;
        let secret = Secret {
            username: &username,
            password: &password,
            lease_id: &lease_id,
            lease_duration,
            renewable,
        };
        let template = Template::parse(&text, VAULT_PATH).unwrap_or_else(|error| panic!("{text}: {error}"));
        let rendered = template.render(&secret).unwrap();
        assert_eq!(String::from_utf8_lossy(&rendered), output, "{text}, password {password:?}");
    }
}

#[test]
fn paths_are_found_wherever_they_are_written() {
    for (text, paths) in [
        ("{{ with secret \"a/creds/b\" }}{{ end }}", &["a/creds/b"][..]),
        (
            "{{ with \"/a/creds/b/\" | secret }}{{ end }}{{ (secret `a/creds/b`).Data.password }}",
            &["a/creds/b"],
        ),
        ("secret \"x\"{{ $s := secret \"one\" }}{{ if secret \"two\" \"ttl=1\" }}", &["one", "two"]),
        ("{{ \"secret\" }}{{ printf \"secret\" \"x\" }}{{ $p := \"x\" }}{{ secret $p }}", &[]),
        ("{{ secret \"a\" }}{{ \"", &[]),
        ("", &[]),
    ] {
        assert_eq!(Template::paths(text), paths, "{text}");
    }
}

#[test]
fn path_may_be_written_with_slashes_around_it() {
    assert_eq!(
        render("{{ with secret \" /database/creds/db-app/\" }}{{ .Data.username }}{{ end }}"),
        "v-app"
    );
}

/// Within the secret's `with`: what is refused, at which column, and words of the message.
const REFUSED: &[(&str, usize, &str)] = &[
    ("{{ .Data.data.password }}", 9, "that is of the KV engine; write .Data.username or .Data.password"),
    ("{{ .Data.user }}", 9, ".user is not known of .Data; write .Data.username or .Data.password"),
    ("{{ .username }}", 4, "write .Data.username"),
    ("{{ .RequestID }}", 4, ".RequestID is not known of a secret"),
    ("{{ . }}", 4, "a secret cannot be written"),
    ("{{ .Data }}", 4, ".Data cannot be written; write .Data.username or .Data.password, or .Data | toJSON"),
    ("{{ $.Data.username }}", 5, "outside of {{ with secret"),
    ("{{ $x }}", 4, "the variable $x is not declared here; write {{ $x := … }} before"),
    ("{{ .Data.username.x }}", 18, ".x is not known of a string"),
    ("{{ $x := .LeaseID }}{{ $x = .LeaseDuration }}", 24, "holds a string, and would hold a number"),
    ("{{ if true }}{{ $x := 1 }}{{ end }}{{ $x }}", 39, "the variable $x is not declared here"),
    ("{{ if true }}{{ $x := 1 }}{{ else }}{{ $x }}{{ end }}", 40, "the variable $x is not declared here"),
    ("{{ env \"HOME\" }}", 4, "the function env is not rendered here; there are secret, printf, urlquery"),
    ("{{ .Data.password | toJson }}", 21, "did you mean toJSON?"),
    ("{{ .Data.password | base64encode }}", 21, "did you mean base64Encode?"),
    ("{{ .Data.password | urlQuery \"x\" }}", 21, "did you mean urlquery?"),
    ("{{ .Data.password | urlquery \"x\" }}", 21, "urlquery takes one value"),
    ("{{ toJSON }}", 4, "toJSON takes one value"),
    (
        "{{ .LeaseDuration | base64Encode }}",
        4,
        "a number cannot be given to this function; write printf \"%v\"",
    ),
    ("{{ . | toJSON }}", 4, "a secret cannot be given to this function"),
    ("{{ printf .Data.password }}", 4, "printf wants its format as a string in quotes"),
    ("{{ printf \"%x\" .Data.password }}", 11, "%x is no verb of printf here"),
    ("{{ printf \"%5d\" .LeaseDuration }}", 11, "%5 is no verb of printf here"),
    ("{{ printf \"%\" }}", 11, "% is no verb of printf here"),
    ("{{ printf \"%d\" .Data.password }}", 16, "%d of printf does not print a string; write %v"),
    ("{{ printf \"%s\" .LeaseDuration }}", 16, "%s of printf does not print a number; write %v"),
    ("{{ printf \"%s %s\" .LeaseID }}", 11, "printf has 2 verbs and 1 values"),
    ("{{ printf \"x\" .LeaseID }}", 11, "printf has 0 verbs and 1 values"),
    ("{{ printf \"%v\" .Data }}", 16, ".Data cannot be given to printf"),
    ("{{ printf toJSON }}", 11, "toJSON takes a value, in ( … ) where it stands among others"),
    (
        "{{ secret \"database/creds/other\" }}",
        11,
        "reads \"database/creds/other\", and this file's vault_path is",
    ),
    ("{{ secret \"pki/issue/x\" \"common_name=y\" }}", 4, "secret takes the path alone, in quotes"),
    ("{{ secret .LeaseID }}", 4, "write secret \"database/creds/db-app\""),
    (
        "{{ range .LeaseID }}{{ end }}",
        10,
        "only .Data is ranged over here; write {{ range $k, $v := .Data }}",
    ),
    ("{{ range $k, $v = .Data }}{{ end }}", 10, "only .Data is ranged over here"),
    (
        "{{ range .Data }}{{ range $.Data }}{{ end }}{{ end }}",
        21,
        "a range within a range is not rendered here",
    ),
    ("{{ range .Data }}{{ break }}{{ end }}", 21, "{{ break }} is not rendered here; write {{ if }} around"),
    ("{{ define \"x\" }}{{ end }}", 4, "{{ define }} is not rendered here; write what it holds in its place"),
    ("{{ template \"x\" }}", 4, "{{ template }} is not rendered here"),
    (
        "{{ .Data.username .Data.password }}",
        19,
        ".Data is not expected here; write one value, or | between two",
    ),
    ("{{ \"a\"\"b\" }}", 7, "\"b\" is not expected here"),
    ("{{ printf(\"a\") }}", 10, "( is not expected here; write a space before it"),
    ("{{ (.LeaseID }}", 4, "a ( without its ); close it before }}"),
    ("{{ .LeaseID) }}", 12, ") is not expected here; remove it"),
    ("{{ }}", 4, "a value is missing; write one, such as .Data.password"),
    ("{{ .LeaseID | }}", 15, "a value is missing"),
    ("{{ .LeaseID | \"x\" }}", 15, "\"x\" is not expected here"),
    ("{{ if .Renewable }}", 0, "the text ends, and {{ with … }} is open; write {{ end }}"),
    ("{{ if true }}{{ else }}{{ else }}{{ end }}", 27, "{{ else }} without an {{ if }}"),
    (
        "{{ end }}{{ end }}",
        13,
        "{{ end }} without an {{ if }}, {{ with }} or {{ range }} before it; remove it",
    ),
    ("{{ .LeaseID & 1 }}", 13, "'&' has no meaning within {{ … }}"),
    ("{{ .Data.pass-word }}", 14, "'-' has no meaning within {{ … }}"),
    ("{{ 1.5 }}", 4, "only whole decimal numbers work here, such as 5"),
    ("{{ \"a\\qb\" }}", 6, "\\q is no escape of a string here; write \\n"),
    ("{{ \"ab }}", 4, "the string is not closed on its line"),
];

#[test]
fn what_is_not_rendered_is_refused_where_it_stands_with_what_works() {
    let (before, after) = ("{{ with secret \"database/creds/db-app\" }}\n\n", "{{ end }}");
    for (text, column, message) in REFUSED {
        let whole = format!("{before}{text}{after}");
        let Err(error) = Template::parse(&whole, VAULT_PATH) else { panic!("{text} is taken") };
        assert!(*column == 0 || (error.line, error.column) == (3, *column), "{text}: {error}");
        assert!(error.to_string().contains(message), "{text}: {error}");
    }
}

#[test]
fn whole_template_that_reads_nothing_or_never_ends_is_refused() {
    for (text, message) in [
        (
            "db_connection=x",
            "line 1, column 1: never reads the credential; write {{ with secret \"database/creds/db-app\" }}",
        ),
        (
            "é {{ .Data.username }}",
            "line 1, column 6: .Data outside of {{ with secret \"database/creds/db-app\" }} … {{ end }}",
        ),
        ("{{ with secret \"database/creds/db-app\" }}\n{{ .LeaseID }}", "is open; write {{ end }}"),
        (
            "{{ with secret \"database/creds/db-app\" }",
            "line 1, column 40: '}' has no meaning within {{ … }}",
        ),
        ("{{ with secret \"database/creds/db-app\"", "line 1, column 1: the action is not closed"),
        ("{{/* a", "the comment is not closed; write */}} behind it"),
    ] {
        let error = Template::parse(text, VAULT_PATH).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn static_role_has_more_data_than_is_known() {
    let path = "database/static-creds/app";
    let parse =
        |body: &str| Template::parse(&format!("{{{{ with secret \"{path}\" }}}}{body}{{{{ end }}}}"), path);
    assert!(parse("{{ .Data.username }}").is_ok());
    for body in ["{{ .Data | toJSON }}", "{{ range $k, $v := .Data }}{{ end }}"] {
        assert!(parse(body).unwrap_err().to_string().contains("name the two"), "{body}");
    }
}

#[test]
fn template_that_multiplies_is_stopped() {
    let doubled = "{{ $x = printf \"%s%s\" $x $x }}".repeat(40);
    let text = format!("{{{{ $x := secret \"{VAULT_PATH}\" }}}}{{{{ $x := \"x\" }}}}{doubled}{{{{ $x }}}}");
    let template = Template::parse(&text, VAULT_PATH).unwrap();
    assert!(matches!(template.render(&secret("u", "p")), Err(RenderError::TooLong { .. })));

    let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    let error = Template::parse(&format!("{{{{ {deep} }}}}"), VAULT_PATH).unwrap_err().to_string();
    assert!(error.contains("nested more than 50 deep"), "{error}");
}

/// Pieces of which most combinations are nearly templates.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{{-",
    "-}}",
    " ",
    "\n",
    "with",
    "secret",
    "\"database/creds/db-app\"",
    ".Data",
    ".username",
    ".password",
    ".LeaseID",
    ".LeaseDuration",
    "|",
    "(",
    ")",
    "$x",
    ":=",
    "=",
    "if",
    "else",
    "end",
    "range",
    "$k, $v :=",
    "printf",
    "\"%s\"",
    "toJSON",
    "urlquery",
    "/*",
    "*/",
    "`",
    "\"",
    "x",
    "é",
    ".",
    "5",
];

proptest! {
    #[test]
    fn nearly_a_template_is_rendered_or_refused_within_its_text(
        picks in prop::collection::vec(prop::sample::select(PIECES), 0..40),
        password in any::<String>(),
    ) {
        let body: String = picks.iter().flat_map(|piece| [*piece, " "]).collect();
        for text in [body.clone(), format!("{{{{ with secret \"{VAULT_PATH}\" }}}}{{{{ {body} }}}}{{{{ end }}}}")] {
            match Template::parse(&text, VAULT_PATH) {
                Ok(template) => drop(template.render(&secret("user", &password)).unwrap()),
                Err(error) => {
                    let line = text.split('\n').nth(error.line - 1).unwrap();
                    prop_assert!(error.column <= line.chars().count() + 1);
                }
            }
        }
    }

    #[test]
    fn text_without_actions_stands_as_it_is(text in "[^{]*", password in any::<String>()) {
        let template = Template::parse(&format!("{text}{{{{ with secret \"{VAULT_PATH}\" }}}}{{{{ .Data.password }}}}{{{{ end }}}}"), VAULT_PATH).unwrap();
        let rendered = template.render(&secret("user", &password)).unwrap();
        prop_assert_eq!(String::from_utf8(rendered.to_vec()).unwrap(), format!("{text}{password}"));
    }

    #[test]
    fn json_and_query_are_read_back(password in any::<String>()) {
        let text = format!("{{{{ with secret \"{VAULT_PATH}\" }}}}{{{{ .Data | toJSON }}}} {{{{ urlquery .Data.password }}}}{{{{ end }}}}");
        let rendered = Template::parse(&text, VAULT_PATH).unwrap().render(&secret("user", &password)).unwrap();
        let rendered = String::from_utf8(rendered.to_vec()).unwrap();
        let (json, query) = rendered.rsplit_once(' ').unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        prop_assert_eq!(&json["password"], &serde_json::Value::from(password.as_str()));
        let read = url::form_urlencoded::parse(format!("p={query}").as_bytes()).next().unwrap().1.into_owned();
        prop_assert_eq!(read, password);
    }
}
