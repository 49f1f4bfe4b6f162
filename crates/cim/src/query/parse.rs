//! Understands queries.

use super::lexer::{Token, tokens};
use super::{
    AssociationQuery, Condition, Language, Operand, PropertyPath, QUERY_DEPTH_MAX, Query, QueryError, Select, Sign,
};
use crate::name::Name;
use crate::path::ObjectPath;
use crate::value::Scalar;

pub fn query(text: &str, language: Language) -> Result<Query, QueryError> {
    let mut parser = Parser::new(text)?;
    let query = match language {
        // A filter is no query, and associations are WMI's idea.
        Language::Fql => return parser.expected("a query"),
        Language::Cql => parser.select().map(Query::Select),
        Language::Wql if parser.takes_word("associators") => parser.association(true).map(Query::Associators),
        Language::Wql if parser.takes_word("references") => parser.association(false).map(Query::References),
        Language::Wql => parser.select().map(Query::Select),
    }?;
    parser.end()?;
    Ok(query)
}

pub fn condition(text: &str) -> Result<Condition, QueryError> {
    let mut parser = Parser::new(text)?;
    let condition = parser.any_of(0)?;
    parser.end()?;
    Ok(condition)
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
}

type Parsed<T> = Result<T, QueryError>;

impl Parser {
    fn new(text: &str) -> Parsed<Self> {
        Ok(Parser { tokens: tokens(text)?, next: 0 })
    }

