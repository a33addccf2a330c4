//! Credential files: readers that connect by themselves, through rotations, the end of a lease, a full disk and a drain.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, geteuid, prlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time;
use tokio_postgres::error::SqlState;

use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn, write_program};
use crate::support::say_skipped;
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::{BINARY, PATIENCE, pglease_with, rotate, until, until_revoked, user_of};

/// A `[[file]]` in JSON on the credentials of `db-app`, so that further keys can follow.
fn file(world: &World<'_>, path: &Path) -> String {
    let path = path.display().to_string();
    format!("[[file]]\npath = {path:?}\nvault_path = {:?}\nformat = \"json\"\n", world.vault_path("db-app"))
}

/// The same with where its credential is proven.
fn proven_file(world: &World<'_>, path: &Path) -> String {
    let upstream = world.servers.postgres.url(&world.database());
    format!("{}upstream = {upstream:?}\n", file(world, path))
}

/// What is in a file: never a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Read {
    username: String,
    password: String,
}

fn read(path: &Path) -> Read {
    let content: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let text = |key: &str| content[key].as_str().unwrap().to_owned();
    Read { username: text("username"), password: text("password") }
}

/// Logs in by itself; `false` where the credential is refused.
async fn log_in(world: &World<'_>, with: &Read) -> bool {
    let session = world.servers.postgres.connect_as(&world.database(), &with.username, &with.password).await;
    match session {
        Ok(session) => {
            assert_eq!(user_of(&session).await, with.username);
            true
        }
        Err(error) => {
            let code = error.code().cloned();
            let is_refusal = |code: &SqlState| {
                [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION].contains(code)
            };
            assert!(code.as_ref().is_some_and(is_refusal), "{error:?}");
            false
        }
    }
}

/// Whether a metric of the file is 1.
async fn is_on(pglease: &Pglease, metric: &str) -> bool {
    pglease.metric(metric, "db.json").await > 0.5
}

/// A reader, with what it knows.
struct Reader {
    path: PathBuf,
    inode: u64,
    known: Read,
}

impl Reader {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: fs::metadata(path).unwrap().ino(), known: read(path) }
    }

    /// Reads again what is another file than before.
    fn look(&mut self) {
        let inode = fs::metadata(&self.path).unwrap().ino();
        if inode != self.inode {
            *self = Self::new(&self.path);
        }
    }
}

#[tokio::test]
async fn readers_of_a_file_pass_two_rotations_and_the_end_of_a_lease() {
    let vault_role = VaultRole {
        default_ttl: "30s",
        max_ttl: "45s",
        revocation: Revocation::NoLogin,
        ..VaultRole::default()
    };
    let options = WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() };
    let world = World::shared(options).await;
    let path = world.folder().join("db.json");
    let pglease = pglease_with(&(world.settings() + &proven_file(&world, &path))).await;
    assert!(pglease.addresses().is_empty());

    let (mut watchful, mut careless) = (Reader::new(&path), Reader::new(&path));
    let (mut users, mut refused) = (BTreeSet::new(), 0);
    let (began, mut looked, mut slowest) = (time::Instant::now(), time::Instant::now(), Duration::ZERO);
    while users.len() < 3 || refused == 0 {
        assert!(began.elapsed() < PATIENCE, "{users:?}, {refused} refused:\n{}", pglease.lines().tail());
        slowest = slowest.max(looked.elapsed());
        looked = time::Instant::now();
        watchful.look();
        if log_in(&world, &watchful.known).await {
            users.insert(watchful.known.username.clone());
        } else {
            // The next is wanted ten seconds before: a machine that stands still for as long is nobody's fault.
            let stood_still = slowest.max(looked.elapsed()) > Duration::from_secs(3);
            assert!(stood_still, "{slowest:?}\n{}", pglease.lines().tail());
            until(async || read(&path) != watchful.known).await;
        }
        if !log_in(&world, &careless.known).await {
            refused += 1;
            until(async || read(&path) != careless.known).await;
            careless = Reader::new(&path);
        }
        time::sleep(Duration::from_millis(200)).await;
    }
    // The old one was kept alive to its end, not revoked when the file had the next.
    let released = pglease.wait_for_event("file.released", PATIENCE).await;
    assert_eq!(released["generation"], "g1");
    // A machine that stood still may hear of the end only from Vault.
    assert!(released["reason"] == "ended" || released["reason"] == "revoked", "{released}");
    assert!(!is_on(&pglease, "pglease_file_stale").await);

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert!(!path.exists());
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn file_shares_the_credential_of_its_route_and_goes_before_it() {
    let world = World::shared(WorldOptions::default()).await;
    let path = world.folder().join("db.json");
    fs::write(&path, "of a crash").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://localhost:{}/reload", listener.local_addr().unwrap().port());
    let on_change = format!("keep = \"0s\"\non_change = {{ url = {url:?}, timeout = \"5m\" }}\n");
    let settings = world.settings() + &world.route("db-app") + &file(&world, &path) + &on_change;
    let pglease = pglease_with(&settings).await;
    pglease.wait_for_event("file.left_over", PATIENCE).await;

    let session = pglease.connect("app").await.unwrap();
    let first = user_of(&session).await;
    drop(session);
    assert_eq!(read(&path).username, first);
    assert_eq!(world.leased_roles().await.len(), 1);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    // It takes the place of one that a reader may have read.
    asked(&listener).await;

    rotate(&pglease, &[]).await;
    asked(&listener).await;
    pglease.wait_for_events("file.reader_told", 2, PATIENCE).await;
    assert_ne!(read(&path).username, first);
    // With that `keep` nothing holds the one before.
    until(async || !world.living_roles().await.contains(&first)).await;
    let status = &pglease.status().await["files"][0];
    assert_eq!((status["state"].as_str(), status["generation"].as_str()), (Some("current"), Some("g2")));
    assert_eq!(status["on_change"]["told"], true);
    let said = pglease.run_command(&["status"]).await;
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains(&format!("file {} (json): current, g2 of ", path.display())), "{said}");

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    let lines = pglease.lines().all().join("\n");
    let at = |event: &str| {
        lines.rfind(&format!("\"event\":\"{event}\"")).unwrap_or_else(|| panic!("{event}:\n{lines}"))
    };
    assert!(at("file.removed") < at("lease.revoked"), "{lines}");
    assert!(!path.exists());
    until_revoked(&world, &pglease).await;
}

