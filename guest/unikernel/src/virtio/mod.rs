//! Devices: what is found in the board's virtio-mmio slots, and the queues to talk to them.
//!
//! Transport and virtqueues are those of the `virtio-drivers` crate; its device drivers are not
//! used, because they wait for the device in a loop, interrupt on every transmission, and cannot
//! read a MAC address again.

pub(crate) mod console;
pub(crate) mod network;
mod queue;

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use crate::arch::interrupts::{self, SLOTS};
pub(crate) use queue::{ENTRIES, ReceiveQueue, TransmitQueue};

/// First slot.
const BASE: usize = 0xfeb0_0000;
/// Bytes per slot.
const SLOT_SIZE: usize = 512;
/// Device configuration begins here in a slot.
const CONFIG_OFFSET: usize = 0x100;

const FEATURE_VERSION_1: u64 = 1 << 32;

/// A device in its slot.
pub(crate) struct Device {
    transport: MmioTransport<'static>,
    slot: usize,
}

impl Device {
    /// Resets the device and agrees on features: those of `wanted` that it offers, and virtio 1.
    /// Returns what was agreed.
    #[inline(never)]
    pub(crate) fn negotiate(&mut self, wanted: u64) -> u64 {
        self.transport.set_status(DeviceStatus::empty());
        self.transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let agreed = self.transport.read_device_features() & (wanted | FEATURE_VERSION_1);
        self.transport.write_driver_features(agreed);
        self.transport.set_status(
            DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK,
        );
        agreed
    }

    /// Lets the device work, once its queues are set up.
    #[inline(never)]
    pub(crate) fn start(&mut self) {
        self.transport.finish_init();
        interrupts::enable_slot(self.slot);
    }

    /// Acknowledges the device's interrupt. To be called before its queues are looked at.
    pub(crate) fn acknowledge(&mut self) {
        self.transport.ack_interrupt();
    }

    /// This device's bit in the set of slots that interrupted.
    pub(crate) fn slot_bit(&self) -> u32 {
        1 << self.slot
    }

    /// Tells the device that queue `index` has something new.
    pub(crate) fn notify(&mut self, index: u16) {
        self.transport.notify(index);
    }

    /// One byte of the device's configuration.
    fn config_byte(&self, offset: usize) -> u8 {
        let address = BASE + SLOT_SIZE * self.slot + CONFIG_OFFSET + offset;
        // SAFETY: the address is inside the slot, which is mapped.
        unsafe { (address as *const u8).read_volatile() }
    }
}

/// The devices a machine may have.
#[derive(Default)]
pub(crate) struct Found {
    /// Network.
    pub(crate) network: Option<Device>,
    /// Entropy.
    pub(crate) entropy: Option<Device>,
    /// The console in the highest slot: the log.
    pub(crate) log: Option<Device>,
    /// The next lower console: the control channel.
    pub(crate) control: Option<Device>,
}

/// Looks into every slot, from the highest down.
///
/// # Safety
/// The slots must be mapped, and nobody else may use them.
pub(crate) unsafe fn probe() -> Found {
    let mut found = Found::default();
    for slot in (0..SLOTS).rev() {
        let Some(header) = NonNull::new((BASE + SLOT_SIZE * slot) as *mut VirtIOHeader) else {
            break;
        };
        // SAFETY: the caller vouches for the slots; each is looked at once.
        let transport = unsafe { MmioTransport::new(header, SLOT_SIZE) };
        let Ok(transport) = transport else { continue };
        let place = match transport.device_type() {
            DeviceType::Network => &mut found.network,
            DeviceType::EntropySource => &mut found.entropy,
            DeviceType::Console if found.log.is_none() => &mut found.log,
            DeviceType::Console => &mut found.control,
            _ => continue,
        };
        if place.is_none() {
            *place = Some(Device { transport, slot });
        }
    }
    found
}
