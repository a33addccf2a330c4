//! The SQLSTATE of an ErrorResponse that streams past and is not collected.

use super::error::SqlState;

/// Reads the body of one ErrorResponse up to the end of its field `C`, in pieces that end anywhere. A new one for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SqlStateReader {
    place: Place,
    code: [u8; 5],
}

/// What the next byte is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// The type of a field, or the end.
    #[default]
    Type,
    /// Of a field that is not looked at.
    Value,
    /// Of field `C`, of which so many bytes have come.
    Code {
        len: u8,
    },
    Done,
}

impl SqlStateReader {
    /// Takes the next bytes of the body. Gives the code once, when its field ends; like
    /// [`ErrorResponse::parse`](super::error::ErrorResponse::parse) none but the first, and only if it is one.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Option<SqlState> {
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            self.place = match (self.place, byte) {
                (Place::Done, _) => return None,
                (Place::Type, 0) => Place::Done,
                (Place::Type, b'C') => Place::Code { len: 0 },
                (Place::Value, 0) => Place::Type,
                (Place::Type | Place::Value, _) => Place::Value,
                (Place::Code { len }, 0) => {
                    self.place = Place::Done;
                    return SqlState::parse(self.code.get(..usize::from(len))?);
                }
                (Place::Code { len }, _) => {
                    // More of them are no code: `len` says so.
                    if let Some(slot) = self.code.get_mut(usize::from(len)) {
                        *slot = byte;
                    }
                    Place::Code { len: len.saturating_add(1) }
                }
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::error::ErrorResponse;

    fn read(pieces: &[&[u8]]) -> Option<SqlState> {
        let mut reader = SqlStateReader::default();
        let codes: Vec<_> = pieces.iter().filter_map(|piece| reader.read(piece)).collect();
        assert!(codes.len() <= 1, "{codes:?}");
        codes.first().copied()
    }

    #[test]
    fn code_is_found_wherever_the_body_is_cut() {
        let body = b"SERROR\0VERROR\0C42704\0Minvalid role OID: 16390\0C57P01\0Fmiscinit.c\0\0";
        for first in 0..body.len() {
            for second in first..body.len() {
                let pieces = [&body[..first], &body[first..second], &body[second..]];
                assert_eq!(read(&pieces), SqlState::parse(b"42704"), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn what_is_no_code_is_none() {
        for body in [
            &b"\0C42704\0"[..],
            b"SERROR\0\0",
            b"C4270\0\0",
            b"C427041\0\0",
            b"C42704",
            b"C427o4\0",
            b"C\0",
            b"",
        ] {
            assert_eq!(read(&[body]), None, "{}", body.escape_ascii());
        }
        let long = [b"C".as_slice(), &[b'4'; 1000], b"\0C42704\0\0"].concat();
        assert_eq!(read(&[&long]), None);
    }

    proptest! {
        /// Bodies of few letters, so that there are many fields `C`.
        #[test]
        fn it_reads_what_is_read_of_the_whole(
            mut body in prop::collection::vec(prop::sample::select(&b"CM\0\x004057P"[..]), 0..40),
            cuts in prop::collection::vec(0_usize..40, 0..6),
        ) {
            body.push(0);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
            prop_assert_eq!(read(&pieces), ErrorResponse::parse(&body).code);
        }
    }
}
