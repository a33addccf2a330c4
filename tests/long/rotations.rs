//! A hundred rotations under load cost nobody an error.
//!
//! Four chains side by side, 25 rotations each: the budget of one new credential per 10 s lets one chain alone take
//! more than 20 minutes for a hundred, while a rotation in every second, as of ten chains or more, would leave no
//! steady time to compare with.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{self, Instant};

use crate::load::{Done, Load, Took};
use crate::report::{quantile, report};
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{pglease_with, until};

#[tokio::test]
async fn hundred_rotations_cost_no_error_and_no_more_roles_than_are_held() {
    let vault_roles: Vec<_> = CHAINS
        .into_iter()
        .map(|name| VaultRole { name, default_ttl: "10s", max_ttl: "20s", ..VaultRole::default() })
        .collect();
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let mut settings = world.settings_with("info", &world.servers.openbao.address(), "");
    for chain in CHAINS {
        let route = world.route(chain);
        writeln!(settings, "{route}database = {chain:?}\nat_lease_end = \"leave\"\n").unwrap();
    }
    let pglease = Arc::new(pglease_with(&settings).await);
    let loads = CHAINS.map(|chain| Load::start(&pglease, chain));

    let mut rotations = Rotations::default();
    let followed = rotations.follow(&pglease);
    let (most_unheld, ()) = tokio::join!(watch_roles(&world, &pglease), followed);
    let mut all = Vec::new();
    for load in loads {
        all.push(load.stop().await);
    }
    for done in &all {
        assert!(done.errors.is_empty(), "{:?}", done.errors);
    }
    report("rotations", &rotations.table(&all));
    // One that is being proven or revoked, and a current one that nobody has logged in with yet.
    assert!(most_unheld.values().all(|&unheld| unheld <= 2), "{most_unheld:?}");

    pglease.sigterm();
    assert!(pglease.wait_exit(Duration::from_secs(30)).await.success());
    until(async || world.living_roles().await.is_empty()).await;
}

/// Until each chain has had its rotations: the most roles of one chain at a time that could log in and had no session.
async fn watch_roles(world: &World<'_>, pglease: &Pglease) -> BTreeMap<String, usize> {
    let unheld = format!(
        "SELECT rolname FROM pg_roles WHERE starts_with(rolname, '{}') AND rolcanlogin
         AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = rolname)",
        world.role_prefix()
    );
    let mut most = BTreeMap::new();
    while !is_done(&count_rotations(&pglease.events("rotation.done"))) {
        let mut now = BTreeMap::<_, usize>::new();
        for role in world.superuser.rows(&unheld).await {
            let role = role[0].clone().unwrap();
            let chain = CHAINS.into_iter().find(|chain| role.contains(chain)).unwrap();
            *now.entry(chain.to_owned()).or_default() += 1;
        }
        for (chain, unheld) in now {
            let most = most.entry(chain).or_default();
            *most = unheld.max(*most);
        }
        time::sleep(Duration::from_millis(250)).await;
    }
    most
}

fn count_rotations(done: &[Value]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for event in done {
        *counts.entry(chain_of(event)).or_default() += 1;
    }
    counts
}

fn is_done(counts: &BTreeMap<&str, usize>) -> bool {
    CHAINS.iter().all(|chain| counts.get(chain).is_some_and(|&count| count >= ROTATIONS))
}

fn chain_of(event: &Value) -> &str {
    event["vault_path"].as_str().unwrap().rsplit('/').next().unwrap()
}

/// When each chain rotated.
#[derive(Default)]
struct Rotations {
    of: BTreeMap<String, Vec<(Instant, Instant)>>,
}

impl Rotations {
    /// Takes note of each rotation as it is logged, until there are enough.
    async fn follow(&mut self, pglease: &Pglease) {
        let (mut seen, mut begun) = (0, BTreeMap::new());
        while !CHAINS.iter().all(|&chain| self.of.get(chain).is_some_and(|done| done.len() >= ROTATIONS)) {
            let lines = time::timeout(MAX_GAP, pglease.lines().after(seen)).await.unwrap().unwrap();
            seen += lines.len();
            let events = lines.iter().filter(|line| line.contains("rotation."));
            for event in events.filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                let chain = chain_of(&event).to_owned();
                match event["event"].as_str().unwrap() {
                    "rotation.start" => drop(begun.insert(chain, Instant::now())),
                    "rotation.done" => {
                        let from = begun.remove(&chain).unwrap();
                        self.of.entry(chain).or_default().push((from, Instant::now() + AFTERMATH));
                    }
                    other => assert_eq!(other, "rotation.done", "{event}"),
                }
            }
        }
    }

    /// Whether it was under way while `chain` rotated.
    fn meets(&self, chain: &str, took: &Took) -> bool {
        let end = took.begun + took.took;
        self.of[chain].iter().any(|&(from, to)| took.begun <= to && from <= end)
    }

    fn table(&self, all: &[Done]) -> String {
        let count = self.of.values().map(Vec::len).sum::<usize>();
        let mut text = format!(
            "{count} rotations, no error. Milliseconds; median of the {} chains, and from the least to the most of them\n\n\
             | | | number | p50 | p99 | max |\n| --- | --- | --- | --- | --- | --- |\n",
            CHAINS.len()
        );
        for (what, of) in [
            ("statement", (|done| &done.statements) as fn(&Done) -> &Vec<Took>),
            ("connect", |done| &done.connects),
        ] {
            for (when, rotating) in [("steady", false), ("while rotating", true)] {
                let chosen: Vec<Vec<_>> = CHAINS
                    .into_iter()
                    .zip(all)
                    .map(|(chain, done)| {
                        of(done).iter().filter(|took| self.meets(chain, took) == rotating).collect()
                    })
                    .collect();
                let number: usize = chosen.iter().map(Vec::len).sum();
                let spread = |share| {
                    let of_chain =
                        |took: &Vec<&Took>| quantile(took.iter().copied(), share).as_secs_f64() * 1e3;
                    let mut figures: Vec<_> = chosen.iter().map(of_chain).collect();
                    figures.sort_by(f64::total_cmp);
                    let median = figures[figures.len() / 2];
                    format!("{median:.1} ({:.1}–{:.1})", figures[0], figures[figures.len() - 1])
                };
                let (p50, p99, max) = (spread(0.5), spread(0.99), spread(1.0));
                writeln!(text, "| {what} | {when} | {number} | {p50} | {p99} | {max} |").unwrap();
            }
        }
        text
    }
}

const CHAINS: [&str; 4] = ["db-one", "db-two", "db-three", "db-four"];

/// Of each chain.
const ROTATIONS: usize = 25;

/// What is slow for a second after a rotation is slow because of it.
const AFTERMATH: Duration = Duration::from_secs(1);

/// Lines are logged all the time.
const MAX_GAP: Duration = Duration::from_mins(1);
