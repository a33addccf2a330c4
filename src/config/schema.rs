//! The JSON Schema of the file, for editors and CI: the table of keys, told in other words.
//!
//! It refuses nothing that the program takes. What only several keys together can get wrong, and what is required,
//! is left to the program, since a variable or a flag may say the rest.

use serde_json::{Map, Value, json};

use super::keys::{self, FILE_TABLE, KEYS, Key, Kind, Preset, ROUTE_TABLE};

/// The schema, in draft 2020-12.
pub(crate) fn schema() -> Value {
    let mut root = table("");
    if let Some(properties) = root.as_object_mut() {
        properties.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        properties.insert("title".to_owned(), json!("Settings of pglease"));
    }
    root
}

/// The keys of the table `name`, and the tables in it.
fn table(name: &str) -> Value {
    let keys = KEYS.iter().filter(|key| key.table_and_leaf().0 == name);
    let mut properties: Map<_, _> =
        keys.map(|key| (key.table_and_leaf().1.to_owned(), property(key))).collect();
    for inner in keys::tables_of(name) {
        let leaf = inner.rsplit_once('.').map_or(inner, |(_, leaf)| leaf);
        let of_inner = match table(inner) {
            tables if [ROUTE_TABLE, FILE_TABLE].contains(&inner) => {
                json!({ "type": "array", "items": tables })
            }
            other => other,
        };
        properties.insert(leaf.to_owned(), of_inner);
    }
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn property(key: &Key) -> Value {
    let mut property = of_kind(&key.kind, matches!(key.default, Preset::Absent(_)));
    let (description, default) = match key.default {
        Preset::Required => (key.about.to_owned(), None),
        Preset::Absent(words) => (format!("{}; default: {words}", key.about), None),
        Preset::Value(text) => (key.about.to_owned(), Some(value(&key.kind, text))),
    };
    if let Some(property) = property.as_object_mut() {
        property.insert("description".to_owned(), description.into());
        property.extend(default.map(|default| ("default".to_owned(), default)));
    }
    property
}

/// What may be written; where `is_optional`, nothing between the quotes is as good as no key.
fn of_kind(kind: &Kind, is_optional: bool) -> Value {
    let text = |pattern: &str| {
        let pattern = if is_optional { format!("^$|{pattern}") } else { pattern.to_owned() };
        json!({ "type": "string", "pattern": pattern })
    };
    match kind {
        Kind::Text | Kind::Path => json!({ "type": "string" }),
        Kind::Url => text("^\\s*[Hh][Tt][Tt][Pp][Ss]?://"),
        // That of a switch may be empty, whatever its default is.
        Kind::Address => {
            json!({ "type": "string", "pattern": "^$|^(\\[[0-9A-Fa-f:.%]+\\]|[0-9.]+):[0-9]{1,5}$" })
        }
        Kind::Upstream => text("\\S"),
        Kind::Duration => text("^\\s*[0-9].*[A-Za-zµ]\\s*$"),
        Kind::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        // Between quotes a number is as good as the word.
        Kind::IntegerOr { min, max, word } => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            text(&format!("^\\s*(\\+?[0-9]+|{word})\\s*$")),
        ] }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Word(known) => json!({ "enum": known }),
        Kind::List => json!({ "type": "array", "items": { "type": ["string", "integer"] } }),
    }
}

/// A default as the file would have it.
fn value(kind: &Kind, text: &str) -> Value {
    match kind {
        Kind::Boolean => json!(text == "true"),
        Kind::Integer { .. } | Kind::IntegerOr { .. } => {
            text.parse::<u64>().map_or_else(|_| json!(text), Value::from)
        }
        Kind::List => text.split(',').collect(),
        Kind::Text
        | Kind::Path
        | Kind::Url
        | Kind::Address
        | Kind::Upstream
        | Kind::Duration
        | Kind::Word(_) => json!(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands for the key in the schema.
    fn of<'a>(schema: &'a Value, name: &str) -> &'a Value {
        let path = name
            .replace("route.", "route/items.")
            .replace("file.", "file/items.")
            .replace('.', "/properties/");
        let path = format!("/properties/{path}");
        schema.pointer(&path).unwrap_or_else(|| panic!("{path}"))
    }

    #[test]
    fn every_key_stands_in_it_with_what_it_sets() {
        let schema = schema();
        for key in KEYS {
            let said = of(&schema, key.name)["description"].as_str().unwrap();
            assert!(said.starts_with(key.about), "{}: {said}", key.name);
        }
    }

    #[test]
    fn kinds_and_defaults_are_those_of_the_keys() {
        let schema = schema();
        let max_sessions = of(&schema, "listen.max_sessions");
        assert_eq!(max_sessions["minimum"], 1);
        assert_eq!(max_sessions["default"], 1000);
        assert_eq!(of(&schema, "route.at_lease_end")["enum"], json!(["auto", "leave", "close"]));
        assert_eq!(of(&schema, "drain.deadline")["default"], "20s");
        assert_eq!(of(&schema, "listen.addresses")["default"], json!(["localhost:5432"]));
        assert_eq!(of(&schema, "admin.control")["default"], false);
        assert_eq!(of(&schema, "listen.threads")["anyOf"][0]["maximum"], 64);
        assert_eq!(of(&schema, "vault.login.role")["type"], "string");
    }
}
