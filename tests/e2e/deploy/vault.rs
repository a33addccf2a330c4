//! `deploy/vault`, and the roles of `deploy/postgres` that it leases.

use reqwest::Method;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use super::{Deployment, FIRST_PASSWORD, jwt, refusal, words};
use crate::support::process::write_program;
use crate::support::tokenreview::TokenReview;
use crate::{PATIENCE, pglease_with, until};

const KINDS: [&str; 4] = ["", "-ro", "-owner", "-reaper"];

/// All that the files have made, on both servers.
async fn state(deployment: &Deployment) -> Vec<Value> {
    let openbao = &deployment.servers.openbao;
    let (engine, auth) = (deployment.named("database"), deployment.named("kubernetes"));
    let mut paths = vec![
        format!("sys/mounts/{engine}"),
        format!("{engine}/config/{}", deployment.database()),
        format!("sys/auth/{auth}"),
        format!("auth/{auth}/config"),
    ];
    for kind in KINDS {
        paths.push(format!("{engine}/roles/{}", deployment.vault_role(kind)));
        paths.push(format!("sys/policies/acl/{}", deployment.vault_role(kind)));
        paths.push(format!("auth/{auth}/role/web{kind}"));
    }
    let mut state = Vec::new();
    for path in paths {
        let mut data = openbao.read(&path).await;
        // When it was written last.
        if let Some(fields) = data.as_object_mut() {
            fields.retain(|name, _| name != "modified");
        }
        state.push(json!({ path: data }));
    }
    let catalogue = [
        "SELECT * FROM pg_authid WHERE rolname ~ '<suffix>$' ORDER BY oid",
        "SELECT roleid::regrole, member::regrole, grantor::regrole, admin_option, to_jsonb(m) - 'oid' \
         FROM pg_auth_members m WHERE member::regrole::text ~ '<suffix>$' ORDER BY roleid, member",
        "SELECT datacl FROM pg_database WHERE datname = current_database()",
        "SELECT nspname, nspowner, nspacl FROM pg_namespace WHERE nspname IN ('public', 'pglease') ORDER BY 1",
        "SELECT * FROM pg_default_acl ORDER BY oid",
        "SELECT oid, proname, proowner, proacl, prosrc FROM pg_proc \
         WHERE pronamespace = 'pglease'::regnamespace ORDER BY oid",
    ];
    for sql in catalogue {
        let rows = deployment.superuser.rows(&sql.replace("<suffix>", &deployment.suffix)).await;
        // Up to PostgreSQL 15 it needs no membership to hand one on.
        assert!(!rows.is_empty() || sql.contains("pg_auth_members"), "{sql}");
        state.push(json!(rows));
    }
    state
}

#[tokio::test]
async fn set_up_twice_is_set_up_once_by_either_program_and_its_password_is_nobodys() {
    let deployment = Deployment::complete().await;
    let before = state(&deployment).await;

    deployment.run_sql().await;
    let openbao = &deployment.servers.openbao;
    let again = deployment
        .set_up_vault(&[
            ("PATH", &format!("{}:/usr/bin:/bin", deployment.program("vault"))),
            ("BAO_ADDR", ""),
            ("BAO_TOKEN", ""),
            ("VAULT_ADDR", &openbao.address()),
            ("VAULT_TOKEN", "root"),
            ("VAULT_FORMAT", "json"),
            // Not needed any more, and it could not be right.
            ("DB_ADMIN_PASSWORD_FILE", ""),
        ])
        .await;
    assert!(again.status.success(), "{}", words(&again));
    for (before, after) in before.iter().zip(&state(&deployment).await) {
        assert_eq!(before, after);
    }

    let admin = deployment.named("vault_admin");
    let refused = deployment.servers.postgres.connect_as("postgres", &admin, FIRST_PASSWORD).await;
    assert_eq!(refused.err().unwrap().code(), Some(&SqlState::INVALID_PASSWORD));
    // Vault still has the right one.
    deployment.lease("").await;
}

