//! Who runs a guest's instructions.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a machine's processor is provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The host's processor, by way of the kernel.
    Kvm,
    /// Emulated: works everywhere, at a tenth of the speed or less.
    Tcg,
}

impl Accel {
    /// As QEMU and the API write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
