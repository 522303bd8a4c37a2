//! Messages to bytes and back. Little endian; the only file that knows a message's bytes.
//!
//! Sender and receiver are not written: they are the ends of the connection. Blocks are written
//! elsewhere in the frame, here only their count and lengths.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multiraft_engine::block::Block;
use multiraft_engine::planted;
use multiraft_engine::raft::conf_change::ConfChange;
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::message::{
    AppendResponse, JoinRefusal, JoinRequest, Message, VoteRequest,
};
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

use crate::error::Error;

const PRE_VOTE: u8 = 1;
const PRE_VOTE_RESPONSE: u8 = 2;
const REQUEST_VOTE: u8 = 3;
const REQUEST_VOTE_RESPONSE: u8 = 4;
const APPEND: u8 = 5;
const APPEND_ACCEPTED: u8 = 6;
const APPEND_REJECTED: u8 = 7;
const HEARTBEAT: u8 = 8;
const HEARTBEAT_RESPONSE: u8 = 9;
const TIMEOUT_NOW: u8 = 10;
const PROPOSE: u8 = 11;
const PROPOSE_RESPONSE: u8 = 12;
const READ_INDEX: u8 = 13;
const READ_INDEX_RESPONSE: u8 = 14;
const INSTALL_SNAPSHOT: u8 = 15;
const TRANSFER_LEADERSHIP: u8 = 16;
const PROPOSE_CONF_CHANGE: u8 = 17;
const APPEND_STATE_MISSING: u8 = 18;
const AM_I_MEMBER: u8 = 19;
const REMOVED: u8 = 20;
const JOIN: u8 = 21;
const JOIN_REFUSED: u8 = 22;

/// A message without its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its group.
    pub group: GroupId,
    /// Its sender's term.
    pub term: Term,
    /// What it says.
    pub message: Message,
}

/// Writes a message to `meta`, and its blocks to `blocks`.
pub fn encode(item: &Item, meta: &mut BytesMut, blocks: &mut Vec<Bytes>) {
    meta.put_u32_le(item.group.0);
    meta.put_u64_le(item.term.0);
    match &item.message {
        Message::PreVote(request) => put_vote(meta, PRE_VOTE, *request),
        Message::RequestVote(request) => put_vote(meta, REQUEST_VOTE, *request),
        Message::PreVoteResponse { granted } => put_flag(meta, PRE_VOTE_RESPONSE, *granted),
        Message::RequestVoteResponse {
            granted,
            last_index,
            last_term,
        } => {
            put_flag(meta, REQUEST_VOTE_RESPONSE, *granted);
            put_numbers(meta, &[last_index.0, last_term.0]);
        }
        Message::AppendEntries {
            prev_index,
            prev_term,
            commit,
            blocks: sent,
        } => {
            meta.put_u8(APPEND);
            put_numbers(meta, &[prev_index.0, prev_term.0, commit.0]);
            put_blocks(meta, sent, blocks);
        }
        Message::AppendEntriesResponse(AppendResponse::Accepted { last }) => {
            meta.put_u8(APPEND_ACCEPTED);
            put_numbers(meta, &[last.0]);
        }
        Message::AppendEntriesResponse(AppendResponse::Rejected {
            prev,
            hint_index,
            hint_term,
            last,
        }) => {
            meta.put_u8(APPEND_REJECTED);
            put_numbers(meta, &[prev.0, hint_index.0, hint_term.0, last.0]);
        }
        Message::AppendEntriesResponse(AppendResponse::StateMissing { from }) => {
            meta.put_u8(APPEND_STATE_MISSING);
            put_numbers(meta, &[from.0]);
        }
        Message::Heartbeat { commit, read_round } => {
            meta.put_u8(HEARTBEAT);
            put_numbers(meta, &[commit.0, *read_round]);
        }
        Message::HeartbeatResponse { read_round } => {
            meta.put_u8(HEARTBEAT_RESPONSE);
            put_numbers(meta, &[*read_round]);
        }
        Message::InstallSnapshot { snapshot } => {
            meta.put_u8(INSTALL_SNAPSHOT);
            put_numbers(meta, &[snapshot.index.0, snapshot.term.0]);
            put_bytes(meta, &snapshot.membership.encode());
        }
        Message::TimeoutNow => meta.put_u8(TIMEOUT_NOW),
        Message::TransferLeadership { to } => {
            meta.put_u8(TRANSFER_LEADERSHIP);
            meta.put_u32_le(to.get());
        }
        Message::ProposeConfChange { request, change } => {
            meta.put_u8(PROPOSE_CONF_CHANGE);
            put_numbers(meta, &[*request]);
            put_bytes(meta, &change.encode());
        }
        Message::Propose {
            first_request,
            payloads,
        } => put_propose(meta, *first_request, payloads),
        Message::ProposeResponse {
            first_request,
            count,
            index,
        } => {
            meta.put_u8(PROPOSE_RESPONSE);
            put_numbers(meta, &[*first_request, u64::from(*count)]);
            put_numbers(meta, &[index.unwrap_or_default().0]);
        }
        Message::ReadIndex { request } => {
            meta.put_u8(READ_INDEX);
            put_numbers(meta, &[*request]);
        }
        Message::ReadIndexResponse { request, index } => {
            meta.put_u8(READ_INDEX_RESPONSE);
            meta.put_u8(u8::from(index.is_some()));
            put_numbers(meta, &[*request, index.unwrap_or_default().0]);
        }
        Message::AmIMember => meta.put_u8(AM_I_MEMBER),
        Message::Removed {
            membership,
            applied,
        } => put_membership(meta, REMOVED, *applied, membership),
        Message::Join(request) => put_join(meta, request),
        Message::JoinRefused(reason) => put_refusal(meta, *reason),
    }
}

