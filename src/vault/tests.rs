use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::config::LoginConfig;

/// A Vault that gives each request the next scripted answer and keeps what was asked.
struct FakeVault {
    vault: Vault,
    metrics: Arc<Metrics>,
    requests: JoinSet<Vec<String>>,
    _dir: TempDir,
}

impl FakeVault {
    async fn answering(answers: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jwt_file = dir.path().join("token");
        std::fs::write(&jwt_file, "jwt-canary\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/prefix", listener.local_addr().unwrap());
        let answers: Vec<String> = answers.iter().map(|&answer| answer.to_owned()).collect();

        let mut requests = JoinSet::new();
        requests.spawn(async move {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut client, _) = listener.accept().await.unwrap();
                seen.push(read_request(&mut client).await);
                client.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        let metrics = Arc::new(Metrics::new());
        let vault = Vault::load(&config(address, jwt_file), Arc::clone(&metrics)).unwrap();
        Self { vault, metrics, requests, _dir: dir }
    }

    async fn requests(mut self) -> Vec<String> {
        self.requests.join_next().await.unwrap().unwrap()
    }
}

fn config(address: String, jwt_file: PathBuf) -> VaultConfig {
    VaultConfig {
        address,
        namespace: Some("team".to_owned()),
        ca_file: None,
        login: LoginConfig { mount: "kubernetes".to_owned(), role: "web".to_owned(), jwt_file },
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
    assert!(request.ends_with(r#"{"role":"web","jwt":"jwt-canary"}"#), "{request}");
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
    assert_eq!(vault.read_creds(&token, "database/creds/x", SECOND).await.unwrap().id, lease);
    let granted = |seconds| Grant { ttl: Some(seconds * SECOND), renewable: true };
    assert_eq!(vault.renew_lease(&token, &lease, SECOND).await.unwrap(), granted(7));
    assert_eq!(vault.renew_self(&token, SECOND).await.unwrap(), granted(8));
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
    let echo = http("403 Forbidden", r#"{"errors":["permission denied for s.canary and jwt-canary"]}"#);
    let busy = "HTTP/1.1 429 Too Many\r\nretry-after: 9\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let moved = "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let gone = http("400 Bad Request", r#"{"errors":["lease not found: database/creds/x/canary"]}"#);
    let fake = FakeVault::answering(&[&echo, &echo, &gone, busy, moved]).await;

    let error = fake.vault.read_creds(&token(), "x", SECOND).await.unwrap_err();
    assert_eq!(error.answer(), Answer::Denied);
    assert_eq!(
        error.to_string(),
        "Vault answered creds with 403: permission denied for [redacted] and jwt-canary"
    );
    let error = fake.vault.log_in().await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("jwt-canary"), "{error:?}");
    let lease = LeaseId::from("database/creds/x/canary");
    let error = fake.vault.renew_lease(&token(), &lease, SECOND).await.unwrap_err();
    assert_eq!(error.to_string(), "Vault answered renew with 400: lease not found: [redacted]");
    let error = fake.vault.renew_self(&token(), SECOND).await.unwrap_err();
    assert_eq!(error.answer(), Answer::TryLater { retry_after: Some(9 * SECOND) });
    let error = fake.vault.renew_self(&token(), SECOND).await.unwrap_err();
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
        let error = fake.vault.read_creds(&token(), "x", 10 * SECOND).await.unwrap_err();
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
    drop(listener);
    let refused = vault.read_creds(&token(), "x", SECOND).await.unwrap_err();
    assert_eq!(refused.answer(), Answer::NotSent);
    assert!(!format!("{refused:?}").contains("s.canary"));
}

#[tokio::test]
async fn address_that_does_not_answer_is_named() {
    let vault = FakeVault::answering(&[""]).await;
    let address = vault.vault.config.address.clone();
    for _ in ["closed at once", "closed for good"] {
        let error = vault.vault.log_in().await.unwrap_err();
        assert!(crate::telemetry::Causes(&error).to_string().contains(&address), "{error:?}");
    }
}
