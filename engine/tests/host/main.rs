//! A host with its threads: what it takes, what it refuses, and how it ends when something below
//! it fails.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test may stop where it stands"
)]

mod members;
mod snapshots;
mod support;

use std::io;

use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::config::ConfigError;
use multiraft_engine::description::Description;
use multiraft_engine::error::{
    BootstrapError, ChangeMembershipError, ProposeError, ReadError, StartError,
};
use multiraft_engine::events::{GroupEvent, SnapshotEvent};
use multiraft_engine::host::Host;
use multiraft_engine::raft::RoleName;
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::effects::{Refusal, Snapshot};
use multiraft_engine::raft::membership::{Member, MemberRole, Membership, MembershipError};
use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::{SnapshotSending, SnapshotStore, Travelling};
use multiraft_engine::traits::{ConnectionKind, ConnectionState, PeerAddress};
use multiraft_engine::types::{GroupId, Index, Term};

use support::{Disk, Done, Machine, Step, World, failed, id};

const GROUP: GroupId = GroupId(7);
const COMMAND: Bytes = Bytes::from_static(b"command");

fn address(node: u32) -> PeerAddress {
    PeerAddress {
        host: format!("n{node}"),
        port: 5000,
    }
}

fn voters<const N: usize>(nodes: [u32; N]) -> Membership {
    let voter = |node| {
        let role = MemberRole::Voter;
        let address = address(node);
        (id(node), Member { role, address })
    };
    Membership::new(nodes.map(voter).into())
}

fn learner(node: u32) -> ConfChange {
    ConfChange {
        addresses: [(id(node), address(node))].into(),
        ..ConfChange::new(Transition::Auto, vec![Change::Learner(id(node))])
    }
}

fn is_led(event: &GroupEvent) -> bool {
    matches!(event, GroupEvent::LeaderUpdated { leader, .. } if leader.is_some())
}

fn is_leaderless(event: &GroupEvent) -> bool {
    matches!(event, GroupEvent::LeaderUpdated { leader: None, .. })
}

fn is_snapshot(event: &GroupEvent, kind: SnapshotEvent) -> bool {
    matches!(event, GroupEvent::Snapshot { event, .. } if *event == kind)
}

/// A group of this node alone, which leads it.
async fn led(world: &mut World) -> Host<Machine> {
    let host = world.start().unwrap();
    host.bootstrap(GROUP, voters([1])).await.unwrap();
    world.event(is_led).await;
    host
}

async fn propose(host: &Host<Machine>) -> Result<Bytes, ProposeError> {
    host.propose(GROUP, COMMAND).await
}

#[tokio::test]
async fn a_group_answers_and_goes_on_after_a_restart() {
    let mut world = World::new();
    let host = led(&mut world).await;
    assert_eq!(propose(&host).await.unwrap(), COMMAND);
    assert_eq!(host.read_index(GROUP).await.unwrap(), Index(2));
    let status = host.status(&[]).await;
    assert_eq!(status.len(), 1);
    assert_eq!((status[0].group, status[0].role), (GROUP, RoleName::Leader));
    assert_eq!((status[0].commit, status[0].applied), (Index(2), Index(2)));
    assert_eq!(host.status(&[GroupId(8)]).await, []);
    assert_eq!(host.metrics().proposals.get(), 1);
    assert_eq!(host.metrics().applied.get(), 2, "a no-op and the command");
    host.shut_down().unwrap();
    host.shut_down().unwrap();
    drop(host);
    let host = world.start().unwrap();
    let ready = |event: &GroupEvent| matches!(event, GroupEvent::MemberReady { .. });
    world.event(ready).await;
    world.event(is_led).await;
    assert_eq!(propose(&host).await.unwrap(), COMMAND);
    assert_eq!(host.read_index(GROUP).await.unwrap(), Index(4));
    assert_eq!(host.machine().applied.lock()[&GROUP], Index(4));
}

