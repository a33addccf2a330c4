//! The parts of a session that are computed, one at a time: what the scanner, a startup, SCRAM and the schedule of
//! leases take. `make bench-micro`.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a table for people; what fails here fails the bench"
)]

#[path = "measure/spread.rs"]
#[expect(dead_code, reason = "the bench `performance` uses other parts of it")]
mod spread;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use pglease::micro::{Scanner, ScramKeys, startup};
use pglease::simulation::{Rules, live};
use tokio::time::Instant;

use spread::Spread;

fn main() {
    // target/tmp, and what is beside it: for `make bench-doc`.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("micro.md"), table()).unwrap();
}

/// Measures each, and says it as soon as it is there.
fn table() -> String {
    let mut text = String::new();
    let mut say = |line: String| {
        println!("{line}");
        text += &line;
        text.push('\n');
    };
    say(format!("| what | each: median (least–most of {BATCHES} batches) |\n| --- | --- |"));
    let mut row = |what: &str, once: &mut dyn FnMut()| say(format!("| {what} | {} ns |", measured(once)));
    let [columns, one_row, end] = ANSWER;
    for (what, answer) in [
        ("scanner: `SELECT 1`, question and answer", ANSWER.concat()),
        ("scanner: the same of 1,000 rows, 12 KiB", [columns, &one_row.repeat(1000), end].concat()),
    ] {
        let mut scanner = Scanner::default();
        row(what, &mut || assert!(scanner.round_trip(black_box(QUESTION), black_box(&answer))));
    }
    row("startup: read, and written anew for upstream", &mut || {
        black_box(startup(black_box(STARTUP)).unwrap());
    });
    row("SCRAM: keys of a password, once for each credential", &mut || {
        black_box(ScramKeys::derive(black_box("A1a-x9Zs0aUgQm3oGcVf")).unwrap());
    });
    let keys = ScramKeys::derive("A1a-x9Zs0aUgQm3oGcVf").unwrap();
    row("SCRAM: a login with keys that are there", &mut || {
        black_box(keys.prove().unwrap());
    });
    row("schedule: a day of an instance on leases of 1 h", &mut || {
        let mut requests = 0;
        live(&RULES, Duration::ZERO, DAY, black_box(1), |_, _| requests += 1);
        assert!(requests > 24);
    });
    text
}

/// Nanoseconds each, in batches that are long enough for a clock to tell apart.
fn measured(once: &mut dyn FnMut()) -> Spread {
    let mut batch = |count: u32| {
        let begun = Instant::now();
        (0..count).for_each(|_| once());
        begun.elapsed()
    };
    let mut count = 1;
    while batch(count) < BATCH {
        count *= 2;
    }
    let each = (0..BATCHES).map(|_| batch(count).as_secs_f64() * 1e9 / f64::from(count));
    Spread::of(each).unwrap()
}

const BATCHES: u32 = 15;
const BATCH: Duration = Duration::from_millis(20);

const QUESTION: &[u8] = b"Q\0\0\0\x0dSELECT 1\0";

/// Of `SELECT 1`: its columns, its row, its end.
const ANSWER: [&[u8]; 3] = [
    b"T\0\0\0\x21\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    b"D\0\0\0\x0b\0\x01\0\0\0\x011",
    b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I",
];

const STARTUP: &[u8] = b"\0\0\0\x5a\0\x03\0\0user\0app\0database\0wizard\0application_name\0web\0\
    client_encoding\0UTF8\0DateStyle\0ISO\0\0";

const RULES: Rules = Rules {
    lease: (Duration::from_hours(1), DAY),
    token: (Duration::from_hours(1), Duration::from_hours(24 * 32)),
    jwt: DAY,
    renewal_needs_jwt: true,
};

const DAY: Duration = Duration::from_hours(24);
