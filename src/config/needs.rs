//! What a number of sessions needs of the machine. Pure.

/// Open files: what is reserved, and three for each session.
pub(crate) fn descriptors(sessions: usize) -> u64 {
    let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
    sessions.saturating_mul(DESCRIPTORS_PER_SESSION).saturating_add(RESERVED_DESCRIPTORS)
}

/// Sessions that so many open files are enough for: at least one.
pub(crate) fn sessions_within(descriptors: u64) -> usize {
    let sessions = (descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_SESSION).max(1);
    usize::try_from(sessions).unwrap_or(usize::MAX)
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
