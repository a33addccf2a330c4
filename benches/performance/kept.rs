//! `target/bench`: a file of figures for each scenario, its plots, the tables; and the page that shows them.

use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use super::measure::results::Results;
use super::measure::table::{FIGURES, table};
use super::measure::{budgets, page, svg};
use super::scenarios::{SCENARIOS, Scenario};
use super::shipped::PROGRAM;

/// Where figures are kept.
pub(crate) struct Kept {
    pub(crate) folder: PathBuf,
}

impl Kept {
    /// Those of short runs lie apart: they are no match for the others.
    pub(crate) fn of(quick: bool) -> Self {
        // target/tmp, and what is beside it.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        let folder = if quick { folder.join("quick") } else { folder };
        fs::create_dir_all(&folder).expect("target/bench");
        Self { folder }
    }

    /// Of a scenario, as it was measured last.
    pub(crate) fn read(&self, name: &str) -> Option<Results> {
        let text = fs::read_to_string(self.folder.join(format!("{name}.json"))).ok()?;
        Results::from_json(&serde_json::from_str(&text).ok()?)
    }

    /// Figures, and a plot of each.
    pub(crate) fn write(&self, results: &Results) {
        let json = serde_json::to_string_pretty(&results.to_json()).expect("JSON");
        self.write_file(&format!("{}.json", results.name), &(json + "\n"));
        for name in results.figures() {
            let spread = |way: &String| Some((way.clone(), results.spread(way, &name)?));
            let rows: Vec<_> = results.ways.iter().filter_map(spread).collect();
            let figure = FIGURES.iter().find(|figure| figure.name == name);
            let title = format!("{}: {}", results.name, results.what.replace('`', ""));
            let plot = svg::plot(&title, figure.map_or(name.as_str(), |figure| figure.title), &rows);
            self.write_file(&format!("{}-{name}.svg", results.name), &plot);
        }
    }

    pub(crate) fn write_file(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).expect("a file in target/bench");
    }
}

/// Tells builds of pglease apart.
pub(crate) fn build() -> String {
    let mut hasher = DefaultHasher::new();
    fs::read(&*PROGRAM).expect("pglease").hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Puts what is there into `docs/performance.md`.
pub(crate) fn fill_page() -> ExitCode {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let kept = Kept::of(false);
    let read = |scenario: &Scenario| Some((scenario.name.to_owned(), kept.read(scenario.name)?));
    let all: budgets::All = SCENARIOS.iter().filter_map(read).collect();
    if all.is_empty() {
        eprintln!("target/bench has no figures: run `make bench` first");
        return ExitCode::FAILURE;
    }
    let tables = SCENARIOS.iter().filter_map(|scenario| all.get(scenario.name)).map(table);
    let mut figures = format!(
        "Measured on {}.\n\n### Budgets\n\n{}\n{}",
        machine(),
        budgets::table(&all),
        tables.collect::<Vec<_>>().join("\n")
    );
    // Of `make bench-micro`.
    if let Ok(micro) = fs::read_to_string(kept.folder.join("micro.md")) {
        let _ = write!(
            figures,
            "\n### Parts of a session by themselves\n\nOn one thread, nothing beside it: `make bench-micro`.\n\n{micro}"
        );
    }
    let text = fs::read_to_string(&file).expect("docs/performance.md");
    let Some(text) = page::filled(&text, &figures) else {
        eprintln!("docs/performance.md has no place for them: {} … {}", page::BEGIN, page::END);
        return ExitCode::FAILURE;
    };
    fs::write(&file, text).expect("docs/performance.md");
    println!("{} scenarios are in docs/performance.md", all.len());
    ExitCode::SUCCESS
}

/// In words.
fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map(|(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: String =
        kernel.trim().chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    let virtual_machine = if cpu.contains(" hypervisor") { ", a virtual machine" } else { "" };
    format!(
        "{cores} cores of {} with {} GiB of memory{virtual_machine}, Linux {kernel}; clients, servers and proxies share them. {}",
        model.unwrap_or("an unknown CPU"),
        kib.unwrap_or_default().div_ceil(1024 * 1024),
        versions().join(", ")
    )
}

/// Of those that pglease is compared with.
fn versions() -> Vec<String> {
    let of = |program: &str, argument: &str| {
        let program = super::peers::find(program).ok()?;
        let output = Command::new(program).arg(argument).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version =
            text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
        Some(version.split(['-', '+']).next()?.to_owned())
    };
    let named = |name: &str, program: &str, argument: &str| {
        of(program, argument).map_or_else(|| format!("no {name}"), |version| format!("{name} {version}"))
    };
    vec![named("HAProxy", "haproxy", "-v"), named("PgBouncer", "pgbouncer", "-V")]
}
