//! A virtio console: port 0 of a `virtio-serial-device`, whose other ports are not asked for.
//!
//! Nothing waits for the host. What does not fit is dropped and counted: a host that does not read
//! must not stop a machine.

use super::{Device, ReceiveQueue, TransmitQueue};

/// Queue of input and queue of output, as the standard numbers them.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// 256: 16 pieces of that size are one page, enough for the lines of a burst.
const PIECE: usize = 256;
/// 4 pieces: lines from the host are few.
const INPUT_PIECES: u16 = 4;

/// Whether a console is read from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// What the host writes is read.
    Wanted,
    /// The host's input is left where it is.
    Ignored,
}

/// One console.
pub(crate) struct Console {
    device: Device,
    receive: Option<ReceiveQueue>,
    transmit: TransmitQueue,
    dropped: u64,
}

impl Console {
    /// Sets the device up.
    #[inline(never)]
    pub(crate) fn new(mut device: Device, input: Input) -> Self {
        device.negotiate(0);
        let receive = (input == Input::Wanted)
            .then(|| ReceiveQueue::new(&mut device, RECEIVE, PIECE, INPUT_PIECES));
        let transmit = TransmitQueue::new(&mut device, TRANSMIT, PIECE);
        device.start();
        let mut this = Self { device, receive, transmit, dropped: 0 };
        if let Some(receive) = &mut this.receive {
            receive.notify(&mut this.device);
        }
        this
    }

    /// This device's bit in the set of slots that interrupted.
    pub(crate) fn slot_bit(&self) -> u32 {
        self.device.slot_bit()
    }

    /// Acknowledges the device's interrupt.
    pub(crate) fn acknowledge(&mut self) {
        self.device.acknowledge();
    }

    /// Queues `bytes`. `false` when there is no room for all of them; then the rest is dropped.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        let pieces = bytes.len().div_ceil(PIECE);
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            let sent = self.transmit.send(piece.len(), |memory| memory.copy_from_slice(piece));
            if sent.is_none() {
                self.dropped += (pieces - number) as u64;
                self.transmit.notify(&mut self.device);
                return false;
            }
        }
        self.transmit.notify(&mut self.device);
        true
    }

    /// Pieces dropped since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        core::mem::take(&mut self.dropped)
    }

    /// Passes everything that has arrived to `read`, piece by piece.
    pub(crate) fn read(&mut self, mut read: impl FnMut(&[u8])) {
        let Some(receive) = &mut self.receive else { return };
        while receive.take(&mut read).is_some() {}
        receive.notify(&mut self.device);
    }

    /// Whether the host has taken everything.
    pub(crate) fn is_drained(&mut self) -> bool {
        self.transmit.is_drained()
    }
}
