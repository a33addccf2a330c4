use super::*;
use crate::admin::status::{
    CertificateStatus, Group, SessionStatus, SessionsStatus, UpstreamsStatus, VaultStatus,
};
use crate::file::{FileError, FileState, FileStatus, NoticeStatus};
use crate::lease::{GenerationStatus, RotationStatus};
use crate::reload;

const NOW: u64 = 1_764_115_200;
const PATH: &str = "database/creds/db-app";
const OTHER: &str = "other:5432";

/// One route to one host, of which all is well.
pub(in crate::admin) fn healthy() -> Status {
    let generation = GenerationStatus {
        generation: "g1".to_owned(),
        state: "current",
        db_role: "v-app".to_owned(),
        lease: Some("0f3a9c4b7d21".to_owned()),
        age_seconds: Some(100),
        lease_seconds: Some(3500),
        token_seconds: Some(3600),
        lease_ttl_seconds: Some(3600),
        token_ttl_seconds: Some(3600),
        password_seconds: None,
        password_ttl_seconds: None,
        end_is_final: false,
        proven: true,
        holders: 0,
        files: 0,
        standing: "kept",
    };
    let chain = ChainStatus {
        vault_path: PATH.to_owned(),
        kind: "leased",
        state: "serving",
        current: Some("g1".to_owned()),
        rotation: None,
        last_error: None,
        end_is_harmless: None,
        clients_waiting: 0,
        revocations: 0,
        generations: vec![generation],
    };
    let host = HostStatus {
        host: "db:5432".to_owned(),
        logins: 9,
        last_ok_at: Some(NOW - 60),
        last_ok_seconds: Some(0.002),
        ..HostStatus::default()
    };
    Status {
        version: "0.1.0",
        phase: "serving",
        now: NOW,
        vault: VaultStatus {
            address: "https://vault:8200".to_owned(),
            login_method: "kubernetes",
            last_ok_at: Some(NOW - 100),
            ..VaultStatus::default()
        },
        upstreams: UpstreamsStatus {
            hosts: vec![host],
            groups: vec![group(PATH, &["db:5432"])],
            ..UpstreamsStatus::default()
        },
        chains: vec![chain],
        sessions: SessionsStatus { open: 3, max: 1000, ..SessionsStatus::default() },
        ..Status::default()
    }
}

fn group(vault_path: &str, hosts: &[&str]) -> Group {
    Group { vault_path: vault_path.to_owned(), hosts: hosts.iter().map(|host| (*host).to_owned()).collect() }
}

/// Another host, of this route, which serves.
fn add_host(status: &mut Status, vault_path: &str) {
    status.upstreams.hosts.push(HostStatus { host: OTHER.to_owned(), ..healthy().upstreams.hosts.remove(0) });
    match status.upstreams.groups.iter_mut().find(|group| group.vault_path == vault_path) {
        Some(group) => group.hosts.push(OTHER.to_owned()),
        None => status.upstreams.groups.push(group(vault_path, &[OTHER])),
    }
}

fn error(operation: &'static str, kind: &'static str, code: &str, says: &str) -> ErrorStatus {
    let code = Some(code.to_owned()).filter(|code| !code.is_empty());
    ErrorStatus { operation, kind, code, says: says.to_owned(), at: NOW - 10 }
}

fn chain_error(error: &ErrorStatus) -> ChainError {
    let ErrorStatus { operation, kind, code, says, at } = error.clone();
    ChainError { operation, kind, code, says, at }
}

/// Without a credential, for this.
fn without(error: &ErrorStatus) -> Status {
    let mut status = healthy();
    status.chains[0].current = None;
    status.chains[0].generations.clear();
    status.chains[0].clients_waiting = 4;
    status.chains[0].last_error = Some(chain_error(error));
    status
}

fn only(status: &Status) -> Finding {
    let [finding] = &verdict(status)[..] else { panic!("{:?}", verdict(status)) };
    finding.clone()
}

#[test]
fn nothing_is_at_fault_while_all_answer_and_what_was_made_good_is_not_told() {
    let mut status = healthy();
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::None, Severity::Ok));
    assert!(
        finding.says.contains("3 of 1000 sessions") && finding.cure.contains("application"),
        "{finding:?}"
    );

    let earlier = ErrorStatus { at: NOW - 200, ..error("renew", "unavailable", "500", "away") };
    status.vault.last_error = Some(earlier.clone());
    status.chains[0].last_error = Some(chain_error(&earlier));
    status.upstreams.hosts[0].last_error = Some(ErrorStatus { kind: "connect", ..earlier });
    assert_eq!(only(&status).fault, Fault::None);
}

