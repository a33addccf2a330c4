//! `[[file]]`: its directory, the PostgreSQL that nobody names but its `upstream`, and the sessions of its readers.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::Patient;
use crate::check::Checked;
use crate::support::world::{Revocation, VaultRole, World};

fn file(world: &World<'_>, path: &Path, upstream: &str) -> String {
    let (path, vault_path) = (path.display().to_string(), world.vault_path("db-app"));
    format!(
        "[[file]]\npath = {path:?}\nvault_path = {vault_path:?}\nformat = \"json\"\nupstream = {upstream:?}\n"
    )
}

/// Subjects of the steps of this name.
fn subjects<'a>(checked: &'a Checked, name: &str) -> Vec<&'a str> {
    let of_name = checked.steps().iter().filter(|step| step["name"] == name);
    of_name.map(|step| step["subject"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn host_that_only_a_file_names_is_visited_and_what_is_wrong_there_is_mended_by_what_is_printed() {
    let mut patient = Patient::new().await;
    let postgres = &patient.world.servers.postgres;
    let (host, url) = (format!("localhost:{}", postgres.port()), postgres.url(&patient.world.database()));
    let ca_file = postgres.ca_file().display().to_string();
    let folder = patient.world.folder().join("secrets");
    let path = folder.join("db.json");
    let alone = patient.world.settings() + &file(&patient.world, &path, &url);
    patient.settings.clone_from(&alone);

    // Nothing is made for it: that is for who mounts the volume.
    let cure = patient.finds("config.settings", "setting").await;
    assert!(cure.contains("name a file in one that pglease may write to"), "{cure}");
    assert!(!folder.exists());
    fs::create_dir(&folder).unwrap();
    patient.cured("config.settings", "setting").await;
    fs::write(&path, "of the running sidecar").unwrap();

    // tcpmux, which nobody has.
    patient.settings = alone.replace(&host, "localhost:1");
    let cure = patient.finds("postgres.reach", "postgres-nothing-listens").await;
    assert!(cure.contains("correct the port in `upstream`"), "{cure}");
    let stranger = patient.world.servers.openbao.ca_file().display().to_string();
    patient.settings = alone.replace(&ca_file, &stranger);
    let cure = patient.finds("postgres.tls", "postgres-ca-unknown").await;
    assert!(cure.contains("in `upstream`: sslrootcert="), "{cure}");
    patient.settings.clone_from(&alone);
    patient.cured("postgres.reach", "postgres-nothing-listens").await;
    patient.cured("postgres.tls", "postgres-ca-unknown").await;

    let role = format!("{}/roles/db-app", patient.world.engine());
    let creation = |login: &str| {
        let group = patient.world.group("app_rw");
        format!(
            "CREATE ROLE \"{{{{name}}}}\" {login} PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}' IN ROLE {group};"
        )
    };
    patient.world.write(&role, json!({ "creation_statements": [creation("NOLOGIN")] })).await;
    let cure = patient.finds("postgres.login", "role-no-login").await;
    assert!(cure.starts_with("say LOGIN in the creation_statements"), "{cure}");
    patient.world.write(&role, json!({ "creation_statements": [creation("LOGIN")] })).await;
    patient.cured("postgres.login", "role-no-login").await;

    // pglease cannot tell readers of the end, as it does sessions of its own.
    let revocation = Revocation::Drop;
    patient.world.write_vault_role(&VaultRole { revocation, ..VaultRole::default() }).await;
    let cure = patient.finds("postgres.revocation", "readers-harmed").await;
    let statement = cure.lines().find(|line| line.starts_with("ALTER ROLE")).unwrap();
    patient.world.write(&role, json!({ "revocation_statements": [statement] })).await;
    let checked = patient.cured("postgres.revocation", "readers-harmed").await;
    assert_eq!(checked.failed(), Vec::<&str>::new(), "{:#}", checked.document);
    assert!(!checked.names().contains(&"postgres.connections"), "{:#}", checked.document);
    assert_eq!(subjects(&checked, "postgres.revocation"), [path.display().to_string()]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "of the running sidecar");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[tokio::test]
async fn host_of_a_route_is_not_visited_again_for_a_file_on_the_same_credential() {
    let mut patient = Patient::new().await;
    let world = &patient.world;
    let url = world.servers.postgres.url(&world.database());
    let host = format!("localhost:{}", world.servers.postgres.port());
    let other = format!("127.0.0.1:{}", world.servers.postgres.port());
    let [same, more] = ["same.json", "more.json"].map(|name| world.folder().join(name));
    let well = patient.settings.clone();

    patient.settings = well.clone() + &file(world, &same, &url);
    let checked = patient.check().await;
    for name in ["postgres.reach", "postgres.tls", "postgres.login"] {
        assert_eq!(subjects(&checked, name), [&*host], "{:#}", checked.document);
        checked.assert_passed(name);
    }
    let revoked = subjects(&checked, "postgres.revocation");
    assert_eq!(revoked, [format!("{host}/{}", world.database()), same.display().to_string()]);

    // Of several hosts the one that is new.
    patient.settings = well + &file(world, &more, &url.replace(&host, &format!("{host},{other}")));
    let checked = patient.check().await;
    for name in ["postgres.reach", "postgres.login"] {
        assert_eq!(subjects(&checked, name), [host.clone(), other.clone()], "{:#}", checked.document);
    }
    let choice = checked.step("postgres.choice")["found"].as_str().unwrap();
    assert!(choice.starts_with(&format!("{host} serves")), "{choice}");
    assert_eq!(checked.failed(), Vec::<&str>::new(), "{:#}", checked.document);
}
