//! Credential files as those read them that they are for, and as the Vault Agent writes them: with a password that has
//! every special character of a keyboard in it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::env;
use crate::support::pglease::Pglease;
use crate::support::process::{Process, Spawn};
use crate::support::say_skipped;
use crate::support::world::{VaultRole, World, WorldOptions};
use crate::{PATIENCE, pglease_with, until};

const FORMATS: &str = include_str!("../../../docs/formats.md");

/// Without the space.
const SPECIAL: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~é";

/// A world with the roles `odd`, whose passwords have all of [`SPECIAL`] and spaces, and `line`, without a space.
async fn odd_world() -> World<'static> {
    let role = |name| VaultRole { name, ..VaultRole::default() };
    let options = WorldOptions { vault_roles: vec![role("odd"), role("line")], ..WorldOptions::default() };
    let world = World::shared(options).await;
    for (name, characters) in [("odd", format!("{SPECIAL} ")), ("line", SPECIAL.to_owned())] {
        let policy = world.group(name);
        let one = |character: char| {
            format!("rule \"charset\" {{ charset = {} min-chars = 1 }}\n", json!(character.to_string()))
        };
        let rules: String = characters.chars().map(one).collect();
        let text =
            format!("length = 100\nrule \"charset\" {{ charset = \"abcdefgh0123\" min-chars = 4 }}\n{rules}");
        world.write(&format!("sys/policies/password/{policy}"), json!({ "policy": text })).await;
        let creation = format!(
            "CREATE ROLE \"{{{{name}}}}\" LOGIN PASSWORD $odd${{{{password}}}}$odd$ VALID UNTIL '{{{{expiration}}}}' \
             IN ROLE {};",
            world.group("app_rw")
        );
        let definition = json!({
            "db_name": "pg",
            "default_ttl": "1h",
            "creation_statements": [creation],
            "credential_config": { "password_policy": policy },
        });
        world.write(&format!("{}/roles/{name}", world.engine()), definition).await;
    }
    world
}

/// Starts pglease with these files: name, role and further keys of each.
async fn write_files(world: &World<'_>, files: &[(&str, &str, String)]) -> Pglease {
    let mut settings = world.settings() + &world.route("odd");
    for (name, vault_role, more) in files {
        let (path, vault_path) = (json!(place(world, name)), world.vault_path(vault_role));
        let _ = write!(settings, "[[file]]\npath = {path}\nvault_path = {vault_path:?}\n{more}\n");
    }
    pglease_with(&settings).await
}

fn place(world: &World<'_>, name: &str) -> PathBuf {
    world.folder().join(name)
}

fn read(world: &World<'_>, name: &str) -> String {
    fs::read_to_string(place(world, name)).unwrap()
}