#[test]
fn without_a_credential_whoever_keeps_it_from_us_is_at_fault() {
    use Fault as F;
    let refused = "no connection to Vault for login: http://vault:8200: tcp connect error: Connection refused (os error 111)";
    for (operation, kind, code, says, fault, what, cure) in [
        ("login", "not_sent", "", refused, F::Vault, "Nobody listened", "vault status"),
        ("login", "not_sent", "", "failed to lookup address information", F::Network, "name", "DNS"),
        (
            "login",
            "not_sent",
            "",
            "invalid peer certificate: Expired",
            F::Vault,
            "certificate",
            "vault.ca_file",
        ),
        (
            "login",
            "not_sent",
            "",
            "received fatal alert: CertificateExpired",
            F::Settings,
            "pglease's certificate",
            "vault.client_cert_file",
        ),
        (
            "creds",
            "no_answer",
            "",
            "received fatal alert: UnknownCA",
            F::Settings,
            "pglease's",
            "vault.client",
        ),
        ("login", "not_sent", "", "operation timed out", F::Network, "reached", "NetworkPolicy"),
        ("login", "file", "", "vault.login.jwt_file", F::Kubernetes, "token", "vault.login.jwt_file"),
        ("login", "denied", "403", "permission denied", F::Kubernetes, "refused the login", "ServiceAccount"),
        ("login", "bad_request", "400", "invalid role name", F::Vault, "refused the login", "vault.login"),
        ("login", "not_found", "404", "", F::Settings, "at that path", "vault.login.mount"),
        ("login", "unavailable", "500", "", F::Kubernetes, "reviewed", "system:auth-delegator"),
        ("login", "unavailable", "503", "Vault is sealed", F::Vault, "sealed", "unseal"),
        ("creds", "denied", "403", "", F::Vault, "policy", "pglease check"),
        ("creds", "not_found", "404", "", F::Settings, "at that path", "vault_path"),
        ("creds", "unavailable", "500", "", F::Postgresql, "make a user", "Vault's log"),
        ("creds", "no_answer", "", "", F::Vault, "did not answer", "load"),
        ("creds", "try_later", "429", "", F::Vault, "left alone", "quota"),
        ("creds", "redirect", "307", "", F::Settings, "another address", "redirect_hosts"),
        ("creds", "malformed", "200", "", F::Settings, "as Vault does", "proxy"),
        ("renew", "denied", "403", "", F::Vault, "keep a credential alive", "audit log"),
        (
            "renew",
            "bad_request",
            "400",
            "",
            F::Postgresql,
            "did not renew",
            "PostgreSQL may be away for Vault",
        ),
        ("renew_self", "bad_request", "400", "", F::Vault, "keep a credential alive", "audit log"),
        ("proof", "auth_rejected", "28P01", "", F::Postgresql, "leased user", "pg_hba.conf"),
        ("proof", "timeout", "", "", F::Network, "reached", "NetworkPolicy"),
        ("proof", "refused", "3D000", "", F::Settings, "database", "the route's upstream"),
    ] {
        let finding = only(&without(&error(operation, kind, code, says)));
        assert_eq!(
            (finding.fault, finding.severity),
            (fault, Severity::Error),
            "{operation} {kind} {finding:?}"
        );
        let begin = "There is no credential of database/creds/db-app: 4 clients wait now";
        for part in [begin, what, "10 s ago", says] {
            assert!(finding.says.contains(part), "{part}: {finding:?}");
        }
        assert!(finding.cure.contains(cure), "{finding:?}");
    }
}

#[test]
fn login_by_other_means_than_a_pods_token_is_not_kubernetes_fault() {
    let mut status = without(&error("login", "denied", "403", ""));
    status.vault.login_method = "approle";
    assert_eq!(only(&status).fault, Fault::Vault);
    let mut status = without(&error("login", "file", "", ""));
    status.vault.login_method = "approle";
    assert_eq!(only(&status).fault, Fault::Settings);
}

#[test]
fn start_is_no_fault_before_something_fails() {
    let mut status = without(&error("login", "denied", "403", ""));
    status.chains[0].last_error = None;
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::None, Severity::Warning));
}

