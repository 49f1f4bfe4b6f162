//! Understands MOF, declaration by declaration.

use super::lexer::{Lexer, Token};
use super::{
    ClassLiteral, DECLARATIONS_MAX, Declaration, ELEMENTS_MAX, InstanceLiteral, Literal, MOF_DEPTH_MAX, MOF_LEN_MAX,
    MethodLiteral, MofError, MofProblem, Place, PropertyLiteral, QualifierLiteral, QualifierUse,
};
use crate::name::Name;
use crate::schema::{Flavors, Instance, Kind, MEMBERS_MAX, Scopes};
use crate::value::CimType;

/// Reads a text that includes nothing.
pub fn parse(text: &str) -> Result<Vec<Declaration>, MofError> {
    parse_files(&[("", text)], "")
}

/// Reads one of several files, and those it includes.
pub fn parse_files(files: &[(&str, &str)], first: &str) -> Result<Vec<Declaration>, MofError> {
    let mut declarations = Vec::new();
    let mut left = MOF_LEN_MAX;
    read_file(files, first, 0, &mut left, &mut declarations)?;
    Ok(declarations)
}

/// Reads a text that is one instance, as clients send it; its values have the types they have by themselves.
pub fn parse_instance(text: &str) -> Result<Instance, MofError> {
    let mut parser = Parser::new("", text)?;
    while parser.token == Token::Pragma {
        parser.pragma()?;
    }
    let place = parser.place.clone();
    let instance = parser.instance(0)?;
    parser.expect_end()?;
    instance.infer().map_err(|problem| MofError { place, problem })
}

fn read_file(
    files: &[(&str, &str)],
    name: &str,
    depth: usize,
    left: &mut usize,
    declarations: &mut Vec<Declaration>,
) -> Result<(), MofError> {
    let wanted = name.replace('\\', "/");
    let found = files.iter().find(|(known, _)| known.replace('\\', "/") == wanted);
    let start = Place { file: name.into(), line: 1, column: 1 };
    let at_start = |problem| MofError { place: start.clone(), problem };
    let (_, text) = found.ok_or_else(|| at_start(MofProblem::Include { name: name.into() }))?;
    *left = left.checked_sub(text.len()).ok_or_else(|| at_start(MofProblem::TooLong))?;
    if depth > MOF_DEPTH_MAX {
        return Err(at_start(MofProblem::TooDeep));
    }
    let mut parser = Parser::new(name, text)?;
    while parser.token != Token::End {
        let place = parser.place.clone();
        match parser.declaration()? {
            Declaration::Pragma { name, argument } if name.eq_ignore_ascii_case("include") => {
                read_file(files, &argument, depth + 1, left, declarations)?;
            }
            declaration => declarations.push(declaration),
        }
        if declarations.len() > DECLARATIONS_MAX {
            return Err(MofError { place, problem: MofProblem::TooMany { what: "declarations" } });
        }
    }
    Ok(())
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token,
    place: Place,
}

type Parsed<T> = Result<T, MofError>;

impl<'a> Parser<'a> {
    fn new(file: &str, text: &'a str) -> Parsed<Self> {
        let mut lexer = Lexer::new(file, text);
        if text.len() > MOF_LEN_MAX {
            return Err(lexer.error(MofProblem::TooLong));
        }
        let (place, token) = lexer.next()?;
        Ok(Parser { lexer, token, place })
    }

