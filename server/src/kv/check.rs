//! Checks of requests before they cost anything: as etcd makes them (`server/etcdserver/api/v3rpc/
//! key.go`), plus the bound on keys that our store has.
//!
//! The machine repeats them when it applies, for the log may hold what a gate never saw.

use multiraft_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

use super::error::Refusal;

/// The largest request, encoded, bytes. etcd's default of `--max-request-bytes`.
pub const MAX_REQUEST_BYTES: usize = 3 << 19;

/// The longest key, bytes: the store's rows have keys of at most 65,535 bytes, of which the group
/// takes four. The rest is left for what rows may need one day.
pub const MAX_KEY_BYTES: usize = 65_000;

/// Whether a put can be proposed.
pub fn check_put(request: &PutRequest) -> Result<(), Refusal> {
    check_keys(&request.key, &[])?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// Whether a deletion can be proposed.
pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    check_keys(&request.key, &request.range_end)
}

/// Whether a range can be read.
pub fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    check_keys(&request.key, &request.range_end)?;
    SortOrder::try_from(request.sort_order).map_err(|_| Refusal::InvalidSortOption)?;
    SortTarget::try_from(request.sort_target).map_err(|_| Refusal::InvalidSortOption)?;
    Ok(())
}

fn check_keys(key: &[u8], range_end: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if key.len().max(range_end.len()) > MAX_KEY_BYTES {
        return Err(Refusal::KeyTooLong);
    }
    Ok(())
}
