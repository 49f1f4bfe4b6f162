//! Cuts queries into words, constants and signs.

use super::{QUERY_LEN_MAX, QUERY_TOKENS_MAX, QueryError};
use crate::name::{is_name_part, is_name_start};
use crate::value::{CimType, Scalar};

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(String),
    Text(String),
    Number(Scalar),
    Sign(&'static str),
    /// What stands between braces.
    Braced(String),
    End,
}

impl Token {
    pub fn shown(&self) -> String {
        match self {
            Token::Word(word) => word.clone(),
            Token::Text(_) => "a text".into(),
            Token::Number(_) => "a number".into(),
            Token::Sign(sign) => (*sign).into(),
            Token::Braced(_) => "a path".into(),
            Token::End => "the end".into(),
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 13] = ["<>", "!=", "<=", ">=", "::", "<", ">", "=", "(", ")", ",", "*", "."];

pub fn tokens(text: &str) -> Result<Vec<(usize, Token)>, QueryError> {
    if text.len() > QUERY_LEN_MAX {
        return Err(QueryError::TooLong);
    }
    let mut lexer = Lexer { text, at: 0 };
    let mut found = Vec::new();
    loop {
        lexer.skip(char::is_whitespace);
        let at = lexer.at;
        let token = lexer.next()?;
        let is_end = token == Token::End;
        found.push((at, token));
        if is_end {
            return Ok(found);
        }
        if found.len() > QUERY_TOKENS_MAX {
            return Err(QueryError::TooLong);
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let len = rest.find(|c| !fits(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn next(&mut self) -> Result<Token, QueryError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if first == '\'' || first == '"' {
            return self.quoted(first).map(Token::Text);
        }
        if first == '{' {
            return self.braced().map(Token::Braced);
        }
        if is_name_start(first) {
            return Ok(Token::Word(self.skip(is_name_part).to_string()));
        }
        let is_signed = "+-".contains(first) && rest[1..].starts_with(|c: char| c.is_ascii_digit() || c == '.');
        let is_point = first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if first.is_ascii_digit() || is_signed || is_point {
            return self.number();
        }
        let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
        let found = || first.to_string();
        let sign = sign.ok_or_else(|| QueryError::Expected {
            expected: "a word, a value or a sign",
            found: found(),
            at: self.at,
        })?;
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    /// A backslash takes away the meaning of a quote or a backslash; a doubled quote stands for one.
    fn quoted(&mut self, quote: char) -> Result<String, QueryError> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1).peekable();
        while let Some((index, c)) = chars.next() {
            match (c, chars.peek().map(|(_, next)| *next)) {
                ('\\', Some(next @ ('\\' | '\'' | '"'))) => {
                    chars.next();
                    text.push(next);
                }
                (c, Some(next)) if c == quote && next == quote => {
                    chars.next();
                    text.push(quote);
                }
                (c, _) if c == quote => {
                    self.at += index + c.len_utf8();
                    return Ok(text);
                }
                (c, _) => text.push(c),
            }
        }
        Err(QueryError::Unclosed { what: "a text" })
    }

    /// Everything up to the closing brace, but for braces within quotes.
    fn braced(&mut self) -> Result<String, QueryError> {
        let rest = self.rest();
        let mut quote = None;
        let mut chars = rest.char_indices().skip(1);
        while let Some((index, c)) = chars.next() {
            match (c, quote) {
                ('\\', Some(_)) => drop(chars.next()),
                ('\'' | '"', None) => quote = Some(c),
                (c, Some(open)) if c == open => quote = None,
                ('}', None) => {
                    self.at += index + 1;
                    return Ok(rest[1..index].trim().to_string());
                }
                _ => {}
            }
        }
        Err(QueryError::Unclosed { what: "a path" })
    }

    fn number(&mut self) -> Result<Token, QueryError> {
        let rest = self.rest();
        let mut last = ' ';
        let is_part = |(index, c): &(usize, char)| {
            let is_sign = "+-".contains(*c) && (*index == 0 || "eE".contains(last));
            last = *c;
            is_sign || c.is_ascii_alphanumeric() || *c == '.'
        };
        let len = rest.char_indices().take_while(is_part).count();
        let text = &rest[..len];
        let signed = Scalar::parse(CimType::Sint64, text);
        let number =
            signed.or_else(|_| Scalar::parse(CimType::Uint64, text)).or_else(|_| Scalar::parse(CimType::Real64, text));
        let refused =
            |_| QueryError::Expected { expected: "a number", found: text.chars().take(40).collect(), at: self.at };
        let number = number.map_err(refused)?;
        self.at += len;
        Ok(Token::Number(number))
    }
}
