//! Many writes by one system call.
//!
//! Whoever sends to a process of the same machine wakes it, and where that is waiting for this very processor the kernel
//! may run it at the end of the call, before what else there is to send. So writes that are due at the same time go out
//! together: they take one call, and the thread goes on until all of them are out.

use std::array;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

use libc::{c_int, c_long, c_void};

/// Writes to sockets that never wait, by `io_submit`, which Linux does before that call returns. Container runtimes allow
/// it by default. A socket whose other end has gone raises SIGPIPE, which Rust's programs ignore from their start.
#[derive(Debug)]
pub(crate) struct Batch {
    context: Context,
    blocks: [Block; MAX],
    events: [Event; MAX],
}

impl Batch {
    /// An error where the system does not write to sockets so, as gVisor does not.
    pub(crate) fn new() -> io::Result<Self> {
        let (blocks, events) = (array::from_fn(|_| Block::default()), array::from_fn(|_| Event::default()));
        let mut batch = Self { context: Context::new()?, blocks, events };
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let mut results = Vec::new();
        let each = [&near, &far].map(|socket| (socket.as_raw_fd(), &b"1"[..]));
        let submitted = batch.submit(each.into_iter())?;
        batch.wait(submitted, |_, result| results.push(result.ok()))?;
        if results == [Some(1); 2] { Ok(batch) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Makes each of `writes`, of which there are [`MAX`] at most, to sockets that are open and never wait. `done` is told
    /// the number of each and what came of it, in bytes. After an error it must not be used again: what came of some is not
    /// known, and they are told as failed.
    pub(crate) fn write<'a>(
        &mut self,
        writes: impl Iterator<Item = (RawFd, &'a [u8])> + Clone,
        mut done: impl FnMut(usize, io::Result<usize>),
    ) -> io::Result<()> {
        let submitted = self.submit(writes.clone()).unwrap_or(0);
        let mut told = 0;
        let waited = self.wait(submitted, |number, result| {
            told += 1;
            done(number, result);
        });
        if waited.is_err() {
            // They are told in order: those that are left are the last ones.
            (told..submitted).for_each(|number| done(number, Err(io::ErrorKind::Other.into())));
        }
        for (number, (to, bytes)) in writes.enumerate().skip(submitted) {
            done(number, write(to, bytes));
        }
        waited
    }

    /// Has the kernel make as many of `writes` as it says, the first ones.
    fn submit<'a>(&mut self, writes: impl Iterator<Item = (RawFd, &'a [u8])>) -> io::Result<usize> {
        let mut count = 0;
        for (block, (to, bytes)) in self.blocks.iter_mut().zip(writes) {
            *block = Block::write(count, to, bytes);
            count += 1;
        }
        let mut blocks: [*mut Block; MAX] = array::from_fn(|_| ptr::null_mut());
        for (pointer, block) in blocks.iter_mut().zip(&mut self.blocks) {
            *pointer = block;
        }
        let count = c_long::try_from(count).unwrap_or(0);
        #[expect(unsafe_code, reason = "no safe crate has it")]
        // SAFETY: each of the first `count` pointers is to a block of ours, which names bytes that are borrowed until
        // the caller has waited, within which the kernel is done with them.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context.0, count, blocks.as_mut_ptr()) };
        usize::try_from(submitted).map_err(|_| io::Error::last_os_error())
    }

    /// Waits until the kernel is done with `left` writes, which it is already.
    fn wait(&mut self, mut left: usize, mut done: impl FnMut(usize, io::Result<usize>)) -> io::Result<()> {
        while left > 0 {
            let wanted = c_long::try_from(left.min(MAX)).unwrap_or(0);
            let events = self.events.as_mut_ptr();
            let for_ever = ptr::null_mut::<c_void>();
            #[expect(unsafe_code, reason = "no safe crate has it")]
            // SAFETY: the kernel writes `wanted` events at most, for which there is room.
            let got = unsafe {
                libc::syscall(libc::SYS_io_getevents, self.context.0, wanted, wanted, events, for_ever)
            };
            let Ok(got) = usize::try_from(got) else {
                match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                }
            };
            for event in self.events.iter().take(got) {
                let number = usize::try_from(event.data).unwrap_or(usize::MAX);
                done(number, event.written());
            }
            left = left.saturating_sub(got);
        }
        Ok(())
    }
}

/// One write to a socket that is open and never waits, in bytes.
pub(crate) fn write(to: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    #[expect(unsafe_code, reason = "the safe ones want a borrow of the socket, which is its session's")]
    // SAFETY: the kernel reads the bytes, which are borrowed, and keeps no pointer.
    let written = unsafe { libc::send(to, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// The kernel's room for events, which this process has.
#[derive(Debug)]
struct Context(libc::c_ulong);

impl Context {
    fn new() -> io::Result<Self> {
        let (mut context, count) = (Self(0), c_long::try_from(MAX).unwrap_or(c_long::MAX));
        #[expect(unsafe_code, reason = "no safe crate has it")]
        // SAFETY: the kernel writes its name for the room to where one lives, and keeps no pointer.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, count, &raw mut context.0) };
        if made == 0 { Ok(context) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.0 != 0 {
            #[expect(unsafe_code, reason = "no safe crate has it")]
            // SAFETY: the room is ours and is not used again.
            let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
        }
    }
}

/// `struct iocb` of `linux/aio_abi.h`.
#[derive(Debug, Default)]
#[repr(C)]
struct Block {
    data: u64,
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    descriptor: c_int,
    bytes: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: c_int,
}

impl Block {
    fn write(number: usize, to: RawFd, bytes: &[u8]) -> Self {
        let wide = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        Self {
            data: wide(number),
            opcode: PWRITE,
            descriptor: to,
            bytes: wide(bytes.as_ptr().expose_provenance()),
            len: wide(bytes.len()),
            ..Self::default()
        }
    }
}

/// `struct io_event` of `linux/aio_abi.h`.
#[derive(Debug, Default)]
#[repr(C)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    second_result: i64,
}

impl Event {
    fn written(&self) -> io::Result<usize> {
        usize::try_from(self.result)
            .map_err(|_| io::Error::from_raw_os_error(i32::try_from(-self.result).unwrap_or(libc::EIO)))
    }
}

/// Writes of one call at most.
pub(crate) const MAX: usize = 16;
/// `IOCB_CMD_PWRITE`.
const PWRITE: u16 = 1;

const _: () = assert!(size_of::<Block>() == 64 && size_of::<Event>() == 32, "as the kernel has them");
