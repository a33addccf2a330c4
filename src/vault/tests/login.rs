//! The auth methods, and the namespaces of login and secrets.

use super::*;

#[tokio::test]
async fn each_method_posts_what_it_has() {
    let (ok, mount, role) = (http("200 OK", LOGIN), || "m".to_owned(), || "web".to_owned());
    // {"exp":1700000000}
    let jwt = "e30.eyJleHAiOjE3MDAwMDAwMDB9.x";

    let kubernetes = |jwt_file| LoginMethod::Kubernetes { mount: mount(), role: role(), jwt_file };
    let fake = FakeVault::logging_in(kubernetes, &[&ok]).await;
    fake.write(jwt);
    assert_eq!(fake.vault.log_in().await.unwrap().jwt_expiry, Some(Duration::from_secs(1_700_000_000)));

    let by_jwt = |jwt_file| LoginMethod::Jwt { mount: mount(), role: role(), jwt_file };
    let fake = FakeVault::logging_in(by_jwt, &[&ok]).await;
    fake.write(jwt);
    assert_eq!(fake.vault.log_in().await.unwrap().jwt_expiry, None);
    let request = fake.requests().await.remove(0);
    assert!(request.starts_with("POST /prefix/v1/auth/m/login "), "{request}");
    assert!(request.ends_with(&format!(r#"{{"role":"web","jwt":"{jwt}"}}"#)), "{request}");

    for (role, body) in [(Some(role()), r#"{"name":"web"}"#), (None, "{}")] {
        let fake = FakeVault::logging_in(|_| LoginMethod::Cert { mount: mount(), role }, &[&ok]).await;
        assert_eq!(fake.vault.log_in().await.unwrap().kind, TokenKind::Service);
        let request = fake.requests().await.remove(0);
        assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
    }
}

fn approle(wrapped: bool) -> impl FnOnce(PathBuf) -> LoginMethod {
    let (mount, role_id) = ("approle".to_owned(), "the-role".to_owned());
    move |secret_id_file| LoginMethod::AppRole { mount, role_id, secret_id_file, wrapped }
}

#[tokio::test]
async fn secret_id_is_read_at_each_login_and_held_back_once_it_was_refused_twice() {
    let wrong = http("400 Bad Request", r#"{"errors":["invalid role or secret ID secret-canary"]}"#);
    let fake = FakeVault::logging_in(approle(false), &[&wrong, &wrong, &http("200 OK", LOGIN)]).await;
    for _ in 0..2 {
        let error = fake.vault.log_in().await.unwrap_err();
        assert_eq!(error.answer(), Answer::BadRequest);
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    let error = fake.vault.log_in().await.unwrap_err();
    assert!(matches!(error, VaultError::HeldBack { times: 2, .. }), "{error}");
    assert!(error.to_string().contains("vault.login.secret_id_file"), "{error}");

    fake.write("right");
    fake.vault.log_in().await.unwrap();
    let request = fake.requests().await.remove(2);
    assert!(request.starts_with("POST /prefix/v1/auth/approle/login "), "{request}");
    assert!(request.ends_with(r#"{"role_id":"the-role","secret_id":"right"}"#), "{request}");
}

#[tokio::test]
async fn wrapped_secret_id_is_opened_once_and_a_spent_one_is_said_so() {
    let ok = http("200 OK", LOGIN);
    let unwrapped =
        http("200 OK", r#"{"data":{"secret_id":"within","secret_id_accessor":"a","secret_id_ttl":0}}"#);
    let sealed = http("503 Service Unavailable", r#"{"errors":["Vault is sealed"]}"#);
    let spent = http("400 Bad Request", r#"{"errors":["wrapping token is not valid or does not exist"]}"#);
    let fake = FakeVault::logging_in(approle(true), &[&sealed, &unwrapped, &ok, &ok, &spent]).await;

    assert_eq!(fake.vault.log_in().await.unwrap_err().answer(), Answer::Unavailable);
    // Two chains at once have one token to open.
    let (one, other) = tokio::join!(fake.vault.log_in(), fake.vault.log_in());
    assert!(one.is_ok() && other.is_ok());

    fake.write("s.opened-by-another");
    for _ in 0..2 {
        let error = fake.vault.log_in().await.unwrap_err();
        assert_eq!(error.answer(), Answer::NotSent);
        assert!(error.to_string().contains("somebody else may have"), "{error}");
    }
    let requests = fake.requests().await;
    assert!(requests[1].starts_with("POST /prefix/v1/sys/wrapping/unwrap "), "{}", requests[1]);
    assert!(requests[1].contains("x-vault-token: secret-canary\r\n"), "{}", requests[1]);
    for login in &requests[2..4] {
        assert!(login.ends_with(r#"{"role_id":"the-role","secret_id":"within"}"#), "{login}");
    }
    assert!(requests[4].contains("x-vault-token: s.opened-by-another\r\n"), "{}", requests[4]);
}

#[tokio::test]
async fn token_of_a_file_is_looked_up_and_is_somebody_elses() {
    let lookup =
        |uses: u32| http("200 OK", &format!(r#"{{"data":{{"ttl":59,"renewable":true,"num_uses":{uses}}}}}"#));
    let method = |token_file| LoginMethod::TokenFile { token_file };
    let fake = FakeVault::logging_in(method, &[&lookup(0), &lookup(3), &http("403 Forbidden", "{}")]).await;

    let login = fake.vault.log_in().await.unwrap();
    assert_eq!((login.kind, login.token.text()), (TokenKind::Foreign, "secret-canary"));
    assert_eq!(login.grant, Grant { ttl: Some(59 * SECOND), renewable: true });
    let limited = fake.vault.log_in().await.unwrap_err().to_string();
    assert!(limited.starts_with("vault.login.token_file ") && limited.contains("num_uses"), "{limited}");
    assert_eq!(fake.vault.log_in().await.unwrap_err().answer(), Answer::Denied);
    for no_token in ["s.\u{e9}", "s.a b"] {
        fake.write(no_token);
        let error = fake.vault.log_in().await.unwrap_err().to_string();
        assert!(error.starts_with("vault.login.token_file "), "{error}");
    }
    for request in fake.requests().await {
        assert!(request.starts_with("GET /prefix/v1/auth/token/lookup-self "), "{request}");
        assert!(request.contains("x-vault-token: secret-canary\r\n"), "{request}");
    }
}

#[tokio::test]
async fn login_and_secrets_have_namespaces_of_their_own() {
    let creds = r#"{"lease_id":"l.team","lease_duration":10,"renewable":true,"data":{"username":"u","password":"p"}}"#;
    let done = http("200 OK", r#"{"lease_id":"l.team","lease_duration":1,"renewable":true}"#);
    let revoked = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
    let unknown = http("404 Not Found", r#"{"errors":["namespace not found"]}"#);
    let answers =
        [&http("200 OK", LOGIN), &http("200 OK", creds), &done, &done, revoked, revoked, &unknown, &unknown];
    let fake = FakeVault::with(&answers, |config, _| config.login.namespace = Some("pods".to_owned())).await;
    let (vault, lease) = (&fake.vault, LeaseId::from("l.team"));

    let token = vault.log_in().await.unwrap().token;
    vault.read_creds(&token, "x", PATIENCE).await.unwrap();
    vault.renew_lease(&token, &lease, PATIENCE).await.unwrap();
    // Its lease first, which would not end with it, and but once.
    vault.revoke_self(&token).await.unwrap();
    vault.revoke_self(&token).await.unwrap();
    let login = vault.log_in().await.unwrap_err();
    assert_eq!(login.answer(), Answer::NotFound);
    assert!(
        login.to_string().ends_with(r#"namespace not found; in vault.login.namespace "pods""#),
        "{login}"
    );
    let creds = vault.read_creds(&token, "x", PATIENCE).await.unwrap_err();
    assert!(creds.to_string().ends_with(r#"namespace not found; in vault.namespace "team""#), "{creds}");

    let requests = fake.requests().await;
    let namespaces = requests.iter().map(|request| request.contains("x-vault-namespace: pods\r\n"));
    assert_eq!(namespaces.collect::<Vec<_>>(), [true, false, false, false, true, true, true, false]);
    assert!(requests[3].ends_with(r#"{"lease_id":"l.team","increment":1}"#), "{}", requests[3]);
}
