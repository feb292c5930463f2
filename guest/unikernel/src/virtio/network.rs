//! The network card, as smoltcp wants to see it.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::{Device, ENTRIES, ReceiveQueue, TransmitQueue};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// All entries: a receive window of one connection is 11 frames.
const FRAMES: u16 = ENTRIES as u16;
/// Before each frame: `virtio_net_hdr` with `num_buffers`, all zero as no offload is agreed.
const HEADER: usize = 12;
/// Ethernet header and 1,500 bytes.
const FRAME_MAX: usize = 1514;

const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const CONFIG_MTU: usize = 10;
/// Smallest MTU that is believed: what every IPv4 host must accept.
const MTU_MIN: usize = 576;

/// The machine's network card.
pub(crate) struct Network {
    device: Device,
    receive: ReceiveQueue,
    transmit: TransmitQueue,
    frame_max: usize,
}

impl Network {
    /// Sets the device up.
    pub(crate) fn new(mut device: Device) -> Self {
        let features = device.negotiate(FEATURE_MAC | FEATURE_MTU);
        let mut frame_max = FRAME_MAX;
        if features & FEATURE_MTU != 0 {
            let bytes = [device.config_byte(CONFIG_MTU), device.config_byte(CONFIG_MTU + 1)];
            let mtu = usize::from(u16::from_le_bytes(bytes));
            frame_max = (14 + mtu.max(MTU_MIN)).min(FRAME_MAX);
        }
        let receive = ReceiveQueue::new(&mut device, RECEIVE, HEADER + FRAME_MAX, FRAMES);
        let transmit = TransmitQueue::new(&mut device, TRANSMIT, HEADER + FRAME_MAX);
        device.start();
        let mut this = Self { device, receive, transmit, frame_max };
        this.notify();
        this
    }

    /// The address the host gave the card, read from it now.
    pub(crate) fn mac_address(&self) -> [u8; 6] {
        core::array::from_fn(|offset| self.device.config_byte(offset))
    }

    /// This device's bit in the set of slots that interrupted.
    pub(crate) fn slot_bit(&self) -> u32 {
        self.device.slot_bit()
    }

    /// Acknowledges the device's interrupt.
    pub(crate) fn acknowledge(&mut self) {
        self.device.acknowledge();
    }

    /// Whether a frame waits to be received.
    pub(crate) fn has_frame(&self) -> bool {
        self.receive.has_filled()
    }

    /// Hands frames and empty buffers queued since the last call to the device.
    pub(crate) fn notify(&mut self) {
        self.receive.notify(&mut self.device);
        self.transmit.notify(&mut self.device);
    }
}

/// A frame that was received.
pub(crate) struct RxToken<'a>(&'a mut ReceiveQueue);

/// Room for a frame to send.
pub(crate) struct TxToken<'a>(&'a mut TransmitQueue);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let mut read = Some(read);
        let frame = self
            .0
            .take(|bytes| read.take().map(|read| read(bytes.get(HEADER..).unwrap_or_default())));
        match frame.flatten() {
            Some(result) => result,
            // The token was made because a frame waits. Should the device have broken its queue,
            // the stack sees an empty frame.
            None => read.map_or_else(|| unreachable!("a frame was read"), |read| read(&[])),
        }
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let result = self.0.send(HEADER + length, |bytes| {
            let (header, frame) = bytes.split_at_mut(HEADER);
            header.fill(0);
            write(frame)
        });
        match result {
            Some(result) => result,
            None => unreachable!("tokens exist only while a buffer is free and frames fit"),
        }
    }
}

impl phy::Device for Network {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // An answer may have to be sent while a frame is looked at.
        (self.receive.has_filled() && self.transmit.can_send())
            .then_some((RxToken(&mut self.receive), TxToken(&mut self.transmit)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.transmit.can_send().then_some(TxToken(&mut self.transmit))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_max;
        capabilities
    }
}
