//! How an error is printed: with its causes.

use std::error::Error;
use std::fmt::Write;

/// The error and its causes, separated by colons, each once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        // Libraries that repeat their cause in their own text would make the chain stutter.
        if !text.ends_with(&line) {
            let _ = write!(text, ": {line}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("opening the file")
        }
    }
    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        assert_eq!(chain(&Outer(std::io::Error::other("no"))), "opening the file: no");
    }
}
