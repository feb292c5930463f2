//! Quantities with their unit in the type.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// Why a text or number is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number with a binary unit.
    #[error("{text:?} is not a memory size: a whole number with M (MiB), G (GiB) or nothing (MiB)")]
    Memory {
        /// What was given.
        text: String,
    },
    /// Outside what a machine can have.
    #[error("{mib} MiB of memory is out of range: 8 MiB to 1 TiB")]
    MemoryRange {
        /// What was given, MiB.
        mib: u64,
    },
}

/// Memory of a machine, MiB; 8 to 1,048,576.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemoryMib(NonZeroU32);

impl MemoryMib {
    /// What a unikernel gets unless its image says otherwise.
    pub const DEFAULT: Self = Self(NonZeroU32::new(16).expect("16 is not 0"));

    /// Checked constructor.
    ///
    /// # Errors
    /// [`UnitError::MemoryRange`] outside 8 MiB to 1 TiB.
    pub fn new(mib: u32) -> Result<Self, UnitError> {
        let range = UnitError::MemoryRange { mib: mib.into() };
        if !(8..=1024 * 1024).contains(&mib) {
            return Err(range);
        }
        NonZeroU32::new(mib).map(Self).ok_or(range)
    }

    /// The number of MiB.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0.get() as u64 * 1024 * 1024
    }
}

impl TryFrom<u32> for MemoryMib {
    type Error = UnitError;
    fn try_from(mib: u32) -> Result<Self, UnitError> {
        Self::new(mib)
    }
}

impl From<MemoryMib> for u32 {
    fn from(memory: MemoryMib) -> u32 {
        memory.get()
    }
}

impl FromStr for MemoryMib {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Memory { text: text.chars().take(40).collect() };
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "m" | "mi" | "mib" => 1,
            "g" | "gi" | "gib" => 1024,
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        let mib = number.saturating_mul(factor);
        u32::try_from(mib).map_err(|_| UnitError::MemoryRange { mib }).and_then(Self::new)
    }
}

impl fmt::Display for MemoryMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Processor share, thousandths of one core.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CpuMilli(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<u32>) {
        assert_eq!(text.parse::<MemoryMib>().ok().map(MemoryMib::get), expect, "{text:?}");
    }

    #[test]
    fn memory_is_parsed_with_binary_units() {
        check("16", Some(16));
        check("512M", Some(512));
        check("2G", Some(2048));
        check("2GiB", Some(2048));
        check("7", None);
        check("2048G", None);
        check("99999999999999999999G", None);
        check("1.5G", None);
        check("M", None);
        check("-4M", None);
        check("16K", None);
    }
}
