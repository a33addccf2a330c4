//! What `deploy/` has for Vault and PostgreSQL, run on real servers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use reqwest::Method;
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use crate::support::Servers;
use crate::support::postgres::Database;
use crate::support::process::Folder;
use crate::support::tokenreview::TokenReview;

mod vault;
mod reaper;
mod cronjob;

const ROLES_SQL: &str = include_str!("../../deploy/postgres/roles.sql");
const REAPER_SQL: &str = include_str!("../../deploy/postgres/reaper.sql");
const SETUP_SH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/vault/setup.sh");

/// An application that `deploy/` has set up on the shared servers: its database is `wizard`, its names are those of
/// the files, all with a suffix.
struct Deployment {
    servers: &'static Servers,
    token_review: TokenReview,
    superuser: Database,
    suffix: String,
    folder: Folder,
}

impl Deployment {
    /// With PostgreSQL set up, and a password for `vault_admin`.
    async fn of_postgres() -> Self {
        let servers = Servers::shared().await;
        let suffix = format!("_d{:08x}", fastrand::u32(..));
        let database = format!("wizard{suffix}");
        servers.postgres.query("postgres", &format!("CREATE DATABASE {database}")).await;
        let superuser = servers.postgres.connect(&database).await;
        let deployment = Self {
            servers,
            token_review: TokenReview::start(),
            superuser,
            suffix,
            folder: Folder::create(None),
        };
        deployment.run_sql().await;
        let password = format!("ALTER ROLE {} PASSWORD '{FIRST_PASSWORD}'", deployment.named("vault_admin"));
        deployment.superuser.batch_execute(&password).await.unwrap();
        deployment
    }

    /// With Vault set up as well.
    async fn complete() -> Self {
        let deployment = Self::of_postgres().await;
        let done = deployment.set_up_vault(&[]).await;
        assert!(done.status.success(), "{}", words(&done));
        deployment
    }

    /// `roles.sql` and `reaper.sql`.
    async fn run_sql(&self) {
        for sql in [ROLES_SQL, REAPER_SQL] {
            self.superuser.batch_execute(&self.renamed(sql)).await.unwrap();
        }
    }

