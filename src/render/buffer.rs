//! Bytes that hold a secret: wiped when dropped, and wiped where they are left behind by growing.

use zeroize::Zeroizing;

use super::RenderError;

/// What is rendered, up to [`MAX_LEN`].
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Zeroizing<Vec<u8>>,
    overflowed: bool,
}

impl Buffer {
    pub(crate) fn push_str(&mut self, text: &str) {
        self.push_bytes(text.as_bytes());
    }

    pub(crate) fn push(&mut self, character: char) {
        self.push_str(character.encode_utf8(&mut [0; 4]));
    }

    fn push_bytes(&mut self, more: &[u8]) {
        let len = self.bytes.len() + more.len();
        if len > MAX_LEN {
            self.overflowed = true;
            return;
        }
        if len > self.bytes.capacity() {
            // `Vec` would free the smaller place with the secret in it.
            let mut larger = Zeroizing::new(Vec::with_capacity((2 * len).max(FIRST_LEN)));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
        self.bytes.extend_from_slice(more);
    }

    /// The bytes, unless they were more than a file of ours may be.
    pub(crate) fn finish(self) -> Result<Zeroizing<Vec<u8>>, RenderError> {
        if self.overflowed { Err(RenderError::TooLong { max_len: MAX_LEN }) } else { Ok(self.bytes) }
    }

    /// As text, without a copy; empty where it was too long.
    pub(crate) fn into_text(mut self) -> Zeroizing<String> {
        Zeroizing::new(String::from_utf8(std::mem::take(&mut *self.bytes)).unwrap_or_default())
    }

    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Notes that a part of it was too long to be kept.
    pub(crate) fn overflow(&mut self) {
        self.overflowed = true;
    }
}

/// Numbers and texts without a secret.
impl std::fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

/// The longest file, in bytes: no reader of credentials expects more, and a template may multiply what it is given.
pub(crate) const MAX_LEN: usize = 1024 * 1024;
/// Most files fit.
const FIRST_LEN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_what_is_in_it_and_ends_at_its_limit() {
        let mut buffer = Buffer::default();
        (0..1000).for_each(|_| buffer.push_str("four"));
        assert_eq!(buffer.finish().unwrap().as_slice(), "four".repeat(1000).as_bytes());

        let mut buffer = Buffer::default();
        (0..=MAX_LEN / 1024).for_each(|_| buffer.push_str(&"x".repeat(1024)));
        assert_eq!(buffer.finish().unwrap_err(), RenderError::TooLong { max_len: MAX_LEN });
    }
}