    fn advance(&mut self) -> Parsed<Token> {
        let (place, token) = self.lexer.next()?;
        self.place = place;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn fail<T>(&self, problem: MofProblem) -> Parsed<T> {
        Err(MofError { place: self.place.clone(), problem })
    }

    fn expected<T>(&self, expected: &'static str) -> Parsed<T> {
        self.fail(MofProblem::Expected { expected, found: self.token.shown() })
    }

    fn takes_sign(&mut self, sign: char) -> Parsed<bool> {
        let is_there = self.token == Token::Sign(sign);
        if is_there {
            self.advance()?;
        }
        Ok(is_there)
    }

    fn sign(&mut self, sign: char, expected: &'static str) -> Parsed<()> {
        if self.takes_sign(sign)? { Ok(()) } else { self.expected(expected) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(&self.token, Token::Word(name) if name.is(word))
    }

    fn takes_word(&mut self, word: &str) -> Parsed<bool> {
        let is_there = self.is_word(word);
        if is_there {
            self.advance()?;
        }
        Ok(is_there)
    }

    fn word(&mut self, word: &'static str) -> Parsed<()> {
        if self.takes_word(word)? { Ok(()) } else { self.expected(word) }
    }

    fn name(&mut self) -> Parsed<Name> {
        match &self.token {
            Token::Word(name) => {
                let name = name.clone();
                self.advance()?;
                Ok(name)
            }
            _ => self.expected("a name"),
        }
    }

    fn expect_end(&mut self) -> Parsed<()> {
        if self.token == Token::End { Ok(()) } else { self.expected("the end") }
    }

    fn declaration(&mut self) -> Parsed<Declaration> {
        if self.token == Token::Pragma {
            return self.pragma();
        }
        if self.is_word("qualifier") {
            return self.qualifier_declaration().map(Declaration::Qualifier);
        }
        let place = self.place.clone();
        let qualifiers = self.qualifiers()?;
        if self.is_word("class") {
            return self.class(place, qualifiers).map(Declaration::Class);
        }
        if self.is_word("instance") {
            return self.instance(0).map(Declaration::Instance);
        }
        self.expected("a class, an instance, a qualifier or a pragma")
    }

    /// `#pragma name ("argument", …)`; of several arguments the first counts.
    fn pragma(&mut self) -> Parsed<Declaration> {
        self.advance()?;
        let name = self.name()?.to_string();
        let mut arguments = Vec::new();
        if self.takes_sign('(')? {
            while !self.takes_sign(')')? {
                match &self.token {
                    Token::Text(text) => arguments.push(text.clone()),
                    Token::Word(name) => arguments.push(name.to_string()),
                    Token::Sign(',') => {}
                    _ => return self.expected("the argument of a pragma"),
                }
                self.advance()?;
            }
        }
        Ok(Declaration::Pragma { name, argument: arguments.into_iter().next().unwrap_or_default() })
    }

    /// `Qualifier Name : type = value, Scope(…), Flavor(…);`
    fn qualifier_declaration(&mut self) -> Parsed<QualifierLiteral> {
        let place = self.place.clone();
        self.advance()?;
        let name = self.name()?;
        self.sign(':', "':' and a type")?;
        let mut kind = self.kind()?;
        kind.array = self.array_size()?;
        let value = if self.takes_sign('=')? { self.literal(0)? } else { Literal::Null };
        let (mut scopes, mut flavors) = (Scopes::default(), Flavors::default());
        while self.takes_sign(',')? {
            match self.name()? {
                word if word.is("scope") => self.words(|word| scopes.add(word), "a scope")?,
                word if word.is("flavor") => self.words(|word| flavors.add(word), "a flavor")?,
                _ => return self.expected("Scope or Flavor"),
            }
        }
        self.sign(';', "';'")?;
        Ok(QualifierLiteral { place, name, kind, value, scopes, flavors })
    }

    /// Words in parentheses, with commas.
    fn words(&mut self, mut add: impl FnMut(&str) -> bool, expected: &'static str) -> Parsed<()> {
        self.sign('(', "'('")?;
        loop {
            let place = self.place.clone();
            let word = self.name()?;
            if !add(word.as_str()) {
                let problem = MofProblem::Expected { expected, found: word.to_string() };
                return Err(MofError { place, problem });
            }
            if !self.takes_sign(',')? {
                return self.sign(')', "')'");
            }
        }
    }

    fn qualifiers(&mut self) -> Parsed<Vec<QualifierUse>> {
        let mut qualifiers: Vec<QualifierUse> = Vec::new();
        if !self.takes_sign('[')? {
            return Ok(qualifiers);
        }
        loop {
            let place = self.place.clone();
            let name = self.name()?;
            if qualifiers.iter().any(|known| known.name == name) {
                return Err(MofError { place, problem: MofProblem::Twice { name } });
            }
            let value = self.qualifier_value()?;
            let flavors = self.qualifier_flavors()?;
            qualifiers.push(QualifierUse { place, name, value, flavors });
            self.check_count(qualifiers.len(), "qualifiers")?;
            if !self.takes_sign(',')? {
                break;
            }
        }
        self.sign(']', "',' or ']'")?;
        Ok(qualifiers)
    }

    fn qualifier_value(&mut self) -> Parsed<Option<Literal>> {
        if self.takes_sign('(')? {
            let value = self.literal(0)?;
            self.sign(')', "')'")?;
            return Ok(Some(value));
        }
        if self.token == Token::Sign('{') { self.literal(0).map(Some) } else { Ok(None) }
    }

    /// Words behind a colon. Nothing stands between them: a comma already separates the next qualifier.
    fn qualifier_flavors(&mut self) -> Parsed<Flavors> {
        let mut flavors = Flavors::default();
        if !self.takes_sign(':')? {
            return Ok(flavors);
        }
        loop {
            let place = self.place.clone();
            let word = self.name()?;
            if !flavors.add(word.as_str()) {
                let problem = MofProblem::Expected { expected: "a flavor", found: word.to_string() };
                return Err(MofError { place, problem });
            }
            if !matches!(self.token, Token::Word(_)) {
                return Ok(flavors);
            }
        }
    }

    fn class(&mut self, place: Place, qualifiers: Vec<QualifierUse>) -> Parsed<ClassLiteral> {
        self.word("class")?;
        let name = self.name()?;
        self.alias()?;
        let superclass = if self.takes_sign(':')? { Some(self.name()?) } else { None };
        let (properties, methods) = (Vec::new(), Vec::new());
        let mut class = ClassLiteral { place, qualifiers, name, superclass, properties, methods };
        self.sign('{', "'{'")?;
        while !self.takes_sign('}')? {
            self.member(&mut class)?;
        }
        self.sign(';', "';' behind a class")?;
        Ok(class)
    }

    fn member(&mut self, class: &mut ClassLiteral) -> Parsed<()> {
        let place = self.place.clone();
        let qualifiers = self.qualifiers()?;
        let mut kind = self.kind()?;
        let name_place = self.place.clone();
        let name = self.name()?;
        let is_known =
            class.properties.iter().any(|p| p.name == name) || class.methods.iter().any(|method| method.name == name);
        if is_known {
            return Err(MofError { place: name_place, problem: MofProblem::Twice { name } });
        }
        if self.takes_sign('(')? {
            let parameters = self.parameters()?;
            self.sign(';', "';' behind a method")?;
            class.methods.push(MethodLiteral { place, qualifiers, returns: kind, name, parameters });
        } else {
            kind.array = self.array_size()?;
            let default = if self.takes_sign('=')? { Some(self.literal(0)?) } else { None };
            self.sign(';', "';' behind a property")?;
            class.properties.push(PropertyLiteral { place, qualifiers, kind, name, default });
        }
        self.check_count(class.properties.len().max(class.methods.len()), "members")
    }

    fn parameters(&mut self) -> Parsed<Vec<PropertyLiteral>> {
        let mut parameters: Vec<PropertyLiteral> = Vec::new();
        if self.takes_sign(')')? {
            return Ok(parameters);
        }
        loop {
            let place = self.place.clone();
            let qualifiers = self.qualifiers()?;
            let mut kind = self.kind()?;
            let name_place = self.place.clone();
            let name = self.name()?;
            if parameters.iter().any(|known| known.name == name) {
                return Err(MofError { place: name_place, problem: MofProblem::Twice { name } });
            }
            kind.array = self.array_size()?;
            parameters.push(PropertyLiteral { place, qualifiers, kind, name, default: None });
            self.check_count(parameters.len(), "parameters")?;
            if !self.takes_sign(',')? {
                self.sign(')', "',' or ')'")?;
                return Ok(parameters);
            }
        }
    }

    fn check_count(&self, count: usize, what: &'static str) -> Parsed<()> {
        if count > MEMBERS_MAX { self.fail(MofProblem::TooMany { what }) } else { Ok(()) }
    }

    /// A type: its name, or a class and `REF`.
    fn kind(&mut self) -> Parsed<Kind> {
        let (place, name) = (self.place.clone(), self.name()?);
        if self.takes_word("ref")? {
            return Ok(Kind::reference(name));
        }
        let base = CimType::parse(name.as_str()).filter(|base| *base != CimType::Reference);
        let problem = MofProblem::Expected { expected: "a type, or a class and REF", found: name.to_string() };
        base.map(Kind::scalar).ok_or(MofError { place, problem })
    }

    fn array_size(&mut self) -> Parsed<Option<Option<u32>>> {
        if !self.takes_sign('[')? {
            return Ok(None);
        }
        let size = match self.token {
            Token::Integer(n) => match u32::try_from(n) {
                Ok(size @ 1..) => Some(size),
                _ => return self.fail(MofProblem::Number),
            },
            _ => None,
        };
        if size.is_some() {
            self.advance()?;
        }
        self.sign(']', "']'")?;
        Ok(Some(size))
    }

    fn alias(&mut self) -> Parsed<Option<Name>> {
        if !self.takes_word("as")? {
            return Ok(None);
        }
        let Token::Alias(name) = &self.token else { return self.expected("an alias") };
        let name = name.clone();
        self.advance()?;
        Ok(Some(name))
    }

    /// `instance of X as $Alias { [qualifiers] Name = value; … };`
    fn instance(&mut self, depth: usize) -> Parsed<InstanceLiteral> {
        let place = self.place.clone();
        let instance = self.instance_value(place, depth)?;
        // Some writers leave it out at the very end.
        if self.token != Token::End {
            self.sign(';', "';' behind an instance")?;
        }
        Ok(instance)
    }

    fn instance_value(&mut self, place: Place, depth: usize) -> Parsed<InstanceLiteral> {
        if depth > MOF_DEPTH_MAX {
            return self.fail(MofProblem::TooDeep);
        }
        self.word("instance")?;
        self.word("of")?;
        let class = self.name()?;
        let alias = self.alias()?;
        let mut properties: Vec<(Place, Name, Literal)> = Vec::new();
        self.sign('{', "'{'")?;
        while !self.takes_sign('}')? {
            self.qualifiers()?;
            let place = self.place.clone();
            let name = self.name()?;
            if properties.iter().any(|(_, known, _)| *known == name) {
                return Err(MofError { place, problem: MofProblem::Twice { name } });
            }
            self.sign('=', "'='")?;
            let value = self.literal(depth)?;
            self.sign(';', "';' behind a value")?;
            properties.push((place, name, value));
            self.check_count(properties.len(), "properties")?;
        }
        Ok(InstanceLiteral { place, class, alias, properties })
    }

    fn literal(&mut self, depth: usize) -> Parsed<Literal> {
        if !self.takes_sign('{')? {
            return self.single(depth);
        }
        let mut elements = Vec::new();
        if self.takes_sign('}')? {
            return Ok(Literal::Array(elements));
        }
        loop {
            elements.push(self.single(depth)?);
            if elements.len() > ELEMENTS_MAX {
                return self.fail(MofProblem::TooMany { what: "elements" });
            }
            if !self.takes_sign(',')? {
                self.sign('}', "',' or '}'")?;
                return Ok(Literal::Array(elements));
            }
        }
    }

    fn single(&mut self, depth: usize) -> Parsed<Literal> {
        if self.is_word("instance") {
            let place = self.place.clone();
            return self.instance_value(place, depth + 1).map(|instance| Literal::Instance(Box::new(instance)));
        }
        let literal = match &self.token {
            Token::Integer(n) => Literal::Integer(*n),
            Token::Real(n) => Literal::Real(*n),
            Token::Char(c) => Literal::Char(*c),
            Token::Alias(name) => Literal::Alias(name.clone()),
            Token::Word(word) if word.is("true") => Literal::Boolean(true),
            Token::Word(word) if word.is("false") => Literal::Boolean(false),
            Token::Word(word) if word.is("null") => Literal::Null,
            Token::Text(_) => return self.text(),
            _ => return self.expected("a value"),
        };
        self.advance()?;
        Ok(literal)
    }

    /// Texts that follow each other are one.
    fn text(&mut self) -> Parsed<Literal> {
        let mut whole = String::new();
        while let Token::Text(text) = &self.token {
            whole.push_str(text);
            self.advance()?;
        }
        Ok(Literal::Text(whole))
    }
}
