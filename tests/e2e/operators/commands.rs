//! The commands, as a shell has them.

use std::process::Stdio;
use std::{fs, iter};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::process::Command;

use super::{run, text};
use crate::support::gate::Gate;
use crate::support::say_skipped;
use crate::support::world::{World, WorldOptions};
use crate::{pglease_for, start, until};

#[tokio::test]
async fn exit_codes_tell_done_from_usage() {
    for (arguments, code, said) in [
        (&["--help"][..], 0, "Have the running one:"),
        (&["help", "wait"], 0, "--max <DURATION>"),
        (&["--version"], 0, "pglease "),
        (&["version"], 0, "pglease "),
        (&["man", "drain"], 0, ".TH pglease-drain 1"),
        (&[], 2, "Usage: pglease <COMMAND>"),
        (&["prox"], 2, "similar subcommand exists: 'proxy'"),
        (&["wait", "--max", "soon"], 2, "--max <DURATION>"),
        (&["man", "nothing"], 2, "no such command"),
        (&["completions", "tcsh"], 2, "bash, zsh, fish"),
        (&["drain", "--admin-address", ""], 2, "admin.address is off"),
        (&["wait", "--http-address", "here"], 2, "http.address"),
    ] {
        let output = run(arguments).await;
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {all}");
        assert!(all.contains(said), "{arguments:?}: {all}");
        // What was asked for is on stdout, what went wrong on stderr.
        assert_eq!(output.stderr.is_empty(), code == 0, "{arguments:?}: {all}");
    }
}

#[tokio::test]
async fn build_is_told_in_json_and_the_same_each_time() {
    let [one, other] = [run(&["version", "--json"]).await, run(&["version", "--json"]).await];
    assert_eq!(one.stdout, other.stdout);
    let build: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!(build["version"], env!("CARGO_PKG_VERSION"));
    assert!(build["target"].as_str().unwrap().contains("-unknown-linux-"), "{build}");
    assert_eq!(build["tls"]["provider"], "ring");
    assert!(build["commit"].is_null() || build["commit"].is_string(), "{build}");
}

#[tokio::test]
async fn curl_may_ask_for_what_no_web_page_may() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let url = format!("http://{}/log?level=warn", pglease.admin());
    for (arguments, code) in [(&["-X", "POST"][..], "200"), (&["-d", ""], "403")] {
        let mut curl = Command::new("curl");
        curl.args(["-q", "-s", "-w", "%{http_code}", "-o", "/dev/null"]).args(arguments).arg(&url);
        let output = curl.env_clear().kill_on_drop(true).output().await;
        let Ok(output) = output else { return say_skipped("what curl asks for", "there is no curl") };
        assert_eq!(text(&output.stdout), code, "{arguments:?}: {output:?}");
    }
    assert_eq!(pglease.status().await["log"]["level"], "warn");
}

#[tokio::test]
async fn command_that_asks_another_port_says_so() {
    let world = World::shared(WorldOptions::default()).await;
    let pglease = pglease_for(&world).await;
    let http = pglease.http_url("").replace("http://", "");
    let [listener, postgres] =
        [pglease.port(), world.servers.postgres.port()].map(|port| format!("127.0.0.1:{port}"));
    let not_its = "that is not its admin.address but another port, as PostgreSQL's; --admin-address";
    for (arguments, said) in [
        (&["status", "--admin-address", &http][..], "is it http.address, or another program's?"),
        (&["status", "--admin-address", &postgres], not_its),
        (&["status", "--admin-address", &listener], not_its),
        (
            &["wait", "--max", "0s", "--admin-address", "", "--http-address", pglease.admin()],
            "is not pglease's",
        ),
    ] {
        let output = run(arguments).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).contains(said), "{output:?}");
    }
}

#[tokio::test]
async fn bash_completes_commands_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("pglease.bash");
    fs::write(&script, run(&["completions", "bash"]).await.stdout).unwrap();
    let complete = "source \"$1\"; COMP_WORDS=(\"${@:2}\"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                    $(complete -p pglease | sed 's/.*-F \\([^ ]*\\).*/\\1/') pglease \"${COMP_WORDS[COMP_CWORD]}\" \
                    \"${COMP_WORDS[COMP_CWORD - 1]}\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    for (words, completed) in [
        (&["pro"][..], &["proxy"][..]),
        (&["st"], &["status"]),
        (&["completions", ""], &["bash", "fish", "zsh"]),
        (&["wait", "--ma"], &["--max"]),
        (&["proxy", "--drain-s"], &["--drain-strict-exit"]),
    ] {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", complete, "bash"]).arg(&script).arg("pglease").args(words);
        let output = bash.stdin(Stdio::null()).output().await;
        let Ok(output) = output else { return say_skipped("bash's completion", "there is no bash") };
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        let mut said: Vec<&str> =
            said.lines().filter(|word| !word.starts_with("-h") && *word != "--help").collect();
        said.sort_unstable();
        assert_eq!(said, completed, "{words:?}");
    }
}

