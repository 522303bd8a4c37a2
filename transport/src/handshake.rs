//! Who is at the other end: said once for each connection, by both ends.
//!
//! ```text
//! hello: "MRFT" | u16 major | u16 minor | u64 cluster | u32 from | u32 to | u64 incarnation | u32 crc32
//! ```
//! The dialler says hello, the acceptor answers with its own, even when it refuses, so that both
//! logs can say why. Another major version is refused; a newer minor one must understand ours.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multiraft_engine::types::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::error::Error;

const MAGIC: &[u8; 4] = b"MRFT";
const MAJOR: u16 = 1;
const MINOR: u16 = 0;
const HELLO_BYTES: usize = 36;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hello {
    major: u16,
    minor: u16,
    cluster_id: u64,
    from: u32,
    to: u32,
    incarnation: u64,
}

/// Dials: says who we are and whom we want; returns once the other end agreed.
pub async fn dial(stream: &mut TcpStream, config: &Config, peer: NodeId) -> Result<(), Error> {
    let ours = hello(config, peer.get());
    stream.write_all(&encode(ours)).await?;
    let theirs = read(stream).await?;
    check(config, theirs)?;
    if theirs.from != peer.get() {
        return Err(Error::Node {
            expected: peer.get(),
            found: theirs.from,
        });
    }
    Ok(())
}

/// Accepts: learns who dials; answers before it refuses.
pub async fn accept(stream: &mut TcpStream, config: &Config) -> Result<NodeId, Error> {
    let theirs = read(stream).await?;
    stream
        .write_all(&encode(hello(config, theirs.from)))
        .await?;
    check(config, theirs)?;
    let own = config.node.get();
    match NodeId::new(theirs.from) {
        Some(node) if theirs.from < own => Ok(node),
        _ => Err(Error::Refused(
            "of two nodes the lower id dials, and ids start at 1",
        )),
    }
}

fn hello(config: &Config, to: u32) -> Hello {
    let Config {
        cluster_id,
        node,
        incarnation,
        ..
    } = *config;
    Hello {
        major: MAJOR,
        minor: MINOR,
        cluster_id,
        from: node.get(),
        to,
        incarnation,
    }
}

fn check(config: &Config, theirs: Hello) -> Result<(), Error> {
    if theirs.major != MAJOR {
        return Err(Error::Version {
            theirs: theirs.major,
            ours: MAJOR,
        });
    }
    if theirs.cluster_id != config.cluster_id {
        return Err(Error::Cluster {
            theirs: theirs.cluster_id,
            ours: config.cluster_id,
        });
    }
    if theirs.to != config.node.get() {
        return Err(Error::Node {
            expected: theirs.to,
            found: config.node.get(),
        });
    }
    Ok(())
}

fn encode(hello: Hello) -> Bytes {
    let mut out = BytesMut::with_capacity(HELLO_BYTES);
    out.put_slice(MAGIC);
    out.put_u16_le(hello.major);
    out.put_u16_le(hello.minor);
    out.put_u64_le(hello.cluster_id);
    out.put_u32_le(hello.from);
    out.put_u32_le(hello.to);
    out.put_u64_le(hello.incarnation);
    out.put_u32_le(crc32fast::hash(&out));
    out.freeze()
}

async fn read(stream: &mut TcpStream) -> Result<Hello, Error> {
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes)
}

fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, Error> {
    let (body, mut crc) = bytes.split_at(HELLO_BYTES - 4);
    if &bytes[..4] != MAGIC {
        return Err(Error::Malformed("the other end is no multiraft node"));
    }
    if crc.get_u32_le() != crc32fast::hash(body) {
        return Err(Error::Checksum);
    }
    let mut fields = &body[4..];
    Ok(Hello {
        major: fields.get_u16_le(),
        minor: fields.get_u16_le(),
        cluster_id: fields.get_u64_le(),
        from: fields.get_u32_le(),
        to: fields.get_u32_le(),
        incarnation: fields.get_u64_le(),
    })
}