/// What it prints, which ends well.
fn said(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test]
async fn every_special_character_is_read_back_by_who_each_format_is_for() {
    let world = odd_world().await;
    let postgres = &world.servers.postgres;
    let with = |format: &str| {
        let upstream = postgres.url(&world.database());
        format!("format = {format:?}\nmode = \"0600\"\nupstream = {upstream:?}")
    };
    let formats = ["json", "env", "pgpass", "uri", "properties"];
    let mut files: Vec<_> = formats.iter().map(|format| (*format, "odd", with(format))).collect();
    files.push(("default", "odd", "mode = \"0600\"".to_owned()));
    files.push(("pg_service", "line", with("pg_service")));
    let pglease = write_files(&world, &files).await;

    // The truth is what a reader of JSON makes of it.
    let credential: Value = serde_json::from_str(&read(&world, "json")).unwrap();
    let (user, password) =
        (credential["username"].as_str().unwrap(), credential["password"].as_str().unwrap());
    assert!(SPECIAL.chars().chain([' ']).all(|character| password.contains(character)), "{password}");

    let psql = || {
        let mut psql = Command::new(postgres.bin().join("psql"));
        psql.args(["-XAtw", "-c", "SELECT session_user"]).env_clear();
        psql
    };
    let whole = |user: &str| format!("{}&user={user}", postgres.url(&world.database()));
    let logged_in = said(psql().args(["-d", &whole(user)]).env("PGPASSFILE", place(&world, "pgpass")));
    assert_eq!(logged_in.trim(), user, "pgpass");
    let logged_in = said(psql().args(["-d", &read(&world, "uri")]));
    assert_eq!(logged_in.trim(), user, "uri");
    assert_eq!(said(psql().args(["-d", credential["uri"].as_str().unwrap()])).trim(), user, "uri in JSON");
    let of_service =
        said(psql().args(["-d", "service=pglease"]).env("PGSERVICEFILE", place(&world, "pg_service")));
    assert!(of_service.starts_with(&world.role_prefix()) && of_service.trim() != user, "{of_service}");

    let script = "set -a && . \"$1\" && exec \"$2\" -XAtw -c 'SELECT session_user'";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-euc", script, "sh"]).arg(place(&world, "env")).arg(postgres.bin().join("psql")).env_clear();
    assert_eq!(said(&mut shell).trim(), user, "env");
    let mut printed = Command::new("/bin/sh");
    printed.args(["-euc", ". \"$1\" && printf %s \"$PGPASSWORD\"", "sh"]).arg(place(&world, "env"));
    assert_eq!(said(&mut printed), password, "env");

    let python =
        "import json, sys; sys.stdout.buffer.write(json.load(open(sys.argv[1]))['password'].encode())";
    let mut python3 = Command::new("python3");
    python3.args(["-c", python]).arg(place(&world, "json"));
    assert_eq!(said(&mut python3), password, "json");
    assert_eq!(read(&world, "default"), format!("password: {password}\nusername: {user}\n"));

    if let Some(properties) = java_properties(&place(&world, "properties")) {
        assert_eq!((properties["username"].as_str(), properties["password"].as_str()), (user, password));
        let url = format!(
            "jdbc:postgresql://localhost:{}/{}?sslmode=verify-full&",
            postgres.port(),
            world.database()
        );
        assert!(properties["url"].starts_with(&url), "{}", properties["url"]);
    }
    drop(pglease);
}

/// What `java.util.Properties` reads.
fn java_properties(file: &Path) -> Option<HashMap<String, String>> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/operators/ReadProperties.java");
    if Command::new("java").arg("-version").output().is_err() {
        let is_required = env("PGLEASE_TEST_CLIENTS").is_some_and(|clients| clients == "required");
        assert!(!is_required, "there is no java");
        say_skipped("properties", "there is no java");
        return None;
    }
    let printed = said(Command::new("java").arg(program).arg(file));
    Some(serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{printed}: {error}")))
}

/// Templates that people have, and one with all that is rendered.
fn templates(vault_path: &str) -> Vec<String> {
    let (_, rest) = FORMATS.split_once("```text\n{{- with").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let all = "{{- $s := secret \"PATH\" -}} {{- /* all */ -}}\n\
               {{ range $k, $v := $s.Data }}export DB_{{ $k | toUpper }}={{ printf \"%q\" $v }}\n{{ end -}}\n\
               {{ with $s }}{{ .Data | toJSON }} {{ .Data | toJSONPretty }} {{ .Data.password | toUnescapedJSON }}\n\
               {{ .LeaseID }} {{ .LeaseDuration }} {{ .Renewable }} {{ if .Renewable }}yes{{ else }}no{{ end }}\n\
               {{ urlquery .Data.password }} {{ .Data.password | base64Encode }} {{ .Data.password | toLower | trimSpace }}\n\
               {{ printf \"%s:%v@%d%%\" .Data.username (.Data.password | urlquery) .LeaseDuration | toJSON -}}\n{{ end }}";
    let usual = format!("{{{{- with{example}").replace("database/creds/db-app", "PATH");
    [
        &usual,
        "{{ with secret \"PATH\" }}{{ range $k, $v := .Data }}{{ $k }}: {{ $v }}\n{{ end }}{{ end }}",
        "{{ with secret \"PATH\" }}{{ .Data | toJSON }}\n{{ end }}",
        "u={{ with secret \"PATH\" }}{{ .Data.username }}{{ end }}\np={{ with secret \"PATH\" }}{{ .Data.password }}{{ end }}\n",
        all,
    ]
    .map(|template| template.replace("PATH", vault_path))
    .to_vec()
}