#[tokio::test]
async fn pglease_lives_on_it_and_each_role_can_do_what_it_should_and_no_more() {
    let deployment = Deployment::of_postgres().await;
    // The pod's ServiceAccount may all three; leases are short, so that they are renewed.
    let changes = [("DEFAULT_TTL", "20s"), ("OWNER_SERVICE_ACCOUNTS", "web")];
    let done = deployment.set_up_vault(&changes).await;
    assert!(done.status.success(), "{}", words(&done));
    let pglease = pglease_with(&settings(&deployment)).await;
    let database = deployment.database();
    let connect = async |user: &str| pglease.connect_as(&database, user).await.unwrap();

    let owner = connect("owner").await;
    owner
        .batch_execute("CREATE TABLE spells (id int GENERATED ALWAYS AS IDENTITY, spell text)")
        .await
        .unwrap();
    let (rw, ro) = (connect("rw").await, connect("ro").await);
    rw.batch_execute("INSERT INTO spells (spell) VALUES ('alohomora'), ('lumos')").await.unwrap();
    rw.batch_execute("UPDATE spells SET spell = 'nox' WHERE spell = 'lumos'").await.unwrap();
    rw.batch_execute("DELETE FROM spells WHERE spell = 'nox'").await.unwrap();
    assert_eq!(ro.rows("SELECT spell FROM spells").await, [[Some("alohomora".to_owned())]]);
    owner.batch_execute("ALTER TABLE spells ADD COLUMN wand text").await.unwrap();
    let owner_group = deployment.named("app_owner");
    let owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(deployment.superuser.rows(owners).await, [[Some(owner_group.clone())]]);

    let create_role = "CREATE ROLE mallory";
    let read_passwords = "SELECT rolpassword FROM pg_authid";
    let reap = "SELECT * FROM pglease.reap()";
    let admin = deployment.named("vault_admin");
    let become_admin = format!("SET ROLE {admin}");
    let become_owner = format!("SET ROLE {owner_group}");
    let refused: [(_, &[&str]); 3] = [
        (
            &ro,
            &[
                "INSERT INTO spells (spell) VALUES ('')",
                "DELETE FROM spells",
                "SELECT nextval('spells_id_seq')",
            ],
        ),
        (&rw, &["CREATE TABLE t ()", "DROP TABLE spells", "TRUNCATE spells", "ALTER TABLE spells ADD c int"]),
        (&owner, &["SET ROLE NONE; SELECT * FROM spells", "SET ROLE NONE; CREATE TABLE t ()"]),
    ];
    for (session, statements) in refused {
        let always = [create_role, read_passwords, reap, &become_admin];
        for sql in statements.iter().chain(&always) {
            let code = refusal(session, sql).await;
            assert_eq!(code, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{sql}");
        }
    }
    for session in [&ro, &rw] {
        assert_eq!(refusal(session, &become_owner).await, Some(SqlState::INSUFFICIENT_PRIVILEGE));
    }

    let renewed = async || pglease.metric("pglease_lease_renewals_total", "result=\"ok\"").await;
    until(async || renewed().await >= 3.0).await;
    let requests = pglease.metrics().await;
    let unwell = requests
        .iter()
        .find(|(name, _)| name.starts_with("pglease_vault_requests_total{") && !name.contains("code=\"20"));
    assert_eq!(unwell, None);

    pglease.sigterm();
    let status = pglease.wait_exit(PATIENCE).await;
    assert!(status.success(), "{status}");
    let living = format!(
        "SELECT rolname FROM pg_roles WHERE rolcanlogin AND starts_with(rolname, 'v-{}')",
        deployment.vault_role("")
    );
    until(async || deployment.superuser.rows(&living).await.is_empty()).await;
    let of_pods = format!("{}-", deployment.named("kubernetes"));
    let requests = deployment.servers.openbao.requests();
    let mut of_pods = requests.iter().filter(|request| request.display_name.starts_with(&of_pods));
    assert!(of_pods.clone().any(|request| request.path == "auth/token/revoke-self" && request.was_granted()));
    let forbidden = of_pods.find(|request| request.is_forbidden);
    assert!(forbidden.is_none(), "{forbidden:?}");
}

/// pglease with a route for each of `ro`, `rw` and `owner`.
fn settings(deployment: &Deployment) -> String {
    let upstream = deployment.servers.postgres.url(&deployment.database());
    let route = |user: &str, kind: &str| {
        let path = deployment.creds(kind);
        format!("[[route]]\nuser = {user:?}\nupstream = {upstream:?}\nvault_path = {path:?}\n")
    };
    format!(
        "[vault]\naddress = {:?}\n[vault.login]\nrole = \"web-owner\"\nmount = {:?}\njwt_file = {:?}\n\
         [listen]\naddresses = [\"localhost:0\"]\nconnect_wait = \"2m\"\n[http]\naddress = \"127.0.0.1:0\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\n{}{}{}startup_role = {:?}\n",
        deployment.servers.openbao.address(),
        deployment.named("kubernetes"),
        deployment.file("token", &jwt("default", "web")),
        route("ro", "-ro"),
        route("rw", ""),
        route("owner", "-owner"),
        deployment.named("app_owner"),
    )
}

#[tokio::test]
async fn lease_that_ends_leaves_open_sessions_alone_and_lets_nobody_in_any_more() {
    let deployment = Deployment::complete().await;
    deployment.superuser.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    deployment.run_sql().await;
    let leased = deployment.lease("").await;
    let session = deployment.connect(&leased).await.unwrap();
    deployment.revoke(&leased).await;

    session.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    let refused = deployment.connect(&leased).await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION));
    assert_eq!(deployment.can_log_in(&leased.user).await, Some(false));

    // Nothing has to be dropped after the one that drops.
    let reaper = deployment.lease("-reaper").await;
    deployment.revoke(&reaper).await;
    assert_eq!(deployment.can_log_in(&reaper.user).await, None);

    // By PostgreSQL's own clock, a moment after the lease's end; and so many sessions, no more.
    let done = deployment.set_up_vault(&[("CONNECTION_LIMIT", "1"), ("DEFAULT_TTL", "30m")]).await;
    assert!(done.status.success(), "{}", words(&done));
    let leased = deployment.lease("").await;
    let limits = format!(
        "SELECT rolvaliduntil - now() BETWEEN '20m' AND '31m', rolconnlimit FROM pg_roles WHERE rolname = '{}'",
        leased.user
    );
    assert_eq!(deployment.superuser.rows(&limits).await, [["t", "1"].map(|text| Some(text.to_owned()))]);
    let _first = deployment.connect(&leased).await.unwrap();
    let refused = deployment.connect(&leased).await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
}