#[tokio::test]
async fn a_group_is_bootstrapped_once_and_only_among_its_members() {
    let world = World::new();
    let host = world.start().unwrap();
    let none = host.bootstrap(GROUP, Membership::default()).await;
    let no_voter = BootstrapError::Membership(MembershipError::NoVoter);
    assert_eq!(none.unwrap_err().to_string(), no_voter.to_string());
    let others = host.bootstrap(GROUP, voters([2, 3])).await;
    assert!(matches!(others, Err(BootstrapError::NotAMember)));
    *world.log.is_full.lock() = true;
    let full = host.bootstrap(GROUP, voters([1])).await;
    assert!(matches!(full, Err(BootstrapError::DiskFull)));
    assert_eq!(
        host.status(&[]).await,
        [],
        "nothing is left of a refused one"
    );
    *world.log.is_full.lock() = false;
    host.bootstrap(GROUP, voters([1, 2])).await.unwrap();
    assert_eq!(world.network.peers.lock()[&id(2)], address(2));
    host.bootstrap(GROUP, voters([1, 2])).await.unwrap();
    let other = host.bootstrap(GROUP, voters([1])).await;
    assert!(matches!(other, Err(BootstrapError::Exists(GROUP))));
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused() {
    let mut world = World::new();
    world.config.limits.proposal_bytes = COMMAND.len();
    let host = led(&mut world).await;
    assert_eq!(propose(&host).await.unwrap(), COMMAND, "at the limit");
    let longer = host.propose(GROUP, Bytes::from_static(b"commands")).await;
    let too_large = Refusal::TooLarge;
    assert!(matches!(longer, Err(ProposeError::Refused(reason)) if reason == too_large));
    *world.log.is_full.lock() = true;
    let full = propose(&host).await;
    assert!(matches!(full, Err(ProposeError::DiskFull)));
    assert_eq!(host.metrics().refused.get(), 1);
    host.read_index(GROUP).await.expect("a read needs no room");
    *world.log.is_full.lock() = false;
    let nobody = GroupId(8);
    let proposed = host.propose(nobody, COMMAND).await;
    assert!(matches!(proposed, Err(ProposeError::UnknownGroup(group)) if group == nobody));
    let read = host.read_index(nobody).await;
    assert!(matches!(read, Err(ReadError::UnknownGroup(group)) if group == nobody));
    let change = host.change_membership(nobody, learner(2)).await;
    assert!(matches!(change, Err(ChangeMembershipError::UnknownGroup(group)) if group == nobody));
    assert_eq!(propose(&host).await.unwrap(), COMMAND);
}

/// A message from node 2, which leads term 5.
fn from_leader(to_group: GroupId, message: Message) -> Envelope {
    Envelope {
        group: to_group,
        from: id(2),
        to: id(1),
        term: Term(5),
        incarnation: 0,
        message,
    }
}

#[tokio::test]
async fn a_full_inbox_refuses_requests_and_drops_messages() {
    let mut world = World::new();
    (world.config.inbox_requests, world.config.inbox_messages) = (2, 3);
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    let gate = world.log.gate();
    // Of a stranger: whoever takes it ignores it.
    let message = from_leader(GROUP, Message::HeartbeatResponse { read_round: 0 });
    let network = world.network.observer();
    let all = async {
        gate.reached(); // from here on nothing leaves the inbox
        let full = async {
            let full = propose(&host).await;
            assert!(matches!(full, Err(ProposeError::Refused(Refusal::Busy))));
            assert_eq!(host.metrics().refused.get(), 1);
            let full = host.read_index(GROUP).await;
            assert!(matches!(full, Err(ReadError::Refused(Refusal::Busy))));
            network.on_messages(vec![message.clone(); 3]);
            assert_eq!(host.metrics().dropped_messages.get(), 0, "at the limit");
            network.on_messages(vec![message.clone()]);
            assert_eq!(host.metrics().dropped_messages.get(), 1);
            // The inbox of another shard has room.
            let other = from_leader(GroupId(8), message.message.clone());
            network.on_messages(vec![other]);
            assert_eq!(host.metrics().dropped_messages.get(), 1);
            drop(gate);
        };
        let (two, three, ()) = tokio::join!(biased; propose(&host), host.read_index(GROUP), full);
        assert_eq!(two.unwrap(), COMMAND);
        three.expect("a read that was taken is answered");
    };
    let (one, ()) = tokio::join!(biased; propose(&host), all);
    assert_eq!(one.unwrap(), COMMAND);
    assert_eq!(
        propose(&host).await.unwrap(),
        COMMAND,
        "there is room again"
    );
}

#[tokio::test]
async fn a_change_of_the_membership_makes_its_peers_known() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    let membership = host.change_membership(GROUP, learner(2)).await.unwrap();
    assert_eq!(membership.members[&id(2)].role, MemberRole::Learner);
    let changed = |event: &GroupEvent| matches!(event, GroupEvent::MembershipChanged { .. });
    world.event(changed).await;
    assert_eq!(host.status(&[]).await[0].membership, membership);
    assert_eq!(world.network.peers.lock()[&id(2)], address(2));
    let overtaken = ConfChange {
        expected: Some(Index::ZERO),
        ..learner(3)
    };
    let refused = host.change_membership(GROUP, overtaken).await;
    assert!(matches!(refused, Err(ChangeMembershipError::Refused)));
    // To a learner nothing is handed over, and one that is gone is no quorum.
    host.transfer_leadership(GROUP, id(2));
    world.network.observer().on_peer_down(id(2));
    assert_eq!(propose(&host).await.unwrap(), COMMAND);
    let seen = (
        id(2),
        address(2),
        ConnectionKind::Messages,
        ConnectionState::Failed,
    );
    let network = world.network.observer();
    network.on_connection(seen.0, &seen.1, seen.2, seen.3);
    assert_eq!(*world.connections.0.lock(), [seen]);
}

