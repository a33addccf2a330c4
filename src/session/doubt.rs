//! Errors in an open session that the end of its role would explain: counted, and where they have few other reasons,
//! reported to the chain, which looks whether the credential still lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::credential::Hold;
use crate::telemetry::{Metrics, SqlStateLabels};
use crate::wire::error::SqlState;
use crate::wire::status::Signs;

/// A session's own doubts about its credential.
#[derive(Debug)]
pub(crate) struct Doubts {
    hold: Hold,
    metrics: Arc<Metrics>,
    /// When the last one was reported.
    reported: Option<Instant>,
}

impl Doubts {
    pub(crate) fn new(hold: Hold, metrics: Arc<Metrics>) -> Self {
        Self { hold, metrics, reported: None }
    }

    /// Takes note of what has come since the last call.
    pub(crate) fn heed(&mut self, signs: Signs, now: Instant) {
        let Signs { insufficient_privilege, undefined_object, admin_shutdown } = signs;
        self.count(SqlState::INSUFFICIENT_PRIVILEGE, insufficient_privilege);
        self.count(SqlState::UNDEFINED_OBJECT, undefined_object);
        self.count(SqlState::ADMIN_SHUTDOWN, admin_shutdown);

        let is_due = self.reported.is_none_or(|reported| now >= reported + PAUSE);
        if is_due && undefined_object + admin_shutdown > 0 {
            self.reported = Some(now);
            self.hold.doubt();
        }
    }

    fn count(&self, code: SqlState, times: u32) {
        if times > 0 {
            let labels = SqlStateLabels { sqlstate: code.to_string() };
            self.metrics.session_errors.get_or_create(&labels).inc_by(times.into());
        }
    }
}

/// Between two doubts of a session: an application may meet such an error with each statement.
const PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::credential::{self, Credential, DerivedKeys, Suspicion};
    use crate::ids::{GenerationId, LeaseId};

    const CALM: Signs = Signs { insufficient_privilege: 0, undefined_object: 0, admin_shutdown: 0 };

    #[tokio::test(start_paused = true)]
    async fn doubt_is_reported_now_and_then_and_a_missing_right_never() {
        let (mut publisher, source) = credential::channel();
        let _issued = publisher.promote(Credential {
            user: "v-1".to_owned(),
            password: SecretString::from("secret"),
            lease: Some(LeaseId::from("lease")),
            generation: GenerationId(1),
            keys: DerivedKeys::default(),
            granted: credential::Granted::default(),
        });
        let metrics = Arc::new(Metrics::new());
        let mut doubts = Doubts::new(source.hold().await.unwrap(), Arc::clone(&metrics));
        let began = Instant::now();
        let undefined = Signs { undefined_object: 2, ..CALM };
        let denied = Signs { insufficient_privilege: 3, ..CALM };
        let ended = Signs { admin_shutdown: 1, ..CALM };
        for (signs, millis, is_reported) in [
            (CALM, 0, false),
            (denied, 0, false),
            (undefined, 0, true),
            (undefined, 4_999, false),
            (ended, 5_000, true),
            (ended, 9_999, false),
            (denied, 20_000, false),
            (undefined, 20_000, true),
        ] {
            doubts.heed(signs, began + Duration::from_millis(millis));
            let reported = tokio::time::timeout(Duration::from_millis(1), publisher.suspicion()).await.ok();
            let expected = is_reported.then_some(Some(Suspicion::Doubted(GenerationId(1))));
            assert_eq!(reported, expected, "{signs:?} at {millis}");
        }
        let text = metrics.encode().unwrap();
        for (code, times) in [("42501", 6), ("42704", 6), ("57P01", 2)] {
            assert!(
                text.contains(&format!("session_errors_total{{sqlstate=\"{code}\"}} {times}\n")),
                "{text}"
            );
        }
    }
}
