//! Which life of a node's data is the member: a node that lost its disk must not vote with amnesia.
//!
//! 1. Of three, 2 and 3 acknowledge an entry of leader 2: it is committed.
//! 2. Node 3 loses its disk, and somebody bootstraps the group there again.
//! 3. Leader 2 is cut off, 1 asks for votes, and 3, which knows nothing, grants: the entry is lost.
//!
//! So a node's data directory draws an incarnation when it is made, and each connection names it. A
//! leader logs, as a change of the configuration, which incarnation of each member it has met. From
//! then on every replica counts answers of that one only, and votes only for that one. The wiped node
//! has to leave the group and join it again, best as a learner without a vote at first.
//!
//! A replica that lags behind may hold the old life for the member when the new one has long joined.
//! So it follows any leader: the others elected it. And where a candidate has applied a newer
//! configuration than the voter, the candidate's counts: configurations are committed in one order,
//! and in a newer one it would know by itself that it is not the member, or who else is not.
//!
//! A hole is left, and stated: until a leader's change is applied, and for a replica that never heard
//! of it, a node that is wiped and bootstrapped again within the first moments of a group is taken
//! for the one that it was.

use std::collections::BTreeMap;

use super::conf_change::{Change, ConfChange, Transition};
use super::message::{Envelope, Message, VoteRequest};
use super::{Group, Role};
use crate::planted;
use crate::types::NodeId;

/// A node, and which life of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// What its data directory drew; 0: nobody asks, and nothing of this module happens.
    pub incarnation: u64,
}

impl Identity {
    /// A node whose data has no lives to tell apart: for tests.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            incarnation: 0,
        }
    }
}

impl Group {
    /// Whether a message may be taken from this life of its sender. A leader remembers whom it has met
    /// before the log says so.
    pub(super) fn is_admitted(&mut self, envelope: &Envelope) -> bool {
        let (from, incarnation) = (envelope.from, envelope.incarnation);
        let is_trusted = match &envelope.message {
            Message::AppendEntries { .. }
            | Message::Heartbeat { .. }
            | Message::InstallSnapshot { .. }
            | Message::TimeoutNow
            | Message::AmIMember
            | Message::Removed { .. }
            | Message::Join(_)
            | Message::JoinRefused(_) => true,
            Message::PreVote(request) | Message::RequestVote(request) => {
                request.configuration > self.membership.index
            }
            Message::PreVoteResponse { .. }
            | Message::RequestVoteResponse { .. }
            | Message::AppendEntriesResponse(_)
            | Message::HeartbeatResponse { .. }
            | Message::TransferLeadership { .. }
            | Message::ProposeConfChange { .. }
            | Message::Propose { .. }
            | Message::ProposeResponse { .. }
            | Message::ReadIndex { .. }
            | Message::ReadIndexResponse { .. } => false,
        };
        if incarnation == 0 || is_trusted || planted!("B23") {
            return true;
        }
        let mut known = self.membership.incarnations.get(&from).copied();
        if let Role::Leader(leader) = &mut self.role
            && known.is_none()
            && self.configuration.contains(from)
        {
            known = Some(*leader.met.entry(from).or_insert(incarnation));
        }
        known.is_none_or(|known| known == incarnation)
    }

    /// Whether this replica has a vote to give to this candidate: not by a configuration in which
    /// another life of its data is the member, or which it has left (see [`super::joining`]), unless
    /// the candidate knows a newer one.
    pub(super) fn has_vote_for(&self, request: VoteRequest) -> bool {
        let has_vote = !self.is_amnesiac() && !self.is_joining;
        has_vote || request.configuration > self.membership.index
    }

    /// Whether the group knows that this life of our data is the member, as far as is applied here.
    pub(super) fn is_confirmed(&self) -> bool {
        let known = self.membership.incarnations.get(&self.node);
        self.incarnation == 0 || known == Some(&self.incarnation)
    }

    /// Whether the group knows another life of this node's data than this one, as far as is applied
    /// here.
    pub(super) fn is_amnesiac(&self) -> bool {
        let known = self.membership.incarnations.get(&self.node);
        let is_other = known.is_some_and(|&known| known != self.incarnation);
        self.incarnation != 0 && is_other && !planted!("B23")
    }

    /// Logs which incarnations the leader has met that the configuration lacks: all at once when
    /// everybody was met, or after an election timeout those that were.
    pub(super) fn admit_members(&mut self) {
        let Role::Leader(leader) = &self.role else {
            return;
        };
        let is_open = self.incarnation != 0
            && leader.pending_conf_change <= self.log.applied()
            && leader.transferee.is_none()
            && !leader.is_leaving
            && !self.configuration.is_joint()
            && self.configuration.contains(self.node)
            && self.has_committed_in_term();
        if !is_open {
            return;
        }
        let known = &self.membership.incarnations;
        let unknown = self.membership.members.keys();
        let unknown: Vec<NodeId> = unknown
            .filter(|id| !known.contains_key(id))
            .copied()
            .collect();
        let own = (self.node, self.incarnation);
        let met = leader
            .met
            .iter()
            .map(|(&id, &incarnation)| (id, incarnation));
        let met: BTreeMap<NodeId, u64> = met
            .chain([own])
            .filter(|(id, _)| unknown.contains(id))
            .collect();
        let is_time = met.len() == unknown.len()
            || leader
                .ticks
                .is_multiple_of(u64::from(self.limits.election_ticks));
        if met.is_empty() || !is_time {
            return;
        }
        let change = ConfChange {
            incarnations: met.clone(),
            ..ConfChange::new(
                Transition::Auto,
                met.into_keys().map(Change::Update).collect(),
            )
        };
        if let Err(reason) = self.append_conf_change(&change) {
            tracing::debug!(group = %self.id, %reason, "members are admitted later");
        }
    }
}
