//! What a session can see of its server and of its role, as a leased role of least right: `pg_roles`, `pg_shdepend` and
//! the access lists are open to everybody, `pg_authid` and `pg_hba.conf` are not. The same SQL from PostgreSQL 14 to 18.

use crate::upstream::{Inquiry, QueryError};

/// One row's columns, to be taken from the left.
pub(super) struct Row<'a>(std::slice::Iter<'a, Option<String>>);

impl<'a> Row<'a> {
    pub(super) fn of(columns: &'a [Option<String>]) -> Self {
        Self(columns.iter())
    }

    /// NULL, and a column that is not there, are `None`.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        self.0.next()?.as_deref()
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    pub(super) fn yes(&mut self) -> Option<bool> {
        self.text().map(|text| text == "t")
    }
}

/// What `read` makes of each row; a row that it cannot read is an error.
pub(super) async fn rows<T>(
    session: &mut Inquiry,
    sql: &str,
    read: impl Fn(&mut Row<'_>) -> Option<T>,
) -> Result<Vec<T>, QueryError> {
    let rows = session.ask(sql).await?;
    rows.iter().map(|row| read(&mut Row::of(row)).ok_or(QueryError::Row)).collect()
}

/// The same of the only row.
pub(super) async fn row<T>(
    session: &mut Inquiry,
    sql: &str,
    read: impl Fn(&mut Row<'_>) -> Option<T>,
) -> Result<T, QueryError> {
    rows(session, sql, read).await?.pop().ok_or(QueryError::Row)
}
