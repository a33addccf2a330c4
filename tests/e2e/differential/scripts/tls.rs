//! TLS towards the client: how it is asked for, and what else may come instead.

use super::authentication::PASSWORD;
use crate::differential::say::{query, terminate};
use crate::differential::script::{Key, Names, Script};
use crate::raw::packet;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

pub(in crate::differential) fn scripts(names: &Names) -> Vec<Script> {
    let asks = |name: &str| Script::bare(name).answers().send(packet(SSL_REQUEST, b"")).byte();
    let begins = |name: &str| asks(name).tls(None).send(names.startup(&[])).read(1).prove(PASSWORD).ready(1);
    let mut scripts = vec![
        begins("TLS and on").query("SELECT 1"),
        begins("TLS and the end behind a Query").send(query("SELECT 1")),
        begins("TLS and Terminate").send(terminate()).end(),
        begins("TLS and the end within a message").send(query("SELECT 1")[..7].to_vec()),
        begins("TLS and many rows").query("SELECT repeat('x', 1000) FROM generate_series(1, 1000)"),
        begins("TLS and cancel over plain TCP")
            .send(query("SELECT pg_sleep(600)"))
            .awaits("SELECT 1 FROM pg_stat_activity WHERE pid = {0} AND wait_event = 'PgSleep'")
            .cancel(0, Key::Right)
            .ready(1),
        asks("TLS and nothing").tls(None),
        asks("TLS and a wrong password").tls(None).send(names.startup(&[])).read(1).prove("wrong").end(),
        asks("TLS and SSLRequest within").tls(None).send(packet(SSL_REQUEST, b"")),
        asks("TLS and GSSENCRequest within").tls(None).send(packet(GSSENC_REQUEST, b"")),
        asks("TLS and a cancel within").tls(None).send(packet(80_877_102, b"\0\0\0\x01abcd")),
        asks("TLS and garbage within").tls(None).send(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        asks("TLS and protocol 2 within").tls(None).send(packet(0x0002_0000, b"user\0app\0\0")),
        asks("TLS and StartupMessage without user").tls(None).send(packet(0x0003_0000, b"\0")),
        asks("SSLRequest, then the end"),
        asks("SSLRequest, then a plain StartupMessage").send(names.startup(&[])),
        asks("SSLRequest, then SSLRequest").send(packet(SSL_REQUEST, b"")),
        asks("SSLRequest, then half a ClientHello").send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc".to_vec()),
        asks("SSLRequest, then zeros").send(vec![0; 100]),
        Script::bare("plain where TLS could be had")
            .answers()
            .send(names.startup(&[]))
            .read(1)
            .prove(PASSWORD)
            .ready(1),
        Script::bare("SSLRequest with a body").answers().send(packet(SSL_REQUEST, b"more")).byte(),
    ];
    // Older servers know no protocols of the application layer.
    if names.major >= 17 {
        let direct = |name: &str, protocol| Script::bare(name).answers().tls(protocol);
        scripts.extend([
            asks("TLS with the protocol's name").tls(Some("postgresql")).send(names.startup(&[])).read(1),
            direct("direct TLS", Some("postgresql"))
                .send(names.startup(&[]))
                .read(1)
                .prove(PASSWORD)
                .ready(1)
                .query("SELECT 1"),
            direct("direct TLS without a protocol", None),
            direct("direct TLS of another protocol", Some("http/1.1")),
            direct("direct TLS and SSLRequest within", Some("postgresql")).send(packet(SSL_REQUEST, b"")),
        ]);
    }
    scripts
}
