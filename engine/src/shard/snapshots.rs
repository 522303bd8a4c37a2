//! Snapshots as a shard sees them: when one is made, what of the log may go then, and how one from a
//! leader takes the place of a log.
//!
//! ```text
//! enough was applied ─▶ Save ─▶ Saved: told, the log compacted behind it
//! a peer lacks what is compacted ─▶ send it; none is new enough ─▶ make one, the core asks again
//! received ─▶ the core takes it: the log restarts ─ durable ─▶ Restore ─▶ Restored: goes on
//! ```
//! A snapshot's membership is that of its last entry: one is made only while no change waits between
//! the core, which knows it, and the state machine, which has not come to it.

use super::membership::changed_nodes;
use super::{Answer, ApplyTask, BatchInFlight, Replica, Shard};
use crate::description::{Description, Standing};
use crate::error::ChangeMembershipError;
use crate::events::{GroupEvent, SnapshotEvent};
use crate::planted;
use crate::raft::effects::{Input, Snapshot, SnapshotOutcome, Source};
use crate::raft::message::{Envelope, Message};
use crate::snapshot::{SnapshotDone, SnapshotSending, SnapshotTask, Travelling};
use crate::traits::{GroupWrite, Log, LogError};
use crate::types::{GroupId, Index};

/// Election timeouts after a snapshot that could not be made until it is tried again.
const RETRY_ELECTIONS: u64 = 10;

/// What a shard knows of a replica's snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// The newest that is durable here.
    newest: Option<Snapshot>,
    /// One is being made.
    is_making: bool,
    /// None is made before this tick.
    not_before: u64,
    /// Bytes of entries handed to the apply stage since the newest.
    bytes: u64,
    /// A peer needs one that covers this entry.
    wanted: Index,
    /// The state machine is taking one over.
    is_restoring: bool,
    /// The one that it is to take over next. Two at once could end in the wrong order, and with the
    /// older state.
    restore_next: Option<Snapshot>,
}

impl Snapshots {
    /// With what the store holds at the start.
    pub fn new(newest: Option<Snapshot>) -> Self {
        Self {
            newest,
            ..Self::default()
        }
    }

    /// Work on snapshots that is under way.
    pub fn works(&self) -> u32 {
        u32::from(self.is_making) + u32::from(self.is_restoring)
    }

    /// The last entry that the newest one covers.
    pub fn index(&self) -> Index {
        self.newest.as_ref().map_or(Index::ZERO, |s| s.index)
    }
}

/// What the core reads when it composes messages.
pub(super) struct ReplicaSource<'a> {
    pub group: GroupId,
    pub log: &'a dyn Log,
    pub snapshots: &'a mut Snapshots,
}

impl Source for ReplicaSource<'_> {
    fn blocks(
        &mut self,
        first: Index,
        last: Index,
        max_bytes: usize,
    ) -> Result<Vec<crate::block::Block>, LogError> {
        self.log.read(self.group, first, last, max_bytes)
    }

    fn snapshot(&mut self, from: Index) -> Option<Snapshot> {
        let newest = self.snapshots.newest.clone();
        let found = newest.filter(|snapshot| snapshot.index >= from);
        if found.is_none() {
            self.snapshots.wanted = self.snapshots.wanted.max(from);
        }
        found
    }
}

impl<P, R> Replica<P, R> {
    /// Follows the membership: a witness keeps no state. Who is no member at the moment stays what it
    /// was.
    pub(super) fn follow_role(&mut self) {
        let configuration = self.raft.configuration();
        let node = self.raft.node();
        if configuration.contains(node) {
            self.is_witness = configuration.witnesses.contains(&node);
        }
    }

    /// What the log is to say of this replica.
    pub(super) fn description(&self) -> Description {
        Description {
            standing: if self.raft.is_joining() {
                Standing::Joining
            } else {
                Standing::Member
            },
            is_witness: self.is_witness,
            membership: self.raft.membership().clone(),
        }
    }

    /// A snapshot that is durable here.
    pub(super) fn take_as_newest(&mut self, snapshot: Snapshot) {
        if snapshot.index > self.snapshots.index() {
            self.snapshots.newest = Some(snapshot);
        }
    }

    /// Whether the core and the state machine agree on who belongs to the group.
    fn has_settled_membership(&self) -> bool {
        self.held.is_none() && self.due.is_empty() && self.meta_writes == 0
    }
}

