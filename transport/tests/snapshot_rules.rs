//! What the frames of snapshots may say, and what becomes of ends that say something else.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::Duration;

use bytes::BytesMut;
use multiraft_engine::raft::message::Message;
use multiraft_engine::snapshot::SnapshotSending::Aborted;
use multiraft_engine::snapshot::SnapshotStore;
use multiraft_engine::types::{GroupId, Index};
use multiraft_transport::snapshot::rate::RateLimit;
use multiraft_transport::snapshot::wire::{self, HEADER_BYTES, MAX_CHUNK_BYTES, Taken};
use multiraft_transport::snapshot::{Frame, Offer, Receiver, Refusal, SendingSnapshot, hostile};
use multiraft_transport::{Error, SnapshotLimits};
use support::pair::{chunk, ends, limits, offer, offer_of, say, sender};
use support::store::MemoryStore;
use support::{file, install};

fn store() -> MemoryStore {
    MemoryStore::with(4, 7, file(83))
}

fn every_frame() -> Vec<Frame> {
    let mut frames = vec![
        Frame::Offer(offer_of(&file(20), 4, 7)),
        chunk(7, &file(20)),
        Frame::Resume { offset: 3 },
        Frame::Ack { offset: u64::MAX },
        Frame::Done,
        Frame::Alive,
    ];
    let refusals = [
        Refusal::Busy,
        Refusal::NoRoom,
        Refusal::Damaged,
        Refusal::Failed,
    ];
    frames.extend(refusals.map(Frame::Refuse));
    frames
}

#[test]
fn a_file_that_is_not_what_was_announced_is_not_kept() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits());
    let mut incoming = receiver.connection(ends(1));
    let bytes = file(20);
    let announced = Offer {
        checksum: 1,
        ..offer_of(&bytes, 4, 7)
    };
    offer(&mut incoming, announced);
    let (replies, delivered) = incoming
        .on_frame_to_end(chunk(0, &bytes), Duration::ZERO)
        .unwrap();
    let damaged = Frame::Refuse(Refusal::Damaged);
    assert_eq!(replies, [Frame::Ack { offset: 20 }, damaged.clone()]);
    assert_eq!((delivered, to.get(4, 7)), (None, None));
    assert_eq!((receiver.partials(), to.inner().partial), (0, 0));
    let from = store();
    let mut sender = sender(&from);
    sender.connect();
    sender.on_frame(damaged, Duration::ZERO).unwrap();
    assert_eq!(sender.take_events(), [Aborted]);
}

#[test]
fn a_chunk_that_does_not_follow_ends_the_connection_and_spoils_nothing() {
    let bytes = file(20);
    let wrong = [
        ("a gap", chunk(11, &bytes[11..])),
        ("an overlap", chunk(9, &bytes[9..])),
        ("the first again", chunk(0, &bytes[..10])),
        ("beyond the end", chunk(10, &[0; 11])),
        ("far beyond", chunk(u64::MAX, &[0; 1])),
        ("nothing", chunk(10, &[])),
        ("an offer within", Frame::Offer(offer_of(&bytes, 5, 7))),
        ("a receiver's word", Frame::Ack { offset: 10 }),
        ("another", Frame::Done),
    ];
    for (what, frame) in wrong {
        let to = MemoryStore::default();
        let receiver = Receiver::new(to.shared(), &limits());
        let mut incoming = receiver.connection(ends(1));
        offer(&mut incoming, offer_of(&bytes, 4, 7));
        say(&mut incoming, chunk(0, &bytes[..10])).unwrap();
        assert!(say(&mut incoming, frame).is_err(), "{what}");
        drop(incoming);
        let mut next = receiver.connection(ends(1));
        let kept = offer(&mut next, offer_of(&bytes, 4, 7));
        assert_eq!(kept, [Frame::Resume { offset: 10 }], "{what}");
        say(&mut next, chunk(10, &bytes[10..])).unwrap();
        assert_eq!(to.get(4, 7), Some(bytes.clone()), "{what}");
    }
    let receiver = Receiver::new(MemoryStore::default().shared(), &limits());
    assert!(say(&mut receiver.connection(ends(1)), chunk(0, &bytes)).is_err());
    assert!(receiver.connection(ends(1)).finish().is_err());
}

