//! A proxy that counts bytes and breaks connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub struct Proxy {
    pub port: u16,
    /// Bytes from those who dial.
    pub forwarded: Arc<AtomicU64>,
}

impl Proxy {
    /// To `target`; the first connections break after so many bytes of the dialler, all others hold.
    pub async fn new(target: SocketAddr, cuts: Vec<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let forwarded = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&forwarded);
        tokio::spawn(async move {
            let mut cuts = cuts.into_iter();
            loop {
                let (from, _) = listener.accept().await.unwrap();
                let to = TcpStream::connect(target).await.unwrap();
                let cut = cuts.next().unwrap_or(u64::MAX);
                tokio::spawn(forward(from, to, cut, Arc::clone(&counter)));
            }
        });
        Self { port, forwarded }
    }
}

async fn forward(mut from: TcpStream, mut to: TcpStream, cut: u64, counter: Arc<AtomicU64>) {
    let (mut from_reader, mut from_writer) = from.split();
    let (mut to_reader, mut to_writer) = to.split();
    let there = async {
        let mut buffer = vec![0; 16 << 10];
        let mut left = cut;
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let bytes = from_reader.read(&mut buffer[..most]).await.unwrap_or(0);
            if bytes == 0 || to_writer.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
            left -= bytes as u64;
            counter.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    };
    let back = tokio::io::copy(&mut to_reader, &mut from_writer);
    tokio::select! {
        () = there => {}
        _ = back => {}
    }
}