/// Reads one message; its blocks come off the front of `blocks`.
pub fn decode(meta: &mut Bytes, blocks: &mut Bytes) -> Result<Item, Error> {
    let group = GroupId(u32(meta)?);
    let term = Term(u64(meta)?);
    let message = match u8(meta)? {
        PRE_VOTE => Message::PreVote(vote(meta)?),
        REQUEST_VOTE => Message::RequestVote(vote(meta)?),
        PRE_VOTE_RESPONSE => Message::PreVoteResponse {
            granted: flag(meta)?,
        },
        REQUEST_VOTE_RESPONSE => Message::RequestVoteResponse {
            granted: flag(meta)?,
            last_index: Index(u64(meta)?),
            last_term: Term(u64(meta)?),
        },
        APPEND => Message::AppendEntries {
            prev_index: Index(u64(meta)?),
            prev_term: Term(u64(meta)?),
            commit: Index(u64(meta)?),
            blocks: take_blocks(meta, blocks)?,
        },
        APPEND_ACCEPTED => {
            let last = Index(u64(meta)?);
            Message::AppendEntriesResponse(AppendResponse::Accepted { last })
        }
        APPEND_REJECTED => Message::AppendEntriesResponse(AppendResponse::Rejected {
            prev: Index(u64(meta)?),
            hint_index: Index(u64(meta)?),
            hint_term: Term(u64(meta)?),
            last: Index(u64(meta)?),
        }),
        APPEND_STATE_MISSING => {
            let from = Index(u64(meta)?);
            Message::AppendEntriesResponse(AppendResponse::StateMissing { from })
        }
        HEARTBEAT => Message::Heartbeat {
            commit: Index(u64(meta)?),
            read_round: u64(meta)?,
        },
        HEARTBEAT_RESPONSE => Message::HeartbeatResponse {
            read_round: u64(meta)?,
        },
        INSTALL_SNAPSHOT => {
            let (index, term) = (Index(u64(meta)?), Term(u64(meta)?));
            let membership = membership(meta)?;
            let snapshot = Snapshot {
                index,
                term,
                membership,
            };
            Message::InstallSnapshot { snapshot }
        }
        TIMEOUT_NOW => Message::TimeoutNow,
        TRANSFER_LEADERSHIP => {
            let to = NodeId::new(u32(meta)?).ok_or(Error::Malformed("node 0"))?;
            Message::TransferLeadership { to }
        }
        PROPOSE_CONF_CHANGE => {
            let request = u64(meta)?;
            let change = ConfChange::decode(&take_bytes(meta)?);
            let change = change.map_err(|_| Error::Malformed("configuration change"))?;
            Message::ProposeConfChange { request, change }
        }
        PROPOSE => {
            let first_request = u64(meta)?;
            Message::Propose {
                first_request,
                payloads: take_payloads(meta)?,
            }
        }
        PROPOSE_RESPONSE => {
            let first_request = u64(meta)?;
            let count = u32::try_from(u64(meta)?).map_err(|_| Error::Malformed("count"))?;
            let index = Some(Index(u64(meta)?)).filter(|&index| index != Index::ZERO);
            Message::ProposeResponse {
                first_request,
                count,
                index,
            }
        }
        READ_INDEX => Message::ReadIndex {
            request: u64(meta)?,
        },
        READ_INDEX_RESPONSE => {
            let confirmed = flag(meta)?;
            let request = u64(meta)?;
            let index = Index(u64(meta)?);
            Message::ReadIndexResponse {
                request,
                index: confirmed.then_some(index),
            }
        }
        kind => membership_message(kind, meta)?,
    };
    Ok(Item {
        group,
        term,
        message,
    })
}

