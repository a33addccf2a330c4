//! `pglease injector` from its start to its end. What becomes of which pod, and what each bad request gets, are tests
//! of its own modules.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::injector::{Injector, pod, review};
use crate::{BINARY, PATIENCE, until};

async fn injector() -> Injector {
    let settings = "settings = [\"vault.address=https://vault.vault.svc:8200\"]\n";
    Injector::start(Path::new(BINARY), settings).await
}

async fn ask(injector: &Injector, pod: &Value) -> Value {
    let (status, answer) = injector.post(review("705ab4f5", pod).to_string()).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

#[tokio::test]
async fn labelled_pod_gets_its_sidecar_and_others_nothing() {
    let injector = injector().await;
    let mut own = pod();
    own["spec"]["containers"][0]["env"] = json!([{ "name": "API_KEY", "value": "hunter2-canary" }]);
    let response = &ask(&injector, &own).await["response"];
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("705ab4f5"), &json!(true)));
    let patch = BASE64.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch = String::from_utf8(patch).unwrap();
    for part in ["\"name\":\"pglease\"", "pglease:test", "https://vault.vault.svc:8200", "DATABASE_URL"] {
        assert!(patch.contains(part), "no {part} in {patch}");
    }

    let mut unlabelled = pod();
    unlabelled["metadata"]["labels"] = json!({});
    let response = &ask(&injector, &unlabelled).await["response"];
    assert_eq!((&response["allowed"], &response["patch"]), (&json!(true), &Value::Null));

    let mut wrong = pod();
    wrong["metadata"]["annotations"]["pglease.dev/vault-path"] = "nonsense".into();
    let response = &ask(&injector, &wrong).await["response"];
    assert_eq!(response["allowed"], json!(false));
    let reason = response["status"]["message"].as_str().unwrap();
    assert!(reason.contains("pglease.dev/vault-path"), "{reason}");

    let pglease = &injector.pglease;
    let reviews = pglease.wait_for_events("injector.review", 3, PATIENCE).await;
    assert_eq!((&reviews["outcome"], &reviews["namespace"]), (&json!("refused"), &json!("shop")));
    let first = &pglease.events("injector.review")[0];
    assert_eq!((&first["outcome"], &first["pod"]), (&json!("injected"), &json!("web-5d9f8c7b6d-")));
    assert!(!pglease.lines().tail().contains("hunter2-canary"));
    for outcome in ["injected", "unchanged", "refused"] {
        let label = format!("outcome=\"{outcome}\"");
        until(async || pglease.metric("pglease_injector_reviews_total", &label).await >= 1.0).await;
    }
    assert!(pglease.metric("pglease_injector_certificate_expiry_timestamp_seconds", "").await > 1.7e9);
    for endpoint in ["/livez", "/readyz"] {
        assert_eq!(pglease.get(endpoint).await.0, 200, "{endpoint}");
    }
    assert_eq!(pglease.get("/startup").await.0, 404);
}

#[tokio::test]
async fn nothing_that_is_posted_ends_it() {
    let injector = injector().await;
    let mut huge = pod();
    huge["metadata"]["annotations"]["example.com/large"] = "x".repeat(1_400_000).into();
    assert!(ask(&injector, &huge).await["response"]["patch"].is_string());

    let whole = review("1", &pod()).to_string();
    let deep = format!("{{\"request\":{}", "[".repeat(200_000));
    let bodies: [(Vec<u8>, u16); 6] = [
        (Vec::new(), 400),
        (whole.as_bytes()[..whole.len() / 2].to_vec(), 400),
        (vec![0xFF; 1000], 400),
        (deep.into_bytes(), 400),
        (vec![b' '; 3 * 1024 * 1024 + 1], 413),
        (whole.replace("\"CREATE\"", "\"DELETE\"").into_bytes(), 200),
    ];
    for (body, expected) in bodies {
        let (len, begin) = (body.len(), String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned());
        // An answer may come before the body has been sent, and the connection be closed behind it.
        if let Ok((status, answer)) = injector.post(body).await {
            assert_eq!(status, expected, "{len} bytes, {begin}: {answer}");
        }
    }
    ask(&injector, &pod()).await;
    assert!(injector.pglease.events("injector.fault").is_empty());
}

#[tokio::test]
async fn told_to_stop_it_answers_on_until_the_api_server_knows() {
    let injector = injector().await;
    ask(&injector, &pod()).await;
    let pglease = &injector.pglease;
    let told_at = Instant::now();
    pglease.process().signal(Signal::TERM);
    pglease.wait_for_event("drain.start", PATIENCE).await;
    // For 5 s, in which a busy machine may not come to ask.
    let is_late = || told_at.elapsed() >= Duration::from_secs(5);
    let ready = pglease.get("/readyz").await.0;
    assert!(ready == 503 || is_late(), "{ready}");
    match injector.post(review("705ab4f5", &pod()).to_string()).await {
        Ok((status, answer)) => assert_eq!(status, 200, "{answer}"),
        Err(error) => assert!(is_late(), "{error}"),
    }
    let status = pglease.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(pglease.events("process.end").len(), 1);
}