    /// A name of the files, as it is here.
    fn named(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// This text with the names of the roles as they are here: what the files tell an operator to do.
    fn renamed(&self, sql: &str) -> String {
        let names = ["app_ro", "app_rw", "app_owner", "app_reaper", "vault_admin"];
        names.iter().fold(sql.to_owned(), |sql, name| sql.replace(name, &self.named(name)))
    }

    fn database(&self) -> String {
        self.named("wizard")
    }

    /// `vault_role`, `-ro` say, as it is called here.
    fn vault_role(&self, kind: &str) -> String {
        format!("db-app{}{kind}", self.suffix)
    }

    fn creds(&self, kind: &str) -> String {
        format!("{}/creds/{}", self.named("database"), self.vault_role(kind))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the folder.
    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    /// `setup.sh` to its end, by a program called `bao` and its variables, with these ones changed or, where they are
    /// empty, left out.
    async fn set_up_vault(&self, changes: &[(&str, &str)]) -> Output {
        let postgres = &self.servers.postgres;
        let ca_file = postgres.ca_file().display().to_string();
        let mut variables = vec![
            ("HOME", self.folder.path().display().to_string()),
            ("PATH", format!("{}:/usr/bin:/bin", self.program("bao"))),
            ("BAO_ADDR", self.servers.openbao.address()),
            ("BAO_TOKEN", "root".to_owned()),
            ("NAME", self.vault_role("")),
            ("DB_HOST", "localhost".to_owned()),
            ("DB_PORT", postgres.port().to_string()),
            ("DB_NAME", self.database()),
            ("DB_PARAMETERS", format!("sslmode=verify-full&sslrootcert={ca_file}")),
            ("DB_ADMIN", self.named("vault_admin")),
            ("DB_ADMIN_PASSWORD_FILE", self.file("password", &format!("{FIRST_PASSWORD}\n"))),
            ("DB_MOUNT", self.named("database")),
            ("GROUP_RO", self.named("app_ro")),
            ("GROUP_RW", self.named("app_rw")),
            ("GROUP_OWNER", self.named("app_owner")),
            ("GROUP_REAPER", self.named("app_reaper")),
            ("KUBERNETES_MOUNT", self.named("kubernetes")),
            ("KUBERNETES_HOST", self.token_review.url()),
            ("KUBERNETES_CA_FILE", ca_file),
            ("KUBERNETES_REVIEWER_TOKEN_FILE", self.file("reviewer", "reviewer\n")),
        ];
        for (name, value) in changes {
            variables.retain(|(variable, _)| variable != name);
            if !value.is_empty() {
                variables.push((name, (*value).to_owned()));
            }
        }
        run_script(&variables).await
    }

    /// A folder with OpenBao's command line under this name.
    fn program(&self, name: &str) -> String {
        let folder = self.path(&format!("program-{name}"));
        if fs::create_dir(&folder).is_ok() {
            symlink(self.servers.openbao.program(), folder.join(name)).unwrap();
        }
        folder.display().to_string()
    }

    /// What Vault answers to the login of a service account.
    async fn login(&self, role: &str, jwt: &str) -> (u16, Value) {
        let path = format!("auth/{}/login", self.named("kubernetes"));
        let body = json!({ "role": role, "jwt": jwt });
        self.servers.openbao.call(Method::POST, &path, "", Some(body)).await
    }

    /// The token that a pod of the auth role `web` with this suffix logs in for.
    async fn token(&self, kind: &str) -> String {
        let (status, answer) =
            self.login(&format!("web{kind}"), &jwt("default", &format!("web{kind}"))).await;
        assert_eq!(status, 200, "{answer}");
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// A credential of that pod's own `vault_role`.
    async fn lease(&self, kind: &str) -> Leased {
        let token = self.token(kind).await;
        let (status, answer) = self.servers.openbao.call(Method::GET, &self.creds(kind), &token, None).await;
        assert_eq!(status, 200, "{answer}");
        let text = |pointer: &str| answer.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        Leased {
            token,
            lease_id: text("/lease_id"),
            user: text("/data/username"),
            password: text("/data/password"),
        }
    }

    async fn connect(&self, leased: &Leased) -> Result<Database, tokio_postgres::Error> {
        self.servers.postgres.connect_as(&self.database(), &leased.user, &leased.password).await
    }

    /// Ends a lease, and returns when it is done.
    async fn revoke(&self, leased: &Leased) {
        let body = json!({ "lease_id": leased.lease_id, "sync": true });
        self.servers.openbao.write("sys/leases/revoke", body).await;
    }

    /// Whether a role is there, and can log in.
    async fn can_log_in(&self, db_role: &str) -> Option<bool> {
        let sql = "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1";
        self.superuser.query_opt(sql, &[&db_role]).await.unwrap().map(|row| row.get(0))
    }
}

/// A credential that the test holds itself.
struct Leased {
    token: String,
    lease_id: String,
    user: String,
    password: String,
}

/// A token as pods get it for Vault.
fn jwt(namespace: &str, service_account: &str) -> String {
    TokenReview::jwt_for("vault", namespace, service_account, 3600)
}

/// `setup.sh` to its end, with these variables and no others.
async fn run_script(variables: &[(&str, String)]) -> Output {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.arg(SETUP_SH).current_dir(Path::new("/")).stdin(Stdio::null()).kill_on_drop(true);
    command.env_clear().envs(variables.iter().map(|(name, value)| (*name, value)));
    tokio::time::timeout(crate::PATIENCE * 10, command.output()).await.expect("it ends").unwrap()
}

/// What it has said.
fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Why PostgreSQL refuses this statement, if it does.
async fn refusal(session: &Database, sql: &str) -> Option<SqlState> {
    let refused = session.batch_execute(sql).await.err()?;
    Some(refused.code().unwrap_or_else(|| panic!("{sql}: {refused:?}")).clone())
}

/// Of `vault_admin`, until Vault replaces it.
const FIRST_PASSWORD: &str = "until-rotate-root";
