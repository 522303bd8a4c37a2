//! Real connections on loopback, and frames that are not what they seem.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::sync::{Arc, mpsc};

use bytes::{BufMut, Bytes, BytesMut};
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::{AppendResponse, Envelope, Message, VoteRequest};
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress, Transport};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_transport::codec::Item;
use multiraft_transport::frame::{FrameBuilder, HEADER_BYTES, decode_body, decode_header};
use multiraft_transport::{Config, Error, TcpTransport};
use support::store::MemoryStore;
use support::{Observer, PATIENCE, Seen, id};
use tokio::runtime::Handle;

struct End {
    transport: Arc<TcpTransport>,
    seen: mpsc::Receiver<Seen>,
}

async fn end(cluster: u64, node: u32, port: u16) -> End {
    let config = Config {
        port,
        ..Config::new(cluster, id(node), INCARNATION)
    };
    let transport = TcpTransport::bind(config, MemoryStore::default().shared(), Handle::current())
        .await
        .unwrap();
    let (sender, seen) = mpsc::channel();
    transport.set_observer(Arc::new(Observer(sender)));
    End { transport, seen }
}

fn address(port: u16) -> PeerAddress {
    PeerAddress {
        host: "127.0.0.1".to_owned(),
        port,
    }
}

impl End {
    fn wait_for(&self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        loop {
            let seen = self
                .seen
                .recv_timeout(PATIENCE)
                .expect("it is seen in time");
            if wanted(&seen) {
                return seen;
            }
        }
    }

    fn wait_connected(&self, node: u32) {
        let up = Seen::Connection(
            id(node),
            ConnectionKind::Messages,
            ConnectionState::Established,
        );
        self.wait_for(|seen| *seen == up);
    }
}

/// Every node's incarnation here.
const INCARNATION: u64 = 1;

/// As it arrives: with the incarnation in the hello of its sender.
fn arrived(envelope: Envelope) -> Envelope {
    Envelope {
        incarnation: INCARNATION,
        ..envelope
    }
}