#[test]
fn a_receiver_that_breaks_the_rules_is_not_believed() {
    let from = store();
    let wrong = [
        ("acknowledges nothing new", Frame::Ack { offset: 10 }),
        ("acknowledges less", Frame::Ack { offset: 9 }),
        ("acknowledges what never left", Frame::Ack { offset: 41 }),
        ("resumes twice", Frame::Resume { offset: 10 }),
        ("is done too early", Frame::Done),
        ("offers", Frame::Offer(offer_of(&[1], 4, 7))),
        ("sends", chunk(10, &[1])),
    ];
    for (what, frame) in wrong {
        let mut sender = sender(&from);
        sender.connect();
        sender
            .on_frame(Frame::Resume { offset: 0 }, Duration::ZERO)
            .unwrap();
        while sender.next_frame().is_some() {}
        sender
            .on_frame(Frame::Ack { offset: 10 }, Duration::ZERO)
            .unwrap();
        while sender.next_frame().is_some() {}
        assert!(sender.on_frame(frame, Duration::ZERO).is_err(), "{what}");
        assert!(sender.next_chunk().is_none(), "{what}: goes on");
        assert!(!sender.has_ended(), "{what}: another connection may do");
    }
    for frame in [Frame::Resume { offset: 84 }, Frame::Ack { offset: 0 }] {
        let mut sender = sender(&from);
        sender.connect();
        assert!(sender.on_frame(frame, Duration::ZERO).is_err());
    }
}

#[test]
fn only_a_snapshot_of_reasonable_size_can_be_sent() {
    let mut beat = install(4, 1, 9, 7);
    beat.message = Message::TimeoutNow;
    let file = store().open(GroupId(4), Index(7)).unwrap();
    let wrong = SendingSnapshot::new(beat, file, &limits(), Duration::ZERO);
    assert!(wrong.is_err());
}

#[test]
fn every_frame_comes_back_and_no_changed_one_does() {
    for frame in every_frame() {
        let whole = wire::encode(&frame);
        assert_eq!(wire::decode(whole.clone()).unwrap(), frame);
        for cut in 0..whole.len() {
            assert!(
                wire::decode(whole.slice(..cut)).is_err(),
                "{frame:?} cut at {cut}"
            );
        }
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(wire::decode(changed.into()).is_err(), "{frame:?} bit {bit}");
        }
    }
}

#[test]
fn a_stream_is_cut_into_its_frames_wherever_it_was_torn() {
    let frames = every_frame();
    let stream: Vec<u8> = frames.iter().flat_map(wire::encode).collect();
    for piece in 1..64 {
        let (mut buffer, mut taken) = (BytesMut::new(), Vec::new());
        for bytes in stream.chunks(piece) {
            buffer.extend_from_slice(bytes);
            loop {
                match wire::take(&mut buffer).unwrap() {
                    Taken::Frame(frame) => taken.push(frame),
                    Taken::Needs(bytes) => {
                        assert!(bytes > buffer.len());
                        break;
                    }
                }
            }
        }
        assert_eq!(taken, frames);
    }
}

