//! `deploy/postgres/reaper.sql`.

use tokio_postgres::error::SqlState;

use super::{Deployment, FIRST_PASSWORD, REAPER_SQL, ROLES_SQL, refusal};
use crate::support::postgres::{Database, Postgres, PostgresOptions};
use crate::until_without_session;

/// What a run says: role, outcome, reason.
type Row = (String, String, String);

async fn reap(session: &Database) -> Vec<Row> {
    reap_with(session, "").await
}

async fn reap_with(session: &Database, arguments: &str) -> Vec<Row> {
    let rows = session.rows(&format!("SELECT * FROM pglease.reap({arguments})")).await;
    let mut rows = rows.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default));
    rows.by_ref().map(|mut row| (row.next().unwrap(), row.next().unwrap(), row.next().unwrap())).collect()
}

fn row(db_role: &str, outcome: &str, reason: &str) -> Row {
    (db_role.to_owned(), outcome.to_owned(), reason.to_owned())
}

const NOTHING: &str = "it owned nothing";

/// A name as Vault gives it.
fn leased_name(name: &str) -> String {
    format!("v-{name}-Abcdefghij0123456789-1700000000")
}

impl Deployment {
    async fn vault_admin(&self) -> Database {
        let admin = self.named("vault_admin");
        self.servers.postgres.connect_as(&self.database(), &admin, FIRST_PASSWORD).await.unwrap()
    }

    /// A role as Vault leases it, that can log in still.
    async fn leased_role(&self, admin: &Database, name: &str, group: &str) -> String {
        let name = leased_name(&self.named(name));
        create_role(admin, &name, &self.named(group)).await;
        name
    }

    async fn session_of(&self, db_role: &str) -> Database {
        self.servers.postgres.connect_as(&self.database(), db_role, PASSWORD).await.unwrap()
    }
}

async fn create_role(admin: &Database, name: &str, group: &str) {
    let sql = format!("CREATE ROLE \"{name}\" LOGIN PASSWORD '{PASSWORD}' IN ROLE {group}");
    admin.batch_execute(&sql).await.unwrap();
}

async fn end_lease(admin: &Database, db_role: &str) {
    admin.batch_execute(&format!("ALTER ROLE \"{db_role}\" NOLOGIN")).await.unwrap();
}

#[tokio::test]
async fn leased_role_is_dropped_once_its_lease_is_over_and_its_last_session_too() {
    let deployment = Deployment::complete().await;
    let owner_group = deployment.named("app_owner");
    let [used, unused, living, owner] = [
        deployment.lease("").await,
        deployment.lease("-ro").await,
        deployment.lease("").await,
        deployment.lease("-owner").await,
    ];
    let session = deployment.connect(&used).await.unwrap();
    let owners_session = deployment.connect(&owner).await.unwrap();
    owners_session.batch_execute(&format!("SET ROLE {owner_group}; CREATE TABLE t (i int)")).await.unwrap();
    for leased in [&used, &unused, &owner] {
        deployment.revoke(leased).await;
    }

    let reaper = deployment.connect(&deployment.lease("-reaper").await).await.unwrap();
    let open = "1 open session(s)";
    let right = [
        row(&used.user, "kept", open),
        row(&unused.user, "dropped", NOTHING),
        row(&owner.user, "kept", open),
    ];
    assert_eq!(reap(&reaper).await, right);
    session.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    owners_session.batch_execute("ALTER TABLE t ADD COLUMN j int").await.unwrap();

    drop((session, owners_session));
    for leased in [&used, &owner] {
        until_without_session(&deployment.superuser, &leased.user).await;
    }
    let right = [row(&used.user, "dropped", NOTHING), row(&owner.user, "dropped", NOTHING)];
    assert_eq!(reap(&reaper).await, right);
    assert_eq!(deployment.can_log_in(&used.user).await, None);
    let living = deployment.connect(&living).await.unwrap();
    assert_eq!(living.rows("SELECT i FROM t").await, [[Some("1".to_owned())]]);
    assert_eq!(reap(&reaper).await, []);
}

