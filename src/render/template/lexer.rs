//! A template's text in tokens, by the rules of Go's `text/template/parse`: the space after `{{-` and before `-}}` is
//! trimmed here and never seen by the parser.

use super::error::{Fault, shortened};

/// A token, and where in the text it begins, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) at: usize,
    /// Whether space stands before it: `.a.b` is one operand, `.a .b` are two.
    pub(crate) is_spaced: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    /// Outside of actions.
    Text(&'a str),
    /// `{{`
    Open,
    /// `}}`
    Close,
    /// A function or a keyword.
    Word(&'a str),
    /// `.name`, without the dot.
    Field(&'a str),
    /// `.`
    Dot,
    /// `$name`, with the `$`.
    Variable(&'a str),
    String(String),
    Int(i64),
    /// `=`
    Assign,
    /// `:=`
    Declare,
    /// `|`
    Pipe,
    /// `,`
    Comma,
    /// `(`
    LeftParen,
    /// `)`
    RightParen,
    End,
}

/// All tokens of `text`, the last one [`Kind::End`]; or what is wrong, and where.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, (usize, Fault)> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new(), is_spaced: false };
    while lexer.at < text.len() {
        lexer.text_up_to_action()?;
    }
    lexer.emit(Kind::End, text.len());
    Ok(lexer.tokens)
}

/// The paths that `text` reads from Vault, as far as they are written out beside `secret`, without slashes at their ends
/// and each once; none where something is wrong with it.
pub(crate) fn paths(text: &str) -> Vec<String> {
    let tokens = tokens(text).unwrap_or_default();
    let kinds: Vec<_> = tokens.iter().map(|token| &token.kind).collect();
    let mut paths: Vec<String> = Vec::new();
    for window in kinds.windows(3) {
        let ([Kind::Word("secret"), Kind::String(path), _]
        | [Kind::String(path), Kind::Pipe, Kind::Word("secret")]) = window
        else {
            continue;
        };
        let path = path.trim().trim_matches('/');
        if paths.iter().all(|known| known != path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

/// `at <= text.len()`, on a character's boundary.
struct Lexer<'a> {
    text: &'a str,
    at: usize,
    tokens: Vec<Token<'a>>,
    is_spaced: bool,
}

type Lexed<T = ()> = Result<T, (usize, Fault)>;

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn emit(&mut self, kind: Kind<'a>, at: usize) {
        self.tokens.push(Token { kind, at, is_spaced: self.is_spaced });
        self.is_spaced = false;
    }

    fn text_up_to_action(&mut self) -> Lexed {
        let (start, rest) = (self.at, self.rest());
        let Some((before, after)) = rest.split_once(LEFT) else {
            self.at = self.text.len();
            self.emit(Kind::Text(rest), start);
            return Ok(());
        };
        let trims = after.starts_with('-') && after.chars().nth(1).is_some_and(is_space);
        let kept = if trims { before.trim_end_matches(is_space) } else { before };
        if !kept.is_empty() {
            self.emit(Kind::Text(kept), start);
        }
        let open = start + before.len();
        self.at = open + LEFT.len() + if trims { 2 } else { 0 };
        if self.rest().starts_with("/*") {
            return self.comment(open);
        }
        self.emit(Kind::Open, open);
        self.action(open)
    }

    fn comment(&mut self, open: usize) -> Lexed {
        let Some(len) = self.rest().find("*/") else { return Err((open, Fault::OpenComment)) };
        self.at += len + 2;
        if self.close() { Ok(()) } else { Err((self.at, Fault::CommentEnd)) }
    }

    /// Steps over `}}` or ` -}}`, and the space that the latter trims.
    fn close(&mut self) -> bool {
        let rest = self.rest();
        let trims = rest.chars().next().is_some_and(is_space) && rest.get(1..).is_some_and(is_trimming_close);
        if trims {
            self.at += 2 + RIGHT.len();
            self.at += self.rest().len() - self.rest().trim_start_matches(is_space).len();
        } else if rest.starts_with(RIGHT) {
            self.at += RIGHT.len();
        } else {
            return false;
        }
        true
    }

    /// From behind `{{` to behind the `}}` that closes it.
    fn action(&mut self, open: usize) -> Lexed {
        loop {
            let at = self.at;
            if self.close() {
                self.emit(Kind::Close, at);
                return Ok(());
            }
            let Some(first) = self.rest().chars().next() else { return Err((open, Fault::OpenAction)) };
            if is_space(first) {
                self.at += 1;
                self.is_spaced = true;
                continue;
            }
            let kind = self.inside(first)?;
            self.emit(kind, at);
        }
    }

    fn inside(&mut self, first: char) -> Lexed<Kind<'a>> {
        let at = self.at;
        let second = self.rest().chars().nth(1);
        let kind = match first {
            '=' => Kind::Assign,
            '|' => Kind::Pipe,
            ',' => Kind::Comma,
            '(' => Kind::LeftParen,
            ')' => Kind::RightParen,
            ':' if second == Some('=') => {
                self.at += 1;
                Kind::Declare
            }
            '"' => return self.quoted(),
            '`' => return self.raw(),
            '\'' => return Err((at, Fault::Number)),
            '.' if second.is_some_and(|digit| digit.is_ascii_digit()) => return Err((at, Fault::Number)),
            '0'..='9' | '+' | '-' => return self.number(),
            '.' => {
                self.at += 1;
                let name = self.name()?;
                return Ok(if name.is_empty() { Kind::Dot } else { Kind::Field(name) });
            }
            '$' => {
                self.at += 1;
                self.name()?;
                return Ok(Kind::Variable(self.since(at)));
            }
            letter if is_alphanumeric(letter) => return self.name().map(Kind::Word),
            '/' => return Err((at, Fault::SpaceBeforeComment)),
            other => return Err((at, Fault::Character { character: other })),
        };
        self.at += 1;
        Ok(kind)
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Letters, digits and `_`; what stands behind must be able to end a name.
    fn name(&mut self) -> Lexed<&'a str> {
        let rest = self.rest();
        let after = rest.trim_start_matches(is_alphanumeric);
        self.at += rest.len() - after.len();
        let ends = after.starts_with(RIGHT)
            || after.chars().next().is_none_or(|next| is_space(next) || ".,|:()".contains(next));
        if !ends {
            let character = after.chars().next().unwrap_or_default();
            return Err((self.at, Fault::Character { character }));
        }
        Ok(rest.get(..rest.len() - after.len()).unwrap_or_default())
    }

    /// A whole decimal number. Others mean other things in Go (`010` is eight), and nothing here needs them.
    fn number(&mut self) -> Lexed<Kind<'a>> {
        let at = self.at;
        let rest = self.rest();
        let after = rest.trim_start_matches(|next| is_alphanumeric(next) || "+-.".contains(next));
        self.at += rest.len() - after.len();
        let digits = self.since(at).trim_start_matches(['+', '-']);
        let is_decimal = digits == "0" || !digits.starts_with('0');
        self.since(at).parse().ok().filter(|_| is_decimal).map(Kind::Int).ok_or((at, Fault::Number))
    }

    /// "…" with Go's escapes.
    fn quoted(&mut self) -> Lexed<Kind<'a>> {
        let at = self.at;
        self.at += 1;
        let mut value = String::new();
        loop {
            let escape_at = self.at;
            match self.next() {
                None | Some('\n') => return Err((at, Fault::OpenString)),
                Some('"') => return Ok(Kind::String(value)),
                Some('\\') => {
                    let character = self.escaped().ok_or_else(|| {
                        let text = shortened(self.since(escape_at));
                        (escape_at, Fault::Escape { text })
                    })?;
                    value.push(character);
                }
                Some(other) => value.push(other),
            }
        }
    }

    fn escaped(&mut self) -> Option<char> {
        Some(match self.next()? {
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            '\\' => '\\',
            '"' => '"',
            // One byte: above ASCII it would be a piece of a character.
            'x' => self.coded(2, 16).filter(char::is_ascii)?,
            'u' => self.coded(4, 16)?,
            'U' => self.coded(8, 16)?,
            '0'..='7' => {
                self.at -= 1;
                self.coded(3, 8).filter(char::is_ascii)?
            }
            _ => return None,
        })
    }

    fn coded(&mut self, len: usize, radix: u32) -> Option<char> {
        let digits = self.rest().get(..len).filter(|text| text.chars().all(|digit| digit.is_digit(radix)))?;
        self.at += len;
        char::from_u32(u32::from_str_radix(digits, radix).ok()?)
    }

    /// `…`, as it is; Go leaves carriage returns out of it.
    fn raw(&mut self) -> Lexed<Kind<'a>> {
        let at = self.at;
        let Some(len) = self.rest().get(1..).and_then(|rest| rest.find('`')) else {
            return Err((at, Fault::OpenString));
        };
        self.at += len + 2;
        let value = self.since(at).trim_matches('`').replace('\r', "");
        Ok(Kind::String(value))
    }

    fn next(&mut self) -> Option<char> {
        let character = self.rest().chars().next()?;
        self.at += character.len_utf8();
        Some(character)
    }
}

