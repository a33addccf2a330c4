//! Credential files: what is told, where it is mounted, when there is none.

use proptest::prelude::*;

use super::*;

const VAULT_AGENTS: &[(&str, &str)] = &[
    ("pglease.dev/from-vault-agent", "true"),
    ("vault.hashicorp.com/role", "web"),
    ("vault.hashicorp.com/agent-inject-secret-db", "database/creds/db-app"),
];

fn annotated(annotations: &[(&str, &str)]) -> Value {
    pod_with(&[("/metadata/annotations", annotations_of(annotations))])
}

fn annotations_of(annotations: &[(&str, &str)]) -> Value {
    annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

#[test]
fn agent_that_stays_writes_its_files_itself() {
    let more = [
        ("vault.hashicorp.com/agent-inject", "true"),
        ("pglease.dev/upstream", "postgresql://db.example.com:5432/app"),
    ];
    let reviewed = Reviewed::of_default(&annotated(&[VAULT_AGENTS, &more].concat())).injected();
    assert!(reviewed.files().is_empty());
    assert_eq!(reviewed.env("pglease", "PGLEASE_VAULT_PATH"), Some("database/creds/db-app"));
}

#[test]
fn files_are_there_beside_the_proxy_and_ours_win() {
    let more = [
        ("pglease.dev/upstream", "postgresql://db.example.com:5432/app"),
        ("pglease.dev/file-mode-db", "0600"),
        ("vault.hashicorp.com/agent-inject-perms-db", "0666"),
        ("vault.hashicorp.com/secret-volume-path", "/etc/own/"),
    ];
    let reviewed = Reviewed::of_default(&annotated(&[VAULT_AGENTS, &more].concat())).injected();
    let [file] = &reviewed.files()[..] else { panic!("one file") };
    assert_eq!((file["path"].as_str(), file["mode"].as_str()), ("/etc/own/db", "0600"));
    assert_eq!(reviewed.env("pglease", "PGLEASE_VAULT_PATH"), Some("database/creds/db-app"));
    assert_eq!(reviewed.env("web", "DATABASE_URL"), Some(URL));
}

#[test]
fn template_says_what_is_read_and_is_none_where_the_author_has_a_format() {
    let more = [
        ("vault.hashicorp.com/agent-inject-secret-db", "true"),
        ("vault.hashicorp.com/agent-inject-template-db", "{{ with secret \"database/creds/own\" }}{{ end }}"),
    ];
    let reviewed = Reviewed::of_default(&annotated(&[&VAULT_AGENTS[..2], &more].concat())).injected();
    assert_eq!(reviewed.files()[0]["vault_path"], "database/creds/own");

    let format = [("pglease.dev/file-format-db", "json")];
    let reviewed =
        Reviewed::of_default(&annotated(&[&VAULT_AGENTS[..2], &more, &format].concat())).injected();
    assert_eq!((reviewed.files()[0]["format"].as_str(), reviewed.files()[0].get("template")), ("json", None));
}

#[test]
fn one_template_makes_the_route_of_an_agent_that_stays() {
    let more = [
        ("vault.hashicorp.com/agent-inject", "true"),
        ("vault.hashicorp.com/agent-inject-template-db", "{{ with secret \"database/creds/own\" }}{{ end }}"),
        ("pglease.dev/upstream", "postgresql://db.example.com:5432/app"),
    ];
    let reviewed = Reviewed::of_default(&annotated(&[&VAULT_AGENTS[..2], &more].concat())).injected();
    assert_eq!(reviewed.env("pglease", "PGLEASE_VAULT_PATH"), Some("database/creds/own"));
}

#[test]
fn file_stays_in_an_ordinary_container_while_the_application_ends() {
    let grace = |seconds: u64| ("/spec/terminationGracePeriodSeconds", json!(seconds));
    let ordinary = || SidecarConfig { native: false, ..defaults() };
    for (seconds, deadline, kept) in [
        (None, None, ("20s", "20s")),
        (Some(600), None, ("6m 40s", "6m 40s")),
        (Some(10), None, ("6s", "6s")),
        (Some(0), None, ("0s", "0s")),
        (None, Some("5s"), ("5s", "5s")),
        (None, Some("25s"), ("20s", "25s")),
    ] {
        let mut annotations = VAULT_AGENTS.to_vec();
        annotations.extend(deadline.map(|deadline| ("pglease.dev/drain-deadline", deadline)));
        let mut changes: Vec<_> = seconds.map(grace).into_iter().collect();
        changes.push(("/metadata/annotations", annotations_of(&annotations)));
        let reviewed = Reviewed::of(&pod_with(&changes), &ordinary()).injected();
        let of = |name| reviewed.env("pglease", name).unwrap();
        assert_eq!((of("PGLEASE_DRAIN_ACCEPT_FOR"), of("PGLEASE_DRAIN_DEADLINE")), kept, "{seconds:?}");
    }
    let native = Reviewed::of_default(&annotated(VAULT_AGENTS)).injected();
    assert_eq!(native.env("pglease", "PGLEASE_DRAIN_ACCEPT_FOR"), None);

    let mut operators = ordinary();
    operators.settings.push(setting("PGLEASE_DRAIN_ACCEPT_FOR", "1s"));
    let reviewed = Reviewed::of(&annotated(VAULT_AGENTS), &operators).injected();
    assert_eq!(reviewed.env("pglease", "PGLEASE_DRAIN_ACCEPT_FOR"), Some("1s"));
}

#[test]
fn settings_of_every_route_make_none_for_a_pod_of_files() {
    let mut operators = defaults();
    operators.settings.push(setting("PGLEASE_AT_LEASE_END", "close"));
    let reviewed = Reviewed::of(&annotated(VAULT_AGENTS), &operators);
    assert_eq!(reviewed.answer.outcome, Outcome::Injected, "{:#}", reviewed.response);
    assert_eq!(reviewed.env("pglease", "PGLEASE_AT_LEASE_END"), None);
    assert_eq!(reviewed.env("web", "DATABASE_URL"), None);
}

#[test]
fn files_that_are_too_long_for_a_variable_are_refused() {
    let template =
        format!("{}{{{{ with secret \"database/creds/db-app\" }}}}{{{{ end }}}}", "x".repeat(100 * 1024));
    let more = [("pglease.dev/file-template-db", template.as_str())];
    let reviewed = Reviewed::of_default(&annotated(&[VAULT_AGENTS, &more].concat()));
    assert!(reviewed.refused().contains("too long for a variable"), "{}", reviewed.refused());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn template_reaches_the_sidecar_as_it_was_written(text in "([^{\\p{Cc}]|\n|\t)*", native in any::<bool>()) {
        let template = format!("{text}{{{{ with secret \"database/creds/db-app\" }}}}$k{text}{{{{ end }}}}\n");
        let more = [("pglease.dev/file-template-db", template.as_str())];
        let pod = annotated(&[VAULT_AGENTS, &more].concat());
        let reviewed = Reviewed::of(&pod, &SidecarConfig { native, ..defaults() });
        prop_assert_eq!(&reviewed.answer.outcome, &Outcome::Injected, "{:#}", reviewed.response);
        prop_assert_eq!(&reviewed.files()[0]["template"], &template);
    }
}
