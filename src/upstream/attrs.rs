//! `target_session_attrs`: whether a server that let us in is one of the kind that is wanted. PostgreSQL 14 and later
//! say so in their greeting; of others, and behind poolers, it is asked, as libpq does.

use bytes::BytesMut;

use super::LoggedIn;
use super::inquiry::{Inquiry, QueryError, Rows};
use crate::config::TargetSessionAttrs;
use crate::wire::frame::{Frame, split_frame};
use crate::wire::message::backend::PARAMETER_STATUS;

/// Why a server is not the one that is wanted, in libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("session is read-only")]
    ReadOnly,
    #[error("session is not read-only")]
    NotReadOnly,
    #[error("server is in hot standby mode")]
    Standby,
    #[error("server is not in hot standby mode")]
    NotStandby,
    #[error("server does not say whether it is a standby or read-only")]
    Unknown,
}

/// What a greeting says of its server; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    in_hot_standby: Option<bool>,
    /// `default_transaction_read_only`.
    read_only: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    ReadOnly,
    InRecovery,
}

impl Question {
    fn sql(self) -> &'static str {
        match self {
            Self::ReadOnly => "SHOW transaction_read_only",
            Self::InRecovery => "SELECT pg_catalog.pg_is_in_recovery()",
        }
    }
}

/// `Ok` where it is of the kind that is wanted. May ask it; what it says beside the answer is kept for the client.
pub(super) async fn check(logged_in: &mut LoggedIn, wanted: TargetSessionAttrs) -> Result<(), Unfit> {
    let standing = Standing::of(&[&logged_in.before_key, &logged_in.after_key]);
    let standing = match question(wanted, standing) {
        None => standing,
        Some(question) => {
            let rows = ask(logged_in, question.sql()).await.map_err(|_| Unfit::Unknown)?;
            let answer = yes_or_no(&rows).ok_or(Unfit::Unknown)?;
            match question {
                Question::ReadOnly => Standing { in_hot_standby: Some(false), read_only: Some(answer) },
                Question::InRecovery => Standing { in_hot_standby: Some(answer), ..standing },
            }
        }
    };
    judge(wanted, standing)
}

impl Standing {
    /// Of the last ParameterStatus of each name. PostgreSQL manual, "Message Formats".
    fn of(greeting: &[&[u8]]) -> Self {
        let mut standing = Self::default();
        for mut rest in greeting.iter().copied() {
            while let Ok(Some((Frame { tag, body }, behind))) = split_frame(rest, u32::MAX) {
                rest = behind;
                let mut texts = body.split(|&byte| byte == 0);
                let (Some(name), Some(value)) = (texts.next(), texts.next()) else { continue };
                match name {
                    b"in_hot_standby" if tag == PARAMETER_STATUS => {
                        standing.in_hot_standby = on_or_off(value);
                    }
                    b"default_transaction_read_only" if tag == PARAMETER_STATUS => {
                        standing.read_only = on_or_off(value);
                    }
                    _ => {}
                }
            }
        }
        standing
    }
}

/// What has to be asked before one can tell.
fn question(wanted: TargetSessionAttrs, standing: Standing) -> Option<Question> {
    let Standing { in_hot_standby, read_only } = standing;
    match wanted {
        TargetSessionAttrs::Any => None,
        TargetSessionAttrs::ReadWrite | TargetSessionAttrs::ReadOnly => {
            (in_hot_standby.is_none() || read_only.is_none()).then_some(Question::ReadOnly)
        }
        TargetSessionAttrs::Primary | TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby => {
            in_hot_standby.is_none().then_some(Question::InRecovery)
        }
    }
}

fn judge(wanted: TargetSessionAttrs, standing: Standing) -> Result<(), Unfit> {
    let is_standby = standing.in_hot_standby == Some(true);
    let is_read_only = is_standby || standing.read_only == Some(true);
    match wanted {
        TargetSessionAttrs::ReadWrite if is_read_only => Err(Unfit::ReadOnly),
        TargetSessionAttrs::ReadOnly if !is_read_only => Err(Unfit::NotReadOnly),
        TargetSessionAttrs::Primary if is_standby => Err(Unfit::Standby),
        TargetSessionAttrs::Standby | TargetSessionAttrs::PreferStandby if !is_standby => {
            Err(Unfit::NotStandby)
        }
        TargetSessionAttrs::Any
        | TargetSessionAttrs::ReadWrite
        | TargetSessionAttrs::ReadOnly
        | TargetSessionAttrs::Primary
        | TargetSessionAttrs::Standby
        | TargetSessionAttrs::PreferStandby => Ok(()),
    }
}

