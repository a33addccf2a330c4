//! Nothing grows while sessions come and go and leases follow each other.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::load::Load;
use crate::pglease_with;
use crate::report::{quantile, report};
use crate::support::pglease::Pglease;
use crate::support::world::{Revocation, World};

#[tokio::test]
async fn memory_descriptors_and_threads_stay_where_they_are() {
    let world = World::short_lived(Revocation::NoLogin).await;
    let settings = world.settings_with("info", &world.servers.openbao.address(), "");
    let route = world.route("db-app") + "at_lease_end = \"leave\"\n";
    let pglease = Arc::new(pglease_with(&(settings + &route)).await);
    let load = Load::start(&pglease, "app");

    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < LENGTH {
        time::sleep(Duration::from_secs(1)).await;
        samples.push(Sample::of(&pglease));
    }
    let rotations = pglease.events("rotation.done").len();
    let done = load.stop().await;
    assert!(done.errors.is_empty(), "{:?}", done.errors);
    assert!(rotations >= 10, "{rotations} rotations are not enough to tell");

    // The first quarter is for buffers and tables to find their size.
    let (early, late) = (&samples[samples.len() / 4..samples.len() / 2], &samples[samples.len() * 3 / 4..]);
    let growth = |of: fn(&Sample) -> u64| (median(early, of), median(late, of));
    let [memory, descriptors, threads] = [
        growth(|sample| sample.memory_kib),
        growth(|sample| sample.descriptors),
        growth(|sample| sample.threads),
    ];
    let figures = format!(
        "{rotations} rotations, {} sessions, {} statements (p99 {:?}); median of the second and of the last \
         quarter: memory {memory:?} KiB, descriptors {descriptors:?}, threads {threads:?}",
        done.connects.len(),
        done.statements.len(),
        quantile(&done.statements, 0.99),
    );
    report("soak", &figures);
    assert!(memory.1 <= memory.0 + memory.0 / 10 + 512, "{memory:?} KiB");
    assert!(descriptors.1 <= descriptors.0 + 5, "{descriptors:?}");
    // Names are resolved on threads that come and go.
    assert!(threads.1 <= threads.0 + 3, "{threads:?}");
}

struct Sample {
    memory_kib: u64,
    descriptors: u64,
    threads: u64,
}

impl Sample {
    fn of(pglease: &Pglease) -> Self {
        let process = format!("/proc/{}", pglease.process().pid());
        // The size of this folder is the number of its entries (Linux 6.2), which only their owner may list.
        let descriptors = fs::metadata(format!("{process}/fd")).unwrap().len();
        let threads = fs::read_dir(format!("{process}/task")).unwrap().count();
        Self { memory_kib: pglease.memory_kib("VmRSS"), descriptors, threads: threads.try_into().unwrap() }
    }
}

fn median(samples: &[Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut figures: Vec<_> = samples.iter().map(of).collect();
    figures.sort_unstable();
    figures[figures.len() / 2]
}

/// Enough for a dozen rotations.
const LENGTH: Duration = Duration::from_mins(4);
