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
}

/// A process, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    uid: u32,
}

/// Sends it to each process of that name whose parent has another: a server that forks is told, its workers are not.
pub(super) fn send(signal: FileSignal, name: &str) -> Result<(), SignalError> {
    let named = named(name).map_err(SignalError::Unlisted)?;
    let first: Vec<_> = heads(&named).collect();
    if first.is_empty() {
        return Err(SignalError::NoProcess);
    }
    let mut told = false;
    if let Some(process) = first.iter().find(|process| !is_handled(process.pid, numbered(signal))) {
        return Err(SignalError::NotHandled { pid: process.pid });
    }
    for process in first {
        match send_to(process.pid, name, numbered(signal)) {
            Ok(was_there) => told |= was_there,
            Err(Errno::PERM) => {
                let (pid, theirs, ours) = (process.pid, process.uid, geteuid().as_raw());
                return Err(SignalError::NotAllowed { pid, theirs, ours });
            }
            Err(source) => return Err(SignalError::Failed { pid: process.pid, source }),
        }
    }
    if told { Ok(()) } else { Err(SignalError::NoProcess) }
}

/// `false` where it has gone. What took its pid since is not told in its place.
fn send_to(pid: i32, name: &str, signal: Signal) -> Result<bool, Errno> {
    let Some(id) = Pid::from_raw(pid) else { return Ok(false) };
    let process = match pidfd_open(id, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !is_named(pid, name) {
        return Ok(false);
    }
    match pidfd_send_signal(process, signal) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error),
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
    named.iter().filter(|process| !named.iter().any(|other| other.pid == process.parent))
}

/// proc(5), `/proc/pid/stat`: the name is in parentheses and may hold any; the state, then the parent come behind.
fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    let uid = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    Some(Process { pid, parent, uid })
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
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn of_a_family_the_head_is_told() {
        let process = |pid, parent| Process { pid, parent, uid: 0 };
        let family = [process(10, 1), process(11, 10), process(12, 10), process(20, 1), process(21, 11)];
        assert_eq!(heads(&family).map(|process| process.pid).collect::<Vec<_>>(), [10, 20]);
    }

    #[test]
    fn process_is_told_once_it_handles_the_signal() {
        let name = format!("reader{}", std::process::id());
        // Not SIGHUP, which no shell handles that was started with it ignored, as by nohup.
        let script = "trap 'echo told; exit 0' USR1; while :; do sleep 1; done";
        let mut reader = Command::new("sh");
        let reader = reader.arg0(&name).args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        // Before it has its trap it would be ended.
        while let Err(error) = send(FileSignal::User1, &name) {
            assert!(matches!(error, SignalError::NotHandled { .. } | SignalError::NoProcess), "{error}");
            thread::sleep(Duration::from_millis(10));
        }
        let said = reader.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "told\n");
    }

    #[test]
    fn nobody_is_told_where_nobody_has_the_name() {
        let error = send(FileSignal::Hangup, "no-such-program-here").unwrap_err();
        assert!(matches!(error, SignalError::NoProcess), "{error}");
        assert!(error.to_string().contains("shareProcessNamespace"));
    }
}
