//! A peer of our own making, byte by byte as `transport/src/handshake.rs` describes it.

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::PATIENCE;
use super::node::End;

pub const MESSAGES: u32 = 1;
pub const INTRODUCTION: u32 = 3;
const HELLO_BYTES: usize = 40;

/// What tells one hello of cluster 1 from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    pub minor: u16,
    pub from: u32,
    pub to: u32,
    pub kind: u32,
}

impl Hello {
    pub fn encode(self) -> Vec<u8> {
        let mut out = BytesMut::new();
        out.put_slice(b"MRFT");
        out.put_u16_le(2);
        out.put_u16_le(self.minor);
        out.put_u64_le(1);
        out.put_u32_le(self.from);
        out.put_u32_le(self.to);
        out.put_u64_le(77);
        out.put_u32_le(self.kind);
        out.put_u32_le(crc32fast::hash(&out));
        out.to_vec()
    }

    pub async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = [0; HELLO_BYTES];
        stream.read_exact(&mut bytes).await.unwrap();
        let minor = (&bytes[6..]).get_u16_le();
        let mut rest = &bytes[16..];
        let (from, to) = (rest.get_u32_le(), rest.get_u32_le());
        let kind = (&rest[8..]).get_u32_le();
        Self {
            minor,
            from,
            to,
            kind,
        }
    }

    /// The answer of a node with this minor version.
    pub fn answer(self, minor: u16) -> Vec<u8> {
        let answer = Self {
            minor,
            from: self.to,
            to: self.from,
            ..self
        };
        answer.encode()
    }
}

/// Where nodes of our own making are.
pub struct Place {
    pub listener: TcpListener,
    pub port: u16,
}

impl Place {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        Self { listener, port }
    }

    /// Who calls next, not answered yet.
    pub async fn called(&self) -> (TcpStream, Hello) {
        let calling = async {
            let (mut stream, _) = self.listener.accept().await.unwrap();
            let hello = Hello::read(&mut stream).await;
            (stream, hello)
        };
        let called = tokio::time::timeout(PATIENCE, calling).await;
        called.expect("called in time")
    }

    /// As [`Place::called`], and answered.
    pub async fn answered(&self) -> (TcpStream, Hello) {
        let (mut stream, hello) = self.called().await;
        stream.write_all(&hello.answer(1)).await.unwrap();
        (stream, hello)
    }
}

/// Calls a node and says this hello; the answer has been read.
pub async fn call(end: &End, hello: Hello) -> TcpStream {
    let address = end.transport.local_addr();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&hello.encode()).await.unwrap();
    Hello::read(&mut stream).await;
    stream
}

/// What follows the hello of an introduction.
pub fn told(host: &[u8], port: u16) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u16_le(port);
    out.put_u16_le(host.len().try_into().unwrap());
    out.put_slice(host);
    out.put_u32_le(crc32fast::hash(&out));
    out.to_vec()
}

/// Introduces node `from` to node 1 as being there; returns when node 1 has dealt with it.
pub async fn introduce(one: &End, from: u32, host: &str, port: u16) {
    let hello = Hello {
        minor: 1,
        from,
        to: 1,
        kind: INTRODUCTION,
    };
    let mut stream = call(one, hello).await;
    stream
        .write_all(&told(host.as_bytes(), port))
        .await
        .unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, [], "it closes without a word");
}
