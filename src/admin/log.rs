//! The log's level, as it is and as somebody wants it.

use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::{Level, info};

use super::json;
use crate::config::{self, LogConfig};
use crate::telemetry;

/// Of `/status`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LogStatus {
    pub(super) level: &'static str,
    /// What the settings say, which somebody may have changed by hand since.
    pub(super) configured: &'static str,
}

impl LogStatus {
    pub(super) fn of(config: &LogConfig) -> Self {
        let level = telemetry::level().unwrap_or(config.level);
        Self { level: config::level_name(level), configured: config::level_name(config.level) }
    }
}

/// The answer to `/log`.
#[derive(Debug, Serialize)]
struct LevelAnswer {
    level: &'static str,
    before: &'static str,
}

/// Has the log from the level on that is asked for.
pub(super) async fn set_level(uri: Uri) -> Response {
    let Some(level) = uri.query().and_then(wanted) else {
        let refusal = "the one parameter is level=error, warn, info, debug or trace\n";
        return (StatusCode::BAD_REQUEST, refusal).into_response();
    };
    let was = telemetry::level().unwrap_or(level);
    let (level_name, before) = (config::level_name(level), config::level_name(was));
    let say = || info!(event = "admin.log_level", from = before, to = level_name);
    // A log that is to say less has the line before.
    if level < was {
        say();
    }
    telemetry::set_level(level);
    if level >= was {
        say();
    }
    json(StatusCode::OK, &LevelAnswer { level: level_name, before })
}

fn wanted(query: &str) -> Option<Level> {
    config::level_named(query.strip_prefix("level=")?)
}
