//! Frames: a tag, a length and a body, as all messages but the first of a connection.

use super::message::HEADER_LEN;

/// One whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) tag: u8,
    pub(crate) body: &'a [u8],
}

/// A length that no peer may declare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("message {:?} of {len} bytes is longer than {max_len}", char::from(*tag))]
    TooLong { tag: u8, len: u32, max_len: u32 },
    #[error("message {:?} declares a length of {len}, less than its own length word", char::from(*tag))]
    TooShort { tag: u8, len: u32 },
}

/// Splits the first whole message off `buf`; `None` asks for more bytes.
///
/// `max_len` bounds the declared length in bytes (the length word included). It is judged before the body has
/// arrived, so a peer cannot make the caller buffer more than that.
///
/// PostgreSQL manual, "Message Formats": Byte1 tag, Int32 length including itself, body.
pub(crate) fn split_frame(buf: &[u8], max_len: u32) -> Result<Option<(Frame<'_>, &[u8])>, FrameError> {
    let Some((&[tag, l3, l2, l1, l0], rest)) = buf.split_first_chunk() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([l3, l2, l1, l0]);
    if len > max_len {
        return Err(FrameError::TooLong { tag, len, max_len });
    }
    let body_len = len.checked_sub(4).ok_or(FrameError::TooShort { tag, len })?;
    let body_len = usize::try_from(body_len).unwrap_or(usize::MAX);

    Ok(rest.split_at_checked(body_len).map(|(body, rest)| (Frame { tag, body }, rest)))
}

/// What is shown of the body of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    First,
    Body,
}

/// Finds the frames of one direction in slices that end anywhere, and keeps nothing of them but a header that is
/// not whole yet. Costs a few instructions for each frame, none for the bytes of its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameScanner {
    /// The first `header_len` bytes of a header.
    header: [u8; HEADER_LEN],
    header_len: u8,
    /// Bytes that are still to come of the body.
    body_left: u32,
    /// Of a frame whose body is shown, or its first byte, which is still to come.
    shown: Option<(u8, Show)>,
    /// A length below 4 or above 2 GiB has come: where the next frame begins, nobody knows.
    lost: bool,
}

impl FrameScanner {
    /// Takes the next bytes. `seen` is told the tag of each frame as soon as its header is whole, with `&[]`. For
    /// those messages that `show` names it is told the first byte instead, once that has come; or the body as well,
    /// in as many pieces as it comes in.
    pub(crate) fn scan(
        &mut self,
        mut bytes: &[u8],
        show: impl Fn(u8) -> Option<Show>,
        mut seen: impl FnMut(u8, &[u8]),
    ) {
        while !bytes.is_empty() && !self.lost {
            if self.body_left > 0 {
                let (body, rest) = self.split_body(bytes);
                bytes = rest;
                if let Some((tag, show)) = self.shown {
                    let part = if show == Show::First { body.get(..1).unwrap_or_default() } else { body };
                    seen(tag, part);
                    self.shown = self.shown.filter(|_| show == Show::Body && self.body_left > 0);
                }
                continue;
            }
            let Some((header, rest)) = self.split_header(bytes) else {
                return;
            };
            bytes = rest;
            let Some((tag, body_len)) = parse_header(header) else {
                self.lost = true;
                return;
            };
            self.body_left = body_len;
            self.shown = show(tag).filter(|_| body_len > 0).map(|show| (tag, show));
            if !matches!(self.shown, Some((_, Show::First))) {
                seen(tag, &[]);
            }
        }
    }

    /// Whether the bytes so far end where a frame ends.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.body_left == 0 && self.header_len == 0 && !self.lost
    }

    /// What `bytes` have of the body, and what follows it.
    fn split_body<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let body_left = usize::try_from(self.body_left).unwrap_or(usize::MAX);
        if let Some(split) = bytes.split_at_checked(body_left) {
            self.body_left = 0;
            split
        } else {
            self.body_left -= u32::try_from(bytes.len()).unwrap_or(self.body_left);
            (bytes, &[])
        }
    }

    /// The whole header and what follows it; `None` once `bytes` are used up.
    fn split_header<'a>(&mut self, mut bytes: &'a [u8]) -> Option<([u8; HEADER_LEN], &'a [u8])> {
        if self.header_len == 0
            && let Some((&header, rest)) = bytes.split_first_chunk()
        {
            return Some((header, rest));
        }
        while let Some((&byte, rest)) = bytes.split_first() {
            bytes = rest;
            if let Some(slot) = self.header.get_mut(usize::from(self.header_len)) {
                *slot = byte;
            }
            self.header_len += 1;
            if usize::from(self.header_len) == HEADER_LEN {
                self.header_len = 0;
                return Some((std::mem::take(&mut self.header), bytes));
            }
        }
        None
    }
}

