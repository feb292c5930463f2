//! What a bench is told.

use crate::error::BenchError;
use camino::Utf8PathBuf;
use skein_vmm::AccelChoice;
use std::fmt;
use std::path::PathBuf;

/// The benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bench {
    /// How fast a machine starts.
    Start,
    /// How many machines a host holds, and what they cost.
    Density,
    /// How fast jobs go through.
    Dispatch,
    /// How fast machines talk, and how fast networks change.
    Net,
    /// How fast the planner simulates and solves.
    Plan,
    /// How fast programs talk on the link.
    Link,
}

impl Bench {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 6] =
        [Self::Start, Self::Density, Self::Dispatch, Self::Net, Self::Plan, Self::Link];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Density => "density",
            Self::Dispatch => "dispatch",
            Self::Net => "net",
            Self::Plan => "plan",
            Self::Link => "link",
        }
    }

    /// How many measurements unless told: starts of each kind, idle machines, pairs of sequential jobs, runs of the planner, or
    /// of each pair of programs.
    pub const fn count_default(self) -> u32 {
        match self {
            Self::Start => 30,
            Self::Density => 200,
            Self::Dispatch => 500,
            Self::Net => 10,
            Self::Plan => 5,
            // The median of seven is not moved by two that were disturbed.
            Self::Link => 7,
        }
    }

    /// How many measurements: those that were asked for, or the default.
    ///
    /// # Errors
    /// [`BenchError::Count`].
    pub(crate) fn count(self, asked: Option<u32>) -> Result<u32, BenchError> {
        let given = asked.unwrap_or(self.count_default());
        let (least, most) = match self {
            Self::Start => (1, 10_000),
            // A bridge has 1,023 ports.
            Self::Density | Self::Net | Self::Plan => (1, 1_000),
            Self::Dispatch => (1, 1_000_000),
            // Half a minute each.
            Self::Link => (1, 100),
        };
        match (least..=most).contains(&given) {
            true => Ok(given),
            false => Err(BenchError::Count { bench: self.name(), given, least, most }),
        }
    }
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A module of an image: its path in the machine, and its file.
#[derive(Debug, Clone)]
pub struct ImageModule {
    /// Path in the machine.
    pub path: String,
    /// Its file.
    pub file: PathBuf,
}

/// The image whose machines are measured. It must answer `POST /` with a status of 2xx; `echo` does.
#[derive(Debug, Clone)]
pub struct BenchImage {
    /// The unikernel, an ELF file with a PVH note.
    pub kernel: PathBuf,
    /// Data modules.
    pub modules: Vec<ImageModule>,
    /// Memory of a machine, MiB; 16 unless given.
    pub memory_mib: Option<u32>,
    /// Requests a machine serves at a time; 1 unless given.
    pub capacity: Option<u32>,
    /// TCP port of its HTTP server; 80 unless given.
    pub port: Option<u16>,
}

/// What a bench is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What machines boot.
    pub image: BenchImage,
    /// How many measurements; the bench's default unless given.
    pub count: Option<u32>,
    /// Who runs the guests' instructions; the same for ours and the baseline.
    pub accel: AccelChoice,
    /// QEMU's program; searched for unless given. The same for ours and the baseline.
    pub qemu: Option<Utf8PathBuf>,
}

/// Where a bench tells how far it is.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);
