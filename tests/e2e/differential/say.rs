//! What a client says, byte for byte: whoever wants it wrong builds it from [`message`].

/// Any message: tag, length, body.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &len.to_be_bytes(), body].concat()
}

/// A StartupMessage of this version, with pairs and their end.
pub(super) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let pairs = parameters.iter().flat_map(|(name, value)| [string(name), string(value)]);
    crate::raw::packet(version, &[pairs.collect::<Vec<_>>().concat(), vec![0]].concat())
}

pub(super) fn query(sql: impl AsRef<[u8]>) -> Vec<u8> {
    message(b'Q', &string(sql))
}

pub(super) fn parse(statement: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let types: Vec<_> = types.iter().map(|oid| oid.to_be_bytes().to_vec()).collect();
    message(b'P', &[string(statement), string(sql), counted(&types)].concat())
}

/// Text in, text out.
pub(super) fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let values: Vec<_> = values.iter().map(|value| value.map(str::as_bytes)).collect();
    bind_as(portal, statement, &[], &values, &[])
}

/// Formats of the values, values, formats of the results: 0 is text, 1 is binary.
pub(super) fn bind_as(
    portal: &str,
    statement: &str,
    formats: &[i16],
    values: &[Option<&[u8]>],
    results: &[i16],
) -> Vec<u8> {
    let body = [
        string(portal),
        string(statement),
        counted_formats(formats),
        counted(&values.iter().copied().map(value).collect::<Vec<_>>()),
        counted_formats(results),
    ];
    message(b'B', &body.concat())
}

/// `kind`: `S` for a statement, `P` for a portal.
pub(super) fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[vec![kind], string(name)].concat())
}

/// At most `rows`; 0 is all of them.
pub(super) fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[string(portal), rows.to_be_bytes().to_vec()].concat())
}

pub(super) fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[vec![kind], string(name)].concat())
}

pub(super) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(super) fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub(super) fn terminate() -> Vec<u8> {
    message(b'X', b"")
}

pub(super) fn copy_data(data: impl AsRef<[u8]>) -> Vec<u8> {
    message(b'd', data.as_ref())
}

pub(super) fn copy_done() -> Vec<u8> {
    message(b'c', b"")
}

pub(super) fn copy_fail(reason: &str) -> Vec<u8> {
    message(b'f', &string(reason))
}

/// A `FunctionCall`.
pub(super) fn call(function: u32, formats: &[i16], values: &[Option<&[u8]>], result: i16) -> Vec<u8> {
    let body = [
        function.to_be_bytes().to_vec(),
        counted_formats(formats),
        counted(&values.iter().copied().map(value).collect::<Vec<_>>()),
        result.to_be_bytes().to_vec(),
    ];
    message(b'F', &body.concat())
}

/// Unnamed, from Parse to Execute, without Sync.
pub(super) fn unnamed(sql: &str, values: &[Option<&str>]) -> Vec<u8> {
    [parse("", sql, &[]), bind("", "", values), describe(b'P', ""), execute("", 0)].concat()
}

pub(super) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    [text.as_ref(), b"\0"].concat()
}

/// Int32 length and the bytes; −1 for NULL.
fn value(value: Option<&[u8]>) -> Vec<u8> {
    let Some(bytes) = value else {
        return (-1_i32).to_be_bytes().to_vec();
    };
    [&i32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn counted_formats(formats: &[i16]) -> Vec<u8> {
    counted(&formats.iter().map(|format| format.to_be_bytes().to_vec()).collect::<Vec<_>>())
}

/// Int16 number of parts, and the parts.
fn counted(parts: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(parts.len()).unwrap();
    [count.to_be_bytes().to_vec(), parts.concat()].concat()
}
