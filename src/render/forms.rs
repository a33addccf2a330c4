//! A secret in every form that formats and templates write it in, for who has to take it out of a text again.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::buffer::Buffer;
use super::go::Html;
use super::{env, go, pgpass, properties};

/// Without the quotes around them. Some may be the same.
pub(crate) fn forms(secret: &str) -> Vec<Zeroizing<String>> {
    let written = |write: &dyn Fn(&mut Buffer)| {
        let mut out = Buffer::default();
        write(&mut out);
        out.into_text()
    };
    let within = |quoted: &Zeroizing<String>| {
        let bare = quoted.strip_prefix('=').unwrap_or(quoted).trim_end_matches('\n');
        let inner = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        Zeroizing::new(inner.unwrap_or(bare).to_owned())
    };
    let query = written(&|out| go::query_escape(secret, out));
    let in_uri = written(&|out| secret.bytes().for_each(|byte| go::percent(byte, out)));
    let backslashed = |character: char| {
        let before = if matches!(character, '\\' | '\'') { "\\" } else { "" };
        format!("{before}{character}")
    };
    vec![
        Zeroizing::new(secret.to_owned()),
        within(&written(&|out| go::json_string(secret, Html::Escaped, out))),
        within(&written(&|out| go::json_string(secret, Html::AsIs, out))),
        within(&written(&|out| go::quote(secret, out))),
        within(&written(&|out| env::variable("", secret, out))),
        within(&written(&|out| properties::property("", secret, out))),
        written(&|out| pgpass::field(secret, out)),
        query,
        in_uri,
        // As a string of a conninfo, and of a shell.
        Zeroizing::new(secret.chars().map(backslashed).collect()),
        Zeroizing::new(secret.replace('\'', "'\\''")),
        Zeroizing::new(STANDARD.encode(secret)),
        Zeroizing::new(URL_SAFE_NO_PAD.encode(secret)),
    ]
}