#[tokio::test]
async fn only_the_named_accounts_log_in_and_their_tokens_are_good_for_their_credentials_alone() {
    let deployment = Deployment::complete().await;
    only_the_named_accounts_log_in(&deployment).await;
    let openbao = &deployment.servers.openbao;
    let (engine, auth) = (deployment.named("database"), deployment.named("kubernetes"));
    let readable: [(&str, &[&str]); 4] = [
        ("", &["", "-ro"]),
        ("-ro", &["-ro"]),
        ("-owner", &["-owner", "", "-ro"]),
        ("-reaper", &["-reaper"]),
    ];
    for (kind, may_read) in readable {
        let token = deployment.token(kind).await;
        for of in KINDS {
            let (status, answer) = openbao.call(Method::GET, &deployment.creds(of), &token, None).await;
            let right = if may_read.contains(&of) { 200 } else { 403 };
            assert_eq!(status, right, "{kind:?} reads {of:?}: {answer}");
        }
    }

    // All that pglease asks for.
    let own = deployment.lease("").await;
    let (renew, lookup) =
        (json!({ "lease_id": own.lease_id, "increment": 0 }), json!({ "lease_id": own.lease_id }));
    let needed = [
        (Method::GET, "auth/token/lookup-self", json!(null), 200),
        (Method::POST, "auth/token/renew-self", json!({}), 200),
        (Method::PUT, "sys/leases/renew", renew, 200),
        (Method::PUT, "sys/leases/lookup", lookup, 200),
        (Method::POST, "auth/token/revoke-self", json!(null), 204),
    ];
    for (method, path, body, right) in needed {
        let body = Some(body).filter(|body| !body.is_null());
        let (status, answer) = openbao.call(method, path, &own.token, body).await;
        assert_eq!(status, right, "{path}: {answer}");
    }
    until(async || deployment.can_log_in(&own.user).await == Some(false)).await;

    let foreign = deployment.lease("-owner").await;
    let token = deployment.token("").await;
    let (status, answer) = openbao.call(Method::GET, "auth/token/lookup-self", &token, None).await;
    assert_eq!(status, 200, "{answer}");
    let data = &answer["data"];
    assert_eq!(data["policies"], json!([deployment.vault_role(""), deployment.vault_role("-ro")]));
    assert_eq!(
        (&data["num_uses"], &data["type"], &data["renewable"]),
        (&json!(0), &json!("service"), &json!(true))
    );
    assert_eq!(data["creation_ttl"], 3600);

    let connection = deployment.database();
    let (own_role, own_policy) = (deployment.vault_role(""), deployment.vault_role(""));
    let forbidden = [
        (Method::GET, format!("{engine}/roles?list=true"), json!(null)),
        (Method::GET, format!("{engine}/roles/{own_role}"), json!(null)),
        (Method::POST, format!("{engine}/roles/{own_role}"), json!({ "db_name": connection })),
        (Method::GET, format!("{engine}/config/{connection}"), json!(null)),
        (Method::POST, format!("{engine}/rotate-root/{connection}"), json!({})),
        (Method::GET, "sys/mounts".to_owned(), json!(null)),
        (Method::GET, format!("sys/policies/acl/{own_policy}"), json!(null)),
        (Method::POST, format!("sys/policies/acl/{own_policy}"), json!({ "policy": "" })),
        (Method::GET, format!("auth/{auth}/role/web"), json!(null)),
        (Method::POST, "auth/token/create".to_owned(), json!({})),
        (Method::POST, "auth/token/lookup".to_owned(), json!({ "token": foreign.token })),
        (Method::POST, "auth/token/revoke".to_owned(), json!({ "token": foreign.token })),
        (Method::PUT, "sys/leases/revoke".to_owned(), json!({ "lease_id": foreign.lease_id })),
        (Method::GET, format!("sys/leases/lookup/{engine}?list=true"), json!(null)),
        (Method::POST, "cubbyhole/note".to_owned(), json!({ "text": "" })),
    ];
    for (method, path, body) in forbidden {
        let body = Some(body).filter(|body| !body.is_null());
        let (status, answer) = openbao.call(method, &path, &token, body).await;
        assert_eq!(status, 403, "{path}: {answer}");
    }
}

