//! A secret in every form that formats and templates write it in, for who has to take it out of a text again.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
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
    let mut forms = vec![
        Zeroizing::new(secret.to_owned()),
        Zeroizing::new(secret.chars().map(go::to_upper).collect()),
        Zeroizing::new(secret.chars().map(go::to_lower).collect()),
        Zeroizing::new(secret.trim().to_owned()),
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
    ];
    for place in 0..3 {
        forms.push(in_base64(&STANDARD_NO_PAD, secret, place));
        forms.push(in_base64(&URL_SAFE_NO_PAD, secret, place));
    }
    forms
}

/// What of the base64 of a text is of `secret` alone, which stands in it at a place that is `place` modulo 3. The whole of
/// it with that of its neighbours would be another by each of them.
fn in_base64(engine: &impl Engine, secret: &str, place: usize) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(place + secret.len()));
    bytes.resize(place, 0);
    bytes.extend_from_slice(secret.as_bytes());
    let encoded = Zeroizing::new(engine.encode(&*bytes));
    // Six bits a character.
    let own = (place * 8).div_ceil(6)..bytes.len() * 8 / 6;
    Zeroizing::new(encoded.get(own).unwrap_or_default().to_owned())
}
