//! Changed, cut, mixed and invented bytes: never a silent accept.

use proptest::prelude::*;

use super::*;
use crate::snapshots::format::{Header, Kind, Trailer};

fn original() -> Parts {
    parts(1, 120, &[("../a", 30), ("b", 0)])
}

/// Bytes that are not the snapshot at 90: they are refused from a peer, whatever it announces, and
/// found at a start or when they are read, before a wrong byte comes out.
fn assert_refused(bytes: &[u8], what: &str) {
    let original = original();
    for (found, original) in assert_found(bytes, what).iter().zip(&original) {
        let is_right = original.1.starts_with(&found.1) && original.0 == found.0;
        assert!(is_right, "{what}: something wrong came out");
    }
}

/// The same without a look at what comes out before the end, which is returned.
fn assert_found(bytes: &[u8], what: &str) -> Parts {
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let whole = crc32fast::hash(&file_of(90, &original()));
    for checksum in [whole, crc32fast::hash(bytes)] {
        let received = receive(&dir, &snapshot(90), bytes, checksum);
        let is_refused = matches!(received, Err(SnapshotError::Damaged { .. }));
        assert!(is_refused, "{what}: {received:?}");
        assert_eq!(disk.names(), ["OWNER"], "{what}");
    }
    save(&dir, GROUP, 80, &original()).unwrap();
    drop(dir);
    put(&disk, "7-90.snap", bytes);
    let dir = open(&disk).unwrap();
    let mut parts = Parts::new();
    if newest(&dir) == [(7, 90)] {
        let mut from = dir.load(GROUP, Index(90)).unwrap();
        let (found, result) = drain(&mut *from);
        let kind = result.map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::InvalidData), "{what}");
        parts = found;
    }
    assert_eq!(newest(&dir), [(7, 80)], "{what}: the older one counts");
    assert_eq!(dir.metrics().damaged.get(), 1, "{what}");
    let names = ["7-80.snap", "7-90.snap.damaged", "OWNER"];
    assert_eq!(disk.names(), names, "{what}");
    assert_eq!(load(&dir, GROUP, 80), original(), "{what}");
    parts
}

#[test]
fn every_changed_bit_is_noticed() {
    let whole = file_of(90, &original());
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            assert_refused(&bytes, &format!("bit {bit} of byte {at}"));
        }
    }
}

#[test]
fn every_other_length_is_noticed() {
    let whole = file_of(90, &original());
    for length in 0..whole.len() {
        assert_refused(&whole[..length], &format!("cut at {length}"));
        let mut zeros = whole[..length].to_vec();
        zeros.resize(whole.len(), 0);
        assert_refused(&zeros, &format!("zeros from {length} on"));
    }
    for more in [&[0][..], &[1; 9], &whole] {
        let longer = [&whole, more].concat();
        assert_refused(&longer, &format!("{} bytes more", more.len()));
    }
}

#[test]
fn chunks_in_another_order_or_of_another_snapshot_are_noticed() {
    let whole = file_of(90, &original());
    let places = chunk_places(&whole);
    let same_index = file_of(90, &parts(2, 120, &[("../a", 30), ("b", 0)]));
    let mut others = vec![file_of(91, &original())];
    let disk = SimDisk::new();
    save(&open(&disk).unwrap(), GroupId(8), 90, &original()).unwrap();
    others.push(disk.bytes("8-90.snap"));
    for (first, one) in places.iter().enumerate() {
        let without = [&whole[..one.start], &whole[one.end..]].concat();
        assert_refused(&without, &format!("without chunk {first}"));
        let twice = [&whole[..one.end], &whole[one.clone()], &whole[one.end..]].concat();
        assert_refused(&twice, &format!("chunk {first} twice"));
        for two in &places[first + 1..] {
            let swapped = [
                &whole[..one.start],
                &whole[two.clone()],
                &whole[one.end..two.start],
                &whole[one.clone()],
                &whole[two.end..],
            ];
            assert_refused(&swapped.concat(), &format!("{one:?} and {two:?} swapped"));
        }
        let mix = |other: &[u8]| {
            let mut mixed = whole.clone();
            let theirs = &other[chunk_places(other)[first].clone()];
            mixed[one.clone()].copy_from_slice(theirs);
            mixed
        };
        for other in &others {
            assert_refused(&mix(other), &format!("chunk {first} of another snapshot"));
        }
        // Two states at one index are a broken promise already: the end tells them apart.
        if mix(&same_index) != whole {
            assert_found(
                &mix(&same_index),
                &format!("chunk {first} of another state"),
            );
        }
    }
    for other in &others {
        assert_refused(other, "a whole file of another snapshot");
    }
}

/// A file with right checksums everywhere, but of chunks that nobody writes.
fn forged(chunks: &[(Kind, &[u8])], chunk_count: u64, bytes_more: u64) -> Vec<u8> {
    let header = Header {
        group: GROUP,
        snapshot: snapshot(90),
    };
    let mut bytes = header.encode().unwrap();
    for (number, (kind, content)) in (0..).zip(chunks) {
        let mut chunk = vec![0; CHUNK_HEAD_BYTES];
        chunk.extend_from_slice(content);
        header.seed().seal(number, *kind, &mut chunk);
        bytes.extend_from_slice(&chunk);
    }
    let trailer = Trailer {
        bytes: (bytes.len() + TRAILER_BYTES) as u64 + bytes_more,
        chunks: chunk_count,
        crc: crc32fast::hash(&bytes),
    };
    bytes.extend_from_slice(&trailer.encode(header.seed()));
    bytes
}

