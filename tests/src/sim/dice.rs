//! Where the chances of a run come from: a seed, or the bytes of a fuzzer.

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Bytes decide first, one for each chance, then the seed does.
pub struct Dice {
    bytes: std::vec::IntoIter<u8>,
    rest: SmallRng,
}

impl Dice {
    /// Everything comes from the seed.
    pub fn seeded(seed: u64) -> Self {
        Self::with_bytes(seed, Vec::new())
    }

    /// The first chances come from these bytes.
    pub fn with_bytes(seed: u64, bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into_iter(),
            rest: SmallRng::seed_from_u64(seed),
        }
    }
}

impl RngCore for Dice {
    fn next_u32(&mut self) -> u32 {
        let rest = self.rest.next_u32();
        // The highest byte alone decides almost everything: ranges are drawn from the top.
        self.bytes
            .next()
            .map_or(rest, |byte| u32::from(byte) << 24 | rest >> 8)
    }

    fn next_u64(&mut self) -> u64 {
        let rest = self.rest.next_u64();
        self.bytes
            .next()
            .map_or(rest, |byte| u64::from(byte) << 56 | rest >> 8)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        self.rest.fill_bytes(into);
    }
}
