//! Case C31: machines without IPv6, with IPv6 alone, and with unusual settings of it. Each is a network namespace that
//! `machine/run.py` makes and starts pglease in.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::BINARY;
use crate::support::pki::Authority;
use crate::support::say_skipped;

/// What `run.py` says.
#[derive(Deserialize)]
struct Observed {
    exit: Option<i32>,
    log: Vec<String>,
    reached: BTreeMap<String, bool>,
    livez: BTreeMap<String, Option<u16>>,
}

impl Observed {
    /// Lines of warnings, with the event of each, but for those of the settings.
    fn warnings(&self) -> Vec<(String, Value)> {
        let lines = self.log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let warnings = lines.filter(|line| line["level"] == "WARN");
        let with_event = warnings.map(|line| (line["event"].as_str().unwrap_or_default().to_owned(), line));
        with_event.filter(|(event, _)| event != "config.warning" && event != "login.failed").collect()
    }

    /// The addresses that answer, in order.
    fn reached(&self) -> Vec<&str> {
        self.reached.iter().filter_map(|(address, reached)| reached.then_some(address.as_str())).collect()
    }
}

/// `pglease proxy` on its defaults, with these settings beside, on a machine of this kind.
fn on_machine(kind: &str, settings: &[&str]) -> Option<Observed> {
    let folder = tempfile::tempdir().unwrap();
    let jwt_file = folder.path().join("token");
    fs::write(&jwt_file, "jwt").unwrap();
    let jwt_file = jwt_file.display().to_string();
    let required = [
        ["--vault-address", "https://vault.vault.svc:8200"],
        ["--vault-login-role", "web"],
        ["--vault-login-jwt-file", &jwt_file],
        ["--vault-path", "database/creds/db-app"],
        ["--upstream", "postgresql://postgres/wizard"],
    ];
    observe(kind, "5432,9633,9632", &[&["proxy"], required.as_flattened(), settings].concat())
}

/// `pglease injector` on its defaults likewise.
fn injector_on_machine(kind: &str) -> Option<Observed> {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Authority::create().issue(&["pglease-injector.pglease.svc"]);
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (file("tls.crt", &certificate.certificate), file("tls.key", &certificate.key));
    let required = [
        ["--injector-tls-cert-file", &cert],
        ["--injector-tls-key-file", &key],
        ["--injector-image", "pglease:0.1.0"],
    ];
    observe(kind, "8443,9632", &[&["injector"], required.as_flattened()].concat())
}

/// `None`, said by name, where this system has no such machine to give.
fn observe(kind: &str, ports: &str, arguments: &[&str]) -> Option<Observed> {
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/machine/run.py"))
        .args([kind, ports, BINARY])
        .args(arguments)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(CANNOT) {
        say_skipped(&format!("machine::{kind}"), &stderr);
        return None;
    }
    assert!(output.status.success(), "{kind}: {stderr}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

const CANNOT: i32 = 77;

/// A kind of machine, what is reached there, and what the one warning names.
const MACHINES: &[(&str, &[&str], Option<&str>)] = &[
    ("usual", BOTH, None),
    ("no-ipv6-sockets", IPV4, Some("[::1]:5432,[::]:9632")),
    ("ipv6-disabled", IPV4, Some("[::1]:5432")),
    ("bindv6only", BOTH, None),
    ("localhost-is-ipv6", BOTH, None),
    ("ipv6-only", IPV6, Some("127.0.0.1:5432,127.0.0.1:9633")),
];

const IPV4: &[&str] = &["127.0.0.1:5432", "127.0.0.1:9632", "127.0.0.1:9633"];
const IPV6: &[&str] = &["::1:5432", "::1:9632", "::1:9633"];
const BOTH: &[&str] = &["127.0.0.1:5432", "127.0.0.1:9632", "127.0.0.1:9633", "::1:5432", "::1:9632"];

#[test]
fn defaults_start_on_every_machine_and_one_warning_says_what_is_not_there() {
    for &(kind, reached, absent) in MACHINES {
        let Some(observed) = on_machine(kind, &[]) else { continue };
        assert_eq!(observed.exit, None, "{kind}: {:#?}", observed.log);
        assert_eq!(observed.reached(), reached, "{kind}");
        for (host, of_protocol) in [("127.0.0.1", IPV4), ("::1", IPV6)] {
            let answers = reached.contains(&of_protocol[1]);
            assert_eq!(observed.livez[host], answers.then_some(200), "{kind}: /livez at {host}");
        }
        let warnings = observed.warnings();
        let named: Vec<_> =
            warnings.iter().map(|(event, line)| (event.as_str(), &line["addresses"])).collect();
        let expected = absent.map(Value::from);
        let expected: Vec<_> = expected.iter().map(|addresses| ("listen.absent", addresses)).collect();
        assert_eq!(named, expected, "{kind}: {warnings:#?}");
    }
}

#[test]
fn injector_starts_where_there_is_one_of_ipv4_and_ipv6() {
    for (kind, reached, livez, absent) in [
        ("no-ipv6-sockets", ["127.0.0.1:8443", "127.0.0.1:9632"], "127.0.0.1", Some("[::]:8443,[::]:9632")),
        ("ipv6-disabled", ["127.0.0.1:8443", "127.0.0.1:9632"], "127.0.0.1", None),
        ("ipv6-only", ["::1:8443", "::1:9632"], "::1", None),
    ] {
        let Some(observed) = injector_on_machine(kind) else { continue };
        assert_eq!(observed.exit, None, "{kind}: {:#?}", observed.log);
        assert_eq!(observed.reached(), reached, "{kind}");
        assert_eq!(observed.livez[livez], Some(200), "{kind}");
        let warnings = observed.warnings();
        let named: Vec<_> = warnings.iter().map(|(_, line)| line["addresses"].as_str()).collect();
        assert_eq!(named, Vec::from_iter(absent.map(Some)), "{kind}: {warnings:#?}");
    }
}

#[test]
fn address_that_was_asked_for_and_is_not_there_is_an_error_with_the_reason() {
    let http = |kind| on_machine(kind, &["--http-address", "[::]:9632"]);
    if let Some(observed) = http("no-ipv6-sockets") {
        assert_eq!(observed.exit, Some(1));
        let said = observed.log.last().unwrap();
        for part in ["http.address", "[::]:9632", "Address family not supported"] {
            assert!(said.contains(part), "no {part} in {said}");
        }
    }
    // Such a socket takes IPv4, whatever the machine's settings are.
    for kind in ["ipv6-disabled", "bindv6only"] {
        let Some(observed) = http(kind) else { continue };
        assert_eq!(observed.exit, None, "{kind}: {:#?}", observed.log);
        assert_eq!(observed.livez["127.0.0.1"], Some(200), "{kind}");
    }
    for (kind, key, value) in [
        ("ipv6-disabled", "--listen-addresses", "[::1]:5432"),
        ("ipv6-only", "--listen-addresses", "127.0.0.1:5432"),
        ("ipv6-only", "--admin-address", "127.0.0.1:9633"),
    ] {
        let Some(observed) = on_machine(kind, &[key, value]) else { continue };
        assert_eq!(observed.exit, Some(1), "{kind}: {:#?}", observed.log);
        let said = observed.log.last().unwrap();
        assert!(said.contains(value) && said.contains("Cannot assign requested address"), "{said}");
    }
}
