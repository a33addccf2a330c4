//! A signal to a process of the same process namespace, by its name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, getpid, pidfd_open, pidfd_send_signal};

use crate::config::FileSignal;

/// Why nobody was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignalError {
    #[error("the processes cannot be listed")]
    Unlisted(#[source] io::Error),
    #[error(
        "there is no process of that name; it is not there yet, or the pod lacks shareProcessNamespace: true, by which \
         pglease would see it"
    )]
    NoProcess,
    #[error(
        "process {pid} is user {theirs}'s, and pglease is user {ours}, who may not send it anything; run both as the \
         same user"
    )]
    NotAllowed { pid: i32, theirs: u32, ours: u32 },
    #[error(
        "process {pid} does not handle this signal, or not yet, and would be ended by it; have it handle it"
    )]
    NotHandled { pid: i32 },
    #[error("process {pid} cannot be told")]
    Failed { pid: i32, source: Errno },
    #[error("a bug of pglease")]
    Fault,
}

/// A process, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: Identity,
    parent: i32,
    uid: u32,
}

/// A pid, and when the process began, by which it is told from one that has the pid after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    pid: i32,
    /// In ticks of the clock since the machine's start.
    began: u64,
}

/// Those that have been sent the signal for one change, so that none gets it twice.
#[derive(Debug, Default)]
pub(super) struct Told(Vec<Identity>);

/// Sends it to each process of that name whose parent has another: a server that forks is told, its workers are not.
/// One that cannot be told keeps none of the others from it. Blocks on `/proc`.
pub(super) fn send(signal: FileSignal, name: &str, told: &mut Told) -> Result<(), SignalError> {
    let named = named(name).map_err(SignalError::Unlisted)?;
    let mut failed = None;
    for process in heads(&named).filter(|process| !told.0.contains(&process.id)).collect::<Vec<_>>() {
        match send_to(process, name, numbered(signal)) {
            Ok(true) => told.0.push(process.id),
            Ok(false) => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if told.0.is_empty() => Err(SignalError::NoProcess),
        None => Ok(()),
    }
}

/// `false` where it has gone. What took its pid since is not told in its place.
fn send_to(process: &Process, name: &str, signal: Signal) -> Result<bool, SignalError> {
    let pid = process.id.pid;
    let Some(id) = Pid::from_raw(pid) else { return Ok(false) };
    let failed = |source| SignalError::Failed { pid, source };
    let handle = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    if !is_named(pid, name) || self::process(pid).is_none_or(|now| now.id != process.id) {
        return Ok(false);
    }
    if !is_handled(pid, signal) {
        return Err(SignalError::NotHandled { pid });
    }
    match pidfd_send_signal(handle, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(Errno::PERM) => {
            Err(SignalError::NotAllowed { pid, theirs: process.uid, ours: geteuid().as_raw() })
        }
        Err(error) => Err(failed(error)),
    }
}

fn named(name: &str) -> io::Result<Vec<Process>> {
    let ours = getpid().as_raw_nonzero().get();
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid: &i32| *pid != ours && is_named(*pid, name));
    Ok(others.filter_map(process).collect())
}

/// Those whose parent is none of them.
fn heads(named: &[Process]) -> impl Iterator<Item = &Process> {
    named.iter().filter(|process| !named.iter().any(|other| other.id.pid == process.parent))
}

/// proc(5), `/proc/pid/stat`: the name is in parentheses and may hold any; the state, then the parent come behind, and the
/// start as the 22nd of all.
fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let began = fields.nth(17)?.parse().ok()?;
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    Some(Process { id: Identity { pid, began }, parent, uid })
}

/// Whether it calls itself so, as `ps` shows it, or was started by such a path. A process of another container may
/// call itself what it likes: all that it gets by it is a signal.
fn is_named(pid: i32, name: &str) -> bool {
    let own = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let cut: String = name
        .chars()
        .scan(0, |len, character| {
            *len += character.len_utf8();
            (*len <= MAX_COMM_LEN).then_some(character)
        })
        .collect();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // One that was never started by a path, or is over, has none.
    own.trim_end_matches('\n') == cut && is_alive(pid) || program == name.as_bytes()
}

/// Not only waiting for its parent to hear that it has ended.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .is_some_and(|state| state != "Z")
}

