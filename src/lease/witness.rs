//! What a session sees of its own role while the lease of that role is revoked, and what that tells of the
//! revocation.

use std::future::Future;
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::upstream::{Inquiry, QueryError};

/// A session that its own role is watched from.
pub(crate) trait Witness: Send + 'static {
    /// How the role stands now; `None` where there is no such role any more. Takes a bounded time.
    fn look(&mut self) -> impl Future<Output = Result<Option<Footing>, QueryError>> + Send;

    /// Ends the session.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A role as it stands in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footing {
    pub(crate) can_login: bool,
    /// Roles that it is a member of.
    pub(crate) memberships: u64,
    /// What was granted to it, or belongs to it.
    pub(crate) dependencies: u64,
}

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It took away the right to log in, and nothing else.
    NoLogin,
    Dropped,
    /// The role has not the memberships and privileges that it had.
    Stripped,
    /// The session was refused what it could do before.
    Denied,
    /// The session was ended.
    Terminated,
}

impl Effect {
    /// Whether open sessions go on as if nothing had happened.
    pub(super) fn is_harmless(self) -> bool {
        self == Self::NoLogin
    }

    /// The word in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoLogin => "nologin",
            Self::Dropped => "dropped",
            Self::Stripped => "stripped",
            Self::Denied => "denied",
            Self::Terminated => "terminated",
        }
    }
}

/// What came of watching a role whose revocation Vault has accepted.
#[derive(Debug)]
pub(crate) enum Seen {
    Effect(Effect),
    /// The server has ended the session, for itself or with all others.
    Ended,
    /// Something else was said, or nothing that could be read.
    Unclear(Option<QueryError>),
    /// Nothing within [`MAX_WATCH`].
    Nothing,
}

/// Looks until the revocation of a role that stood as `before` has shown itself: Vault accepts it before it is done.
pub(crate) async fn watch(witness: &mut impl Witness, before: Footing) -> Seen {
    let until = Instant::now() + MAX_WATCH;
    let (mut pause, mut nologin_since) = (MIN_PAUSE, None);
    while Instant::now() < until {
        let seen = witness.look().await;
        match judge(before, &seen) {
            Judgement::NotYet => {}
            // More may follow, so one look is not enough.
            Judgement::Known(Effect::NoLogin) => {
                let since: Instant = *nologin_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SETTLED {
                    return Seen::Effect(Effect::NoLogin);
                }
            }
            Judgement::Known(effect) => return Seen::Effect(effect),
            Judgement::Ended => return Seen::Ended,
            Judgement::Unclear => return Seen::Unclear(seen.err()),
        }
        time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
    Seen::Nothing
}

/// What one look tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// All is as before.
    NotYet,
    Known(Effect),
    /// The server has ended the session: as it was told to by the revocation, or as it ends all of them.
    Ended,
    /// Nothing that was seen is of the role.
    Unclear,
}

/// Judges a look at a role that could log in and stood as `before`.
fn judge(before: Footing, seen: &Result<Option<Footing>, QueryError>) -> Judgement {
    match seen {
        Ok(None) => Judgement::Known(Effect::Dropped),
        Ok(Some(now)) if Footing { can_login: before.can_login, ..*now } != before => {
            Judgement::Known(Effect::Stripped)
        }
        Ok(Some(Footing { can_login: false, .. })) => Judgement::Known(Effect::NoLogin),
        Ok(Some(_)) => Judgement::NotYet,
        Err(QueryError::Refused { response }) => {
            let code = response.code.map(|code| code.to_string()).unwrap_or_default();
            match code.as_str() {
                "57P01" => Judgement::Ended,
                code if code.starts_with(CLASS_OF_DENIALS) => Judgement::Known(Effect::Denied),
                _ => Judgement::Unclear,
            }
        }
        Err(
            QueryError::Closed
            | QueryError::Io(_)
            | QueryError::Frame(_)
            | QueryError::Row
            | QueryError::TimedOut { .. },
        ) => Judgement::Unclear,
    }
}

/// A session at PostgreSQL.
#[derive(Debug)]
pub(crate) struct RoleWitness {
    session: Inquiry,
    /// Of the role, once it was seen: its name may be gone later.
    oid: Option<u32>,
}

impl RoleWitness {
    pub(crate) fn new(session: Inquiry) -> Self {
        Self { session, oid: None }
    }

    /// To ask something else.
    pub(crate) fn session(&mut self) -> &mut Inquiry {
        &mut self.session
    }
}

