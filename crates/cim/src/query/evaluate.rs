//! Holds instances against conditions.

use std::cell::Cell;
use std::cmp::Ordering;

use super::{Condition, Language, Operand, PropertyPath, Sign, compare_datetimes};
use crate::datetime::DateTime;
use crate::name::Name;
use crate::path::ObjectPath;
use crate::repository::Repository;
use crate::schema::Instance;
use crate::value::{CimType, Scalar, Value};

/// Steps that one query may take: a comparison is one, and so is a character that is held against a pattern. That is a tenth of a
/// second's work, and enough for sixty comparisons of each of a quarter of a million instances.
const STEPS_MAX: u64 = 1 << 24;

/// Holds the instances of one query against its condition.
#[derive(Debug)]
pub struct Evaluator<'a> {
    repository: &'a Repository,
    language: Language,
    left: Cell<u64>,
}

impl<'a> Evaluator<'a> {
    /// The repository knows which class extends which; the language decides whether case counts.
    pub fn new(repository: &'a Repository, language: Language) -> Self {
        Evaluator { repository, language, left: Cell::new(STEPS_MAX) }
    }

    /// True once the query took more work than is given to one. From then on nothing is selected.
    pub fn is_exhausted(&self) -> bool {
        self.left.get() == 0
    }

    fn spend(&self, steps: usize) -> Option<()> {
        self.left.set(self.left.get().saturating_sub(steps as u64));
        (!self.is_exhausted()).then_some(())
    }

    /// True when the instance meets the condition; not when that cannot be told.
    pub fn selects(&self, condition: &Condition, instance: &Instance) -> bool {
        self.truth(condition, instance) == Some(true)
    }

    /// True, false, or nothing when it cannot be told.
    fn truth(&self, condition: &Condition, instance: &Instance) -> Option<bool> {
        self.spend(1)?;
        match condition {
            Condition::And(all) => fold(all.iter().map(|one| self.truth(one, instance)), false),
            Condition::Or(all) => fold(all.iter().map(|one| self.truth(one, instance)), true),
            Condition::Not(one) => self.truth(one, instance).map(|truth| !truth),
            Condition::Compare { left, sign, right } => self.compare(left, *sign, right, instance),
            Condition::Like(path, pattern) => self.like(path, pattern, instance),
            Condition::IsNull(path) => Some(value_at(path, instance).is_none_or(|value| value.is_null())),
            Condition::IsA(path, class) => self.is_a(path.as_ref(), class, instance),
        }
    }

    fn is_a(&self, path: Option<&PropertyPath>, class: &Name, instance: &Instance) -> Option<bool> {
        let Some(path) = path else { return Some(self.repository.is_a(&instance.class, class)) };
        let value = value_at(path, instance)?;
        value.as_instance().map(|embedded| self.repository.is_a(&embedded.class, class))
    }

    fn compare(&self, left: &Operand, sign: Sign, right: &Operand, instance: &Instance) -> Option<bool> {
        let (left, right) = (scalar(left, instance)?, scalar(right, instance)?);
        if let (Scalar::Reference(_), _) | (_, Scalar::Reference(_)) = (&left, &right) {
            let same = path(&left)?.matches(&path(&right)?);
            return match sign {
                Sign::Equal => Some(same),
                Sign::NotEqual => Some(!same),
                _ => None,
            };
        }
        let order = self.order(&left, &right)?;
        Some(match sign {
            Sign::Equal => order.is_eq(),
            Sign::NotEqual => order.is_ne(),
            Sign::Less => order.is_lt(),
            Sign::LessOrEqual => order.is_le(),
            Sign::Greater => order.is_gt(),
            Sign::GreaterOrEqual => order.is_ge(),
        })
    }

    fn order(&self, left: &Scalar, right: &Scalar) -> Option<Ordering> {
        let ordered = |cim_type| {
            let (left, right) = (as_type(left, cim_type)?, as_type(right, cim_type)?);
            order_alike(&left, &right)
        };
        let either_is = |cim_type| left.cim_type() == cim_type || right.cim_type() == cim_type;
        if either_is(CimType::Datetime) {
            return ordered(CimType::Datetime);
        }
        if either_is(CimType::Boolean) {
            return ordered(CimType::Boolean);
        }
        if left.cim_type().is_numeric() || right.cim_type().is_numeric() {
            return order_numbers(left, right);
        }
        let (left, right) = (left.text()?, right.text()?);
        Some(match self.language {
            Language::Wql => left.to_lowercase().cmp(&right.to_lowercase()),
            _ => left.cmp(&right),
        })
    }

    fn like(&self, path: &PropertyPath, pattern: &str, instance: &Instance) -> Option<bool> {
        let value = value_at(path, instance)?;
        let text = value.as_scalar()?.text()?;
        match self.language {
            Language::Wql => self.is_like(&text.to_lowercase(), &pattern.to_lowercase()),
            _ => self.is_like(&text, pattern),
        }
    }
}