    /// The last token is the end, and nothing goes beyond it.
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn advance(&mut self) -> Token {
        let token = self.peek().clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn expected<T>(&self, expected: &'static str) -> Parsed<T> {
        let (at, found) = &self.tokens[self.next];
        Err(QueryError::Expected { expected, found: found.shown(), at: *at })
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_there = self.is_word(word);
        if is_there {
            self.advance();
        }
        is_there
    }

    fn takes_sign(&mut self, sign: &str) -> bool {
        let is_there = matches!(self.peek(), Token::Sign(found) if *found == sign);
        if is_there {
            self.advance();
        }
        is_there
    }

    fn word(&mut self, word: &'static str) -> Parsed<()> {
        if self.takes_word(word) { Ok(()) } else { self.expected(word) }
    }

    fn end(&mut self) -> Parsed<()> {
        if *self.peek() == Token::End { Ok(()) } else { self.expected("the end") }
    }

    /// A name, in quotes or not.
    fn name(&mut self) -> Parsed<Name> {
        let name = match self.peek() {
            Token::Word(text) | Token::Text(text) => Name::parse(text).ok(),
            _ => None,
        };
        match name {
            Some(name) => {
                self.advance();
                Ok(name)
            }
            None => self.expected("a name"),
        }
    }

    fn select(&mut self) -> Parsed<Select> {
        self.word("select")?;
        let mut properties = None;
        if !self.takes_sign("*") {
            let mut named = vec![self.property()?];
            while self.takes_sign(",") {
                named.push(self.property()?);
            }
            properties = Some(named);
        }
        self.word("from")?;
        let class = self.name()?;
        let within = if self.takes_word("within") { Some(self.seconds()?) } else { None };
        let condition = if self.takes_word("where") { Some(self.any_of(0)?) } else { None };
        let mut select = Select { properties, class, condition, within };
        select.drop_class_names();
        Ok(select)
    }

    fn seconds(&mut self) -> Parsed<f64> {
        let seconds = match self.peek() {
            Token::Number(number) => number.as_real().or(number.as_integer().map(|n| n as f64)),
            _ => None,
        };
        match seconds.filter(|seconds| *seconds >= 0.0) {
            Some(seconds) => {
                self.advance();
                Ok(seconds)
            }
            None => self.expected("seconds"),
        }
    }

    fn property(&mut self) -> Parsed<PropertyPath> {
        let Token::Word(_) = self.peek() else { return self.expected("a property") };
        let mut names = vec![self.name()?];
        while self.takes_sign(".") {
            if names.len() == QUERY_DEPTH_MAX {
                return Err(QueryError::TooDeep);
            }
            // CQL may say of which class an embedded instance is: `SourceInstance.CIM_X::Name`.
            let mut name = self.name()?;
            if self.takes_sign("::") {
                name = self.name()?;
            }
            names.push(name);
        }
        Ok(PropertyPath(names))
    }

    fn any_of(&mut self, depth: usize) -> Parsed<Condition> {
        let mut all = vec![self.all_of(depth)?];
        while self.takes_word("or") {
            all.push(self.all_of(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Condition::Or(all) })
    }

    fn all_of(&mut self, depth: usize) -> Parsed<Condition> {
        let mut all = vec![self.negated(depth)?];
        while self.takes_word("and") {
            all.push(self.negated(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Condition::And(all) })
    }

    fn negated(&mut self, depth: usize) -> Parsed<Condition> {
        if depth > QUERY_DEPTH_MAX {
            return Err(QueryError::TooDeep);
        }
        if self.takes_word("not") {
            return self.negated(depth + 1).map(|condition| Condition::Not(Box::new(condition)));
        }
        if !self.takes_sign("(") {
            return self.comparison();
        }
        let condition = self.any_of(depth + 1)?;
        if self.takes_sign(")") { Ok(condition) } else { self.expected("')'") }
    }

    fn comparison(&mut self) -> Parsed<Condition> {
        let left = self.operand()?;
        if let Operand::Property(path) = &left
            && let Some(condition) = self.of_property(path)?
        {
            return Ok(condition);
        }
        let sign = self.sign()?;
        if let Operand::Property(path) = &left
            && self.takes_word("null")
        {
            return null_comparison(path.clone(), sign).map_or_else(|| self.expected("a value"), Ok);
        }
        let right = self.operand()?;
        Ok(Condition::Compare { left, sign, right })
    }

    /// Conditions that only a property can meet.
    fn of_property(&mut self, path: &PropertyPath) -> Parsed<Option<Condition>> {
        if self.takes_word("is") {
            let is_negated = self.takes_word("not");
            self.word("null")?;
            return Ok(Some(negated_if(is_negated, Condition::IsNull(path.clone()))));
        }
        let is_negated = self.takes_word("not");
        if self.takes_word("like") {
            return match self.advance() {
                Token::Text(pattern) => Ok(Some(negated_if(is_negated, Condition::Like(path.clone(), pattern)))),
                _ => self.expected("a pattern in quotes"),
            };
        }
        if self.takes_word("isa") {
            let is_this = path.0.iter().all(|name| name.is("__this"));
            let class = self.name()?;
            return Ok(Some(negated_if(is_negated, Condition::IsA((!is_this).then(|| path.clone()), class))));
        }
        if is_negated { self.expected("LIKE or ISA") } else { Ok(None) }
    }

    fn sign(&mut self) -> Parsed<Sign> {
        let sign = match self.peek() {
            Token::Sign("=") => Sign::Equal,
            Token::Sign("<>" | "!=") => Sign::NotEqual,
            Token::Sign("<") => Sign::Less,
            Token::Sign("<=") => Sign::LessOrEqual,
            Token::Sign(">") => Sign::Greater,
            Token::Sign(">=") => Sign::GreaterOrEqual,
            _ => return self.expected("a comparison"),
        };
        self.advance();
        Ok(sign)
    }

    fn operand(&mut self) -> Parsed<Operand> {
        match self.peek() {
            Token::Text(_) | Token::Number(_) => match self.advance() {
                Token::Text(text) => Ok(Operand::Constant(Scalar::String(text))),
                Token::Number(number) => Ok(Operand::Constant(number)),
                _ => self.expected("a value"),
            },
            Token::Word(word) if word.eq_ignore_ascii_case("true") => self.constant(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => self.constant(false),
            Token::Word(_) => self.property().map(Operand::Property),
            _ => self.expected("a property or a value"),
        }
    }

    fn constant(&mut self, value: bool) -> Parsed<Operand> {
        self.advance();
        Ok(Operand::Constant(Scalar::Boolean(value)))
    }

    fn association(&mut self, is_associators: bool) -> Parsed<AssociationQuery> {
        self.word("of")?;
        let Token::Braced(path) = self.advance() else { return self.expected("a path in braces") };
        let mut query = AssociationQuery {
            source: ObjectPath::parse(&path)?,
            association_class: None,
            result_class: None,
            role: None,
            result_role: None,
            classes_only: false,
        };
        if self.takes_word("where") {
            while *self.peek() != Token::End {
                self.association_clause(is_associators, &mut query)?;
            }
        }
        Ok(query)
    }

    /// `Word = name`, or a word by itself.
    fn association_clause(&mut self, is_associators: bool, query: &mut AssociationQuery) -> Parsed<()> {
        if self.takes_word("classdefsonly") || self.takes_word("schemaonly") {
            query.classes_only = true;
            return Ok(());
        }
        if self.takes_word("keysonly") || self.takes_word("and") {
            return Ok(());
        }
        let slot = if self.takes_word("resultclass") {
            &mut query.result_class
        } else if self.takes_word("role") {
            &mut query.role
        } else if is_associators && self.takes_word("assocclass") {
            &mut query.association_class
        } else if is_associators && self.takes_word("resultrole") {
            &mut query.result_role
        } else {
            return self.expected("AssocClass, ResultClass, Role, ResultRole or ClassDefsOnly");
        };
        if !self.takes_sign("=") {
            return self.expected("'='");
        }
        *slot = Some(self.name()?);
        Ok(())
    }
}

impl Select {
    /// `Class.Property` says no more than `Property`.
    fn drop_class_names(&mut self) {
        let class = self.class.clone();
        let shorten = |path: &mut PropertyPath| {
            if path.0.len() > 1 && path.0[0] == class {
                path.0.remove(0);
            }
        };
        self.properties.iter_mut().flatten().for_each(shorten);
        if let Some(condition) = &mut self.condition {
            condition.each_property(&shorten);
        }
    }
}

impl Condition {
    fn each_property(&mut self, change: &impl Fn(&mut PropertyPath)) {
        match self {
            Condition::And(all) | Condition::Or(all) => all.iter_mut().for_each(|one| one.each_property(change)),
            Condition::Not(one) => one.each_property(change),
            Condition::Compare { left, right, .. } => [left, right].into_iter().for_each(|side| {
                if let Operand::Property(path) = side {
                    change(path);
                }
            }),
            Condition::Like(path, _) | Condition::IsNull(path) => change(path),
            Condition::IsA(path, _) => path.iter_mut().for_each(change),
        }
    }
}

fn negated_if(is_negated: bool, condition: Condition) -> Condition {
    if is_negated { Condition::Not(Box::new(condition)) } else { condition }
}

/// WMI takes `= NULL` for `IS NULL`.
fn null_comparison(path: PropertyPath, sign: Sign) -> Option<Condition> {
    match sign {
        Sign::Equal => Some(Condition::IsNull(path)),
        Sign::NotEqual => Some(negated_if(true, Condition::IsNull(path))),
        _ => None,
    }
}