fn snapshot(members: Membership) -> Snapshot {
    Snapshot {
        index: Index(20),
        term: Term(4),
        membership: members,
    }
}

fn arrived(world: &World, group: GroupId) {
    let snapshot = snapshot(voters([1, 2]));
    let mut snapshots = world.store.snapshots.lock();
    snapshots.entry(group).or_default().push(snapshot.clone());
    drop(snapshots);
    let envelope = from_leader(group, Message::InstallSnapshot { snapshot });
    world.network.observer().on_snapshot_received(envelope);
}

/// Everything that asks for something is told that this node serves nothing any more.
async fn assert_fenced(world: &mut World, host: &Host<Machine>) {
    world.event(is_leaderless).await;
    assert!(matches!(propose(host).await, Err(ProposeError::Fenced(_))));
    let read = host.read_index(GROUP).await;
    assert!(matches!(read, Err(ReadError::Fenced(_))));
    let changed = host.change_membership(GROUP, learner(2)).await;
    assert!(matches!(changed, Err(ChangeMembershipError::Fenced(_))));
    let started = host.bootstrap(GroupId(8), voters([1])).await;
    assert!(matches!(started, Err(BootstrapError::Fenced(_))));
    let again = host.bootstrap(GROUP, voters([1])).await;
    assert!(matches!(again, Err(BootstrapError::Fenced(_))));
    assert_eq!(host.status(&[GROUP]).await.len(), 1, "it still tells");
}

#[tokio::test]
async fn a_log_that_takes_nothing_ends_the_service() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    *world.log.disk.lock() = Disk::Refuses;
    let lost = propose(&host).await;
    assert!(
        lost.is_err(),
        "what the log refused has no result: {lost:?}"
    );
    assert_fenced(&mut world, &host).await;
}

