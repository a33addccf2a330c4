//! The proof by difference: the same exchanges with PostgreSQL directly and through pglease, compared message by
//! message. What may differ is in `differences.rs`, and nowhere else.

mod say;
mod script;
mod play;
mod seen;
mod differences;
mod ground;
mod scripts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use differences::{ALLOWED, Cause, Difference, comparable};
use ground::Ground;
use play::{Leg, Pieces};
use script::{Names, Script};

type Scripts = fn(&Names) -> Vec<Script>;

const FAMILIES: &[Scripts] = &[
    scripts::startup::scripts,
    scripts::parameters::scripts,
    scripts::authentication::scripts,
    scripts::tls::scripts,
    scripts::simple::scripts,
    scripts::extended::scripts,
    scripts::values::scripts,
    scripts::transactions::scripts,
    scripts::copy::scripts,
    scripts::others::calls,
    scripts::others::notifications,
    scripts::others::cancels,
    scripts::ends::scripts,
    scripts::replication::scripts,
];

/// A server, and pglease in front of it.
#[derive(Clone, Copy)]
struct Legs {
    direct: &'static Leg,
    through: &'static Leg,
}

/// Plays each script between clients and a server that trust each other.
async fn compare(scripts: Scripts) {
    let ground = Ground::shared().await;
    let legs = Legs { direct: &ground.direct, through: &ground.through };
    compare_on(legs, scripts, |_| true).await;
}

/// Plays the scripts that `chosen` chooses directly, and through pglease in several ways.
async fn compare_on(legs: Legs, scripts: Scripts, chosen: impl Fn(&Script) -> bool) {
    // Of all families together: more would only wait for each other.
    static TURNS: Semaphore = Semaphore::const_new(8);

    let (direct, through) = (scripts(&legs.direct.names), scripts(&legs.through.names));
    assert_eq!(direct.len(), through.len());
    let mut comparing = JoinSet::new();
    for (theirs, ours) in direct.into_iter().zip(through).filter(|(script, _)| chosen(script)) {
        comparing.spawn(async move {
            let _turn = TURNS.acquire().await.unwrap();
            compare_one(legs, &theirs, &ours).await
        });
    }
    let differing: Vec<_> = comparing.join_all().await.into_iter().flatten().collect();
    assert!(differing.is_empty(), "{} differ:\n\n{}", differing.len(), differing.join("\n"));
}

/// By name, one that is played.
static PLAYED: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>> = Mutex::new(BTreeMap::new());

/// What differs, for people.
async fn compare_one(legs: Legs, theirs: &Script, ours: &Script) -> Option<String> {
    let heard = async |leg: &Leg, script: &Script, pieces, is_through| {
        comparable(&leg.play(script, pieces).await, script, is_through, &leg.names)
    };
    // It has rows, locks and channels of its own, but on every leg the same.
    let alone = Arc::clone(PLAYED.lock().unwrap().entry(ours.name.clone()).or_default());
    let _alone = alone.lock().await;
    let expected = heard(legs.direct, theirs, Pieces::Whole, false).await;
    // Who is asked for a password cannot say everything at once.
    let ways =
        ways(ours).into_iter().filter(|pieces| legs.through.password.is_none() || *pieces != Pieces::Merged);
    for pieces in ways {
        let found = heard(legs.through, ours, pieces, true).await;
        if found != expected {
            return Some(side_by_side(&format!("{} ({pieces:?})", ours.name), &expected, &found));
        }
    }
    None
}

/// In what pieces a script is played through pglease: in those that it came in and, if it means the same then, in
/// others. Of many that are alike each is played in one of the ways.
fn ways(script: &Script) -> Vec<Pieces> {
    let mut dice = fastrand::Rng::with_seed(script.seed());
    let mut others = Vec::new();
    if script.may_be_cut {
        // Many bytes one by one take long.
        let is_short = script.said().map(<[u8]>::len).sum::<usize>() < 400;
        others.extend([Pieces::Cut, if is_short { Pieces::Bytes } else { Pieces::Cut }]);
    }
    if script.may_be_merged {
        others.push(Pieces::Merged);
    }
    let other = dice.choice(others);
    if script.is_one_of_many && dice.bool() {
        return vec![other.unwrap_or(Pieces::Whole)];
    }
    [Some(Pieces::Whole), other.filter(|_| !script.is_one_of_many)].into_iter().flatten().collect()
}

fn side_by_side(name: &str, direct: &[String], through: &[String]) -> String {
    let mut out = format!("{name}\n  = both, - direct, + through\n");
    let (mut theirs, mut ours) = (direct, through);
    while let (Some(their), Some(our)) = (theirs.first(), ours.first()) {
        let (skipped_theirs, skipped_ours) =
            (ours.iter().position(|line| line == their), theirs.iter().position(|line| line == our));
        let (mark, shown) = match (skipped_theirs, skipped_ours) {
            (Some(0), _) => ('=', their),
            // What is not in the other one at all, or comes in it later than the other way round.
            (None, _) => ('-', their),
            (Some(theirs), Some(ours)) if theirs > ours => ('-', their),
            (Some(_), _) => ('+', our),
        };
        out += &line(mark, shown);
        theirs = &theirs[usize::from(mark != '+')..];
        ours = &ours[usize::from(mark != '-')..];
    }
    out.extend(theirs.iter().map(|rest| line('-', rest)));
    out.extend(ours.iter().map(|rest| line('+', rest)));
    out
}

