//! Credential files that are not as they should be.

use super::{Fault, Finding, Severity};
use crate::admin::status::Status;
use crate::file::{FileState, FileStatus};

pub(super) fn findings(status: &Status) -> impl Iterator<Item = Finding> {
    status.files.iter().flat_map(|file| [stale(file), untold(file)]).flatten()
}

fn stale(file: &FileStatus) -> Option<Finding> {
    let error = file.last_error.as_ref().filter(|_| file.state == FileState::Stale)?;
    let has = match &file.generation {
        Some(generation) => format!("has still {generation}, which its readers can use until its lease ends"),
        None => "is not there, and its readers cannot begin".to_owned(),
    };
    Some(Finding {
        fault: Fault::Settings,
        severity: Severity::Error,
        says: format!("{} {has}: the next credential could not be written: {}.", file.path, error.says),
        cure: "Make room on its volume, or let pglease write there; it tries again every half a minute at least."
            .to_owned(),
    })
}

fn untold(file: &FileStatus) -> Option<Finding> {
    let notice = file.on_change.as_ref().filter(|notice| !notice.told)?;
    let error = notice.last_error.as_ref()?;
    Some(Finding {
        fault: Fault::Application,
        severity: Severity::Warning,
        says: format!(
            "The reader of {} could not be told that it has changed: {}. It finds out when it looks, or is refused.",
            file.path, error.says
        ),
        cure: "See that the program is there and can be told as on_change of the [[file]] says; it is tried again \
               every minute at least."
            .to_owned(),
    })
}
