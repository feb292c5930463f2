//! Where messages go, and who wants which.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest subject or pattern, bytes: NATS takes a whole line of 4 KiB, of which this leaves room for all else.
pub const SUBJECT_BYTES_MAX: usize = 255;

/// Most tokens of a subject: five name a verb of a service on a node in a zone, the rest is for parameters.
const TOKENS_MAX: usize = 16;

/// A text is not a subject or pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a {what}: 1 to 16 tokens of visible ASCII without '*' and '>', parted by '.', at most 255 bytes"
)]
pub struct SubjectError {
    what: &'static str,
    text: String,
}

impl SubjectError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

/// Where a message goes: 1 to 16 tokens, parted by dots. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(Arc<str>);

impl Subject {
    /// Of these tokens, from the general to the particular.
    ///
    /// # Errors
    /// [`SubjectError`] when a token is empty or has a character that is not allowed.
    pub fn of(tokens: &[&str]) -> Result<Self, SubjectError> {
        if tokens.iter().any(|token| token.contains('.')) {
            return Err(SubjectError::new("subject", &tokens.join("|")));
        }
        tokens.join(".").parse()
    }

    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

/// Which subjects a subscriber wants: a subject in which `*` stands for one token and a last `>` for one or more.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether a message to `subject` is wanted.
    pub fn matches(&self, subject: &Subject) -> bool {
        let mut given = subject.tokens();
        for wanted in self.tokens() {
            match (wanted, given.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                (_, _) => return false,
            }
        }
        given.next().is_none()
    }
}

impl From<Subject> for Pattern {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

fn is_token(token: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'*' && b != b'>';
    !token.is_empty() && token.bytes().all(allowed)
}

fn fits(text: &str) -> bool {
    text.len() <= SUBJECT_BYTES_MAX && text.split('.').count() <= TOKENS_MAX
}

impl FromStr for Subject {
    type Err = SubjectError;
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        if fits(text) && text.split('.').all(is_token) {
            Ok(Self(text.into()))
        } else {
            Err(SubjectError::new("subject", text))
        }
    }
}

impl FromStr for Pattern {
    type Err = SubjectError;
    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let body = text.strip_suffix(".>").unwrap_or(text);
        let good = |token: &str| token == "*" || is_token(token);
        if fits(text) && (text == ">" || body.split('.').all(good)) {
            Ok(Self(text.into()))
        } else {
            Err(SubjectError::new("pattern", text))
        }
    }
}

macro_rules! show {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}
show!(Subject);
show!(Pattern);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, subject: &str, expect: bool) {
        let pattern: Pattern = pattern.parse().unwrap();
        let subject: Subject = subject.parse().unwrap();
        assert_eq!(pattern.matches(&subject), expect, "{pattern} {subject}");
    }

    #[test]
    fn patterns_match_by_token() {
        check("a.b.c", "a.b.c", true);
        check("a.b", "a.b.c", false);
        check("a.b.c", "a.b", false);
        check("a.*.c", "a.b.c", true);
        check("a.*", "a", false);
        check("*", "a", true);
        check("*", "a.b", false);
        check("a.>", "a.b.c", true);
        check("a.>", "a", false);
        check(">", "a", true);
        check("*.*.>", "a.b", false);
        check("*.*.>", "a.b.c.d", true);
    }

    #[test]
    fn bad_subjects_and_patterns_are_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a.\u{e9}", "a\n"] {
            assert!(text.parse::<Subject>().is_err(), "{text:?}");
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
        assert!("a.*".parse::<Subject>().is_err());
        assert!("a.>".parse::<Subject>().is_err());
        for text in ["a.>.b", ">.a", "a.b>", "a*"] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
        assert!(["a"; 17].join(".").parse::<Subject>().is_err());
        assert!("a".repeat(256).parse::<Subject>().is_err());
        assert!(Subject::of(&["a.b"]).is_err());
        assert_eq!(Subject::of(&["a", "b"]).unwrap().as_str(), "a.b");
    }
}
