//! A slow and breakable link between two nodes: a TCP proxy on loopback.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by tests that each use a part"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// What a connection passes on at once, bytes.
const PIECE_BYTES: usize = 16 << 10;

/// All connections to one node, which share a rate in its direction.
pub struct Proxy {
    pub port: u16,
    link: Arc<Link>,
}

struct Link {
    bytes_per_second: u64,
    /// When all that was passed on so far has passed at the rate.
    paid: Mutex<Instant>,
    passed: AtomicU64,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    passed: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Proxy {
    /// A link to a port of this machine that passes so many bytes a second on.
    pub async fn start(target: u16, bytes_per_second: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let link = Arc::new(Link {
            bytes_per_second,
            paid: Mutex::new(Instant::now()),
            passed: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        tokio::spawn(accept(listener, target, Arc::clone(&link)));
        Self { port, link }
    }

    /// Bytes passed on to the node so far.
    pub fn passed(&self) -> u64 {
        self.link.passed.load(Ordering::Relaxed)
    }

    /// Breaks the open connection that has passed most.
    pub fn cut(&self) {
        let connections = self.link.connections.lock();
        let open = connections.iter().filter(|c| !c.task.is_finished());
        let most = open.max_by_key(|c| c.passed.load(Ordering::Relaxed));
        most.expect("there is a connection").task.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, link: Arc<Link>) {
    loop {
        let (inside, _) = listener.accept().await.unwrap();
        let passed = Arc::new(AtomicU64::new(0));
        let connection = connect(inside, target, Arc::clone(&link), Arc::clone(&passed));
        let task = tokio::spawn(connection).abort_handle();
        link.connections.lock().push(Connection { passed, task });
    }
}

/// Ends when either side does, or when it is cut; both sides are closed then.
async fn connect(inside: TcpStream, target: u16, link: Arc<Link>, passed: Arc<AtomicU64>) {
    let Ok(outside) = TcpStream::connect(("127.0.0.1", target)).await else {
        return; // the node is down
    };
    let ((from, back), (answers, to)) = (inside.into_split(), outside.into_split());
    tokio::select! {
        () = pass(from, to, Some((&link, &passed))) => {}
        () = pass(answers, back, None) => {}
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    limits: Option<(&Link, &AtomicU64)>,
) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match from.read(&mut piece).await {
            Ok(count) if count > 0 => count,
            Ok(_) | Err(_) => return,
        };
        if let Some((link, passed)) = limits {
            let bytes = count as u64;
            let due = link.reserve(bytes);
            tokio::time::sleep_until(due).await;
            passed.fetch_add(bytes, Ordering::Relaxed);
            link.passed.fetch_add(bytes, Ordering::Relaxed);
        }
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

impl Link {
    fn reserve(&self, bytes: u64) -> Instant {
        let mut paid = self.paid.lock();
        let nanos = bytes * 1_000_000_000 / self.bytes_per_second;
        *paid = (*paid).max(Instant::now()) + Duration::from_nanos(nanos);
        *paid
    }
}
