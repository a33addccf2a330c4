//! Files of the machine that are another for pglease alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BINARY;
use crate::support::process::write_program;
use crate::support::say_skipped;

/// A program in `folder` that is pglease with this file in the place of one of the machine's. `None` where this system
/// does not let one have that.
pub(crate) fn pglease_with(folder: &Path, file: &Path, of_machine: &str) -> Option<PathBuf> {
    let ways = ["unshare --mount", "unshare --map-root-user --mount"];
    let works = |way: &&&str| {
        let mut words = way.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["mount", "--bind"]).arg(file).arg(of_machine);
        command.output().is_ok_and(|output| output.status.success())
    };
    let Some(way) = ways.iter().find(works) else {
        say_skipped(&format!("pglease with another {of_machine}"), "no mount namespace of one's own");
        return None;
    };
    let script = folder.join("pglease-with-file");
    let inner = format!("mount --bind {} {of_machine} && exec {BINARY} \"$@\"", file.display());
    write_program(&script, &format!("#!/bin/sh\nexec {way} sh -c '{inner}' pglease \"$@\"\n"));
    Some(script)
}