async fn ask(logged_in: &mut LoggedIn, sql: &str) -> Result<Rows, QueryError> {
    let greeting = Inquiry::greeting_of(&mut logged_in.after_key);
    let behind = std::mem::replace(&mut logged_in.after_key, greeting);
    let mut inquiry = Inquiry::aside(&mut logged_in.stream, behind);
    let rows = inquiry.ask(sql).await;
    let rest: BytesMut = inquiry.into_rest();
    logged_in.after_key.unsplit(rest);
    rows
}

fn on_or_off(value: &[u8]) -> Option<bool> {
    match value {
        b"on" => Some(true),
        b"off" => Some(false),
        _ => None,
    }
}

/// The one value of the one row: of a setting, or of a boolean.
fn yes_or_no(rows: &Rows) -> Option<bool> {
    let [row] = &rows[..] else { return None };
    let [Some(value)] = &row[..] else { return None };
    match value.as_str() {
        "on" | "t" => Some(true),
        "off" | "f" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::fake::message;

    use TargetSessionAttrs::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};

    #[test]
    fn greeting_says_what_a_server_is() {
        let status = |name: &str, value: &str| message(b'S', format!("{name}\0{value}\0").as_bytes());
        let ready = message(b'Z', b"I");
        for (before, after, expected) in [
            (status("TimeZone", "UTC"), ready.clone(), (None, None)),
            (
                [status("in_hot_standby", "off"), status("default_transaction_read_only", "on")].concat(),
                ready.clone(),
                (Some(false), Some(true)),
            ),
            (
                status("in_hot_standby", "off"),
                [ready.clone(), status("in_hot_standby", "on")].concat(),
                (Some(true), None),
            ),
            (message(b'N', b"in_hot_standby\0on\0"), ready.clone(), (None, None)),
            (status("in_hot_standby", "maybe"), b"S\0\0".to_vec(), (None, None)),
            (message(b'S', b"in_hot_standby"), Vec::new(), (None, None)),
        ] {
            let Standing { in_hot_standby, read_only } = Standing::of(&[&before, &after]);
            assert_eq!((in_hot_standby, read_only), expected, "{before:?}");
        }
    }

    #[test]
    fn each_value_takes_the_servers_that_libpq_takes() {
        // Primary, primary that is read-only by default, standby.
        let servers = [(false, false), (false, true), (true, false)];
        let servers = servers.map(|(in_hot_standby, read_only)| Standing {
            in_hot_standby: Some(in_hot_standby),
            read_only: Some(read_only),
        });
        let read_only = Err(Unfit::ReadOnly);
        let not_read_only = Err(Unfit::NotReadOnly);
        let not_standby = Err(Unfit::NotStandby);
        for (wanted, expected) in [
            (Any, [Ok(()), Ok(()), Ok(())]),
            (ReadWrite, [Ok(()), read_only, read_only]),
            (ReadOnly, [not_read_only, Ok(()), Ok(())]),
            (Primary, [Ok(()), Ok(()), Err(Unfit::Standby)]),
            (Standby, [not_standby, not_standby, Ok(())]),
            (PreferStandby, [not_standby, not_standby, Ok(())]),
        ] {
            assert_eq!(servers.map(|server| judge(wanted, server)), expected, "{wanted:?}");
            assert!(servers.iter().all(|server| question(wanted, *server).is_none()));
        }
    }

    #[test]
    fn what_a_greeting_leaves_open_is_asked() {
        let silent = Standing::default();
        let half = Standing { in_hot_standby: Some(false), read_only: None };
        for (wanted, of_silent, of_half) in [
            (Any, None, None),
            (ReadWrite, Some(Question::ReadOnly), Some(Question::ReadOnly)),
            (ReadOnly, Some(Question::ReadOnly), Some(Question::ReadOnly)),
            (Primary, Some(Question::InRecovery), None),
            (Standby, Some(Question::InRecovery), None),
            (PreferStandby, Some(Question::InRecovery), None),
        ] {
            assert_eq!(
                (question(wanted, silent), question(wanted, half)),
                (of_silent, of_half),
                "{wanted:?}"
            );
        }
        let row = |value: &str| vec![vec![Some(value.to_owned())]];
        for (rows, expected) in [
            (row("on"), Some(true)),
            (row("f"), Some(false)),
            (row("?"), None),
            (vec![vec![None]], None),
            (vec![], None),
            (vec![vec![]], None),
        ] {
            assert_eq!(yes_or_no(&rows), expected, "{rows:?}");
        }
    }
}