async fn only_the_named_accounts_log_in(deployment: &Deployment) {
    let logins = [
        ("web", jwt("default", "web"), 200),
        ("web", jwt("default", "web-owner"), 403),
        ("web-owner", jwt("default", "web"), 403),
        ("web-reaper", jwt("default", "web"), 403),
        ("web", jwt("kube-system", "web"), 403),
        ("web", TokenReview::jwt_for("https://kubernetes.default.svc", "default", "web", 3600), 403),
        ("web", TokenReview::jwt_for("vault", "default", "web", -120), 403),
    ];
    for (role, jwt, right) in logins {
        let (status, answer) = deployment.login(role, &jwt).await;
        assert_eq!(status, right, "{role}: {answer}");
    }
}

#[tokio::test]
async fn script_that_cannot_go_on_says_why_and_leaves_no_half_of_a_connection() {
    let deployment = Deployment::of_postgres().await;
    let engine = deployment.named("database");
    let no_program = deployment.path("").display().to_string();
    let few_rights = format!(
        "path \"*\" {{ capabilities = [\"create\", \"read\", \"update\", \"delete\", \"list\", \"sudo\"] }}\n\
         path \"{engine}/rotate-root/*\" {{ capabilities = [\"deny\"] }}\n"
    );
    let openbao = &deployment.servers.openbao;
    let policy = deployment.named("few-rights");
    openbao.write(&format!("sys/policies/acl/{policy}"), json!({ "policy": few_rights })).await;
    let token = json!({ "policies": [policy] });
    let (status, answer) = openbao.call(Method::POST, "auth/token/create", "root", Some(token)).await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let admin = deployment.named("vault_admin");
    let wrong_password = deployment.file("wrong", "wrong\n");
    let empty = deployment.file("empty", "");

    let failures = [
        ("DB_HOST", "", "DB_HOST is not set: where Vault reaches PostgreSQL"),
        ("DB_NAME", "", "DB_NAME is not set: the application's database"),
        ("BAO_ADDR", "", "VAULT_ADDR is not set"),
        ("BAO_TOKEN", "wrong", "no token that Vault at http://127.0.0.1:"),
        ("VAULT_CLI", "vaultt", "there is no program vaultt; VAULT_CLI names the one to use"),
        ("PATH", &no_program, "there is no program bao or vault"),
        ("DB_ADMIN_PASSWORD_FILE", "", "DB_ADMIN_PASSWORD_FILE is not set: a file with the password of"),
        ("DB_ADMIN_PASSWORD_FILE", "/nowhere", "DB_ADMIN_PASSWORD_FILE: there is no file /nowhere"),
        ("DB_ADMIN_PASSWORD_FILE", &empty, "with something in it"),
        (
            "DB_ADMIN_PASSWORD_FILE",
            &wrong_password,
            &format!("password authentication failed for user \"{admin}\""),
        ),
        ("BAO_TOKEN", token, &format!("the password of {admin} was not replaced")),
        (
            "KUBERNETES_CA_FILE",
            "",
            "KUBERNETES_CA_FILE is not set: one that KUBERNETES_REVIEWER_TOKEN_FILE goes with",
        ),
    ];
    for (name, value, right) in failures {
        let done = deployment.set_up_vault(&[(name, value)]).await;
        assert!(!done.status.success(), "{name}={value}: {}", words(&done));
        assert!(words(&done).contains(right), "{name}={value}: {}", words(&done));
        if name != "KUBERNETES_CA_FILE" {
            assert!(openbao.list(&format!("{engine}/config")).await.is_empty(), "{name}={value}");
        }
    }

    // It goes on from there.
    let done = deployment.set_up_vault(&[]).await;
    assert!(done.status.success(), "{}", words(&done));
    deployment.lease("").await;

    let failures = [
        ("DB_PORT", "1", "is another connection; DB_CONNECTION gives this one a name of its own"),
        ("DB_MOUNT", "secret", "secret/ is of type kv, not database"),
    ];
    for (name, value, right) in failures {
        let done = deployment.set_up_vault(&[(name, value)]).await;
        assert!(!done.status.success() && words(&done).contains(right), "{name}: {}", words(&done));
    }
}

