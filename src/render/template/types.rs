//! What a value is. It is known of each before anything is rendered, so that a template that is taken is rendered.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// The dot outside of everything.
    Nothing,
    /// What `secret "…"` gives.
    Secret,
    /// Its `.Data`.
    Data,
    String,
    Int,
    Bool,
}

/// A part of a secret that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Data,
    LeaseId,
    LeaseDuration,
    Renewable,
    Username,
    Password,
}

impl Type {
    /// The field of that name, or what to write instead.
    pub(super) fn field(self, name: &str) -> Result<(Field, Self), &'static str> {
        Ok(match (self, name) {
            (Self::Secret, "Data") => (Field::Data, Self::Data),
            (Self::Secret, "LeaseID") => (Field::LeaseId, Self::String),
            (Self::Secret, "LeaseDuration") => (Field::LeaseDuration, Self::Int),
            (Self::Secret, "Renewable") => (Field::Renewable, Self::Bool),
            (Self::Data, "username") => (Field::Username, Self::String),
            (Self::Data, "password") => (Field::Password, Self::String),

            (Self::Secret, "username") => return Err("write .Data.username"),
            (Self::Secret, "password") => return Err("write .Data.password"),
            (Self::Secret, _) => {
                return Err("write .Data.username, .Data.password, .LeaseID, .LeaseDuration or .Renewable");
            }
            (Self::Data, "data") => {
                return Err("that is of the KV engine; write .Data.username or .Data.password");
            }
            (Self::Data, _) => return Err("write .Data.username or .Data.password"),
            (Self::Nothing | Self::String | Self::Int | Self::Bool, _) => {
                return Err("write the value alone");
            }
        })
    }

    /// Whether it may stand as text in a file.
    pub(super) fn is_printed(self) -> bool {
        matches!(self, Self::String | Self::Int | Self::Bool)
    }

    /// What to write where it has no use.
    pub(super) fn cure(self) -> &'static str {
        match self {
            Self::Nothing => "write {{ with secret \"…\" }} before it and {{ end }} behind it",
            Self::Secret => "write .Data.username or .Data.password",
            Self::Data => "write .Data.username or .Data.password, or .Data | toJSON",
            Self::String | Self::Int | Self::Bool => "write printf \"%v\" before it",
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Secret => "a secret",
            Self::Data => ".Data",
            Self::String => "a string",
            Self::Int => "a number",
            Self::Bool => "true or false",
        })
    }
}
