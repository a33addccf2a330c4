//! `make demo` and `make up`: an application without a password, and its credentials coming and going under it.
//!
//! Everything is real but the Kubernetes API server, which a responder in this process stands for. `demo` runs an
//! application for 45 s, stops pglease and looks what is left; `demo up` stays until Ctrl-C.

#![expect(clippy::expect_used, reason = "what fails here fails the demo")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the tests use other parts of it")]
mod support;

mod application;
mod progress;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time;
use tokio_util::sync::CancellationToken;

use application::Application;
use progress::Progress;
use support::pglease::Pglease;
use support::world::{VaultRole, World, WorldOptions};
use support::{Servers, process};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let stop = CancellationToken::new();
    let stays = std::env::args().nth(1).is_some_and(|word| word == "up");
    let status = tokio::select! {
        biased;
        () = interrupted(&stop, if stays { 2 } else { 1 }) => ExitCode::from(130),
        status = async { if stays { up(&stop).await } else { demo().await } } => status,
    };
    // What a dropped `up` or `demo` has left goes now. Both have done so themselves where they came to their end.
    process::finish();
    status
}

/// What the demo proves, or fails to.
#[derive(Debug)]
struct Verdict {
    queries: u64,
    /// Errors and lost connections that the application saw.
    failed: u64,
    rotations: f64,
    users: usize,
    /// Leased roles that can log in after the end of pglease.
    roles_left: usize,
    exited_well: bool,
}

impl Verdict {
    fn holds(&self) -> bool {
        self.failed == 0 && self.rotations >= 1.0 && self.roles_left == 0 && self.exited_well
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { queries, failed, rotations, users, roles_left, exited_well: _ } = self;
        write!(
            f,
            "demo: {queries} queries, {failed} failed, {rotations:.0} rotations, {users} users, {roles_left} roles left"
        )
    }
}

async fn demo() -> ExitCode {
    say(DEMO);
    let verdict = on_stage(async |world, pglease| {
        let url = pglease.database_url(&world.database());
        say(&format!("application    {url}\n"));
        let application = Application::start(&url);
        let mut progress = Progress::new(world, pglease);
        let _ = time::timeout(RUN, progress.follow(&application)).await;
        // Its sessions end first: none is to be lost to the end of pglease.
        let tally = application.stop().await;
        for error in tally.errors() {
            say(&format!("       the application saw: {error}"));
        }

        say("\nThe application has ended. Now pglease is told to (SIGTERM), and revokes what it holds.\n");
        let rotations = pglease.metric("pglease_rotations_total", "result=\"ok\"").await;
        let exited_well = end(pglease, &mut progress).await;
        Verdict {
            queries: tally.queries(),
            failed: tally.failed(),
            rotations,
            users: tally.users(),
            roles_left: roles_left(world).await,
            exited_well,
        }
    })
    .await;
    process::finish();
    say(&verdict.to_string());
    if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn up(stop: &CancellationToken) -> ExitCode {
    say(UP);
    let is_clean = on_stage(async |world, pglease| {
        let url = pglease.database_url(&world.database());
        say(&format!(
            "DATABASE_URL={url}\npsql '{url}'\n\n\
             Without a psql of your own: {}/psql\n\
             Tables t and visits are there to use; {} has the figures. Ctrl-C ends it all.\n",
            world.servers.postgres.bin().display(),
            pglease.http_url("/metrics")
        ));
        let mut progress = Progress::new(world, pglease);
        stop.run_until_cancelled(progress.follow_log()).await;
        end(pglease, &mut progress).await && roles_left(world).await == 0
    })
    .await;
    process::finish();
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Has `act` play on servers that are set up, with a pglease that has its first credential.
async fn on_stage<T>(act: impl AsyncFnOnce(&World<'_>, &Pglease) -> T) -> T {
    let servers = Servers::start().await;
    let vault_role =
        VaultRole { default_ttl: "10s", max_ttl: "25s", groups: &["app_rw"], ..VaultRole::default() };
    let options = WorldOptions {
        is_alone: true,
        vault_roles: vec![vault_role],
        token_ttl: "20s",
        ..WorldOptions::default()
    };
    let world = World::create(&servers, options).await;
    say(&format!(
        "PostgreSQL {}  127.0.0.1:{}, database app; OpenBao alone knows the password of vault_admin\n\
         OpenBao        {}, {}: 10 s, at most 25 s, then NOLOGIN",
        servers.postgres.major(),
        servers.postgres.port(),
        servers.openbao.address(),
        world.vault_path("db-app"),
    ));

    let settings = format!(
        "{}{}database = {:?}\nat_lease_end = \"leave\"\n",
        world.settings_with("info", &world.servers.openbao.address(), ""),
        world.route("db-app"),
        world.database()
    );
    let pglease = Pglease::start(&binary(), &settings).await;
    pglease.wait_ready().await;
    say(&format!("pglease        localhost:{}\n", pglease.port()));
    act(&world, &pglease).await
}

/// Ends pglease as the kubelet does; false unless it says that all went well.
async fn end(pglease: &Pglease, progress: &mut Progress<'_>) -> bool {
    pglease.sigterm();
    let status = pglease.wait_exit(Duration::from_secs(30)).await;
    progress.tell_rest();
    say(&format!("pglease        {status}"));
    status.success()
}

/// The proof in the server's catalogue. OpenBao accepts a revocation before it has done it.
async fn roles_left(world: &World<'_>) -> usize {
    for _ in 0..100 {
        if world.living_roles().await.is_empty() {
            break;
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    say("pg_roles       of the leased roles:");
    for (role, can_login) in world.leased_roles().await {
        say(&format!(
            "               {role}  {}",
            if can_login { "CAN STILL LOG IN" } else { "cannot log in" }
        ));
    }
    world.living_roles().await.len()
}

/// The program that was built together with this one.
fn binary() -> std::path::PathBuf {
    let demo = std::env::current_exe().expect("path of this program");
    let binary = demo.ancestors().nth(2).expect("target/debug/examples").join("pglease");
    assert!(binary.exists(), "{} is missing: run `make demo`", binary.display());
    binary
}

/// The `last` Ctrl-C or SIGTERM; the first one cancels `stop`.
async fn interrupted(stop: &CancellationToken, last: usize) {
    let mut terminate = signal(SignalKind::terminate()).expect("handler of SIGTERM");
    let mut interrupt = signal(SignalKind::interrupt()).expect("handler of SIGINT");
    for _ in 0..last {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    }
}

/// A line for the person. Who closes the pipe (`| head`) has read enough.
fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// How long the application runs: a lease of 25 s ends in it for sure, with a successor before and after.
const RUN: Duration = Duration::from_secs(45);

const DEMO: &str = "\
pglease demo. For 45 s an application without a password talks to PostgreSQL through pglease: a session that
stays, a client that reconnects every 100 ms, a pool of four under load. pglease leases a database user from
OpenBao for it, renews lease and token, and replaces the user before its 25 s are over. One line a second tells
how things stand, the lines in between what pglease does. At the end no leased user may be able to log in.
";

const UP: &str = "\
pglease up. PostgreSQL and OpenBao run on free ports, pglease beside them: connect to it without a password.
It leases a database user from OpenBao, renews lease and token, and replaces the user before its 25 s are over:
sessions stay, new ones get the new user (SELECT current_user). What pglease does is told as it happens.
";
