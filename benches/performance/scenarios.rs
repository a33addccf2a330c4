//! What is measured.

use super::options::Options;

/// One thing that is done over several ways to the database.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) what: &'static str,
    pub(crate) tls: Tls,
    pub(crate) load: Load,
    pub(crate) ways: &'static [Way],
    /// Whether it is part of the short run.
    pub(crate) quick: bool,
}

/// How a client gets to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    Direct,
    Pglease,
    /// With sessions that were logged in ahead.
    PgleaseWarm,
    /// With sessions on two threads.
    PgleaseThreads,
    Haproxy,
    Pgbouncer,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pglease => "pglease",
            Self::PgleaseWarm => "pglease warm",
            Self::PgleaseThreads => "pglease 2 threads",
            Self::Haproxy => "haproxy",
            Self::Pgbouncer => "pgbouncer",
        }
    }
}

/// Which connections are encrypted. A client that goes directly, or through HAProxy, speaks TLS with the server where
/// any of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tls {
    None,
    Upstream,
    Client,
    Both,
}

impl Tls {
    pub(crate) fn of_client(self) -> bool {
        matches!(self, Self::Client | Self::Both)
    }

    pub(crate) fn of_upstream(self) -> bool {
        matches!(self, Self::Upstream | Self::Both)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// pgbench with these arguments.
    Pgbench {
        clients: u32,
        arguments: &'static [&'static str],
    },
    /// The same with a script of these lines.
    Script {
        clients: u32,
        lines: &'static str,
    },
    CopyOut,
    CopyIn,
    /// Sessions that are opened and closed, so many side by side.
    Connects {
        clients: usize,
    },
    /// So many opened at the same moment.
    Burst {
        sessions: usize,
    },
    /// Rows of a scripted upstream, over TLS to so many clients that throw them away.
    Sealed {
        clients: usize,
    },
    /// System calls of the proxy in a round trip.
    Calls,
    /// Sessions of a scripted upstream, of which some are active.
    Idle {
        sessions: usize,
        active: usize,
    },
    Rotation,
    /// From the start of pglease to its readiness, and what it is then.
    Start,
}

/// Those of these options.
pub(crate) fn chosen(options: &Options) -> impl Iterator<Item = &'static Scenario> {
    let is_named =
        |scenario: &Scenario| options.names.iter().any(|name| scenario.name.contains(name.as_str()));
    SCENARIOS.iter().filter(move |scenario| {
        let is_meant = options.names.is_empty() || is_named(scenario);
        is_meant && (scenario.quick || !options.quick)
    })
}

const ALL: &[Way] = &[Way::Direct, Way::Pglease, Way::Haproxy, Way::Pgbouncer];
const PROXIES: &[Way] = &[Way::Pglease, Way::Haproxy, Way::Pgbouncer];

const fn select(
    name: &'static str,
    what: &'static str,
    clients: u32,
    arguments: &'static [&'static str],
    quick: bool,
) -> Scenario {
    Scenario { name, what, tls: Tls::None, load: Load::Pgbench { clients, arguments }, ways: ALL, quick }
}

const fn on_tls(name: &'static str, what: &'static str, tls: Tls) -> Scenario {
    let load = Load::Pgbench { clients: 8, arguments: PREPARED };
    Scenario { name, what, tls, load, ways: ALL, quick: false }
}

const fn idle_on_tls(name: &'static str, what: &'static str, tls: Tls) -> Scenario {
    let load = Load::Idle { sessions: 1000, active: 100 };
    Scenario { name, what, tls, load, ways: &[Way::Pglease], quick: false }
}

const fn plain(
    name: &'static str,
    what: &'static str,
    load: Load,
    ways: &'static [Way],
    quick: bool,
) -> Scenario {
    Scenario { name, what, tls: Tls::None, load, ways, quick }
}

const SIMPLE: &[&str] = &["-S", "-M", "simple"];
const PREPARED: &[&str] = &["-S", "-M", "prepared"];

