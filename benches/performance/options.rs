//! What is asked of the bench.

use std::time::Duration;

use clap::{Arg, ArgAction, Command, value_parser};

#[derive(Debug)]
pub(crate) struct Options {
    /// Parts of names of scenarios; all of them where there is none.
    pub(crate) names: Vec<String>,
    /// Fewer scenarios, of less.
    pub(crate) quick: bool,
    pub(crate) rounds: u32,
    /// Of one way in one round.
    pub(crate) time: Duration,
    pub(crate) seed: u64,
    /// Measures what is there already.
    pub(crate) again: bool,
    pub(crate) task: Task,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Measure,
    /// Names the scenarios.
    List,
    /// Fills the page with what is there.
    Fill,
}

impl Options {
    pub(crate) fn parse() -> Self {
        let flag = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
        };
        let command = Command::new("make bench")
            .about("pglease beside no proxy, HAProxy and PgBouncer")
            .arg(Arg::new("names").num_args(0..).help("parts of names of scenarios; all of them without"))
            .arg(flag("quick", "fewer scenarios, of less: under 3 minutes"))
            .arg(
                Arg::new("rounds")
                    .long("rounds")
                    .value_parser(value_parser!(u32).range(1..))
                    .help("how many; 5, quick 3"),
            )
            .arg(
                Arg::new("seconds")
                    .long("seconds")
                    .value_parser(value_parser!(f64))
                    .help("of one way in one round; 3, quick 0.5"),
            )
            .arg(
                Arg::new("seed")
                    .long("seed")
                    .value_parser(value_parser!(u64))
                    .help("of the order; else a random one"),
            )
            .arg(flag("again", "measures what is there already, too"))
            .arg(flag("list", "names the scenarios and measures none"))
            .arg(flag("doc", "fills docs/performance.md with what is in target/bench and measures nothing"))
            // What cargo says to each bench.
            .arg(flag("bench", "").hide(true));
        let matches = command.get_matches();
        let quick = matches.get_flag("quick");
        let seconds = matches.get_one::<f64>("seconds").copied().unwrap_or(if quick { 0.5 } else { 3.0 });
        Self {
            names: matches.get_many::<String>("names").into_iter().flatten().cloned().collect(),
            quick,
            rounds: matches.get_one("rounds").copied().unwrap_or(if quick { 3 } else { 5 }),
            time: Duration::from_secs_f64(seconds.clamp(0.1, 3600.0)),
            seed: matches.get_one("seed").copied().unwrap_or_else(|| fastrand::u64(..1_000_000)),
            again: matches.get_flag("again"),
            task: match (matches.get_flag("list"), matches.get_flag("doc")) {
                (true, _) => Task::List,
                (_, true) => Task::Fill,
                _ => Task::Measure,
            },
        }
    }
}
