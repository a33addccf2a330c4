//! No client makes Prometheus keep more series.

use std::collections::BTreeSet;

use crate::raw::{Raw, startup};
use crate::support::pglease::Pglease;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_with, until};

/// Names with labels, of everything that is scraped; a histogram counts once.
async fn series(pglease: &Pglease) -> BTreeSet<String> {
    let names = pglease.metrics().await.into_iter().map(|(name, _)| name);
    names.filter(|name| !name.contains("_bucket{") && !name.contains("_sum{")).collect()
}

/// One of each thing that a client may choose, by names that have this number in them.
async fn choose(pglease: &Pglease, number: u32) {
    let address = pglease.addresses()[0];
    let name = |what: &str| format!("{what}-{number}");
    for parameters in [
        [("user", name("user")), ("database", name("database")), ("application_name", name("application"))],
        [("user", name("user")), ("database", "app".to_owned()), ("application_name", name("application"))],
        [("user", name("user")), ("database", "app".to_owned()), ("no_such_parameter", name("value"))],
        [("user", name("user")), ("database", "app".to_owned()), ("role", name("role"))],
    ] {
        let parameters: Vec<_> = parameters.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut raw = Raw::connect(address).await;
        raw.send(&startup(&parameters)).await;
        // ReadyForQuery or an error, whichever comes; then the end.
        while raw.message().await.is_some_and(|message| message.tag != b'Z') {}
    }
    let session = pglease.connect_as("app", &name("user")).await.unwrap();
    let state = format!("DO $$ BEGIN RAISE EXCEPTION SQLSTATE 'P{number:04}'; END $$");
    session.batch_execute(&state).await.unwrap_err();
    drop(session);
    // A cancel with a key of its own, and something that is no PostgreSQL at all.
    let mut cancel = [0, 0, 0, 16, 4, 210, 22, 46].to_vec();
    cancel.extend([number.to_be_bytes(), number.to_be_bytes()].concat());
    for bytes in [&cancel[..], format!("GET /{number} HTTP/1.1\r\n\r\n").as_bytes()] {
        let mut raw = Raw::connect(address).await;
        raw.send(bytes).await;
        while raw.message().await.is_some() {}
    }
}

#[tokio::test]
async fn no_client_adds_a_series() {
    let world = World::shared(WorldOptions::default()).await;
    // `app` alone has a route.
    let route = world.route("db-app") + "database = \"app\"\n";
    let pglease = pglease_with(&(world.settings() + &route)).await;
    let ended = async |count: f64| {
        until(async || pglease.metric("pglease_session_seconds_count", "").await >= count).await;
        until(async || pglease.metric("pglease_sessions", "").await == 0.0).await;
        until(async || pglease.metric("pglease_cancel_requests_total", "").await >= 1.0).await;
    };
    choose(&pglease, 1).await;
    ended(5.0).await;
    let first = series(&pglease).await;
    for number in 2..12 {
        choose(&pglease, number).await;
    }
    ended(55.0).await;
    let last = series(&pglease).await;
    // A reason may be new, as a connection ends in one way or another by chance. Ten of each name would be many more.
    let new: Vec<_> = last.difference(&first).collect();
    assert!(new.len() < 5, "{new:#?}");
    for word in ["user-", "database-", "application-", "role-", "value-", "P00"] {
        assert!(!last.iter().any(|name| name.contains(word)), "{word} in {last:#?}");
    }
}
