//! A node that nobody can dial says where it is.
//!
//! Of a pair the lower id dials. If only the higher one knows where the other is, nobody does:
//! 1. node 7 shall join the group of nodes 1 to 3, and is told their addresses; 2. they learn that of
//!    node 7 with the change of the membership; 3. node 7's request for this change never arrives.
//!
//! The same befalls a higher id that comes back on another address. So a node that has no connection
//! for messages with a lower id dials it, says where it can itself be reached, and is dialled:
//!
//! ```text
//! higher id                                lower id
//!   hello, kind 3                      ─▶
//!                                      ◀─  hello
//!   u16 port | u16 host bytes
//!   | host, UTF-8 | u32 crc32          ─▶  learns the address
//!                                      ◀─  closes
//!                                      ◀─  dials it: hello, kind 1
//! ```
//! The checksum is that of the bytes before it, from the port on. An empty host stands for the IP
//! address that the introduction comes from. A peer that answers with minor version 0 is not sent the
//! address: it would not understand it.
//!
//! Invariants: an introduction never ends a connection; an introduction that fails is nobody's
//! failure, and is told to nobody: it comes again, ever less often, until the lower id has dialled.

use bytes::{BufMut, Bytes, BytesMut};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::error::Error;
use crate::handshake;
use crate::peer::Peer;

/// The longest host that an introduction can name; no name in the DNS is longer.
pub const MAX_HOST_BYTES: usize = 255;
const HEAD_BYTES: usize = 4;
const CRC_BYTES: usize = 4;

/// Introduces this node to a peer with a lower id whenever it has been without a connection for
/// [`Config::introduce_after`], until it has one. `own` is where this node can be reached.
pub async fn introduce_forever(config: &Config, peer: &Peer, own: &PeerAddress) {
    let mut connected = peer.connected();
    while connected.wait_for(|&up| !up).await.is_ok() {
        let mut backoff = Backoff::new(config);
        // By itself the lower id dials again soon.
        let mut news = wait(&mut connected, tokio::time::sleep(config.introduce_after)).await;
        while news == News::None {
            introduce_once(config, peer, own).await;
            news = wait(&mut connected, backoff.pause()).await;
        }
    }
}

async fn introduce_once(config: &Config, peer: &Peer, own: &PeerAddress) {
    let address = peer.addresses.borrow().dialled().cloned();
    let Some(address) = address else {
        return;
    };
    let introducing = introduce(config, peer.node, &address, own);
    let result = tokio::time::timeout(config.handshake_timeout, introducing).await;
    let node = peer.node;
    match result.unwrap_or(Err(Error::Silent)) {
        Ok(()) => tracing::debug!(%node, %address, "introduced itself"),
        Err(error) => tracing::debug!(%node, %address, %error, "could not introduce itself"),
    }
}

/// Whether the connection came while something else was waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    None,
    Connected,
}

async fn wait(connected: &mut watch::Receiver<bool>, pause: impl Future<Output = ()>) -> News {
    tokio::select! {
        biased;
        _ = connected.wait_for(|&up| up) => News::Connected,
        () = pause => News::None,
    }
}

/// Returns when the peer has taken the address, or refused it: it closes in both cases.
async fn introduce(
    config: &Config,
    peer: NodeId,
    address: &PeerAddress,
    own: &PeerAddress,
) -> Result<(), Error> {
    let mut stream = handshake::connect_to_introduce(config, peer, address).await?;
    stream.write_all(&encode(own)).await?;
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(Error::Malformed("an answer to an introduction")),
    }
}

/// What follows the hello of an introduction.
pub fn encode(address: &PeerAddress) -> Bytes {
    let host = address.host.as_bytes();
    let host_bytes = u16::try_from(host.len()).expect("Config::validate checks the length");
    let mut out = BytesMut::with_capacity(HEAD_BYTES + host.len() + CRC_BYTES);
    out.put_u16_le(address.port);
    out.put_u16_le(host_bytes);
    out.put_slice(host);
    out.put_u32_le(crc32fast::hash(&out));
    out.freeze()
}

/// Reads what [`encode`] wrote. The host may be empty, the port is none of zero.
pub async fn read(reader: &mut (impl AsyncRead + Unpin)) -> Result<PeerAddress, Error> {
    let mut head = [0; HEAD_BYTES];
    reader.read_exact(&mut head).await?;
    let [port_low, port_high, length_low, length_high] = head;
    let port = u16::from_le_bytes([port_low, port_high]);
    let host_bytes = usize::from(u16::from_le_bytes([length_low, length_high]));
    if host_bytes > MAX_HOST_BYTES {
        return Err(Error::Malformed("the host of an introduction is too long"));
    }
    let mut host = vec![0; host_bytes];
    reader.read_exact(&mut host).await?;
    let crc = reader.read_u32_le().await?;
    if crc != crc32fast::hash(&[&head[..], &host].concat()) {
        return Err(Error::Checksum);
    }
    if port == 0 {
        return Err(Error::Malformed("port 0 in an introduction"));
    }
    let host = String::from_utf8(host)
        .map_err(|_| Error::Malformed("the host of an introduction is not UTF-8"))?;
    // It will stand in logs.
    if host.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::Malformed("no host in an introduction"));
    }
    Ok(PeerAddress { host, port })
}