#[tokio::test]
async fn a_fenced_log_leaves_the_outcome_of_what_waits_unknown() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    *world.log.disk.lock() = Disk::Hangs;
    let fence = async {
        // Behind the requests in the same inbox: both wait by then.
        assert_eq!(host.status(&[]).await[0].last, Index(4));
        world.log.observer().on_fenced(&failed());
    };
    let (proposed, changed, started, ()) = tokio::join!(
        biased;
        propose(&host),
        host.change_membership(GROUP, learner(2)),
        host.bootstrap(GroupId(9), voters([1])),
        fence
    );
    assert!(matches!(proposed, Err(ProposeError::Unknown)));
    assert!(matches!(changed, Err(ChangeMembershipError::Unknown)));
    assert!(matches!(started, Err(BootstrapError::Fenced(_))));
    assert_fenced(&mut world, &host).await;
}

#[tokio::test]
async fn a_machine_that_fails_ends_the_service() {
    for step in [Step::Apply, Step::Snapshot, Step::Flush] {
        let mut world = World::new();
        let host = led(&mut world).await;
        propose(&host).await.unwrap();
        *world.machine.fails.lock() = Some(step);
        if step == Step::Apply {
            let lost = propose(&host).await;
            assert!(lost.is_err(), "applied nowhere: {lost:?}");
        } else {
            host.make_snapshot(GROUP);
        }
        assert_fenced(&mut world, &host).await;
    }
    let mut world = World::new();
    world.config.limits.election_ticks = 1_000_000; // node 2 leads, however long this takes
    let host = world.start().unwrap();
    host.bootstrap(GROUP, voters([1, 2])).await.unwrap();
    *world.machine.fails.lock() = Some(Step::Restore);
    arrived(&world, GROUP);
    world.event(is_led).await;
    assert_fenced(&mut world, &host).await;
}

/// What a shard hands over to an apply stage that is at its end would lie there for ever: 1. the
/// machine fails; 2. meanwhile the shard writes a proposal; 3. nobody takes it from the stage's inbox.
#[tokio::test]
async fn a_proposal_behind_the_machine_s_failure_is_answered() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    let other = GroupId(8);
    host.bootstrap(other, voters([1])).await.unwrap();
    world.event(is_led).await;
    *world.machine.fails.lock() = Some(Step::Snapshot);
    let machine = world.machine.gate();
    host.make_snapshot(GROUP);
    machine.reached();
    let disk = world.log.gate();
    let fail = async {
        disk.reached();
        drop(machine);
        let is_fenced = |event: &GroupEvent| matches!(event, GroupEvent::LeaderUpdated { group, leader: None, .. } if *group == other);
        world.event(is_fenced).await;
        drop(disk);
    };
    let (proposed, ()) = tokio::join!(biased; propose(&host), fail);
    assert!(proposed.is_err(), "applied nowhere: {proposed:?}");
}

#[tokio::test]
async fn a_stopped_host_answers_whoever_waits_and_takes_nothing_more() {
    let mut world = World::new();
    let host = led(&mut world).await;
    propose(&host).await.unwrap();
    *world.log.disk.lock() = Disk::Hangs;
    *world.machine.fails.lock() = Some(Step::Flush);
    let (proposed, changed, flushed) = tokio::join!(
        biased;
        propose(&host),
        host.change_membership(GROUP, learner(2)),
        async { host.shut_down() }
    );
    assert!(matches!(proposed, Err(ProposeError::Stopped)));
    assert!(matches!(changed, Err(ChangeMembershipError::Stopped)));
    assert_eq!(flushed.unwrap_err().kind(), io::ErrorKind::Other);

    assert!(matches!(propose(&host).await, Err(ProposeError::Stopped)));
    let read = host.read_index(GROUP).await;
    assert!(matches!(read, Err(ReadError::Stopped)));
    let started = host.bootstrap(GroupId(8), voters([1])).await;
    assert!(matches!(started, Err(BootstrapError::Stopped)));
    let changed = host.change_membership(GROUP, learner(2)).await;
    assert!(matches!(changed, Err(ChangeMembershipError::Stopped)));
    assert_eq!(host.status(&[]).await, []);
    let proposals = host.metrics().proposals.get();
    host.transfer_leadership(GROUP, id(2));
    host.make_snapshot(GROUP);
    tell(&world);
    assert_eq!(host.metrics().proposals.get(), proposals);
    drop(host);
    let connections = world.connections.0.lock().len();
    tell(&world);
    assert_eq!(
        world.connections.0.lock().len(),
        connections,
        "nobody listens"
    );
}

