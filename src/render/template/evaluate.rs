//! A template that was found good, and a credential: the bytes of the file. Nothing here can fail but by length.

use std::borrow::Cow;

use zeroize::Zeroizing;

use super::function::Function;
use super::types::Field;
use crate::render::buffer::Buffer;
use crate::render::{Secret, go};

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Text(String),
    Print(Expression),
    Set {
        slot: usize,
        value: Expression,
    },
    If {
        block: Block,
    },
    With {
        block: Block,
    },
    /// Over `.Data`: its keys and values, in the order of the keys.
    Range {
        key: Option<usize>,
        value: Option<usize>,
        body: Vec<Self>,
    },
}

/// What `if` and `with` share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) value: Expression,
    pub(super) slot: Option<usize>,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    String(String),
    Int(i64),
    Bool(bool),
    /// `secret "…"`
    Secret,
    Dot,
    Variable(usize),
    Field(Field),
    Call(Function, Box<Self>),
    Printf(Vec<Piece>),
}

/// A piece of what `printf` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Plain(Expression),
    /// `%q`
    Quoted(Expression),
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Nothing,
    Secret,
    Data,
    String(Zeroizing<String>),
    Int(i64),
    Bool(bool),
}

impl Value {
    /// As `fmt.Sprint` writes it.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::String(text) => Cow::Borrowed(text),
            Self::Int(number) => Cow::Owned(number.to_string()),
            Self::Bool(yes) => Cow::Owned(yes.to_string()),
            Self::Nothing | Self::Secret | Self::Data => Cow::Borrowed(""),
        }
    }

    fn is_true(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Secret | Self::Data => true,
            Self::String(text) => !text.is_empty(),
            Self::Int(number) => *number != 0,
            Self::Bool(yes) => *yes,
        }
    }
}

/// Writes `nodes` for `secret`, with room for `slots` variables.
pub(super) fn write(nodes: &[Node], slots: usize, secret: &Secret<'_>, out: &mut Buffer) {
    let mut state = State { secret, variables: vec![Value::Nothing; slots], out };
    state.nodes(nodes, &Value::Nothing);
}

struct State<'a> {
    secret: &'a Secret<'a>,
    variables: Vec<Value>,
    out: &'a mut Buffer,
}

impl State<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(expression) => {
                    let value = self.value(expression, dot);
                    self.out.push_str(&value.text());
                }
                Node::Set { slot, value } => {
                    let value = self.value(value, dot);
                    self.set(Some(*slot), value);
                }
                Node::If { block } => {
                    let value = self.value(&block.value, dot);
                    self.block(block, value, dot, dot);
                }
                Node::With { block } => {
                    let value = self.value(&block.value, dot);
                    self.block(block, value.clone(), &value, dot);
                }
                Node::Range { key, value, body } => {
                    for (name, text) in self.secret.data() {
                        let element = string(text);
                        self.set(*key, string(name));
                        self.set(*value, element.clone());
                        self.nodes(body, &element);
                    }
                }
            }
        }
    }

    fn block(&mut self, block: &Block, value: Value, dot: &Value, outer: &Value) {
        let is_true = value.is_true();
        self.set(block.slot, value);
        if is_true {
            self.nodes(&block.body, dot);
        } else {
            self.nodes(&block.otherwise, outer);
        }
    }

    fn set(&mut self, slot: Option<usize>, value: Value) {
        if let Some(place) = slot.and_then(|slot| self.variables.get_mut(slot)) {
            *place = value;
        }
    }

    fn value(&mut self, expression: &Expression, dot: &Value) -> Value {
        match expression {
            Expression::String(text) => string(text),
            Expression::Int(number) => Value::Int(*number),
            Expression::Bool(yes) => Value::Bool(*yes),
            Expression::Secret => Value::Secret,
            Expression::Dot => dot.clone(),
            Expression::Variable(slot) => self.variables.get(*slot).cloned().unwrap_or(Value::Nothing),
            Expression::Field(field) => self.field(*field),
            Expression::Call(function, argument) => {
                let argument = self.value(argument, dot);
                let secret = self.secret;
                self.written(|out| function.apply(&argument, secret, out))
            }
            Expression::Printf(pieces) => {
                let values: Vec<_> = pieces.iter().map(|piece| self.piece(piece, dot)).collect();
                self.written(|out| {
                    for (piece, value) in pieces.iter().zip(&values) {
                        match piece {
                            Piece::Text(text) => out.push_str(text),
                            Piece::Plain(_) => out.push_str(&value.text()),
                            Piece::Quoted(_) => go::quote(&value.text(), out),
                        }
                    }
                })
            }
        }
    }

    fn piece(&mut self, piece: &Piece, dot: &Value) -> Value {
        match piece {
            Piece::Text(_) => Value::Nothing,
            Piece::Plain(expression) | Piece::Quoted(expression) => self.value(expression, dot),
        }
    }

    /// There is one secret, so that it does not matter of what a field is.
    fn field(&self, field: Field) -> Value {
        match field {
            Field::Data => Value::Data,
            Field::LeaseId => string(self.secret.lease_id),
            Field::LeaseDuration => Value::Int(i64::try_from(self.secret.lease_duration).unwrap_or(i64::MAX)),
            Field::Renewable => Value::Bool(self.secret.renewable),
            Field::Username => string(self.secret.username),
            Field::Password => string(self.secret.password),
        }
    }

    fn written(&mut self, write: impl FnOnce(&mut Buffer)) -> Value {
        let mut text = Buffer::default();
        write(&mut text);
        if text.has_overflowed() {
            self.out.overflow();
        }
        Value::String(text.into_text())
    }
}

fn string(text: &str) -> Value {
    Value::String(Zeroizing::new(text.to_owned()))
}
