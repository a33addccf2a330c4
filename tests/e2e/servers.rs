//! The servers of the tests themselves.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use reqwest::Method;
use rustix::process::Pid;
use serde_json::{Value, json};
use tokio::time;

use crate::support::gate::Gate;
use crate::support::tokenreview::{Answer, TokenReview};
use crate::support::world::{Revocation, VaultRole, World, WorldOptions};
use crate::support::{HELD, Servers, env, http_client};
use crate::until;

#[tokio::test]
async fn leased_credential_logs_in_until_its_token_is_revoked() {
    let vault_roles = vec![
        VaultRole::default(),
        VaultRole {
            name: "db-drop",
            revocation: Revocation::Drop,
            groups: &["app_ro"],
            ..VaultRole::default()
        },
    ];
    let world = World::shared(WorldOptions { vault_roles, ..WorldOptions::default() }).await;
    let postgres = &world.servers.postgres;

    for vault_role in ["db-app", "db-drop"] {
        let leased = world.lease(vault_role).await;
        assert!(leased.user.starts_with(&world.role_prefix()), "{}", leased.user);
        let session = postgres.connect_as(&world.database(), &leased.user, &leased.password).await.unwrap();
        assert_eq!(session.rows("SELECT count(*) FROM t").await, [[Some("100".to_owned())]]);
        assert_eq!(world.living_roles().await, std::slice::from_ref(&leased.user));
        drop(session);

        let openbao = &world.servers.openbao;
        let renewal = json!({ "lease_id": leased.lease_id, "increment": 0 });
        let (status, _) = openbao.call(Method::POST, "sys/leases/renew", &leased.token, Some(renewal)).await;
        assert_eq!(status, 200);
        let (status, _) = openbao.call(Method::POST, "auth/token/revoke-self", &leased.token, None).await;
        assert_eq!(status, 204);
        until(async || world.living_roles().await.is_empty()).await;
    }
    // NOLOGIN leaves the role, the engine's own revocation does not.
    let left = world.leased_roles().await;
    assert_eq!(left.len(), 1);
    assert!(left[0].0.contains("db-app"));
}

#[tokio::test]
async fn responder_decides_on_logins() {
    let world = World::shared(WorldOptions::default()).await;
    let login = async |jwt: String| {
        let path = format!("auth/{}/login", world.auth());
        let body = json!({ "role": "web", "jwt": jwt });
        world.servers.openbao.call(Method::POST, &path, "", Some(body)).await.0
    };
    let web = |seconds| TokenReview::jwt("default", "web", seconds);

    assert_eq!(login(web(60)).await, 200);
    assert_eq!(login(web(-120)).await, 403);
    assert_eq!(login(TokenReview::jwt("default", "other", 60)).await, 403);
    for answer in [Answer::No, Answer::Status(500), Answer::Status(401)] {
        world.token_review.set_answer(answer);
        assert_eq!(login(web(60)).await, 403, "{answer:?}");
    }
    world.token_review.set_answer(Answer::Honest);
    assert_eq!(login(web(60)).await, 200);
    assert!(world.token_review.reviews() >= 5);
}

#[tokio::test]
async fn gate_closes_one_way_to_a_server_and_leaves_the_others() {
    let servers = Servers::shared().await;
    let gate = Gate::to(servers.openbao.port()).await;
    let health = async || {
        let url = format!("http://{}/v1/sys/health", gate.address());
        http_client().get(url).send().await.map(|answer| answer.status().as_u16())
    };

    assert_eq!(health().await.unwrap(), 200);
    gate.close().await;
    assert!(health().await.unwrap_err().is_connect());
    servers.openbao.read("sys/mounts").await;
    gate.open().await;
    assert_eq!(health().await.unwrap(), 200);
}

/// Run by itself it starts, stops, seals and crashes servers of its own; run by the test below it says what it
/// has started and waits to be killed.
#[tokio::test]
async fn servers_stop_start_seal_and_crash() {
    let mut servers = Servers::start().await;
    if env(HELD).is_some() {
        hold(&World::create(&servers, WorldOptions::default()).await);
    }
    let Servers { postgres, openbao } = &mut servers;

    let port = postgres.port();
    let held = postgres.connect("postgres").await;
    postgres.restart().await;
    let error = held.batch_execute("SELECT 1").await.unwrap_err();
    assert!(error.is_closed() || error.code().is_some_and(|code| code.code() == "57P01"), "{error:?}");
    postgres.kill().await;
    postgres.start_again().await;
    assert_eq!(postgres.port(), port);
    let version = postgres.query("postgres", "SHOW server_version_num").await;
    assert!(version[0][0].as_ref().unwrap().starts_with(&postgres.major().to_string()));

    openbao.seal().await;
    let (status, _) = openbao.call(Method::GET, "sys/mounts", "root", None).await;
    assert_eq!(status, 503);
    openbao.unseal().await;
    assert!(openbao.list("sys/policies/acl").await.contains(&"default".to_owned()));
    openbao.pause().await;
    let asked = time::timeout(Duration::from_millis(200), openbao.read("sys/mounts")).await;
    assert!(asked.is_err());
    openbao.resume();
    openbao.read("sys/mounts").await;

    openbao.stop().await;
    openbao.start_again().await;
    openbao.read("sys/mounts").await;
}

#[tokio::test]
async fn sigkill_of_the_tests_leaves_no_server_and_no_folder() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "servers::servers_stop_start_seal_and_crash", "--nocapture"]);
    command.env(HELD, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tests = command.spawn().unwrap();
    let mut lines = BufReader::new(tests.stdout.take().unwrap()).lines().map_while(Result::ok);
    let held: Value = lines.find_map(|line| serde_json::from_str(line.get(line.find('{')?..)?).ok()).unwrap();
    let numbers = |key: &str| {
        let values = held[key].as_array().unwrap();
        values.iter().map(|number| u16::try_from(number.as_u64().unwrap()).unwrap()).collect::<Vec<_>>()
    };
    let is_left = || {
        // A zombie waits for whoever inherited it.
        let runs = |pid: &Value| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
        };
        let processes = held["pids"].as_array().unwrap().iter().any(runs);
        let ports = numbers("ports").iter().any(|&port| TcpStream::connect(("127.0.0.1", port)).is_ok());
        let prefix = format!("pglease-{}-", tests.id());
        let mut folders = [std::env::temp_dir(), "/tmp".into()]
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap());
        let folders = folders.any(|entry| entry.unwrap().file_name().to_string_lossy().starts_with(&prefix));
        (processes, ports, folders)
    };
    assert_eq!(is_left(), (true, true, true));

    // The id names the folders, so it is read before `wait` frees it.
    rustix::process::kill_process(Pid::from_child(&tests), rustix::process::Signal::KILL).unwrap();
    until(async || is_left() == (false, false, false)).await;
    tests.wait().unwrap();
}

/// Says what there is, and stays.
fn hold(world: &World<'_>) -> ! {
    let Servers { postgres, openbao } = world.servers;
    let pids = [postgres.process().pid(), openbao.process().pid()].map(Pid::as_raw_pid);
    let held = json!({
        "ports": [postgres.port(), openbao.port(), openbao.port() + 1],
        "pids": pids,
    });
    let _ = io::stdout().write_all(format!("{held}\n").as_bytes());
    loop {
        std::thread::park();
    }
}