/// Answers one request.
async fn asked(listener: &TcpListener) {
    let answered = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n\r\n") {
            heard.push(stream.read_u8().await.unwrap());
        }
        assert!(heard.starts_with(b"POST /reload HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&heard));
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    };
    time::timeout(PATIENCE, answered).await.expect("the reader is told");
}

#[tokio::test]
async fn readers_are_told_by_a_signal_and_by_a_command() {
    let world = World::shared(WorldOptions::default()).await;
    let place = |name: &str| world.folder().join(name);
    // Found by the name of its program, which is no other process's of the machine.
    let name = format!("r{}{}", std::process::id(), world.group(""));
    let (reader, command) = (place(&name), place("command"));
    write_program(&reader, "#!/bin/sh\ntrap 'echo told' USR1\necho trapped\nwhile ! read line; do :; done\n");
    write_program(&command, "#!/bin/sh\ntest \"$1\" = '$HOME' && cat \"$PGLEASE_FILE_PATH\"\n");
    let signal = format!("on_change = {{ signal = \"SIGUSR1\", process = {name:?} }}\n");
    let words = [command.to_str().unwrap(), "$HOME"];
    let command = format!("on_change = {{ command = {words:?}, timeout = \"5m\" }}\n");
    let settings = world.settings()
        + &proven_file(&world, &place("signalled.json"))
        + &signal
        + &proven_file(&world, &place("commanded.json"))
        + &command
        + "[drain]\naccept_for = \"1h\"\ndeadline = \"1h\"\n";
    let process = Process::spawn_with_input(&Spawn {
        program: &reader,
        arguments: &[],
        environment: &[],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    });
    let said = async |word: &str| {
        let found = |lines: &[String]| lines.iter().any(|line| line == word).then_some(());
        process
            .lines()
            .wait_for(PATIENCE, found)
            .await
            .unwrap_or_else(|| panic!("{word}: {}", process.lines().tail()));
    };
    said("trapped").await;
    let pglease = pglease_with(&settings).await;
    rotate(&pglease, &[]).await;
    said("told").await;
    pglease.wait_for_events("file.reader_told", 2, PATIENCE).await;
    let mut kinds: Vec<_> =
        pglease.events("file.reader_told").iter().map(|told| told["kind"].to_string()).collect();
    kinds.sort();
    assert_eq!(kinds, ["\"command\"", "\"signal\""]);
    let output = pglease.wait_for_event("file.command_output", PATIENCE).await;
    let Read { username, password } = read(&place("commanded.json"));
    let output = output["output"].as_str().unwrap();
    assert!(output.contains(&username) && output.contains("***") && !output.contains(&password), "{output}");
    // It lives: nothing but the signal that it handles was sent.
    process.tell("");
    assert!(process.wait_exit(PATIENCE).await.success());

    // Files are there for as long as new sessions would be taken.
    pglease.sigterm();
    pglease.wait_for_event("drain.start", PATIENCE).await;
    assert!(log_in(&world, &read(&place("commanded.json"))).await);
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    assert!(!place("commanded.json").exists() && !place("signalled.json").exists());
    until_revoked(&world, &pglease).await;
}