impl Evaluator<'_> {
    /// Remembers only the last `%`, so it cannot take longer than text times pattern.
    fn is_like(&self, text: &str, pattern: &str) -> Option<bool> {
        let (text, parts): (Vec<char>, Vec<Part>) = (text.chars().collect(), pattern_parts(pattern));
        self.spend(text.len() + parts.len())?;
        let (mut at, mut part) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        loop {
            self.spend(1)?;
            match (text.get(at), parts.get(part)) {
                (_, Some(Part::Anything)) => {
                    part += 1;
                    retry = Some((at, part));
                }
                (Some(c), Some(wanted)) if wanted.fits(*c) => (at, part) = (at + 1, part + 1),
                (None, None) => return Some(true),
                _ => {
                    let Some((from, behind)) = retry.filter(|(from, _)| *from < text.len()) else { return Some(false) };
                    retry = Some((from + 1, behind));
                    (at, part) = (from + 1, behind);
                }
            }
        }
    }
}

/// One `decisive` decides; without it, what cannot be told makes the whole untold.
fn fold(truths: impl Iterator<Item = Option<bool>>, decisive: bool) -> Option<bool> {
    let mut whole = Some(!decisive);
    for truth in truths {
        match truth {
            Some(truth) if truth == decisive => return Some(decisive),
            None => whole = None,
            Some(_) => {}
        }
    }
    whole
}

/// The value at the end of a path through embedded instances. A class's name can be asked for as WMI does.
fn value_at(path: &PropertyPath, instance: &Instance) -> Option<Value> {
    let (last, through) = path.0.split_last()?;
    let mut instance = instance;
    for name in through {
        instance = instance.get(name.as_str()).as_instance()?;
    }
    if last.is("__class") {
        return Some(Value::from(instance.class.as_str()));
    }
    Some(instance.get(last.as_str()).clone())
}

fn scalar(operand: &Operand, instance: &Instance) -> Option<Scalar> {
    match operand {
        Operand::Constant(constant) => Some(constant.clone()),
        Operand::Property(path) => value_at(path, instance)?.as_scalar().cloned(),
    }
}

fn path(scalar: &Scalar) -> Option<ObjectPath> {
    match scalar {
        Scalar::Reference(path) => Some((**path).clone()),
        Scalar::String(text) => ObjectPath::parse(text).ok(),
        _ => None,
    }
}

fn as_type(scalar: &Scalar, cim_type: CimType) -> Option<Scalar> {
    match (scalar, cim_type) {
        (Scalar::String(text), CimType::Datetime) => DateTime::parse_any(text).ok().map(Scalar::Datetime),
        (other, _) => other.clone().convert(cim_type).ok(),
    }
}

fn order_alike(left: &Scalar, right: &Scalar) -> Option<Ordering> {
    match (left, right) {
        (Scalar::Datetime(a), Scalar::Datetime(b)) => compare_datetimes(a, b),
        (Scalar::Boolean(a), Scalar::Boolean(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

/// Texts that are numbers count as such.
fn order_numbers(left: &Scalar, right: &Scalar) -> Option<Ordering> {
    if let (Some(a), Some(b)) = (integer(left), integer(right)) {
        return Some(a.cmp(&b));
    }
    real(left)?.partial_cmp(&real(right)?)
}

fn integer(scalar: &Scalar) -> Option<i128> {
    scalar.as_integer().or_else(|| crate::value::parse_integer(scalar.as_str()?))
}

fn real(scalar: &Scalar) -> Option<f64> {
    let parsed = || Scalar::parse(CimType::Real64, scalar.as_str()?).ok()?.as_real();
    scalar.as_real().or_else(|| scalar.as_integer().map(|n| n as f64)).or_else(parsed)
}

/// One step of a pattern.
#[derive(Debug, PartialEq)]
enum Part {
    Anything,
    One,
    Exactly(char),
    OneOf { ranges: Vec<(char, char)>, is_negated: bool },
}

impl Part {
    fn fits(&self, c: char) -> bool {
        match self {
            Part::Anything => false,
            Part::One => true,
            Part::Exactly(wanted) => *wanted == c,
            Part::OneOf { ranges, is_negated } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)) != *is_negated
            }
        }
    }
}

fn pattern_parts(pattern: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (c, rest.find(']')) {
            ('%', _) => parts.push(Part::Anything),
            ('_', _) => parts.push(Part::One),
            ('[', Some(end)) => {
                parts.push(one_of(&rest[..end]));
                rest = &rest[end + 1..];
            }
            (c, _) => parts.push(Part::Exactly(c)),
        }
    }
    parts
}

/// `a-f`, `xyz` or `^a`, what stands between brackets.
fn one_of(text: &str) -> Part {
    let (is_negated, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
    let chars: Vec<char> = text.chars().collect();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let is_range = chars.get(at + 1).is_some_and(|c| "-=".contains(*c)) && at + 2 < chars.len();
        ranges.push((chars[at], if is_range { chars[at + 2] } else { chars[at] }));
        at += if is_range { 3 } else { 1 };
    }
    Part::OneOf { ranges, is_negated }
}
