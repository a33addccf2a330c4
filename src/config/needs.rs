//! What a number of sessions needs of the machine. Pure.

use super::RouteConfig;

/// Open files: what is reserved, three for each session, and one for each that these routes have ready.
pub(crate) fn descriptors(sessions: usize, routes: &[RouteConfig]) -> u64 {
    let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
    sessions.saturating_mul(DESCRIPTORS_PER_SESSION).saturating_add(reserved(routes))
}

/// Sessions that so many open files are enough for: at least one.
pub(crate) fn sessions_within(descriptors: u64, routes: &[RouteConfig]) -> usize {
    let sessions = (descriptors.saturating_sub(reserved(routes)) / DESCRIPTORS_PER_SESSION).max(1);
    usize::try_from(sessions).unwrap_or(usize::MAX)
}

fn reserved(routes: &[RouteConfig]) -> u64 {
    let warm = routes.iter().map(|route| u64::try_from(route.warm).unwrap_or(u64::MAX));
    warm.fold(RESERVED_DESCRIPTORS, u64::saturating_add)
}

/// MiB of memory: the process and its sessions with full buffers, some of them those of TLS; `docs/session.md` has what
/// was measured.
pub(crate) fn memory_mib(sessions: usize) -> usize {
    BASE_MIB + sessions.saturating_mul(KIB_PER_SESSION).div_ceil(1024)
}

/// Client, upstream, and a connection that has no seat.
const DESCRIPTORS_PER_SESSION: u64 = 3;

/// For listeners, Vault, probes, the kubelet, cancels, and further connections without a seat.
const RESERVED_DESCRIPTORS: u64 = 200;

const BASE_MIB: usize = 32;
const KIB_PER_SESSION: usize = 128;
