//! Files of snapshots: on their way in from peers that say anything, and on disks that rot.
//!
//! The bytes are read from front to back, one step after the other: what a mutation changes is one
//! step, and those behind it stay.

mod damage;
mod genuine;
mod stream;

use bytes::Buf;

pub use self::genuine::transfer_bytes;

/// A receiver and its files, against hostile peers, honest ones and crashes; or files that are
/// damaged on the disk.
pub fn snapshot_chunks(mut data: &[u8]) {
    match number(&mut data) % 4 {
        0 => damage::run(&mut data),
        _ => stream::run(&mut data),
    }
}

/// The next byte; zero behind the last one.
fn number(data: &mut &[u8]) -> u8 {
    data.try_get_u8().unwrap_or(0)
}

/// A place in a file or list of `length`, which is not zero.
fn place(data: &mut &[u8], length: usize) -> usize {
    let (high, low) = (number(data), number(data));
    usize::from(u16::from_be_bytes([high, low])) % length
}
