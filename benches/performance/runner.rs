//! Scenario by scenario, round by round, way by way.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, IsTerminal, Write};

use fastrand::Rng;
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
use super::{connects, idle, programs, rotation, start};

/// Measures what is asked for and not there yet, and prints all of it.
pub(crate) async fn run(options: &Options) {
    let chosen: Vec<_> = chosen(options).collect();
    let kept = Kept::of(options.quick);
    let build = kept::build();
    let short = if options.quick { ", a short run" } else { "" };
    let under = format!("{} rounds of {} s{short}", options.rounds, options.time.as_secs_f64());
    let is_there = |scenario: &Scenario| {
        let results = kept.read(scenario.name);
        results.is_some_and(|results| results.under == under && results.build == build)
    };
    let (there, missing): (Vec<&Scenario>, Vec<_>) =
        chosen.iter().partition(|scenario| !options.again && is_there(scenario));
    println!("{} scenarios, {under}, in random order (seed {}).", chosen.len(), options.seed);
    for scenario in &there {
        println!("{}: measured already, of this build (--again measures it again)", scenario.name);
    }

    if !missing.is_empty() {
        let mut stage = Stage::set_up().await;
        let mut rng = Rng::with_seed(options.seed);
        let order = shuffled(missing.len(), &mut rng);
        let all: u32 = missing.iter().map(|scenario| parts(scenario, options)).sum();
        let mut progress = Progress { begun: Instant::now(), done: 0, all };
        for scenario in order.into_iter().map(|index| missing[index]) {
            let frame = Results {
                name: scenario.name.to_owned(),
                what: scenario.what.to_owned(),
                under: under.clone(),
                build: build.clone(),
                ..Results::default()
            };
            let results = measure(&mut stage, scenario, options, frame, &mut rng, &mut progress).await;
            kept.write(&results);
            stage.clear();
        }
        progress.end();
    }
    report(&kept, &chosen);
}

fn report(kept: &Kept, chosen: &[&Scenario]) {
    let all: budgets::All = chosen
        .iter()
        .filter_map(|scenario| Some((scenario.name.to_owned(), kept.read(scenario.name)?)))
        .collect();
    let tables = chosen.iter().filter_map(|scenario| all.get(scenario.name)).map(table);
    let text = tables.collect::<Vec<_>>().join("\n") + "\n### Budgets\n\n" + &budgets::table(&all);
    println!("\n{text}\nTables, figures and plots are in {}.", kept.folder.display());
    kept.write_file("report.md", &text);
}

fn parts(scenario: &Scenario, options: &Options) -> u32 {
    options.rounds * u32::try_from(scenario.ways.len()).unwrap_or(1)
}

async fn measure(
    stage: &mut Stage,
    scenario: &Scenario,
    options: &Options,
    mut results: Results,
    rng: &mut Rng,
    progress: &mut Progress,
) -> Results {
    results.ways = scenario.ways.iter().map(|way| way.name().to_owned()).collect();
    for round in 0..options.rounds {
        let mut figures = BTreeMap::new();
        for way in shuffled(scenario.ways.len(), rng).into_iter().map(|index| scenario.ways[index]) {
            let name = way.name().to_owned();
            progress.say(&format!("{}, round {} of {}, {name}", scenario.name, round + 1, options.rounds));
            if let Entry::Vacant(absent) = results.absent.entry(name.clone()) {
                match once(stage, scenario, way, options).await {
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
        Load::Calls => {
            let target = stage.target(way, scenario.tls).await?;
            programs::calls(stage, &target).await?
        }
        Load::Idle { sessions, active } => {
            let (sessions, active) = if options.quick { (1000, 200) } else { (sessions, active) };
            idle::idle(stage, way, sessions, active, time).await?
        }
        Load::Rotation => rotation::rotation(stage, time).await,
        Load::Start => start::start(stage).await,
    })
}

/// A line that is written over, where a terminal shows it.
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

    fn end(&self) {
        let _ = writeln!(io::stderr(), "\nmeasured in {}", span(self.begun.elapsed()));
    }
}
