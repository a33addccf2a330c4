//! Questions of our own to a server: a simple Query, and the rows of its answer.

use std::io;

use bytes::BytesMut;
use postgres_protocol::message::frontend;

/// Appends a Query. Fails where `sql` contains a zero byte.
pub(crate) fn encode(sql: &str, buf: &mut BytesMut) -> io::Result<()> {
    frontend::query(sql, buf)
}

/// The columns of the body of a `DataRow`, `None` for NULL; `None` for all where it is malformed.
///
/// PostgreSQL manual, "Message Formats": Int16 number of columns, for each Int32 length (-1 is NULL) and as many
/// bytes. No more is reserved than there is.
pub(crate) fn data_row(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (&count, mut rest) = body.split_first_chunk()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(count) {
        let (&len, after) = rest.split_first_chunk()?;
        let len = i32::from_be_bytes(len);
        let value = if len == -1 {
            rest = after;
            None
        } else {
            let (value, after) = after.split_at_checked(usize::try_from(len).ok()?)?;
            rest = after;
            Some(value)
        };
        columns.push(value);
    }
    rest.is_empty().then_some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_is_a_string_with_a_zero_at_its_end() {
        let mut buf = BytesMut::new();
        encode("SELECT 1", &mut buf).unwrap();
        assert_eq!(buf, b"Q\0\0\0\x0dSELECT 1\0"[..]);
        assert!(encode("SELECT\0", &mut buf).is_err());
    }

    #[test]
    fn row_is_read_whole_or_not_at_all() {
        let row = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(data_row(row), Some(vec![Some(&b"ab"[..]), None, Some(b"")]));
        for cut in 0..row.len() {
            assert_eq!(data_row(&row[..cut]), None, "cut at {cut}");
        }
        assert_eq!(data_row(b"\0\0"), Some(vec![]));
        for malformed in
            [&b"\0\0x"[..], b"\0\x01\xff\xff\xff\xfe", b"\xff\xff\0\0\0\0", b"\0\x01\x7f\xff\xff\xff"]
        {
            assert_eq!(data_row(malformed), None, "{malformed:?}");
        }
    }
}