#[test]
fn hostile_lengths_are_refused_at_the_header() {
    let most = u32::try_from(MAX_CHUNK_BYTES + 8).unwrap();
    for (kind, length, is_fine) in [
        (1, u32::MAX, false),
        (1, 0, false),
        (1, 1 << 20, true),
        (2, u32::MAX, false),
        (2, most + 1, false),
        (2, most, true),
        (2, 8, false), // a chunk of nothing
        (3, 9, false),
        (4, u32::MAX, false),
        (5, 1, false),
        (6, 0, false),
        (7, 1, false),
        (0, 0, false),
        (8, 0, false),
    ] {
        let mut header = BytesMut::zeroed(HEADER_BYTES);
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8] = kind;
        let taken = wire::take(&mut header);
        assert_eq!(taken.is_ok(), is_fine, "kind {kind}, {length} bytes");
    }
}

#[test]
fn offers_of_nothing_are_refused() {
    for offer in [offer_of(&[1], 0, 7), offer_of(&[1], 4, 0)] {
        assert!(wire::decode(wire::encode(&Frame::Offer(offer))).is_err());
    }
}

#[test]
fn an_absurd_length_is_the_stores_to_refuse_and_nothing_is_allocated() {
    let to = MemoryStore::default();
    let receiver = Receiver::new(to.shared(), &limits());
    let offered = Offer {
        bytes: u64::MAX,
        ..offer_of(&[1], 4, 7)
    };
    let refused = offer(&mut receiver.connection(ends(1)), offered);
    assert_eq!(refused, [Frame::Refuse(Refusal::NoRoom)]);
    assert_eq!(receiver.partials(), 0);
}

#[test]
fn the_rate_is_a_count_of_bytes_over_a_clock() {
    let mut limit = RateLimit::new(1000);
    let mut now = Duration::ZERO;
    let mut sent = 0;
    while now < Duration::from_secs(10) {
        now = limit.reserve(100, now);
        sent += 100;
        assert!(sent <= now.as_millis() + 100, "{sent} bytes after {now:?}");
    }
    assert_eq!(sent, 10_100);
    // A pause earns no more than one chunk.
    now += Duration::from_secs(60);
    assert_eq!(limit.reserve(100, now), now);
    assert_eq!(limit.reserve(100, now), now + Duration::from_millis(100));
    // Two who ask at the same time take turns.
    assert_eq!(limit.reserve(100, now), now + Duration::from_millis(200));
    let mut none = RateLimit::new(0);
    assert_eq!(
        (none.reserve(usize::MAX, now), none.reserve(1, now)),
        (now, now)
    );
}

#[test]
fn limits_that_could_not_work_are_refused() {
    let wrong: [fn(&mut SnapshotLimits); 10] = [
        |limits| limits.chunk_bytes = 0,
        |limits| limits.chunk_bytes = MAX_CHUNK_BYTES + 1,
        |limits| limits.window_chunks = 0,
        |limits| limits.parallel_sends = 0,
        |limits| limits.queued_sends = 0,
        |limits| limits.parallel_receives = 0,
        |limits| limits.stall_timeout = Duration::ZERO,
        |limits| limits.finish_timeout = Duration::from_secs(29),
        |limits| limits.partial_retention = Duration::from_secs(29),
        |limits| limits.bytes_per_second = 200 << 10,
    ];
    let config = || multiraft_transport::Config::new(1, support::id(1), 1);
    for (case, change) in wrong.iter().enumerate() {
        let mut config = config();
        change(&mut config.snapshots);
        assert!(
            matches!(config.validate(), Err(Error::Config(_))),
            "case {case}"
        );
    }
    let mut slow = config();
    slow.snapshots.bytes_per_second = 300 << 10;
    assert!(config().validate().is_ok() && slow.validate().is_ok());
}

#[test]
fn what_a_fuzzer_may_find_is_survived() {
    let mut state = 1_u64;
    let mut delivered = 0;
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..300)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                state.to_le_bytes()[6]
            })
            .collect();
        let store = MemoryStore::default();
        delivered += hostile::play(&bytes, &store.shared()).len();
        assert_eq!(
            store.inner().partial,
            0,
            "a partial file outlived its receiver"
        );
    }
    assert!(
        delivered > 100,
        "only {delivered} whole files: too much is refused"
    );
}
