//! Child processes that end with this one.
//!
//! `reaper.py`, started with the first of them, reads from a pipe of which only this process holds the other
//! end. It learns of each server before that server runs, and of each temporary folder before it exists; when
//! the pipe closes, it stops the ones and removes the others. That holds for SIGKILL, and for statics, which are
//! never dropped. A parent-death signal would not do: it fires when the *thread* that spawned ends.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::sync::watch;
use tokio::time;

/// A server, and every line that it has printed. Stopped on drop.
pub(crate) struct Process {
    child: Mutex<Child>,
    pid: Pid,
    /// Its standard input, of a process that is to be told things.
    input: Mutex<Option<ChildStdin>>,
    lines: Lines,
    stop: Signal,
}

/// What to run, and how.
pub(crate) struct Spawn<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
    /// Nothing but these: the settings of whoever runs the tests are not for the servers.
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// Working folder.
    pub(crate) folder: &'a Path,
    /// User and group to run as, where they are not ours.
    pub(crate) uid: Option<u32>,
    /// What ends it quickest without leaving anything.
    pub(crate) stop: Signal,
}

impl Process {
    pub(crate) fn spawn(spawn: &Spawn<'_>) -> Self {
        let process = Self::spawn_with_input(spawn);
        drop(lock(&process.input).take());
        process
    }

    /// One that can be [told](Self::tell) things.
    pub(crate) fn spawn_with_input(spawn: &Spawn<'_>) -> Self {
        // The shell waits for a line that is written once the reaper knows it, then becomes the program. Where
        // this process dies in between, it reads the end of the pipe instead, and ends. A session of its own: Ctrl-C in
        // the terminal is for this process, and the kernel shares processors out among sessions as among containers.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "read -r _ && exec setsid \"$@\"", "sh"])
            .arg(spawn.program)
            .args(spawn.arguments);
        command.env_clear().envs(spawn.environment.iter().copied()).current_dir(spawn.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(uid) = spawn.uid {
            command.uid(uid).gid(uid);
        }

        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("starting {}: {error}", spawn.program.display()));
        tell_reaper(&format!("process {} {}", child.id(), spawn.stop.as_raw()));
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let lines = Lines::follow(stdout, stderr);
        // Fails where the shell has ended already: whoever waits for a line of the program then says so.
        let mut input = child.stdin.take().unwrap();
        let _ = input.write_all(b"\n");
        let input = Mutex::new(Some(input));
        Self { pid: Pid::from_child(&child), child: Mutex::new(child), input, lines, stop: spawn.stop }
    }

