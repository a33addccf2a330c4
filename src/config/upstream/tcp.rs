//! Keywords of time and of TCP: how long a login may take, and how a dead connection is found.
//!
//! PostgreSQL manual, "Parameter Key Words". Zero and less is the system's default, as in libpq; what is not written
//! is [`Silence::default`].

use std::time::Duration;

use super::{Meaning, UpstreamError};
use crate::config::server::{Keepalive, Silence};

/// Whole seconds; none, zero and less are no limit, and 1 is taken as 2, as in libpq.
pub(super) fn connect_timeout(meaning: &Meaning<'_>) -> Result<Option<Duration>, UpstreamError> {
    let Some(text) = meaning.value("connect_timeout") else { return Ok(None) };
    let seconds: i64 = text.trim().parse().map_err(|_| UpstreamError::ConnectTimeout)?;
    match u64::try_from(seconds) {
        Err(_) | Ok(0) => Ok(None),
        Ok(seconds) if seconds > MAX_SECONDS => Err(UpstreamError::ConnectTimeout),
        Ok(seconds) => Ok(Some(Duration::from_secs(seconds.max(MIN_CONNECT_SECONDS)))),
    }
}

pub(super) fn silence(meaning: &Meaning<'_>) -> Result<Silence, UpstreamError> {
    let default = Keepalive::default();
    let seconds = |keyword, default: Option<Duration>| {
        let default = default.map(|default| default.as_secs());
        let seconds = number(meaning, keyword, MAX_KEEPALIVE_SECONDS, default)?;
        Ok::<_, UpstreamError>(seconds.map(Duration::from_secs))
    };
    let count = number(meaning, "keepalives_count", MAX_KEEPALIVE_COUNT, default.count.map(u64::from))?;
    let keepalive = Keepalive {
        idle: seconds("keepalives_idle", default.idle)?,
        interval: seconds("keepalives_interval", default.interval)?,
        count: count.and_then(|count| u32::try_from(count).ok()),
    };
    let user_timeout = number(meaning, "tcp_user_timeout", i32::MAX.unsigned_abs().into(), None)?;
    let is_on = match meaning.value("keepalives").map(str::trim) {
        None | Some("1") => true,
        Some("0") => false,
        Some(_) => return Err(UpstreamError::Choice { keyword: "keepalives", choices: "0 or 1" }),
    };
    Ok(Silence {
        keepalive: is_on.then_some(keepalive),
        user_timeout: user_timeout.map(Duration::from_millis),
    })
}

/// `default` where nothing is written, `None` for the system's default.
fn number(
    meaning: &Meaning<'_>,
    keyword: &'static str,
    max: u64,
    default: Option<u64>,
) -> Result<Option<u64>, UpstreamError> {
    let Some(text) = meaning.value(keyword) else { return Ok(default) };
    match text.trim().parse::<i64>().map(u64::try_from) {
        Ok(Err(_) | Ok(0)) => Ok(None),
        Ok(Ok(number)) if number <= max => Ok(Some(number)),
        Ok(Ok(_)) | Err(_) => Err(UpstreamError::Number { keyword, max }),
    }
}

const MIN_CONNECT_SECONDS: u64 = 2;
/// Ten years.
const MAX_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;
/// Linux takes no more: `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`.
const MAX_KEEPALIVE_SECONDS: u64 = 32_767;
/// `MAX_TCP_KEEPCNT` of Linux.
const MAX_KEEPALIVE_COUNT: u64 = 127;

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn connect_timeout_counts_as_in_libpq() {
        let timeout = |seconds: &str| parse(&format!("host=db connect_timeout={seconds}"));
        let seconds = |seconds| Ok(Some(Duration::from_secs(seconds)));

        for (text, expected) in [
            ("0", Ok(None)),
            ("-1", Ok(None)),
            ("''", Ok(None)),
            ("1", seconds(2)),
            ("2", seconds(2)),
            ("' 10 '", seconds(10)),
            ("1.5", Err(vec![UpstreamError::ConnectTimeout])),
            ("10s", Err(vec![UpstreamError::ConnectTimeout])),
            ("999999999999", Err(vec![UpstreamError::ConnectTimeout])),
        ] {
            assert_eq!(timeout(text).map(|upstream| upstream.connect_timeout), expected, "{text}");
        }
    }

    #[test]
    fn keepalives_are_ours_unless_they_are_written() {
        let ours = Keepalive::default();
        let with = |keepalive| Ok(Silence { keepalive, user_timeout: None });
        let wrong = |keyword, max| Err(vec![UpstreamError::Number { keyword, max }]);
        for (text, expected) in [
            ("", Ok(Silence::default())),
            ("keepalives=1 keepalives_idle=''", Ok(Silence::default())),
            ("keepalives=0 keepalives_idle=5", with(None)),
            ("keepalives_idle=2", with(Some(Keepalive { idle: Some(Duration::from_secs(2)), ..ours }))),
            (
                "keepalives_interval=' 1 ' keepalives_count=3",
                with(Some(Keepalive { interval: Some(Duration::from_secs(1)), count: Some(3), ..ours })),
            ),
            (
                "keepalives_idle=0 keepalives_interval=-1 keepalives_count=0",
                with(Some(Keepalive { idle: None, interval: None, count: None })),
            ),
            (
                "tcp_user_timeout=1500",
                Ok(Silence { user_timeout: Some(Duration::from_millis(1500)), ..Silence::default() }),
            ),
            ("tcp_user_timeout=0", Ok(Silence::default())),
            ("keepalives=on", Err(vec![UpstreamError::Choice { keyword: "keepalives", choices: "0 or 1" }])),
            ("keepalives_idle=32768", wrong("keepalives_idle", 32_767)),
            ("keepalives_interval=1s", wrong("keepalives_interval", 32_767)),
            ("keepalives_count=128", wrong("keepalives_count", 127)),
            ("tcp_user_timeout=99999999999", wrong("tcp_user_timeout", 2_147_483_647)),
        ] {
            let silence = parse(&format!("host=db {text}")).map(|upstream| upstream.silence);
            assert_eq!(silence, expected, "{text}");
        }
    }
}
