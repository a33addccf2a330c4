//! What the kernel knows of a process.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::process::Pid;

use super::measure::output;

/// Nanoseconds on a CPU so far, by thread.
pub(crate) struct Spent(BTreeMap<String, f64>);

impl Spent {
    pub(crate) fn of(pid: Pid) -> Self {
        let mut spent = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let name = thread.file_name().to_string_lossy().into_owned();
            spent.extend(output::schedstat(&text).map(|time| (name, time)));
        }
        Self(spent)
    }

    /// Microseconds since `before`. Threads that have ended in between are left out.
    pub(crate) fn micros_since(&self, before: &Self) -> f64 {
        let of = |(name, now): (&String, &f64)| now - before.0.get(name).copied().unwrap_or_default();
        self.0.iter().map(of).sum::<f64>() / 1000.0
    }
}

/// A size in `/proc/PID/status`, in KiB.
pub(crate) fn memory_kib(pid: Pid, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    output::status_kib(&status, field).unwrap_or(f64::NAN)
}

/// Until memory has gone back: pglease sees to it every ten seconds.
pub(crate) const GIVEN_BACK: Duration = Duration::from_secs(12);
