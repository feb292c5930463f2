//! Random numbers: ChaCha20, keyed from every source there is.
//!
//! Sources are the host's `seed=`, virtio-rng and the time stamp counter. A new key is the old generator's
//! output combined with the fresh entropy, so no source can make it worse.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::arch::cpu;
use crate::sync::Mutex;
use crate::virtio::{Device, ReceiveQueue};

/// Bytes of a key.
const KEY: usize = 32;

static GENERATOR: Mutex<Option<ChaCha20Rng>> = Mutex::new(None);

/// Mixes entropy in. More than 32 bytes are folded.
pub(crate) fn add_entropy(entropy: &[u8]) {
    let mut generator = GENERATOR.lock();
    let mut key = [0; KEY];
    if let Some(generator) = generator.as_mut() {
        generator.fill_bytes(&mut key);
    }
    let time = cpu::rdtsc().to_le_bytes();
    for (index, byte) in entropy.iter().chain(&time).enumerate() {
        key[index % KEY] ^= byte;
    }
    *generator = Some(ChaCha20Rng::from_seed(key));
}

/// Fills `bytes` with random numbers fit for keys, as far as the host gave entropy.
pub fn fill_random(bytes: &mut [u8]) {
    if GENERATOR.lock().is_none() {
        add_entropy(&[]);
    }
    if let Some(generator) = GENERATOR.lock().as_mut() {
        generator.fill_bytes(bytes);
    }
}

/// A random number out of all of `u64`.
#[must_use]
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// The virtio entropy device. Its two buffers are asked for at once; what arrives is mixed in, and the device
/// is asked again only for a new identity.
pub(crate) struct EntropyDevice {
    device: Device,
    queue: ReceiveQueue<2>,
}

impl EntropyDevice {
    /// Sets the device up and asks it for entropy.
    pub(crate) fn new(mut device: Device) -> Self {
        device.negotiate(0);
        let queue = ReceiveQueue::new(&mut device, 0, KEY);
        device.start();
        let mut this = Self { device, queue };
        this.request();
        this
    }

    /// Asks for entropy into all empty buffers.
    pub(crate) fn request(&mut self) {
        self.queue.notify(&mut self.device);
    }

    /// Mixes in what has arrived. Returns whether anything had.
    pub(crate) fn collect(&mut self) -> bool {
        let mut some = false;
        while self.queue.has_filled() && self.queue.take(add_entropy).is_some() {
            some = true;
        }
        some
    }

    /// This device's bit in the set of slots that interrupted.
    pub(crate) fn slot_bit(&self) -> u32 {
        self.device.slot_bit()
    }

    /// Acknowledges the device's interrupt.
    pub(crate) fn acknowledge(&mut self) {
        self.device.acknowledge();
    }
}
