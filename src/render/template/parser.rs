//! Tokens to nodes, by the grammar of Go's `text/template`, with the type of each value known: what could only fail
//! when it is rendered is refused here.

#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is of any other kind")]

use super::error::{Fault, shortened};
use super::evaluate::{Block, Node};
use super::expression::Typed;
use super::lexer::{Kind, Token, tokens};
use super::types::Type;

/// A whole template.
pub(super) struct Parsed {
    pub(super) nodes: Vec<Node>,
    /// How many variables it has.
    pub(super) slots: usize,
}

/// What `text` says, which reads `vault_path`; or where it cannot be rendered, in bytes, and why.
pub(super) fn parse(text: &str, vault_path: &str) -> Result<Parsed, (usize, Fault)> {
    if text.len() > MAX_LEN {
        return Err((0, Fault::TooLong { max_len: MAX_LEN }));
    }
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        vault_path: vault_path.trim().trim_matches('/'),
        variables: Vec::new(),
        slots: 0,
        depth: 0,
        in_range: false,
        reads: false,
    };
    let (nodes, end) = parser.nodes(Type::Nothing)?;
    if let Some(word) = end.word {
        return Err((end.at, Fault::Unopened { word }));
    }
    if !parser.reads {
        return Err((0, Fault::ReadsNothing { vault_path: parser.vault_path.to_owned() }));
    }
    Ok(Parsed { nodes, slots: parser.slots })
}

pub(super) struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    /// Without slashes at its ends, as the Agent reads it.
    pub(super) vault_path: &'a str,
    variables: Vec<Variable>,
    slots: usize,
    depth: usize,
    in_range: bool,
    /// Whether `secret` occurs.
    pub(super) reads: bool,
}

/// A variable in scope. Each declaration has a slot of its own, so that a shadowed one comes back.
#[derive(Clone)]
pub(super) struct Variable {
    name: String,
    pub(super) slot: usize,
    pub(super) of: Type,
}

/// How a list of nodes ends: at `{{ end }}`, `{{ else }}`, or with the text.
struct ListEnd {
    word: Option<&'static str>,
    at: usize,
}

