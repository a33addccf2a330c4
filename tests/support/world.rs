//! One tenant of the servers, set up as an operator would: a database with its group roles, a database engine
//! that alone knows its own password, `vault_role`s, a policy, a way in for the pods of a service account.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use reqwest::Method;
use serde_json::{Value, json};

use super::Servers;
use super::audit::Request;
use super::postgres::Database;
use super::process::Folder;
use super::tokenreview::TokenReview;

/// What differs between worlds.
pub(crate) struct WorldOptions {
    /// Whether the world has servers of its own, and so the plain names: database `app`, mounts `database` and
    /// `kubernetes`. Otherwise all its names are its own.
    pub(crate) is_alone: bool,
    /// Names of the OpenBao namespaces that its engine and its login are in, each in the one before; the first is the
    /// world's own.
    pub(crate) namespaces: &'static [&'static str],
    pub(crate) vault_roles: Vec<VaultRole>,
    /// Of the tokens, in Vault's notation.
    pub(crate) token_ttl: &'static str,
    /// `0` is Vault's own maximum.
    pub(crate) token_max_ttl: &'static str,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            is_alone: false,
            namespaces: &[],
            vault_roles: vec![VaultRole::default()],
            token_ttl: "1h",
            token_max_ttl: "0",
        }
    }
}

/// A role of the database engine.
#[derive(Clone)]
pub(crate) struct VaultRole {
    pub(crate) name: &'static str,
    /// In Vault's notation.
    pub(crate) default_ttl: &'static str,
    pub(crate) max_ttl: &'static str,
    pub(crate) revocation: Revocation,
    /// Group roles of the world that a leased role is in: `app_rw`, `app_ro`, `app_owner`.
    pub(crate) groups: &'static [&'static str],
    /// Of the role itself, as `REPLICATION`. Up to PostgreSQL 15 none but a superuser hands on that one.
    pub(crate) attributes: &'static str,
    /// Run before the role is created, `SELECT pg_sleep(0.4);` say.
    pub(crate) prelude: &'static str,
}

impl Default for VaultRole {
    fn default() -> Self {
        Self {
            name: "db-app",
            default_ttl: "1h",
            max_ttl: "24h",
            revocation: Revocation::NoLogin,
            groups: &["app_rw", "app_owner"],
            attributes: "",
            prelude: "",
        }
    }
}

/// What the end of a lease does to its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revocation {
    /// It may not log in any more.
    NoLogin,
    /// The engine's default: what it was granted is taken away, and it is dropped.
    Drop,
    /// Statements of the operator's own; `<app_rw>` stands for that group role of the world.
    Statements(&'static [&'static str]),
}

/// A set-up. What it made on the servers stays until they end; its folder and its responder end with it.
pub(crate) struct World<'a> {
    pub(crate) servers: &'a Servers,
    pub(crate) token_review: TokenReview,
    /// The superuser, in the world's database.
    pub(crate) superuser: Database,
    /// Between the names of a world that is not alone; empty for one that is.
    suffix: String,
    /// Without slashes; empty is the root namespace.
    namespace: String,
    folder: Folder,
}