/// Those about who belongs to a group.
fn membership_message(kind: u8, meta: &mut Bytes) -> Result<Message, Error> {
    Ok(match kind {
        AM_I_MEMBER => Message::AmIMember,
        REMOVED => {
            let applied = Index(u64(meta)?);
            let membership = membership(meta)?;
            Message::Removed {
                membership,
                applied,
            }
        }
        JOIN => Message::Join(join(meta)?),
        JOIN_REFUSED => Message::JoinRefused(refusal(meta)?),
        _ => return Err(Error::Malformed("unknown kind of message")),
    })
}

/// About how many bytes a message takes, blocks included: what queues count.
pub fn weight(message: &Message) -> usize {
    64 + match message {
        Message::AppendEntries { blocks, .. } => {
            blocks.iter().map(|block| block.bytes().len() + 4).sum()
        }
        Message::Propose { payloads, .. } => payloads.iter().map(|p| p.len() + 4).sum(),
        Message::PreVote(_)
        | Message::PreVoteResponse { .. }
        | Message::RequestVote(_)
        | Message::RequestVoteResponse { .. }
        | Message::AppendEntriesResponse(_)
        | Message::Heartbeat { .. }
        | Message::HeartbeatResponse { .. }
        | Message::InstallSnapshot { .. }
        | Message::TimeoutNow
        | Message::TransferLeadership { .. }
        | Message::ProposeConfChange { .. }
        | Message::ProposeResponse { .. }
        | Message::ReadIndex { .. }
        | Message::ReadIndexResponse { .. }
        | Message::AmIMember
        | Message::Removed { .. }
        | Message::Join(_)
        | Message::JoinRefused(_) => 0usize,
    }
}

fn put_propose(meta: &mut BytesMut, first_request: u64, payloads: &[Bytes]) {
    meta.put_u8(PROPOSE);
    put_numbers(meta, &[first_request]);
    meta.put_u32_le(length(payloads.len()));
    for payload in payloads {
        meta.put_u32_le(length(payload.len()));
        meta.put_slice(payload);
    }
}

/// Count and lengths; the bytes go elsewhere.
fn put_blocks(meta: &mut BytesMut, sent: &[Block], blocks: &mut Vec<Bytes>) {
    meta.put_u32_le(length(sent.len()));
    for block in sent {
        meta.put_u32_le(length(block.bytes().len()));
        blocks.push(block.bytes().clone());
    }
}

fn put_vote(meta: &mut BytesMut, kind: u8, request: VoteRequest) {
    put_flag(meta, kind, request.transfer);
    let numbers = [
        request.last_index.0,
        request.last_term.0,
        request.configuration.0,
    ];
    put_numbers(meta, &numbers);
}

/// The incarnation, then the one who joins as a membership of its own.
fn put_join(meta: &mut BytesMut, request: &JoinRequest) {
    meta.put_u8(JOIN);
    put_numbers(meta, &[request.incarnation]);
    let alone = [(request.node, request.member.clone())];
    put_bytes(meta, &Membership::new(alone.into()).encode());
}

fn join(meta: &mut Bytes) -> Result<JoinRequest, Error> {
    let incarnation = u64(meta)?;
    let mut alone = membership(meta)?.members.into_iter();
    match (alone.next(), alone.next()) {
        (Some((node, member)), None) => Ok(JoinRequest {
            node,
            incarnation,
            member,
        }),
        _ => Err(Error::Malformed("not one member who joins")),
    }
}

fn put_membership(meta: &mut BytesMut, kind: u8, at: Index, membership: &Membership) {
    meta.put_u8(kind);
    put_numbers(meta, &[at.0]);
    put_bytes(meta, &membership.encode());
}