#[test]
fn right_checksums_do_not_make_wrong_files_right() {
    let state = &original()[0].1;
    let bytes = |length: usize| (Kind::Bytes, &state[..length]);
    let right = forged(&[bytes(50)], 1, 0);
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    receive(&dir, &snapshot(90), &right, crc32fast::hash(&right)).unwrap();
    assert_eq!(load(&dir, GROUP, 90)[0].1, state[..50]);

    assert_refused(&forged(&[bytes(50)], 2, 0), "a chunk too few");
    assert_refused(&forged(&[bytes(50)], 0, 0), "a chunk too many");
    assert_refused(&forged(&[bytes(50)], 1, 1), "a wrong length");
    assert_refused(
        &forged(&[bytes(50), (Kind::End, &[0; 20])], 2, 0),
        "two ends",
    );
    assert_refused(
        &forged(&[bytes(50), (Kind::File, b"\xff\xfe")], 2, 0),
        "no UTF-8",
    );
    let membership = right[36..40].to_vec();
    for length in [u32::MAX, 1 << 20, (1 << 20) + 1, 1 << 31] {
        let mut long = right.clone();
        long[32..36].copy_from_slice(&length.to_le_bytes());
        assert_refused(&long, "a long membership");
        let at = chunk_places(&right)[0].start;
        let mut long = right.clone();
        long[at..at + 4].copy_from_slice(&length.to_le_bytes());
        assert_refused(&long, "a long chunk");
    }
    let mut nobody = right.clone();
    nobody[12..16].fill(0); // group 0
    nobody[36..40].copy_from_slice(&membership);
    assert_refused(&nobody, "no group");
}

#[test]
fn what_is_not_what_was_announced_is_refused() {
    let file = file_of(90, &original());
    let sum = crc32fast::hash(&file);
    let disk = SimDisk::new();
    let dir = open(&disk).unwrap();
    let mut term = snapshot(90);
    term.term = Term(1);
    let mut membership = snapshot(90);
    membership.membership.index = Index(1);
    for announced in [snapshot(89), term, membership] {
        let received = receive(&dir, &announced, &file, sum);
        assert!(matches!(received, Err(SnapshotError::Damaged { .. })));
    }
    let length = file.len() as u64;
    let mut other_group = dir.receive(GroupId(8), &snapshot(90), length, sum).unwrap();
    other_group.append(&file).unwrap();
    assert!(matches!(
        other_group.finish(),
        Err(SnapshotError::Damaged { .. })
    ));
    let other_sum = receive(&dir, &snapshot(90), &file, sum ^ 1);
    assert!(matches!(other_sum, Err(SnapshotError::Damaged { .. })));
    for bytes in [0, 1, length - 1, length + 1] {
        let mut incoming = dir.receive(GROUP, &snapshot(90), bytes, sum).unwrap();
        let appended = incoming.append(&file);
        assert_eq!(appended.is_err(), bytes < length);
        assert!(incoming.finish().is_err(), "announced {bytes}");
    }
    // Beyond the announced length nothing is taken any more, also not what would fit.
    let mut incoming = dir.receive(GROUP, &snapshot(90), length, sum).unwrap();
    incoming.append(&file[..100]).unwrap();
    assert!(incoming.append(&file).is_err());
    assert!(incoming.append(&file[100..]).is_err());
    assert!(incoming.finish().is_err());
    assert!(dir.newest().is_empty());
    assert_eq!(disk.names(), ["OWNER"]);
    receive(&dir, &snapshot(90), &file, sum).unwrap();
    assert!(0 < dir.metrics().refused.get());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(
        start in 0..300_usize,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let whole = file_of(90, &original());
        let mut mixed = whole[..start.min(whole.len())].to_vec();
        mixed.extend_from_slice(&bytes);
        prop_assume!(mixed != whole);
        assert_refused(&mixed, "arbitrary");
    }

    #[test]
    fn any_state_in_any_pieces_comes_back(
        state in prop::collection::vec(any::<u8>(), 0..400),
        files in prop::collection::vec((".{0,60}", prop::collection::vec(any::<u8>(), 0..200)), 0..5),
        piece_bytes in 1..120_usize,
    ) {
        let mut parts = vec![(String::new(), state)];
        parts.extend(files);
        let disk = SimDisk::new();
        let dir = open(&disk).unwrap();
        let mut view = View { parts: parts.clone(), piece_bytes };
        dir.save(GROUP, &snapshot(90), &mut view).unwrap();
        prop_assert_eq!(load(&dir, GROUP, 90), parts);
        dir.verify(GROUP, Index(90)).unwrap();
    }
}

/// The format of version 1, byte by byte: what this program wrote once, it reads for ever.
#[test]
fn the_bytes_of_version_1_stay_as_they_are() {
    let golden = [
        "4d52534e41500d0a01000000070000005a000000000000000a0000000000000022000000fade5400",
        "032d0000000000000002000100000001891301006e02000000018a1301006e000000",
        "0200000001640656271f20",
        "01000000026dbcd8c361",
        "0100000001ffe6cbea26",
        "140000000323dd67de8600000000000000030000000000000028a6e09e",
    ]; // header, membership, chunks, trailer
    let bytes = file_of(90, &parts(1, 2, &[("a", 1)]));
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex.concat(), golden.concat());
}