#[test]
fn credential_that_cannot_be_kept_is_a_warning_until_it_ends_soon() {
    let sealed = error("renew", "unavailable", "503", "Vault is sealed");
    let mut status = healthy();
    status.chains[0].state = "degraded";
    status.chains[0].last_error = Some(chain_error(&sealed));
    status.vault.last_error = Some(sealed);
    status.vault.failing = true;
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::Vault, Severity::Warning));
    assert!(finding.says.contains("for 58 min more"), "{finding:?}");

    status.chains[0].generations[0].lease_seconds = Some(90);
    assert_eq!(only(&status).severity, Severity::Error);

    // A rotation that waits for its next try.
    let rotation =
        RotationStatus { trigger: Some("planned"), attempt: "waiting", in_seconds: Some(3), close: false };
    status.chains[0].rotation = Some(rotation);
    status.chains[0].state = "rotating";
    assert_eq!(only(&status).fault, Fault::Vault);
    // One that runs has not failed.
    status.chains[0].rotation.as_mut().unwrap().attempt = "running";
    status.vault.last_error = None;
    assert_eq!(only(&status).fault, Fault::None);
}

#[test]
fn host_that_fails_is_at_fault_and_less_so_where_another_serves() {
    use Fault as F;
    for (kind, code, says, fault, what) in [
        ("connect", "", "Connection refused (os error 111)", F::Postgresql, "Nobody listened"),
        ("connect", "", "No route to host (os error 113)", F::Network, "reached"),
        ("timeout", "", "", F::Network, "reached"),
        ("resolve", "", "", F::Network, "resolved"),
        ("tls", "", "invalid peer certificate: Expired", F::Postgresql, "secure"),
        ("tls", "", "received fatal alert: CertificateExpired", F::Settings, "pglease's certificate"),
        ("tls", "", "received fatal alert: HandshakeFailure", F::Postgresql, "secure"),
        ("lost", "", "received fatal alert: UnknownCA", F::Settings, "pglease's certificate"),
        ("lost", "", "received fatal alert: DecryptError", F::Settings, "pglease's certificate"),
        ("untrusted", "", "", F::Postgresql, "prove"),
        ("auth_rejected", "28P01", "", F::Postgresql, "leased user"),
        ("refused", "53300", "", F::Postgresql, "no connection left"),
        ("refused", "57P03", "", F::Postgresql, "starting"),
        ("refused", "28000", "", F::Postgresql, "let us in"),
        ("refused", "42501", "", F::Postgresql, "allow"),
        ("refused", "55000", "", F::Postgresql, "refused"),
        ("session_attrs", "", "", F::Postgresql, "kind of server"),
        ("lost", "", "", F::Postgresql, "broke off"),
    ] {
        let mut status = healthy();
        status.upstreams.hosts[0].last_error = Some(error("login", kind, code, says));
        status.upstreams.hosts[0].failing = true;
        let finding = only(&status);
        assert_eq!((finding.fault, finding.severity), (fault, Severity::Error), "{kind} {code} {finding:?}");
        assert!(finding.says.contains(what) && finding.says.contains("db:5432"), "{finding:?}");

        // That of another route does not help.
        let mut two = status.clone();
        add_host(&mut two, "database/creds/other");
        assert_eq!(only(&two).severity, Severity::Error, "{kind}");
        // Nor does one that only one of its routes has.
        two.upstreams.groups[1].hosts.push("db:5432".to_owned());
        assert_eq!(only(&two).severity, Severity::Error, "{kind}");

        add_host(&mut status, PATH);
        let finding = only(&status);
        let expected = if kind == "session_attrs" { Severity::Ok } else { Severity::Warning };
        assert_eq!(finding.severity, expected, "{finding:?}");
    }
}

#[test]
fn host_that_nobody_has_tried_for_long_is_a_warning_that_says_so() {
    let mut status = healthy();
    status.upstreams.hosts[0].last_error = Some(error("login", "connect", "", "Connection refused"));
    status.upstreams.hosts[0].failing = true;
    status.now = NOW - 10 + RECENT_SECONDS;
    assert_eq!(only(&status).severity, Severity::Error);
    status.now += 1;
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::Postgresql, Severity::Warning));
    for part in ["db:5432", "was not tried since", "15 min ago", "Connection refused"] {
        assert!(finding.says.contains(part), "{part}: {finding:?}");
    }

    // What a client asked for in vain, and a server of another kind, are no fault of the host's.
    status.upstreams.hosts[0].last_error = Some(error("login", "refused", "3D000", "no such database"));
    assert_eq!(only(&status).severity, Severity::Ok);
    status.upstreams.hosts[0].last_error = Some(error("login", "session_attrs", "", ""));
    add_host(&mut status, PATH);
    assert_eq!(only(&status).severity, Severity::Ok);
}

