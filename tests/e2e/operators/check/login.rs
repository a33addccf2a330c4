//! Logins at Vault that come to nothing, by each method.

use std::fs;

use rcgen::KeyPair;
use serde_json::{Value, json};

use super::Patient;
use crate::support::pki::{Authority, signed_jwt};
use crate::support::tokenreview::{Answer, TokenReview};
use crate::support::world::World;

#[tokio::test]
async fn login_that_is_refused_is_told_why_and_what_helps() {
    let mut patient = Patient::new().await;
    for (fields, fault) in [
        (json!({ "audience": "vault" }), "jwt-audience"),
        (json!({ "bound_service_account_names": "other" }), "service-account"),
        (json!({ "bound_service_account_namespaces": "other" }), "service-account-namespace"),
        (json!({ "token_num_uses": 9 }), "token-limited-uses"),
    ] {
        patient.set_role(fields).await;
        let cure = patient.finds("vault.login", fault).await;
        patient.is_cured(&cure, "vault.login", fault).await;
    }
    patient.set_role(json!({ "token_type": "batch" })).await;
    let cure = patient.finds("vault.token", "token-batch").await;
    patient.check().await.assert_passed("vault.lease");
    patient.is_cured(&cure, "vault.token", "token-batch").await;

    patient.world.token_review.set_answer(Answer::Status(500));
    let cure = patient.finds("vault.login", "jwt-not-vouched-for").await;
    patient.follow(&cure).await;
    patient.world.token_review.set_answer(Answer::Honest);
    assert_eq!(patient.cured("vault.login", "jwt-not-vouched-for").await.code, 0);

    patient.world.write_jwt(-120);
    for name in ["vault.identity", "vault.login"] {
        patient.finds(name, "jwt-expired").await;
    }
    fs::write(patient.world.jwt_file(), "no JWT").unwrap();
    patient.finds("vault.identity", "jwt-malformed").await;
    fs::write(patient.world.jwt_file(), "of two\nlines\n").unwrap();
    for name in ["vault.identity", "vault.login"] {
        let cure = patient.finds(name, "login-file").await;
        assert!(cure.contains("vault.login.jwt_file"), "{cure}");
    }
    let jwt = TokenReview::jwt_for("https://kubernetes.default.svc", "default", "web", 3600);
    fs::write(patient.world.jwt_file(), jwt).unwrap();
    // The role takes another audience by now.
    let checked = patient.check().await;
    checked.trouble("vault.identity", "jwt-for-api-server");
    checked.trouble("vault.login", "jwt-audience");
    patient.world.write_jwt(600);
    let cure = patient.finds("vault.rotation", "rotates-often").await;
    assert!(cure.contains("pglease.dev/token-expiration: 24h"), "{cure}");
    // The kubelet has written another one.
    patient.world.write_jwt(24 * 3600);
    let checked = patient.check().await;
    for (name, fault) in [
        ("vault.identity", "jwt-expired"),
        ("vault.identity", "jwt-malformed"),
        ("vault.identity", "login-file"),
        ("vault.identity", "jwt-for-api-server"),
        ("vault.login", "jwt-expired"),
        ("vault.login", "login-file"),
        ("vault.login", "jwt-audience"),
        ("vault.rotation", "rotates-often"),
    ] {
        checked.cured(name, fault);
    }

    // What the settings have wrong.
    let settings = patient.settings.clone();
    let auth = format!("mount = {:?}", patient.world.auth());
    for (from, to, fault) in [
        (&*auth, "mount = \"nowhere\"", "jwt-not-vouched-for"),
        ("role = \"web\"", "role = \"nobody\"", "auth-role-missing"),
        ("namespace = \"\"", "namespace = \"nowhere\"", "namespace-missing"),
    ] {
        patient.settings = settings.replacen(from, to, 1);
        let cure = patient.finds("vault.login", fault).await;
        if to.contains("nobody") {
            patient.is_cured(&cure, "vault.login", fault).await;
        }
    }
    patient.settings = settings;
    let checked = patient.cured("vault.login", "namespace-missing").await;
    checked.cured("vault.login", "jwt-not-vouched-for");
    assert_eq!(checked.failed(), Vec::<&str>::new());
}

fn auth_role(world: &World<'_>, more: &Value) -> Value {
    let mut role = json!({ "token_policies": world.group("db-app"), "token_ttl": "1h" });
    role.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    role
}

