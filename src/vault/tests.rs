mod login;

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::config::{LoginConfig, LoginMethod, VaultTls};

/// A Vault that gives each request the next scripted answer and keeps what was asked.
struct FakeVault {
    vault: Vault,
    metrics: Arc<Metrics>,
    requests: JoinSet<Vec<String>>,
    dir: TempDir,
}

impl FakeVault {
    async fn answering(answers: &[&str]) -> Self {
        Self::with(answers, |_, _| {}).await
    }

    /// With the method made of a file that holds `secret-canary`.
    async fn logging_in(method: impl FnOnce(PathBuf) -> LoginMethod, answers: &[&str]) -> Self {
        Self::with(answers, |config, file| config.login.method = method(file)).await
    }

    async fn with(answers: &[&str], change: impl FnOnce(&mut VaultConfig, PathBuf)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "secret-canary\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = answers.iter().map(|answer| answer.replace("HERE", &address.to_string())).collect();
        let mut requests = JoinSet::new();
        requests.spawn(serve(listener, answers));
        let metrics = Arc::new(Metrics::new());
        let mut config = config(format!("http://{address}/prefix"), file.clone());
        change(&mut config, file);
        let vault = Vault::load(&config, Arc::clone(&metrics)).unwrap();
        Self { vault, metrics, requests, dir }
    }

    fn write(&self, text: &str) {
        std::fs::write(self.dir.path().join("token"), text).unwrap();
    }

    async fn requests(mut self) -> Vec<String> {
        self.requests.join_next().await.unwrap().unwrap()
    }
}

async fn serve(listener: TcpListener, answers: Vec<String>) -> Vec<String> {
    let mut seen = Vec::new();
    for answer in answers {
        let (mut client, _) = listener.accept().await.unwrap();
        seen.push(read_request(&mut client).await);
        client.write_all(answer.as_bytes()).await.unwrap();
    }
    seen
}

fn config(address: String, jwt_file: PathBuf) -> VaultConfig {
    let (mount, role) = ("kubernetes".to_owned(), "web".to_owned());
    VaultConfig {
        address,
        namespace: Some("team".to_owned()),
        tls: VaultTls::default(),
        redirect_hosts: vec![],
        proxy: None,
        state_dir: None,
        login: LoginConfig {
            namespace: Some("team".to_owned()),
            method: LoginMethod::Kubernetes { mount, role, jwt_file },
        },
    }
}

async fn read_request(client: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        client.read_buf(&mut request).await.unwrap();
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return text;
        }
    }
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn token() -> Token {
    Token::from_text("s.canary")
}

const SECOND: Duration = Duration::from_secs(1);

