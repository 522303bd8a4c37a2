//! Ends of connections for snapshots that break the rules, or say nothing.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use multiraft_engine::raft::message::Message;
use multiraft_engine::snapshot::SnapshotSending::{Aborted, Completed, Started};
use multiraft_engine::traits::Transport;
use multiraft_engine::types::{GroupId, Term};
use multiraft_transport::Config;
use multiraft_transport::metrics::PeerLabel;
use multiraft_transport::snapshot::{Frame, Offer, Refusal, wire};
use support::node::{CHUNK, End, arrived, end, local, two_nodes, wait_until};
use support::{PATIENCE, file, id, install};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HELLO_BYTES: usize = 40;

/// A hello for snapshots, as `transport/src/handshake.rs` describes it.
fn hello(from: u32, to: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"MRFT");
    out.put_u16_le(2);
    out.put_u16_le(0);
    out.put_u64_le(1);
    out.put_u32_le(from);
    out.put_u32_le(to);
    out.put_u64_le(77);
    out.put_u32_le(2);
    out.put_u32_le(crc32fast::hash(&out));
    out.to_vec()
}

/// A sender of our own making has said its hello.
async fn call(receiver: &End, from: u32) -> TcpStream {
    let address = receiver.transport.local_addr();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&hello(from, 1)).await.unwrap();
    stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
    stream
}

fn offer(group: u32, bytes: usize) -> Frame {
    let Message::InstallSnapshot { snapshot } = install(group, 2, 1, 7).message else {
        unreachable!();
    };
    Frame::Offer(Offer {
        group: GroupId(group),
        term: Term(3),
        snapshot,
        bytes: bytes as u64,
        checksum: crc32fast::hash(&file(bytes)),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_says_nothing_is_dialled_again_and_given_up_in_the_end() {
    let impatient = |config: &mut Config| {
        config.ping_period = Duration::from_millis(20);
        config.silence_timeout = Duration::from_millis(60);
        config.snapshots.stall_timeout = Duration::from_secs(1);
    };
    let (sender, _) = two_nodes(1, CHUNK, impatient, |_| {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    sender.transport.set_peer(id(1), local(port));
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    let mut held = Vec::new();
    for _call in 0..2 {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
        stream.write_all(&hello(1, 2)).await.unwrap();
        held.push(stream);
    }
    assert_eq!(sender.wait_ended(1), [Aborted]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partial_file_is_deleted_when_its_sender_does_not_return() {
    let change = |config: &mut Config| {
        config.snapshots.stall_timeout = Duration::from_millis(200);
        config.snapshots.partial_retention = Duration::from_millis(200);
    };
    let receiver = end(1, change).await;
    let mut stream = call(&receiver, 2).await;
    let offer = offer(4, 20);
    stream.write_all(&wire::encode(&offer)).await.unwrap();
    wait_until("it begins", || receiver.store.inner().most_partial == 1).await;
    wait_until("it is deleted", || receiver.store.inner().partial == 0).await;
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "a silent sender is still connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames_end_their_connection_and_nothing_else() {
    let (sender, receiver) = two_nodes(1, CHUNK, |_| {}, |_| {}).await;
    let chunk = |offset, bytes: &'static [u8]| {
        let bytes = bytes.into();
        wire::encode(&Frame::Chunk { offset, bytes }).to_vec()
    };
    let mut torn = chunk(0, b"torn");
    torn[21] ^= 1;
    let mut oversized = chunk(0, b"x");
    oversized[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let hostile = [
        ("noise", vec![0xA5; 64]),
        ("a wrong checksum", torn),
        ("a length beyond the limit", oversized),
        ("a gap", chunk(1, b"gap")),
        ("more than announced", chunk(0, &[0; 21])),
        ("a second offer", wire::encode(&offer(5, 3)).to_vec()),
        ("a receiver's frame", wire::encode(&Frame::Done).to_vec()),
        ("a ping of messages", vec![0; 16]),
    ];
    let label = PeerLabel { peer: 3 };
    for (count, (what, bytes)) in (1..).zip(hostile) {
        let mut stream = call(&receiver, 3).await;
        let offer = wire::encode(&offer(4, 20));
        stream.write_all(&offer).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let failures = receiver.transport.metrics().failures.clone();
        let counted = || failures.get_or_create(&label).get() == count;
        wait_until(what, counted).await;
    }
    assert_eq!(receiver.store.inner().partial, 1, "the offered file waits");
    sender.transport.send_snapshot(install(1, 2, 1, 7));
    assert_eq!(sender.wait_ended(1), [Started, Completed]);
    assert_eq!(receiver.wait_received(), arrived(1, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_told_to_come_again() {
    let single = |config: &mut Config| config.snapshots.parallel_receives = 1;
    let receiver = end(1, single).await;
    let mut idle = Vec::new();
    for from in 2..6 {
        idle.push(call(&receiver, from).await);
    }
    let mut late = call(&receiver, 7).await;
    late.write_all(&wire::encode(&offer(4, 20))).await.unwrap();
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).await.unwrap();
    let busy = Frame::Refuse(Refusal::Busy);
    assert_eq!(wire::decode(answer.into()).unwrap(), busy);
    assert_eq!(receiver.store.inner().most_partial, 0);
}
