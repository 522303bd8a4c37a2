//! Snapshots through a whole host: made, taken over, found wanting, and what a start does with them.

use super::*;

#[tokio::test]
async fn a_snapshot_is_made_when_it_is_asked_for_and_there_is_room() {
    let mut world = World::new();
    world.config.retain_entries = 0;
    // A snapshot that could not be made is tried again soon.
    world.config.limits.election_ticks = 3;
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    *world.store.is_full.lock() = true;
    host.make_snapshot(GROUP);
    assert_eq!(world.done.recv().await, Some(Done::Refused(GROUP)));
    assert_eq!(propose(&host).await.unwrap(), COMMAND, "it goes on without");
    assert_eq!(host.status(&[]).await[0].snapshot, Index::ZERO);
    *world.store.is_full.lock() = false;
    while host.status(&[]).await[0].snapshot == Index::ZERO {
        host.make_snapshot(GROUP);
    }
    let status = host.status(&[]).await.remove(0);
    assert_eq!((status.snapshot, status.first), (Index(3), Index(4)));
    world
        .event(|e| is_snapshot(e, SnapshotEvent::Created))
        .await;
    world
        .event(|e| is_snapshot(e, SnapshotEvent::LogCompacted))
        .await;
}

/// Either of the two thresholds is enough.
#[tokio::test]
async fn a_snapshot_is_made_after_so_many_entries_or_so_many_bytes() {
    for (entries, bytes, is_made) in [
        (4, u64::MAX, true),
        (u64::MAX / 2, 200, true),
        (u64::MAX / 2, u64::MAX, false),
    ] {
        let mut world = World::new();
        world.config.snapshot_entries = entries;
        world.config.snapshot_bytes = bytes;
        let host = led(&mut world).await;
        for _ in 0..8 {
            propose(&host).await.unwrap();
        }
        if is_made {
            let created = |event: &GroupEvent| is_snapshot(event, SnapshotEvent::Created);
            world.event(created).await;
        }
        let has_one = host.status(&[]).await[0].snapshot > Index::ZERO;
        assert_eq!(has_one, is_made, "{entries} entries or {bytes} bytes");
    }
}

#[tokio::test]
async fn a_snapshot_of_a_leader_takes_the_place_of_log_and_state() {
    let mut world = World::new();
    let host = world.start().unwrap();
    host.bootstrap(GROUP, voters([1, 2])).await.unwrap();
    arrived(&world, GROUP);
    world
        .event(|e| is_snapshot(e, SnapshotEvent::Received(id(2))))
        .await;
    world
        .event(|e| is_snapshot(e, SnapshotEvent::Recovered))
        .await;
    let status = host.status(&[]).await.remove(0);
    assert_eq!((status.applied, status.snapshot), (Index(20), Index(20)));
    assert_eq!(host.machine().applied.lock()[&GROUP], Index(20));
    // News of one on its way out is told in pairs.
    let sent = Travelling {
        group: GROUP,
        to: id(2),
        index: Index(20),
    };
    let network = world.network.observer();
    network.on_snapshot_sending(sent, SnapshotSending::Started);
    network.on_snapshot_sending(sent, SnapshotSending::Completed);
    for kind in [
        SnapshotEvent::SendStarted(id(2)),
        SnapshotEvent::SendCompleted(id(2)),
    ] {
        world.event(|event| is_snapshot(event, kind)).await;
    }
}

#[tokio::test]
async fn snapshots_of_groups_that_are_not_here_are_forgotten() {
    let mut world = World::new();
    let left = snapshot(voters([1]));
    world.store.snapshots.lock().insert(GroupId(9), vec![left]);
    let host = world.start().unwrap();
    assert_eq!(world.done.recv().await, Some(Done::Forgot(GroupId(9))));
    host.bootstrap(GROUP, voters([1])).await.unwrap();
    arrived(&world, GroupId(8));
    assert_eq!(world.done.recv().await, Some(Done::Forgot(GroupId(8))));
    assert!(world.store.snapshots.lock().is_empty());
}

