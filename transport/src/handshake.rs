//! Who is at the other end, and what the connection is for: said once for each, by both ends.
//!
//! ```text
//! hello: "MRFT" | u16 major | u16 minor | u64 cluster | u32 from | u32 to | u64 incarnation
//!        | u32 kind: 1 messages, 2 snapshots, 3 introduction | u32 crc32
//! ```
//! The dialler says hello, the acceptor answers with its own, even when it refuses, so that both
//! logs can say why. Another major version is refused, and the hello keeps its length within one; a
//! newer minor version must understand ours.
//!
//! Messages go both ways on one connection a pair, which the lower id dials. Snapshots go one way:
//! who sends them dials, and may have several connections. An introduction is for a higher id that is
//! not dialled: an address follows its hello, and then nothing more ([`crate::introduce`]). Minor
//! version 0 knows no introductions.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multiraft_engine::traits::{ConnectionKind, PeerAddress};
use multiraft_engine::types::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;
use crate::error::Error;
use crate::introduce;

const MAGIC: &[u8; 4] = b"MRFT";
const MAJOR: u16 = 2;
const MINOR: u16 = 1;
const MESSAGES: u32 = 1;
const SNAPSHOTS: u32 = 2;
const INTRODUCTION: u32 = 3;
/// From this minor version on.
const KNOWS_INTRODUCTIONS: u16 = 1;
const HELLO_BYTES: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hello {
    major: u16,
    minor: u16,
    cluster_id: u64,
    from: u32,
    to: u32,
    incarnation: u64,
    kind: u32,
}

/// What an accepted connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Who dialled.
    pub node: NodeId,
    /// Which life of its data speaks.
    pub incarnation: u64,
    /// What it is for.
    pub purpose: Purpose,
}

/// What an accepted connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// It carries messages, both ways.
    Messages,
    /// It carries a snapshot from who dialled.
    Snapshots,
    /// It has told where who dialled can be reached.
    Introduction(PeerAddress),
}

/// Connects to a peer and says hello; returns once the other end agreed, with its incarnation.
pub async fn connect(
    config: &Config,
    peer: NodeId,
    address: &PeerAddress,
    kind: ConnectionKind,
) -> Result<(TcpStream, u64), Error> {
    let connecting = async {
        let mut stream = open(address).await?;
        let theirs = greet(&mut stream, config, peer, number(kind)).await?;
        Ok((stream, theirs.incarnation))
    };
    let result = tokio::time::timeout(config.handshake_timeout, connecting).await;
    result.unwrap_or(Err(Error::Silent))
}

/// Connects to a peer and says the hello of an introduction; returns once the other end agreed, and
/// waits for the address. Takes as long as the peer likes.
pub(crate) async fn connect_to_introduce(
    config: &Config,
    peer: NodeId,
    address: &PeerAddress,
) -> Result<TcpStream, Error> {
    let mut stream = open(address).await?;
    let theirs = greet(&mut stream, config, peer, INTRODUCTION).await?;
    if theirs.minor < KNOWS_INTRODUCTIONS {
        return Err(Error::Refused("its version knows no introductions"));
    }
    Ok(stream)
}

async fn open(address: &PeerAddress) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn greet(
    stream: &mut TcpStream,
    config: &Config,
    peer: NodeId,
    kind: u32,
) -> Result<Hello, Error> {
    let ours = hello(config, peer.get(), kind);
    stream.write_all(&encode(ours)).await?;
    let theirs = read(stream).await?;
    check(config, theirs)?;
    if theirs.from != peer.get() {
        return Err(Error::Node {
            expected: peer.get(),
            found: theirs.from,
        });
    }
    if theirs.kind != ours.kind {
        return Err(Error::Malformed("an answer for another kind of connection"));
    }
    Ok(theirs)
}

/// Accepts: learns who dials and what for; answers before it refuses.
pub async fn accept(stream: &mut TcpStream, config: &Config) -> Result<Accepted, Error> {
    stream.set_nodelay(true)?;
    let theirs = read(stream).await?;
    let answer = encode(hello(config, theirs.from, theirs.kind));
    stream.write_all(&answer).await?;
    check(config, theirs)?;
    let node = check_dialler(config, theirs)?;
    let purpose = match theirs.kind {
        MESSAGES => Purpose::Messages,
        SNAPSHOTS => Purpose::Snapshots,
        INTRODUCTION => Purpose::Introduction(read_introduction(stream).await?),
        _ => return Err(Error::Malformed("an unknown kind of connection")),
    };
    Ok(Accepted {
        node,
        incarnation: theirs.incarnation,
        purpose,
    })
}

/// Who dials, if it may for this kind of connection.
fn check_dialler(config: &Config, theirs: Hello) -> Result<NodeId, Error> {
    let own = config.node.get();
    let may_dial = match theirs.kind {
        MESSAGES => theirs.from < own,
        INTRODUCTION => theirs.from > own,
        _ => theirs.from != own,
    };
    let node = NodeId::new(theirs.from).filter(|_| may_dial);
    node.ok_or(Error::Refused(
        "of two nodes the lower id dials for messages, the higher introduces itself, nobody dials \
         itself, and ids start at 1",
    ))
}

/// An address that can be dialled: that of the connection stands in for an empty host.
async fn read_introduction(stream: &mut TcpStream) -> Result<PeerAddress, Error> {
    let mut address = introduce::read(stream).await?;
    if address.host.is_empty() {
        address.host = stream.peer_addr()?.ip().to_canonical().to_string();
    }
    Ok(address)
}

fn number(kind: ConnectionKind) -> u32 {
    match kind {
        ConnectionKind::Messages => MESSAGES,
        ConnectionKind::Snapshots => SNAPSHOTS,
    }
}

fn hello(config: &Config, to: u32, kind: u32) -> Hello {
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
        kind,
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
    out.put_u32_le(hello.kind);
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
        kind: fields.get_u32_le(),
    })
}
