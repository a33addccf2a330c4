//! Sessions that stay open over the revocation of their credential, and what becomes of them.

use std::time::Duration;

use super::revocation::{self, Afterwards, Seen};
use super::{Own, ask};
use crate::check::name::Name;
use crate::check::report::{Found, Recorder};
use crate::config::RouteConfig;
use crate::lease::{self, Footing, RoleWitness, Witness};
use crate::upstream::{Inquiry, QueryError};

/// All of them.
#[derive(Debug, Default)]
pub(in crate::check) struct Watched {
    sessions: Vec<Session>,
}

/// One that is like those of its route.
#[derive(Debug)]
pub(super) struct Session {
    witness: RoleWitness,
    route: RouteConfig,
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
        route: RouteConfig,
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
        Some(Self { witness, route, subject, db_role, before, table })
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

    /// Says what the revocation did, if there was one.
    pub(in crate::check) async fn after_revocation(self, is_revoked: bool, record: &Recorder) {
        for mut session in self.sessions {
            let subject = session.subject.clone();
            if is_revoked {
                let judging = async {
                    let seen = session.see().await;
                    revocation::judge(&seen, &session.route, &session.db_role)
                };
                record.step(Name::PostgresRevocation, subject, judging).await;
            } else {
                let found = Found::<()>::skipped("vault.revoke failed");
                record.write(Name::PostgresRevocation, subject, Duration::ZERO, found).await;
            }
            session.witness.close().await;
        }
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
