//! What an OpenBao was asked, by its own audit log: a witness that pglease has no part in.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// When it came, as Unix time.
    pub(crate) at: Duration,
    /// When it was answered; not at all, so far, or turned away by a quota before anybody looked at it.
    pub(crate) answered_at: Option<Duration>,
    /// Without `/v1/`.
    pub(crate) path: String,
    /// Accessor of its token, which names a generation. A login's is the one that it was given.
    pub(crate) token: String,
    /// What the token is called: `<auth mount>-<name>` after a login, `root`'s is `token`.
    pub(crate) display_name: String,
    /// Whether no policy of the token allows it.
    pub(crate) is_forbidden: bool,
    /// Empty where it was granted.
    pub(crate) error: String,
}

impl Request {
    pub(crate) fn is_login(&self) -> bool {
        self.path.starts_with("auth/") && self.path.ends_with("/login")
    }

    /// Whether a credential is read.
    pub(crate) fn is_creds(&self) -> bool {
        self.path.contains("/creds/")
    }

    pub(crate) fn was_granted(&self) -> bool {
        self.answered_at.is_some() && self.error.is_empty()
    }
}

/// Every request in the log whose line has `word` in it, oldest first. The log is that of all tests, and long in the end.
pub(super) fn requests(file: &Path, word: &str) -> Vec<Request> {
    let mut requests = HashMap::<String, Request>::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines().filter(|line| line.contains(word)) {
        // The last line may be half written.
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let text =
            |pointer: &str| line.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let id = text("/request/id");
        let time = humantime::parse_rfc3339(&text("/time")).unwrap().duration_since(UNIX_EPOCH).unwrap();
        let (at, answered_at) = match requests.get(&id) {
            Some(known) => (known.at, Some(time)),
            None => (time, None),
        };
        let allowed = line.pointer("/auth/policy_results/allowed");
        let request = Request {
            at,
            answered_at,
            path: text("/request/path"),
            token: text("/auth/accessor"),
            display_name: text("/auth/display_name"),
            is_forbidden: allowed.is_some_and(|allowed| allowed == false),
            error: text("/error"),
        };
        requests.insert(id, request);
    }
    let mut requests: Vec<_> = requests.into_values().collect();
    requests.sort_by_key(|request| request.at);
    requests
}
