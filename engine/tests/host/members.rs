//! A host whose node joins groups and leaves them: what it answers, and what it keeps.

use super::support::{Machine, World, failed, id};
use super::{GROUP, leave_behind};
use multiraft_engine::description::{Description, Standing};
use multiraft_engine::error::{BootstrapError, JoinError, LeaveError};
use multiraft_engine::events::GroupEvent;
use multiraft_engine::host::Host;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::message::JoinRefusal;
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{GroupId, Index};

fn members(roles: &[(u32, MemberRole)]) -> Membership {
    let member = |&(node, role): &(u32, MemberRole)| {
        let address = PeerAddress {
            host: format!("n{node}"),
            port: 5000,
        };
        (id(node), Member { role, address })
    };
    Membership::new(roles.iter().map(member).collect())
}

/// This node's role, and another voter.
fn with(role: MemberRole) -> Membership {
    members(&[(1, role), (2, MemberRole::Voter)])
}

/// A group of this node alone, or with others that do not run, if it can lead it.
async fn led(world: &mut World, membership: Membership) -> Host<Machine> {
    let host = world.start().unwrap();
    host.bootstrap(GROUP, membership).await.unwrap();
    let is_led = |event: &GroupEvent| matches!(event, GroupEvent::LeaderUpdated { leader, .. } if leader.is_some());
    world.event(is_led).await;
    host
}

/// Until nothing of the group is here.
async fn gone(world: &mut World, host: &Host<Machine>) {
    world
        .event(|event| matches!(event, GroupEvent::Left { group: GROUP }))
        .await;
    assert_eq!(host.status(&[GROUP]).await, []);
}

#[tokio::test]
async fn the_last_member_ends_the_group_and_remembers_that() {
    let mut world = World::new();
    let host = led(&mut world, members(&[(1, MemberRole::Voter)])).await;
    host.propose(GROUP, "x".into()).await.unwrap();
    host.leave(GROUP).await.unwrap();
    gone(&mut world, &host).await;
    assert!(
        !world.machine.applied.lock().contains_key(&GROUP),
        "its state is deleted"
    );
    host.leave(GROUP).await.expect("it has left");
    drop(host);
    let host = world.start().unwrap();
    host.leave(GROUP)
        .await
        .expect("it has left, after a restart too");
    let again = host
        .bootstrap(GROUP, members(&[(1, MemberRole::Voter)]))
        .await;
    assert!(matches!(again, Err(BootstrapError::HasLeft(GROUP))));
    let other = host.leave(GroupId(8)).await;
    assert!(matches!(other, Err(LeaveError::NotAMember(GroupId(8)))));
}

#[tokio::test]
async fn the_last_one_with_data_and_a_vote_stays_while_others_need_it() {
    let mut world = World::new();
    let learner = members(&[(1, MemberRole::Voter), (2, MemberRole::Learner)]);
    let host = led(&mut world, learner).await;
    assert!(matches!(
        host.leave(GROUP).await,
        Err(LeaveError::LastVoter)
    ));
    host.propose(GROUP, "x".into()).await.expect("it serves");
}

#[tokio::test]
async fn a_join_that_is_given_up_leaves_nothing_behind() {
    let mut world = World::new();
    let host = world.start().unwrap();
    let joining = async {
        while host.status(&[GROUP]).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        result = host.join(GROUP, with(MemberRole::Voter)) => panic!("nobody is there: {result:?}"),
        () = joining => {}
    }
    gone(&mut world, &host).await;
    assert!(
        world.network.peers.lock().contains_key(&id(2)),
        "it was to be asked"
    );
    // It has promised nothing: the group may begin here.
    loop {
        match host
            .bootstrap(GROUP, members(&[(1, MemberRole::Voter)]))
            .await
        {
            Err(BootstrapError::Leaving(GROUP)) => tokio::task::yield_now().await,
            result => break result.unwrap(),
        }
    }
}

#[tokio::test]
async fn who_leaves_while_it_joins_is_out_at_once() {
    let mut world = World::new();
    let host = world.start().unwrap();
    let leaving = async {
        while host.status(&[GROUP]).await.is_empty() {
            tokio::task::yield_now().await;
        }
        host.leave(GROUP).await
    };
    let (joined, left) = tokio::join!(host.join(GROUP, with(MemberRole::Learner)), leaving);
    assert!(
        matches!(joined, Err(JoinError::Removed(GROUP))),
        "{joined:?}"
    );
    left.unwrap();
    gone(&mut world, &host).await;
}

#[tokio::test]
async fn each_join_that_cannot_be_is_refused_with_its_reason() {
    let mut world = World::new();
    let host = led(&mut world, members(&[(1, MemberRole::Voter)])).await;
    let other = GroupId(8);
    for (group, membership, reason) in [
        (
            other,
            members(&[(2, MemberRole::Voter)]),
            "this node is not among the members",
        ),
        (
            other,
            members(&[(1, MemberRole::Voter)]),
            "no member to ask is named besides this node",
        ),
        (
            other,
            members(&[(1, MemberRole::Learner), (2, MemberRole::Witness)]),
            "a group needs at least one voting member with data",
        ),
        (
            GROUP,
            with(MemberRole::Learner),
            "cannot join: it is a member in another role: leave first",
        ),
    ] {
        let error = host.join(group, membership).await.expect_err(reason);
        assert_eq!(error.to_string(), reason);
    }
    assert!(matches!(
        host.join(GROUP, with(MemberRole::Witness)).await,
        Err(JoinError::Refused(JoinRefusal::OtherRole))
    ));
    host.join(GROUP, with(MemberRole::Voter))
        .await
        .expect("it is one");
    *world.log.is_full.lock() = true;
    let full = host.join(other, with(MemberRole::Voter)).await;
    assert!(matches!(full, Err(JoinError::DiskFull)));
    world.log.observer().on_fenced(&failed());
    let fenced = host.join(other, with(MemberRole::Voter)).await;
    assert!(matches!(fenced, Err(JoinError::Fenced(_))));
    let fenced = host.leave(GROUP).await;
    assert!(matches!(fenced, Err(LeaveError::Fenced(_))));
}

#[test]
fn what_a_crash_left_of_a_group_goes_with_the_next_start() {
    let world = World::new();
    let left = Description {
        standing: Standing::Left,
        is_witness: false,
        membership: members(&[(2, MemberRole::Voter)]),
    };
    leave_behind(&world, left.encode());
    world.machine.applied.lock().insert(GROUP, Index(5));
    let host = world.start().unwrap();
    assert!(!world.machine.applied.lock().contains_key(&GROUP));
    drop(host);
}

#[test]
fn descriptions_come_back_and_nothing_else_is_one() {
    for standing in [
        Standing::Member,
        Standing::Joining,
        Standing::Left,
        Standing::Lost,
    ] {
        for is_witness in [false, true] {
            let description = Description {
                standing,
                is_witness,
                membership: with(MemberRole::Learner),
            };
            let bytes = description.encode();
            assert_eq!(Description::decode(&bytes), Ok(description));
            assert!(Description::decode(&bytes[..bytes.len() - 1]).is_err());
        }
    }
    let membership = with(MemberRole::Voter).encode();
    for strange in [
        &b""[..],
        b"\x01",
        b"\x01\x00",
        b"\x01\x05",
        b"\x01\x21",
        b"\x03\x01",
    ] {
        let bytes = [strange, &membership].concat();
        assert!(Description::decode(&bytes).is_err(), "{strange:?}");
    }
    assert!(Description::decode(b"").is_err());
}