#[tokio::test]
async fn full_disk_leaves_the_old_file_raises_an_alarm_and_holds_no_rotation_up() {
    let world = World::shared(WorldOptions::default()).await;
    let path = world.folder().join("db.json");
    let settings = world.settings() + &proven_file(&world, &path);
    // What a write past the limit sends would end it: then the write fails, as on a full disk.
    let full = "trap '' XFSZ; ulimit -S -f 0";
    let pglease = Pglease::start_after(full, Path::new(BINARY), &settings).await;
    let process = pglease.process().pid();
    let limit = |bytes| {
        let limit = prlimit(Some(process), Resource::Fsize, Rlimit { current: bytes, maximum: None });
        limit.unwrap();
    };
    // The credential is there, and proven: all that is missing is the file.
    pglease.wait_for_event("file.write_failed", PATIENCE).await;
    until(async || pglease.status().await["chains"][0]["generations"][0]["state"] == "current").await;
    assert_eq!(pglease.get("/startup").await.0, 503);
    assert_eq!(pglease.get("/readyz").await.0, 503);
    assert!(!path.exists());
    limit(None);
    pglease.wait_ready().await;
    assert_eq!(pglease.get("/readyz").await.0, 200);
    let first = read(&path);

    limit(Some(0));
    let failures = pglease.events("file.write_failed").len();
    rotate(&pglease, &[]).await;
    let failed = pglease.wait_for_events("file.write_failed", failures + 1, PATIENCE).await;
    assert!(failed["error"].as_str().unwrap().contains("File too large"), "{failed}");
    assert_eq!(read(&path), first);
    assert!(log_in(&world, &first).await);
    until(async || is_on(&pglease, "pglease_file_stale").await).await;
    assert_eq!(pglease.status().await["files"][0]["state"], "stale");
    rotate(&pglease, &[]).await;

    limit(None);
    until(async || read(&path) != first).await;
    until(async || pglease.status().await["files"][0]["generation"] == "g3").await;
    assert!(log_in(&world, &read(&path)).await);
    until(async || !is_on(&pglease, "pglease_file_stale").await).await;
    let left = fs::read_dir(world.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().ends_with(".pglease")));
}

#[tokio::test]
async fn volume_without_space_leaves_the_old_file_until_there_is_some() {
    let world = World::shared(WorldOptions::default()).await;
    let volume = world.folder().join("volume");
    fs::create_dir(&volume).unwrap();
    // A page for the file and one for the next.
    let mount = format!("mount -t tmpfs -o size=8k none {}", volume.display());
    let mounted = Command::new("unshare").args(["--mount", "sh", "-c", &mount]).output();
    // It is looked into by way of the process, which is for root alone to do.
    if !geteuid().is_root() || !mounted.is_ok_and(|mounted| mounted.status.success()) {
        say_skipped("files on a full volume", "no mount namespace of one's own");
        return;
    }
    let program = world.folder().join("pglease-on-volume");
    let inner = format!("{mount} && exec {BINARY} \"$@\"");
    write_program(&program, &format!("#!/bin/sh\nexec unshare --mount sh -c '{inner}' pglease \"$@\"\n"));
    let path = volume.join("db.json");
    let pglease = Pglease::start(&program, &(world.settings() + &proven_file(&world, &path))).await;
    pglease.wait_ready().await;
    let root = PathBuf::from(format!("/proc/{}/root", pglease.process().pid().as_raw_nonzero()));
    let seen = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let (path, filler) = (seen(&path), seen(&volume.join("filler")));

    let first = read(&path);
    fs::write(&filler, [0; 8192]).unwrap_err();
    rotate(&pglease, &[]).await;
    let failed = pglease.wait_for_event("file.write_failed", PATIENCE).await;
    assert!(failed["error"].as_str().unwrap().contains("No space left on device"), "{failed}");
    assert_eq!(read(&path), first);
    assert!(log_in(&world, &first).await);
    fs::remove_file(&filler).unwrap();
    until(async || read(&path) != first).await;
    assert!(log_in(&world, &read(&path)).await);

    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until_revoked(&world, &pglease).await;
}
