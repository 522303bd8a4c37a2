//! Starting new groups.

use super::{Answer, BootstrapReply, Loaded, Shard};
use crate::description::{Description, Standing};
use crate::error::BootstrapError;
use crate::raft::effects::{Input, Snapshot};
use crate::raft::membership::Membership;
use crate::traits::{GroupWrite, StoredGroup};
use crate::types::{GroupId, HardState, Index, Term};

impl<P, R> Shard<P, R> {
    pub(super) fn on_bootstrap(
        &mut self,
        group: GroupId,
        membership: Membership,
        reply: BootstrapReply,
    ) {
        if let Err(error) = self.check_bootstrap(group, &membership) {
            self.out.answers.push(Answer::Bootstrap(reply, Err(error)));
            return;
        }
        if self.groups.contains_key(&group) {
            // The same call again: it holds once all that was written so far is durable.
            self.repeated.push(reply);
            return;
        }
        let description = Description::member(membership, self.config.node);
        self.create(group, description, HardState::default(), Some(reply));
    }

    /// Begins with the state of another group: created, restarted behind the snapshot and given its
    /// membership in one write, so that after a crash there is all of it or nothing.
    pub(super) fn on_import(&mut self, group: GroupId, snapshot: Snapshot, reply: BootstrapReply) {
        let exists = self
            .groups
            .contains_key(&group)
            .then_some(BootstrapError::Exists(group));
        let checked = exists.map_or_else(|| self.check_bootstrap(group, &snapshot.membership), Err);
        if let Err(error) = checked {
            self.out.answers.push(Answer::Bootstrap(reply, Err(error)));
            return;
        }
        let description = Description {
            standing: Standing::Joining,
            is_witness: false,
            membership: Membership {
                index: Index::ZERO,
                ..snapshot.membership.clone()
            },
        };
        self.create(group, description, HardState::default(), Some(reply));
        if let Some(replica) = self.groups.get_mut(&group) {
            replica.take_as_newest(snapshot.clone());
        }
        self.step(group, Input::Import(snapshot));
    }

    /// A replica without a log or a state; `hard_state` is what the log has kept of an earlier one.
    pub(super) fn create(
        &mut self,
        group: GroupId,
        description: Description,
        hard_state: HardState,
        reply: Option<BootstrapReply>,
    ) {
        let meta = description.encode();
        let stored = StoredGroup {
            group,
            meta: meta.clone(),
            hard_state,
            compacted: (Index::ZERO, Term::ZERO),
            terms: Vec::new(),
        };
        let loaded = Loaded {
            description,
            applied: Index::ZERO,
            newest: None,
            recovered: None,
        };
        self.insert(&stored, loaded);
        let write = GroupWrite {
            meta: Some(meta),
            ..GroupWrite::new(group)
        };
        self.created.push((write, reply));
    }

    fn check_bootstrap(
        &self,
        group: GroupId,
        membership: &Membership,
    ) -> Result<(), BootstrapError> {
        if let Some(error) = &self.fenced {
            return Err(BootstrapError::Fenced(error.clone()));
        }
        membership.check()?;
        if !membership.members.contains_key(&self.config.node) {
            return Err(BootstrapError::NotAMember);
        }
        if self.removing.contains_key(&group) || self.leaving.contains_key(&group) {
            return Err(BootstrapError::Leaving(group));
        }
        if self.left.contains_key(&group) {
            return Err(BootstrapError::HasLeft(group));
        }
        match self.groups.get(&group) {
            Some(replica) if replica.raft.membership().members != membership.members => {
                Err(BootstrapError::Exists(group))
            }
            None if !self.log.has_room() => Err(BootstrapError::DiskFull),
            Some(_) | None => Ok(()),
        }
    }
}
