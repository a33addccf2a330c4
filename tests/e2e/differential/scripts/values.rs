//! Parameters, results and their formats; bodies that are not what their tag says.

use crate::differential::say::{bind_as, describe, execute, message, parse, query, sync};
use crate::differential::script::{Names, Script};

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let mut scripts = values(names);
    scripts.extend(malformed(names));
    scripts
}

fn values(names: &Names) -> Vec<Script> {
    let once = |name: &str, parts: &[Vec<u8>]| {
        Script::session(name, names).ask([parts.concat(), sync()].concat()).query("SELECT 1")
    };
    let int = |value: i32| value.to_be_bytes();
    let binary = |values: &[Option<&[u8]>], formats: &[i16], results: &[i16]| {
        [bind_as("", "", formats, values, results), describe(b'P', ""), execute("", 0)].concat()
    };
    let adding = || parse("", "SELECT $1::int + $2::int, 'text'", &[]);
    vec![
        once("binary values", &[adding(), binary(&[Some(&int(1)), Some(&int(2))], &[1], &[1])]),
        once("values of both formats", &[adding(), binary(&[Some(b"1"), Some(&int(2))], &[0, 1], &[1, 0])]),
        once("results of both formats", &[adding(), binary(&[Some(b"1"), Some(b"2")], &[], &[0, 1])]),
        once("NULL in each format", &[adding(), binary(&[None, None], &[0, 1], &[1])]),
        once("too few values", &[adding(), binary(&[Some(b"1")], &[], &[])]),
        once("too many values", &[adding(), binary(&[Some(b"1"), Some(b"2"), Some(b"3")], &[], &[])]),
        once("too few formats", &[adding(), binary(&[Some(b"1"), Some(b"2")], &[0, 0, 0], &[])]),
        once("too many result formats", &[adding(), binary(&[Some(b"1"), Some(b"2")], &[], &[0, 0, 0])]),
        once("unknown format", &[adding(), binary(&[Some(b"1"), Some(b"2")], &[7], &[])]),
        once("unknown result format", &[adding(), binary(&[Some(b"1"), Some(b"2")], &[], &[7])]),
        once("short binary value", &[adding(), binary(&[Some(b"\0"), Some(&int(2))], &[1], &[])]),
        once("long binary value", &[adding(), binary(&[Some(&[0; 9]), Some(&int(2))], &[1], &[])]),
        once("empty binary value", &[adding(), binary(&[Some(b""), Some(&int(2))], &[1], &[])]),
        once("text that is no number", &[adding(), binary(&[Some(b"x"), Some(b"2")], &[], &[])]),
        once("text with a zero byte", &[adding(), binary(&[Some(b"1\x002"), Some(b"2")], &[], &[])]),
        once("number beyond its type", &[adding(), binary(&[Some(b"99999999999"), Some(b"2")], &[], &[])]),
        once(
            "text that is no UTF-8",
            &[parse("", "SELECT $1::text", &[]), binary(&[Some(b"\xff")], &[], &[])],
        ),
        once(
            "binary text that is no UTF-8",
            &[parse("", "SELECT $1::text", &[]), binary(&[Some(b"\xff")], &[1], &[])],
        ),
        once(
            "types given",
            &[
                parse("", "SELECT $1, $2", &[23, 25]),
                describe(b'S', ""),
                binary(&[Some(b"1"), Some(b"a")], &[], &[1]),
            ],
        ),
        once("types left open", &[parse("", "SELECT $1, $2::int", &[0, 0]), describe(b'S', "")]),
        once("more types than parameters", &[parse("", "SELECT $1", &[23, 25, 16]), describe(b'S', "")]),
        once("fewer types than parameters", &[parse("", "SELECT $1, $2::text", &[23]), describe(b'S', "")]),
        once("type that there is not", &[parse("", "SELECT $1", &[999_999])]),
        once(
            "type of nothing",
            &[parse("", "SELECT $1", &[705]), describe(b'S', ""), binary(&[Some(b"x")], &[], &[])],
        ),
        once("type that cannot be told", &[parse("", "SELECT $1 + $2", &[])]),
        once("parameter 0", &[parse("", "SELECT $0", &[])]),
        once("parameter 3 without 2", &[parse("", "SELECT $1::int, $3::int", &[]), describe(b'S', "")]),
        once("parameter 70,000", &[parse("", "SELECT $70000::int", &[])]),
        once(
            "many types",
            &[
                parse(
                    "",
                    "SELECT 1::int2, 2::int8, 1.5::float4, 1.5::float8, 1.50::numeric, true, 'a'::bytea, '2026-01-31'::date, \
             '12:30'::time, '1 day'::interval, '{1,NULL}'::int[], '{\"a\": 1}'::jsonb, '[1,5)'::int4range, 'a'::\"char\", \
             '127.0.0.1'::inet, B'101', '(1,2)'::point, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, ROW(1, 'a')",
                    &[],
                ),
                binary(&[], &[], &[1]),
            ],
        ),
        once(
            "65,535 values",
            &[
                parse("", &format!("SELECT {}", vec!["$1::int"; 1_600].join(" + ")), &[]),
                binary(&[Some(b"1")], &[], &[]),
                parse("", &many(65_535), &[]),
                binary(&vec![Some(&b"1"[..]); 65_535], &[], &[]),
            ],
        )
        .alone(),
        once(
            "1,600 columns, described",
            &[
                parse("", &format!("SELECT {}", vec!["1"; 1_600].join(", ")), &[]),
                describe(b'S', ""),
                binary(&[], &[], &[1]),
            ],
        )
        .alone(),
        once(
            "value of 1 MB",
            &[parse("", "SELECT length($1)", &[]), binary(&[Some(&vec![b'x'; 1_000_000])], &[], &[])],
        )
        .alone(),
    ]
}

