//! Sessions that stay open over the revocation of their credential, and what becomes of them.

use tokio::time::Instant;

use super::revocation::{self, Afterwards, Seen};
use super::{Own, ask};
use crate::check::name::Name;
use crate::check::report::{Found, Recorder};
use crate::check::{Target, Who};
use crate::config::FileConfig;
use crate::lease::{self, Footing, RoleWitness, Witness};
use crate::upstream::{Inquiry, QueryError};

/// All of them.
#[derive(Debug, Default)]
pub(in crate::check) struct Watched {
    sessions: Vec<Session>,
}

/// One that is like those of its route or file.
#[derive(Debug)]
pub(super) struct Session {
    witness: RoleWitness,
    target: Target,
    subject: String,
    db_role: String,
    /// `None` where its role could not be seen.
    before: Option<Footing>,
    /// A table that it reads by rights of its own.
    table: Option<String>,
}

impl Session {
    /// Takes note of how it stands now. `None` for a credential that is not revoked in the end.
    pub(super) async fn begin(
        mut session: Inquiry,
        target: Target,
        subject: String,
        db_role: String,
        own: Own<'_>,
    ) -> Option<Self> {
        if own.credential.lease.is_none() {
            session.close().await;
            return None;
        }
        let table = ask::rows(&mut session, TABLE, |row| row.text().map(str::to_owned)).await;
        let mut table = table.ok().and_then(|mut tables| tables.pop());
        if let Some(name) = &table
            && session.ask(&read(name)).await.is_err()
        {
            table = None;
        }
        let mut witness = RoleWitness::new(session);
        let before = witness.look().await.ok().flatten().filter(|footing| footing.can_login);
        Some(Self { witness, target, subject, db_role, before, table })
    }

    async fn see(&mut self) -> Seen {
        let Some(before) = self.before else { return Seen::Unclear(None) };
        match lease::watch(&mut self.witness, before).await {
            lease::Seen::Effect(effect) => {
                let session = match &self.table {
                    None => Afterwards::Untold,
                    Some(table) => match self.witness.session().ask(&read(table)).await {
                        Ok(_) => Afterwards::LivesOn,
                        Err(QueryError::Refused { response }) if response.code_or_none() == "57P01" => {
                            Afterwards::Ended
                        }
                        Err(QueryError::Refused { response }) => Afterwards::Refused(response.code_or_none()),
                        Err(error) => return Seen::Unclear(Some(error)),
                    },
                };
                Seen::Effect { effect, session }
            }
            lease::Seen::Ended => {
                Seen::Effect { effect: lease::Effect::Terminated, session: Afterwards::Ended }
            }
            lease::Seen::Unclear(error) => Seen::Unclear(error),
            lease::Seen::Nothing => Seen::Nothing,
        }
    }
}

impl Watched {
    pub(super) fn add(&mut self, session: Session) {
        self.sessions.push(session);
    }

    /// Says what the revocation did, if there was one: to sessions of each route, and to those of each file's readers.
    pub(in crate::check) async fn after_revocation(
        self,
        is_revoked: bool,
        files: &[FileConfig],
        record: &Recorder,
    ) {
        let telling: Vec<_> = files.iter().map(|file| self.that_tells(&file.vault_path)).collect();
        for (index, mut session) in self.sessions.into_iter().enumerate() {
            let of_session = files.iter().zip(&telling).filter(|(_, telling)| **telling == Some(index));
            let begins_at = Instant::now();
            let seen = if is_revoked { Some(session.see().await) } else { None };
            let took = begins_at.elapsed();
            let Session { witness, target, subject, db_role, .. } = session;
            let judged = |who: &Who| match &seen {
                Some(seen) => revocation::judge(seen, &target, who, &db_role),
                None => Found::skipped("vault.revoke failed"),
            };
            if target.who != Who::Readers {
                record.write(Name::PostgresRevocation, &subject, took, judged(&target.who)).await;
            }
            for (file, _) in of_session {
                let subject = file.path.display().to_string();
                record.write(Name::PostgresRevocation, subject, took, judged(&Who::Readers)).await;
            }
            witness.close().await;
        }
    }

    /// The session that tells what one of a reader would meet with: of those on the same credential one that begins as
    /// the leased role itself, if there is one.
    fn that_tells(&self, vault_path: &str) -> Option<usize> {
        let of_path = |session: &Session| session.target.vault_path == vault_path;
        let as_itself = |session: &Session| session.target.startup_role().is_none();
        let mut sessions = self.sessions.iter();
        let first = sessions.clone().position(of_path);
        sessions.position(|session| of_path(session) && as_itself(session)).or(first)
    }
}

/// Reads no row of it.
fn read(table: &str) -> String {
    format!("SELECT FROM {table} LIMIT 0")
}

/// Any table that not everybody may read.
const TABLE: &str = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
        AND pg_catalog.has_schema_privilege(current_user, n.oid, 'USAGE') \
        AND pg_catalog.has_table_privilege(current_user, c.oid, 'SELECT') \
        AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(c.relacl) a \
            WHERE a.grantee = 0 AND a.privilege_type = 'SELECT') \
    ORDER BY c.oid LIMIT 1";
