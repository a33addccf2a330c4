//! Every command of the pages is run by a test, or stands below with why none can.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::pages::{self, Page};

/// What holds a block of commands.
enum Held {
    /// These tests run it, or what it stands for: file and name.
    By(&'static [(&'static str, &'static str)]),
    /// No test does, as it needs what tests do not have.
    Not(&'static str),
}

use Held::{By, Not};

/// Page, first words of the block, and what holds it.
const BLOCKS: &[(&str, &str, Held)] = &[
    ("README.md", "make demo", DEMO),
    (
        "README.md",
        "# A password for Vault's user",
        By(&[
            ("tests/e2e/setup.rs", "commands_of_the_readme_let_its_application_in"),
            ("tests/kubernetes/readme.rs", "five_commands_lead_to_an_application_without_a_password"),
            ("tests/kubernetes/deploy.rs", "readme_shows_the_application_that_it_applies"),
        ]),
    ),
    ("README.md", "pglease proxy --config-file", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("README.md", "pglease proxy --vault-address", By(&[("src/config/tests/docs.rs", SMALLEST)])),
    (
        "docs/check.md",
        "pglease check --config-file",
        By(&[("tests/e2e/check.rs", "healthy_way_is_gone_to_its_end_and_nothing_is_left_of_it")]),
    ),
    (
        "docs/commands.md",
        "pglease schema",
        By(&[(
            "tests/e2e/operators/schema.rs",
            "schema_takes_what_the_docs_show_and_refuses_what_the_program_refuses",
        )]),
    ),
    (
        "docs/commands.md",
        "source <(pglease",
        By(&[
            ("tests/e2e/operators/commands.rs", "bash_completes_commands_and_flags"),
            ("tests/e2e/operators/commands.rs", "zsh_and_fish_take_their_scripts_and_complete_by_them"),
        ]),
    ),
    (
        "docs/injector.md",
        "pglease injector certificate",
        By(&[("tests/kubernetes/certificate.rs", "certificate_near_its_end_is_made_anew_by_the_cron_job")]),
    ),
    (
        "docs/kubernetes.md",
        "helm install",
        By(&[("tests/kubernetes/manifests.rs", "every_shape_of_the_chart_is_accepted")]),
    ),
    (
        "docs/kubernetes.md",
        "kubectl get pods -A",
        By(&[(
            "tests/kubernetes/outage.rs",
            "pod_let_through_without_its_sidecar_is_never_touched_afterwards_and_is_found",
        )]),
    ),
    (
        "docs/kubernetes.md",
        "helm upgrade",
        By(&[("tests/kubernetes/certificate.rs", "no_pod_is_refused_over_upgrade_scaling_and_rollback")]),
    ),
    ("docs/kubernetes.md", "kubectl exec", By(&[FIRST_MINUTE])),
    (
        "docs/performance.md",
        "cargo run --release --example load",
        By(&[("tests/e2e/operators/load.rs", "load_generator_tells_what_a_rate_on_some_sessions_takes")]),
    ),
    ("docs/runbook.md", "# How the credentials of a pod stand", By(&[FIRST_MINUTE])),
    ("docs/runbook.md", "SELECT rolname, rolcanlogin", By(&[("tests/e2e/operators/runbook.rs", RUNBOOK)])),
    ("docs/runbook.md", "SELECT r.rolname, d.deptype", By(&[("tests/e2e/operators/runbook.rs", RUNBOOK)])),
    (
        "docs/security.md",
        "# PostgreSQL, with log_line_prefix",
        By(&[(
            "tests/e2e/operators/audit.rs",
            "three_logs_lead_from_a_statement_to_the_pod_and_its_service_account",
        )]),
    ),
    (
        "docs/security.md",
        "psql -XAt",
        By(&[("tests/e2e/auth.rs", "users_of_pg_authid_get_in_with_their_passwords_and_nobody_else_does")]),
    ),
    ("docs/settings.md", "pglease proxy", By(&[("src/config/tests/docs.rs", SMALLEST)])),
    ("docs/setup.md", "# As a superuser", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/setup.md", "SELECT * FROM pglease.reap()", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/setup.md", "# jwt: tokens", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/setup.md", "vault policy write team-db-app", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/setup.md", "CREATE ROLE report", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/setup.md", "vault write database/static-roles", By(&[("tests/e2e/setup.rs", SETS_UP)])),
    ("docs/start.md", "make demo", DEMO),
];

const SETS_UP: &str = "documented_set_up_and_settings_serve_an_application";
const SMALLEST: &str = "smallest_sets_of_settings_are_valid_and_the_same_with_and_without_a_file";
const RUNBOOK: &str = "sql_of_the_runbook_shows_the_role_and_what_it_owns";
const DEMO: Held = By(&[("tests/long/demo.rs", "demo_of_the_readme_fails_no_query_and_leaves_no_role")]);
/// With a kubectl that does what the kubelet would, which the control plane of the tests has none of.
const FIRST_MINUTE: (&str, &str) =
    ("tests/e2e/operators/runbook.rs", "first_minute_of_the_runbook_tells_what_is_wrong");
const RUN_ON_VAULT: Held = By(&[("tests/e2e/setup.rs", SETS_UP)]);
const SHOWN_BY_KUBECTL: Held =
    By(&[("tests/kubernetes/bare.rs", "kubectl_shows_what_the_pages_have_people_look_at")]);
const KUBELET: &str = "a forward goes through the kubelet, which the control plane of the tests has none of; the tests \
                       are where it would lead to";

/// Commands in the text: the page, what stands between the backticks, and what holds it.
const SPANS: &[(&str, &str, Held)] = &[
    (
        "README.md",
        "docker build -f deploy/Dockerfile -t registry.example.com/pglease:0.1.0 .",
        By(&[("tests/image/main.rs", "dockerfile_adds_nothing_to_what_the_script_assembles")]),
    ),
    (
        "README.md",
        "kubectl create configmap ca --from-file=vault.pem --from-file=postgres.pem",
        By(&[("tests/kubernetes/readme.rs", "five_commands_lead_to_an_application_without_a_password")]),
    ),
    ("README.md", "kubectl port-forward", Not(KUBELET)),
    ("docs/status.md", "kubectl port-forward", Not(KUBELET)),
    ("docs/status.md", "kubectl port-forward pod/web-… 9633", Not(KUBELET)),
    (
        "docs/status.md",
        "curl -X POST",
        By(&[("tests/e2e/operators/commands.rs", "curl_may_ask_for_what_no_web_page_may")]),
    ),
    ("docs/annotations.md", "kubectl describe replicaset", SHOWN_BY_KUBECTL),
    (
        "docs/annotations.md",
        "kubectl apply --dry-run=server",
        By(&[("tests/kubernetes/manifests.rs", "manifest_of_an_operator_with_a_slip_is_refused")]),
    ),
    ("docs/kubernetes.md", "kubectl describe replicaset --selector app=web", SHOWN_BY_KUBECTL),
    (
        "docs/kubernetes.md",
        "kubectl apply",
        By(&[("tests/kubernetes/manifests.rs", "every_manifest_is_accepted")]),
    ),
    (
        "docs/kubernetes.md",
        "helm test pglease --namespace pglease",
        By(&[("tests/kubernetes/deploy.rs", "helm_test_finds_out_whether_pods_get_their_sidecar")]),
    ),
    (
        "docs/kubernetes.md",
        "helm rollback",
        By(&[("tests/kubernetes/certificate.rs", "no_pod_is_refused_over_upgrade_scaling_and_rollback")]),
    ),
    (
        "docs/kubernetes.md",
        "helm uninstall",
        By(&[("tests/kubernetes/rights.rs", "uninstalled_it_leaves_the_secret_and_holds_no_pod_up")]),
    ),
    ("docs/runbook.md", "kubectl describe pod", SHOWN_BY_KUBECTL),
    ("docs/runbook.md", "kubectl get pod", SHOWN_BY_KUBECTL),
    ("docs/runbook.md", "kubectl describe replicaset", SHOWN_BY_KUBECTL),
    (
        "docs/runbook.md",
        "kubectl describe certificate",
        Not("it is cert-manager's kind, and the control plane of the tests has no cert-manager"),
    ),
    ("docs/runbook.md", "vault status", RUN_ON_VAULT),
    ("docs/runbook.md", "vault operator unseal", RUN_ON_VAULT),
    ("docs/runbook.md", "vault read database/config/wizard", RUN_ON_VAULT),
    ("docs/runbook.md", "vault list sys/quotas/rate-limit", RUN_ON_VAULT),
    ("docs/runbook.md", "vault lease revoke -prefix database/creds/db-app", RUN_ON_VAULT),
    ("docs/runbook.md", "vault read auth/kubernetes/role/web", RUN_ON_VAULT),
    ("docs/runbook.md", "vault read auth/kubernetes/config", RUN_ON_VAULT),
    ("docs/runbook.md", "vault policy read db-app", RUN_ON_VAULT),
    ("docs/runbook.md", "ALTER ROLE \"v-…\" NOLOGIN", RUN_ON_VAULT),
    (
        "docs/runbook.md",
        "REASSIGN OWNED BY \"v-…\" TO app_owner; DROP OWNED BY \"v-…\"; DROP ROLE \"v-…\";",
        RUN_ON_VAULT,
    ),
    (
        "docs/security.md",
        "bao write sys/audit-hash/file input=<db_role>",
        By(&[(
            "tests/e2e/operators/audit.rs",
            "three_logs_lead_from_a_statement_to_the_pod_and_its_service_account",
        )]),
    ),
    (
        "docs/session.md",
        "psql -h <directory> -p <port>",
        By(&[("tests/e2e/encryption.rs", "psql_is_served_over_a_unix_socket")]),
    ),
];

/// What a span begins with that is a command; `pglease` and `make` have tests of their own below.
const COMMANDS: [&str; 9] = [
    "vault ",
    "bao ",
    "kubectl ",
    "helm ",
    "docker ",
    "psql ",
    "curl ",
    "ALTER ROLE \"v-",
    "REASSIGN OWNED BY \"v-",
];

/// Languages of blocks that nobody is to type.
const SHOWN: &[&str] = &["", "json", "text", "toml", "yaml"];

#[test]
fn every_block_of_commands_is_known() {
    let mut rows: BTreeSet<_> = (0..BLOCKS.len()).collect();
    for page in pages::all() {
        for block in page.blocks().filter(|block| !SHOWN.contains(&block.language)) {
            let first = block.text.lines().next().unwrap();
            let row =
                BLOCKS.iter().position(|(of, begins, _)| *of == page.path && block.text.starts_with(begins));
            let row = row.unwrap_or_else(|| panic!("{}: no test is known to run: {first}", page.path));
            assert!(rows.remove(&row), "{}: two blocks begin with: {first}", page.path);
        }
    }
    let left: Vec<_> = rows.iter().map(|&row| (BLOCKS[row].0, BLOCKS[row].1)).collect();
    assert!(left.is_empty(), "no page has these any more: {left:?}");
}

#[test]
fn every_command_in_the_text_is_known() {
    let known: BTreeSet<_> = SPANS.iter().map(|(page, span, _)| (*page, *span)).collect();
    assert_eq!(known.len(), SPANS.len());
    let pages = pages::all();
    let prose: Vec<_> = pages.iter().map(|page| (page.path.as_str(), page.prose())).collect();
    let spans =
        prose.iter().flat_map(|(path, text)| text.split('`').skip(1).step_by(2).map(|span| (*path, span)));
    let commands = spans.filter(|(_, span)| COMMANDS.iter().any(|begin| span.starts_with(begin)));
    assert_eq!(commands.collect::<BTreeSet<_>>(), known);
}

#[test]
fn make_knows_every_target_that_a_page_has() {
    let makefile = fs::read_to_string(pages::root().join("Makefile")).unwrap();
    let mut count = 0;
    for page in pages::all() {
        for words in said(&page, "make") {
            let target = format!("\n{}:", words[1]);
            assert!(makefile.contains(&target), "{}: make has no {}", page.path, words[1]);
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}

#[test]
fn every_test_that_is_named_is_there() {
    for (page, begins, held) in BLOCKS.iter().chain(SPANS) {
        match held {
            By(tests) => {
                for (file, name) in *tests {
                    let text = fs::read_to_string(pages::root().join(file))
                        .unwrap_or_else(|error| panic!("{file}: {error}"));
                    assert!(
                        text.contains(&format!("fn {name}()")),
                        "{page}: {begins}: no test {name} in {file}"
                    );
                }
            }
            Not(why) => assert!(why.len() > 20, "{page}: {begins}"),
        }
    }
}

#[test]
fn what_is_shown_is_no_command() {
    for page in pages::all() {
        for block in page.blocks().filter(|block| SHOWN.contains(&block.language)) {
            let typed = |line: &str| {
                ["$ ", "kubectl ", "helm ", "vault ", "psql ", "make "].iter().any(|of| line.starts_with(of))
            };
            assert!(!block.text.lines().any(typed), "{}: call it sh:\n{}", page.path, block.text);
        }
    }
}

/// What stands between backticks, and the lines of blocks, that begins with `program`: its words without comments.
fn said(page: &Page, program: &str) -> Vec<Vec<String>> {
    let blocks: Vec<_> = page
        .blocks()
        .filter(|block| !SHOWN.contains(&block.language))
        .map(|block| block.text.replace("\\\n", " "))
        .collect();
    let prose = page.prose();
    let spans = prose.split('`').skip(1).step_by(2).map(str::to_owned);
    let lines = blocks.iter().flat_map(|text| text.lines()).map(str::to_owned);
    let after = |text: String| text.split_once(" -- ").map_or(text.clone(), |(_, inside)| inside.to_owned());
    let texts = spans.chain(lines.map(after)).filter(|text| text.starts_with(&format!("{program} ")));
    texts.map(|text| text.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn pglease_knows_every_command_and_flag_that_a_page_has() {
    let mut tried = BTreeSet::new();
    for page in pages::all() {
        for words in said(&page, "pglease") {
            let is_plain =
                |word: &&String| word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_lowercase());
            let command: Vec<_> = words[1..]
                .iter()
                .take_while(|word| is_plain(word) && !word.starts_with("--"))
                .cloned()
                .collect();
            let flags = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
            let flags: Vec<_> = flags.map(|flag| flag.split(['=', '…']).next().unwrap().to_owned()).collect();
            tried.insert((page.path.clone(), command, flags));
        }
    }
    assert!(tried.len() > 10, "{tried:?}");
    for (page, command, flags) in tried {
        let mut help = Command::new(env!("CARGO_BIN_EXE_pglease"));
        let done = help.args(&command).arg("--help").env_clear().stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{page}: pglease {command:?}");
        let help = String::from_utf8(done.stdout).unwrap();
        for flag in flags {
            assert!(help.contains(&flag), "{page}: pglease {command:?} has no {flag}");
        }
    }
}

#[test]
fn chart_knows_every_value_that_a_page_sets() {
    let values = fs::read_to_string(pages::root().join("deploy/helm/pglease/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let mut count = 0;
    for page in pages::all() {
        for words in said(&page, "helm") {
            let set = words.iter().zip(&words[1..]).filter(|(flag, _)| *flag == "--set");
            for (key, _) in set.filter_map(|(_, value)| value.split_once('=')) {
                let pointer = format!("/{}", key.replace('.', "/"));
                assert!(values.pointer(&pointer).is_some(), "{}: the chart has no {key}", page.path);
                count += 1;
            }
        }
    }
    assert!(count >= 6, "{count}");
}