#[test]
fn settings_that_are_of_no_use_are_a_warning() {
    let mut status = healthy();
    status.config = reload::Status::example("/etc/pglease.toml");
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::Settings, Severity::Warning));
    for part in ["/etc/pglease.toml", "no <key>"] {
        assert!(finding.says.contains(part), "{part}: {finding:?}");
    }
    status.config.unchanged();
    assert_eq!(only(&status).severity, Severity::Ok);
}

#[test]
fn certificate_that_has_ended_or_ends_within_a_day_is_told_with_its_file() {
    let (listen, vault, upstream) = ("listen.tls_cert_file", "vault.client_cert_file", "sslcert");
    let day = certificates::SOON_SECONDS;
    for (setting, ends_at, severity, said) in [
        (listen, NOW + day, None, ""),
        (
            listen,
            NOW + day - 1,
            Some(Severity::Warning),
            "ends in 23 h 59 min: from then on clients that verify",
        ),
        (listen, NOW + CLOSE_SECONDS, Some(Severity::Error), "ends in 2 min: from then on clients"),
        (listen, NOW, Some(Severity::Error), "ended 0 s ago: clients that verify it get no session"),
        (vault, NOW + 7200, Some(Severity::Warning), "ends in 2 h: from then on a Vault that asks"),
        (vault, NOW - 7200, Some(Severity::Warning), "ended 2 h ago: a Vault that asks for one refuses us"),
        (upstream, NOW + 60, Some(Severity::Warning), "ends in 1 min: from then on a PostgreSQL"),
        (upstream, NOW - 60, Some(Severity::Warning), "ended 1 min ago: a PostgreSQL that asks"),
    ] {
        let mut status = healthy();
        status.certificates = vec![CertificateStatus { setting, file: "/tls/tls.crt".to_owned(), ends_at }];
        let finding = only(&status);
        assert_eq!(finding.severity, severity.unwrap_or_default(), "{finding:?}");
        if severity.is_some() {
            assert!(finding.fault == Fault::Settings && finding.cure.contains("Renew it"), "{finding:?}");
            assert!(finding.says.contains(&format!("/tls/tls.crt ({setting}) {said}")), "{finding:?}");
        }
    }
}

#[test]
fn what_a_client_asked_for_in_vain_is_the_applications_and_its_host_serves() {
    for (code, what) in
        [("3D000", "database"), ("22023", "parameter"), ("42704", "parameter"), ("42601", "parameter")]
    {
        let mut status = healthy();
        status.upstreams.hosts[0].last_error = Some(error("login", "refused", code, "it says"));
        status.upstreams.hosts[0].failing = true;
        let finding = only(&status);
        assert_eq!((finding.fault, finding.severity), (Fault::Application, Severity::Warning), "{finding:?}");
        assert!(!finding.says.contains("new sessions fail") && finding.says.contains(what), "{finding:?}");

        add_host(&mut status, PATH);
        status.upstreams.hosts[1].failing = true;
        status.upstreams.hosts[1].last_error = Some(error("login", "connect", "", "Connection refused"));
        let findings = verdict(&status);
        assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    }
}

#[test]
fn proof_that_fails_is_told_where_only_another_chains_host_fails() {
    let mut status = healthy();
    add_host(&mut status, "database/creds/other");
    status.upstreams.hosts[1].failing = true;
    status.upstreams.hosts[1].last_error = Some(error("login", "connect", "", "Connection refused"));
    let rotation =
        RotationStatus { trigger: Some("planned"), attempt: "waiting", in_seconds: Some(3), close: false };
    status.chains[0].rotation = Some(rotation);
    status.chains[0].last_error = Some(chain_error(&error("proof", "auth_rejected", "28P01", "no")));
    let findings = verdict(&status);
    assert!(findings[0].says.contains(OTHER) && findings[1].says.contains(PATH), "{findings:?}");
}