    /// Writes a line to its standard input. One that has ended does not hear it.
    pub(crate) fn tell(&self, line: &str) {
        if let Some(input) = lock(&self.input).as_mut() {
            let _ = input.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// What it prints, on stdout and stderr.
    pub(crate) fn lines(&self) -> &Lines {
        &self.lines
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // One that has ended is still ours to wait for, so its number means no other.
        let _ = rustix::process::kill_process(self.pid, signal);
    }

    /// Its exit, within `limit`.
    pub(crate) async fn wait_exit(&self, limit: Duration) -> ExitStatus {
        let exit = async {
            loop {
                if let Some(status) = lock(&self.child).try_wait().expect("wait for a child") {
                    return status;
                }
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        let status = time::timeout(limit, exit).await;
        status.unwrap_or_else(|_| panic!("no exit within {limit:?}; its last lines:\n{}", self.lines.tail()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process (SIGSTOP) heeds SIGKILL only.
        self.signal(Signal::CONT);
        self.signal(self.stop);
        // A server that puts its files and its memory away takes its time for that on a busy machine.
        for _ in 0..6000 {
            if !matches!(lock(&self.child).try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
        tell_reaper(&format!("forget {}", self.pid));
    }
}

/// Stops a process until it is told to go on. On return none of its threads runs any more: the signal alone
/// leaves a busy machine's threads the time to answer something.
pub(crate) async fn freeze(pid: Pid) {
    rustix::process::kill_process(pid, Signal::STOP)
        .unwrap_or_else(|error| panic!("stopping {pid}: {error}"));
    let stopped = async {
        while !is_stopped(pid) {
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(super::PATIENCE, stopped).await.unwrap_or_else(|_| panic!("process {pid} does not stop"));
}

/// Whether every thread of it is stopped, from the state behind the command's name in `/proc/PID/task/*/stat`.
fn is_stopped(pid: Pid) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.all(|thread| {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat"));
        // A thread that has just ended has no such file.
        stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    })
}

/// The lines of a process, as they come. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many there are; closed at the end of the process's output.
    count: watch::Receiver<usize>,
}

impl Lines {
    fn follow(stdout: impl Read + Send + 'static, stderr: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let sender = Arc::new(sender);
        let follow = |output: Box<dyn Read + Send>| {
            let (lines, sender) = (Arc::clone(&lines), Arc::clone(&sender));
            thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    let mut lines = lock(&lines);
                    lines.push(String::from_utf8_lossy(&line).into_owned());
                    sender.send_replace(lines.len());
                }
            });
        };
        follow(Box::new(stdout));
        follow(Box::new(stderr));
        Self { lines: Arc::clone(&lines), count }
    }

    /// All so far.
    pub(crate) fn all(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// Those from number `first` on.
    pub(crate) fn since(&self, first: usize) -> Vec<String> {
        lock(&self.lines).get(first..).unwrap_or_default().to_vec()
    }

    /// Those from number `first` on, once there is one; `None` at the end of the process's output.
    pub(crate) async fn after(&self, first: usize) -> Option<Vec<String>> {
        let rest = |lines: &[String]| Some(lines.get(first..)?.to_vec()).filter(|rest| !rest.is_empty());
        self.wait_for(Duration::MAX, rest).await
    }

    /// Whether the process's output has ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.count.has_changed().is_err()
    }

    /// The last ones, for the message of a failed test.
    pub(crate) fn tail(&self) -> String {
        let lines = lock(&self.lines);
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }

    /// What `find` makes of the lines so far, at the first time that it is something; `None` if the process
    /// ends, or `limit` passes, before that.
    pub(crate) async fn wait_for<T>(
        &self,
        limit: Duration,
        mut find: impl FnMut(&[String]) -> Option<T>,
    ) -> Option<T> {
        let mut count = self.count.clone();
        let found = async {
            loop {
                // The end is looked at first: there may be lines between the last look and the end.
                let has_ended = count.has_changed().is_err();
                count.mark_unchanged();
                if let Some(found) = find(&lock(&self.lines)) {
                    return Some(found);
                }
                if has_ended {
                    return None;
                }
                let _ = count.changed().await;
            }
        };
        time::timeout(limit, found).await.ok().flatten()
    }
}

/// A temporary folder, removed on drop, and whatever happens.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// One that only its owner may read, and only this user and `guest` may enter.
    pub(crate) fn create(guest: Option<u32>) -> Self {
        let base = std::env::temp_dir();
        // `guest` must get there: root's own folders are closed to others.
        let base = if guest.is_none() || is_open_to_all(&base) { base } else { PathBuf::from("/tmp") };
        let path = base.join(format!("pglease-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        tell_reaper(&format!("folder {}", path.display()));
        let mode = if guest.is_some() { 0o711 } else { 0o700 };
        let created = fs::DirBuilder::new().mode(mode).create(&path);
        created.unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        if !self.path.exists() {
            tell_reaper(&format!("forget {}", self.path.display()));
        }
    }
}

/// Copies a file or folder that is run from there, by a child: what this process has written itself may not be run
/// while a child that another test is just starting has a copy of the descriptor that it was written through.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).output().expect("cp");
    assert!(copied.status.success(), "{copied:?}");
}

/// Writes such a file, of one text.
pub(crate) fn write_program(path: &Path, text: &str) {
    let script = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let written = Command::new("/bin/sh").args(["-c", script, "sh", text]).arg(path).output().expect("sh");
    assert!(written.status.success(), "{written:?}");
}

/// Whether any user can enter `path`.
pub(crate) fn is_open_to_all(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.ancestors().all(|path| fs::metadata(path).is_ok_and(|folder| folder.permissions().mode() & 0o1 != 0))
}

/// Waits until everything that this process started and has not stopped is gone. For the end of `main`.
pub(crate) fn finish() {
    if let Some(Reaper { mut child }) = lock(&REAPER).take() {
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

struct Reaper {
    child: Child,
}

static REAPER: LazyLock<Mutex<Option<Reaper>>> = LazyLock::new(Mutex::default);

/// Starts the reaper if need be. What it is told is in the pipe when this returns, so that it is read before
/// the end of the pipe.
fn tell_reaper(line: &str) {
    let mut reaper = lock(&REAPER);
    let reaper = reaper.get_or_insert_with(|| {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/reaper.py"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        Reaper { child: command.spawn().expect("python3, to start tests/support/reaper.py") }
    });
    let pipe = reaper.child.stdin.as_mut().unwrap();
    let told: io::Result<()> = pipe.write_all(format!("{line}\n").as_bytes());
    // Not while dropping, where it would abort.
    if let Err(error) = told
        && !thread::panicking()
    {
        panic!("tests/support/reaper.py is gone: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
