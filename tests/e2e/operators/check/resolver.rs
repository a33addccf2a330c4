//! What the resolver of the machine says, or does not.

use std::fs;

use tokio::process::Command;

use crate::check::{Checked, run_by};
use crate::namespace::pglease_with;
use crate::support::dns::NameServer;
use crate::support::say_skipped;
use crate::support::world::{World, WorldOptions};
use crate::until;

#[tokio::test]
async fn resolver_that_is_silent_or_does_not_know_the_name_is_told_of_until_it_does() {
    let world = World::shared(WorldOptions::default()).await;
    let name_server = match NameServer::start() {
        Ok(name_server) => name_server,
        Err(error) => return say_skipped("a resolver that is silent", &format!("port 53: {error}")),
    };
    let [resolv_conf, file] = ["resolv.conf", "named.toml"].map(|name| world.folder().join(name));
    let options = |timeout: u8| {
        let text = format!("nameserver {}\noptions timeout:{timeout} attempts:1\n", name_server.address);
        fs::write(&resolv_conf, text).unwrap();
    };
    // As little patience as one can ask for.
    options(1);
    let Some(program) = pglease_with(world.folder(), &resolv_conf, "/etc/resolv.conf") else { return };
    let vault = world.servers.openbao.address();
    let settings = (world.settings() + &world.route("db-app"))
        .replace(&vault, &vault.replace("127.0.0.1", NAME))
        .replace("//localhost:", &format!("//{NAME}:"));
    fs::write(&file, settings).unwrap();
    let check = async || Checked::of(&run_by(Command::new(&program), &file, &["--json"]).await);
    // A busy machine may need longer for an answer than a check waits.
    let check_until = async |is_so: &dyn Fn(&Checked) -> bool| {
        let mut checked = check().await;
        until(async || {
            let is_it = is_so(&checked);
            if !is_it {
                checked = check().await;
            }
            is_it
        })
        .await;
        checked
    };

    // At first it does not answer.
    for (known, of_vault, of_postgres, cure) in [
        (
            None,
            "vault-resolver-silent",
            "postgres-resolver-silent",
            "see that the name servers of /etc/resolv.conf",
        ),
        (Some("other.test"), "vault-name-unknown", "postgres-name-unknown", "correct the host in"),
    ] {
        if let Some(known) = known {
            name_server.know(known);
        }
        let is_found = |checked: &Checked| {
            checked.has("vault.resolve", of_vault) && checked.has("postgres.reach", of_postgres)
        };
        let checked = check_until(&is_found).await;
        let found = [
            checked.only_trouble("vault.resolve", of_vault),
            checked.only_trouble("postgres.reach", of_postgres),
        ];
        assert!(found.iter().all(|step| step["cure"].as_str().unwrap().starts_with(cure)), "{found:?}");
        name_server.know(NAME);
        options(30);
        let is_mended = |checked: &Checked| {
            ["vault.resolve", "postgres.reach"].iter().all(|name| checked.step(name)["outcome"] == "passed")
        };
        let checked = check_until(&is_mended).await;
        checked.cured("vault.resolve", of_vault);
        checked.cured("postgres.reach", of_postgres);
    }
}

const NAME: &str = "servers.test";
