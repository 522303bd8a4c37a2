//! Whose snapshots they are: those of the log of one incarnation.
//!
//! A snapshot says what a majority has agreed on, but a node may use it only beside the log that
//! holds its votes: 1. a node loses its log, 2. it starts again with an empty one, 3. it finds its
//! old snapshots, takes them for its state and votes without remembering its votes. The log has
//! another incarnation then, and the directory is refused.
//!
//! ```text
//! OWNER = | u64 magic | u64 incarnation | u32 crc of all before it |
//! ```

use bytes::Buf;

use crate::disk::Disk;
use crate::error::Error;

const OWNER: &str = "OWNER";
const OWNER_TMP: &str = "OWNER.tmp";
const MAGIC: u64 = u64::from_le_bytes(*b"MRSOWNER");
const OWNER_BYTES: usize = 20;

/// Checks that the directory belongs to `incarnation`; a directory without owner does from now on.
pub(super) fn check(disk: &dyn Disk, names: &[String], incarnation: u64) -> Result<(), Error> {
    let is_there = |wanted: &str| names.iter().any(|name| name == wanted);
    if !is_there(OWNER) {
        let removed = if is_there(OWNER_TMP) {
            disk.remove(OWNER_TMP)
        } else {
            Ok(())
        };
        let written = removed.and_then(|()| write(disk, incarnation));
        return written.map_err(Error::io("writing OWNER"));
    }
    let damaged = || Error::IdentityDamaged { path: OWNER.into() };
    let read = || {
        let file = disk.open(OWNER)?;
        let mut bytes = [0; OWNER_BYTES];
        let is_whole = file.len()? == OWNER_BYTES as u64;
        if is_whole {
            file.read_exact_at(&mut bytes, 0)?;
        }
        Ok(is_whole.then_some(bytes))
    };
    let bytes = read().map_err(Error::io("reading OWNER"))?;
    let found = bytes.and_then(|bytes| decode(&bytes)).ok_or_else(damaged)?;
    if found == incarnation {
        return Ok(());
    }
    Err(Error::OtherIncarnation {
        found,
        expected: incarnation,
    })
}

fn encode(incarnation: u64) -> [u8; OWNER_BYTES] {
    let mut out = [0; OWNER_BYTES];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&incarnation.to_le_bytes());
    let crc = crc32fast::hash(&out[..16]);
    out[16..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(bytes: &[u8; OWNER_BYTES]) -> Option<u64> {
    let incarnation = (&bytes[8..]).get_u64_le();
    (encode(incarnation) == *bytes).then_some(incarnation)
}

fn write(disk: &dyn Disk, incarnation: u64) -> std::io::Result<()> {
    let file = disk.create_growing(OWNER_TMP)?;
    file.write_all_at(&encode(incarnation), 0)?;
    file.sync_data()?;
    disk.rename(OWNER_TMP, OWNER)?;
    disk.sync_dir()
}