#[tokio::test]
async fn script_that_is_stopped_before_the_password_is_replaced_takes_the_connection_back() {
    let deployment = Deployment::of_postgres().await;
    let openbao = &deployment.servers.openbao;
    // Stops the script in the middle of that.
    let program = deployment.path("stopping");
    write_program(
        &program,
        &format!(
            "#!/bin/sh\ncase $* in *rotate-root*) kill -TERM $PPID; exit ;; esac\nexec {} \"$@\"\n",
            openbao.program().display()
        ),
    );
    let done = deployment.set_up_vault(&[("VAULT_CLI", &program.display().to_string())]).await;
    assert!(!done.status.success(), "{}", words(&done));
    assert!(openbao.list(&format!("{}/config", deployment.named("database"))).await.is_empty());
    let made = format!("Data written to: {}/config/", deployment.named("database"));
    assert!(words(&done).contains(&made), "{}", words(&done));
}

#[tokio::test]
async fn set_up_in_a_namespace_stays_in_it() {
    let deployment = Deployment::of_postgres().await;
    let openbao = &deployment.servers.openbao;
    let namespace = deployment.named("team");
    openbao.write(&format!("sys/namespaces/{namespace}"), json!({})).await;
    let done = deployment.set_up_vault(&[("BAO_NAMESPACE", &namespace)]).await;
    assert!(done.status.success(), "{}", words(&done));

    let login = format!("{namespace}/auth/{}/login", deployment.named("kubernetes"));
    let body = json!({ "role": "web", "jwt": jwt("default", "web") });
    let (status, answer) = openbao.call(Method::POST, &login, "", Some(body)).await;
    assert_eq!(status, 200, "{answer}");
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let path = format!("{namespace}/{}", deployment.creds(""));
    let (status, answer) = openbao.call(Method::GET, &path, token, None).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = openbao
        .call(Method::GET, &format!("sys/mounts/{}", deployment.named("database")), "root", None)
        .await;
    assert_eq!(status, 400, "{answer}");
}
