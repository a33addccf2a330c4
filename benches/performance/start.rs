//! A start, beside what it has to wait for.

use std::fs;
use std::time::Duration;

use tokio::time::{self, Instant};

use super::accounting::{GIVEN_BACK, memory_kib};
use super::database::Database;
use super::measure::results::Figures;
use super::shipped::PROGRAM;
use super::stage::Stage;
use super::support::http_client;
use super::support::pglease::Pglease;

/// Login, creds and probe by hand, then pglease from its start to its first 200 on `/startup`, and what it is then.
pub(crate) async fn start(stage: &Stage, time: Duration) -> Figures {
    let world = &stage.world;
    let begun = Instant::now();
    let leased = world.lease("db-app").await;
    let postgres = &world.servers.postgres;
    let url = format!(
        "postgresql://{}:{}@localhost:{}/{}?sslmode=verify-full&sslrootcert={}",
        leased.user,
        leased.password,
        postgres.port(),
        world.database(),
        postgres.ca_file().display()
    );
    let session = Database::parse(&url).expect("a URL of our own").open().await.expect("a session");
    let floor = begun.elapsed();
    session.close().await;

    let settings = world.settings_with("info", &world.servers.openbao.address(), "") + &stage.route(true);
    let begun = Instant::now();
    let pglease = Pglease::start(&PROGRAM, &settings).await;
    let startup = pglease.http_url("/startup");
    let client = http_client();
    while client.get(&startup).send().await.unwrap().status() != 200 {
        time::sleep(Duration::from_millis(1)).await;
    }
    let ready = begun.elapsed();
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let rss = || memory_kib(pglease.process().pid(), "VmRSS") / 1024.0;
    let rss_ready = rss();
    // The short run has no time for it.
    let rss_at_rest = if time >= Duration::from_secs(1) {
        time::sleep(GIVEN_BACK).await;
        rss()
    } else {
        f64::NAN
    };
    #[expect(clippy::cast_precision_loss, reason = "a file is smaller than 2^52 bytes")]
    let binary = fs::metadata(&*PROGRAM).unwrap().len() as f64 / 1024.0 / 1024.0;
    [
        ("floor_ms", ms(floor)),
        ("ready_ms", ms(ready)),
        ("over_ms", ms(ready) - ms(floor)),
        ("rss_mib", rss_ready),
        ("rest_mib", rss_at_rest),
        ("binary_mib", binary),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
