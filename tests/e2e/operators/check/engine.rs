//! Policies, `vault_role`s and the engine behind them.

use serde_json::json;

use super::Patient;
use crate::support::world::VaultRole;

#[tokio::test]
async fn what_policies_and_vault_roles_lack_is_told_with_the_lines_that_give_it() {
    let mut patient = Patient::new().await;
    let world_path = patient.world.vault_path("db-app");
    let role = format!("{}/roles/db-app", patient.world.engine());

    // Without the policy default, and without the path.
    patient.set_role(json!({ "token_no_default_policy": true })).await;
    patient.change_policy(|policy| policy.replace(&world_path, "database/creds/other")).await;
    let cure = patient.finds("vault.creds", "creds-not-allowed").await;
    let left = patient.is_cured(&cure, "vault.creds", "creds-not-allowed").await;
    let left = left.step("vault.revoke")["found"].as_str().unwrap();
    assert!(left.starts_with("not revoked: the login of ") && left.contains(" ends at "), "{left}");
    patient.finds_beside_others("vault.token", "token-renewal-refused").await;
    let cure = patient.finds("vault.policy", "policy-lacks").await;
    patient.is_cured(&cure, "vault.token", "token-renewal-refused").await;
    // This one is known to be missing only when it is tried.
    let cure = patient.finds("vault.revoke", "revoke-not-allowed").await;
    let well = patient.is_cured(&cure, "vault.revoke", "revoke-not-allowed").await;
    well.cured("vault.policy", "policy-lacks");
    let warnings = well.ended("warning").into_iter().filter(|name| name.starts_with("vault."));
    assert_eq!((well.code, warnings.collect()), (0, Vec::<&str>::new()), "{:#}", well.document);
    // Where the token may ask, each missing line is known at once.
    patient
        .change_policy(|policy| {
            let policy = policy.replace("sys/leases/renew", "sys/leases/nothing");
            format!("{policy}path \"sys/capabilities-self\" {{ capabilities = [\"update\"] }}\n")
        })
        .await;
    patient.finds_beside_others("vault.lease", "lease-renewal-refused").await;
    let cure = patient.finds("vault.policy", "policy-lacks").await;
    let well = patient.is_cured(&cure, "vault.policy", "policy-lacks").await;
    well.cured("vault.lease", "lease-renewal-refused");

    for (fields, name, warning) in [
        (json!({ "default_ttl": "768h", "max_ttl": "768h" }), "vault.lease", "lease-long"),
        (json!({ "default_ttl": "50s", "max_ttl": "24h" }), "vault.lease", "lease-short"),
        (json!({ "default_ttl": "1h", "max_ttl": "1h" }), "vault.lease", "lease-hardly-lengthened"),
        (json!({ "default_ttl": "2m", "max_ttl": "10m" }), "vault.rotation", "rotates-often"),
        (json!({ "renew_statements": "SELECT 1/0" }), "vault.lease", "lease-renewal-failed"),
    ] {
        patient.world.write(&role, fields).await;
        let cure = patient.finds(name, warning).await;
        patient.is_cured(&cure, name, warning).await;
        patient.world.write(&role, json!({ "default_ttl": "1h", "max_ttl": "24h" })).await;
    }

    patient.world.write(&role, json!({ "creation_statements": "SELECT 1/0" })).await;
    let cure = patient.finds("vault.creds", "role-not-made").await;
    let said = patient.follow(&cure.replace("<connection>", "pg")).await;
    assert!(said[0].contains("SELECT 1/0"), "{said:?}");
    patient.world.write_vault_role(&VaultRole::default()).await;
    patient.cured("vault.creds", "role-not-made").await;
    let config = format!("{}/config/pg", patient.world.engine());
    patient.world.write(&config, json!({ "allowed_roles": "other" })).await;
    let cure = patient.finds("vault.creds", "connection-disallows-role").await;
    assert!(cure.contains(&role), "{cure}");
    let cure = cure.replace("<connection>", "pg");
    patient.is_cured(&cure, "vault.creds", "connection-disallows-role").await;

    let settings = patient.settings.clone();
    let engine = patient.world.engine();
    let kv = format!("kv{}", engine.strip_prefix("database").unwrap());
    patient.world.write(&format!("sys/mounts/{kv}"), json!({ "type": "kv" })).await;
    patient.world.write(&format!("{kv}/creds/db-app"), json!({ "note": "no credential" })).await;
    for (path, fault, command, shows) in [
        (format!("{kv}/creds/db-app"), "engine-of-another-kind", "vault secrets list", &*engine),
        (format!("{engine}/creds/nobody"), "vault-role-missing", "vault list ", "db-app"),
        // None is there yet.
        (format!("{engine}/static-creds/db-app"), "vault-role-missing", "nothing", ""),
    ] {
        patient.world.permit(&path).await;
        patient.settings = settings.replace(&world_path, &path);
        let cure = patient.finds("vault.creds", fault).await;
        let listing = cure.lines().find(|line| line.starts_with(command)).unwrap_or_default();
        let said = patient.follow(listing).await.concat();
        assert!(said.contains(shows), "{cure}: {said}");
    }
    patient.world.write(&config, json!({ "allowed_roles": "*" })).await;
    let (db_role, path) = patient.world.add_static_role(86_400).await;
    patient.settings = settings.replace(&world_path, &path);
    let checked = patient.cured("vault.creds", "vault-role-missing").await;
    checked.cured("vault.creds", "engine-of-another-kind");
    let found = checked.step("vault.creds")["found"].as_str().unwrap();
    assert!(found.starts_with(&format!("{db_role}, of a static role")), "{found}");
    assert_eq!(checked.code, 0, "{:#}", checked.document);
}
