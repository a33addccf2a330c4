//! What `pglease check` has found, step by step, and the exit code that follows from it. Pure, but for the clock that
//! a [`Recorder`] reads.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fault::{Fault, Warning};
use super::name::Name;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) name: Name,
    /// What was looked at, where a name can come several times: an address, a route, a `vault_path`.
    pub(crate) subject: String,
    pub(crate) took: Duration,
    pub(crate) outcome: Outcome,
    /// In one clause. Why the step was not done, where it was not.
    pub(crate) found: String,
    /// Of a warning or a failure.
    pub(crate) remedy: Option<Remedy>,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    /// It works, and something about it will hurt.
    Warning,
    Failed(Class),
    /// It depends on a step that failed, or cannot be told here.
    Skipped,
}

impl Outcome {
    /// The word in JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warning => "warning",
            Self::Failed(_) => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// Whose turn it is, as the exit code has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// What pglease depends on does not answer.
    Unavailable,
    /// It answers, and does not let pglease do what it must do.
    Permission,
    /// A setting of pglease, or of what it depends on, is wrong.
    Configuration,
    /// The check itself did not get to its end.
    Unfinished,
}

impl Class {
    /// As sysexits(3) has them: `EX_UNAVAILABLE`, `EX_NOPERM`, `EX_CONFIG`.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Unavailable => 69,
            Self::Permission => 77,
            Self::Configuration => 78,
            Self::Unfinished => 1,
        }
    }

    /// The worst has the highest. What waiting does not mend comes before what it may mend, so that whoever tries
    /// again on 69 does so where nothing else is wrong.
    fn rank(self) -> u8 {
        match self {
            Self::Unfinished => 0,
            Self::Unavailable => 1,
            Self::Permission => 2,
            Self::Configuration => 3,
        }
    }
}

/// Why something is not as it should be, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remedy {
    /// That of the [`Fault`] or [`Warning`].
    pub(crate) name: &'static str,
    pub(crate) cause: String,
    /// Names the setting, the annotation, or the very command; of several lines where that is a command or SQL.
    pub(crate) cure: String,
}

/// What a step found, and what later steps need of it.
#[derive(Debug)]
pub(crate) struct Found<T = ()> {
    outcome: Outcome,
    text: String,
    remedy: Option<Remedy>,
    value: Option<T>,
}

impl Found {
    /// All is well.
    pub(crate) fn fine(found: impl Into<String>) -> Self {
        Self { outcome: Outcome::Passed, text: found.into(), remedy: None, value: Some(()) }
    }

    /// It works, and something about it will hurt.
    pub(crate) fn warning(
        warning: Warning,
        found: impl Into<String>,
        cause: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        let remedy = Remedy { name: warning.as_str(), cause: cause.into(), cure: cure.into() };
        Self { outcome: Outcome::Warning, text: found.into(), remedy: Some(remedy), value: Some(()) }
    }

    /// What later steps need.
    pub(crate) fn with<T>(self, value: T) -> Found<T> {
        let Self { outcome, text, remedy, value: is_there } = self;
        Found { outcome, text, remedy, value: is_there.map(|()| value) }
    }
}

impl<T> Found<T> {
    /// It does not work.
    pub(crate) fn fault(
        fault: Fault,
        found: impl Into<String>,
        cause: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        let remedy = Remedy { name: fault.as_str(), cause: cause.into(), cure: cure.into() };
        Self {
            outcome: Outcome::Failed(fault.class()),
            text: found.into(),
            remedy: Some(remedy),
            value: None,
        }
    }

    /// It was not looked at, or cannot be told.
    pub(crate) fn skipped(because: impl Into<String>) -> Self {
        Self { outcome: Outcome::Skipped, text: because.into(), remedy: None, value: None }
    }

    /// A failure that is no more than a nuisance.
    pub(crate) fn at_most_a_warning(self) -> Self {
        match self.outcome {
            Outcome::Failed(_) => Self { outcome: Outcome::Warning, ..self },
            Outcome::Passed | Outcome::Warning | Outcome::Skipped => self,
        }
    }

    /// What it gave, or itself where there is nothing to go on with.
    pub(crate) fn into_value(self) -> Result<T, Found<()>> {
        let Self { outcome, text, remedy, value } = self;
        value.ok_or(Found { outcome, text, remedy, value: None })
    }

    fn into_step(self, name: Name, subject: String, took: Duration) -> (Step, Option<T>) {
        let Self { outcome, text, remedy, value } = self;
        (Step { name, subject, took, outcome, found: text, remedy }, value)
    }
}

#[cfg(test)]
impl<T> Found<T> {
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    pub(crate) fn found(&self) -> &str {
        &self.text
    }