impl<'a> World<'a> {
    /// A world among others on the shared servers.
    pub(crate) async fn shared(options: WorldOptions) -> World<'static> {
        World::create(Servers::shared().await, options).await
    }

    /// One on the shared servers whose leases live for seconds: as few as leave room for one new credential per
    /// 10 s, and for a busy machine to tell sessions of the end in time, which begins 5 s before it.
    pub(crate) async fn short_lived(revocation: Revocation) -> World<'static> {
        let vault_role = VaultRole { default_ttl: "20s", max_ttl: "30s", revocation, ..VaultRole::default() };
        World::shared(WorldOptions { vault_roles: vec![vault_role], ..WorldOptions::default() }).await
    }

    pub(crate) async fn create(servers: &'a Servers, options: WorldOptions) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let suffix = if options.is_alone { String::new() } else { format!("_w{number}") };

        let database = format!("app{suffix}");
        let postgres = servers.postgres.connect("postgres").await;
        postgres.rows(&format!("CREATE DATABASE {database}")).await;
        let superuser = servers.postgres.connect(&database).await;
        let mut world = Self {
            servers,
            token_review: TokenReview::start(),
            superuser,
            namespace: String::new(),
            suffix,
            folder: Folder::create(None),
        };

        for name in options.namespaces {
            let name = if world.namespace.is_empty() {
                format!("{name}{}", world.suffix)
            } else {
                (*name).to_owned()
            };
            world.write(&format!("sys/namespaces/{name}"), json!({})).await;
            world.namespace = world.api(&name);
        }
        world.set_up_database().await;
        world.set_up_engine().await;
        for vault_role in &options.vault_roles {
            world.write_vault_role(vault_role).await;
        }
        world.set_up_login(&options).await;
        world.write_jwt(3600);
        world
    }

    /// The database, which has the table `t` with the rows 1 to 100 and the empty table `visits`.
    pub(crate) fn database(&self) -> String {
        format!("app{}", self.suffix)
    }

    /// A group role of the world, as PostgreSQL knows it.
    pub(crate) fn group(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }

    /// Of its engine and its login; empty is the root namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A path of Vault's API as the root namespace has it.
    pub(crate) fn api(&self, path: &str) -> String {
        if self.namespace.is_empty() { path.to_owned() } else { format!("{}/{path}", self.namespace) }
    }

    /// POST as root in the world's namespace.
    pub(crate) async fn write(&self, path: &str, body: Value) -> Value {
        self.servers.openbao.write(&self.api(path), body).await
    }

    /// Mount of the database engine.
    pub(crate) fn engine(&self) -> String {
        format!("database{}", self.suffix)
    }

    /// Mount of the kubernetes auth method.
    pub(crate) fn auth(&self) -> String {
        format!("kubernetes{}", self.suffix)
    }

    /// `vault_path` of a `vault_role`.
    pub(crate) fn vault_path(&self, vault_role: &str) -> String {
        format!("{}/creds/{vault_role}", self.engine())
    }

    /// The pod's token.
    pub(crate) fn jwt_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// A folder for the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Replaces the pod's token by one that is valid for so long.
    pub(crate) fn write_jwt(&self, seconds: i64) {
        let next = self.folder.path().join("token.next");
        fs::write(&next, TokenReview::jwt("default", "web", seconds)).unwrap();
        fs::rename(next, self.jwt_file()).unwrap();
    }

    /// Names of the leased roles and whether they can log in, oldest first.
    pub(crate) async fn leased_roles(&self) -> Vec<(String, bool)> {
        let sql = format!(
            "SELECT rolname, rolcanlogin FROM pg_roles WHERE starts_with(rolname, '{}') ORDER BY oid",
            self.role_prefix()
        );
        let rows = self.superuser.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Those that can log in.
    pub(crate) async fn living_roles(&self) -> Vec<String> {
        let roles = self.leased_roles().await;
        roles.into_iter().filter_map(|(name, can_login)| can_login.then_some(name)).collect()
    }

    /// How all leased roles begin.
    pub(crate) fn role_prefix(&self) -> String {
        if self.suffix.is_empty() { "v-".to_owned() } else { format!("v{}-", self.suffix) }
    }

    /// Lets the world's pods read one more path, of another world say.
    pub(crate) async fn permit(&self, vault_path: &str) {
        let policy = format!("sys/policies/acl/{}", self.group("db-app"));
        let rights = self.servers.openbao.read(&policy).await["policy"].as_str().unwrap().to_owned();
        let rights = format!("{rights}path \"{vault_path}\" {{ capabilities = [\"read\"] }}\n");
        self.servers.openbao.write(&policy, json!({ "policy": rights })).await;
    }

    /// What pods of this world have asked OpenBao for, oldest first.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let (login, name) = (format!("auth/{}/login", self.auth()), format!("{}-", self.auth()));
        let mut requests = self.servers.openbao.requests_of(&self.auth());
        requests.retain(|request| request.path == login || request.display_name.starts_with(&name));
        requests
    }

    /// What pglease does to get a credential, done by hand.
    pub(crate) async fn lease(&self, vault_role: &str) -> Leased {
        let openbao = &self.servers.openbao;
        let jwt = fs::read_to_string(self.jwt_file()).unwrap();
        let login = json!({ "role": "web", "jwt": jwt });
        let path = self.api(&format!("auth/{}/login", self.auth()));
        let (status, answer) = openbao.call(Method::POST, &path, "", Some(login)).await;
        assert_eq!(status, 200, "login: {answer}");
        let token = answer["auth"]["client_token"].as_str().unwrap().to_owned();

        let (status, answer) =
            openbao.call(Method::GET, &self.api(&self.vault_path(vault_role)), &token, None).await;
        assert_eq!(status, 200, "creds: {answer}");
        let text = |pointer: &str| answer.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        Leased {
            token,
            lease_id: text("/lease_id"),
            user: text("/data/username"),
            password: text("/data/password"),
        }
    }

    /// Settings of pglease for this world without routes, which [`route`](Self::route) gives. Listens on free
    /// ports, logs what a test that failed is understood by, and has patience with a machine that does much else.
    pub(crate) fn settings(&self) -> String {
        self.settings_with("debug", &self.servers.openbao.address(), "")
    }

    /// The same with another log level, another way to Vault (`http://…`), and further keys of `[listen]`.
    pub(crate) fn settings_with(&self, log_level: &str, vault: &str, listen: &str) -> String {
        let patience = if listen.contains("connect_wait = ") { "" } else { PATIENT };
        format!(
            "[vault]\naddress = {vault:?}\nnamespace = {:?}\n\n\
             [vault.login]\nmethod = \"kubernetes\"\nmount = {:?}\nrole = \"web\"\njwt_file = {}\n\n\
             [listen]\naddresses = [\"localhost:0\"]\n{patience}{listen}\n\n\
             [http]\naddress = \"127.0.0.1:0\"\n\n\
             [admin]\naddress = \"127.0.0.1:0\"\ncontrol = true\n\n\
             [log]\nformat = \"json\"\nlevel = {log_level:?}\n\n",
            self.namespace,
            self.auth(),
            // A string of JSON is one of TOML.
            json!(self.jwt_file()),
        )
    }

    /// A `[[route]]` of any database and user to the world's database on the credentials of `vault_role`. Ends
    /// in that table, so that further keys of it can follow.
    pub(crate) fn route(&self, vault_role: &str) -> String {
        self.route_on(&self.vault_path(vault_role))
    }

    /// The same on any `vault_path`.
    pub(crate) fn route_on(&self, vault_path: &str) -> String {
        let upstream = self.servers.postgres.url(&self.database());
        format!("[[route]]\nupstream = {upstream:?}\nvault_path = {vault_path:?}\n")
    }

    async fn set_up_database(&self) {
        let (owner, rw, ro) = (self.group("app_owner"), self.group("app_rw"), self.group("app_ro"));
        let admin = self.group("vault_admin");
        // vault_admin hands on membership of these groups and can do nothing else. There is no sequence in the
        // schema: the engine's default revocation fails at one that its user has no right on.
        let sql = format!(
            "CREATE ROLE {admin} LOGIN CREATEROLE PASSWORD 'vault-admin-pw';
             CREATE ROLE {owner}; CREATE ROLE {rw}; CREATE ROLE {ro};
             GRANT {owner}, {rw}, {ro} TO {admin} WITH ADMIN OPTION;
             -- From PostgreSQL 15 on it is so from the start.
             REVOKE CREATE ON SCHEMA public FROM PUBLIC;
             GRANT USAGE, CREATE ON SCHEMA public TO {owner};
             CREATE TABLE t (id int PRIMARY KEY);
             INSERT INTO t SELECT generate_series(1, 100);
             CREATE TABLE visits (
                 id uuid DEFAULT gen_random_uuid() PRIMARY KEY,
                 visitor text NOT NULL,
                 db_role text NOT NULL DEFAULT current_user
             );
             GRANT SELECT, INSERT, UPDATE, DELETE ON t, visits TO {rw};
             GRANT SELECT ON t, visits TO {ro};"
        );
        self.superuser.batch_execute(&sql).await.unwrap();
    }

    async fn set_up_engine(&self) {
        let postgres = &self.servers.postgres;
        let engine = self.engine();
        self.write(&format!("sys/mounts/{engine}"), json!({ "type": "database" })).await;
        let mut connection = json!({
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": "*",
            "username": self.group("vault_admin"),
            "password": "vault-admin-pw",
            "connection_url": format!(
                "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/{}?sslmode=disable",
                postgres.port(),
                self.database()
            ),
        });
        if !self.suffix.is_empty() {
            let names = format!("{}{{{{.RoleName}}}}-{{{{random 20}}}}", self.role_prefix());
            connection["username_template"] = json!(names);
        }
        self.write(&format!("{engine}/config/pg"), connection).await;
        // From here OpenBao alone knows the password of vault_admin.
        self.write(&format!("{engine}/rotate-root/pg"), json!({})).await;
    }

    /// Makes the static role `st`, whose password Vault changes each so many seconds, and lets the pods read it. Gives
    /// its `db_role` and its `vault_path`.
    pub(crate) async fn add_static_role(&self, rotation_period: u32) -> (String, String) {
        let (openbao, engine) = (&self.servers.openbao, self.engine());
        let (db_role, admin, groups) = (self.group("st"), self.group("vault_admin"), self.group("app_rw"));
        let sql = format!(
            "CREATE ROLE {db_role} LOGIN IN ROLE {groups}; GRANT {db_role} TO {admin} WITH ADMIN OPTION;"
        );
        self.superuser.batch_execute(&sql).await.unwrap();
        let definition = json!({ "db_name": "pg", "username": db_role, "rotation_period": rotation_period });
        openbao.write(&format!("{engine}/static-roles/st"), definition).await;

        let policy = format!("sys/policies/acl/{}", self.group("db-app"));
        let path = format!("{engine}/static-creds/st");
        let rights = openbao.read(&policy).await["policy"].as_str().unwrap_or_default().to_owned();
        let rights = format!("{rights}path \"{path}\" {{ capabilities = [\"read\"] }}\n");
        openbao.write(&policy, json!({ "policy": rights })).await;
        (db_role, path)
    }

    /// Writes a `vault_role`, a new one or another version of an old one.
    pub(crate) async fn write_vault_role(&self, vault_role: &VaultRole) {
        let groups: Vec<_> = vault_role.groups.iter().map(|group| self.group(group)).collect();
        let creation = format!(
            "{}CREATE ROLE \"{{{{name}}}}\" LOGIN {} PASSWORD '{{{{password}}}}' \
             VALID UNTIL '{{{{expiration}}}}' IN ROLE {};",
            vault_role.prelude,
            vault_role.attributes,
            groups.join(", ")
        );
        let revocation: &[&str] = match vault_role.revocation {
            Revocation::NoLogin => &["ALTER ROLE \"{{name}}\" NOLOGIN;"],
            Revocation::Drop => &[],
            Revocation::Statements(statements) => statements,
        };
        let revocation = revocation.iter().map(|sql| sql.replace("<app_rw>", &self.group("app_rw")));
        let definition = json!({
            "db_name": "pg",
            "default_ttl": vault_role.default_ttl,
            "max_ttl": vault_role.max_ttl,
            "creation_statements": [creation],
            "revocation_statements": revocation.collect::<Vec<_>>(),
        });
        self.write(&format!("{}/roles/{}", self.engine(), vault_role.name), definition).await;
    }

    /// What the kubernetes method has to know of it.
    pub(crate) fn api_server(&self) -> Value {
        json!({
            "kubernetes_host": self.token_review.url(),
            // OpenBao demands a CA even for http.
            "kubernetes_ca_cert": fs::read_to_string(self.servers.postgres.ca_file()).unwrap(),
            "token_reviewer_jwt": "reviewer",
            "disable_local_ca_jwt": true,
        })
    }

    async fn set_up_login(&self, options: &WorldOptions) {
        let policy = self.group("db-app");
        let right = |vault_role: &VaultRole| {
            format!("path \"{}\" {{ capabilities = [\"read\"] }}\n", self.vault_path(vault_role.name))
        };
        let rights: String = options.vault_roles.iter().map(right).collect();
        self.write(&format!("sys/policies/acl/{policy}"), json!({ "policy": rights })).await;

        let auth = self.auth();
        self.write(&format!("sys/auth/{auth}"), json!({ "type": "kubernetes" })).await;
        self.write(&format!("auth/{auth}/config"), self.api_server()).await;
        let web = json!({
            "bound_service_account_names": "web",
            "bound_service_account_namespaces": "default",
            "token_policies": policy,
            "token_ttl": options.token_ttl,
            "token_max_ttl": options.token_max_ttl,
        });
        self.write(&format!("auth/{auth}/role/web"), web).await;
    }
}

/// Of `[listen]`: for a login on a machine that does much else.
const PATIENT: &str = "connect_wait = \"2m\"\n";

/// A credential that the test holds itself.
pub(crate) struct Leased {
    pub(crate) token: String,
    pub(crate) lease_id: String,
    pub(crate) user: String,
    pub(crate) password: String,
}
