//! Keys and spans of keys.

use super::StateError;
use std::fmt;
use std::sync::Arc;

/// Longest key, bytes: keys are paths of short names, and a bound keeps the index pages full of them.
pub const KEY_BYTES_MAX: usize = 512;

/// A key: 1 to [`KEY_BYTES_MAX`] bytes of UTF-8 without NUL, ordered by bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// Checked constructor.
    ///
    /// # Errors
    /// [`StateError::Invalid`] when it is empty, too long or holds a NUL.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, StateError> {
        let text = text.into();
        check(&text, "key")?;
        Ok(Self(text))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn check(text: &str, what: &str) -> Result<(), StateError> {
    if text.is_empty() || text.len() > KEY_BYTES_MAX || text.contains('\0') {
        let start: String = text.chars().take(40).collect();
        return Err(StateError::invalid(format!(
            "{what} {start:?}: 1 to {KEY_BYTES_MAX} bytes without NUL"
        )));
    }
    Ok(())
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Which keys an operation or a watch is about: one, those with a prefix, or those between two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySpan {
    start: Vec<u8>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum End {
    /// The start is the one key.
    One,
    /// Keys below this.
    Below(Vec<u8>),
    /// No end.
    Open,
}

impl KeySpan {
    /// This key alone.
    pub fn one(key: &Key) -> Self {
        Self { start: key.as_bytes().to_vec(), end: End::One }
    }

    /// All keys that begin with `prefix`.
    ///
    /// # Errors
    /// [`StateError::Invalid`] when the prefix could not begin a key.
    pub fn prefix(prefix: &str) -> Result<Self, StateError> {
        check(prefix, "prefix")?;
        let start = prefix.as_bytes().to_vec();
        // UTF-8 has no byte 0xff, so the last byte can always be raised by one.
        let mut end = start.clone();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Ok(Self { start, end: End::Below(end) })
    }

    /// Keys from `start` on and below `end`.
    pub fn between(start: &Key, end: &Key) -> Self {
        Self { start: start.as_bytes().to_vec(), end: End::Below(end.as_bytes().to_vec()) }
    }

    /// Every key of the store.
    pub fn all() -> Self {
        Self { start: Vec::new(), end: End::Open }
    }

    /// What remains of this span after `key`: the next page of a list that ended there.
    #[must_use]
    pub fn after(&self, key: &Key) -> Self {
        let mut start = key.as_bytes().to_vec();
        start.push(0);
        let end = match &self.end {
            // Nothing comes after the only key: a span that ends where it starts.
            End::One => End::Below(start.clone()),
            other => other.clone(),
        };
        Self { start: start.max(self.start.clone()), end }
    }

    /// Whether `key` belongs to it.
    pub fn contains(&self, key: &Key) -> bool {
        self.contains_bytes(key.as_bytes())
    }

    pub(crate) fn contains_bytes(&self, key: &[u8]) -> bool {
        match &self.end {
            End::One => key == self.start,
            End::Below(end) => key >= self.start.as_slice() && key < end.as_slice(),
            End::Open => key >= self.start.as_slice(),
        }
    }

    /// The one key it consists of, if it does.
    pub fn as_one(&self) -> Option<&[u8]> {
        matches!(self.end, End::One).then_some(&self.start)
    }

    /// The first key it may hold, as bytes.
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The first key after it, as bytes; `None` when it has no end or is one key.
    pub fn end(&self) -> Option<&[u8]> {
        match &self.end {
            End::Below(end) => Some(end),
            End::One | End::Open => None,
        }
    }
}

impl From<&Key> for KeySpan {
    fn from(key: &Key) -> Self {
        Self::one(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn bounds_of_keys() {
        assert!(Key::new("").is_err());
        assert!(Key::new("a\0b").is_err());
        assert!(Key::new("x".repeat(KEY_BYTES_MAX)).is_ok());
        assert!(Key::new("x".repeat(KEY_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn spans_hold_what_they_say() {
        let jobs = KeySpan::prefix("job/").unwrap();
        assert!(jobs.contains(&key("job/1")) && jobs.contains(&key("job/")));
        assert!(!jobs.contains(&key("job")) && !jobs.contains(&key("job0")));
        let accent = KeySpan::prefix("é").unwrap();
        assert!(accent.contains(&key("é")) && accent.contains(&key("éa")));
        assert!(!accent.contains(&key("ê")));
        let one = KeySpan::one(&key("a"));
        assert!(one.contains(&key("a")) && !one.contains(&key("ab")));
        assert!(!one.after(&key("a")).contains(&key("a")));
        let rest = jobs.after(&key("job/1"));
        assert!(!rest.contains(&key("job/1")) && rest.contains(&key("job/1a")));
        assert!(rest.contains(&key("job/2")) && !rest.contains(&key("job0")));
        assert!(KeySpan::all().contains(&key("anything")));
    }
}
