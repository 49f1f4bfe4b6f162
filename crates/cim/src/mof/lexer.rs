//! Cuts MOF into words, numbers, texts and signs.

use std::sync::Arc;

use super::{MofError, MofProblem, Place};
use crate::name::{Name, is_name_part, is_name_start};

/// Longest text of a number; no type needs more.
const NUMBER_LEN_MAX: usize = 128;

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    Word(Name),
    Alias(Name),
    Text(String),
    Char(char),
    Integer(i128),
    Real(f64),
    Sign(char),
    Pragma,
    End,
}

impl Token {
    /// How an error calls it.
    pub fn shown(&self) -> String {
        match self {
            Token::Word(name) => name.to_string(),
            Token::Alias(name) => format!("${name}"),
            Token::Text(_) => "a text".into(),
            Token::Char(_) => "a character".into(),
            Token::Integer(n) => n.to_string(),
            Token::Real(n) => n.to_string(),
            Token::Sign(sign) => format!("{sign:?}"),
            Token::Pragma => "#pragma".into(),
            Token::End => "the end".into(),
        }
    }
}

pub struct Lexer<'a> {
    rest: &'a str,
    file: Arc<str>,
    line: u32,
    column: u32,
}

impl<'a> Lexer<'a> {
    pub fn new(file: &str, text: &'a str) -> Self {
        let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
        Lexer { rest, file: file.into(), line: 1, column: 1 }
    }

    pub fn place(&self) -> Place {
        Place { file: self.file.clone(), line: self.line, column: self.column }
    }

    pub fn error(&self, problem: MofProblem) -> MofError {
        MofError { place: self.place(), problem }
    }

    /// Skips spaces and comments, and gives the next token with its place.
    pub fn next(&mut self) -> Result<(Place, Token), MofError> {
        self.skip()?;
        let place = self.place();
        let token = self.token().map_err(|problem| MofError { place: place.clone(), problem })?;
        Ok((place, token))
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        (self.line, self.column) = if c == '\n' { (self.line + 1, 1) } else { (self.line, self.column + 1) };
        Some(c)
    }

    fn take_while(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let all = self.rest;
        while self.peek().is_some_and(&fits) {
            self.take();
        }
        &all[..all.len() - self.rest.len()]
    }

    fn skip(&mut self) -> Result<(), MofError> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let end =
                    self.rest[2..].find("*/").ok_or_else(|| self.error(MofProblem::Unclosed { what: "comment" }))?;
                let behind = self.rest.len() - (end + 4);
                while self.rest.len() > behind {
                    self.take();
                }
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<Token, MofProblem> {
        match self.peek() {
            None => Ok(Token::End),
            Some('"') => self.quoted('"').map(Token::Text),
            Some('\'') => self.character().map(Token::Char),
            Some('#') => self.pragma(),
            Some('$') => {
                self.take();
                self.name().map(Token::Alias)
            }
            Some(c) if is_name_start(c) => self.name().map(Token::Word),
            Some(c) if c.is_ascii_digit() || "+-.".contains(c) => self.number(),
            Some(c) if "{}[]():;,=".contains(c) => {
                self.take();
                Ok(Token::Sign(c))
            }
            Some(c) => Err(MofProblem::Character(c)),
        }
    }

    fn name(&mut self) -> Result<Name, MofProblem> {
        let word = self.take_while(is_name_part);
        Name::parse(word).map_err(|_| MofProblem::Expected { expected: "a name", found: "something too long".into() })
    }

    fn pragma(&mut self) -> Result<Token, MofProblem> {
        self.take();
        match self.name()?.is("pragma") {
            true => Ok(Token::Pragma),
            false => Err(MofProblem::Character('#')),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, MofProblem> {
        self.take();
        let mut text = String::new();
        loop {
            match self.take() {
                None => return Err(MofProblem::Unclosed { what: "text" }),
                Some('\\') => text.push(self.escaped()?),
                Some(c) if c == quote => return Ok(text),
                Some(c) => text.push(c),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, MofProblem> {
        Ok(match self.take().ok_or(MofProblem::Escape)? {
            'b' => '\u{8}',
            't' => '\t',
            'n' => '\n',
            'f' => '\u{c}',
            'r' => '\r',
            c @ ('"' | '\'' | '\\') => c,
            'x' | 'X' => self.code_point()?,
            _ => return Err(MofProblem::Escape),
        })
    }

    /// One to four hexadecimal digits.
    fn code_point(&mut self) -> Result<char, MofProblem> {
        let digits = self.rest.bytes().take(4).take_while(u8::is_ascii_hexdigit).count();
        let code = u32::from_str_radix(&self.rest[..digits], 16).map_err(|_| MofProblem::Escape)?;
        for _ in 0..digits {
            self.take();
        }
        char::from_u32(code).ok_or(MofProblem::Escape)
    }

    fn character(&mut self) -> Result<char, MofProblem> {
        let text = self.quoted('\'')?;
        let mut chars = text.chars();
        let c = chars.next().filter(|c| chars.next().is_none() && c.len_utf16() == 1);
        c.ok_or(MofProblem::Expected {
            expected: "one character of 16 bits between quotes",
            found: "another text".into(),
        })
    }

    fn number(&mut self) -> Result<Token, MofProblem> {
        let text = self.number_text();
        if text.len() > NUMBER_LEN_MAX {
            return Err(MofProblem::Number);
        }
        let digits = text.trim_start_matches(['+', '-']);
        let is_hex = digits.starts_with("0x") || digits.starts_with("0X");
        if !is_hex && (digits.contains(['.', 'e', 'E'])) {
            let real: f64 = text.parse().map_err(|_| MofProblem::Number)?;
            return if real.is_finite() && digits.contains('.') {
                Ok(Token::Real(real))
            } else {
                Err(MofProblem::Number)
            };
        }
        integer(text).map(Token::Integer).ok_or(MofProblem::Number)
    }

    /// A sign, digits and letters, and signs behind an exponent's letter.
    fn number_text(&mut self) -> &'a str {
        let all = self.rest;
        self.take();
        let mut last = ' ';
        while let Some(c) = self.peek() {
            let is_exponent_sign = "+-".contains(c) && "eE".contains(last);
            if !(c.is_ascii_alphanumeric() || c == '.' || is_exponent_sign) {
                break;
            }
            last = c;
            self.take();
        }
        &all[..all.len() - self.rest.len()]
    }
}

/// Decimal, `0x1F`, `101b` or, behind a zero, octal.
fn integer(text: &str) -> Option<i128> {
    let (is_negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        unsigned(hex, 16)
    } else if let Some(binary) = digits.strip_suffix(['b', 'B']) {
        unsigned(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        unsigned(&digits[1..], 8)
    } else {
        unsigned(digits, 10)
    }?;
    Some(if is_negative { -magnitude } else { magnitude })
}

fn unsigned(digits: &str, radix: u32) -> Option<i128> {
    let is_plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    is_plain.then(|| i128::from_str_radix(digits, radix).ok())?
}
