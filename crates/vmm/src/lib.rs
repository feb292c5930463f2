//! Virtual machines: QEMU over QMP behind a small [`Driver`] trait, the acceleration probe, and
//! images.
//!
//! ```text
//!  LaunchSpec ──▶ Driver ──▶ Machine (handle) ──▶ ready, stats, console, pause, stop, exit cause
//!                   │            ▲
//!                   │ adopt      │ one supervisor task per machine: QMP, control channel,
//!                   ▼            │ console, serial port, process descriptor
//!               run directory ───┘
//! ```
//!
//! This crate owns QEMU: its command line, its protocol and its processes. It never decides which
//! machine runs, makes no network device (a tap comes in as an open descriptor), and keeps no list
//! of machines. A machine outlives the process that launched it; what is needed to find it again is
//! in its run directory.
//!
//! A guest is hostile, and so is a QEMU that its guest took over: everything they send is bounded
//! in length and rate, they can read no file of another machine, and what QEMU itself may do is
//! settled before it starts (`qemu::spawn`).

mod accel;
mod console;
mod control;
mod driver;
mod exit;
mod image;
mod lines;
mod machine;
mod probe;
mod probe_guest;
mod proc;
mod qemu;
mod qmp;
mod rate;
mod ring;
mod spec;
mod supervise;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use accel::Accel;
pub use console::{
    CONSOLE_FILE_BYTES, CONSOLE_RING_BYTES, Console, ConsoleError, ConsolePiece, ConsoleStream,
    read_log,
};
pub use control::{ControlError, GuestStats, Ready};
pub use driver::{AdoptError, Adopted, Driver, LaunchError};
pub use image::{
    BlobFault, ImageError, ImageFiles, ImageImport, ImageStore, ImportModule, KERNEL_BYTES_MAX,
    KernelError, KernelInfo, MODULES_BYTES_MAX, check_kernel,
};
pub use machine::{
    Grace, LaunchTimes, Machine, MachineState, ReadyError, StopError, StopMeans, StopOutcome,
};
pub use probe::{AccelChoice, ProbeReport, ProbeSource};
pub use probe_guest::TinyGuest;
pub use proc::HostUsage;
pub use qemu::version::{QEMU_OLDEST, QemuVersion};
pub use qemu::{OpenError, QemuConfig, QemuDriver};
pub use qmp::{Qmp, QmpActor, QmpError, QmpEvent};
pub use spec::{
    GuestAddress, GuestConfig, GuestLog, LaunchSpec, MacAddress, MacAddressError, Nic, RunAs,
    SpecError,
};
