//! `json`: the Agent's default template of that name, byte for byte, and with an upstream a `uri` more.

use super::buffer::Buffer;
use super::go::{self, Html};
use super::{Secret, Target, uri};

pub(super) fn write(secret: &Secret<'_>, target: Option<&Target<'_>>, out: &mut Buffer) {
    let mut before = '{';
    let mut pair = |key, value: &str| {
        out.push(before);
        before = ',';
        go::json_string(key, Html::Escaped, out);
        out.push(':');
        go::json_string(value, Html::Escaped, out);
    };
    pair("password", secret.password);
    if let Some(target) = target {
        let mut text = Buffer::default();
        uri::write(secret, target, &mut text);
        pair("uri", &text.into_text());
    }
    pair("username", secret.username);
    out.push_str("}\n");
}
