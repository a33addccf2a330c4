use std::fmt::Write as _;

use super::*;

/// Metrics with one sample of each that has labels.
fn touched() -> Metrics {
    let metrics = Metrics::new();
    let word = "word";
    let result = || ResultLabels { result: word };
    let chain = || ChainLabels { vault_path: "database/creds/db-app".to_owned() };
    let generation = GenerationLabels { vault_path: chain().vault_path, generation: word };
    let failure = ConnectFailureLabels { reason: word, sqlstate: String::new() };

    let _ = metrics.sessions.get_or_create(&generation);
    let _ = metrics.sessions_outlived_lease.get_or_create(&chain());
    let _ = metrics.session_seconds.get_or_create(&SessionEndLabels { reason: word });
    let _ = metrics.session_errors.get_or_create(&SqlStateLabels { sqlstate: word.to_owned() });
    let _ = metrics.cancel_requests.get_or_create(&result());
    let _ = metrics.tls_handshakes.get_or_create(&result());
    let route = RouteLabels { database: "wizard".to_owned(), user: "*".to_owned() };
    let _ = metrics.warm_sessions.get_or_create(&route);
    let _ = metrics.warm.get_or_create(&result());
    let _ = metrics.upstream_connect_failures.get_or_create(&failure);
    let host = HostFailureLabels { host: "db:5432".to_owned(), reason: word };
    let _ = metrics.upstream_host_failures.get_or_create(&host);
    metrics.lease_expiry.get_or_create(&chain()).set(1_700_000_000);
    let _ = metrics.token_expiry.get_or_create(&chain());
    metrics.lease_duration.get_or_create(&chain()).set(3600);
    let _ = metrics.token_duration.get_or_create(&chain());
    let _ = metrics.generations.get_or_create(&StateLabels { vault_path: chain().vault_path, state: word });
    let _ = metrics.lease_issued.get_or_create(&result());
    let _ = metrics.token_renewals.get_or_create(&result());
    metrics.lease_renewals.get_or_create(&result()).inc();
    let _ = metrics.lease_revocations.get_or_create(&result());
    let _ = metrics.rotations.get_or_create(&RotationLabels { trigger: word, result: word });
    let _ = metrics.vault_requests.get_or_create(&VaultLabels { op: word, code: word.to_owned() });
    let _ = metrics.vault_request_seconds.get_or_create(&OperationLabels { op: word });
    let _ = metrics.config_reloads.get_or_create(&result());
    let certificate = CertificateLabels { setting: word, file: "/etc/tls/tls.crt".to_owned() };
    metrics.certificates.set([(certificate, 1_800_000_000)].into());
    let path = "/vault/secrets/db".to_owned();
    let of_file = FileResultLabels { path: path.clone(), result: word };
    let _ = metrics.files.writes.get_or_create(&of_file);
    let _ = metrics.files.notices.get_or_create(&of_file);
    let _ = metrics.files.stale.get_or_create(&FileLabels { path: path.clone() });
    let _ = metrics.files.untold.get_or_create(&FileLabels { path });
    metrics
}

/// Names in the braces of a sample, but for a histogram's own.
fn labels(sample: &str) -> Vec<&str> {
    let inside =
        sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inside, _)| inside);
    let names = inside.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name);
    names.filter(|name| *name != "le").collect()
}