pub(crate) const SCENARIOS: &[Scenario] = &[
    select("select-c1-simple", "`pgbench -S -M simple`, 1 client", 1, SIMPLE, false),
    select("select-c1-prepared", "`pgbench -S -M prepared`, 1 client", 1, PREPARED, true),
    select("select-c8-simple", "`pgbench -S -M simple`, 8 clients", 8, SIMPLE, false),
    select("select-c8-prepared", "`pgbench -S -M prepared`, 8 clients", 8, PREPARED, true),
    select("select-c32-simple", "`pgbench -S -M simple`, 32 clients", 32, SIMPLE, false),
    select("select-c32-prepared", "`pgbench -S -M prepared`, 32 clients", 32, PREPARED, true),
    select("select-c128-simple", "`pgbench -S -M simple`, 128 clients", 128, SIMPLE, false),
    select("select-c128-prepared", "`pgbench -S -M prepared`, 128 clients", 128, PREPARED, false),
    plain(
        "threads",
        "`pgbench -S -M prepared`, 32 clients, by one thread and by two",
        Load::Pgbench { clients: 32, arguments: PREPARED },
        &[Way::Direct, Way::Pglease, Way::PgleaseThreads],
        false,
    ),
    Scenario {
        name: "threads-tls",
        what: "rows of a scripted upstream over TLS (ChaCha20) to 4 clients that do not decrypt them, by one thread and by two",
        tls: Tls::Client,
        load: Load::Sealed { clients: 4 },
        ways: &[Way::Pglease, Way::PgleaseThreads],
        quick: false,
    },
    select("tpcb-c8", "`pgbench` (TPC-B), 8 clients", 8, &["-M", "prepared"], false),
    on_tls("tls-upstream", "`pgbench -S -M prepared`, 8 clients, TLS towards the server", Tls::Upstream),
    on_tls("tls-client", "`pgbench -S -M prepared`, 8 clients, TLS towards the client", Tls::Client),
    on_tls("tls-both", "`pgbench -S -M prepared`, 8 clients, TLS on both sides", Tls::Both),
    plain("rows-1mib", "rows of 1 MiB, 2 clients", Load::Script { clients: 2, lines: ROWS }, ALL, false),
    plain(
        "pipeline",
        "pipelines of 10 statements, 8 clients",
        Load::Script { clients: 8, lines: PIPELINE },
        ALL,
        false,
    ),
    plain("copy-out", "`COPY … TO STDOUT`, rows of 1 KiB", Load::CopyOut, ALL, true),
    plain(
        "copy-in",
        "`COPY … FROM STDIN`, rows of 1 KiB that are parsed and not kept",
        Load::CopyIn,
        ALL,
        true,
    ),
    Scenario {
        name: "copy-out-tls",
        what: "`COPY … TO STDOUT`, rows of 1 KiB, TLS on both sides",
        tls: Tls::Both,
        load: Load::CopyOut,
        ways: ALL,
        quick: false,
    },
    plain(
        "connect-plain",
        "sessions opened and closed, 4 side by side, SCRAM",
        Load::Connects { clients: 4 },
        ALL,
        false,
    ),
    Scenario {
        name: "connect-tls",
        what: "sessions opened and closed one after the other, SCRAM and TLS towards the server",
        tls: Tls::Upstream,
        load: Load::Connects { clients: 1 },
        ways: &[Way::Direct, Way::Pglease, Way::PgleaseWarm, Way::Haproxy, Way::Pgbouncer],
        quick: true,
    },
    Scenario {
        name: "connect-burst",
        what: "8 sessions opened at the same moment, SCRAM and TLS towards the server",
        tls: Tls::Upstream,
        load: Load::Burst { sessions: 8 },
        ways: &[Way::Direct, Way::Pglease, Way::PgleaseWarm],
        quick: true,
    },
    plain(
        "calls",
        "`pgbench -S -M prepared`, 1 client, the proxy under `strace -c`",
        Load::Calls,
        PROXIES,
        true,
    ),
    plain(
        "idle",
        "idle sessions of a scripted upstream; CPU and latencies are of those that are active, up to 1,000",
        Load::Idle { sessions: 9000, active: 1000 },
        &[Way::Pglease, Way::Haproxy],
        true,
    ),
    idle_on_tls("idle-tls-client", "idle sessions, TLS with the client", Tls::Client),
    idle_on_tls("idle-tls-upstream", "idle sessions, TLS with a scripted upstream", Tls::Upstream),
    plain(
        "rotation",
        "400 statements a second on 8 sessions, each replaced after 20, before, in and after a rotation",
        Load::Rotation,
        &[Way::Pglease],
        true,
    ),
    plain(
        "start",
        "from the start of pglease to its readiness, OpenBao and PostgreSQL beside it",
        Load::Start,
        &[Way::Pglease],
        true,
    ),
];

const ROWS: &str = "SELECT repeat('x', 1048576);\n";

const PIPELINE: &str = "\\set aid random(1, 100000)\n\\startpipeline\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 1;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 2;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 3;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 4;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 5;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 6;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 7;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 8;\n\
    SELECT abalance FROM pgbench_accounts WHERE aid = :aid + 9;\n\\endpipeline\n";
