//! Credential files on the page.

use std::fmt::{self, Write as _};

use super::text::{Ago, Text};
use super::write_table_head;
use crate::admin::status::Status;
use crate::file::{FileState, FileStatus};

/// A table of them, where there are any.
pub(super) fn write(out: &mut String, status: &Status) -> fmt::Result {
    if status.files.is_empty() {
        return Ok(());
    }
    out.push_str("<section><h2>Files</h2>\n");
    write_table_head(out, "wide", &["File", "Format", "Credential", "State", "Kept alive", "Reader"])?;
    status.files.iter().try_for_each(|file| write_file(out, file, status.now))?;
    out.push_str("</tbody></table></div></section>\n");
    Ok(())
}

fn write_file(out: &mut String, file: &FileStatus, now: u64) -> fmt::Result {
    let class = match file.state {
        FileState::Current => "good",
        FileState::Waiting | FileState::Removed => "warn",
        FileState::Stale => "bad",
    };
    write!(
        out,
        "<tr><td data-of=\"File\">{}</td><td data-of=\"Format\">{}</td><td data-of=\"Credential\">{} {}</td>\
         <td data-of=\"State\"><span class=\"{class}\">{}</span>",
        Text(&file.path),
        file.format,
        Text(&file.vault_path),
        file.generation.as_deref().unwrap_or("–"),
        file.state.as_str(),
    )?;
    if let Some(at) = file.written_at {
        write!(out, ", written {}", Ago(now, at))?;
    }
    if let Some(error) = file.last_error.as_ref().filter(|_| file.state == FileState::Stale) {
        write!(out, ": {}", Text(&error.says))?;
    }
    let kept: Vec<_> = file.kept.iter().map(|kept| kept.generation.as_str()).collect();
    let kept = if kept.is_empty() { "–".to_owned() } else { kept.join(", ") };
    write!(out, "</td><td data-of=\"Kept alive\">{}</td><td data-of=\"Reader\">", Text(&kept))?;
    match &file.on_change {
        None => out.push('–'),
        Some(notice) if notice.told => write!(out, "{}: told", notice.kind)?,
        Some(notice) => {
            let says = notice.last_error.as_ref().map(|error| error.says.as_str()).unwrap_or_default();
            write!(out, "{}: <span class=\"warn\">not told</span> {}", notice.kind, Text(says))?;
        }
    }
    out.push_str("</td></tr>\n");
    Ok(())
}
