//! The functions of templates: their names, what they take, what they make of it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::evaluate::Value;
use super::types::Type;
use crate::render::buffer::Buffer;
use crate::render::{Secret, go};

/// Of one value, without settings of its own; `secret` and `printf` stand apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Printf,
    UrlQuery,
    ToJson,
    ToJsonPretty,
    ToUnescapedJson,
    Base64Encode,
    ToUpper,
    ToLower,
    TrimSpace,
}

impl Function {
    pub(crate) const ALL: &[Self] = &[
        Self::Printf,
        Self::UrlQuery,
        Self::ToJson,
        Self::ToJsonPretty,
        Self::ToUnescapedJson,
        Self::Base64Encode,
        Self::ToUpper,
        Self::ToLower,
        Self::TrimSpace,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Printf => "printf",
            Self::UrlQuery => "urlquery",
            Self::ToJson => "toJSON",
            Self::ToJsonPretty => "toJSONPretty",
            Self::ToUnescapedJson => "toUnescapedJSON",
            Self::Base64Encode => "base64Encode",
            Self::ToUpper => "toUpper",
            Self::ToLower => "toLower",
            Self::TrimSpace => "trimSpace",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|function| function.name() == name)
    }

    /// The one that `name` may have meant.
    pub(super) fn nearest(name: &str) -> Option<Self> {
        let distance = |function: &Self| {
            strsim::damerau_levenshtein(&name.to_lowercase(), &function.name().to_lowercase())
        };
        Self::ALL.iter().copied().min_by_key(distance).filter(|function| distance(function) <= NEAR)
    }

    /// Whether it takes such a value.
    pub(super) fn takes(self, value: Type) -> bool {
        match self {
            Self::ToJson | Self::ToJsonPretty | Self::ToUnescapedJson => {
                value == Type::Data || value.is_printed()
            }
            Self::UrlQuery | Self::Printf => value.is_printed(),
            Self::Base64Encode | Self::ToUpper | Self::ToLower | Self::TrimSpace => value == Type::String,
        }
    }

    /// What it makes of `value`, behind what is in `out`.
    pub(super) fn apply(self, value: &Value, secret: &Secret<'_>, out: &mut Buffer) {
        match self {
            // Its settings are with the expression, which does it.
            Self::Printf => {}
            Self::UrlQuery => go::query_escape(&value.text(), out),
            Self::ToJson => json(value, secret, go::Html::Escaped, ["", ""], out),
            Self::ToJsonPretty => json(value, secret, go::Html::Escaped, ["\n  ", " "], out),
            Self::ToUnescapedJson => json(value, secret, go::Html::AsIs, ["", ""], out),
            Self::Base64Encode => {
                let encoded = zeroize::Zeroizing::new(BASE64_STANDARD.encode(value.text().as_bytes()));
                out.push_str(&encoded);
            }
            Self::ToUpper => value.text().chars().map(go::to_upper).for_each(|character| out.push(character)),
            Self::ToLower => value.text().chars().map(go::to_lower).for_each(|character| out.push(character)),
            Self::TrimSpace => out.push_str(value.text().trim()),
        }
    }
}

/// `spaces` stand before each key and before each value of an object.
fn json(value: &Value, secret: &Secret<'_>, html: go::Html, spaces: [&str; 2], out: &mut Buffer) {
    let [before_key, before_value] = spaces;
    match value {
        Value::Data => {
            out.push('{');
            for (number, (key, value)) in secret.data().into_iter().enumerate() {
                out.push_str(if number > 0 { "," } else { "" });
                out.push_str(before_key);
                go::json_string(key, html, out);
                out.push(':');
                out.push_str(before_value);
                go::json_string(value, html, out);
            }
            out.push_str(if before_key.is_empty() { "" } else { "\n" });
            out.push('}');
        }
        Value::String(text) => go::json_string(text, html, out),
        Value::Int(_) | Value::Bool(_) | Value::Secret | Value::Nothing => out.push_str(&value.text()),
    }
}

/// As many letters may differ.
const NEAR: usize = 3;
