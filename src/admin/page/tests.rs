use super::*;
use crate::admin::log::LogStatus;
use crate::admin::status::{
    CertificateStatus, FiguresStatus, MAX_LISTED, RequestsStatus, SessionsStatus, ThreadStatus,
};
use crate::admin::verdict::tests::healthy;
use crate::reload;

fn with_sessions(count: usize, application_name: &str) -> Status {
    let session = |number: usize| SessionStatus {
        session: format!("s{number}"),
        state: "in_transaction",
        database: "wizard".to_owned(),
        application_name: application_name.to_owned(),
        client: "127.0.0.1:50000".to_owned(),
        generation: Some("g1".to_owned()),
        pid: Some(4242),
        ..SessionStatus::default()
    };
    let list = (1..=count.min(MAX_LISTED)).map(session).collect();
    let mut status = healthy();
    status.verdict = crate::admin::verdict::verdict(&status);
    Status {
        sessions: SessionsStatus { open: count, max: 2000, list, ..SessionsStatus::default() },
        ..status
    }
}

#[test]
fn page_says_what_the_status_says_and_runs_nothing_of_it() {
    let hostile = "<script>alert(1)</script><img src=x onerror='a'>";
    let mut status = with_sessions(1, hostile);
    status.sessions.list[0].database = "\"><b>".to_owned();
    status.chains[0].vault_path = hostile.to_owned();
    status.verdict[0].says = hostile.to_owned();
    let thread = |connections| ThreadStatus { thread: "data-1".to_owned(), connections };
    status.sessions.threads = vec![thread(1), thread(0)];
    let page = render(&status).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "its own");
    assert!(
        !page.contains("<img") && !page.contains("<b>\"") && page.contains("&lt;script&gt;alert(1)"),
        "{page}"
    );
    for part in [
        "in transaction",
        "db:5432",
        "58 min of 1 h left",
        "<rect width=\"97.2\"",
        "https://vault:8200",
        "Connections of each thread: 1, 0<",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

#[test]
fn page_says_where_the_settings_come_from_and_what_the_log_has() {
    let mut status = healthy();
    status.log = LogStatus { level: "info", configured: "info" };
    let page = render(&status).unwrap();
    assert!(
        page.contains("flags and variables") && page.contains("<dt>Log level</dt><dd>info</dd>"),
        "{page}"
    );

    status.config = reload::Status::example("/etc/<b>.toml");
    status.log.level = "debug";
    let certificate = |file: &str, ends_at| CertificateStatus {
        setting: "listen.tls_cert_file",
        file: file.to_owned(),
        ends_at,
    };
    status.certificates = vec![certificate("/<i>", status.now + 7200), certificate("/old", status.now - 60)];
    let page = render(&status).unwrap();
    for part in [
        "<code>/etc/&lt;b&gt;.toml</code>, read <time",
        "<code>5f70bf18a086…</code>",
        "no &lt;key&gt;",
        "vault.address, log.format",
        "debug, set by hand: the settings say info",
        "<code>/&lt;i&gt;</code> (listen.tls_cert_file): <time datetime=",
        ">ends in 2 h</time>",
        " class=\"bad\">ended 1 min ago</time>",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

/// As after a while: every request has been made, there were rotations, and all that has an end is shown.
fn at_work(sessions: usize) -> Status {
    let longest = "x".repeat(63);
    let mut status = with_sessions(sessions, &longest);
    let requests = |operation: &str| RequestsStatus {
        operation: operation.to_owned(),
        figures: FiguresStatus {
            count: 4000,
            failures: 1,
            p50_seconds: Some(0.012),
            p99_seconds: Some(0.024),
        },
    };
    let operations = ["login", "creds", "renew", "renew_self", "lookup", "expire", "revoke_self"];
    status.vault.requests = operations.map(requests).into();
    status.config = reload::Status::example("/etc/pglease/pglease.toml");
    status.log = LogStatus { level: "info", configured: "info" };
    status.upstreams.hosts[0].last_error = Some(ErrorStatus { kind: "connect", ..ErrorStatus::default() });
    let generations = &mut status.chains[0].generations;
    let db_role = "v-kubernet-db-app-Ym4W0K2jvA1cUeZx8o9q-1764115200";
    generations.push(GenerationStatus { db_role: db_role.to_owned(), ..generations[0].clone() });
    for session in &mut status.sessions.list {
        session.database.clone_from(&longest);
        (session.age_seconds, session.state_seconds) = (90_000, 3700);
        (session.frontend_bytes, session.backend_bytes) = (1_040_000, 1_040_000_000);
    }
    status
}

#[test]
fn page_is_as_light_as_the_docs_say_however_many_sessions_there_are() {
    let docs = include_str!("../../../docs/status.md");
    let (_, said) = docs.split_once("It weighs ").unwrap();
    let said: Vec<usize> = said.split(' ').filter_map(|word| word.parse().ok()).take(2).collect();
    let (none, most) = (render(&at_work(0)).unwrap(), render(&at_work(9000)).unwrap());
    let is = [none.len(), most.len()];
    let is_said = is.iter().zip(&said).all(|(is, said)| (said - 1..=*said).contains(&is.div_ceil(1000)));
    assert!(is_said, "{is:?} bytes, and docs/status.md has {said:?} KB");
    assert!(most.contains("8900 more"));
}

#[test]
fn policy_allows_what_is_in_the_page_and_nothing_else() {
    let [_, (_, policy)] = headers();
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
    let page = render(&with_sessions(3, "psql")).unwrap();
    // No style or handler in an attribute, which the policy would forbid, and nothing from elsewhere.
    for forbidden in [" style=", " onclick=", " src=", "http://", "//cdn"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}
