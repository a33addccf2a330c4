//! What pglease says of itself: `schema`, `version`, `completions`, `man`.

use std::io;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use serde_json::json;

use super::{USAGE, command, say};
use crate::{check, config};

pub(super) fn commands() -> [Command; 4] {
    let schema = Command::new("schema")
        .about("Print the JSON Schema of the settings file, or of what check says")
        .long_about(
            "Prints a JSON Schema, draft 2020-12: of the settings file, that editors complete settings by, and CI checks \
             them by (what is required is not in it: a variable or a flag may say it); or of the document of pglease \
             check --json.",
        )
        .arg(
            Arg::new("document")
                .value_name("DOCUMENT")
                .value_parser(["settings", "check"])
                .default_value("settings")
                .help("Which of both"),
        );
    let version = Command::new("version").about("Print the version").arg(
        Arg::new("json")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("With what it was built from and for, in JSON"),
    );
    let completions = Command::new("completions")
        .about("Print the completions for a shell")
        .long_about(
            "Prints a script that has the shell complete commands and flags:\n\n  \
             bash   source <(pglease completions bash)\n  \
             zsh    source <(pglease completions zsh), behind compinit\n  \
             fish   pglease completions fish | source",
        )
        .arg(Arg::new("shell").required(true).value_parser(["bash", "zsh", "fish"]).help("The shell"));
    let man = Command::new("man")
        .about("Print the manual page, or that of a command")
        .long_about("Prints a manual page in man(7): pglease man proxy | man -l -")
        .arg(Arg::new("command").value_name("COMMAND").help("The command; none is pglease itself"));
    [schema, version, completions, man]
}

/// Runs one of [`commands`].
pub(super) fn run(name: &str, matches: &ArgMatches) -> ExitCode {
    let text = match name {
        "schema" => match matches.get_one::<String>("document").map(String::as_str) {
            Some("check") => check::SCHEMA.to_owned(),
            _ => format!("{:#}", config::schema()),
        },
        "completions" => completions(matches),
        "man" => {
            let Some(page) = man(matches) else {
                say(&mut io::stderr(), "pglease: there is no such command");
                return USAGE.into();
            };
            page
        }
        _ if matches.get_flag("json") => version(),
        _ => concat!("pglease ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    say(&mut io::stdout(), text.trim_end());
    ExitCode::SUCCESS
}

/// What tells one build from another, the same for the same source wherever it is built.
fn version() -> String {
    let build = json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("PGLEASE_BUILD_COMMIT").filter(|commit| !commit.is_empty()),
        "target": target(),
        "tls": { "library": "rustls", "provider": "ring", "versions": ["1.2", "1.3"] },
    });
    format!("{build:#}")
}

/// As Rust calls it: `x86_64-unknown-linux-musl`.
fn target() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-{}-{libc}", std::env::consts::ARCH, std::env::consts::OS)
}

fn completions(matches: &ArgMatches) -> String {
    let shell = match matches.get_one::<String>("shell").map(String::as_str) {
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "pglease", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// `None` for a command that is none.
fn man(matches: &ArgMatches) -> Option<String> {
    let mut root = command();
    root.build();
    let page = match matches.get_one::<String>("command") {
        Some(name) => root.find_subcommand(name)?.clone(),
        None => root,
    };
    let mut text = Vec::new();
    // Writing to memory does not fail.
    Man::new(page).render(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