fn put_refusal(meta: &mut BytesMut, reason: JoinRefusal) {
    meta.put_u8(JOIN_REFUSED);
    meta.put_u8(match reason {
        JoinRefusal::TooManyMembers => 1,
        JoinRefusal::OtherRole => 2,
        JoinRefusal::AddressTaken => 3,
        JoinRefusal::LastVoter => 4,
    });
}

fn refusal(meta: &mut Bytes) -> Result<JoinRefusal, Error> {
    match u8(meta)? {
        1 => Ok(JoinRefusal::TooManyMembers),
        2 => Ok(JoinRefusal::OtherRole),
        3 => Ok(JoinRefusal::AddressTaken),
        4 => Ok(JoinRefusal::LastVoter),
        _ => Err(Error::Malformed("an unknown reason")),
    }
}

fn membership(meta: &mut Bytes) -> Result<Membership, Error> {
    let membership = Membership::decode(&take_bytes(meta)?);
    membership.map_err(|_| Error::Malformed("membership"))
}

fn put_flag(meta: &mut BytesMut, kind: u8, flag: bool) {
    meta.put_u8(kind);
    meta.put_u8(u8::from(flag));
}

fn put_numbers(meta: &mut BytesMut, numbers: &[u64]) {
    for &number in numbers {
        meta.put_u64_le(number);
    }
}

fn put_bytes(meta: &mut BytesMut, bytes: &[u8]) {
    meta.put_u32_le(length(bytes.len()));
    meta.put_slice(bytes);
}

fn take_bytes(meta: &mut Bytes) -> Result<Bytes, Error> {
    let length = u32(meta)? as usize;
    if planted!("B24") {
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put(meta.split_to(length.min(meta.len())));
        return Ok(bytes.freeze());
    }
    if length > meta.len() {
        return Err(Error::Malformed("longer than the frame"));
    }
    Ok(meta.split_to(length))
}

fn length(length: usize) -> u32 {
    u32::try_from(length).expect("blocks, payloads and frames are far below 4 GiB")
}

fn vote(meta: &mut Bytes) -> Result<VoteRequest, Error> {
    let transfer = flag(meta)?;
    Ok(VoteRequest {
        last_index: Index(u64(meta)?),
        last_term: Term(u64(meta)?),
        configuration: Index(u64(meta)?),
        transfer,
    })
}

fn take_blocks(meta: &mut Bytes, blocks: &mut Bytes) -> Result<Vec<Block>, Error> {
    let count = counted(meta, 4)?;
    let mut taken = Vec::with_capacity(count);
    for _ in 0..count {
        let length = u32(meta)? as usize;
        if length > blocks.len() {
            return Err(Error::Malformed("a block is longer than the frame"));
        }
        let block = Block::decode(blocks.split_to(length))?;
        if block.bytes().len() != length {
            return Err(Error::Malformed("bytes after a block"));
        }
        taken.push(block);
    }
    Ok(taken)
}

fn take_payloads(meta: &mut Bytes) -> Result<Vec<Bytes>, Error> {
    let count = counted(meta, 4)?;
    let mut payloads = Vec::with_capacity(count);
    for _ in 0..count {
        let length = u32(meta)? as usize;
        if length > meta.len() {
            return Err(Error::Malformed("a payload is longer than the frame"));
        }
        payloads.push(meta.split_to(length));
    }
    Ok(payloads)
}

/// A count of things of at least `each` bytes: no more than could follow.
pub(crate) fn counted(meta: &mut Bytes, each: usize) -> Result<usize, Error> {
    let count = u32(meta)? as usize;
    if count > meta.len() / each {
        return Err(Error::Malformed("a count beyond the frame"));
    }
    Ok(count)
}

fn flag(meta: &mut Bytes) -> Result<bool, Error> {
    match u8(meta)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::Malformed("a flag that is neither 0 nor 1")),
    }
}

fn u8(meta: &mut Bytes) -> Result<u8, Error> {
    meta.try_get_u8().map_err(|_| Error::Malformed("cut short"))
}

pub(crate) fn u32(meta: &mut Bytes) -> Result<u32, Error> {
    meta.try_get_u32_le()
        .map_err(|_| Error::Malformed("cut short"))
}

pub(crate) fn u64(meta: &mut Bytes) -> Result<u64, Error> {
    meta.try_get_u64_le()
        .map_err(|_| Error::Malformed("cut short"))
}
