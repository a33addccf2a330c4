//! The proof by difference: the same exchanges with PostgreSQL directly and through pglease, compared message by
//! message. What may differ is in `differences.rs`, and nowhere else.

mod say;
mod script;
mod play;
mod seen;
mod differences;
mod ground;
mod scripts;

use std::collections::BTreeSet;

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

/// Plays each script directly, and through pglease in several ways.
async fn compare(scripts: Scripts) {
    // Of all families together: more would only wait for each other.
    static TURNS: Semaphore = Semaphore::const_new(8);

    let ground = Ground::shared().await;
    let (direct, through) = (scripts(&ground.direct.names), scripts(&ground.through.names));
    assert_eq!(direct.len(), through.len());
    let mut comparing = JoinSet::new();
    for (theirs, ours) in direct.into_iter().zip(through) {
        comparing.spawn(async move {
            let _turn = TURNS.acquire().await.unwrap();
            compare_one(ground, &theirs, &ours).await
        });
    }
    let differing: Vec<_> = comparing.join_all().await.into_iter().flatten().collect();
    assert!(differing.is_empty(), "{} differ:\n\n{}", differing.len(), differing.join("\n"));
}

/// What differs, for people.
async fn compare_one(ground: &Ground, theirs: &Script, ours: &Script) -> Vec<String> {
    let heard = async |leg: &Leg, script: &Script, pieces, is_through| {
        comparable(&leg.play(script, pieces).await, &script.name, is_through, &leg.names)
    };
    let expected = heard(&ground.direct, theirs, Pieces::Whole, false).await;
    let mut differing = Vec::new();
    for pieces in ways(ours) {
        let found = heard(&ground.through, ours, pieces, true).await;
        if found != expected {
            differing.push(side_by_side(&format!("{} ({pieces:?})", ours.name), &expected, &found));
            break;
        }
    }
    differing
}

/// In what pieces a script is played through pglease.
fn ways(script: &Script) -> Vec<Pieces> {
    let mut ways = vec![Pieces::Whole];
    if script.may_be_cut {
        // Many bytes one by one take long.
        let len = script.said().map(<[u8]>::len).sum::<usize>();
        ways.push(if len < 400 && len.is_multiple_of(3) { Pieces::Bytes } else { Pieces::Cut });
    }
    if script.may_be_merged {
        ways.push(Pieces::Merged);
    }
    ways
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
    assert!(plays >= 2 * exchanges, "{plays} times {exchanges} exchanges");
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
