//! Case C18 at length: 20,000 inserts that meet the ends of leases.

use std::time::Duration;

use crate::goodbye::{Clients, Pace};
use crate::pglease_with;
use crate::report::report;
use crate::support::world::{Revocation, World};

#[tokio::test]
async fn case_c18_no_insert_is_done_behind_a_goodbye() {
    let world = World::short_lived(Revocation::Drop).await;
    let settings = world.settings_with("info", &world.servers.openbao.address(), "");
    let route = world.route("db-app") + "at_lease_end = \"close\"\n";
    let pglease = pglease_with(&(settings + &route)).await;
    // A session that is idle for two seconds may end.
    let (pause, jitter) = (Duration::from_millis(1900), Duration::from_millis(400));
    let clients = Clients::start(&world, &pglease, 100, Pace { pause, jitter, attempts: 200 }).await;
    let told = clients.finish(&world).await;
    assert!(told.attempts() >= 20_000, "{}", told.attempts());
    report(
        "inserts",
        &format!(
            "{} inserts, {} of them crossed by a goodbye and not done; {} of unknown fate; {} sessions ended in silence",
            told.attempts(),
            told.undone.len(),
            told.unknown.len(),
            told.silent
        ),
    );
}