#[tokio::test]
async fn jwt_that_vault_verifies_itself_is_told_what_its_role_wants() {
    let mut patient = Patient::new().await;
    let (mount, keys) = (patient.world.group("jwt"), [(); 2].map(|()| KeyPair::generate().unwrap()));
    patient.world.write(&format!("sys/auth/{mount}"), json!({ "type": "jwt" })).await;
    let config = format!("auth/{mount}/config");
    patient.world.write(&config, json!({ "jwt_validation_pubkeys": keys[0].public_key_pem() })).await;
    let role = format!("auth/{mount}/role/web");
    let bound = json!({ "role_type": "jwt", "user_claim": "sub", "bound_audiences": "other" });
    patient.world.write(&role, auth_role(&patient.world, &bound)).await;
    let jwt = patient.world.folder().join("jwt");
    let write = |key: &KeyPair, claims: Value| fs::write(&jwt, signed_jwt(key, &claims)).unwrap();
    let good = json!({ "sub": "web", "aud": "vault", "exp": 4_000_000_000_u64, "nbf": 1 });

    write(&keys[0], good.clone());
    let login = |mount: &str, role: &str| {
        patient
            .with_login(&format!("method = \"jwt\"\nmount = {mount:?}\nrole = {role:?}\njwt_file = {jwt:?}"))
    };
    let (nowhere, nobody, web) = (login("nowhere", "web"), login(&mount, "nobody"), login(&mount, "web"));
    patient.settings = nowhere;
    let cure = patient.finds("vault.login", "auth-mount-missing").await;
    assert!(patient.follow(&cure).await[0].contains(&format!("{mount}/")));
    patient.settings = nobody;
    let cure = patient.finds("vault.login", "auth-role-missing").await;
    let checked = patient.is_cured(&cure, "vault.login", "auth-role-missing").await;
    checked.cured("vault.login", "auth-mount-missing");
    patient.settings = web;
    let cure = patient.finds("vault.login", "jwt-audience").await;
    patient.is_cured(&cure, "vault.login", "jwt-audience").await;

    write(&keys[1], good.clone());
    let cure = patient.finds("vault.login", "jwt-refused").await;
    assert!(patient.follow(&cure).await[0].contains("jwt_validation_pubkeys"));
    patient.world.write(&config, json!({ "jwt_validation_pubkeys": keys[1].public_key_pem() })).await;
    patient.cured("vault.login", "jwt-refused").await;
    write(&keys[1], json!({ "sub": "web", "aud": "vault", "exp": 1_000_000_000, "nbf": 1 }));
    patient.finds("vault.login", "jwt-expired").await;
    write(&keys[1], json!({ "sub": "web", "aud": "vault", "nbf": 1 }));
    patient.check().await.trouble("vault.identity", "jwt-endless");
    write(&keys[1], good);
    patient.cured("vault.identity", "jwt-endless").await.cured("vault.login", "jwt-expired");
}

#[tokio::test]
async fn secret_id_certificate_and_token_that_are_not_taken_are_told_with_what_makes_new_ones() {
    let mut patient = Patient::new().await;
    let folder = patient.world.folder().to_owned();
    let file = |name: &str| folder.join(name);
    let settings = patient.settings.clone();

    // A RoleID without the SecretID that goes with it.
    let mount = patient.world.group("approle");
    patient.world.write(&format!("sys/auth/{mount}"), json!({ "type": "approle" })).await;
    patient.world.write(&format!("auth/{mount}/role/web"), auth_role(&patient.world, &json!({}))).await;
    let login = |mount: &str, role_id: &str| {
        let login = format!(
            "method = \"approle\"\nmount = {mount:?}\nrole_id = {role_id:?}\nsecret_id_file = {:?}",
            file("secret-id")
        );
        Patient::with_login(&patient, &login)
    };
    let (nowhere, stranger) = (login("nowhere", "somebody"), login(&mount, "somebody"));
    patient.settings = nowhere;
    fs::write(file("secret-id"), "of two\nlines\n").unwrap();
    patient.finds("vault.identity", "login-file").await;
    fs::write(file("secret-id"), "not-the-secret-id").unwrap();
    let cure = patient.finds("vault.login", "auth-mount-missing").await;
    assert!(patient.follow(&cure).await[0].contains(&format!("{mount}/")));
    patient.settings = stranger;
    let cure = patient.finds("vault.login", "secret-id-refused").await;
    let said = patient.follow(&cure.replace("<name>", "web")).await;
    let [role_id, secret_id] = &said[..] else { panic!("{said:?}") };
    fs::write(file("secret-id"), secret_id).unwrap();
    patient.settings = patient.settings.replace("somebody", role_id);
    patient.cured("vault.login", "secret-id-refused").await.cured("vault.login", "auth-mount-missing");

    // A certificate of a CA that the role does not have.
    let (mount, authority, other) = (patient.world.group("cert"), Authority::create(), Authority::create());
    patient.world.write(&format!("sys/auth/{mount}"), json!({ "type": "cert" })).await;
    let role = auth_role(&patient.world, &json!({ "certificate": other.pem() }));
    patient.world.write(&format!("auth/{mount}/certs/web"), role).await;
    let client = authority.issue_to("web");
    for (name, text) in
        [("client.pem", &client.certificate), ("client.key", &client.key), ("ca.pem", &authority.pem())]
    {
        fs::write(file(name), text).unwrap();
    }
    let openbao = &patient.world.servers.openbao;
    let tls = format!(
        "address = {:?}\nca_file = {:?}\nclient_cert_file = {:?}\nclient_key_file = {:?}",
        openbao.tls_address(),
        openbao.ca_file(),
        file("client.pem"),
        file("client.key")
    );
    patient.settings = settings.clone();
    patient.settings = patient
        .with_login(&format!("method = \"cert\"\nmount = {mount:?}\nrole = \"web\""))
        .replace(&format!("address = {:?}", openbao.address()), &tls);
    let cure = patient.finds("vault.login", "certificate-refused").await;
    let cure = cure.replace("<common name>", "web");
    patient.is_cured(&cure, "vault.login", "certificate-refused").await;

    // A token that nobody knows, and one that dies after some requests.
    patient.settings = settings;
    patient.settings =
        patient.with_login(&format!("method = \"token_file\"\ntoken_file = {:?}", file("sink")));
    fs::write(file("sink"), "hvs.nobodys").unwrap();
    let cure = patient.finds("vault.login", "token-refused").await;
    assert!(cure.contains("sink"), "{cure}");
    let token = async |uses: u32| {
        let body = json!({ "policies": [patient.world.group("db-app")], "ttl": "1h", "num_uses": uses });
        let made = patient.world.write("auth/token/create", body).await;
        fs::write(file("sink"), made["auth"]["client_token"].as_str().unwrap()).unwrap();
    };
    token(100).await;
    let cure = patient.finds("vault.login", "token-limited-uses").await;
    assert_eq!(cure, "put a token with num_uses 0 there");
    token(0).await;
    patient.cured("vault.login", "token-limited-uses").await.cured("vault.login", "token-refused");
}