fn read_index(from: u32, to: u32, request: u64) -> Envelope {
    let message = Message::ReadIndex { request };
    Envelope {
        group: GroupId(1),
        from: id(from),
        to: id(to),
        term: Term(0),
        incarnation: 0,
        message,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_keep_their_order_both_ways() {
    let (one, two) = (end(1, 1, 0).await, end(1, 2, 0).await);
    one.transport
        .set_peer(id(2), address(two.transport.local_addr().port()));
    two.transport
        .set_peer(id(1), address(one.transport.local_addr().port()));
    one.wait_connected(2);
    two.wait_connected(1);
    for (from, to, a, b) in [(&one, &two, 1, 2), (&two, &one, 2, 1)] {
        for request in 0..10_000 {
            from.transport.send(vec![read_index(a, b, request)]);
        }
        let mut next = 0;
        while next < 10_000 {
            let Seen::Messages(got) = to.wait_for(|s| matches!(s, Seen::Messages(_))) else {
                continue;
            };
            for envelope in got {
                assert_eq!(envelope, arrived(read_index(a, b, next)));
                next += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_goes_is_reported_and_found_again() {
    let (one, two) = (end(1, 1, 0).await, end(1, 2, 0).await);
    let port = two.transport.local_addr().port();
    one.transport.set_peer(id(2), address(port));
    one.wait_connected(2);
    two.transport.shut_down();
    drop(two);
    one.wait_for(|seen| *seen == Seen::Down(id(2)));
    let moved = end(1, 2, 0).await;
    one.transport
        .set_peer(id(2), address(moved.transport.local_addr().port()));
    one.wait_connected(2);
    one.transport.send(vec![read_index(1, 2, 7)]);
    let got = moved.wait_for(|seen| matches!(seen, Seen::Messages(_)));
    assert_eq!(got, Seen::Messages(vec![arrived(read_index(1, 2, 7))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_and_a_wrong_address_are_refused() {
    let (one, foreign, three) = (end(1, 1, 0).await, end(2, 2, 0).await, end(1, 3, 0).await);
    one.transport
        .set_peer(id(2), address(foreign.transport.local_addr().port()));
    one.transport
        .set_peer(id(4), address(three.transport.local_addr().port()));
    for node in [2, 4] {
        let failed = Seen::Connection(id(node), ConnectionKind::Messages, ConnectionState::Failed);
        let up = Seen::Connection(
            id(node),
            ConnectionKind::Messages,
            ConnectionState::Established,
        );
        let seen = one.wait_for(|seen| [&failed, &up].contains(&seen));
        assert!(matches!(
            seen,
            Seen::Connection(_, _, ConnectionState::Failed)
        ));
    }
    let taken = one.transport.local_addr().port();
    let config = Config {
        port: taken,
        ..Config::new(1, id(9), 1)
    };
    let refused =
        TcpTransport::bind(config, MemoryStore::default().shared(), Handle::current()).await;
    assert!(matches!(refused, Err(Error::Bind { .. })));
}

fn every_message() -> Vec<Message> {
    let vote = VoteRequest {
        last_index: Index(9),
        last_term: Term(3),
        transfer: true,
        configuration: Index(3),
    };
    let entries = [
        (EntryKind::Normal, Bytes::from_static(b"set x")),
        (EntryKind::Noop, Bytes::new()),
    ];
    let blocks = vec![Block::encode(Index(5), Term(2), &entries)];
    let rejected = AppendResponse::Rejected {
        prev: Index(1),
        hint_index: Index(2),
        hint_term: Term(3),
        last: Index(4),
    };
    vec![
        Message::Heartbeat {
            commit: Index(4),
            read_round: 2,
        },
        Message::HeartbeatResponse { read_round: 3 },
        Message::PreVote(vote),
        Message::PreVoteResponse { granted: true },
        Message::RequestVote(vote),
        Message::RequestVoteResponse {
            granted: false,
            last_index: Index(4),
            last_term: Term(2),
        },
        Message::AppendEntries {
            prev_index: Index(4),
            prev_term: Term(2),
            commit: Index(3),
            blocks,
        },
        Message::AppendEntriesResponse(AppendResponse::Accepted { last: Index(6) }),
        Message::AppendEntriesResponse(rejected),
        Message::TimeoutNow,
        Message::TransferLeadership { to: id(3) },
        Message::InstallSnapshot {
            snapshot: Snapshot {
                index: Index(9),
                term: Term(3),
                membership: Membership::default(),
            },
        },
        Message::ProposeConfChange {
            request: 4,
            change: ConfChange::new(Transition::Explicit, vec![Change::Learner(id(3))]),
        },
        Message::Propose {
            first_request: 8,
            payloads: vec![Bytes::from_static(b"p"), Bytes::new()],
        },
        Message::ProposeResponse {
            first_request: 8,
            count: 2,
            index: Some(Index(7)),
        },
        Message::ProposeResponse {
            first_request: 8,
            count: 2,
            index: None,
        },
        Message::ReadIndex { request: 5 },
        Message::ReadIndexResponse {
            request: 5,
            index: Some(Index(1)),
        },
        Message::ReadIndexResponse {
            request: 5,
            index: None,
        },
    ]
}

fn frame(items: &[Item]) -> Vec<u8> {
    let mut builder = FrameBuilder::default();
    for item in items {
        builder.push(item);
    }
    builder.finish().concat()
}

fn decode(frame: &[u8]) -> Result<Vec<Item>, Error> {
    let header = frame.first_chunk::<HEADER_BYTES>().ok_or(Error::Closed)?;
    decode_body(
        decode_header(header)?,
        Bytes::copy_from_slice(&frame[HEADER_BYTES..]),
    )
}

#[test]
fn every_message_comes_back_and_no_changed_frame_does() {
    let items: Vec<Item> = every_message()
        .into_iter()
        .map(|message| Item {
            group: GroupId(3),
            term: Term(11),
            message,
        })
        .collect();
    let whole = frame(&items);
    assert_eq!(decode(&whole).unwrap(), items);
    for cut in 0..whole.len() {
        assert!(decode(&whole[..cut]).is_err(), "cut at {cut}");
    }
    for bit in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&changed).is_err(), "bit {bit}");
    }
}

#[test]
fn a_thousand_heartbeats_are_one_small_frame() {
    let beat = |group| Item {
        group: GroupId(group),
        term: Term(1),
        message: Message::Heartbeat {
            commit: Index(1),
            read_round: 0,
        },
    };
    let items: Vec<Item> = (1..=1000).map(beat).collect();
    let whole = frame(&items);
    assert!(whole.len() < 29_000, "{} bytes", whole.len());
    assert_eq!(decode(&whole).unwrap(), items);
}

#[test]
fn lengths_beyond_the_limits_are_refused_at_the_header() {
    for (meta, blocks) in [(u32::MAX, 0), (0, u32::MAX)] {
        let mut header = BytesMut::new();
        header.put_u32_le(meta);
        header.put_u32_le(blocks);
        header.put_u32_le(0);
        header.put_u32_le(1);
        assert!(decode_header(header.first_chunk().unwrap()).is_err());
    }
}