#[tokio::test]
async fn zsh_and_fish_take_their_scripts_and_complete_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let of_zsh = "autoload -U compinit; compinit -u -d dump; source \"$1\"; print $_comps[pglease]";
    let of_fish = "source $argv[1]; complete -C 'pglease st'; complete -C 'pglease wait --ma'";
    for (shell, quiet, script, completed) in [
        ("zsh", "-f", of_zsh, &["_pglease\n"][..]),
        ("fish", "--no-config", of_fish, &["status\t", "--max\t"]),
    ] {
        let file = folder.path().join(shell);
        fs::write(&file, run(&["completions", shell]).await.stdout).unwrap();
        for arguments in [&["-n"][..], &[quiet, "-c", script, shell][..]] {
            // fish has no name for itself in front of the arguments.
            let arguments = if shell == "fish" && arguments.len() > 1 { &arguments[..3] } else { arguments };
            let mut command = Command::new(shell);
            command.args(arguments).arg(&file).env("HOME", folder.path()).current_dir(folder.path());
            let Ok(output) = command.stdin(Stdio::null()).output().await else {
                say_skipped(&format!("{shell}'s completion"), &format!("there is no {shell}"));
                break;
            };
            assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
            let said = text(&output.stdout);
            let is_complete = arguments.len() == 1 || completed.iter().all(|part| said.contains(part));
            assert!(is_complete, "{shell}: {said}");
        }
    }
}

#[tokio::test]
async fn manual_pages_render_without_a_complaint() {
    for command in [&[][..], &["proxy"], &["wait"], &["rotate"]] {
        let page = run(&[&["man"], command].concat()).await.stdout;
        let mut groff = Command::new("groff");
        groff
            .args(["-man", "-Tutf8", "-ww", "-P-cbou"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let Ok(mut groff) = groff.spawn() else { return say_skipped("manual pages", "there is no groff") };
        let mut input = groff.stdin.take().unwrap();
        let (written, output) = tokio::join!(
            async {
                let written = input.write_all(&page).await;
                drop(input);
                written
            },
            groff.wait_with_output()
        );
        written.unwrap();
        let output = output.unwrap();
        let rendered = text(&output.stdout);
        assert!(output.status.success() && output.stderr.is_empty(), "{command:?}: {}", text(&output.stderr));
        for part in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(rendered.contains(part), "{command:?}: no {part} in\n{rendered}");
        }
    }
}

#[tokio::test]
async fn who_waits_is_told_what_is_missing_and_returns_once_there_is_a_credential() {
    let world = World::shared(WorldOptions::default()).await;
    let gate = Gate::to(world.servers.openbao.port()).await;
    gate.close().await;
    let vault = format!("http://{}", gate.address());
    let settings = world.settings_with("debug", &vault, "connect_wait = \"1m\"") + &world.route("db-app");
    let pglease = start(&settings).await;
    pglease.wait_for_event("login.failed", crate::PATIENCE).await;
    let http = pglease.http_url("").replace("http://", "");
    let addresses = ["--http-address", &http, "--admin-address", pglease.admin()];

    let vault_path = world.vault_path("db-app");
    let parts = ["not ready after 0s: no proven credential yet", &vault_path, "failed last: login"];
    // It waits a second for an answer.
    until(async || {
        let missing = run(&[&["wait", "--max", "0s"][..], &addresses].concat()).await;
        let said = text(&missing.stderr);
        assert_eq!(missing.status.code(), Some(1), "{said}");
        parts.iter().all(|part| said.contains(part))
    })
    .await;

    let waiting = [&["wait", "--max", "2m"][..], &addresses].concat();
    let (waited, ()) = tokio::join!(run(&waiting), gate.open());
    assert_eq!((waited.status.code(), text(&waited.stdout).as_str()), (Some(0), "ready\n"), "{waited:?}");
    assert_eq!(pglease.get("/startup").await.0, 200);
}

#[tokio::test]
async fn who_waits_waits_for_a_pglease_that_is_not_there_yet() {
    // Bound and not listened on: nobody else gets it, and who connects is refused.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let arguments =
        |max: &'static str| ["wait", "--max", max, "--http-address", &address, "--admin-address", ""];

    let nobody = run(&arguments("0s")).await;
    assert_eq!(nobody.status.code(), Some(1));
    let said = text(&nobody.stderr);
    assert_eq!(said, format!("pglease: not ready after 0s: nobody listens on http.address {address}\n"));

    let come = async {
        let listener = socket.listen(16).unwrap();
        // One that answers otherwise first, and then to whoever asks: an answer may come too late.
        for answer in ["503 Service Unavailable"].into_iter().chain(iter::repeat("200 OK")) {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let len = client.read(&mut request).await.unwrap_or_default();
            assert!(len == 0 || request[..len].starts_with(b"GET /startup HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = client.write_all(answer.as_bytes()).await;
        }
    };
    let waiting = arguments("2m");
    let waited = tokio::select! {
        waited = run(&waiting) => waited,
        () = come => unreachable!("it answers for ever"),
    };
    assert_eq!((waited.status.code(), text(&waited.stdout).as_str()), (Some(0), "ready\n"), "{waited:?}");
}
