//! What is wrong with a scenario, and where.

use std::fmt;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A scenario is not usable: the line, what is wrong, what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ScenarioError {
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in the line, from 1, in characters.
    pub column: usize,
    /// Bytes of the file that are meant.
    pub span: Range<usize>,
    /// The line itself.
    pub source_line: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

/// A problem with the value at a path of keys and indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) path: Vec<Key>,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    Name(&'static str),
    At(usize),
}

impl ScenarioError {
    /// Stable code.
    pub const fn code(&self) -> &'static str {
        "SCENARIO_INVALID"
    }

    pub(super) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        Self::new(text, error.span().unwrap_or(0..0), error.message().to_owned())
    }

    pub(crate) fn at_key(text: &str, problem: Problem) -> Self {
        let span = find(text, &problem.path).unwrap_or(0..0);
        Self::new(text, span, problem.message)
    }

    fn new(text: &str, span: Range<usize>, message: String) -> Self {
        let at = (0..=span.start.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        let before = &text[..at.unwrap_or(0)];
        let begins = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[begins..].chars().count() + 1,
            source_line: text[begins..].lines().next().unwrap_or("").to_owned(),
            span,
            message,
        }
    }
}

/// The span of the deepest value on the path that is in the file.
fn find(text: &str, path: &[Key]) -> Option<Range<usize>> {
    let root = DeTable::parse(text).ok()?;
    let mut span = root.span();
    let table = DeValue::Table(root.into_inner());
    let mut here = &table;
    for key in path {
        let next = match (key, here) {
            (Key::Name(name), DeValue::Table(table)) => table.get(*name),
            (Key::At(at), DeValue::Array(values)) => values.get(*at),
            _ => None,
        };
        let Some(next) = next else { break };
        span = next.span();
        here = next.get_ref();
    }
    Some(span)
}
