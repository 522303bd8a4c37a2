//! Incompressible payloads that cost nothing to make and that a reader can check.

use std::sync::OnceLock;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// The largest payload of a benchmark, bytes.
pub const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
const POOL_BYTES: usize = 4 << 20;

/// The payload of entry `index` of `group`: a slice of one random pool, at a place that both
/// numbers decide.
pub(super) fn payload(group: u32, index: u64, bytes: u32) -> Bytes {
    let pool = pool();
    let bytes = bytes.min(MAX_PAYLOAD_BYTES) as usize;
    let mut hash = u64::from(group)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index.wrapping_mul(0xc2b2_ae3d_27d4_eb4f));
    hash ^= hash >> 29;
    let places = (POOL_BYTES - bytes) as u64;
    let start = usize::try_from(hash % places).expect("within the pool");
    Bytes::from_static(&pool[start..start + bytes])
}

fn pool() -> &'static [u8] {
    static POOL: OnceLock<Vec<u8>> = OnceLock::new();
    POOL.get_or_init(|| {
        let mut pool = vec![0; POOL_BYTES];
        SmallRng::seed_from_u64(1).fill_bytes(&mut pool);
        pool
    })
}
