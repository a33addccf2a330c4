//! What a template may not say, each with the nearest thing that works.

use super::function::Function;
use super::types::Type;

/// Where a template is refused, and why. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {fault}")]
pub(crate) struct TemplateError {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) fault: Fault,
}

impl TemplateError {
    /// The fault at byte `at` of `text`.
    pub(super) fn new(text: &str, at: usize, fault: Fault) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            fault,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    // Of its letters.
    #[error("a template of more than {max_len} bytes; a credential file needs no such")]
    TooLong { max_len: usize },
    #[error("the action is not closed; write }}}} behind it")]
    OpenAction,
    #[error("the comment is not closed; write */}}}} behind it")]
    OpenComment,
    #[error("a comment ends with */}}}} or */ -}}}}, with nothing between")]
    CommentEnd,
    #[error("a comment begins with {{{{/* or {{{{- /*, with nothing between")]
    SpaceBeforeComment,
    #[error(
        "the string is not closed on its line; write \" behind it, \\n for a line break and \\\" for a quote"
    )]
    OpenString,
    #[error(
        "{text} is no escape of a string here; write \\n, \\t, \\\", \\\\ or \\u00e9, or the string in `…`"
    )]
    Escape { text: String },
    #[error("only whole decimal numbers work here, such as 5")]
    Number,
    #[error("{character:?} has no meaning within {{{{ … }}}}; write it outside, or within a string")]
    Character { character: char },

    // Of its grammar.
    #[error("the text ends, and {{{{ {opener} … }}}} is open; write {{{{ end }}}}")]
    NoEnd { opener: &'static str },
    #[error(
        "{{{{ {word} }}}} without an {{{{ if }}}}, {{{{ with }}}} or {{{{ range }}}} before it; remove it"
    )]
    Unopened { word: &'static str },
    #[error("a value is missing; write one, such as .Data.password")]
    NoValue,
    #[error("a ( without its ); close it before }}}}")]
    OpenParenthesis,
    #[error("{text} is not expected here; {cure}")]
    Unexpected { text: String, cure: &'static str },
    #[error("{{{{ {word} }}}} is not rendered here; {cure}")]
    Keyword { word: &'static str, cure: &'static str },
    #[error("nested more than {max_depth} deep; a credential file needs no such")]
    TooDeep { max_depth: usize },

    // Of its meaning.
    #[error("the function {name} is not rendered here; {}", functions(*nearest))]
    Function { name: String, nearest: Option<Function> },
    #[error("{function} takes {wanted}")]
    Arguments { function: &'static str, wanted: &'static str },
    #[error("secret takes the path alone, in quotes, as pglease only reads; write secret \"{vault_path}\"")]
    SecretArguments { vault_path: String },
    #[error(
        "reads {path:?}, and this file's vault_path is {vault_path:?}; write secret \"{vault_path}\", or another file"
    )]
    OtherPath { path: String, vault_path: String },
    #[error("never reads the credential; write {{{{ with secret \"{vault_path}\" }}}} … {{{{ end }}}}")]
    ReadsNothing { vault_path: String },
    #[error(
        ".{field} outside of {{{{ with secret \"{vault_path}\" }}}} … {{{{ end }}}} has nothing to be of; move it in"
    )]
    NoDot { field: String, vault_path: String },
    #[error(".{field} is not known of {of}; {cure}")]
    Field { field: String, of: Type, cure: &'static str },
    #[error("{of} cannot be {used}; {}", of.cure())]
    Type { of: Type, used: &'static str },
    #[error(
        "the variable {name} is not declared here; write {{{{ {name} := … }}}} before, in the same block"
    )]
    Variable { name: String },
    #[error("the variable {name} holds {was}, and would hold {becomes}; declare another")]
    Retyped { name: String, was: Type, becomes: Type },
    #[error("only .Data is ranged over here; write {{{{ range $k, $v := .Data }}}}")]
    Range,
    #[error("a range within a range is not rendered here; end the first")]
    NestedRange,
    #[error(
        "a static role's .Data has more than .username and .password, and what more is not known; name the two"
    )]
    StaticData,
    #[error("printf wants its format as a string in quotes; write printf \"…\"")]
    Format,
    #[error(
        "{verb} is no verb of printf here; write %s or %q for a string, %d for a number, %v for any, %% for a %"
    )]
    Verb { verb: String },
    #[error("{verb} of printf does not print {of}; write %v")]
    VerbType { verb: String, of: Type },
    #[error("printf has {verbs} verbs and {values} values; write one value for each")]
    VerbCount { verbs: usize, values: usize },
}

fn functions(nearest: Option<Function>) -> String {
    let known: Vec<_> = Function::ALL.iter().map(|function| function.name()).collect();
    match nearest {
        Some(function) => format!("did you mean {}?", function.name()),
        None => format!("there are secret, {}", known.join(", ")),
    }
}

/// What is quoted of a template, at most 40 characters.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_LEN).collect();
    if text.chars().nth(QUOTED_LEN).is_some() {
        short.push('…');
    }
    short
}

const QUOTED_LEN: usize = 40;