type Parse<T> = Result<T, (usize, Fault)>;

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Token<'a> {
        let end = Token { kind: Kind::End, at: 0, is_spaced: false };
        self.tokens.get(self.next).or(self.tokens.last()).cloned().unwrap_or(end)
    }

    pub(super) fn take(&mut self) -> Token<'a> {
        let token = self.peek();
        self.next += 1;
        token
    }

    pub(super) fn take_if(&mut self, kind: &Kind<'_>) -> bool {
        let is_it = self.peek().kind == *kind;
        self.next += usize::from(is_it);
        is_it
    }

    /// Runs `parse` one level deeper; `at` is what is blamed where that is too deep.
    pub(super) fn deeper<T>(&mut self, at: usize, parse: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        if self.depth == MAX_DEPTH {
            return Err((at, Fault::TooDeep { max_depth: MAX_DEPTH }));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Up to and with the word that ends the list.
    fn nodes(&mut self, dot: Type) -> Parse<(Vec<Node>, ListEnd)> {
        let mut nodes = Vec::new();
        loop {
            let token = self.take();
            match token.kind {
                Kind::Text(text) => nodes.push(Node::Text(text.to_owned())),
                Kind::Open => match self.action(dot)? {
                    Action::Node(node) => nodes.push(node),
                    Action::ListEnd(word, at) => return Ok((nodes, ListEnd { word: Some(word), at })),
                },
                _ => return Ok((nodes, ListEnd { word: None, at: token.at })),
            }
        }
    }

    fn action(&mut self, dot: Type) -> Parse<Action> {
        let token = self.peek();
        let Kind::Word(word) = token.kind else { return self.statement(dot).map(Action::Node) };
        let at = token.at;
        let node = match word {
            "end" | "else" => {
                self.take();
                let word = if word == "end" { "end" } else { "else" };
                // `else if` and `else with` go on with the word itself.
                if word == "end" || !matches!(self.peek().kind, Kind::Word("if" | "with")) {
                    self.close()?;
                }
                return Ok(Action::ListEnd(word, at));
            }
            "if" | "with" => {
                self.take();
                self.deeper(at, |parser| parser.block(word == "with", dot))?
            }
            "range" => {
                self.take();
                self.deeper(at, |parser| parser.range(at, dot))?
            }
            _ => {
                if let Some((word, cure)) = KEYWORDS.iter().find(|(keyword, _)| *keyword == word) {
                    return Err((at, Fault::Keyword { word, cure }));
                }
                self.statement(dot)?
            }
        };
        Ok(Action::Node(node))
    }

    fn close(&mut self) -> Parse<()> {
        let token = self.take();
        if token.kind == Kind::Close { Ok(()) } else { Err(unexpected(&token)) }
    }

    /// A declaration, an assignment, or a value that is printed.
    fn statement(&mut self, dot: Type) -> Parse<Node> {
        let at = self.peek().at;
        if let Some((name, is_new)) = self.target() {
            let value = self.pipeline(dot)?;
            self.close()?;
            let slot = if is_new { self.declare(name, value.of) } else { self.assigned(name, at, value.of)? };
            return Ok(Node::Set { slot, value: value.expression });
        }
        let value = self.pipeline(dot)?;
        self.close()?;
        value.printed("written")?;
        Ok(Node::Print(value.expression))
    }

    /// `$x :=` or `$x =`, where that is what comes.
    fn target(&mut self) -> Option<(&'a str, bool)> {
        let Kind::Variable(name) = self.peek().kind else { return None };
        let is_new = match self.tokens.get(self.next + 1)?.kind {
            Kind::Declare => true,
            Kind::Assign => false,
            _ => return None,
        };
        self.next += 2;
        Some((name, is_new))
    }

    fn declare(&mut self, name: &str, of: Type) -> usize {
        let slot = self.slots;
        self.slots += 1;
        self.variables.push(Variable { name: name.to_owned(), slot, of });
        slot
    }

    fn assigned(&self, name: &str, at: usize, becomes: Type) -> Parse<usize> {
        let variable = self.variable(name, at)?;
        if variable.of == becomes {
            return Ok(variable.slot);
        }
        Err((at, Fault::Retyped { name: shortened(name), was: variable.of, becomes }))
    }

    pub(super) fn variable(&self, name: &str, at: usize) -> Parse<&Variable> {
        let found = self.variables.iter().rev().find(|variable| variable.name == name);
        found.ok_or_else(|| (at, Fault::Variable { name: shortened(name) }))
    }

    /// From behind `if` or `with` to behind its `{{ end }}`.
    fn block(&mut self, is_with: bool, dot: Type) -> Parse<Node> {
        let scope = self.variables.len();
        let at = self.peek().at;
        let target = self.target();
        let value = self.pipeline(dot)?;
        self.close()?;
        let slot = match target {
            Some((name, true)) => Some(self.declare(name, value.of)),
            Some((name, false)) => Some(self.assigned(name, at, value.of)?),
            None => None,
        };
        let opener = if is_with { "with" } else { "if" };
        let of_head = self.variables.len();
        let (body, end) = self.nodes(if is_with { value.of } else { dot })?;
        // What the body declares has no value in what is rendered in its place.
        self.variables.truncate(of_head);
        let otherwise = match end.word {
            Some("else") => self.otherwise(is_with, opener, dot)?,
            Some(_) => Vec::new(),
            None => return Err((end.at, Fault::NoEnd { opener })),
        };
        self.variables.truncate(scope);
        let block = Block { value: value.expression, slot, body, otherwise };
        Ok(if is_with { Node::With { block } } else { Node::If { block } })
    }

    fn otherwise(&mut self, is_with: bool, opener: &'static str, dot: Type) -> Parse<Vec<Node>> {
        let token = self.peek();
        match token.kind {
            Kind::Word(word) if (word == "with") == is_with && matches!(word, "if" | "with") => {
                self.take();
                Ok(vec![self.deeper(token.at, |parser| parser.block(is_with, dot))?])
            }
            Kind::Word("if" | "with") => Err(unexpected(&token)),
            _ => self.last_list(opener, dot),
        }
    }

    /// Behind `{{ else }}`: up to `{{ end }}`, with no other `{{ else }}`.
    fn last_list(&mut self, opener: &'static str, dot: Type) -> Parse<Vec<Node>> {
        let (nodes, end) = self.nodes(dot)?;
        match end.word {
            Some("end") => Ok(nodes),
            Some(word) => Err((end.at, Fault::Unopened { word })),
            None => Err((end.at, Fault::NoEnd { opener })),
        }
    }

    /// From behind `range` to behind its `{{ end }}`.
    fn range(&mut self, at: usize, dot: Type) -> Parse<Node> {
        if self.in_range {
            return Err((at, Fault::NestedRange));
        }
        let scope = self.variables.len();
        let names = self.range_targets()?;
        let value = self.pipeline(dot)?;
        self.close()?;
        if value.of != Type::Data {
            return Err((value.at, Fault::Range));
        }
        self.all_data(value.at)?;
        let slots: Vec<_> = names.iter().map(|name| self.declare(name, Type::String)).collect();
        let (key, element) = match *slots.as_slice() {
            [element] => (None, Some(element)),
            [key, element] => (Some(key), Some(element)),
            _ => (None, None),
        };
        self.in_range = true;
        let (body, end) = self.nodes(Type::String)?;
        self.in_range = false;
        match end.word {
            // Never taken, as there is always something to range over; it must be right all the same.
            Some("else") => drop(self.last_list("range", dot)?),
            Some(_) => {}
            None => return Err((end.at, Fault::NoEnd { opener: "range" })),
        }
        self.variables.truncate(scope);
        Ok(Node::Range { key, value: element, body })
    }

    /// `$v :=` or `$k, $v :=`, where they come.
    fn range_targets(&mut self) -> Parse<Vec<&'a str>> {
        let Kind::Variable(first) = self.peek().kind else { return Ok(Vec::new()) };
        let following = |ahead: usize| self.tokens.get(self.next + ahead).map(|token| token.kind.clone());
        let (names, len) = match (following(1), following(2), following(3)) {
            (Some(Kind::Declare), _, _) => (vec![first], 2),
            (Some(Kind::Comma), Some(Kind::Variable(second)), Some(Kind::Declare)) => {
                (vec![first, second], 4)
            }
            (Some(Kind::Comma | Kind::Assign), _, _) => return Err((self.peek().at, Fault::Range)),
            _ => return Ok(Vec::new()),
        };
        self.next += len;
        Ok(names)
    }

    /// Refuses what needs all that Vault answers, where that is not known.
    pub(super) fn all_data(&self, at: usize) -> Parse<()> {
        if self.vault_path.contains("/static-creds/") { Err((at, Fault::StaticData)) } else { Ok(()) }
    }
}

