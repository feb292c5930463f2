//! Random numbers: ChaCha20, keyed from every source there is.
//!
//! Sources are the host's `seed=`, virtio-rng and the time stamp counter. A new key is the old
//! generator's output combined with the fresh entropy, so no source can make it worse.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::arch::cpu;
use crate::sync::Mutex;
use crate::virtio::{Device, ReceiveQueue};

/// Bytes of a key.
const KEY: usize = 32;

/// The generator, and entropy that it has not been keyed with yet.
struct Source {
    generator: Option<ChaCha20Rng>,
    fresh: [u8; KEY],
    is_fresh: bool,
}

static SOURCE: Mutex<Source> =
    Mutex::new(Source { generator: None, fresh: [0; KEY], is_fresh: false });

impl Source {
    fn add(&mut self, entropy: &[u8]) {
        let time = cpu::rdtsc().to_le_bytes();
        for (index, byte) in entropy.iter().chain(&time).enumerate() {
            // Turning before adding keeps equal entropy from cancelling itself out.
            let place = &mut self.fresh[index % KEY];
            *place = place.rotate_left(1) ^ byte;
        }
        self.is_fresh = true;
    }

    /// The generator, keyed with everything there is.
    fn generator(&mut self) -> &mut ChaCha20Rng {
        if self.generator.is_none() || self.is_fresh {
            let mut key = [0; KEY];
            if let Some(old) = &mut self.generator {
                old.fill_bytes(&mut key);
            }
            for (byte, fresh) in key.iter_mut().zip(&mut self.fresh) {
                *byte ^= core::mem::take(fresh);
            }
            self.is_fresh = false;
            self.generator = Some(ChaCha20Rng::from_seed(key));
        }
        self.generator.get_or_insert_with(|| ChaCha20Rng::from_seed([0; KEY]))
    }
}

/// Mixes entropy in. The generator is keyed anew when it is next used, not while a machine boots.
pub(crate) fn add_entropy(entropy: &[u8]) {
    SOURCE.lock().add(entropy);
}

/// A number that differs from start to start, for sequence numbers and the like. Cheap: the first
/// block of the generator costs as much as a tenth of a boot. Tells 64 bits about the key at most.
pub(crate) fn boot_number(seed: Option<&[u8; KEY]>) -> u64 {
    let mut number = cpu::rdtsc();
    for word in seed.iter().flat_map(|seed| seed.chunks_exact(8)) {
        let word = word.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        number = (number ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        number ^= number >> 29;
    }
    number
}

/// Fills `bytes` with random numbers fit for keys, as far as the host gave entropy.
pub fn fill_random(bytes: &mut [u8]) {
    let mut source = SOURCE.lock();
    if source.generator.is_none() {
        source.add(&[]);
    }
    source.generator().fill_bytes(bytes);
}

/// A random number out of all of `u64`.
#[must_use]
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// The virtio entropy device. Its two buffers are asked for at once; what arrives is mixed in, and
/// the device is asked again only for a new identity.
pub(crate) struct EntropyDevice {
    device: Device,
    queue: ReceiveQueue,
}

impl EntropyDevice {
    /// Sets the device up and asks it for entropy.
    pub(crate) fn new(mut device: Device) -> Self {
        device.negotiate(0);
        let queue = ReceiveQueue::new(&mut device, 0, KEY, 2);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_entropy_changes_what_follows() {
        let draw = |parts: &[&[u8]]| {
            let mut source = Source { generator: None, fresh: [0; KEY], is_fresh: false };
            let mut numbers = [0; 16];
            for part in parts {
                // Without the time, so that runs can be compared.
                for (place, byte) in source.fresh.iter_mut().zip(*part) {
                    *place ^= byte;
                }
                source.is_fresh = true;
                source.generator().fill_bytes(&mut numbers);
            }
            numbers
        };
        assert_eq!(draw(&[&[1; 32]]), draw(&[&[1; 32]]));
        assert_ne!(draw(&[&[1; 32]]), draw(&[&[2; 32]]));
        assert_ne!(
            draw(&[&[1; 32], &[3; 32]]),
            draw(&[&[2; 32], &[3; 32]]),
            "the old key still counts"
        );
        assert_ne!(draw(&[&[1; 32], &[0; 32]]), draw(&[&[1; 32]]), "a new key is not the old one");
    }

    #[test]
    fn boot_numbers_differ_with_the_seed() {
        let one = boot_number(Some(&[1; KEY]));
        assert_ne!(one, boot_number(Some(&[2; KEY])));
        let mut bytes = [0; 64];
        fill_random(&mut bytes);
        assert_ne!(bytes, [0; 64]);
    }
}
