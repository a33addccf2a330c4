//! Scenario by scenario, round by round, way by way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::kept::{self, Kept};
use super::measure::budgets;
use super::measure::results::{Figures, Results};
use super::measure::rounds::{left, shuffled, span};
use super::measure::table::table;
use super::options::Options;
use super::peers::Absent;
use super::scenarios::{Load, Scenario, Way, chosen};
use super::stage::Stage;
use super::{connects, idle, programs, rotation, sealed, start};

/// Measures what is asked for and not there yet, and prints all of it. Says whether nothing failed.
pub(crate) async fn run(options: Options) -> bool {
    let chosen: Vec<_> = chosen(&options).collect();
    let kept = Kept::of(options.quick);
    let short = if options.quick { ", a short run" } else { "" };
    let under = format!("{} rounds of {} s{short}", options.rounds, options.time.as_secs_f64());
    let frame = Results { under, build: kept::build(), ..Results::default() };
    let is_there = |scenario: &Scenario| find(&kept, scenario, &frame).is_some();
    let (there, missing): (Vec<&Scenario>, Vec<_>) =
        chosen.iter().partition(|scenario| !options.again && is_there(scenario));
    println!("{} scenarios, {}, in random order (seed {}).", chosen.len(), frame.under, options.seed);
    for scenario in &there {
        println!("{}: measured already, of this build (--again measures it again)", scenario.name);
    }

    let mut failed = Vec::new();
    let mut rng = Rng::with_seed(options.seed);
    let all = missing.iter().map(|scenario| parts(scenario, &options)).sum();
    let mut progress = Progress { begun: Instant::now(), done: 0, all };
    let options = Arc::new(options);
    for scenario in shuffled(missing.len(), &mut rng).into_iter().map(|index| missing[index]) {
        // A task of its own, and servers: one that fails leaves the others alone.
        let mut tasks = JoinSet::new();
        tasks.spawn(measure(scenario, Arc::clone(&options), frame.clone(), rng.fork(), progress));
        match tasks.join_next().await {
            Some(Ok(results)) => kept.write(&results),
            _ => failed.push(scenario.name),
        }
        progress.done += parts(scenario, &options);
    }
    println!("\n{}", report(&kept, &chosen, &frame));
    println!("Tables, figures and plots are in {}.", kept.folder.display());
    if !failed.is_empty() {
        println!("Failed, as said above: {}. The next run measures these alone.", failed.join(", "));
    }
    failed.is_empty()
}

/// What is kept of a scenario, if it is of this build and was measured in this way.
fn find(kept: &Kept, scenario: &Scenario, frame: &Results) -> Option<Results> {
    kept.read(scenario.name).filter(|results| results.under == frame.under && results.build == frame.build)
}

fn report(kept: &Kept, chosen: &[&Scenario], frame: &Results) -> String {
    let found = |scenario: &&Scenario| Some((scenario.name.to_owned(), find(kept, scenario, frame)?));
    let all: budgets::All = chosen.iter().filter_map(found).collect();
    let tables = chosen.iter().filter_map(|scenario| all.get(scenario.name)).map(table);
    let text = tables.collect::<Vec<_>>().join("\n") + "\n### Budgets\n\n" + &budgets::table(&all);
    kept.write_file("report.md", &text);
    text
}

fn parts(scenario: &Scenario, options: &Options) -> u32 {
    options.rounds * u32::try_from(scenario.ways.len()).unwrap_or(1)
}

async fn measure(
    scenario: &'static Scenario,
    options: Arc<Options>,
    frame: Results,
    mut rng: Rng,
    mut progress: Progress,
) -> Results {
    let ways = scenario.ways.iter().map(|way| way.name().to_owned()).collect();
    let (name, what) = (scenario.name.to_owned(), scenario.what.to_owned());
    let mut results = Results { name, what, ways, ..frame };
    let mut stage = Stage::set_up(scenario.load).await;
    for round in 0..options.rounds {
        let mut figures = BTreeMap::new();
        for way in shuffled(scenario.ways.len(), &mut rng).into_iter().map(|index| scenario.ways[index]) {
            let name = way.name().to_owned();
            progress.say(&format!("{}, round {} of {}, {name}", scenario.name, round + 1, options.rounds));
            if let Entry::Vacant(absent) = results.absent.entry(name.clone()) {
                match once(&mut stage, scenario, way, &options).await {
                    Ok(mut of_way) => {
                        // What could not be read is no figure.
                        of_way.retain(|_, value| value.is_finite());
                        figures.insert(name, of_way);
                    }
                    Err(why) => {
                        absent.insert(why);
                    }
                }
            }
            progress.done += 1;
        }
        results.rounds.push(figures);
    }
    results
}

/// One way in one round.
async fn once(
    stage: &mut Stage,
    scenario: &Scenario,
    way: Way,
    options: &Options,
) -> Result<Figures, Absent> {
    let (time, times) = (options.time, if options.quick { 1 } else { 4 });
    Ok(match scenario.load {
        Load::Pgbench { clients, arguments } => {
            let target = stage.target(way, scenario.tls).await?;
            programs::pgbench(stage, &target, clients, arguments, time).await
        }
        Load::Script { clients, lines } => {
            let target = stage.target(way, scenario.tls).await?;
            programs::script(stage, &target, clients, lines, time).await
        }
        Load::CopyOut => {
            let target = stage.target(way, scenario.tls).await?;
            programs::copy_out(stage, &target, times).await
        }
        Load::CopyIn => {
            let target = stage.target(way, scenario.tls).await?;
            programs::copy_in(stage, &target, times).await
        }
        Load::Connects { clients } => {
            let target = stage.target(way, scenario.tls).await?;
            connects::steady(&target, clients, time).await
        }
        Load::Burst { sessions } => {
            let target = stage.target(way, scenario.tls).await?;
            connects::bursts(&target, sessions, time).await
        }
        Load::Sealed { clients } => sealed::sealed(stage, way, clients, time).await,
        Load::Calls => {
            let target = stage.target(way, scenario.tls).await?;
            programs::calls(stage, &target).await?
        }
        Load::Idle { sessions, active } => {
            let (sessions, active) = if options.quick { (1000, 200) } else { (sessions, active) };
            idle::idle(stage, (way, scenario.tls), sessions, active, time).await?
        }
        Load::Rotation => rotation::rotation(stage, time).await,
        Load::Start => start::start(stage, time).await,
    })
}

/// How far the run is: a line that is written over, where a terminal shows it.
#[derive(Clone, Copy)]
struct Progress {
    begun: Instant,
    done: u32,
    all: u32,
}

impl Progress {
    fn say(&self, what: &str) {
        let left = left(self.done, self.all, self.begun.elapsed());
        let left = left.map_or_else(String::new, |left| format!(", {} left", span(left)));
        let (begin, end) = if io::stderr().is_terminal() { ("\r\x1b[K", "") } else { ("", "\n") };
        let _ = write!(io::stderr(), "{begin}[{}/{}] {what}{left}{end}", self.done + 1, self.all);
    }
}