/// Of a request that is answered at once, on a machine that does much else.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn login_posts_role_and_jwt_below_the_prefix() {
    let body = r#"{"auth":{"client_token":"s.new","lease_duration":60,"renewable":true,"num_uses":0}}"#;
    let fake = FakeVault::answering(&[&http("200 OK", body)]).await;

    let login = fake.vault.log_in().await.unwrap();
    assert_eq!(login.token.text(), "s.new");

    let request = fake.requests().await.remove(0);
    assert!(request.starts_with("POST /prefix/v1/auth/kubernetes/login HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x-vault-request: true\r\n"), "{request}");
    assert!(request.contains("x-vault-namespace: team\r\n"), "{request}");
    assert!(!request.contains("x-vault-token"), "{request}");
    assert!(request.ends_with(r#"{"role":"web","jwt":"secret-canary"}"#), "{request}");
}

#[tokio::test]
async fn each_call_is_the_request_that_the_api_wants() {
    let creds =
        r#"{"lease_id":"a/b","lease_duration":10,"renewable":true,"data":{"username":"u","password":"p"}}"#;
    let renewed =
        r#"{"lease_id":"a/b","lease_duration":7,"renewable":true,"data":null,"warnings":["capped"]}"#;
    let fake = FakeVault::answering(&[
        &http("200 OK", r#"{"data":{"ttl":59,"renewable":true,"num_uses":0,"id":"s.canary"}}"#),
        &http("200 OK", creds),
        &http("200 OK", renewed),
        &http("200 OK", r#"{"auth":{"client_token":"s.canary","lease_duration":8,"renewable":true}}"#),
        "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    ])
    .await;
    let (vault, token, lease) = (&fake.vault, token(), LeaseId::from("a/b"));

    assert_eq!(vault.look_up_self(&token).await.unwrap().ttl, Some(59 * SECOND));
    assert_eq!(vault.read_creds(&token, "database/creds/x", PATIENCE).await.unwrap().id, lease);
    let granted = |seconds| Grant { ttl: Some(seconds * SECOND), renewable: true };
    assert_eq!(vault.renew_lease(&token, &lease, PATIENCE).await.unwrap(), granted(7));
    assert_eq!(vault.renew_self(&token, PATIENCE).await.unwrap(), granted(8));
    vault.revoke_self(&token).await.unwrap();

    let metrics = fake.metrics.encode().unwrap();
    assert!(metrics.contains(r#"vault_requests_total{op="revoke_self",code="204"} 1"#), "{metrics}");
    let requests = fake.requests().await;
    for (request, (line, body)) in requests.iter().zip([
        ("GET /prefix/v1/auth/token/lookup-self ", ""),
        ("GET /prefix/v1/database/creds/x ", ""),
        ("PUT /prefix/v1/sys/leases/renew ", r#"{"lease_id":"a/b","increment":0}"#),
        ("POST /prefix/v1/auth/token/renew-self ", "{}"),
        ("POST /prefix/v1/auth/token/revoke-self ", ""),
    ]) {
        assert!(request.starts_with(line), "{request}");
        assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
        assert!(request.contains("x-vault-token: s.canary\r\n"), "{request}");
    }
}

#[tokio::test]
async fn refusals_carry_status_and_words_but_no_secret() {
    let echo = http("403 Forbidden", r#"{"errors":["permission denied for s.canary and secret-canary"]}"#);
    let busy = "HTTP/1.1 429 Too Many\r\nretry-after: 9\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let moved =
        "HTTP/1.1 307 Moved\r\nlocation: http://stranger/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let gone = http("400 Bad Request", r#"{"errors":["lease not found: database/creds/x/canary"]}"#);
    let fake = FakeVault::answering(&[&echo, &echo, &gone, busy, moved]).await;

    let error = fake.vault.read_creds(&token(), "x", PATIENCE).await.unwrap_err();
    assert_eq!(error.answer(), Answer::Denied);
    assert_eq!(
        error.to_string(),
        "Vault answered creds with 403: permission denied for [redacted] and secret-canary; in vault.namespace \"team\""
    );
    let error = fake.vault.log_in().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret-canary"), "{error:?}");
    let lease = LeaseId::from("database/creds/x/canary");
    let error = fake.vault.renew_lease(&token(), &lease, PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "Vault answered renew with 400: lease not found: [redacted]");
    let error = fake.vault.renew_self(&token(), PATIENCE).await.unwrap_err();
    assert_eq!(error.answer(), Answer::TryLater { retry_after: Some(9 * SECOND) });
    let error = fake.vault.renew_self(&token(), PATIENCE).await.unwrap_err();
    assert_eq!(error.answer(), Answer::Redirect);

    assert_eq!(fake.requests().await.len(), 5);
}

#[tokio::test]
async fn answers_of_another_shape_are_malformed_and_bounded() {
    let huge = format!(r#"{{"pad":"{}"}}"#, "x".repeat(2 << 20));
    let canary = r#"{"lease_duration":10,"lease_id":"l","data":"pw-canary"}"#;
    let fake = FakeVault::answering(&[
        &http("200 OK", "<html>"),
        &http("200 OK", ""),
        &http("202 Accepted", "{}"),
        &http("200 OK", canary),
        &http("200 OK", &huge),
    ])
    .await;

    for _ in 0..5 {
        let error = fake.vault.read_creds(&token(), "x", PATIENCE).await.unwrap_err();
        assert_eq!(error.answer(), Answer::Malformed, "{error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn lost_answers_are_told_from_connections_never_made() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let vault = Vault::load(&config(address, PathBuf::new()), Arc::new(Metrics::new())).unwrap();

    let slow = vault.read_creds(&token(), "x", Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(slow.answer(), Answer::Lost);
    // A port that nobody listens on, and nobody else gets.
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("http://{}", closed.local_addr().unwrap());
    let vault = Vault::load(&config(address, PathBuf::new()), Arc::new(Metrics::new())).unwrap();
    let refused = vault.read_creds(&token(), "x", PATIENCE).await.unwrap_err();
    assert_eq!(refused.answer(), Answer::NotSent);
    assert!(!format!("{refused:?}").contains("s.canary"));
}

/// Which is moved over the stack of its thread, several times, when it is spawned.
#[tokio::test]
async fn request_takes_little_of_the_task_that_makes_it() {
    let vault =
        Vault::load(&config("http://127.0.0.1:1".to_owned(), PathBuf::new()), Arc::new(Metrics::new()));
    let (vault, token) = (vault.unwrap(), token());
    let sizes = [
        size_of_val(&vault.renew_self(&token, PATIENCE)),
        size_of_val(&vault.read_creds(&token, "x", PATIENCE)),
        size_of_val(&vault.revoke_self(&token)),
        size_of_val(&vault.log_in()),
    ];
    assert!(sizes.iter().all(|size| *size <= 2048), "{sizes:?}");
}

#[tokio::test]
async fn address_that_does_not_answer_is_named() {
    let vault = FakeVault::answering(&[""]).await;
    let address = vault.vault.config.address.trim_end_matches("/prefix").to_owned();
    for _ in ["closed at once", "closed for good"] {
        let error = vault.vault.log_in().await.unwrap_err();
        assert!(crate::telemetry::Causes(&error).to_string().contains(&address), "{error:?}");
    }
}

const LOGIN: &str = r#"{"auth":{"client_token":"s.new","lease_duration":60,"renewable":true,"num_uses":0}}"#;

fn redirect(location: &str) -> String {
    format!("HTTP/1.1 307 Moved\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn redirects_are_followed_within_bounds() {
    // Relative, and to the own host.
    let (one, two) = (redirect("/elsewhere/v1/a"), redirect("http://HERE/b"));
    let fake = FakeVault::answering(&[&one, &two, &http("200 OK", LOGIN), &one, &two, &one]).await;
    fake.vault.log_in().await.unwrap();
    let error = fake.vault.log_in().await.unwrap_err();
    assert_eq!(error.answer(), Answer::Redirect);
    assert!(error.to_string().contains("one redirect too many"), "{error}");
    let requests = fake.requests().await;
    for (request, line) in requests.iter().zip(["POST /prefix/v1/auth", "POST /elsewhere/v1/a ", "POST /b "])
    {
        assert!(request.starts_with(line), "{request}");
        assert!(request.ends_with(r#"{"role":"web","jwt":"secret-canary"}"#), "{request}");
    }

    for (location, why) in [
        ("https://127.0.0.1:1/", "another scheme"),
        ("http://stranger.example.com:8200/v1/x", "http://stranger.example.com:8200, a host that"),
        ("http://u:p@127.0.0.1:1/", "as some user"),
        ("unix:/run/x", "names no address"),
        ("", "one redirect too many"),
    ] {
        let moved = redirect(location);
        let fake = FakeVault::answering(&[&moved, &moved, &moved]).await;
        let error = fake.vault.renew_self(&token(), PATIENCE).await.unwrap_err();
        assert_eq!(error.answer(), Answer::Redirect, "{location}");
        assert!(error.to_string().contains(why), "{location}: {error}");
    }
}

#[tokio::test]
async fn redirect_to_a_host_of_the_settings_is_followed_to_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let moved = redirect(&format!("http://localhost:{}/v1/x", listener.local_addr().unwrap().port()));
    let mut leader = JoinSet::new();
    leader.spawn(serve(listener, vec![http("200 OK", LOGIN)]));
    let hosts = |hosts: &[&str]| hosts.iter().map(|&host| host.to_owned()).collect();

    let fake = FakeVault::with(&[&moved], |config, _| config.redirect_hosts = hosts(&["other"])).await;
    assert_eq!(fake.vault.renew_self(&token(), PATIENCE).await.unwrap_err().answer(), Answer::Redirect);
    let fake = FakeVault::with(&[&moved], |config, _| config.redirect_hosts = hosts(&["localhost"])).await;
    fake.vault.renew_self(&token(), PATIENCE).await.unwrap();
    let request = leader.join_next().await.unwrap().unwrap().remove(0);
    assert!(request.contains("x-vault-token: s.canary\r\n"), "{request}");
}

#[tokio::test]
async fn standby_that_lags_is_asked_again_at_once_and_no_more_than_three_times() {
    let lags = http("412 Precondition Failed", "{}");
    let fake = FakeVault::answering(&[&lags, &lags, &lags, &http("200 OK", LOGIN)]).await;
    fake.vault.log_in().await.unwrap();
    let fake = FakeVault::answering(&[&lags, &lags, &lags, &lags]).await;
    let error = fake.vault.log_in().await.unwrap_err();
    assert_eq!(error.answer(), Answer::TryLater { retry_after: None });
    assert_eq!(fake.requests().await.len(), 4);
}

#[tokio::test]
async fn slow_answers_are_cut_at_the_time_limit() {
    let slow = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{";
    let fake = FakeVault::answering(&[slow]).await;
    let begun = Instant::now();
    let error = fake.vault.read_creds(&token(), "x", Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(error.answer(), Answer::Lost);
    assert!(begun.elapsed() < PATIENCE);

    // A refusal stands without its words, and without too many of them.
    let endless = http("403 Forbidden", &format!(r#"{{"errors":["{}"]}}"#, "x".repeat(2 << 20)));
    for refusal in ["HTTP/1.1 403 Forbidden\r\ncontent-length: 100\r\n\r\n{", &endless] {
        let fake = FakeVault::answering(&[refusal]).await;
        let error = fake.vault.read_creds(&token(), "x", PATIENCE).await.unwrap_err();
        assert_eq!(error.answer(), Answer::Denied);
    }
}

#[tokio::test]
async fn success_of_another_kind_is_malformed_for_every_call() {
    let bodies = ["null", "[]", "{}", r#"{"auth":null,"data":null}"#, r#"{"auth":{},"data":{}}"#, "1e999"];
    let answers: Vec<_> = bodies.iter().map(|body| http("200 OK", body)).collect();
    let mut answers: Vec<_> = answers.iter().map(String::as_str).collect();
    let (accepted, nothing) = (http("202 Accepted", LOGIN), "HTTP/1.1 204 No\r\nconnection: close\r\n\r\n");
    answers.extend([accepted.as_str(), nothing]);
    let lease = LeaseId::from("l");
    for call in 0..6 {
        let fake = FakeVault::answering(&answers).await;
        let (vault, token) = (&fake.vault, token());
        for _ in &answers {
            let answer = match call {
                0 => vault.log_in().await.map(drop),
                1 => vault.look_up_self(&token).await.map(drop),
                2 => vault.read_creds(&token, "x", PATIENCE).await.map(drop),
                3 => vault.renew_lease(&token, &lease, PATIENCE).await.map(drop),
                4 => vault.renew_self(&token, PATIENCE).await.map(drop),
                _ => vault.look_up_lease(&token, &lease).await.map(drop),
            };
            assert_eq!(answer.unwrap_err().answer(), Answer::Malformed, "{call}");
        }
    }
}

#[tokio::test]
async fn proxy_of_the_settings_is_asked_to_connect() {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let fake = FakeVault::with(&[&http("200 OK", LOGIN)], |config, _| config.proxy = Some(address)).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut client, _) = proxy.accept().await.unwrap();
        let request = read_request(&mut client).await;
        let target = request.split(' ').nth(1).unwrap().to_owned();
        let mut server = TcpStream::connect(target).await.unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        vec![request]
    });
    fake.vault.log_in().await.unwrap();
    let request = tasks.join_next().await.unwrap().unwrap().remove(0);
    assert!(request.starts_with("CONNECT 127.0.0.1:"), "{request}");
}

impl FakeVault {
    /// One with a `vault.state_dir`, in which a crash has left these tokens.
    async fn after_a_crash(left: &[&str], answers: &[&str]) -> Self {
        Self::with(answers, |config, file| {
            let dir = file.with_file_name("state");
            std::fs::create_dir(&dir).unwrap();
            for (index, token) in left.iter().enumerate() {
                std::fs::write(dir.join(format!("token-{index}")), token).unwrap();
            }
            config.state_dir = Some(dir);
        })
        .await
    }

    /// What is in the files of `vault.state_dir`.
    fn kept(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("state")).unwrap();
        entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }
}

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn token_is_kept_from_its_login_until_vault_has_the_last_word_on_it() {
    let login = |kind| {
        let body = format!(
            r#"{{"auth":{{"client_token":"s.new","lease_duration":60,"renewable":true,"token_type":"{kind}"}}}}"#
        );
        http("200 OK", &body)
    };
    for (revoked, kept) in [
        (NO_CONTENT.to_owned(), false),
        (http("403 Forbidden", "{}"), false),
        (http("400 Bad Request", "{}"), false),
        (http("503 Service Unavailable", "{}"), true),
    ] {
        let fake = FakeVault::after_a_crash(&[], &[&login("service"), &revoked]).await;
        let token = fake.vault.log_in().await.unwrap().token;
        assert_eq!(fake.kept(), ["s.new"]);
        let _ = fake.vault.revoke_self(&token).await;
        assert_eq!(!fake.kept().is_empty(), kept, "{revoked}");
    }

    // A batch token cannot be revoked.
    let fake = FakeVault::after_a_crash(&[], &[&login("batch")]).await;
    fake.vault.log_in().await.unwrap();
    assert!(fake.kept().is_empty());

    // Somebody else's is his own business.
    let looked_up = http("200 OK", r#"{"data":{"ttl":59,"renewable":true,"num_uses":0}}"#);
    let fake = FakeVault::with(&[&looked_up], |config, file| {
        let dir = file.with_file_name("state");
        std::fs::create_dir(&dir).unwrap();
        config.state_dir = Some(dir);
        config.login.method = LoginMethod::TokenFile { token_file: file };
    })
    .await;
    fake.vault.log_in().await.unwrap();
    assert!(fake.kept().is_empty());
}

#[tokio::test]
async fn leftovers_are_revoked_and_tried_again_while_vault_is_away() {
    let fake = FakeVault::after_a_crash(
        &["s.one", "s.two", ""],
        &[
            NO_CONTENT,
            &http("503 Service Unavailable", "{}"),
            &http("429 Too Many Requests", "{}"),
            &http("403 Forbidden", "{}"),
        ],
    )
    .await;
    fake.vault.revoke_leftovers().await;
    assert!(fake.kept().is_empty());
    let requests = fake.requests().await;
    assert!(requests.iter().all(|request| request.starts_with("POST /prefix/v1/auth/token/revoke-self ")));
    let of = |token: &str| requests.iter().filter(|request| request.contains(token)).count();
    assert_eq!(of("s.one") + of("s.two"), 4);
    assert!(of("s.one") == 1 || of("s.two") == 1);
}

#[tokio::test]
async fn start_without_a_state_dir_has_nothing_to_revoke_and_no_pause() {
    let fake = FakeVault::answering(&[]).await;
    fake.vault.revoke_leftovers().await;
    fake.vault.note_start();
    assert_eq!(fake.vault.pause_before_start(), Duration::ZERO);
    let fake = FakeVault::after_a_crash(&[], &[]).await;
    assert_eq!(fake.vault.pause_before_start(), Duration::ZERO);
    fake.vault.note_start();
    assert!(fake.vault.pause_before_start() > Duration::ZERO);
}
