//! Gives freed memory back to the system: the one call of pglease that no safe crate has, in a crate of its own, so that
//! pglease itself goes on without `unsafe`.

/// Gives back every page that nothing is allocated in, of all threads, and says whether there was one. Whoever allocates
/// meanwhile waits for it.
///
/// Left to itself glibc gives back only what is behind the last allocation of a thread's heap: one long-lived object
/// that was made in a burst keeps all that the burst has taken. Elsewhere than with glibc this does nothing.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes no pointer, and has a lock of each heap while it is at work there, as malloc and free do.
        unsafe { libc::malloc_trim(0) == 1 }
    }
    #[cfg(not(target_env = "gnu"))]
    false
}
