//! A cloud whose machines are no processes: everything of it is real but the emulator and the guest.

use crate::cloud::Drivers;
use skein_vmm::Driver;
use skein_vmm::testing::{FakeDriver, FakeHost};
use std::sync::Arc;

/// Drivers of the machines that are played on one host.
impl Drivers for FakeHost {
    fn open(&self) -> Arc<dyn Driver> {
        Arc::new(FakeDriver::on(self.clone()))
    }

    fn name(&self) -> &str {
        "played"
    }
}