#[tokio::test]
async fn roles_of_others_stay_whatever_they_are_called_and_so_do_those_that_are_not_old_enough() {
    let deployment = Deployment::of_postgres().await;
    let admin = deployment.vault_admin().await;
    let group = deployment.named("app_rw");
    let name = |name: &str| leased_name(&deployment.named(name));
    // By somebody else; by Vault's user, but in no group; in one, but named otherwise; able to log in.
    let foreign = format!("CREATE ROLE \"{}\" NOLOGIN IN ROLE {group}", name("foreign"));
    deployment.superuser.batch_execute(&foreign).await.unwrap();
    admin.batch_execute(&format!("CREATE ROLE \"{}\" NOLOGIN", name("groupless"))).await.unwrap();
    let team = deployment.named("v-team");
    admin.batch_execute(&format!("CREATE ROLE \"{team}\" NOLOGIN IN ROLE {group}")).await.unwrap();
    let living = deployment.leased_role(&admin, "living", "app_rw").await;
    let due = deployment.leased_role(&admin, "due", "app_rw").await;
    end_lease(&admin, &due).await;

    let until = |ended: &str| format!("ALTER ROLE \"{due}\" VALID UNTIL '{ended}'");
    for ended in ["infinity", "tomorrow", "yesterday"] {
        admin.batch_execute(&until(ended)).await.unwrap();
        assert_eq!(reap_with(&deployment.superuser, "older_than => '2 days'").await, [], "{ended}");
    }
    admin.batch_execute(&until("2020-01-01")).await.unwrap();
    let rows = reap_with(&deployment.superuser, "older_than => '2 days'").await;
    assert_eq!(rows, [row(&due, "dropped", NOTHING)]);
    for (db_role, can_log_in) in
        [(name("foreign"), false), (name("groupless"), false), (team, false), (living, true)]
    {
        assert_eq!(deployment.can_log_in(&db_role).await, Some(can_log_in), "{db_role}");
    }
    // From 16 on Vault's user has no power over it either: nor over what it made itself before an upgrade to that.
    if deployment.servers.postgres.major() >= 16 {
        let refused = refusal(&admin, &format!("ALTER ROLE \"{}\" LOGIN", name("foreign"))).await;
        assert_eq!(refused, Some(SqlState::INSUFFICIENT_PRIVILEGE));
    }
    for group in ["app_ro", "app_rw", "app_owner", "app_reaper"] {
        assert_eq!(deployment.can_log_in(&deployment.named(group)).await, Some(false), "{group}");
    }
}