fn is_trimming_close(text: &str) -> bool {
    text.strip_prefix('-').is_some_and(|after| after.starts_with(RIGHT))
}

fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

fn is_alphanumeric(character: char) -> bool {
    character == '_' || character.is_alphanumeric()
}

const LEFT: &str = "{{";
const RIGHT: &str = "}}";

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind<'_>> {
        let mut kinds: Vec<_> = tokens(text).unwrap().into_iter().map(|token| token.kind).collect();
        assert_eq!(kinds.pop(), Some(Kind::End));
        kinds
    }

    #[test]
    fn space_is_trimmed_on_the_marked_side_only() {
        for (text, kept) in [
            ("a \n{{- . -}}\t\n b", ["a", "b"]),
            ("a {{ . -}} b", ["a ", "b"]),
            ("a {{- . }} b", ["a", " b"]),
            ("a\u{a0}{{- . -}}\u{a0}b", ["a\u{a0}", "\u{a0}b"]),
        ] {
            let [before, after] = kept;
            let expected = vec![Kind::Text(before), Kind::Open, Kind::Dot, Kind::Close, Kind::Text(after)];
            assert_eq!(kinds(text), expected, "{text:?}");
        }
        assert_eq!(kinds("a {{- /* {{ b }} */ -}} c"), vec![Kind::Text("a"), Kind::Text("c")]);
        assert_eq!(kinds("  {{- 3 -}}  "), vec![Kind::Open, Kind::Int(3), Kind::Close]);
        assert_eq!(kinds("a {{-3}}"), vec![Kind::Text("a "), Kind::Open, Kind::Int(-3), Kind::Close]);
    }

    #[test]
    fn strings_are_as_in_go() {
        let expected = vec![Kind::Open, Kind::String("a\"\\\n\u{e9}\t!\u{1f600}".to_owned()), Kind::Close];
        assert_eq!(kinds(r#"{{ "a\"\\\n\u00e9\x09\041\U0001F600" }}"#), expected);
        assert_eq!(kinds("{{`a\\\r\n`}}"), vec![Kind::Open, Kind::String("a\\\n".to_owned()), Kind::Close]);
    }

    #[test]
    fn what_is_no_token_is_refused_where_it_stands() {
        for (text, at) in [
            ("a {{ \"b", 5),
            ("{{ `b", 3),
            ("{{ .Data.a-b }}", 10),
            ("{{ 010 }}", 3),
            ("{{ 1.5 }}", 3),
            ("{{ 'a' }}", 3),
            ("ab {{ .Data", 3),
            ("{{ /* a */ }}", 3),
            ("{{/* a */ }}", 9),
            ("{{/* a", 0),
            ("{{ \"\\'\" }}", 4),
            ("{{ \"\\xff\" }}", 4),
            ("{{ a & b }}", 5),
        ] {
            assert_eq!(tokens(text).unwrap_err().0, at, "{text:?}");
        }
    }
}