/// A statement of so many parameters and a short answer.
fn many(parameters: u32) -> String {
    let list: Vec<_> = (1..=parameters).map(|number| format!("${number}")).collect();
    format!("SELECT count(*) FROM t WHERE id IN ({})", list.join(","))
}

/// Bodies that are not what their tag says.
fn malformed(names: &Names) -> Vec<Script> {
    let cases: [(&str, Vec<u8>); 24] = [
        ("empty Parse", message(b'P', b"")),
        ("Parse of one string", message(b'P', b"s\0")),
        ("Parse without a count", message(b'P', b"\0SELECT 1\0")),
        ("Parse with too few types", message(b'P', b"\0SELECT 1\0\0\x05\0\0\0\x17")),
        ("Parse with too many types", message(b'P', b"\0SELECT 1\0\0\0\0\0\0\x17")),
        ("Parse of 32,768 types", message(b'P', b"\0SELECT 1\0\x80\0")),
        ("Parse without an end", message(b'P', b"\0SELECT 1")),
        ("empty Bind", message(b'B', b"")),
        ("Bind of one string", message(b'B', b"\0")),
        ("Bind without counts", message(b'B', b"\0\0")),
        ("Bind with half a count", message(b'B', b"\0\0\0")),
        ("Bind with a value of -2 bytes", message(b'B', b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0")),
        ("Bind with a value beyond its end", message(b'B', b"\0\0\0\0\0\x01\0\0\0\xffab\0\0")),
        ("Bind with bytes behind its end", message(b'B', b"\0\0\0\0\0\0\0\0more")),
        ("empty Describe", message(b'D', b"")),
        ("Describe without a name", message(b'D', b"S")),
        ("Describe of an unknown kind", message(b'D', b"?\0")),
        ("empty Execute", message(b'E', b"")),
        ("Execute without a number", message(b'E', b"\0")),
        ("Execute with half a number", message(b'E', b"\0\0\0")),
        ("empty Close", message(b'C', b"")),
        ("Close of an unknown kind", message(b'C', b"?\0")),
        ("Sync with a body", message(b'S', b"more")),
        ("Flush with a body", message(b'H', b"more")),
    ];
    cases
        .into_iter()
        .map(|(name, sent)| {
            let before = parse("", "SELECT 1", &[]);
            Script::session(name, names).send([before, sent, sync(), query("SELECT 1")].concat()).ready(2)
        })
        .collect()
}
