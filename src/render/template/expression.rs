//! Values of a template: pipelines, commands and operands, each with what it is.

#![expect(clippy::wildcard_enum_match_arm, reason = "what is not expected is of any other kind")]

use super::error::{Fault, shortened};
use super::evaluate::{Expression, Piece};
use super::function::Function;
use super::lexer::Kind;
use super::parser::{Parser, unexpected};
use super::types::Type;

/// A value, where it is written, and what it is.
#[derive(Debug)]
pub(super) struct Typed {
    pub(super) expression: Expression,
    pub(super) of: Type,
    pub(super) at: usize,
}

type Parse<T> = Result<T, (usize, Fault)>;

impl Parser<'_> {
    /// `command | command …`: each is the last argument of the next.
    pub(super) fn pipeline(&mut self, dot: Type) -> Parse<Typed> {
        let mut value = self.command(dot, None)?;
        while self.take_if(&Kind::Pipe) {
            value = self.command(dot, Some(value))?;
        }
        Ok(value)
    }

    fn command(&mut self, dot: Type, piped: Option<Typed>) -> Parse<Typed> {
        let token = self.peek();
        if let Kind::Word(word) = token.kind
            && !matches!(word, "true" | "false")
        {
            self.take();
            return self.call(word, token.at, dot, piped);
        }
        if piped.is_some() {
            self.take();
            return Err(match token.kind {
                Kind::Close | Kind::Pipe | Kind::RightParen => (token.at, Fault::NoValue),
                _ => unexpected(&token),
            });
        }
        let value = self.operand(dot)?;
        match self.peek().kind {
            Kind::Close | Kind::Pipe | Kind::RightParen => Ok(value),
            _ => Err(unexpected(&self.peek())),
        }
    }

    /// A function with the operands behind it, `piped` being its last one.
    fn call(&mut self, name: &str, at: usize, dot: Type, piped: Option<Typed>) -> Parse<Typed> {
        if name == "secret" {
            return self.secret(at, dot, piped);
        }
        let Some(function) = Function::named(name) else {
            return Err((at, Fault::Function { name: shortened(name), nearest: Function::nearest(name) }));
        };
        let mut arguments = self.operands(dot)?;
        arguments.extend(piped);
        if function == Function::Printf {
            return printf(arguments, at);
        }
        let mut arguments = arguments.into_iter();
        let (Some(argument), None) = (arguments.next(), arguments.next()) else {
            return Err((at, Fault::Arguments { function: function.name(), wanted: "one value" }));
        };
        if !function.takes(argument.of) {
            return Err((argument.at, Fault::Type { of: argument.of, used: "given to this function" }));
        }
        if argument.of == Type::Data {
            self.all_data(argument.at)?;
        }
        let expression = Expression::Call(function, Box::new(argument.expression));
        Ok(Typed { expression, of: Type::String, at })
    }

    fn secret(&mut self, at: usize, dot: Type, piped: Option<Typed>) -> Parse<Typed> {
        let mut arguments = self.operands(dot)?;
        arguments.extend(piped);
        let fault = || (at, Fault::SecretArguments { vault_path: self.vault_path.to_owned() });
        let [Typed { expression: Expression::String(path), at: path_at, .. }] = arguments.as_slice() else {
            return Err(fault());
        };
        if path.trim().trim_matches('/') != self.vault_path {
            let (path, vault_path) = (shortened(path), self.vault_path.to_owned());
            return Err((*path_at, Fault::OtherPath { path, vault_path }));
        }
        self.reads = true;
        Ok(Typed { expression: Expression::Secret, of: Type::Secret, at })
    }

    fn operands(&mut self, dot: Type) -> Parse<Vec<Typed>> {
        let mut operands = Vec::new();
        loop {
            let token = self.peek();
            match token.kind {
                Kind::Close | Kind::Pipe | Kind::RightParen => return Ok(operands),
                _ if !token.is_spaced => return Err(unexpected(&token)),
                _ => operands.push(self.operand(dot)?),
            }
        }
    }

    /// A term, and the fields of it that are named behind it.
    fn operand(&mut self, dot: Type) -> Parse<Typed> {
        let token = self.take();
        let at = token.at;
        let (expression, of) = match token.kind {
            Kind::String(text) => (Expression::String(text), Type::String),
            Kind::Int(number) => (Expression::Int(number), Type::Int),
            Kind::Word(word @ ("true" | "false")) => (Expression::Bool(word == "true"), Type::Bool),
            Kind::Dot => (Expression::Dot, dot),
            Kind::Variable("$") => (Expression::Dot, Type::Nothing),
            Kind::Variable(name) => {
                let variable = self.variable(name, at)?;
                (Expression::Variable(variable.slot), variable.of)
            }
            Kind::Field(name) => {
                let value = Typed { expression: Expression::Dot, of: dot, at };
                let value = self.field(&value, name, at)?;
                (value.expression, value.of)
            }
            Kind::LeftParen => {
                let value = self.deeper(at, |parser| parser.pipeline(dot))?;
                if !self.take_if(&Kind::RightParen) {
                    return Err((at, Fault::OpenParenthesis));
                }
                (value.expression, value.of)
            }
            // A function among the operands is called without any of its own; all of ours take some.
            Kind::Word(name) => return self.called_without(name, at),
            _ => return Err(unexpected(&token)),
        };
        let mut value = Typed { expression, of, at };
        while let Kind::Field(name) = self.peek().kind
            && !self.peek().is_spaced
        {
            let field_at = self.take().at;
            value = self.field(&value, name, field_at)?;
        }
        Ok(value)
    }

    fn called_without(&self, name: &str, at: usize) -> Parse<Typed> {
        let function = match name {
            "secret" => return Err((at, Fault::SecretArguments { vault_path: self.vault_path.to_owned() })),
            other => Function::named(other),
        };
        Err(match function {
            Some(function) => {
                let wanted = "a value, in ( … ) where it stands among others";
                (at, Fault::Arguments { function: function.name(), wanted })
            }
            None => (at, Fault::Function { name: shortened(name), nearest: Function::nearest(name) }),
        })
    }

    fn field(&self, value: &Typed, name: &str, at: usize) -> Parse<Typed> {
        let field = shortened(name);
        if value.of == Type::Nothing {
            return Err((at, Fault::NoDot { field, vault_path: self.vault_path.to_owned() }));
        }
        match value.of.field(name) {
            Ok((field, of)) => Ok(Typed { expression: Expression::Field(field), of, at: value.at }),
            Err(cure) => Err((at, Fault::Field { field, of: value.of, cure })),
        }
    }
}

