//! What a group starts from, besides its log: its state machine and its snapshots.

use crate::description::{Description, Standing};
use crate::error::StartError;
use crate::raft::effects::Snapshot;
use crate::shard::Loaded;
use crate::snapshot::{SnapshotStore, forget, restore};
use crate::state_machine::StateMachine;
use crate::traits::StoredGroup;
use crate::types::{GroupId, Index, Term};

/// Gathers what is known of a group besides its log. A state machine that ends before the log begins,
/// because a crash came between the log's restart and the taking over of a snapshot, or before its
/// last flush, is restored from the snapshot; if that is damaged, the replica starts all the same,
/// and is sent another one. Snapshots that the log does not know, because a crash came before it
/// restarted, are deleted.
///
/// # Errors
/// Log and state do not belong together, or the state machine failed.
pub fn load<M: StateMachine>(
    stored: &StoredGroup,
    description: Description,
    machine: &M,
    store: &dyn SnapshotStore,
) -> Result<Loaded, StartError> {
    if description.standing == Standing::Lost {
        // State and snapshots stay until the group goes on without this replica: they may be all that is left.
        return Ok(Loaded {
            description,
            applied: Index::ZERO,
            newest: None,
            recovered: None,
        });
    }
    let group = stored.group;
    let begin = stored.compacted.0;
    let failed = |error: M::Error| failed(group, &error);
    let mut applied = machine.applied(group).map_err(failed)?;
    if description.is_witness {
        return Ok(Loaded {
            description,
            applied: begin,
            newest: None,
            recovered: None,
        });
    }
    let last = stored.terms.last().map_or(begin, |run| run.1);
    if applied > last {
        return Err(StartError::StateAhead {
            group,
            applied,
            last,
        });
    }
    let mut usable = usable(stored, store);
    let mut recovered = None;
    while applied < begin
        && let Some(newest) = usable.last()
    {
        if restore(machine, store, group, newest).map_err(failed)? {
            applied = newest.index;
            recovered = Some(newest.index);
        } else {
            usable.pop();
        }
    }
    Ok(Loaded {
        description,
        applied,
        newest: usable.pop(),
        recovered,
    })
}

/// Deletes what a crash has left of a group that this node has left.
///
/// # Errors
/// The state machine failed.
pub fn forget_left<M: StateMachine>(
    group: GroupId,
    machine: &M,
    store: &dyn SnapshotStore,
) -> Result<(), StartError> {
    let failed = |error: M::Error| failed(group, &error);
    if machine.applied(group).map_err(failed)? > Index::ZERO {
        machine.remove(group).map_err(failed)?;
    }
    forget(store, group);
    Ok(())
}

fn failed(group: GroupId, error: &dyn std::error::Error) -> StartError {
    StartError::StateMachine {
        group,
        reason: error.to_string(),
    }
}

/// The snapshots that the log goes on from, by rising index.
fn usable(stored: &StoredGroup, store: &dyn SnapshotStore) -> Vec<Snapshot> {
    let group = stored.group;
    let term = |index: Index| -> Option<Term> {
        let in_run = |run: &&(Index, Index, Term)| run.0 <= index && index <= run.1;
        let entry = stored.terms.iter().find(in_run).map(|run| run.2);
        entry.or((stored.compacted.0 == index).then_some(stored.compacted.1))
    };
    let (usable, strange): (Vec<_>, Vec<_>) = store
        .of(group)
        .into_iter()
        .partition(|snapshot| term(snapshot.index) == Some(snapshot.term));
    for Snapshot { index, .. } in strange {
        if let Err(error) = store.remove(group, index) {
            tracing::warn!(%group, %index, %error, "a snapshot that the log does not know stays");
        }
    }
    usable
}
