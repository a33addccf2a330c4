//! What all programs do alike: prints a line for each step, keeps a pool as it is told. See ../README.md.

use std::env;
use std::error::Error;
use std::fmt::{Debug, Display};
use std::io::{self, Write};
use std::process;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub const POOL_SIZE: u32 = 4;
/// For a connection, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(120);
pub const BIG_ROWS: i32 = 100_000;
pub const BIG_VALUE: i32 = 16 << 20;
pub const COPIED: i32 = 10_000;

/// The one value of a statement's result, on a connection that is taken.
pub type Value<'a> = dyn FnMut(&str) -> Result<i64> + 'a;

pub trait Pool: Sync {
    /// Takes a connection of the pool, and gives it back behind `during`.
    fn with(&self, during: &mut dyn FnMut(&mut Value<'_>) -> Result) -> Result;
}

/// A step of the contract.
pub type Step<'a> = (&'static str, &'a dyn Fn() -> Result);

pub fn client() -> String {
    env::var("CLIENT").expect("CLIENT")
}

pub fn url() -> String {
    env::var("DATABASE_URL").expect("DATABASE_URL")
}

pub fn sleep() -> String {
    format!("SELECT pg_sleep(600) -- {}", client())
}

/// With the name of the client, of which there is one in each world.
pub fn is_sleeping() -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
         AND starts_with(query, '{}')",
        sleep()
    )
}

/// Does the steps, then keeps the pool.
pub fn run(steps: &[Step<'_>], pool: &impl Pool) {
    for (name, step) in steps {
        or_fail(name, step());
        say(&format!("ok {name}"));
    }
    use_all(pool);
    say("ok pool");
    let over = AtomicBool::new(false);
    let queries = AtomicU64::new(0);
    let mut commands = io::stdin().lines();
    thread::scope(|scope| {
        let mut workers = Vec::new();
        while let Some(Ok(command)) = commands.next() {
            match command.as_str() {
                "busy" => {
                    over.store(false, Ordering::SeqCst);
                    queries.store(0, Ordering::SeqCst);
                    let begun = &*Box::leak(Box::new(Barrier::new(POOL_SIZE as usize + 1)));
                    let work = || or_fail("busy", work(pool, begun, &over, &queries));
                    workers = (0..POOL_SIZE).map(|_| scope.spawn(work)).collect();
                    begun.wait();
                    say("ok busy");
                }
                "idle" => {
                    over.store(true, Ordering::SeqCst);
                    for worker in workers.drain(..) {
                        worker.join().expect("a worker that ends");
                    }
                    say(&format!("ok idle {}", queries.load(Ordering::SeqCst)));
                }
                "use" => {
                    use_all(pool);
                    say("ok use");
                }
                "end" => break,
                unknown => fail(unknown, "unknown command"),
            }
        }
    });
    say("ok end");
}

/// Uses the pool until it is over.
fn work(pool: &impl Pool, begun: &Barrier, over: &AtomicBool, queries: &AtomicU64) -> Result {
    let mut is_first = true;
    while !over.load(Ordering::SeqCst) {
        pool.with(&mut |value| expect(value("SELECT count(*) FROM t")?, 100))?;
        queries.fetch_add(1, Ordering::SeqCst);
        if is_first {
            begun.wait();
            is_first = false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Takes all connections of the pool at the same time.
fn use_all(pool: &impl Pool) {
    let together = Barrier::new(POOL_SIZE as usize);
    let work = || {
        pool.with(&mut |value| {
            together.wait();
            expect(value("SELECT count(*) FROM t")?, 100)?;
            together.wait();
            Ok(())
        })
    };
    thread::scope(|scope| {
        for _ in 0..POOL_SIZE {
            scope.spawn(|| or_fail("use", work()));
        }
    });
}

/// # Errors
/// Where they are not equal.
pub fn expect<T: PartialEq + Debug>(found: T, wanted: T) -> Result {
    if found == wanted { Ok(()) } else { Err(format!("{found:?} where {wanted:?} is right").into()) }
}

fn say(line: &str) {
    println!("{line}");
    io::stdout().flush().expect("stdout");
}

pub fn or_fail<T>(place: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| fail(place, &format!("{error} ({error:?})")))
}

/// Ends the program, whatever its threads do.
fn fail(place: &str, text: impl Display) -> ! {
    say(&format!("failed {place}: {}", text.to_string().replace('\n', " ")));
    process::exit(1)
}