enum Action {
    Node(Node),
    ListEnd(&'static str, usize),
}

impl Typed {
    /// Refuses what is no text.
    fn printed(&self, used: &'static str) -> Parse<()> {
        if self.of.is_printed() { Ok(()) } else { Err((self.at, Fault::Type { of: self.of, used })) }
    }
}

/// The fault of a token that has no place where it stands.
pub(super) fn unexpected(token: &Token<'_>) -> (usize, Fault) {
    let (text, cure) = match &token.kind {
        Kind::Close => return (token.at, Fault::NoValue),
        Kind::RightParen => (")".to_owned(), "remove it, or write the ( before"),
        Kind::LeftParen => ("(".to_owned(), "write a space before it"),
        Kind::Word(word) | Kind::Variable(word) => (shortened(word), "write one value, or | between two"),
        Kind::Field(field) => (format!(".{}", shortened(field)), "write one value, or | between two"),
        Kind::String(text) => (format!("{:?}", shortened(text)), "write one value, or | between two"),
        Kind::Int(number) => (number.to_string(), "write one value, or | between two"),
        Kind::Assign => ("=".to_owned(), "write $x = … at the beginning"),
        Kind::Declare => (":=".to_owned(), "write $x := … at the beginning"),
        Kind::Pipe => ("|".to_owned(), "write a value before it"),
        Kind::Comma => (",".to_owned(), "write a space between values"),
        Kind::Dot => (".".to_owned(), "write one value, or | between two"),
        Kind::Text(_) | Kind::Open | Kind::End => ("the end".to_owned(), "write }}"),
    };
    (token.at, Fault::Unexpected { text, cure })
}

/// Of Go's, but not of ours.
const KEYWORDS: &[(&str, &str)] = &[
    ("block", "write what it holds in its place"),
    ("break", "write {{ if }} around the rest"),
    ("continue", "write {{ if }} around the rest"),
    ("define", "write what it holds in its place"),
    ("template", "write what it holds in its place"),
    ("nil", "write a value"),
];

/// Blocks and parentheses; more would only cost stack.
const MAX_DEPTH: usize = 50;
/// As much as an annotation, four times.
const MAX_LEN: usize = 1024 * 1024;