fn line(mark: char, text: &str) -> String {
    let (shown, dots) = text.char_indices().nth(400).map_or((text, ""), |(end, _)| (&text[..end], "…"));
    format!("  {mark} {shown}{dots}\n")
}

#[tokio::test]
async fn startups_are_answered_alike() {
    compare(scripts::startup::scripts).await;
}

#[tokio::test]
async fn startup_parameters_mean_the_same() {
    compare(scripts::parameters::scripts).await;
}

#[tokio::test]
async fn proofs_are_asked_for_and_judged_alike() {
    let ground = Ground::shared().await;
    let legs = Legs { direct: &ground.direct_asked, through: &ground.through_asked };
    compare_on(legs, scripts::authentication::scripts, |_| true).await;
}

#[tokio::test]
async fn tls_is_asked_for_and_begun_alike() {
    let ground = Ground::shared().await;
    let legs = Legs { direct: &ground.direct_asked, through: &ground.through_asked };
    compare_on(legs, scripts::tls::scripts, |_| true).await;
}

/// Of each family, on other ways to pglease.
async fn compare_some_on(legs: Legs) {
    for family in [
        scripts::simple::scripts,
        scripts::extended::scripts,
        scripts::values::scripts,
        scripts::transactions::scripts,
        scripts::copy::scripts,
        scripts::others::calls,
        scripts::others::notifications,
        scripts::others::cancels,
        scripts::ends::scripts,
    ] {
        compare_on(legs, family, |script| script.seed().is_multiple_of(8)).await;
    }
}

/// Both legs are over a socket of that kind, so what comes before a session is compared as well.
#[tokio::test]
async fn sessions_over_a_unix_socket_are_as_others_are() {
    let ground = Ground::shared().await;
    let legs = Legs { direct: &ground.direct, through: &ground.through_unix };
    for (family, part) in [
        (scripts::startup::scripts as Scripts, 4),
        (scripts::parameters::scripts, 8),
        (scripts::replication::scripts, 2),
    ] {
        compare_on(legs, family, |script| script.seed().is_multiple_of(part)).await;
    }
    compare_some_on(legs).await;
}

#[tokio::test]
async fn sessions_over_tls_are_as_others_are() {
    let ground = Ground::shared().await;
    compare_some_on(Legs { direct: &ground.direct, through: &ground.through_tls }).await;
}

#[tokio::test]
async fn simple_queries_are_answered_alike() {
    compare(scripts::simple::scripts).await;
}

#[tokio::test]
async fn extended_queries_are_answered_alike() {
    compare(scripts::extended::scripts).await;
}

#[tokio::test]
async fn values_and_bodies_of_extended_queries_are_answered_alike() {
    compare(scripts::values::scripts).await;
}

#[tokio::test]
async fn transactions_go_alike() {
    compare(scripts::transactions::scripts).await;
}

#[tokio::test]
async fn copies_go_alike() {
    compare(scripts::copy::scripts).await;
}

#[tokio::test]
async fn function_calls_are_answered_alike() {
    compare(scripts::others::calls).await;
}

#[tokio::test]
async fn notifications_come_alike() {
    compare(scripts::others::notifications).await;
}

#[tokio::test]
async fn cancels_do_alike() {
    compare(scripts::others::cancels).await;
}

#[tokio::test]
async fn sessions_end_alike() {
    compare(scripts::ends::scripts).await;
}

#[tokio::test]
async fn replication_commands_are_answered_alike() {
    compare(scripts::replication::scripts).await;
}

#[test]
fn there_are_hundreds_of_exchanges_each_with_a_name_of_its_own() {
    let names = Names { user: "app".to_owned(), database: "app".to_owned(), major: 14 };
    let (mut exchanges, mut plays) = (0, 0);
    for family in FAMILIES {
        let scripts = family(&names);
        exchanges += scripts.len();
        plays += scripts.iter().map(|script| ways(script).len()).sum::<usize>();
        let mut seen = BTreeSet::new();
        for Script { name, .. } in &scripts {
            assert!(seen.insert(name), "two are named {name:?}");
        }
    }
    assert!(exchanges >= 800, "{exchanges} exchanges");
    assert!(plays >= exchanges + 300, "{plays} times {exchanges} exchanges");
}

#[test]
fn allowed_differences_are_documented() {
    let documented = include_str!("../../../docs/differences.md");
    for cause in [Cause::Pglease, Cause::Session] {
        let rows = ALLOWED.iter().filter(|difference| difference.cause == cause);
        let rows = rows.map(|Difference { name, what, why, .. }| format!("| {name} | {what} | {why} |\n"));
        let table = "| difference | what it is | why |\n| --- | --- | --- |\n".to_owned()
            + &rows.collect::<Vec<_>>().concat();
        assert!(documented.contains(&table), "docs/differences.md should have:\n\n{table}");
    }
}
