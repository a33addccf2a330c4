//! Instances that start together do not act together: what OpenBao's audit log says of fifty of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time;

use crate::report::report;
use crate::support::Servers;
use crate::support::audit::Request;
use crate::support::gate::Gate;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{pglease_with, until};

#[tokio::test]
async fn fifty_instances_renew_at_their_own_times_and_come_back_from_an_outage_one_by_one() {
    let servers = Servers::start().await;
    let vault_roles = vec![VaultRole { default_ttl: "120s", ..VaultRole::default() }];
    let options = WorldOptions { vault_roles, token_ttl: "120s", ..WorldOptions::default() };
    let world = World::create(&servers, options).await;
    let gate = way_to_the_database(&world).await;
    let direct = format!("localhost:{}", servers.postgres.port());
    let route = world.route("db-app").replace(&direct, &gate.address().to_string());
    let settings = world.settings_with("info", &servers.openbao.address(), "") + &route;

    let started = unix_now();
    let fleet = start_fleet(&settings).await;
    let ready = unix_now();
    // Two rounds of renewals: up to 72 s, and as much again.
    time::sleep(Duration::from_secs(150)).await;

    let outage = unix_now();
    gate.close().await;
    time::sleep(Duration::from_secs(20)).await;
    gate.open().await;
    let back = unix_now();
    time::sleep(Duration::from_secs(40)).await;
    let end = unix_now();

    let requests = servers.openbao.requests();
    let ours: Vec<_> = requests.iter().filter(|request| request.display_name.contains("web")).collect();
    let mut figures =
        format!("{FLEET} instances, ready within {:?}; most in one second:", ready.abs_diff(started));
    for (what, from, to) in
        [("calm", ready + SECOND, outage), ("database away", outage, back), ("database back", back, end)]
    {
        for (kind, is_kind) in KINDS {
            let at = ours.iter().filter(|request| is_kind(request)).map(|request| request.at);
            let busiest = busiest_second(at.filter(|&at| from <= at && at < to));
            write!(figures, "\n{what}: {busiest} {kind}").unwrap();
            assert!(busiest <= FLEET / 5, "{figures}");
        }
    }
    report("fleet", &figures);

    // Each has renewed its lease in each round, and has it still.
    let renewals = ours.iter().filter(|request| is_lease_renewal(request) && request.at < outage);
    let mut rounds = BTreeMap::<_, usize>::new();
    renewals.for_each(|request| *rounds.entry(&request.token).or_default() += 1);
    assert!(rounds.len() == FLEET && rounds.values().all(|&count| count >= 2), "{rounds:?}");
    until(async || fleet_is_well(&fleet).await).await;
    assert_eq!(world.leased_roles().await.len(), FLEET);
    let tokens: BTreeSet<_> = ours.iter().filter(|request| request.is_creds()).map(|r| &r.token).collect();
    assert_eq!(tokens.len(), FLEET);
}

/// A gate that OpenBao reaches the database through.
async fn way_to_the_database(world: &World<'_>) -> Gate {
    let gate = Gate::to(world.servers.postgres.port()).await;
    let url = format!(
        "postgresql://{{{{username}}}}:{{{{password}}}}@{}/{}?sslmode=disable",
        gate.address(),
        world.database()
    );
    let connection = json!({ "plugin_name": "postgresql-database-plugin", "connection_url": url });
    world.write(&format!("{}/config/pg", world.engine()), connection).await;
    gate
}

/// A few at a time: two cores have enough to do with that, and seconds are nothing to a lease of two minutes.
async fn start_fleet(settings: &str) -> Vec<Pglease> {
    let mut fleet = Vec::new();
    while fleet.len() < FLEET {
        let mut starting = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let settings = settings.to_owned();
            starting.spawn(async move { pglease_with(&settings).await });
        }
        fleet.extend(starting.join_all().await);
    }
    fleet
}

/// Whether all have a credential, and no renewal of it fails any more.
async fn fleet_is_well(fleet: &[Pglease]) -> bool {
    for pglease in fleet {
        let last = |event: &str| {
            let lines = pglease.lines().all();
            let event = format!("\"event\":{event:?}");
            lines.iter().rposition(|line| line.contains(&event))
        };
        if pglease.get("/readyz").await.0 != 200 || last("lease.renew_failed") > last("lease.renewed") {
            return false;
        }
    }
    true
}

/// The most of these moments within one second, whenever that begins.
fn busiest_second(at: impl Iterator<Item = Duration>) -> usize {
    let mut at: Vec<_> = at.collect();
    at.sort_unstable();
    let within =
        |from: &Duration| at.iter().filter(|&&other| *from <= other && other < *from + SECOND).count();
    at.iter().map(within).max().unwrap_or(0)
}

fn is_lease_renewal(request: &Request) -> bool {
    request.path == "sys/leases/renew"
}

/// What a request is for.
type Kind = (&'static str, fn(&Request) -> bool);

const KINDS: [Kind; 4] = [
    ("renewals of leases", is_lease_renewal),
    ("renewals of tokens", |request| request.path == "auth/token/renew-self"),
    ("logins", Request::is_login),
    ("creds reads", Request::is_creds),
];

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

const FLEET: usize = 50;

const AT_A_TIME: usize = 5;

const SECOND: Duration = Duration::from_secs(1);
