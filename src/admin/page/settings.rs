//! Settings and the level of the log on the page.

use std::fmt::{self, Write as _};

use super::text::{self, Ago, Text};
use crate::admin::status::{CertificateStatus, Status};
use crate::admin::text::end_in_words;

/// Where the settings in effect come from, what is wrong with the file as it is now, which certificates are shown, and
/// what the log has.
pub(super) fn write(out: &mut String, status: &Status) -> fmt::Result {
    let (config, log) = (&status.config, &status.log);
    out.push_str("<section><h2>Settings</h2><div class=\"card\"><dl>");
    let loaded = Ago(status.now, config.loaded_at());
    match config.file() {
        Some(file) => write!(out, "<dt>File</dt><dd><code>{}</code>, read {loaded}</dd>", Text(file))?,
        None => write!(out, "<dt>File</dt><dd>none: flags and variables, read {loaded}</dd>")?,
    }
    if let Some(sha256) = config.sha256() {
        let begin = sha256.get(..SHOWN_DIGITS).unwrap_or(sha256);
        write!(out, "<dt>SHA-256</dt><dd><code>{}…</code></dd>", Text(begin))?;
    }
    if let Some((error, at)) = config.last_error() {
        let ago = Ago(status.now, at);
        write!(out, "<dt>Rejected</dt><dd><span class=\"bad\">{ago}</span>: {}</dd>", Text(error))?;
    }
    if !config.needs_restart().is_empty() {
        write!(out, "<dt>After a restart</dt><dd>{}</dd>", Text(&config.needs_restart().join(", ")))?;
    }
    for CertificateStatus { setting, file, ends_at } in &status.certificates {
        let end = text::utc(*ends_at);
        let class = if *ends_at <= status.now { " class=\"bad\"" } else { "" };
        let words = end_in_words(status.now, *ends_at);
        write!(
            out,
            "<dt>Certificate</dt><dd><code>{}</code> ({setting}): <time datetime=\"{end}\" title=\"{end}\"{class}>\
             {words}</time></dd>",
            Text(file)
        )?;
    }
    write!(out, "<dt>Log level</dt><dd>{}", log.level)?;
    if log.level != log.configured {
        write!(out, ", set by hand: the settings say {}", log.configured)?;
    }
    out.push_str("</dd></dl></div></section>\n");
    Ok(())
}

/// Of the hash: enough to compare, and not too long for a phone.
const SHOWN_DIGITS: usize = 12;
