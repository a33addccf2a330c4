//! Statements before, in and after a rotation.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{self, Instant};

use super::database::Database;
use super::engine::{self, Done, Kind, Plan};
use super::measure::output::percentiles;
use super::measure::results::Figures;
use super::programs::add;
use super::shipped::PROGRAM;
use super::stage::Stage;
use super::support::pglease::Pglease;

/// So long before, so long after.
pub(crate) async fn rotation(stage: &Stage, time: Duration) -> Figures {
    let world = &stage.world;
    let settings = world.settings_with("info", &world.servers.openbao.address(), "");
    let route = stage.route(true) + "at_lease_end = \"leave\"\n";
    let pglease = Pglease::start(&PROGRAM, &(settings + &route)).await;
    pglease.wait_ready().await;

    let url = format!("postgresql://app@127.0.0.1:{}/{}?sslmode=disable", pglease.port(), world.database());
    let database = Database::parse(&url).expect("a URL of our own");
    let all = Arc::new(Mutex::new(Vec::<Done>::new()));
    let kept = Arc::clone(&all);
    let keep = move |done| kept.lock().unwrap().push(done);
    let plan = Plan {
        sessions: 8,
        rate: Some(400.0),
        // Ended from here.
        time: Duration::from_hours(1),
        mix: vec![(1, "SELECT count(*) FROM t".to_owned())],
        life: Some(20),
    };
    let script = async {
        // Its sessions are open then.
        time::sleep(WARM_UP).await;
        let start = Instant::now();
        time::sleep(time).await;
        let begun = Instant::now();
        let output = pglease.run_command(&["rotate"]).await;
        assert!(output.status.success(), "{output:?}");
        time::sleep(AFTERMATH).await;
        let ended = Instant::now();
        time::sleep(time).await;
        (start, begun, ended)
    };
    let (start, begun, ended) = tokio::select! {
        windows = script => windows,
        () = engine::run(database, plan, keep) => panic!("the load has ended"),
    };

    let all = all.lock().unwrap();
    let mut figures = Figures::from([("rotations".to_owned(), 1.0)]);
    let windows = [("before", start, begun), ("in", begun, ended), ("after", ended, ended + time)];
    for (name, from, to) in windows {
        let within = |done: &&Done| done.kind == Kind::Statement && (from..to).contains(&done.due);
        let mut times: Vec<_> =
            all.iter().filter(within).map(|done| done.took.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        let [p50, p99, p999] = percentiles(&times);
        add(&mut figures, &format!("{name}_p50_ms"), p50);
        add(&mut figures, &format!("{name}_p99_ms"), p99);
        add(&mut figures, &format!("{name}_p999_ms"), p999);
    }
    let errors: Vec<_> = all.iter().filter_map(|done| done.error.as_deref()).collect();
    if let Some(first) = errors.first() {
        eprintln!("rotation: {} errors, the first of them: {first}", errors.len());
    }
    add(&mut figures, "errors", Some(f64::from(u32::try_from(errors.len()).unwrap())));
    figures
}

const WARM_UP: Duration = Duration::from_millis(300);
/// How long a rotation is felt, at most.
const AFTERMATH: Duration = Duration::from_millis(500);
