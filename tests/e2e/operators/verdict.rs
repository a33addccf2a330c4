//! Who is at fault, by `/status` of a real pglease beside real servers in that trouble, and nobody once it is mended.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::Servers;
use crate::support::gate::Gate;
use crate::support::http_client;
use crate::support::pglease::Pglease;
use crate::support::tokenreview::Answer;
use crate::support::world::{World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

/// What the verdict says of this fault.
async fn findings(pglease: &Pglease, fault: &str) -> Vec<Value> {
    let status = pglease.status().await;
    let all = status["verdict"].as_array().unwrap().clone();
    all.into_iter().filter(|finding| finding["fault"] == fault).collect()
}

/// Until it is this one's, in these words, with something to do.
async fn until_blamed(pglease: &Pglease, fault: &str, words: &str) {
    until(async || {
        let found = findings(pglease, fault).await;
        let is_it = |finding: &&Value| finding["says"].as_str().unwrap().contains(words);
        found.iter().find(is_it).is_some_and(|finding| !finding["cure"].as_str().unwrap().is_empty())
    })
    .await;
}

async fn until_well(pglease: &Pglease) {
    until(async || !findings(pglease, "none").await.is_empty()).await;
}

/// The trouble is mended: the rotation that it held up has come to its end, and nobody is at fault.
async fn until_rotated(pglease: &Pglease, rotations: usize) {
    pglease.wait_for_events("rotation.done", rotations, PATIENCE).await;
    until_well(pglease).await;
}

/// Has new credentials asked for, whatever becomes of it.
fn rotate(pglease: &Pglease, asking: &mut JoinSet<()>) {
    let url = format!("http://{}/rotate", pglease.admin());
    asking.spawn(async move {
        let _ = http_client().post(url).send().await;
    });
}

#[tokio::test]
async fn vault_and_kubernetes_are_blamed_for_what_they_do_and_nobody_once_it_is_mended() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions::default()).await;
    let gate = Gate::to(servers.openbao.port()).await;
    let settings = world.settings_with("info", &format!("http://{}", gate.address()), "");
    let pglease = pglease_with(&(settings + &world.route("db-app"))).await;
    let mut asking = JoinSet::new();
    until_well(&pglease).await;
    let policy = format!("sys/policies/acl/{}", world.group("db-app"));
    let rights = servers.openbao.read(&policy).await["policy"].clone();

    servers.openbao.seal().await;
    rotate(&pglease, &mut asking);
    until_blamed(&pglease, "vault", "Vault was sealed").await;
    servers.openbao.unseal().await;
    until_rotated(&pglease, 1).await;

    gate.close().await;
    rotate(&pglease, &mut asking);
    until_blamed(&pglease, "vault", "Nobody listened where Vault should be").await;
    gate.open().await;
    until_rotated(&pglease, 2).await;

    let none = "path \"nothing\" { capabilities = [\"read\"] }";
    servers.openbao.write(&policy, json!({ "policy": none })).await;
    rotate(&pglease, &mut asking);
    until_blamed(&pglease, "vault", "policy did not allow to read a credential").await;
    servers.openbao.write(&policy, json!({ "policy": rights })).await;
    until_rotated(&pglease, 3).await;

    world.token_review.set_answer(Answer::No);
    rotate(&pglease, &mut asking);
    until_blamed(&pglease, "kubernetes", "Vault refused the login of the pod").await;
    world.token_review.set_answer(Answer::Honest);
    until_rotated(&pglease, 4).await;

    servers.openbao.pause().await;
    rotate(&pglease, &mut asking);
    until_blamed(&pglease, "vault", "took a request and did not answer").await;
    servers.openbao.resume();
    until_rotated(&pglease, 5).await;
}

#[tokio::test]
async fn postgresql_network_and_application_are_blamed_for_what_they_do() {
    let servers = Servers::start().await;
    let world = World::create(&servers, WorldOptions { is_alone: true, ..WorldOptions::default() }).await;
    let postgres = &servers.postgres;
    let vault_path = world.vault_path("db-app");
    // Where what is sent is dropped, and a name that nobody has: asked for last, as they stay so.
    let (hole, _held) = super::black_hole().await;
    let elsewhere = [
        ("dropped", format!("host={} port={} connect_timeout=2", hole.ip(), hole.port())),
        ("unnamed", "host=nowhere.invalid".to_owned()),
    ]
    .map(|(database, host)| {
        format!(
            "[[route]]\ndatabase = {database:?}\nupstream = \"{host} dbname=app sslmode=disable\"\n\
                 vault_path = {vault_path:?}\noptional = true\n"
        )
    })
    .concat();
    let settings = world.settings_with("info", &servers.openbao.address(), "max_sessions = 3");
    let pglease = pglease_with(&(settings + &elsewhere + &world.route("db-app"))).await;
    until_well(&pglease).await;
    let refused = async || pglease.connect("app").await.err().unwrap();
    let served = async || until(async || pglease.connect("app").await.is_ok()).await;
    let rest = "host all postgres all scram-sha-256\nhost all vault_admin all scram-sha-256\n";
    let hba = async |line: &str| postgres.write_data(&[("pg_hba.conf", &format!("{rest}{line}"))]).await;

    hba("host all all all reject").await;
    refused().await;
    until_blamed(&pglease, "postgresql", "It did not let us in").await;
    hba("host all all all scram-sha-256").await;
    served().await;
    until_well(&pglease).await;

    world.superuser.batch_execute("ALTER DATABASE app CONNECTION LIMIT 1").await.unwrap();
    refused().await;
    until_blamed(&pglease, "postgresql", "It had no connection left").await;
    world.superuser.batch_execute("ALTER DATABASE app CONNECTION LIMIT -1").await.unwrap();
    served().await;
    until_well(&pglease).await;

    postgres.stop().await;
    refused().await;
    until_blamed(&pglease, "postgresql", "Nobody listened there").await;
    postgres.start_again().await;
    served().await;
    until_well(&pglease).await;

    let mut sessions = Vec::new();
    while sessions.len() < 3 {
        sessions.extend(pglease.connect("app").await);
    }
    until_blamed(&pglease, "application", "3 of 3 sessions are open").await;
    drop(sessions);
    until_well(&pglease).await;

    // What a client asks for that is not there is the application's.
    for (database, words) in
        [("dropped", "It could not be reached"), ("unnamed", "Its name could not be resolved")]
    {
        until(async || pglease.connect(database).await.is_err()).await;
        until_blamed(&pglease, "network", words).await;
    }
}