/// `printf`, with its format taken apart.
fn printf(arguments: Vec<Typed>, at: usize) -> Parse<Typed> {
    let mut arguments = arguments.into_iter();
    let Some(Typed { expression: Expression::String(format), at: format_at, .. }) = arguments.next() else {
        return Err((at, Fault::Format));
    };
    let mut values: Vec<_> = arguments.collect();
    let (given, mut verbs) = (values.len(), 0);
    values.reverse();

    let mut pieces = Vec::new();
    let mut rest = format.as_str();
    while let Some((text, after)) = rest.split_once('%') {
        pieces.push(Piece::Text(text.to_owned()));
        let letter = after.chars().next();
        rest = after.get(letter.map_or(0, char::len_utf8)..).unwrap_or_default();
        match letter {
            Some('%') => pieces.push(Piece::Text("%".to_owned())),
            Some(letter @ ('s' | 'q' | 'd' | 'v')) => {
                verbs += 1;
                if let Some(value) = values.pop() {
                    pieces.push(verb(letter, value)?);
                }
            }
            other => {
                let verb = other.map_or("%".to_owned(), |letter| format!("%{letter}"));
                return Err((format_at, Fault::Verb { verb }));
            }
        }
    }
    pieces.push(Piece::Text(rest.to_owned()));
    if verbs != given {
        return Err((format_at, Fault::VerbCount { verbs, values: given }));
    }
    Ok(Typed { expression: Expression::Printf(pieces), of: Type::String, at })
}

fn verb(letter: char, value: Typed) -> Parse<Piece> {
    let Typed { expression, of, at } = value;
    match (letter, of) {
        ('s' | 'v', Type::String) | ('v' | 'd', Type::Int) | ('v', Type::Bool) => {
            Ok(Piece::Plain(expression))
        }
        ('q', Type::String) => Ok(Piece::Quoted(expression)),
        (_, Type::String | Type::Int | Type::Bool) => {
            Err((at, Fault::VerbType { verb: format!("%{letter}"), of }))
        }
        (_, of) => Err((at, Fault::Type { of, used: "given to printf" })),
    }
}
