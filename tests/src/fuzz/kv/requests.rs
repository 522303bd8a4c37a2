//! Requests of the key-value machine, of any bytes.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_proto::etcdserverpb::range_request::SortOrder;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

/// Short keys that are prefixes of each other and end in extreme bytes, so that requests meet.
fn key(input: &mut Unstructured<'_>) -> Result<Bytes> {
    const KEYS: [&[u8]; 8] = [
        b"\x00",
        b"a",
        b"a\x00",
        b"a\xff",
        b"ab",
        b"b",
        b"\xff",
        b"\xff\xff",
    ];
    Ok(Bytes::from_static(input.choose(&KEYS)?))
}

fn end(input: &mut Unstructured<'_>) -> Result<Bytes> {
    match input.int_in_range(0..=3)? {
        0 => Ok(Bytes::new()),
        1 => Ok(Bytes::from_static(b"\0")),
        _ => key(input),
    }
}

/// Sets one of them; also without a value of its own.
pub fn put(input: &mut Unstructured<'_>) -> Result<PutRequest> {
    let key = key(input)?;
    let ignore_value = input.ratio(1, 4)?;
    let value: &[u8] = if ignore_value {
        &[]
    } else {
        input.arbitrary()?
    };
    Ok(PutRequest {
        key,
        value: Bytes::copy_from_slice(value),
        prev_kv: input.arbitrary()?,
        ignore_value,
        ..PutRequest::default()
    })
}

/// Deletes one, or several.
pub fn delete(input: &mut Unstructured<'_>) -> Result<DeleteRangeRequest> {
    Ok(DeleteRangeRequest {
        key: key(input)?,
        range_end: end(input)?,
        prev_kv: input.arbitrary()?,
    })
}

/// Reads some of them, at a revision that was or is to come.
pub fn range(input: &mut Unstructured<'_>, newest: i64) -> Result<RangeRequest> {
    Ok(RangeRequest {
        key: key(input)?,
        range_end: end(input)?,
        limit: input.int_in_range(0..=3)?,
        // Without an order etcd cuts before it sorts; the model sorts first.
        sort_order: SortOrder::Ascend as i32,
        sort_target: input.int_in_range(0..=4)?,
        min_mod_revision: input.int_in_range(0..=3)?,
        count_only: input.ratio(1, 6)?,
        revision: input.int_in_range(0..=newest + 1)?,
        ..RangeRequest::default()
    })
}