#[tokio::test]
async fn what_an_owner_has_made_goes_to_its_group_and_what_others_have_made_is_not_lost() {
    let deployment = Deployment::of_postgres().await;
    let admin = deployment.vault_admin().await;
    let (group, readers) = (deployment.named("app_owner"), deployment.named("app_ro"));
    let owner = deployment.leased_role(&admin, "owner", "app_owner").await;
    let granted = deployment.leased_role(&admin, "granted", "app_ro").await;
    let writer = deployment.leased_role(&admin, "writer", "app_rw").await;
    let stray = deployment.leased_role(&admin, "stray", "app_rw").await;
    let made = format!(
        "CREATE TABLE spells (spell text); INSERT INTO spells VALUES ('lumos');
         CREATE VIEW bright AS SELECT * FROM spells;
         ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {readers};
         GRANT SELECT ON spells TO \"{granted}\""
    );
    deployment.session_of(&owner).await.batch_execute(&made).await.unwrap();
    let object = deployment.session_of(&writer).await.rows("SELECT lo_from_bytea(0, '\\x6e6f78')").await;
    let object = object[0][0].clone().unwrap();
    let made = format!("CREATE TABLE dba (i int); GRANT SELECT ON dba TO \"{stray}\"");
    deployment.superuser.batch_execute(&made).await.unwrap();
    for db_role in [&owner, &granted, &writer, &stray] {
        end_lease(&admin, db_role).await;
        until_without_session(&deployment.superuser, db_role).await;
    }

    // It does not wait for long behind somebody's transaction, and leaves nothing half done.
    deployment.superuser.batch_execute("BEGIN; SELECT * FROM spells").await.unwrap();
    let reaper = deployment.servers.postgres.connect(&deployment.database()).await;
    let rows = reap(&reaper).await;
    assert_eq!(rows[0], row(&owner, "kept", "canceling statement due to lock timeout"));
    assert!(rows.iter().all(|row| row.1 == "kept"), "{rows:?}");
    deployment.superuser.batch_execute("COMMIT").await.unwrap();

    let rows = reap(&reaper).await;
    let owns = format!("owns something in {} and is no member of {group}", deployment.database());
    let right = [
        row(&owner, "dropped", &format!("what it owned belongs to {group}")),
        row(&granted, "dropped", NOTHING),
        row(&writer, "kept", &owns),
    ];
    assert_eq!(rows[..3], right);
    assert!(rows[3].1 == "kept" && rows[3].2.ends_with(": privileges for table public.dba"), "{rows:?}");
    let owners =
        "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('spells', 'bright') ORDER BY 1";
    assert_eq!(reaper.rows(owners).await, [[Some(group.clone())], [Some(group.clone())]]);
    assert_eq!(reaper.rows("SELECT * FROM bright").await, [[Some("lumos".to_owned())]]);
    assert_eq!(reaper.rows(&format!("SELECT lo_get({object})")).await, [[Some("\\x6e6f78".to_owned())]]);
    // Vault's user has given back the rights that it took for that.
    assert_eq!(refusal(&admin, "SELECT * FROM spells").await, Some(SqlState::INSUFFICIENT_PRIVILEGE));

    // Once somebody has seen to them.
    deployment.superuser.batch_execute(&format!("DROP OWNED BY \"{writer}\", \"{stray}\"")).await.unwrap();
    assert_eq!(reap(&reaper).await, [row(&writer, "dropped", NOTHING), row(&stray, "dropped", NOTHING)]);
}

