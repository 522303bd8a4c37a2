//! Introductions that are none, or are too many.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::time::Duration;

use multiraft_engine::traits::ConnectionState::{self, Established, Failed};
use multiraft_engine::traits::{ConnectionKind, Transport};
use multiraft_transport::Config;
use prometheus_client::registry::Registry;
use support::node::{End, end, local, wait_until};
use support::raw::{Hello, INTRODUCTION, Place, call, introduce, told};
use support::{PATIENCE, Seen, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn wait_refused(one: &End, count: u64) {
    let refused = one.transport.metrics().refused.clone();
    wait_until("it is refused", || refused.get() >= count).await;
    assert_eq!(refused.get(), count);
}

fn wait_for(one: &End, node: u32, state: ConnectionState) {
    while one.next() != Seen::Connection(id(node), ConnectionKind::Messages, state) {}
}

/// The hello of an introduction to node 1.
fn hello(from: u32) -> Hello {
    Hello {
        minor: 1,
        from,
        to: 1,
        kind: INTRODUCTION,
    }
}

async fn wait_closed(mut stream: TcpStream, what: &str) {
    let mut rest = Vec::new();
    // A node that closes with bytes unread resets the connection.
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "{what}: still connected");
    assert_eq!(rest, [], "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_introduction_is_refused_and_the_next_good_one_is_heard() {
    let impatient = |config: &mut Config| config.handshake_timeout = Duration::from_millis(300);
    let one = end(1, impatient).await;
    let two = Place::new().await;
    let good = told(b"127.0.0.1", two.port);
    let mut torn = good.clone();
    torn[5] ^= 1;
    let wrong = [
        ("a host that is too long", told(&[b'h'; 256], two.port)),
        ("no UTF-8", told(&[0xC3, 0x28], two.port)),
        ("lines for the log", told(b"\n127.0.0.1", two.port)),
        ("a blank", told(b"127.0.0.1 ", two.port)),
        ("a changed byte", torn),
        ("port 0", told(b"127.0.0.1", 0)),
        ("only the port", good[..2].to_vec()),
        ("half a host", good[..9].to_vec()),
        ("no checksum", good[..good.len() - 4].to_vec()),
        ("nothing", vec![]),
    ];
    let mut count = 0;
    for (what, bytes) in &wrong {
        let mut held = call(&one, hello(2)).await;
        held.write_all(bytes).await.unwrap();
        let mut cut = call(&one, hello(2)).await;
        cut.write_all(bytes).await.unwrap();
        cut.shutdown().await.unwrap();
        count += 2;
        wait_refused(&one, count).await;
        wait_closed(held, what).await;
        wait_closed(cut, what).await;
    }
    introduce(&one, 2, "127.0.0.1", two.port).await;
    let (_called, hello) = two.answered().await;
    assert_eq!(hello.to, 2);
    let up = Seen::Connection(id(2), ConnectionKind::Messages, Established);
    assert_eq!(one.next(), up, "nobody was dialled before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_dial_or_is_nobody_does_not_introduce_itself() {
    let five = end(5, |_| {}).await;
    for (count, from) in (1..).zip([0, 4, 5]) {
        let stranger = Hello {
            to: 5,
            ..hello(from)
        };
        let mut stream = call(&five, stranger).await;
        // Refused already, or not: then it is a good introduction.
        drop(stream.write_all(&told(b"127.0.0.1", 1)).await);
        wait_refused(&five, count).await;
        wait_closed(stream, "a lower id").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_strangers_are_kept_and_no_trace_of_the_others() {
    let few = |config: &mut Config| {
        config.introduced_peers = 2;
        config.handshake_timeout = PATIENCE;
    };
    let one = end(1, few).await;
    let place = Place::new().await;
    one.transport.set_peer(id(5), local(place.port));
    let (_five, hello) = place.called().await;
    assert_eq!(hello.to, 5);
    let mut held = Vec::new();
    for stranger in [6, 7] {
        introduce(&one, stranger, "127.0.0.1", place.port).await;
        let (stream, hello) = place.called().await;
        assert_eq!(hello.to, stranger);
        held.push((stream, hello));
    }
    introduce(&one, 8, "127.0.0.1", place.port).await;
    wait_refused(&one, 1).await;
    // Those that are known may say where they are.
    introduce(&one, 5, "127.0.0.1", place.port).await;
    introduce(&one, 6, "127.0.0.1", place.port).await;
    // Node 7 is told, node 6 is not found any more: two others have their places.
    one.transport.set_peer(id(7), local(place.port));
    let (mut six, hello) = held.remove(0);
    six.write_all(&hello.answer(1)).await.unwrap();
    wait_for(&one, 6, Established);
    drop(six);
    wait_for(&one, 6, Failed);
    drop(place.called().await);
    wait_for(&one, 6, Failed);
    for stranger in [8, 9] {
        introduce(&one, stranger, "127.0.0.1", place.port).await;
        let (stream, hello) = place.called().await;
        assert_eq!(hello.to, stranger);
        held.push((stream, hello));
    }
    introduce(&one, 6, "127.0.0.1", place.port).await;
    wait_refused(&one, 2).await;
    let mut registry = Registry::default();
    one.transport.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(!text.contains("peer=\"6\""), "{text}");
}