    pub(crate) fn cause(&self) -> Option<&str> {
        self.remedy.as_ref().map(|remedy| remedy.cause.as_str())
    }

    pub(crate) fn cure(&self) -> Option<&str> {
        self.remedy.as_ref().map(|remedy| remedy.cure.as_str())
    }
}

/// Where steps are written down as they end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(mpsc::Sender<Step>);

impl Recorder {
    /// One, and where its steps come out: until every clone is gone.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Step>) {
        let (steps, written) = mpsc::channel(STEPS_UNTOLD);
        (Self(steps), written)
    }

    /// Does a step, and writes down what it found and how long it took. `None` where it gave nothing to go on with.
    pub(crate) async fn step<T>(
        &self,
        name: Name,
        subject: impl Into<String>,
        work: impl Future<Output = Found<T>>,
    ) -> Option<T> {
        let begins_at = Instant::now();
        let found = Box::pin(work).await;
        self.write(name, subject, begins_at.elapsed(), found).await
    }

    /// Writes down what was found on the way.
    pub(crate) async fn write<T>(
        &self,
        name: Name,
        subject: impl Into<String>,
        took: Duration,
        found: Found<T>,
    ) -> Option<T> {
        let (step, value) = found.into_step(name, subject.into(), took);
        // Nobody takes it any more where the check is over.
        let _ = self.0.send(step).await;
        value
    }

    /// Writes down that a step is not done, and why.
    pub(crate) async fn skip(&self, name: Name, subject: impl Into<String>, because: impl Into<String>) {
        self.write(name, subject, Duration::ZERO, Found::<()>::skipped(because)).await;
    }
}

/// All steps in their order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) steps: Vec<Step>,
    pub(crate) took: Duration,
}

impl Report {
    /// 0 where nothing failed: that of the worst failure.
    pub(crate) fn exit_code(&self) -> u8 {
        exit_code(self.steps.iter().map(|step| step.outcome))
    }

    /// How many steps ended so.
    pub(crate) fn count(&self, outcome: &str) -> usize {
        self.steps.iter().filter(|step| step.outcome.as_str() == outcome).count()
    }
}

fn exit_code(outcomes: impl IntoIterator<Item = Outcome>) -> u8 {
    let failures = outcomes.into_iter().filter_map(|outcome| match outcome {
        Outcome::Failed(class) => Some(class),
        Outcome::Passed | Outcome::Warning | Outcome::Skipped => None,
    });
    failures.max_by_key(|class| class.rank()).map_or(0, Class::exit_code)
}

/// Steps that have ended and are not printed yet.
const STEPS_UNTOLD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_that_of_the_failure_that_waiting_mends_least() {
        use Class::{Configuration, Permission, Unavailable, Unfinished};
        let failed = Outcome::Failed;
        for (outcomes, code) in [
            (&[][..], 0),
            (&[Outcome::Passed, Outcome::Warning, Outcome::Skipped], 0),
            (&[Outcome::Passed, failed(Unavailable), Outcome::Skipped], 69),
            (&[failed(Unavailable), failed(Permission), failed(Unavailable)], 77),
            (&[failed(Configuration), failed(Permission)], 78),
            (&[failed(Unavailable), failed(Configuration), failed(Unfinished)], 78),
            (&[failed(Unavailable), failed(Unfinished)], 69),
            (&[Outcome::Passed, failed(Unfinished)], 1),
        ] {
            assert_eq!(exit_code(outcomes.iter().copied()), code, "{outcomes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn step_is_written_with_its_time_and_hands_on_what_it_made() {
        let (record, mut written) = Recorder::new();
        let slow = async {
            tokio::time::sleep(Duration::from_millis(7)).await;
            Found::warning(Warning::Setting, "so", "because", "do").with(7)
        };
        assert_eq!(record.step(Name::VaultLogin, "web", slow).await, Some(7));
        let refused = async { Found::<u8>::fault(Fault::CredsNotAllowed, "no", "because", "do") };
        assert_eq!(record.step(Name::VaultCreds, "", refused).await, None);
        record.skip(Name::VaultRevoke, "", "vault.login failed").await;
        drop(record);

        let step = written.recv().await.unwrap();
        let name = "setting-gives-up";
        let remedy = Remedy { name, cause: "because".to_owned(), cure: "do".to_owned() };
        let (name, subject, found) = (Name::VaultLogin, "web".to_owned(), "so".to_owned());
        let (took, outcome) = (Duration::from_millis(7), Outcome::Warning);
        assert_eq!(step, Step { name, subject, took, outcome, found, remedy: Some(remedy) });
        assert_eq!(written.recv().await.unwrap().outcome, Outcome::Failed(Class::Permission));
        assert_eq!(written.recv().await.unwrap().outcome, Outcome::Skipped);
        assert_eq!(written.recv().await, None);
    }
}