/// Whether it has a handler for it. One that has just started may not have yet; one that blocks it may do so for a moment
/// only.
///
/// proc(5), `/proc/pid/status`: a mask in hexadecimal digits, the lowest bit for signal 1.
fn is_handled(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let bit = 1_u64 << (signal.as_raw() - 1);
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & bit != 0)
}

fn numbered(signal: FileSignal) -> Signal {
    match signal {
        FileSignal::Hangup => Signal::HUP,
        FileSignal::Interrupt => Signal::INT,
        FileSignal::Quit => Signal::QUIT,
        FileSignal::User1 => Signal::USR1,
        FileSignal::User2 => Signal::USR2,
        FileSignal::Terminate => Signal::TERM,
        FileSignal::WindowChange => Signal::WINCH,
    }
}

/// `TASK_COMM_LEN` without its `\0`: what the kernel keeps of a name.
const MAX_COMM_LEN: usize = 15;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use rustix::process::getppid;

    use super::*;

    /// A shell of that name, which prints what it does of the script.
    fn reader(name: &str, script: &str) -> Child {
        let mut reader = Command::new("sh");
        reader.arg0(name).args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Tells them of one change until `is_done`, for minutes at most.
    fn tell(name: &str, told: &mut Told, is_done: impl Fn(&Result<(), SignalError>, &Told) -> bool) {
        let done = (0..30_000).any(|_| {
            let sent = send(FileSignal::User1, name, told);
            thread::sleep(Duration::from_millis(10));
            // Before it has its trap it would be ended.
            let is_known =
                matches!(sent, Ok(()) | Err(SignalError::NotHandled { .. } | SignalError::NoProcess));
            assert!(is_known, "{sent:?}");
            is_done(&sent, told)
        });
        assert!(done, "{told:?}");
    }

    #[test]
    fn of_a_family_the_head_is_told() {
        let process = |pid, parent| Process { id: Identity { pid, began: 1 }, parent, uid: 0 };
        let family = [process(10, 1), process(11, 10), process(12, 10), process(20, 1), process(21, 11)];
        assert_eq!(heads(&family).map(|process| process.id.pid).collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn process_is_what_proc_says_of_it() {
        let own = process(getpid().as_raw_nonzero().get()).unwrap();
        assert_eq!((own.parent, own.uid), (getppid().unwrap().as_raw_nonzero().get(), geteuid().as_raw()));
        // Later than the machine, and by which a child of this one is another.
        let mut child = reader("sh", "read line");
        let began = process(child.id().try_into().unwrap()).unwrap().id.began;
        assert!(own.id.began > 0 && began >= own.id.began, "{began} {own:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn each_is_told_once_and_who_cannot_be_told_keeps_nobody_from_it() {
        let name = format!("reader{}", std::process::id());
        // Not SIGHUP, which no shell handles that was started with it ignored, as by nohup. It says at the end how often
        // it was told.
        let told_times = "n=0; trap 'n=$((n+1)); echo told' USR1; while ! read line; do :; done; echo $n";
        let mut deaf = reader(&name, "read line; trap 'echo told; exit 0' USR1; read line");
        let mut hearing = reader(&name, told_times);
        let mut said = BufReader::new(hearing.stdout.take().unwrap()).lines();

        let mut told = Told::default();
        let deaf_pid = i32::try_from(deaf.id()).unwrap();
        // Its tries fail, and none of them is lost on the other.
        tell(&name, &mut told, |sent, told| sent.is_err() && !told.0.is_empty());
        assert_eq!(said.next().unwrap().unwrap(), "told");
        let error = send(FileSignal::User1, &name, &mut told).unwrap_err();
        assert!(matches!(error, SignalError::NotHandled { pid } if pid == deaf_pid), "{error}");
        // It has its handler now.
        let mut ears = deaf.stdin.take().unwrap();
        ears.write_all(b"\n").unwrap();
        tell(&name, &mut told, |sent, _| sent.is_ok());
        let said_by_deaf = deaf.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(said_by_deaf.stdout).unwrap(), "told\n");
        hearing.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(said.map(Result::unwrap).last().unwrap(), "1");
        hearing.wait().unwrap();
    }

    #[test]
    fn nobody_is_told_where_nobody_has_the_name() {
        let error = send(FileSignal::Hangup, "no-such-program-here", &mut Told::default()).unwrap_err();
        assert!(matches!(error, SignalError::NoProcess), "{error}");
        assert!(error.to_string().contains("shareProcessNamespace"));
    }
}
