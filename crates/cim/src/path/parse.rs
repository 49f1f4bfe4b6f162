//! Reads object paths in every spelling.

use super::{KEYS_MAX, KeyValue, Keys, ObjectPath, PATH_LEN_MAX};
use crate::name::{Name, NameError, Namespace};
use crate::value::parse_integer;

/// A text that is no object path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Longer than [`PATH_LEN_MAX`] bytes.
    #[error("an object path of {len} bytes is too long")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// More keys than [`KEYS_MAX`].
    #[error("more than {KEYS_MAX} keys in an object path")]
    TooManyKeys,
    /// The same key twice.
    #[error("key {key} twice in an object path")]
    Twice {
        /// The key.
        key: Name,
    },
    /// A part of it is no name.
    #[error("bad name in an object path")]
    Name(#[from] NameError),
    /// A value that does not end, or is neither text in quotes nor a number nor a boolean.
    #[error("bad value of a key in an object path, at byte {at}")]
    Value {
        /// Where in the text.
        at: usize,
    },
    /// Something where the end, or a comma, should be.
    #[error("unexpected text in an object path, at byte {at}")]
    Unexpected {
        /// Where in the text.
        at: usize,
    },
}

impl ObjectPath {
    /// Reads a path in any of the spellings of this module's description.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > PATH_LEN_MAX {
            return Err(PathError::TooLong { len: text.len() });
        }
        // Values may hold anything, so what stands before them is looked at by itself.
        let head_len = text.find(['=', '"', '\'']).unwrap_or(text.len());
        let (host, rest) = split_host(&text[..head_len]);
        let (namespace, class_at) = match rest.find(':') {
            Some(colon) => (Some(&rest[..colon]), head_len - rest.len() + colon + 1),
            None => (None, head_len - rest.len()),
        };
        let namespace = namespace.filter(|n| !n.is_empty()).map(Namespace::parse).transpose()?;
        let class_end = text[class_at..head_len].find('.').map_or(head_len, |dot| class_at + dot);
        let class = Name::parse(text[class_at..class_end].trim())?;
        let keys = Reader { text, at: class_end }.keys()?;
        Ok(ObjectPath { host, namespace, class, keys })
    }
}

/// Takes a host off the front: behind a scheme, `//` or `\\`. A dot means this one.
fn split_host(head: &str) -> (Option<String>, &str) {
    let is_scheme =
        |scheme: &&str| !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let behind_scheme = match head.split_once("://") {
        Some((scheme, rest)) if is_scheme(&scheme) => Some(rest),
        _ => head.strip_prefix("//").or_else(|| head.strip_prefix("\\\\")),
    };
    let Some(rest) = behind_scheme else { return (None, head) };
    let end = rest.find(['/', '\\']).unwrap_or(rest.len());
    let host = &rest[..end];
    ((!host.is_empty() && host != ".").then(|| host.to_string()), &rest[end..])
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn keys(mut self) -> Result<Keys, PathError> {
        match self.take() {
            None => Ok(Keys::None),
            Some('=') if self.text[self.at..].trim() == "@" => Ok(Keys::Singleton),
            Some('=') => {
                let value = self.value()?;
                self.end().map(|()| Keys::Single(value))
            }
            Some('.') => self.named(),
            Some(_) => Err(PathError::Unexpected { at: self.at }),
        }
    }

    fn named(mut self) -> Result<Keys, PathError> {
        let mut keys: Vec<(Name, KeyValue)> = Vec::new();
        loop {
            let name = self.name()?;
            if keys.iter().any(|(known, _)| *known == name) {
                return Err(PathError::Twice { key: name });
            }
            if keys.len() == KEYS_MAX {
                return Err(PathError::TooManyKeys);
            }
            let value = self.value()?;
            keys.push((name, value));
            self.skip_spaces();
            match self.take() {
                None => return Ok(Keys::Named(keys)),
                Some(',') => {}
                Some(_) => return Err(PathError::Unexpected { at: self.at }),
            }
        }
    }

    /// A name and the sign behind it.
    fn name(&mut self) -> Result<Name, PathError> {
        let rest = &self.text[self.at..];
        let len = rest.find('=').ok_or(PathError::Unexpected { at: self.at })?;
        let name = Name::parse(rest[..len].trim())?;
        self.at += len + 1;
        Ok(name)
    }

    fn value(&mut self) -> Result<KeyValue, PathError> {
        self.skip_spaces();
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote).map(KeyValue::Text),
            _ => self.bare(),
        }
    }

    /// A backslash takes away the meaning of a quote or a backslash. Before anything else it means itself, because people write
    /// file names into paths as they are.
    fn quoted(&mut self, quote: char) -> Result<String, PathError> {
        let started = self.at;
        self.at += 1;
        let mut value = String::new();
        while let Some(c) = self.take() {
            match c {
                '\\' if self.peek().is_some_and(|next| matches!(next, '\\' | '"' | '\'')) => value.extend(self.take()),
                c if c == quote => return Ok(value),
                c => value.push(c),
            }
        }
        Err(PathError::Value { at: started })
    }

    fn bare(&mut self) -> Result<KeyValue, PathError> {
        let rest = &self.text[self.at..];
        let word = &rest[..rest.find(',').unwrap_or(rest.len())];
        let at = self.at;
        self.at += word.len();
        match word.trim() {
            word if word.eq_ignore_ascii_case("true") => Ok(KeyValue::Boolean(true)),
            word if word.eq_ignore_ascii_case("false") => Ok(KeyValue::Boolean(false)),
            word => parse_integer(word).map(KeyValue::Integer).ok_or(PathError::Value { at }),
        }
    }

    fn end(mut self) -> Result<(), PathError> {
        self.skip_spaces();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(PathError::Unexpected { at: self.at }),
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.take();
        }
    }
}
