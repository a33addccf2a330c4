//! How much has to come before a socket says that something has.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has `socket` say that it can be read only where `len` bytes have come, or its end, or an error; 1 is as it was. What
/// is read is not bound by it. Where as many have come already, it says so once more, to who waits for changes as well.
///
/// Linux: `SO_RCVLOWAT` of socket(7), which TCP heeds; gVisor takes note of it and does nothing.
pub(crate) fn set_low_mark<S: AsFd>(socket: &S, len: usize) -> io::Result<()> {
    let len = libc::c_int::try_from(len).unwrap_or(libc::c_int::MAX);
    #[expect(unsafe_code, reason = "no safe crate has it")]
    // SAFETY: the descriptor is borrowed and thus open; the kernel reads the size of an int from where one lives, and
    // keeps no pointer.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const len).cast(),
            LEN,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of an int.
const LEN: libc::socklen_t = 4;
const _: () = assert!(size_of::<libc::c_int>() == 4, "the length is that of an int");
