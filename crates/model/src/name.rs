//! Names that people give: lower-case DNS labels, so that they can become host names, file names and key
//! segments without escaping.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: a DNS label (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {text:?} is not valid: 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter \
     and ending with a letter or digit"
)]
pub struct NameError {
    what: &'static str,
    text: String,
}

pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            bytes.len() <= NAME_BYTES_MAX
                && first.is_ascii_lowercase()
                && *last != b'-'
                && bytes.iter().all(inner)
        }
        _ => false,
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Box<str>);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_label(text) {
                    Ok(Self(text.into()))
                } else {
                    // A hostile name must not become a hostile log line.
                    let text = text.chars().take(80).collect();
                    Err(NameError { what: $what, text })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.into()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A project: the tenant that owns services, images, machines and jobs.
    ProjectName,
    "project"
);
name!(
    /// A service, unique within its project.
    ServiceName,
    "service"
);
name!(
    /// A node: one host that runs machines.
    NodeName,
    "node"
);
name!(
    /// An image, unique within its project.
    ImageName,
    "image"
);

name!(
    /// A network, unique within its project.
    NetworkName,
    "network"
);
name!(
    /// A group of firewall rules, unique within its project.
    GroupName,
    "group"
);

impl Default for NetworkName {
    /// The network that a project has from its beginning.
    fn default() -> Self {
        Self("default".into())
    }
}

impl Default for ProjectName {
    /// The project of those who never made one.
    fn default() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, valid: bool) {
        assert_eq!(text.parse::<ServiceName>().is_ok(), valid, "{text:?}");
    }

    #[test]
    fn names_are_dns_labels() {
        check("search", true);
        check("a", true);
        check("a-9", true);
        check(&"a".repeat(63), true);
        check(&"a".repeat(64), false);
        check("", false);
        check("9a", false);
        check("-a", false);
        check("a-", false);
        check("A", false);
        check("a/b", false);
        check("a.b", false);
        check("ä", false);
    }

    #[test]
    fn a_stored_name_is_checked_when_read() {
        assert!(serde_json::from_str::<NodeName>("\"n1\"").is_ok());
        assert!(serde_json::from_str::<NodeName>("\"../etc\"").is_err());
    }
}
