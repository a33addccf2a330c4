//! The alerts that matter most are true of a real pglease in that trouble, and what it is scraped for is as
//! Prometheus's own tool wants it.

use std::time::{Duration, SystemTime};

use tokio::time;

use super::promtool::{Promtool, Scrape, expression_of, root};
use crate::support::free_ports;
use crate::support::gate::Gate;
use crate::support::http_client;
use crate::support::pglease::Pglease;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

/// Of one pglease, a second apart.
struct Scrapes<'a> {
    pglease: &'a Pglease,
    taken: Vec<Scrape>,
}

impl Scrapes<'_> {
    async fn take(&mut self) {
        time::sleep(Duration::from_secs(1)).await;
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        self.taken.push(Scrape { at, samples: self.pglease.metrics().await });
    }

    /// The one sample of this metric.
    fn last(&self, name: &str) -> f64 {
        let samples = &self.taken.last().unwrap().samples;
        samples.iter().find(|(of, _)| of.split('{').next() == Some(name)).unwrap().1
    }

    /// Scrapes until the alert's expression is true.
    async fn until(&mut self, promtool: &Promtool, alert: &str) {
        let expression = expression_of(alert);
        let found = time::timeout(PATIENCE * 2, async {
            while self.taken.is_empty() || !promtool.holds(&expression, &self.taken, 0) {
                self.take().await;
            }
        });
        assert!(found.await.is_ok(), "{alert} never; the last lines:\n{}", self.pglease.lines().tail());
    }
}

#[tokio::test]
async fn alerts_are_true_of_a_pglease_whose_vault_is_away() {
    let Some(promtool) = Promtool::find() else { return };
    let role = VaultRole { default_ttl: "20s", max_ttl: "1h", ..VaultRole::default() };
    let world = World::shared(WorldOptions { vault_roles: vec![role], ..WorldOptions::default() }).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    let vault = format!("http://{}", gate.address());
    // One of its upstreams is nowhere.
    let nowhere = format!(
        "[[route]]\ndatabase = \"nowhere\"\nupstream = \"postgresql://127.0.0.1:{}/app?sslmode=disable\"\n\
         vault_path = {:?}\noptional = true\n",
        free_ports(1),
        world.vault_path("db-app"),
    );
    let settings = world.settings_with("info", &vault, "connect_wait = \"10m\"");
    let pglease = pglease_with(&(settings + &nowhere + &world.route("db-app"))).await;

    // As a person looks, and as Prometheus does.
    let text = pglease.get("/metrics").await.1;
    let checked = promtool.run(&["check", "metrics"], root(), &text);
    assert!(checked.status.success(), "{text}\n{checked:?}");
    let asked =
        http_client().get(pglease.http_url("/metrics")).header("accept", "application/openmetrics-text");
    let answer = asked.send().await.unwrap().text().await.unwrap();
    assert!(answer.ends_with("# EOF\n"), "{answer}");

    let mut scrapes = Scrapes { pglease: &pglease, taken: Vec::new() };
    for alert in
        ["PgleaseLeaseEnding", "PgleaseNoCredential", "PgleaseClientsWaiting", "PgleaseVaultRequestsFailing"]
    {
        // A machine that stands still for seconds makes one true for as long.
        until(async || {
            scrapes.take().await;
            !promtool.holds(&expression_of(alert), &scrapes.taken, 0)
        })
        .await;
    }
    for _ in 0..8 {
        pglease.connect("nowhere").await.err().unwrap();
        scrapes.take().await;
    }
    scrapes.until(&promtool, "PgleaseUpstreamHostFailing").await;
    scrapes.until(&promtool, "PgleaseUpstreamDown").await;

    gate.close().await;
    pglease.wait_for_event("lease.renew_failed", PATIENCE).await;
    // If nothing happens until a tenth is left. To see that come would be a matter of seconds.
    let ends = |of: &str| scrapes.last(&format!("pglease_lease_{of}_seconds"));
    let left = ends("expiry_timestamp") - scrapes.taken.last().unwrap().at;
    let later = Duration::try_from_secs_f64(left - 0.1 * ends("duration")).unwrap_or_default().as_secs();
    assert!(promtool.holds(&expression_of("PgleaseLeaseEnding"), &scrapes.taken, later), "{later}");
    scrapes.until(&promtool, "PgleaseNoCredential").await;
    // While a client waits, Vault is asked more often.
    let waiting = tokio::join!(pglease.connect("app"), async {
        scrapes.until(&promtool, "PgleaseClientsWaiting").await;
        scrapes.until(&promtool, "PgleaseVaultRequestsFailing").await;
        gate.open().await;
    });
    waiting.0.unwrap();
}