#[test]
fn proof_that_a_host_prevents_is_told_once() {
    let mut status = healthy();
    let refused = error("proof", "connect", "", "Connection refused (os error 111)");
    let rotation =
        RotationStatus { trigger: Some("planned"), attempt: "waiting", in_seconds: Some(3), close: false };
    status.chains[0].rotation = Some(rotation);
    status.chains[0].last_error = Some(chain_error(&refused));
    status.upstreams.hosts[0].last_error = Some(ErrorStatus { operation: "login", ..refused });
    status.upstreams.hosts[0].failing = true;
    assert!(only(&status).says.contains("db:5432"));
}

#[test]
fn vault_that_fails_at_what_nobody_waits_for_is_a_warning() {
    let mut status = healthy();
    status.vault.last_error = Some(error("lookup", "no_answer", "", "no answer from Vault to lookup"));
    status.vault.failing = true;
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::Vault, Severity::Warning));
    assert!(finding.says.starts_with("The last request to Vault failed; clients are served."), "{finding:?}");
    status.now += 3600;
    status.vault.last_ok_at = None;
    let finding = only(&status);
    assert_eq!((finding.fault, finding.severity), (Fault::Vault, Severity::Warning));
    assert!(finding.says.contains("not tried since") && finding.says.contains("1 h ago"), "{finding:?}");
}

#[test]
fn application_is_at_fault_for_seats_and_for_transactions_that_it_forgets() {
    for (open, severity) in [(899, None), (900, Some(Severity::Warning)), (1000, Some(Severity::Error))] {
        let mut status = healthy();
        status.sessions.open = open;
        let finding = only(&status);
        assert_eq!(finding.severity, severity.unwrap_or_default(), "{open}");
        assert_eq!(finding.fault == Fault::Application, severity.is_some(), "{finding:?}");
    }
    let mut status = healthy();
    let session = |session: &str, state, state_seconds| SessionStatus {
        session: session.to_owned(),
        state,
        state_seconds,
        ..SessionStatus::default()
    };
    status.sessions.list = vec![
        session("s1", "active", 9999),
        session("s2", "in_transaction", 299),
        session("s3", "in_transaction", 1),
    ];
    assert_eq!(only(&status).fault, Fault::None);
    status.sessions.list.push(session("s4", "in_transaction", 3700));
    let finding = only(&status);
    assert!(finding.fault == Fault::Application && finding.says.contains("s4 for 1 h 1 min"), "{finding:?}");
}

#[test]
fn chain_that_says_nothing_is_a_bug_and_a_drain_is_told() {
    let mut status = healthy();
    status.chains[0].state = "silent";
    status.chains[0].current = None;
    assert_eq!(only(&status).fault, Fault::Pglease);
    let mut status = healthy();
    status.phase = "draining";
    assert!(only(&status).says.contains("stopping"));
}

#[test]
fn worst_comes_first() {
    let mut status = without(&error("creds", "unavailable", "500", "x"));
    status.phase = "draining";
    let severities: Vec<_> = verdict(&status).iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Error, Severity::Warning]);
}

#[test]
fn file_that_is_old_or_whose_reader_does_not_know_is_said() {
    let mut status = healthy();
    let error = |says: &str| Some(FileError { says: says.to_owned(), at: NOW });
    let file = |state, told, generation: Option<&str>| FileStatus {
        path: "/vault/secrets/db".to_owned(),
        state,
        generation: generation.map(str::to_owned),
        last_error: error("no space left"),
        on_change: Some(NoticeStatus { told, last_error: error("no process"), ..NoticeStatus::default() }),
        ..FileStatus::default()
    };
    status.files = vec![file(FileState::Current, true, Some("g2"))];
    assert_eq!(verdict(&status)[0].severity, Severity::Ok);
    status.files = vec![file(FileState::Stale, false, Some("g1")), file(FileState::Stale, true, None)];
    let findings = verdict(&status);
    assert_eq!(
        findings.iter().map(|finding| finding.severity.as_str()).collect::<Vec<_>>(),
        ["error", "error", "warning"]
    );
    assert!(findings[0].says.contains("has still g1") && findings[0].says.contains("no space left"));
    assert!(findings[1].says.contains("is not there"));
    assert!(findings[2].says.contains("could not be told") && findings[2].fault == Fault::Application);
}
