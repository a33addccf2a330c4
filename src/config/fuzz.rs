//! What must hold for any text that is meant as settings; see `crate::fuzz`.

use super::error::ConfigErrors;
use super::keywords::{KEYWORDS, Use};
use super::settings::Files;
use super::{conninfo, file, load, settings, upstream};

/// An `upstream`: understood or refused, and shown without what it holds of secrets.
pub(crate) fn fuzz_upstream(text: &str) {
    let meaning = upstream::parse(text);
    let mut shown = upstream::masked(text);
    if let Err(errors) = &meaning {
        assert!(!errors.is_empty());
        for error in errors {
            shown.push_str(&error.to_string());
        }
    }
    let Ok(pairs) = conninfo::parse(text) else {
        assert!(meaning.is_err());
        return;
    };
    let is_secret =
        |name: &str| KEYWORDS.iter().any(|known| known.name == name && known.meaning == Use::Secret);
    for (name, value) in pairs.iter().filter(|(name, _)| is_secret(name)) {
        assert!(meaning.is_err(), "{name} was taken");
        let is_open = pairs
            .iter()
            .any(|(other, text)| !is_secret(other) && (text.contains(value) || other.contains(value)));
        // So may a piece of the text that stands there once more, and is shown as the host that it is there.
        let is_open = is_open || text.matches(value.as_str()).count() > 1;
        // Shorter ones, and words, stand in our own texts as well.
        if value.len() >= 6 && value.contains(|c: char| c.is_ascii_digit()) && !is_open {
            assert!(!shown.contains(value), "{name} is shown: {shown}");
        }
    }
}

/// The text of a configuration file: settings, or errors of one line each.
pub(crate) fn fuzz_file(text: &str) {
    let mut errors = Vec::new();
    let read = file::parse("pglease.toml", text, &mut errors);
    if let Some(file) = read {
        let merged = settings::merge(super::keys::Reads::Proxy, file, [], &mut errors);
        let config = load::config(&merged, Files::Here, &mut errors);
        assert!(config.is_some() || !errors.is_empty(), "refused without a word");
    } else {
        assert!(!errors.is_empty(), "refused without a word");
    }
    let count = errors.len();
    let said = ConfigErrors::new(errors).to_string();
    assert!(said.lines().count() <= count, "{said}");
}