/// What a log and a store hold of a group whose machine ends at 3, before the log begins: entries
/// from 21 on, and snapshots at these indexes.
fn behind(world: &World, snapshots: &[u64]) {
    let compacted = (Index(20), Term(4));
    let entries = [(EntryKind::Normal, COMMAND), (EntryKind::Normal, COMMAND)];
    let block = Block::encode(Index(21), Term(4), &entries);
    let meta = super::description();
    world.log.leave_behind(GROUP, meta, compacted, vec![block]);
    world.machine.applied.lock().insert(GROUP, Index(3));
    let at = |&index: &u64| Snapshot {
        index: Index(index),
        ..snapshot(voters([1]))
    };
    let snapshots = snapshots.iter().map(at).collect();
    world.store.snapshots.lock().insert(GROUP, snapshots);
}

#[tokio::test]
async fn a_machine_behind_its_log_goes_on_from_the_newest_whole_snapshot() {
    // The snapshots, those of them that are damaged; from which the machine goes on.
    for (snapshots, damaged, recovered) in [
        (&[20][..], &[][..], 20),
        (&[20, 21], &[], 21),
        (&[20, 21], &[21], 20),
        (&[20, 99], &[], 20), // the log knows no 99: it is deleted
    ] {
        let case = format!("{snapshots:?} without {damaged:?}");
        let mut world = World::new();
        behind(&world, snapshots);
        world
            .store
            .damaged
            .lock()
            .extend(damaged.iter().map(|&index| Index(index)));
        let host = world.start().unwrap();
        let event = world
            .event(|e| is_snapshot(e, SnapshotEvent::Recovered))
            .await;
        let GroupEvent::Snapshot { index, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!(index, Index(recovered), "{case}");
        world.event(is_led).await;
        // Behind two entries of before and the no-op of the new term.
        propose(&host).await.unwrap();
        assert_eq!(host.machine().applied.lock()[&GROUP], Index(24), "{case}");
        let left = world.store.of(GROUP);
        assert!(
            left.iter().all(|snapshot| snapshot.index <= Index(22)),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_machine_behind_its_log_waits_for_another_s_snapshot_if_its_own_is_damaged() {
    let mut world = World::new();
    behind(&world, &[20]);
    world.store.damaged.lock().push(Index(20));
    let host = world.start().unwrap();
    let status = host.status(&[]).await.remove(0);
    assert_eq!((status.first, status.snapshot), (Index(21), Index::ZERO));
    let refused = propose(&host).await;
    assert!(matches!(
        refused,
        Err(ProposeError::Refused(Refusal::NoLeader))
    ));
    assert_eq!(host.machine().applied.lock()[&GROUP], Index(3));
    world.store.damaged.lock().clear();
    arrived(&world, GROUP);
    let ready = |event: &GroupEvent| matches!(event, GroupEvent::MemberReady { .. });
    world.event(ready).await;
    assert_eq!(host.machine().applied.lock()[&GROUP], Index(20));
    assert_eq!(host.status(&[]).await[0].last, Index(22), "the log stays");
}

#[tokio::test]
async fn a_snapshot_that_no_peer_gets_is_looked_at() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    host.make_snapshot(GROUP);
    world
        .event(|e| is_snapshot(e, SnapshotEvent::Created))
        .await;
    let sent = Travelling {
        group: GROUP,
        to: id(2),
        index: Index(2),
    };
    let network = world.network.observer();
    let fails = || {
        network.on_snapshot_sending(sent, SnapshotSending::Started);
        network.on_snapshot_sending(sent, SnapshotSending::Aborted);
    };
    fails();
    assert_eq!(world.done.recv().await, Some(Done::Verified(Index(2))));
    assert_eq!(host.status(&[]).await[0].snapshot, Index(2), "it is whole");
    world.store.damaged.lock().push(Index(2));
    fails();
    assert_eq!(world.done.recv().await, Some(Done::Verified(Index(2))));
    // It does not count any more: another one is made when it is asked for.
    while host.status(&[]).await[0].snapshot != Index::ZERO {}
    world
        .event(|e| is_snapshot(e, SnapshotEvent::SendAborted(id(2))))
        .await;
}
