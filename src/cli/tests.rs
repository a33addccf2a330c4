//! What the commands say of themselves.

use super::*;

/// The help of a command, as a terminal of 100 columns would have it.
fn help(path: &[&str]) -> String {
    let mut command = command();
    command.build();
    let found = path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
    found.render_long_help().to_string()
}

#[test]
fn top_help_names_every_command_once_in_its_group_and_the_exit_codes() {
    let help = help(&[]);
    let listed: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
    let mut root = command();
    root.build();
    let mut there: Vec<&str> = root.get_subcommands().map(Command::get_name).collect();
    for name in &there {
        let lines = help.lines().filter(|line| line.split_whitespace().next() == Some(name)).count();
        assert_eq!(lines, 1, "{name} in\n{help}");
    }
    there.sort_unstable();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, there);
    let head: Vec<&str> = help.lines().take(7).collect();
    assert_eq!(
        head,
        [
            "Lets applications reach PostgreSQL without a password, on credentials leased from Vault or OpenBao",
            "",
            "Usage: pglease <COMMAND>",
            "",
            "Serve:",
            "  proxy        Serve applications until SIGTERM",
            "  injector     Give annotated pods their sidecar: the mutating webhook for Kubernetes' API server",
        ]
    );
    for part in ["Exit codes: 0 done; 1", "2 usage or settings", "3 drained with losses"] {
        assert!(help.contains(part), "{part} in\n{help}");
    }
}

#[test]
fn every_command_has_a_line_and_every_argument_says_what_it_does() {
    let mut root = command();
    root.build();
    for command in root.get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(
            !about.is_empty() && !about.ends_with('.') && about.len() < 110,
            "{}: {about}",
            command.get_name()
        );
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
    }
}

#[test]
fn usage_of_the_commands_that_ask_stays() {
    for (path, usage) in [
        (&["wait"][..], "wait [OPTIONS]"),
        (&["status"], "status [OPTIONS]"),
        (&["rotate"], "rotate [OPTIONS]"),
        (&["drain"], "drain [OPTIONS]"),
        (&["log-level"], "log-level [OPTIONS] <level>"),
        (&["completions"], "completions <shell>"),
        (&["man"], "man [COMMAND]"),
        (&["proxy"], "proxy [OPTIONS]"),
        (&["schema"], "schema [DOCUMENT]"),
        (&["version"], "version [OPTIONS]"),
    ] {
        let help = help(path);
        assert!(help.contains(&format!("Usage: pglease {usage}\n\n")), "{help}");
    }
}
