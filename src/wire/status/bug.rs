//! A bug of the tracker, for tests of what becomes of a session that meets one.

use std::cell::Cell;

/// Makes trackers of this thread stumble at `bytes`, once.
pub(crate) fn make(bytes: &'static [u8]) {
    BUG.set(bytes);
}

pub(super) fn meet(bytes: &[u8]) {
    if !bytes.is_empty() && bytes == BUG.get() {
        BUG.set(&[]);
        panic!("as the test wants it");
    }
}

thread_local! {
    /// What trackers of this thread stumble at, if it is all that comes.
    static BUG: Cell<&'static [u8]> = const { Cell::new(&[]) };
}
