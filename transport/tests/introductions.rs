//! Nodes that only the one finds which may not dial.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod support;

use std::io::ErrorKind;
use std::time::Duration;

use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::traits::ConnectionState::{self, Established, Failed};
use multiraft_engine::traits::{ConnectionKind, PeerAddress, Transport};
use multiraft_engine::types::{GroupId, Term};
use multiraft_transport::{Config, Error, introduce as wire};
use support::node::{End, end, local, wait_until};
use support::raw::{self, Hello, INTRODUCTION, MESSAGES, Place, call, introduce};
use support::{Seen, id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

/// Introduces itself as soon as there is no connection, and again soon.
fn eager(config: &mut Config) {
    config.introduce_after = Duration::from_millis(1);
    config.backoff_max = config.backoff_min;
}

fn connection(node: u32, state: ConnectionState) -> Seen {
    Seen::Connection(id(node), ConnectionKind::Messages, state)
}

fn wait_for(end: &End, wanted: &Seen) {
    while end.next() != *wanted {}
}

fn read_index(from: u32, to: u32, request: u64) -> Envelope {
    Envelope {
        group: GroupId(1),
        from: id(from),
        to: id(to),
        term: Term(0),
        incarnation: 70 + u64::from(from), // that of its sender when it arrives
        message: Message::ReadIndex { request },
    }
}

/// A message goes each way; nothing else is seen.
fn exchange((low, one): (u32, &End), (high, two): (u32, &End)) {
    for (from, to, a, b) in [(one, two, low, high), (two, one, high, low)] {
        from.transport.send(vec![read_index(a, b, 5)]);
        assert_eq!(to.next(), Seen::Messages(vec![read_index(a, b, 5)]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_id_that_alone_knows_the_other_is_dialled() {
    let (one, two) = (end(1, |_| {}).await, end(2, eager).await);
    two.transport.set_peer(id(1), local(one.port()));
    assert_eq!(one.next(), connection(2, Established));
    assert_eq!(two.next(), connection(1, Established));
    exchange((1, &one), (2, &two));
    // Now the membership is logged: the same address is no reason to dial anew.
    one.transport.set_peer(id(2), local(two.port()));
    exchange((1, &one), (2, &two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_higher_id_is_found_again_wherever_it_comes_back() {
    let (one, two) = (end(1, eager).await, end(2, eager).await);
    one.transport.set_peer(id(2), local(two.port()));
    wait_for(&one, &connection(2, Established));
    two.transport.shut_down();
    wait_for(&one, &Seen::Down(id(2)));
    for _place in 0..3 {
        let two = end(2, eager).await;
        two.transport.set_peer(id(1), local(one.port()));
        wait_for(&two, &connection(1, Established));
        wait_for(&one, &connection(2, Established));
        exchange((1, &one), (2, &two));
        two.transport.shut_down();
        wait_for(&one, &connection(2, Failed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_introduction_disturbs_a_connection_or_is_kept_for_later() {
    let (one, two) = (end(1, eager).await, end(2, eager).await);
    one.transport.set_peer(id(2), local(two.port()));
    two.transport.set_peer(id(1), local(one.port()));
    wait_for(&one, &connection(2, Established));
    wait_for(&two, &connection(1, Established));
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    introduce(&one, 2, "127.0.0.1", port).await;
    exchange((1, &one), (2, &two));
    two.transport.shut_down();
    for _broken_and_dialled_in_vain in 0..2 {
        wait_for(&one, &connection(2, Failed));
    }
    elsewhere.set_nonblocking(true).unwrap();
    let called = elsewhere.accept().map_err(|error| error.kind());
    assert_eq!(called.err(), Some(ErrorKind::WouldBlock));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_introduced_in_vain_does_not_replace_what_was_told() {
    let one = end(1, |_| {}).await;
    let (right, wrong) = (Place::new().await, Place::new().await);
    one.transport.set_peer(id(2), local(right.port));
    drop(right.called().await);
    assert_eq!(one.next(), connection(2, Failed));
    assert_eq!(one.next(), Seen::Down(id(2)));
    // Whether before or in the next call: that goes to the introduced address, or the next but one.
    introduce(&one, 2, "127.0.0.1", wrong.port).await;
    tokio::select! {
        called = wrong.called() => drop(called),
        () = async { loop { drop(right.called().await); } } => {}
    }
    wait_for(&one, &connection(2, Failed));
    let (connected, _) = right.answered().await;
    wait_for(&one, &connection(2, Established));
    drop(connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_introduced_during_a_call_that_works_is_forgotten() {
    let one = end(1, |_| {}).await;
    let (right, wrong) = (Place::new().await, Place::new().await);
    one.transport.set_peer(id(2), local(right.port));
    let (mut called, hello) = right.called().await;
    introduce(&one, 2, "127.0.0.1", wrong.port).await;
    called.write_all(&hello.answer(1)).await.unwrap();
    assert_eq!(one.next(), connection(2, Established));
    drop(called);
    tokio::select! {
        _ = right.called() => {}
        _ = wrong.called() => panic!("the address that worked was forgotten"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_id_without_introductions_is_called_again_and_found_when_it_dials() {
    let two = end(2, eager).await;
    let one = Place::new().await;
    two.transport.set_peer(id(1), local(one.port));
    drop(one.listener.accept().await.unwrap()); // a failure like any other
    let ours = Hello {
        minor: 1,
        from: 2,
        to: 1,
        kind: INTRODUCTION,
    };
    for _call in 0..2 {
        let (mut stream, hello) = one.called().await;
        assert_eq!(hello, ours);
        stream.write_all(&hello.answer(0)).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [], "it would not be understood");
    }
    let hello = Hello {
        minor: 0,
        from: 1,
        to: 2,
        kind: MESSAGES,
    };
    let stream = call(&two, hello).await;
    let seen = two.next();
    assert_eq!(seen, connection(1, Established), "nothing was seen before");
    drop(stream);
    assert_eq!(two.next(), connection(1, Failed));
    // It introduces itself again. One call may have waited here since before it was found.
    for _call in 0..2 {
        let (mut stream, _) = one.answered().await;
        assert_eq!(stream.read_u16_le().await.unwrap(), two.port());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_the_address_that_it_is_told_to() {
    let advertised = PeerAddress {
        host: "gate.example".to_owned(),
        port: 99,
    };
    for advertise in [None, Some(advertised)] {
        let change = |config: &mut Config| {
            eager(config);
            config.advertise.clone_from(&advertise);
        };
        let two = end(2, change).await;
        let one = Place::new().await;
        two.transport.set_peer(id(1), local(one.port));
        let (mut stream, _) = one.answered().await;
        let told = wire::read(&mut stream).await.unwrap();
        assert_eq!(told, advertise.unwrap_or(local(two.port())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_host_is_where_the_introduction_comes_from() {
    let one = end(1, |_| {}).await;
    let two = Place::new().await;
    introduce(&one, 2, "", two.port).await;
    let (_called, hello) = two.answered().await;
    assert_eq!((hello.to, hello.kind), (2, MESSAGES));
    assert_eq!(one.next(), connection(2, Established));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_called_after_the_end() {
    let two = end(2, eager).await;
    let one = Place::new().await;
    two.transport.set_peer(id(1), local(one.port));
    let _held = one.answered().await;
    two.transport.shut_down();
    let tasks = Handle::current().metrics();
    wait_until("all tasks end", || tasks.num_alive_tasks() == 0).await;
    two.transport.set_peer(id(0x10), local(one.port));
    assert_eq!(tasks.num_alive_tasks(), 0);
}

#[tokio::test]
async fn an_introduction_comes_back_and_no_changed_one_does() {
    for host in ["", "::1", "straße.example", &"h".repeat(255)] {
        let host = host.to_owned();
        let address = PeerAddress { host, port: 7400 };
        let whole = wire::encode(&address);
        assert_eq!(whole, raw::told(address.host.as_bytes(), 7400));
        assert_eq!(wire::read(&mut &whole[..]).await.unwrap(), address);
        for cut in 0..whole.len() {
            let result = wire::read(&mut &whole[..cut]).await;
            assert!(matches!(result, Err(Error::Io(_))), "cut at {cut}");
        }
        for bit in 0..whole.len() * 8 {
            let mut changed = whole.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(wire::read(&mut &changed[..]).await.is_err(), "bit {bit}");
        }
    }
}