impl Witness for RoleWitness {
    async fn look(&mut self) -> Result<Option<Footing>, QueryError> {
        let which =
            self.oid.map_or_else(|| "rolname = session_user".to_owned(), |oid| format!("oid = {oid}"));
        let rows = self.session.ask(&format!("{LOOK} WHERE r.{which}")).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (oid, footing) = parse(row).ok_or(QueryError::Row)?;
        self.oid = Some(oid);
        Ok(Some(footing))
    }

    async fn close(self) {
        self.session.close().await;
    }
}

fn parse(row: &[Option<String>]) -> Option<(u32, Footing)> {
    let [Some(oid), Some(can_login), Some(memberships), Some(dependencies)] = row else { return None };
    let footing = Footing {
        can_login: can_login == "t",
        memberships: memberships.parse().ok()?,
        dependencies: dependencies.parse().ok()?,
    };
    Some((oid.parse().ok()?, footing))
}

/// The same catalogues from PostgreSQL 14 to 18, open to everybody. Names are qualified, as `search_path` is the
/// database's to set.
const LOOK: &str = "SELECT r.oid, r.rolcanlogin, \
    (SELECT count(*) FROM pg_catalog.pg_auth_members m WHERE m.member = r.oid), \
    (SELECT count(*) FROM pg_catalog.pg_shdepend d \
     WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.refobjid = r.oid) \
    FROM pg_catalog.pg_roles r";

/// From the moment that Vault has accepted the revocation. Behind another one that is slow it takes over 10 s.
pub(crate) const MAX_WATCH: Duration = Duration::from_secs(20);

/// Between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A role that has lost its login for so long loses nothing more.
const SETTLED: Duration = Duration::from_millis(500);

/// Syntax error or access rule violation. PostgreSQL manual, appendix A.
const CLASS_OF_DENIALS: &str = "42";

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::wire::error::{ErrorResponse, SqlState};

    const BEFORE: Footing = Footing { can_login: true, memberships: 2, dependencies: 3 };

    fn refused(code: &str) -> Result<Option<Footing>, QueryError> {
        let code = SqlState::parse(code.as_bytes());
        Err(QueryError::Refused { response: ErrorResponse { code, ..ErrorResponse::parse(b"") } })
    }

    /// Everything that a look can come back with.
    #[test]
    fn only_a_role_that_lost_its_login_and_nothing_else_is_harmless() {
        use Judgement::{Ended, Known, NotYet, Unclear};
        let stands =
            |can_login, memberships, dependencies| Ok(Some(Footing { can_login, memberships, dependencies }));
        let limit = Duration::ZERO;
        let table = [
            (stands(true, 2, 3), NotYet),
            (stands(false, 2, 3), Known(Effect::NoLogin)),
            (stands(false, 1, 3), Known(Effect::Stripped)),
            (stands(false, 2, 2), Known(Effect::Stripped)),
            (stands(true, 0, 3), Known(Effect::Stripped)),
            (stands(true, 2, 0), Known(Effect::Stripped)),
            (Ok(None), Known(Effect::Dropped)),
            (refused("42501"), Known(Effect::Denied)),
            (refused("42704"), Known(Effect::Denied)),
            (refused("57P01"), Ended),
            (refused("57P02"), Unclear),
            (refused("53200"), Unclear),
            (refused("XX000"), Unclear),
            (refused("none"), Unclear),
            (Err(QueryError::Closed), Unclear),
            (Err(QueryError::Io(io::ErrorKind::ConnectionReset.into())), Unclear),
            (Err(QueryError::Row), Unclear),
            (Err(QueryError::TimedOut { limit }), Unclear),
        ];
        for (seen, expected) in table {
            assert_eq!(judge(BEFORE, &seen), expected, "{seen:?}");
            let harmless = matches!(expected, Known(effect) if effect.is_harmless());
            assert_eq!(harmless, expected == Known(Effect::NoLogin));
        }
    }

    #[test]
    fn row_is_four_columns() {
        let row = |columns: [&str; 4]| columns.map(|column| Some(column.to_owned()));
        assert_eq!(parse(&row(["16384", "t", "2", "3"])), Some((16_384, BEFORE)));
        assert_eq!(parse(&row(["16384", "f", "2", "3"])).map(|(_, now)| now.can_login), Some(false));
        for columns in [["-1", "t", "2", "3"], ["1", "t", "", "3"], ["1", "t", "2", "x"]] {
            assert_eq!(parse(&row(columns)), None, "{columns:?}");
        }
        assert_eq!(parse(&[None, None, None, None]), None);
        assert_eq!(parse(&[]), None);
    }
}
