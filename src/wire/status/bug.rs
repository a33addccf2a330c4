//! A bug, for tests of what becomes of a session that meets one.

use std::cell::Cell;

/// Makes what reads such bytes on this thread stumble at them, once.
pub(crate) fn make(bytes: &'static [u8]) {
    BUG.set(bytes);
}

pub(crate) fn meet(bytes: &[u8]) {
    if !bytes.is_empty() && bytes == BUG.get() {
        BUG.set(&[]);
        panic!("as the test wants it");
    }
}

thread_local! {
    /// What this thread stumbles at, if it is all that comes.
    static BUG: Cell<&'static [u8]> = const { Cell::new(&[]) };
}
