//! A connection string as it may be shown.

use crate::config::conninfo;
use crate::config::error::MASK;
use crate::config::keywords::{KEYWORDS, Use};

/// `text` without what may be a secret.
pub(crate) fn masked(text: &str) -> String {
    if conninfo::is_uri(text) {
        return masked_uri(text);
    }
    let Ok(pairs) = conninfo::parse(text) else { return MASK.to_owned() };
    // Behind a secret there may be pieces of it.
    let open = pairs.iter().take_while(|(keyword, _)| is_open(keyword)).count();
    let Some((secret, _)) = pairs.get(open) else { return text.to_owned() };
    let shown = pairs.iter().take(open).map(|(keyword, value)| format!("{keyword}={value}"));
    let shown: Vec<String> = shown.chain([format!("{secret}={MASK}")]).collect();
    shown.join(" ")
}

fn masked_uri(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return MASK.to_owned() };
    let (userinfo, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => (format!("{MASK}@"), rest),
        None => (String::new(), rest),
    };
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let pairs = conninfo::parse(&format!("{scheme}://{address}"));
    // A "port" of letters is the password of somebody who forgot the host.
    let is_address = pairs.is_ok_and(|pairs| {
        pairs
            .iter()
            .all(|(keyword, port)| keyword != "port" || port.chars().all(|c| c.is_ascii_digit() || c == ','))
    });
    let address = if is_address { address } else { MASK };
    let parameters: Vec<String> = query
        .split('&')
        .filter(|parameter| !parameter.is_empty())
        .map(|parameter| parameter.split_once('=').unwrap_or((MASK, "")))
        .map(|(keyword, value)| masked_pair(keyword, value))
        .collect();
    let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
    format!("{scheme}://{userinfo}{address}{query}")
}

fn masked_pair(keyword: &str, value: &str) -> String {
    format!("{keyword}={}", if is_open(keyword) { value } else { MASK })
}

/// Whether values of `keyword` may be shown: it is known, and no secret.
fn is_open(keyword: &str) -> bool {
    KEYWORDS.iter().any(|known| known.name == keyword && known.meaning != Use::Secret)
}
