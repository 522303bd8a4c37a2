//! Ends that break the rules: none of them is believed, none of them costs more than itself.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress, Transport};
use multiraft_engine::types::{GroupId, Term};
use multiraft_transport::{Config, TcpTransport};
use support::store::MemoryStore;
use support::{Observer, PATIENCE, Seen, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

const HELLO_BYTES: usize = 40;
const MESSAGES: u32 = 1;
const SNAPSHOTS: u32 = 2;

struct End {
    transport: Arc<TcpTransport>,
    seen: mpsc::Receiver<Seen>,
}

/// Node 5 of cluster 1, which gives up quickly.
async fn five(change: impl FnOnce(&mut Config)) -> End {
    let mut config = Config {
        handshake_timeout: Duration::from_millis(300),
        ping_period: Duration::from_millis(50),
        silence_timeout: Duration::from_millis(400),
        ..Config::new(1, id(5), 1)
    };
    change(&mut config);
    let transport = TcpTransport::bind(config, MemoryStore::default().shared(), Handle::current())
        .await
        .unwrap();
    let (sender, seen) = mpsc::channel();
    transport.set_observer(Arc::new(Observer(sender)));
    End { transport, seen }
}

impl End {
    async fn call(&self) -> TcpStream {
        let address = self.transport.local_addr();
        TcpStream::connect(address).await.unwrap()
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).expect("seen in time")
    }

    fn next_is(&self, node: u32, state: ConnectionState) {
        assert_eq!(
            self.next(),
            Seen::Connection(id(node), ConnectionKind::Messages, state)
        );
    }

    /// What is seen of the connection of a node that says the right hello.
    async fn met(&self, node: u32) -> TcpStream {
        let mut stream = self.call().await;
        let hello = hello(2, 1, node, 5, MESSAGES);
        stream.write_all(&hello).await.unwrap();
        stream.read_exact(&mut [0; HELLO_BYTES]).await.unwrap();
        self.next_is(node, ConnectionState::Established);
        stream
    }

    async fn wait_refused(&self, count: u64) {
        let began = Instant::now();
        while self.transport.metrics().refused.get() < count {
            assert!(began.elapsed() < PATIENCE, "not refused");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A hello as `transport/src/handshake.rs` describes it.
fn hello(major: u16, cluster: u64, from: u32, to: u32, kind: u32) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_slice(b"MRFT");
    out.put_u16_le(major);
    out.put_u16_le(0);
    out.put_u64_le(cluster);
    out.put_u32_le(from);
    out.put_u32_le(to);
    out.put_u64_le(77);
    out.put_u32_le(kind);
    out.put_u32_le(crc32fast::hash(&out));
    out.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_hello_is_refused_and_the_next_good_one_is_served() {
    let five = five(|_| {}).await;
    let mut torn = hello(2, 1, 2, 5, MESSAGES);
    torn[9] ^= 1;
    let wrong = [
        ("another version", hello(3, 1, 2, 5, MESSAGES)),
        ("another cluster", hello(2, 9, 2, 5, MESSAGES)),
        ("meant for another node", hello(2, 1, 2, 6, MESSAGES)),
        ("no node id", hello(2, 1, 0, 5, MESSAGES)),
        ("our own id", hello(2, 1, 5, 5, MESSAGES)),
        ("an id that should be dialled", hello(2, 1, 6, 5, MESSAGES)),
        ("a kind of connection that is none", hello(2, 1, 2, 5, 4)),
        ("our own id, with snapshots", hello(2, 1, 5, 5, SNAPSHOTS)),
        ("a changed byte", torn),
        (
            "another protocol",
            b"GET / HTTP/1.1\r\nHost: multiraft\r\n\r\n".to_vec(),
        ),
        ("nothing at all", vec![]),
        ("half a hello", hello(2, 1, 2, 5, MESSAGES)[..20].to_vec()),
    ];
    for (count, (what, bytes)) in (1..).zip(wrong) {
        let mut stream = five.call().await;
        stream.write_all(&bytes).await.unwrap();
        five.wait_refused(count).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{what}: still connected");
    }
    five.met(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_falls_silent_is_given_up_and_reported() {
    let five = five(|_| {}).await;
    let _held_open = five.met(2).await;
    five.next_is(2, ConnectionState::Failed);
    assert_eq!(five.next(), Seen::Down(id(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_frame_end_the_connection_and_prove_nothing_about_the_node() {
    let five = five(|_| {}).await;
    let mut oversized = BytesMut::new();
    for word in [u32::MAX, u32::MAX, 0, 1] {
        oversized.put_u32_le(word);
    }
    for bytes in [&oversized[..], &[0xA5; 64][..]] {
        let mut stream = five.met(2).await;
        stream.write_all(bytes).await.unwrap();
        five.next_is(2, ConnectionState::Failed);
    }
    five.met(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_of_two_connections_of_a_node_stays() {
    let five = five(|config| config.silence_timeout = PATIENCE).await;
    let mut older = five.met(2).await;
    let mut newer = five.met(2).await;
    let mut rest = Vec::new();
    older.read_to_end(&mut rest).await.unwrap();
    newer.read_exact(&mut [0; 16]).await.expect("a ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_does_not_read_fills_a_bounded_queue() {
    let limit = 1 << 20;
    let five = five(|config| {
        config.queue_bytes = limit;
        config.silence_timeout = PATIENCE;
    })
    .await;
    let _deaf = five.met(2).await;
    let payload = Bytes::from(vec![7; 64 << 10]);
    let message = |first_request| Envelope {
        group: GroupId(1),
        from: id(5),
        to: id(2),
        term: Term(1),
        incarnation: 0,
        message: Message::Propose {
            first_request,
            payloads: vec![payload.clone()],
        },
    };
    let metrics = five.transport.metrics().clone();
    let label = multiraft_transport::metrics::PeerLabel { peer: 2 };
    let began = Instant::now();
    let mut request = 0;
    while metrics.dropped.get_or_create(&label).get() < 100 {
        assert!(began.elapsed() < PATIENCE, "nothing is dropped");
        five.transport.send(vec![message(request)]);
        request += 1;
        let queued = metrics.queue_bytes.get_or_create(&label).get();
        assert!(
            usize::try_from(queued).unwrap() <= limit,
            "{queued} bytes wait"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_connections_are_tried_ever_less_often() {
    let five = five(|config| {
        config.backoff_min = Duration::from_millis(200);
        config.backoff_max = Duration::from_secs(60);
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let host = "127.0.0.1".to_owned();
    five.transport.set_peer(id(6), PeerAddress { host, port });
    let mut calls = 0;
    let calling = async {
        loop {
            drop(listener.accept().await.unwrap());
            calls += 1;
        }
    };
    // Pauses of at least 100, 200, 400 and 800 ms: a slow machine can only make it fewer calls.
    let _elapsed = tokio::time::timeout(Duration::from_millis(1400), calling).await;
    assert!((1..=4).contains(&calls), "{calls} calls");
    five.next_is(6, ConnectionState::Failed);
}