impl<P, R> Shard<P, R> {
    /// Blocks go to the apply stage now: that may be enough for a snapshot.
    pub(super) fn note_applying(&mut self, group: GroupId, bytes: usize) {
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.snapshots.bytes += bytes as u64;
        }
        self.maybe_save(group);
    }

    /// Makes a snapshot if it is time for one, or if a peer needs one.
    pub(super) fn maybe_save(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get(&group) else {
            return;
        };
        let applying = replica.raft.log().applying();
        let Snapshots { bytes, wanted, .. } = replica.snapshots;
        let newest = replica.snapshots.index();
        let is_due = applying.0 >= newest.0 + self.config.snapshot_entries
            || bytes >= self.config.snapshot_bytes
            || (newest < wanted && wanted <= applying);
        if is_due {
            self.save(group);
        }
    }

    /// Makes a snapshot of all that is handed to the apply stage, unless there is nothing new in it
    /// or one is being made.
    pub(super) fn save(&mut self, group: GroupId) {
        let ticks = self.ticks;
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let index = replica.raft.log().applying();
        let is_new = index > replica.snapshots.index();
        let is_open = !replica.snapshots.is_making && ticks >= replica.snapshots.not_before;
        let has_state = !replica.is_witness && !replica.awaits_state();
        let is_settled = replica.has_settled_membership();
        let term = replica.raft.log().term(index);
        let (true, Some(term)) = (is_new && is_open && has_state && is_settled, term) else {
            return;
        };
        replica.snapshots.is_making = true;
        replica.snapshots.bytes = 0;
        let membership = replica.raft.membership().clone();
        let snapshot = Snapshot {
            index,
            term,
            membership,
        };
        self.out.apply.push(ApplyTask::Save(group, snapshot));
        if planted!("early-compact") {
            self.compact(group, index);
        }
    }

    /// A witness has nothing to make a snapshot of: its log goes when it is long.
    pub(super) fn compact_witness(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get(&group) else {
            return;
        };
        let log = replica.raft.log();
        let kept = log.applied().0.saturating_sub(log.first().0);
        if replica.is_witness && kept >= self.config.snapshot_entries + self.config.retain_entries {
            let end = log.applied().0 - self.config.retain_entries;
            self.compact(group, Index(end));
        }
    }

    /// Entries up to `index` are not needed any more.
    pub(super) fn compact(&mut self, group: GroupId, index: Index) {
        let before = self.first_index(group);
        self.step(group, Input::Compact(index));
        let after = self.first_index(group);
        if after > before {
            self.tell(group, after.prev(), SnapshotEvent::LogCompacted);
        }
    }

    fn first_index(&self, group: GroupId) -> Index {
        let replica = self.groups.get(&group);
        replica.map_or(Index::ZERO, |r| r.raft.log().first())
    }

    fn tell(&mut self, group: GroupId, index: Index, event: SnapshotEvent) {
        self.out.events.push(GroupEvent::Snapshot {
            group,
            index,
            event,
        });
    }

    /// The log has given back the space of a group's entries up to `index`.
    pub(super) fn on_reclaimed(&mut self, group: GroupId, index: Index) {
        if self.groups.contains_key(&group) {
            self.tell(group, index, SnapshotEvent::LogDbCompacted);
        }
    }

    pub(super) fn on_snapshot_done(&mut self, group: GroupId, done: SnapshotDone) {
        if self.on_removing_done(group, &done) {
            return;
        }
        let ticks = self.ticks;
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        match done {
            SnapshotDone::NotSaved => {
                let pause = RETRY_ELECTIONS * u64::from(self.config.limits.election_ticks);
                replica.snapshots.is_making = false;
                replica.snapshots.not_before = ticks + pause;
            }
            SnapshotDone::Saved { snapshot, removed } => {
                replica.snapshots.is_making = false;
                let index = snapshot.index;
                replica.take_as_newest(snapshot);
                self.tell(group, index, SnapshotEvent::Created);
                self.tell_removed(group, &removed);
                let end = index.0.saturating_sub(self.config.retain_entries);
                self.compact(group, Index(end));
            }
            SnapshotDone::Restored { snapshot, removed } => {
                let index = snapshot.index;
                replica.take_as_newest(snapshot);
                self.tell(group, index, SnapshotEvent::Recovered);
                self.tell_removed(group, &removed);
                self.on_ready(group);
                self.step(group, Input::Applied(index));
                self.serve_reads(group, index);
                self.restore_next(group);
            }
            SnapshotDone::Lost(index) => {
                self.step(group, Input::SnapshotLost(index));
                self.restore_next(group);
            }
            SnapshotDone::Verified | SnapshotDone::Forgotten | SnapshotDone::Removed(_) => {}
            SnapshotDone::Unusable(index) => {
                let newest = &mut replica.snapshots.newest;
                newest.take_if(|newest| newest.index == index);
            }
        }
        self.maybe_save(group); // enough may have come meanwhile
    }

    pub(super) fn tell_removed(&mut self, group: GroupId, removed: &[Index]) {
        for &index in removed {
            self.tell(group, index, SnapshotEvent::Compacted);
        }
    }

    /// Tells the core's word on snapshots apart from all else that it sends: but for witnesses, who
    /// keep no state, they go with their files.
    pub(super) fn send(&mut self, group: GroupId, envelopes: Vec<Envelope>) {
        let Some(replica) = self.groups.get(&group) else {
            return;
        };
        let witnesses = &replica.raft.configuration().witnesses;
        let has_file = |envelope: &Envelope| {
            matches!(envelope.message, Message::InstallSnapshot { .. })
                && !witnesses.contains(&envelope.to)
        };
        for envelope in envelopes {
            if has_file(&envelope) {
                self.out.send_snapshots.push(envelope);
            } else {
                self.out.send.push(envelope);
            }
        }
    }

    /// A message of a peer. One with a snapshot but without its file is for a witness only: it would
    /// empty everybody else.
    pub(super) fn on_message(&mut self, envelope: Envelope) {
        let group = envelope.group;
        if !self.groups.contains_key(&group) {
            self.answer_for_left(&envelope);
            return;
        }
        let is_witness = self.groups.get(&group).is_some_and(|r| r.is_witness);
        if matches!(envelope.message, Message::InstallSnapshot { .. }) && !is_witness {
            tracing::warn!(%group, from = %envelope.from, "a snapshot without its file: ignored");
            return;
        }
        self.step_with_membership(envelope);
    }

    pub(super) fn on_snapshot_received(&mut self, envelope: Envelope) {
        let Message::InstallSnapshot { snapshot } = &envelope.message else {
            return;
        };
        if !self.groups.contains_key(&envelope.group) {
            let forget = SnapshotTask::Forget(envelope.group);
            self.out.snapshot_tasks.push(forget);
            return;
        }
        let received = SnapshotEvent::Received(envelope.from);
        self.tell(envelope.group, snapshot.index, received);
        self.step_with_membership(envelope);
    }

    /// A message that may bring another membership, by a snapshot: watchers are told.
    fn step_with_membership(&mut self, envelope: Envelope) {
        let group = envelope.group;
        if !matches!(envelope.message, Message::InstallSnapshot { .. }) {
            self.step(group, Input::Message(envelope));
            return;
        }
        let membership = |shard: &Self| {
            let replica = shard.groups.get(&group);
            replica.map(|r| r.raft.membership().clone())
        };
        let old = membership(self);
        self.step(group, Input::Message(envelope));
        if let (Some(old), Some(membership)) = (old, membership(self))
            && old != membership
        {
            let changed = changed_nodes(&old, &membership);
            self.out.events.push(GroupEvent::MembershipChanged {
                group,
                membership,
                changed,
            });
        }
    }

    /// The core has taken a leader's snapshot: its membership becomes durable together with the
    /// log's restart, and what was on its way to the state machine before it is over.
    pub(super) fn on_install(
        &mut self,
        group: GroupId,
        snapshot: Snapshot,
        batch: &mut BatchInFlight,
        write: &mut GroupWrite,
    ) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        replica.follow_role();
        replica.held = None;
        replica.due.clear();
        let later = replica.placed_changes.split_off(&snapshot.index.next());
        let covered = std::mem::replace(&mut replica.placed_changes, later).into_values();
        let unknown = covered
            .map(|(_, reply)| Answer::Membership(reply, Err(ChangeMembershipError::Unknown)));
        self.out.answers.extend(unknown);
        write.meta = Some(replica.description().encode());
        replica.meta_writes += 1;
        batch.memberships.push(group);
        batch.installs.push((group, snapshot));
    }

    pub(super) fn on_snapshot_sending(&mut self, sent: Travelling, sending: SnapshotSending) {
        let Travelling { group, to, index } = sent;
        let (event, outcome) = match sending {
            SnapshotSending::Started => {
                self.sending.insert(sent);
                self.tell(group, index, SnapshotEvent::SendStarted(to));
                return;
            }
            SnapshotSending::Completed => (SnapshotEvent::SendCompleted(to), SnapshotOutcome::Sent),
            SnapshotSending::Aborted => (SnapshotEvent::SendAborted(to), SnapshotOutcome::Failed),
        };
        if self.sending.remove(&sent) {
            self.tell(group, index, event); // one that never began has no end
        }
        if outcome == SnapshotOutcome::Failed {
            let verify = SnapshotTask::Verify(group, index); // perhaps for the file's sake
            self.out.snapshot_tasks.push(verify);
        }
        self.step(group, Input::SnapshotSent(to, outcome));
    }

    /// The log has restarted behind a snapshot, durably: what was on its way to the state machine
    /// before it is over, and the machine takes the snapshot.
    pub(super) fn restore_state(&mut self, group: GroupId, snapshot: Snapshot) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        if replica.is_witness {
            // Behind what the apply stage still has of the entries before.
            self.out.apply.push(ApplyTask::Pass(group, snapshot.index));
        } else if replica.snapshots.is_restoring {
            replica.snapshots.restore_next = Some(snapshot);
        } else {
            replica.snapshots.is_restoring = true;
            self.out.apply.push(ApplyTask::Restore(group, snapshot));
        }
    }

    /// The state machine has taken a snapshot over, or could not: now the next, if one came meanwhile.
    fn restore_next(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        replica.snapshots.is_restoring = false;
        if let Some(next) = replica.snapshots.restore_next.take() {
            self.restore_state(group, next);
        }
    }
}
