//! What the kernel says of this process.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::telemetry::unix_now;

/// The process. What cannot be read is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ProcessStatus {
    pub(super) pid: u32,
    /// Unix time.
    pub(super) started_at: u64,
    pub(super) age_seconds: u64,
    /// Files and sockets that are open.
    pub(super) descriptors: Option<u64>,
    pub(super) max_descriptors: Option<u64>,
    /// Resident.
    pub(super) memory_bytes: Option<u64>,
}

impl ProcessStatus {
    pub(super) fn read() -> Self {
        let age = age().unwrap_or_default();
        Self {
            pid: std::process::id(),
            started_at: unix_now().saturating_sub(age),
            age_seconds: age,
            descriptors: fs::read_dir("/proc/self/fd")
                .ok()
                // One of them is the folder itself.
                .and_then(|files| u64::try_from(files.count()).ok()?.checked_sub(1)),
            max_descriptors: getrlimit(Resource::Nofile).current,
            memory_bytes: memory(),
        }
    }
}

/// Seconds since it was started, by the clock that runs on while the machine is suspended.
fn age() -> Option<u64> {
    static STARTED: OnceLock<Option<u64>> = OnceLock::new();
    let started = (*STARTED.get_or_init(|| started(&fs::read_to_string("/proc/self/stat").ok()?)))?;
    let now = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
    Some(now.as_secs().saturating_sub(started))
}

/// Seconds from boot to the start, of the text of `/proc/self/stat`.
fn started(stat: &str) -> Option<u64> {
    // Behind the name, which may hold anything: the 22nd field of proc_pid_stat(5).
    let ticks: u64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    Some(ticks / rustix::param::clock_ticks_per_second())
}

fn memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_read() {
        let process = ProcessStatus::read();
        assert!(
            process.descriptors.is_some_and(|open| open > 2) && process.memory_bytes > Some(1 << 20),
            "{process:?}"
        );
        assert!(process.started_at > 1_700_000_000 && process.age_seconds < 86_400, "{process:?}");
        let stat =
            format!("7 (a) b) S {}", (4..60).map(|field| field.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!(started(&stat), Some(22 / rustix::param::clock_ticks_per_second()));
    }
}
