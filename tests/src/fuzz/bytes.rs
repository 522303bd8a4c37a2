//! Bytes of a peer.

use arbitrary::Unstructured;
use bytes::{Bytes, BytesMut};
use multiraft_transport::codec::{Item, decode, encode};
use multiraft_transport::frame::{FrameBuilder, HEADER_BYTES, decode_body, decode_header};

/// A frame: what is taken says the same when it is sent on.
pub fn wire_frame(data: &[u8]) {
    let Some(items) = frame(data) else {
        return;
    };
    let mut builder = FrameBuilder::default();
    for item in &items {
        builder.push(item);
    }
    let again = frame(&builder.finish().concat()).expect("our own frame is taken");
    // Heartbeats and answers travel in lists of their own: the order of kinds may change once.
    assert_eq!(sorted(again), sorted(items));
}

fn frame(bytes: &[u8]) -> Option<Vec<Item>> {
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let header = decode_header(header).ok()?;
    decode_body(header, Bytes::copy_from_slice(body)).ok()
}

fn sorted(items: Vec<Item>) -> Vec<String> {
    let mut texts: Vec<String> = items.into_iter().map(|item| format!("{item:?}")).collect();
    texts.sort();
    texts
}

/// One message, without the frame's checksum before it.
pub fn message_decode(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let length = input.arbitrary::<u16>().unwrap_or(0);
    let rest = input.take_rest();
    let (meta, blocks) = rest.split_at(rest.len().min(length.into()));
    let (mut meta, mut blocks) = (Bytes::copy_from_slice(meta), Bytes::copy_from_slice(blocks));
    let Ok(item) = decode(&mut meta, &mut blocks) else {
        return;
    };
    let (mut meta, mut parts) = (BytesMut::new(), Vec::new());
    encode(&item, &mut meta, &mut parts);
    let (mut meta, mut blocks) = (meta.freeze(), Bytes::from(parts.concat()));
    assert_eq!(decode(&mut meta, &mut blocks).unwrap(), item);
    assert!(meta.is_empty() && blocks.is_empty(), "bytes left over");
}
