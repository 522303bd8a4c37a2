//! Joining groups, leaving them, and going on with what is left of one.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::{Host, Inner, ShardBox};
use crate::error::{JoinError, LeaveError, RecoverError};
use crate::raft::membership::Membership;
use crate::raft::recovery::Seen;
use crate::shard::ShardInput;
use crate::state_machine::StateMachine;
use crate::types::{GroupId, NodeId};

/// A call that waits for this node to join a group or to leave it. When the last one for a group ends
/// without its answer, nobody wants it any more.
struct Waiting<'a, M: StateMachine> {
    inner: &'a Inner<M>,
    group: GroupId,
}

impl<'a, M: StateMachine> Waiting<'a, M> {
    fn new(inner: &'a Inner<M>, group: GroupId) -> Self {
        *inner.waiting.lock().entry(group).or_default() += 1;
        Self { inner, group }
    }

    fn shard(&self) -> &'a ShardBox<M> {
        &self.inner.shards[self.inner.shard_of(self.group)]
    }
}

impl<M: StateMachine> Drop for Waiting<'_, M> {
    fn drop(&mut self) {
        let mut waiting = self.inner.waiting.lock();
        let count = waiting.entry(self.group).or_default();
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        waiting.remove(&self.group);
        if self.shard().push(ShardInput::GiveUp(self.group)).is_err() {
            tracing::debug!(group = %self.group, "a request ended while stopping");
        }
    }
}

impl<M: StateMachine> Host<M> {
    /// Makes this node a member of a running group, in the role that it has in `membership`; the
    /// others named there are asked for it, any one that is reached will do. Begins as a learner and
    /// gets its vote when it keeps up (thesis §4.2.1). Returns when the membership is as wished here.
    ///
    /// Dropping the future gives up: a replica that no leader has spoken to is deleted, one that is a
    /// member already goes on catching up. Calling again goes on.
    ///
    /// # Errors
    /// See [`JoinError`]. As long as nobody is reached there is no answer: bound the time.
    pub async fn join(&self, group: GroupId, membership: Membership) -> Result<(), JoinError> {
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting::new(&self.inner, group);
        self.learn_strangers(&membership).await;
        let reply = Box::new(move |result| drop(sender.send(result)));
        let input = ShardInput::Join(group, membership, reply);
        let shard = waiting.shard();
        shard.push(input).map_err(|_| JoinError::Stopped)?;
        receiver.await.unwrap_or(Err(JoinError::Stopped))
    }

    /// Where those are reached whom no group here knows: a wrong address in a request must not cut this
    /// node off from a member of other groups.
    async fn learn_strangers(&self, membership: &Membership) {
        let groups = self.status(&[]).await;
        let groups = groups.iter().filter(|status| !status.is_joining);
        let known: BTreeSet<NodeId> = groups
            .flat_map(|status| status.membership.members.keys().copied())
            .collect();
        let strangers = membership.addresses();
        for (node, address) in strangers.filter(|(node, _)| !known.contains(node)) {
            if node != self.inner.config.node {
                self.inner.parts.transport.set_peer(node, address.clone());
            }
        }
    }

    /// Takes this node out of a group: leadership is handed over first, then the removal is committed,
    /// then what is here of the group is deleted. The last member's leaving ends the group. Returns
    /// when nothing of it is left here; at once if it has left before.
    ///
    /// Dropping the future gives up: the replica goes on, unless the removal was committed.
    ///
    /// # Errors
    /// See [`LeaveError`]. Without a quorum there is no answer: bound the time.
    pub async fn leave(&self, group: GroupId) -> Result<(), LeaveError> {
        let (sender, receiver) = oneshot::channel();
        let waiting = Waiting::new(&self.inner, group);
        let reply = Box::new(move |result| drop(sender.send(result)));
        let shard = waiting.shard();
        let input = ShardInput::Leave(group, reply);
        shard.push(input).map_err(|_| LeaveError::Stopped)?;
        receiver.await.unwrap_or(Err(LeaveError::Stopped))
    }

    /// Makes this node the leader of what is left of a group that has lost its quorum for good, and removes
    /// all others from it. What only the lost members had is lost, even if it was acknowledged; and lost
    /// members must not come back with their old data. See [`crate::raft::recovery`]. `seen` is what the
    /// operator has decided by, from [`Host::status`]. Returns when it has begun: the rest shows in the
    /// group's status.
    ///
    /// # Errors
    /// See [`RecoverError`]; nothing has changed then.
    pub async fn recover(
        &self,
        group: GroupId,
        survivors: BTreeSet<NodeId>,
        seen: Seen,
    ) -> Result<(), RecoverError> {
        let (sender, receiver) = oneshot::channel();
        let reply = Box::new(move |result| drop(sender.send(result)));
        let input = ShardInput::Recover(group, survivors, seen, reply);
        let shard = &self.inner.shards[self.inner.shard_of(group)];
        shard.push(input).map_err(|_| RecoverError::Stopped)?;
        receiver.await.unwrap_or(Err(RecoverError::Stopped))
    }
}
