//! A command, without a shell and without anything secret.

use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time;
use tracing::info;
use zeroize::Zeroizing;

use super::super::redact::Passwords;
use crate::config;

/// Why the reader may not know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("cannot be run")]
    Start(#[source] io::Error),
    #[error("cannot be waited for")]
    Wait(#[source] io::Error),
    #[error("was not done within {limit:?}, and was killed{}", says(output))]
    TimedOut { limit: Duration, output: String },
    #[error("ended with {status}{}", says(output))]
    Failed { status: ExitStatus, output: String },
}

fn says(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!("; it says: {output}") }
}

/// One run.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) program: &'a str,
    pub(super) arguments: &'a [String],
    /// Of the file.
    pub(super) path: &'a str,
    /// Of its file, which it may print.
    pub(super) passwords: &'a Passwords,
    pub(super) timeout: Duration,
}

impl Run<'_> {
    /// Runs it to its end, or kills it. What it has started and not waited for ends with it.
    pub(super) async fn run(&self) -> Result<(), CommandError> {
        let kept = config::environment().filter(|(name, _)| KEPT.iter().any(|kept| name == kept));
        let mut child = Command::new(self.program)
            .args(self.arguments)
            .env_clear()
            .envs(kept)
            .env(PATH_VARIABLE, self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(CommandError::Start)?;
        let group = Group::of(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut reading = pin!(async { tokio::join!(read(stdout), read(stderr)) });
        let mut read = None;
        let waiting = async {
            loop {
                tokio::select! {
                    ended = child.wait() => break ended,
                    output = &mut reading, if read.is_none() => read = Some(output),
                }
            }
        };
        let ended = time::timeout(self.timeout, waiting).await;
        drop(group);
        if read.is_none() {
            // Somebody who left its group may have its output open for ever.
            read = time::timeout(MAX_LAST_WORDS, reading).await.ok();
        }
        let output = read.map(|(said, complained)| self.passwords.redacted(&[&said, &complained]));
        let output = output.unwrap_or_default();
        match ended {
            Err(_) => Err(CommandError::TimedOut { limit: self.timeout, output }),
            Ok(Err(error)) => Err(CommandError::Wait(error)),
            Ok(Ok(status)) if status.success() => {
                if !output.is_empty() {
                    info!(event = "file.command_output", path = self.path, output);
                }
                Ok(())
            }
            Ok(Ok(status)) => Err(CommandError::Failed { status, output }),
        }
    }
}

/// Takes the first of what it says, and lets the rest go by: a full pipe would stop it.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Zeroizing<Vec<u8>> {
    let mut into = Zeroizing::new(Vec::with_capacity(MAX_OUTPUT_LEN));
    let Some(mut from) = from else { return into };
    let mut piece = Zeroizing::new([0; 1024]);
    while let Ok(len @ 1..) = from.read(piece.as_mut_slice()).await {
        let room = MAX_OUTPUT_LEN.saturating_sub(into.len());
        into.extend_from_slice(piece.get(..len.min(room)).unwrap_or_default());
    }
    into
}

/// The command and all that it has started; killed on drop, where they are still there.
struct Group(Option<Pid>);

impl Group {
    fn of(id: Option<u32>) -> Self {
        Self(id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Mostly there is nobody left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What the environment of a command is made of. Settings, addresses and whatever else is in pglease's own is not.
const KEPT: &[&str] = &["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR"];
/// Names the file to it.
const PATH_VARIABLE: &str = "PGLEASE_FILE_PATH";
/// For output that is still under way when the command is over.
const MAX_LAST_WORDS: Duration = Duration::from_secs(2);
/// Of what it says on each of its two outputs.
const MAX_OUTPUT_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::ids::GenerationId;

    const LONG: Duration = Duration::from_mins(5);

    async fn run(script: &str, timeout: Duration) -> Result<(), CommandError> {
        let arguments = ["-c".to_owned(), script.to_owned(), "a b".to_owned()];
        let passwords = Passwords::default();
        passwords.add(GenerationId(1), &SecretString::from("s3cret"));
        let run = Run { program: "sh", arguments: &arguments, path: "/db", passwords: &passwords, timeout };
        run.run().await
    }

    #[tokio::test]
    async fn command_gets_its_words_and_the_path_and_nothing_else() {
        let variables =
            "test \"$0\" = 'a b' && test \"$PGLEASE_FILE_PATH\" = /db && test -z \"$CARGO_MANIFEST_DIR\"";
        run(variables, LONG).await.unwrap();
    }

    #[tokio::test]
    async fn what_it_says_is_told_without_the_password() {
        let error = run("echo with s3cret; echo and s3cret >&2; exit 3", LONG).await.unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("ended with exit status: 3; it says: with *** "), "{said}");
        assert!(said.ends_with("and ***"), "{said}");
    }

    #[tokio::test]
    async fn flood_of_words_stops_nobody() {
        let error = run("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", LONG).await.unwrap_err();
        assert!(error.to_string().ends_with("xxx"), "{error}");
    }

    #[tokio::test]
    async fn command_that_takes_too_long_is_killed_with_what_it_has_started() {
        // The child has its output too: were it not killed, its last words would be waited for.
        let script = "sleep 100000 & wait";
        let error = run(script, Duration::from_secs(3)).await.unwrap_err();
        assert!(matches!(error, CommandError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn program_that_is_not_there_is_named() {
        let passwords = Passwords::default();
        let run = Run {
            program: "/nowhere/reload",
            arguments: &[],
            path: "/db",
            passwords: &passwords,
            timeout: LONG,
        };
        assert!(matches!(run.run().await, Err(CommandError::Start(_))));
    }
}
