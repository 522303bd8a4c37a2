//! Proposals and reads of clients, by the numbers under which the core knows them.

use bytes::Bytes;

use super::{Answer, ApplyTask, Shard};
use crate::error::{ChangeMembershipError, ProposeError, ReadError};
use crate::raft::effects::{Input, ProposalOutcome};
use crate::types::{GroupId, Index};

impl<P, R> Shard<P, R> {
    /// A forwarded request whose answer is lost must not wait for ever, nor fill memory.
    pub(super) fn expire_requests(&mut self) {
        let limit = self
            .ticks
            .saturating_sub(u64::from(self.config.forward_ticks));
        for replica in self.groups.values_mut() {
            while let Some(entry) = replica
                .proposals
                .first_entry()
                .filter(|e| e.get().0 <= limit)
            {
                self.out
                    .refused
                    .push((entry.remove().1, ProposeError::Unknown));
            }
            while let Some(entry) = replica.changes.first_entry().filter(|e| e.get().0 <= limit) {
                let unknown = Err(ChangeMembershipError::Unknown);
                let answer = Answer::Membership(entry.remove().1, unknown);
                self.out.answers.push(answer);
            }
            while let Some(entry) = replica.reads.first_entry().filter(|e| e.get().0 <= limit) {
                let lost = entry
                    .remove()
                    .1
                    .into_iter()
                    .map(|r| (r, Err(ReadError::Lost)));
                self.out.reads.extend(lost);
            }
        }
    }

    pub(super) fn on_propose(&mut self, group: GroupId, payload: Bytes, waiter: P) {
        if let Some(error) = &self.fenced {
            self.out
                .refused
                .push((waiter, ProposeError::Fenced(error.clone())));
            return;
        }
        let Some(replica) = self.groups.get_mut(&group) else {
            self.out
                .refused
                .push((waiter, ProposeError::UnknownGroup(group)));
            return;
        };
        let request = self.next_request;
        self.next_request += 1;
        replica.proposals.insert(request, (self.ticks, waiter));
        replica.raft.step(Input::Propose { request, payload });
        self.dirty.insert(group);
    }

    pub(super) fn on_read(&mut self, group: GroupId, waiter: R) {
        if let Some(error) = &self.fenced {
            self.out
                .reads
                .push((waiter, Err(ReadError::Fenced(error.clone()))));
            return;
        }
        let Some(replica) = self.groups.get_mut(&group) else {
            self.out
                .reads
                .push((waiter, Err(ReadError::UnknownGroup(group))));
            return;
        };
        replica.arrived.push(waiter);
        self.dirty.insert(group);
    }

    /// All reads of a group in one turn are one question to the leader.
    pub(super) fn start_reads(&mut self) {
        for &group in &self.dirty {
            let Some(replica) = self.groups.get_mut(&group) else {
                continue;
            };
            if replica.arrived.is_empty() {
                continue;
            }
            let request = self.next_request;
            self.next_request += 1;
            let readers = std::mem::take(&mut replica.arrived);
            replica.reads.insert(request, (self.ticks, readers));
            replica.raft.step(Input::Read { request });
        }
    }

    pub(super) fn serve_reads(&mut self, group: GroupId, applied: Index) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        if replica.awaits_state() {
            return;
        }
        let served = replica
            .unserved
            .extract_if(.., |(index, _)| *index <= applied);
        self.out
            .reads
            .extend(served.map(|(index, waiter)| (waiter, Ok(index))));
    }

    pub(super) fn on_outcome(&mut self, group: GroupId, outcome: ProposalOutcome) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        match outcome {
            ProposalOutcome::Appended {
                request,
                index,
                term,
            } => {
                if let Some((_, reply)) = replica.changes.remove(&request) {
                    let replaced = replica.placed_changes.insert(index, (term, reply));
                    let unknown = Err(ChangeMembershipError::Unknown);
                    let unknown = replaced.map(|(_, r)| Answer::Membership(r, unknown));
                    self.out.answers.extend(unknown);
                } else if let Some((_, waiter)) = replica.proposals.remove(&request) {
                    self.out
                        .apply
                        .push(ApplyTask::Await(group, index, term, waiter));
                }
            }
            ProposalOutcome::Refused { request, reason } => {
                if let Some((_, reply)) = replica.changes.remove(&request) {
                    let refused = Err(ChangeMembershipError::NotAccepted(reason));
                    self.out.answers.push(Answer::Membership(reply, refused));
                } else if let Some((_, waiter)) = replica.proposals.remove(&request) {
                    self.out
                        .refused
                        .push((waiter, ProposeError::Refused(reason)));
                }
            }
        }
    }

    pub(super) fn on_read_outcome(
        &mut self,
        group: GroupId,
        request: u64,
        index: &Result<Index, ReadError>,
    ) {
        let Some(replica) = self.groups.get_mut(&group) else {
            return;
        };
        let Some((_, readers)) = replica.reads.remove(&request) else {
            return;
        };
        let applied = replica.raft.log().applied();
        let must_wait = |index: Index| index > applied || replica.awaits_state();
        let must_wait = index.as_ref().is_ok_and(|&index| must_wait(index));
        for reader in readers {
            match index {
                Ok(index) if must_wait => replica.unserved.push((*index, reader)),
                result => self.out.reads.push((reader, result.clone())),
            }
        }
    }
}