/// The real Agent is given the credential that pglease has, by a stand-in for the server.
#[tokio::test]
async fn templates_are_rendered_byte_for_byte_as_by_the_agent() {
    let world = odd_world().await;
    let vault_path = world.vault_path("odd");
    let templates = templates(&vault_path);
    let name = |number: usize| format!("of-pglease-{number}");
    let mut files: Vec<_> =
        templates.iter().enumerate().map(|(number, template)| (name(number), template.clone())).collect();
    let lease = format!(
        "{{{{ with secret \"{vault_path}\" }}}}[{{{{ .LeaseID | toJSON }}}},{{{{ .LeaseDuration }}}},{{{{ .Data | toJSON }}}}]{{{{ end }}}}"
    );
    files.push(("lease".to_owned(), lease));
    let files: Vec<_> = files
        .iter()
        .map(|(name, template)| {
            (name.as_str(), "odd", format!("format = \"template\"\ntemplate = {}", json!(template)))
        })
        .collect();
    let pglease = write_files(&world, &files).await;
    let lease: Value = serde_json::from_str(&read(&world, "lease")).unwrap();
    assert_eq!(lease[1], 3600);

    let (server, _serving) = serve(&vault_path, &lease).await;
    let of_agent = |number: usize| place(&world, &format!("of-agent-{number}"));
    let token_file = place(&world, "agent-token");
    fs::write(&token_file, "root").unwrap();
    // A string of JSON is one of HCL.
    let mut config = format!(
        "vault {{\n  address = {}\n}}\nexit_after_auth = true\nauto_auth {{\n  method \"token_file\" {{\n    \
         config = {{ token_file_path = {} }}\n  }}\n}}\n",
        json!(server),
        json!(token_file)
    );
    for (number, contents) in templates.iter().enumerate() {
        let (contents, destination) = (json!(contents), json!(of_agent(number)));
        let _ = write!(config, "template {{\n  contents = {contents}\n  destination = {destination}\n}}\n");
    }
    let config_file = place(&world, "agent.hcl");
    fs::write(&config_file, config).unwrap();
    let home = world.folder().display().to_string();
    let agent = Process::spawn(&Spawn {
        program: world.servers.openbao.program(),
        arguments: &["agent".to_owned(), format!("-config={}", config_file.display())],
        // Where it keeps a token of its own, of which it has none.
        environment: &[("HOME", &home)],
        folder: world.folder(),
        uid: None,
        stop: Signal::KILL,
    });
    let status = agent.wait_exit(PATIENCE).await;
    assert!(status.success(), "{}", agent.lines().tail());
    for (number, template) in templates.iter().enumerate() {
        let rendered = fs::read_to_string(of_agent(number)).unwrap();
        assert_eq!(read(&world, &name(number)), rendered, "{template}");
    }
    pglease.sigterm();
    assert!(pglease.wait_exit(PATIENCE).await.success());
    until(async || !place(&world, "lease").exists()).await;
}

/// A server that has this lease for whoever reads `vault_path`, for as long as what is given beside it lives.
async fn serve(vault_path: &str, lease: &Value) -> (String, JoinSet<()>) {
    let answers = HashMap::from([
        (
            format!("/v1/{vault_path}"),
            json!({ "lease_id": lease[0], "lease_duration": lease[1], "renewable": true, "data": lease[2] }),
        ),
        (
            "/v1/auth/token/lookup-self".to_owned(),
            json!({ "data": { "id": "root", "ttl": 0, "renewable": false, "policies": ["root"], "type": "service" } }),
        ),
        (
            "/v1/sys/leases/renew".to_owned(),
            json!({ "lease_id": lease[0], "lease_duration": lease[1], "renewable": true }),
        ),
    ]);
    let answer = move |uri: Uri| {
        let answer = answers.get(uri.path()).map(Value::to_string);
        async move { found(answer) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    (address, serving)
}

fn found(answer: Option<String>) -> Response {
    let status = if answer.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    (status, answer.unwrap_or_else(|| json!({ "errors": [] }).to_string())).into_response()
}
