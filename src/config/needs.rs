//! What a number of sessions needs of the machine. Pure.

use super::RouteConfig;

/// Open files: what is reserved, two for each session, those of the threads, and one for each session that these
/// routes have ready.
pub(crate) fn descriptors(sessions: usize, threads: usize, routes: &[RouteConfig]) -> u64 {
    count(sessions).saturating_mul(DESCRIPTORS_PER_SESSION).saturating_add(reserved(threads, routes))
}

/// Sessions that so many open files are enough for: at least one.
pub(crate) fn sessions_within(descriptors: u64, threads: usize, routes: &[RouteConfig]) -> usize {
    let sessions = (descriptors.saturating_sub(reserved(threads, routes)) / DESCRIPTORS_PER_SESSION).max(1);
    usize::try_from(sessions).unwrap_or(usize::MAX)
}

fn reserved(threads: usize, routes: &[RouteConfig]) -> u64 {
    let further = count(threads).saturating_sub(1).saturating_mul(DESCRIPTORS_PER_THREAD);
    let warm = routes.iter().map(|route| count(route.warm));
    warm.fold(RESERVED_DESCRIPTORS.saturating_add(further), u64::saturating_add)
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// MiB of memory: the process and its sessions with full buffers, some of them those of TLS; `docs/session.md` has what
/// was measured.
pub(crate) fn memory_mib(sessions: usize) -> usize {
    BASE_MIB + sessions.saturating_mul(KIB_PER_SESSION).div_ceil(1024)
}

/// Client and upstream. A login has one upstream at a time, whatever their number, and a connection without a seat takes
/// up one of the two of a session that is not there.
const DESCRIPTORS_PER_SESSION: u64 = 2;

/// For the runtime of each thread beyond the first that runs sessions: what it waits with, and what wakes it.
const DESCRIPTORS_PER_THREAD: u64 = 4;

/// 64 for connections beyond those, 64 for cancels, 64 at the HTTP ports, 16 for connections to upstreams that are made
/// ahead, 16 that are kept for the moment of need; the rest for listeners, Vault, probes, look-ups of names and files.
const RESERVED_DESCRIPTORS: u64 = 300;

const BASE_MIB: usize = 32;
const KIB_PER_SESSION: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_thousand_sessions_fit_into_twenty_thousand_descriptors() {
        assert_eq!(descriptors(9000, 1, &[]), 18_300);
        for (sessions, threads) in [(1, 1), (100, 2), (1000, 64), (9000, 1)] {
            assert_eq!(sessions_within(descriptors(sessions, threads, &[]), threads, &[]), sessions);
        }
        assert_eq!(sessions_within(64, 1, &[]), 1);
    }
}
