//! Which QEMU is installed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The oldest QEMU that knows every option this driver uses, and is still in a supported
/// distribution (Ubuntu 22.04).
pub const QEMU_OLDEST: QemuVersion = QemuVersion { major: 6, minor: 2, micro: 0 };

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QemuVersion {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// Patch level.
    pub micro: u16,
}

impl QemuVersion {
    /// From what `--version` prints; `None` when that is not QEMU's.
    pub(crate) fn from_output(output: &str) -> Option<Self> {
        let (_, rest) = output.split_once("QEMU emulator version ")?;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let mut numbers = rest[..end].split('.');
        let mut number = || numbers.next().map(str::parse);
        let major = number()?.ok()?;
        let minor = number()?.ok()?;
        let micro = number().and_then(Result::ok).unwrap_or(0);
        Some(Self { major, minor, micro })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_print_them() {
        let check = |output: &str, expect: Option<&str>| {
            let version = QemuVersion::from_output(output).map(|version| version.to_string());
            assert_eq!(version.as_deref(), expect, "{output}");
        };
        check(
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright",
            Some("7.2.22"),
        );
        check("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n", Some("10.0.2"));
        check("QEMU emulator version 9.2.50 (v9.2.0-1-gabc)\n", Some("9.2.50"));
        check("QEMU emulator version 8.2\n", Some("8.2.0"));
        check("GNU bash, version 5.2\n", None);
        check("QEMU emulator version x\n", None);
        check("", None);
        assert!(QemuVersion { major: 7, minor: 2, micro: 0 } > QEMU_OLDEST);
        assert!(QemuVersion { major: 5, minor: 2, micro: 9 } < QEMU_OLDEST);
    }
}