/// All that the threads of the log and the transport may still say.
fn tell(world: &World) {
    let log = world.log.observer();
    log.on_durable(1, u64::MAX);
    log.on_durable(99, 1); // of a shard that there never was
    log.on_fenced(&failed());
    let network = world.network.observer();
    let sent = Travelling {
        group: GROUP,
        to: id(2),
        index: Index(20),
    };
    network.on_messages(vec![from_leader(GROUP, Message::TimeoutNow)]);
    network.on_snapshot_sending(sent, SnapshotSending::Aborted);
    let snapshot = snapshot(voters([1]));
    network.on_snapshot_received(from_leader(GROUP, Message::InstallSnapshot { snapshot }));
    network.on_peer_down(id(2));
    let (kind, state) = (ConnectionKind::Messages, ConnectionState::Established);
    network.on_connection(id(2), &address(2), kind, state);
}

/// A group without entries, and with these bytes for its membership.
fn leave_behind(world: &World, meta: Bytes) {
    let log = &world.log;
    log.leave_behind(GROUP, meta, (Index::ZERO, Term::ZERO), Vec::new());
}

fn start_error(world: &World) -> StartError {
    world.start().err().expect("it must not start")
}

#[test]
fn a_host_does_not_start_on_what_cannot_work() {
    for (break_it, error) in [
        (
            (|config| config.shards = 0) as fn(&mut multiraft_engine::config::Config),
            ConfigError::NoShard,
        ),
        (
            |config| config.tick = std::time::Duration::ZERO,
            ConfigError::ZeroTick,
        ),
        (
            |config| config.limits.election_ticks = 2,
            ConfigError::ElectionTooShort(2),
        ),
        (|config| config.inbox_requests = 0, ConfigError::NoInbox),
        (
            |config| config.snapshot_entries = 0,
            ConfigError::NoSnapshots,
        ),
        (|config| config.snapshot_bytes = 0, ConfigError::NoSnapshots),
        (
            |config| config.snapshot_threads = 0,
            ConfigError::NoSnapshots,
        ),
    ] {
        let mut world = World::new();
        break_it(&mut world.config);
        let found = start_error(&world);
        assert!(
            matches!(found, StartError::Config(found) if found == error),
            "{error}"
        );
    }
}

/// What the log says of a group of this node alone.
fn description() -> Bytes {
    Description::member(voters([1]), id(1)).encode()
}

#[test]
fn a_host_does_not_start_on_what_is_not_its_own() {
    let world = World::new();
    leave_behind(&world, Bytes::from_static(b"garbage"));
    let error = start_error(&world);
    assert!(
        matches!(error, StartError::Membership { group: GROUP, .. }),
        "{error}"
    );

    let world = World::new();
    leave_behind(&world, description());
    world.machine.applied.lock().insert(GROUP, Index(5));
    let error = start_error(&world);
    assert!(
        matches!(
            error,
            StartError::StateAhead {
                group: GROUP,
                applied: Index(5),
                last: Index(0)
            }
        ),
        "{error}"
    );

    let world = World::new();
    leave_behind(&world, description());
    *world.machine.fails.lock() = Some(Step::Applied);
    let error = start_error(&world);
    assert!(
        matches!(&error, StartError::StateMachine { group: GROUP, reason } if reason == "a failed machine"),
        "{error}"
    );
}