#[test]
fn scrape_carries_names_units_and_labels() {
    let text = touched().encode().unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in [
        "process_start_time_seconds ",
        "pglease_lease_duration_seconds{vault_path=\"database/creds/db-app\"} 3600\n",
        "pglease_build_info{version=\"",
        "pglease_lease_renewals_total{result=\"word\"} 1\n",
        "pglease_lease_expiry_timestamp_seconds{vault_path=\"database/creds/db-app\"} 1700000000\n",
        "pglease_clients_waiting 0\n",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
}

/// The table that docs have of what is scraped.
pub(super) fn docs_table(text: &str) -> String {
    let mut table = "| metric | type | labels | what it counts |\n| --- | --- | --- | --- |\n".to_owned();
    for block in text.split("# HELP ").skip(1) {
        let (name, rest) = block.split_once(' ').unwrap();
        let (help, rest) = rest.split_once(".\n# TYPE ").unwrap();
        let (kind, rest) = rest.split_once('\n').unwrap();
        let kind = kind.rsplit(' ').next().unwrap();
        let sample = rest.lines().find(|line| line.starts_with(name)).unwrap();
        let labels: Vec<_> = labels(sample).into_iter().map(|label| format!("`{label}`")).collect();
        let _ =
            writeln!(table, "| `{name}{}` | {kind} | {} | {help} |", scrape::suffix(kind), labels.join(", "));
    }
    // Where the next line is another row, docs have one too many.
    table + "\n"
}

#[test]
fn docs_list_every_metric() {
    let table = docs_table(&touched().encode().unwrap());
    let docs = include_str!("../../docs/metrics.md");
    assert!(docs.contains(&table), "docs/metrics.md should have:\n\n{table}");
}

/// What `promtool check metrics` would find in the text format; its own verdict is asked for by `make test-monitoring`.
pub(super) fn faults(openmetrics: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let text = scrape::classic(openmetrics);
    let of_kind = |line: &str, kind: &str| line.strip_prefix(kind).map(str::to_owned);
    let helps: Vec<_> = text.lines().filter_map(|line| of_kind(line, "# HELP ")).collect();
    let types: Vec<_> = text.lines().filter_map(|line| of_kind(line, "# TYPE ")).collect();
    for head in &types {
        let (name, kind) = head.split_once(' ').unwrap();
        let mut expect = |what: &str, is_so: bool| {
            if !is_so {
                faults.push(format!("{name}: {what}"));
            }
        };
        let helped = helps.iter().filter_map(|help| help.split_once(' ')).filter(|(of, _)| *of == name);
        expect("one help, and not empty", helped.filter(|(_, help)| help.len() > 1).count() == 1);
        expect("one type", types.iter().filter(|other| other.split(' ').next() == Some(name)).count() == 1);
        expect("_total for counters, and for nothing else", name.ends_with("_total") == (kind == "counter"));
        let words: Vec<_> = name.split('_').collect();
        expect(
            "no type in a name",
            !["gauge", "counter", "histogram", "summary"].iter().any(|of| words.contains(of)),
        );
        let reserved = ["_bucket", "_count", "_sum"];
        expect("a suffix of histograms", !reserved.iter().any(|suffix| name.ends_with(suffix)));
        let is_word =
            |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        expect("lower case, and no colon", is_word(name));
        expect("base units, in full", !OTHER_UNITS.iter().any(|unit| words.contains(unit)));
        let samples = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        for label in samples.flat_map(labels) {
            expect("labels in lower case", is_word(label));
            expect(
                "no label of a name that Prometheus adds",
                !["job", "instance", "quantile"].contains(&label),
            );
        }
    }
    faults
}

const OTHER_UNITS: &[&str] = &[
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "minutes",
    "hours",
    "days",
    "kilobytes",
    "megabytes",
    "gigabytes",
    "bits",
    "percent",
    "s",
    "ms",
    "us",
    "ns",
    "sec",
    "b",
    "kb",
    "mb",
    "gb",
    "m",
    "h",
    "d",
];

#[test]
fn metrics_are_as_promtool_wants_them() {
    assert_eq!(faults(&touched().encode().unwrap()), Vec::<String>::new());
}

#[test]
fn what_promtool_does_not_want_is_found() {
    for (text, fault) in [
        ("# HELP a_ms Time.\n# TYPE a_ms gauge\na_ms 1\n", "a_ms: base units, in full"),
        (
            "# HELP a_total N.\n# TYPE a_total gauge\na_total 1\n",
            "a_total: _total for counters, and for nothing else",
        ),
        ("# TYPE a gauge\na 1\n", "a: one help, and not empty"),
        ("# HELP a N.\n# TYPE a gauge\na{userName=\"\"} 1\n", "a: labels in lower case"),
        ("# HELP a:b N.\n# TYPE a:b gauge\na:b 1\n", "a:b: lower case, and no colon"),
        ("# HELP a_count N.\n# TYPE a_count gauge\na_count 1\n", "a_count: a suffix of histograms"),
        ("# HELP a_gauge N.\n# TYPE a_gauge gauge\na_gauge 1\n", "a_gauge: no type in a name"),
    ] {
        assert_eq!(faults(text), [fault], "{text}");
    }
}
