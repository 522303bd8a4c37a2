//! A replica whose part of the log was given up after damage: it may have forgotten what it promised.
//!
//! ```text
//! lost ─ ReadIndex ─▶ leader: all that was committed so far ends at b
//! lost ─ ProposeConfChange: without me ─▶ leader ─▶ committed and applied by the others
//! lost ─ AmIMember ─▶ all: Removed, from a quorum of those who stay, each with b applied ─▶ left; joins anew
//! ```
//! Its node has no other incarnation: the other groups of the same log are whole. So nobody else can tell
//! that this replica has forgotten something, and it has to keep silent by itself. It gives no vote and no
//! pre-vote, does not campaign, acknowledges no entries, and does not even echo heartbeats, which would say
//! that it knows no newer term. A snapshot alone would not do:
//!
//! 1. Of three, 2 and 3 acknowledge entry 9 of leader 2: it is committed. Node 3 loses the group.
//! 2. Leader 2 sends a snapshot up to entry 8 and fails before it sends entry 9.
//! 3. Node 3, with state again, votes for 1, which lacks entry 9 too: the entry is lost.
//!
//! When the others have committed a change without it, no quorum that elects needs what it has forgotten:
//! every one has a member that holds that change, and with it all that the replica ever acknowledged. Nor
//! can a vote that it has forgotten make a second leader, for the same member would have to have voted
//! for both. From there on it is one that has left and comes back ([`super::joining`]).
//!
//! It may have left and come back before, and forgotten that. So word of a configuration without it counts
//! only from members that have applied all that was committed when this life began, which a leader's read
//! index tells (thesis §6.4): they know its last return.

use std::collections::BTreeSet;

use super::Group;
use super::conf_change::{Change, ConfChange, Transition};
use super::message::{Envelope, Message};
use crate::types::{Index, NodeId, Term};

/// Removal is proposed again each so many times that is asked: somebody may have added the replica again before
/// it has heard from enough that it was removed, and then nobody else says so.
const ASKS_A_PROPOSAL: u32 = 4;

/// What a lost replica knows of the others.
#[derive(Debug)]
pub(super) struct Lost {
    /// Whom to ask beside the members that are known: who was named when somebody wanted this node to join.
    pub(super) others: BTreeSet<NodeId>,
    /// Who leads, as far as it was heard, and in which term.
    leader: Option<(Term, NodeId)>,
    /// The number of the question for the barrier: answers to another life's are none.
    request: u64,
    /// All that was committed when this life of the replica began is at or before this.
    barrier: Option<Index>,
    /// How often it has asked whether it is gone.
    asks: u32,
}

impl Group {
    /// Whether this replica may have forgotten what it promised.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Somebody says that these are members.
    pub(crate) fn hear_of(&mut self, members: impl IntoIterator<Item = NodeId>) {
        if let Some(lost) = &mut self.lost {
            lost.others.extend(members);
        }
    }

    /// Whether who has applied this much may not know of the last return of a lost replica.
    pub(super) fn may_have_forgotten(&self, applied: Index) -> bool {
        let lost = self.lost.as_ref();
        lost.is_some_and(|lost| lost.barrier.is_none_or(|barrier| applied < barrier))
    }

    /// All that a lost replica takes of what is said to it.
    pub(super) fn on_message_while_lost(&mut self, envelope: Envelope) {
        let Some(lost) = &mut self.lost else {
            return;
        };
        let Envelope { from, term, .. } = envelope;
        match envelope.message {
            Message::AppendEntries { .. }
            | Message::Heartbeat { .. }
            | Message::InstallSnapshot { .. } => {
                if lost.leader.is_none_or(|known| known.0 <= term) {
                    lost.leader = Some((term, from));
                    self.silence = 0;
                }
            }
            Message::ReadIndexResponse { request, index } => {
                if request == lost.request && lost.barrier.is_none() {
                    lost.barrier = index;
                }
            }
            Message::Removed {
                membership,
                applied,
            } => self.on_removed(from, membership, applied),
            Message::PreVote(_)
            | Message::PreVoteResponse { .. }
            | Message::RequestVote(_)
            | Message::RequestVoteResponse { .. }
            | Message::AppendEntriesResponse(_)
            | Message::HeartbeatResponse { .. }
            | Message::TimeoutNow
            | Message::TransferLeadership { .. }
            | Message::ProposeConfChange { .. }
            | Message::Propose { .. }
            | Message::ProposeResponse { .. }
            | Message::ReadIndex { .. }
            | Message::AmIMember
            | Message::Join(_)
            | Message::JoinRefused(_) => {}
        }
    }

    /// One step towards a group that goes on without this replica.
    pub(super) fn ask_for_removal(&mut self) {
        let Some(&Lost {
            leader,
            request,
            barrier,
            ..
        }) = self.lost.as_ref()
        else {
            return;
        };
        let others = self.known_others();
        let is_heard = self.silence <= 2 * self.limits.election_ticks;
        let leader = leader.filter(|_| is_heard).map(|(_, leader)| leader);
        let Some(to) = self.next_to_ask(leader, &others) else {
            return;
        };
        if barrier.is_none() {
            self.send(to, Message::ReadIndex { request });
            return;
        }
        let lost = self.lost.as_mut().expect("looked at above");
        let is_repeated = lost.asks.is_multiple_of(ASKS_A_PROPOSAL);
        lost.asks += 1;
        if is_repeated || !self.farewell.has_begun() {
            let remove = vec![Change::Remove(self.node)];
            let change = ConfChange::new(Transition::Auto, remove);
            self.send(to, Message::ProposeConfChange { request, change });
        }
        for other in others {
            self.send(other, Message::AmIMember);
        }
    }
}

impl Lost {
    pub(super) fn new(request: u64) -> Self {
        Self {
            others: BTreeSet::new(),
            leader: None,
            request,
            barrier: None,
            asks: 0,
        }
    }
}
