//! What a node's log keeps of a group besides its entries and its hard state.

use bytes::{BufMut, Bytes, BytesMut};

use crate::raft::membership::{Membership, MembershipError};
use crate::types::NodeId;

/// Not that of a bare membership, which logs held before there were descriptions: taken for one, it could
/// say of a member that it has left.
const ENCODING_VERSION: u8 = 1;
const MEMBER: u8 = 1;
const JOINING: u8 = 2;
const LEFT: u8 = 3;
const LOST: u8 = 4;
/// Added for a replica that keeps no state.
const WITNESS: u8 = 0x10;

/// What a replica is to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has the group's state, or had it from the beginning.
    Member,
    /// It waits for a leader's snapshot. Its membership is what it was told when it was asked to join,
    /// with itself in it; the index is that of the configuration by which it left before, or zero.
    Joining,
    /// It has left: only its term and vote are kept, and of the membership the one by which it is gone.
    /// It must not vote again in a term in which it has voted, should it come back.
    Left,
    /// It is a member, or was one, but what it promised may be forgotten: its part of the log was given up
    /// after damage. Term, vote and membership are what could still be read of older ones. It has no say
    /// until the group goes on without it (see [`crate::raft::lost`]).
    Lost,
}

/// A group as the log describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What the replica is to the group.
    pub standing: Standing,
    /// Whether it keeps no state. The membership does not tell that of a replica that was removed, and an
    /// empty state machine does not either: it may have lost what it had not flushed, and the log has it.
    pub is_witness: bool,
    /// Who belongs to it.
    pub membership: Membership,
}

impl Description {
    /// That of `node`'s replica of a group that begins with these members, or has them.
    pub fn member(membership: Membership, node: NodeId) -> Self {
        Self {
            standing: Standing::Member,
            is_witness: membership.configuration().witnesses.contains(&node),
            membership,
        }
    }

    /// That of a replica whose part of the log was given up, by its last description that can still be read;
    /// `None`, or bytes that are no description: nobody is known to belong to the group.
    pub fn lost(last: Option<&[u8]>) -> Self {
        let last = last.and_then(|bytes| Self::decode(bytes).ok());
        Self {
            standing: Standing::Lost,
            is_witness: last.as_ref().is_some_and(|last| last.is_witness),
            membership: last.map(|last| last.membership).unwrap_or_default(),
        }
    }

    /// The bytes that the log stores: a version, one for the standing, then the membership.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ENCODING_VERSION);
        let standing = match self.standing {
            Standing::Member => MEMBER,
            Standing::Joining => JOINING,
            Standing::Left => LEFT,
            Standing::Lost => LOST,
        };
        out.put_u8(if self.is_witness {
            standing | WITNESS
        } else {
            standing
        });
        out.put_slice(&self.membership.encode());
        out.freeze()
    }

    /// Reads what [`Description::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are not those of a description.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        let [ENCODING_VERSION, standing, membership @ ..] = bytes else {
            return Err(MembershipError::Malformed);
        };
        let is_witness = standing & WITNESS != 0;
        let standing = match standing & !WITNESS {
            MEMBER => Standing::Member,
            JOINING => Standing::Joining,
            LEFT => Standing::Left,
            LOST => Standing::Lost,
            _ => return Err(MembershipError::Malformed),
        };
        let membership = Membership::decode(membership)?;
        Ok(Self {
            standing,
            is_witness,
            membership,
        })
    }
}
