use super::*;
use crate::admin::log::LogStatus;
use crate::admin::status::{MAX_LISTED, SessionsStatus, ThreadStatus};
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
    let page = render(&status).unwrap();
    for part in [
        "<code>/etc/&lt;b&gt;.toml</code>, read <time",
        "<code>5f70bf18a086…</code>",
        "no &lt;key&gt;",
        "vault.address, log.format",
        "debug, set by hand: the settings say info",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
}

#[test]
fn page_stays_light_however_many_sessions_there_are() {
    let none = render(&with_sessions(0, "")).unwrap().len();
    let most = render(&with_sessions(9000, &"x".repeat(63))).unwrap();
    assert!(none < 16 * 1024 && most.len() < 80 * 1024, "{none} and {} bytes", most.len());
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