/// Tag and length of the body; `None` where the length is none.
fn parse_header([tag, len @ ..]: [u8; HEADER_LEN]) -> Option<(u8, u32)> {
    let len = i32::from_be_bytes(len);
    Some((tag, u32::try_from(len).ok()?.checked_sub(4)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a scanner sees of `stream`, cut into `pieces`: of `Z` the first byte, of `E` the body.
    fn seen(pieces: &[&[u8]]) -> (Vec<(u8, Vec<u8>)>, bool) {
        let mut scanner = FrameScanner::default();
        let mut seen = Vec::<(u8, Vec<u8>)>::new();
        let show = |tag| match tag {
            b'Z' => Some(Show::First),
            b'E' => Some(Show::Body),
            _ => None,
        };
        for piece in pieces {
            scanner.scan(piece, show, |tag, part| match seen.last_mut() {
                Some((b'E', body)) if tag == b'E' && !part.is_empty() => body.extend(part),
                _ => seen.push((tag, part.to_vec())),
            });
        }
        (seen, scanner.is_at_boundary())
    }

    /// `text` without its first character is what is seen of the body.
    fn frames(texts: &[&str]) -> Vec<(u8, Vec<u8>)> {
        texts.iter().map(|text| (text.as_bytes()[0], text.as_bytes()[1..].to_vec())).collect()
    }

    #[test]
    fn every_pair_of_cuts_gives_the_same_frames() {
        let stream =
            b"C\0\0\0\x05xS\0\0\0\x04Z\0\0\0\x05IE\0\0\0\x08abcdE\0\0\0\x04D\0\0\0\x0aabcdefZ\0\0\0\x05T";
        let whole = (frames(&["C", "S", "ZI", "Eabcd", "E", "D", "ZT"]), true);
        assert_eq!(seen(&[stream]), whole);
        for first in 0..stream.len() {
            for second in first..stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(seen(&pieces), whole, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn boundaries_are_known_at_every_byte() {
        let stream = b"C\0\0\0\x05xS\0\0\0\x04";
        let boundaries: Vec<_> = (0..=stream.len()).filter(|&end| seen(&[&stream[..end]]).1).collect();
        assert_eq!(boundaries, [0, 6, 11]);
    }

    #[test]
    fn after_an_impossible_length_nothing_is_a_boundary_any_more() {
        for len in [*b"\0\0\0\x03", *b"\0\0\0\0", *b"\x80\0\0\0", *b"\xff\xff\xff\xff"] {
            let header = [&b"Q"[..], &len].concat();
            assert_eq!(seen(&[&header, b"S\0\0\0\x04"]), (vec![], false));
        }
    }

    #[test]
    fn ready_for_query_without_a_body_is_seen_all_the_same() {
        assert_eq!(seen(&[b"Z\0\0\0\x04"]), (frames(&["Z"]), true));
    }

    #[test]
    fn no_prefix_of_a_frame_is_mistaken_for_one() {
        let whole = b"Z\0\0\0\x05I";
        for cut in 0..whole.len() {
            assert_eq!(split_frame(&whole[..cut], 64), Ok(None), "cut at {cut}");
        }
        let ready = Frame { tag: b'Z', body: b"I" };
        assert_eq!(split_frame(whole, 64), Ok(Some((ready, &[][..]))));
    }

    #[test]
    fn length_is_judged_before_the_body_has_come() {
        assert_eq!(
            split_frame(b"D\x7f\xff\xff\xff", 64).unwrap_err(),
            FrameError::TooLong { tag: b'D', len: 0x7fff_ffff, max_len: 64 }
        );
        assert_eq!(split_frame(b"D\0\0\0\x03", 64).unwrap_err(), FrameError::TooShort { tag: b'D', len: 3 });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// What a scanner sees of pieces is what the whole message says, of any messages and any pieces.
        #[test]
        fn any_cuts_of_any_messages_give_what_the_whole_ones_are(
            messages in prop::collection::vec(
                (prop::sample::select(&b"ZEDdTCANS12"[..]), prop::collection::vec(any::<u8>(), 0..40)),
                1..20,
            ),
            cuts in prop::collection::vec(1usize..50, 1..60),
        ) {
            let mut stream = Vec::new();
            for (tag, body) in &messages {
                stream.push(*tag);
                stream.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                stream.extend(body);
            }
            let (mut pieces, mut rest, mut cuts) = (Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            let expected = messages.into_iter().map(|(tag, body)| match tag {
                b'Z' => (tag, body.into_iter().take(1).collect()),
                b'E' => (tag, body),
                _ => (tag, Vec::new()),
            });
            prop_assert_eq!(seen(&pieces), (expected.collect(), true));
        }
    }
}