#[tokio::test]
async fn role_with_something_elsewhere_or_a_prepared_transaction_waits_for_its_end() {
    let settings = vec![("max_prepared_transactions", "5".to_owned())];
    let postgres = Postgres::start(PostgresOptions { settings, ..PostgresOptions::default() }).await;
    let mut superusers = Vec::new();
    // As they stand, on a server of its own.
    for database in ["wizard", "owls"] {
        postgres.query("postgres", &format!("CREATE DATABASE {database}")).await;
        let superuser = postgres.connect(database).await;
        superuser.batch_execute(ROLES_SQL).await.unwrap();
        superuser.batch_execute(REAPER_SQL).await.unwrap();
        superusers.push(superuser);
    }
    superusers[0].batch_execute("ALTER ROLE vault_admin PASSWORD 'x'; CREATE TABLE t (i int)").await.unwrap();
    superusers[0].batch_execute(ROLES_SQL).await.unwrap();
    let admin = postgres.connect_as("wizard", "vault_admin", "x").await.unwrap();
    let [owner, preparer] = ["owner", "preparer"].map(leased_name);
    create_role(&admin, &owner, "app_owner").await;
    create_role(&admin, &preparer, "app_rw").await;
    let sessions = [
        ("owls", &owner, "CREATE TABLE owls (name text)"),
        ("wizard", &preparer, "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'first'"),
    ];
    for (database, db_role, sql) in sessions {
        let session = postgres.connect_as(database, db_role, PASSWORD).await.unwrap();
        session.batch_execute(sql).await.unwrap();
    }
    for db_role in [&owner, &preparer] {
        end_lease(&admin, db_role).await;
        until_without_session(&superusers[0], db_role).await;
    }

    let right = [
        row(&owner, "kept", "owns or is granted something in owls"),
        row(&preparer, "kept", "1 prepared transaction(s)"),
    ];
    assert_eq!(reap(&superusers[0]).await, right);
    superusers[0].batch_execute("COMMIT PREPARED 'first'").await.unwrap();
    let right =
        [row(&owner, "dropped", "what it owned belongs to app_owner"), row(&preparer, "dropped", NOTHING)];
    assert_eq!(reap(&superusers[1]).await, right);
    assert_eq!(superusers[0].rows("SELECT i FROM t").await, [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn two_runs_at_once_drop_each_role_once_and_no_run_drops_more_than_it_may() {
    let deployment = Deployment::of_postgres().await;
    let admin = deployment.vault_admin().await;
    let mut due = Vec::new();
    for number in 0..30 {
        due.push(deployment.leased_role(&admin, &format!("due{number}"), "app_rw").await);
        end_lease(&admin, &due[number]).await;
    }
    let first = &deployment.superuser;
    let second = deployment.servers.postgres.connect(&deployment.database()).await;

    first.batch_execute("BEGIN").await.unwrap();
    let rows = reap_with(first, "10").await;
    assert_eq!(rows.len(), 30);
    assert!(rows[..10].iter().all(|row| row.1 == "dropped"), "{rows:?}");
    assert!(rows[10..].iter().all(|row| row.1 == "kept" && row.2 == "left for the next run"), "{rows:?}");
    assert_eq!(reap(&second).await, [row("", "nothing done", "another run is under way")]);
    // A run that is cut short has done nothing.
    first.batch_execute("ROLLBACK").await.unwrap();

    // In two databases neither knows of the other, and the roles are the same ones.
    let other = deployment.named("owls");
    first.batch_execute(&format!("CREATE DATABASE {other}")).await.unwrap();
    let elsewhere = deployment.servers.postgres.connect(&other).await;
    for sql in [ROLES_SQL, REAPER_SQL] {
        elsewhere.batch_execute(&deployment.renamed(sql)).await.unwrap();
    }
    let (first, second, elsewhere) = tokio::join!(reap(first), reap(&second), reap(&elsewhere));
    let mut rows = [first, second, elsewhere].concat();
    // Who waits for the other one's transaction for longer than 2 s leaves the role to it.
    rows.retain(|row| row.1 != "nothing done" && row.2 != "canceling statement due to lock timeout");
    rows.sort();
    due.sort();
    let right: Vec<_> = due.iter().map(|db_role| row(db_role, "dropped", NOTHING)).collect();
    assert_eq!(rows, right);
}

#[tokio::test]
async fn only_members_of_its_group_may_run_it_and_only_as_it_is() {
    let deployment = Deployment::of_postgres().await;
    let admin = deployment.vault_admin().await;
    let reaper = deployment.leased_role(&admin, "reaper", "app_reaper").await;
    let reaper = deployment.session_of(&reaper).await;
    for group in ["app_ro", "app_rw", "app_owner"] {
        let other = deployment.leased_role(&admin, group, group).await;
        let other = deployment.session_of(&other).await;
        let refused = refusal(&other, "SELECT * FROM pglease.reap()").await;
        assert_eq!(refused, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{group}");
    }
    let due = deployment.leased_role(&admin, "due", "app_rw").await;
    end_lease(&admin, &due).await;

    let part =
        format!("SELECT pglease.drop_leased_role('\"{due}\"'::regrole, '{}')", deployment.named("app_owner"));
    let drop = format!("DROP ROLE \"{due}\"");
    for sql in [&part, &drop, "CREATE TABLE pglease.t ()", "CREATE ROLE mallory"] {
        assert_eq!(refusal(&reaper, sql).await, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{sql}");
    }
    // What the caller calls by the names that it uses is not what it means.
    reaper
        .batch_execute(
            "CREATE TEMP TABLE pg_roles (oid oid, rolname name, rolcanlogin bool);
             CREATE TEMP TABLE pg_stat_activity (usesysid oid);
             SET search_path = pg_temp, public",
        )
        .await
        .unwrap();
    assert_eq!(reap(&reaper).await, [row(&due, "dropped", NOTHING)]);
}

const PASSWORD: &str = "leased";
