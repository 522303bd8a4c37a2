//! Simple and joint changes, what refuses them, and whose life of its data stays admitted.

use super::*;

const AUTO: Transition = Transition::Auto;
const IMPLICIT: Transition = Transition::Implicit;
const EXPLICIT: Transition = Transition::Explicit;

fn id(id: u32) -> NodeId {
    NodeId::new(id).expect("not zero")
}

fn address(host: &str) -> PeerAddress {
    PeerAddress {
        host: host.to_owned(),
        port: 5000,
    }
}

/// `v1 l2 w3 r4 u5`.
fn change(transition: Transition, text: &str) -> ConfChange {
    let step = |word: &str| {
        let node = id(word[1..].parse().expect("a number"));
        match &word[..1] {
            "v" => Change::Voter(node),
            "l" => Change::Learner(node),
            "w" => Change::Witness(node),
            "r" => Change::Remove(node),
            "u" => Change::Update(node),
            other => panic!("no such change: {other}"),
        }
    };
    ConfChange::new(transition, text.split_whitespace().map(step).collect())
}

/// Members in these roles, as the initial configuration of a group.
fn group(text: &str) -> Membership {
    let mut members = BTreeMap::new();
    for step in change(AUTO, text).changes {
        let role = match step {
            Change::Voter(_) => MemberRole::Voter,
            Change::Learner(_) => MemberRole::Learner,
            Change::Witness(_) => MemberRole::Witness,
            Change::Remove(_) | Change::Update(_) => panic!("{step:?} is no role"),
        };
        let host = format!("n{}", step.node());
        let address = address(&host);
        members.insert(step.node(), Member { role, address });
    }
    Membership::new(members)
}

/// `v1 l2 | v1 v2 auto`: the members, and the outgoing half with how it is left.
fn text(membership: &Membership) -> String {
    let half = |members: &BTreeMap<NodeId, Member>| {
        let word = |(id, member): (&NodeId, &Member)| match member.role {
            MemberRole::Voter => format!("v{id}"),
            MemberRole::Learner => format!("l{id}"),
            MemberRole::Witness => format!("w{id}"),
        };
        members.iter().map(word).collect::<Vec<_>>().join(" ")
    };
    let mut text = half(&membership.members);
    if let Some(joint) = &membership.joint {
        let how = if joint.auto_leave { "auto" } else { "explicit" };
        text = format!("{text} | {} {how}", half(&joint.outgoing));
    }
    text
}

#[test]
fn a_change_of_one_member_is_simple_and_others_are_joint() {
    for (before, transition, steps, after) in [
        // Simple: at most one voter moves.
        ("v1", AUTO, "v2", "v1 v2"),
        ("v1", AUTO, "l2", "v1 l2"),
        ("v1", AUTO, "w2", "v1 w2"),
        ("v1 l2", AUTO, "v2", "v1 v2"),
        ("v1 v2", AUTO, "l2", "v1 l2"),
        ("v1 v2", AUTO, "r2", "v1"),
        ("v1 w2", AUTO, "r2", "v1"),
        ("v1 v2", AUTO, "r3", "v1 v2"), // nobody: no effect
        ("v1 v2", AUTO, "v2", "v1 v2"), // as before
        ("v1 v2", AUTO, "u2", "v1 v2"),
        ("v1 v2", AUTO, "u1 u2", "v1 v2"), // several updates move nobody
        // Joint: several, or because it is asked for.
        ("v1", AUTO, "v2 v3", "v1 v2 v3 | v1 auto"),
        ("v1", AUTO, "u1 v2", "v1 v2 | v1 auto"),
        ("v1 v2", AUTO, "l2 v3", "v1 l2 v3 | v1 v2 auto"),
        ("v1 v2 l3", AUTO, "r1 v3", "v2 v3 | v1 v2 auto"), // learners have no half
        ("v1 w2", AUTO, "r2 v3", "v1 v3 | v1 w2 auto"),
        ("v1", IMPLICIT, "v2", "v1 v2 | v1 auto"),
        ("v1", EXPLICIT, "v2", "v1 v2 | v1 explicit"),
        ("v1 v2", EXPLICIT, "u1", "v1 v2 | v1 v2 explicit"),
        // In order: the last word on a member counts.
        ("v1", AUTO, "v2 r2", "v1 | v1 auto"),
        ("v1 v2", AUTO, "r2 l2", "v1 l2 | v1 v2 auto"),
    ] {
        let case = format!("{before}: {transition:?} {steps}");
        let change = change(transition, steps);
        let next = group(before).changed(&change, Index(9));
        let next = next.unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(text(&next), after, "{case}");
        assert_eq!(next.index, Index(9), "{case}: it is named by its entry");
        let seen = next.configuration();
        assert_eq!(seen.is_joint(), next.joint.is_some(), "{case}");
    }
}

#[test]
fn a_joint_configuration_is_left_before_anything_else() {
    let enter = change(EXPLICIT, "l2 v3");
    let joint = group("v1 v2").changed(&enter, Index(3)).expect("valid");
    assert_eq!(text(&joint), "v1 l2 v3 | v1 v2 explicit");
    for (steps, transition) in [
        ("v4", AUTO),
        ("v4 v5", AUTO),
        ("u1", AUTO),
        ("v4", EXPLICIT),
    ] {
        let refused = joint.changed(&change(transition, steps), Index(4));
        let reason = Err(ChangeError::AlreadyJoint);
        assert_eq!(refused, reason, "{transition:?} {steps}");
    }
    let left = joint.changed(&ConfChange::default(), Index(4));
    let left = left.expect("there is something to leave");
    assert_eq!(text(&left), "v1 l2 v3");
    assert_eq!(left.index, Index(4));
    let again = left.changed(&ConfChange::default(), Index(5));
    assert_eq!(again, Err(ChangeError::NotJoint));
    // Only a change without members, and without asking for a joint configuration, leaves one.
    for (transition, steps, leaves) in [
        (AUTO, "", true),
        (IMPLICIT, "", false),
        (EXPLICIT, "", false),
        (AUTO, "v1", false),
    ] {
        let change = change(transition, steps);
        assert_eq!(change.leaves_joint(), leaves, "{transition:?} {steps}");
    }
}

#[test]
fn what_could_not_be_led_or_counted_is_refused() {
    use ChangeError::{NoVoter, NothingToLeave, TooManyMembers, TooManyVoters, WitnessStays};
    let witnesses: Vec<_> = (2..=64).map(|id| format!("w{id}")).collect();
    let full = format!("v1 {}", witnesses.join(" "));
    for (before, transition, steps, reason) in [
        ("v1", AUTO, "r1", NoVoter),
        ("v1", AUTO, "l1", NoVoter),
        ("v1 w2 w3", AUTO, "r1", NoVoter), // a quorum that nobody can lead
        ("v1 v2", IMPLICIT, "r1 l2", NoVoter),
        ("v1 w2", AUTO, "v2", WitnessStays(id(2))),
        ("v1 w2", AUTO, "l2", WitnessStays(id(2))),
        ("v1 v2", AUTO, "w2", WitnessStays(id(2))),
        ("v1 l2", AUTO, "w2", WitnessStays(id(2))),
        (&full, AUTO, "l65", TooManyMembers(65)),
        (&full, IMPLICIT, "l65 l66", TooManyMembers(66)),
        ("l1", IMPLICIT, "v2", NothingToLeave),
    ] {
        let change = change(transition, steps);
        let refused = group(before).changed(&change, Index(9));
        assert_eq!(refused, Err(reason), "{steps}");
    }
    let exact = group(&full).changed(&change(AUTO, "r64"), Index(9));
    let exact = exact.and_then(|group| group.changed(&change(AUTO, "l65"), Index(10)));
    assert_eq!(exact.map(|group| group.members.len()), Ok(64));
    // Only by asking for a simple change outright.
    for (before, steps) in [("v1", "v2 v3"), ("v1 v2", "l2 v3"), ("v1 v2 v3", "r2 r3")] {
        let refused = group(before).simple(&change(AUTO, steps));
        assert_eq!(refused, Err(TooManyVoters), "{before}: {steps}");
    }
    let learners = group("v1").simple(&change(AUTO, "v2 l3 l4"));
    assert_eq!(learners.as_ref().map(text), Ok("v1 v2 l3 l4".to_owned()));
}

#[test]
fn a_witness_that_left_may_come_back_as_anything() {
    let next = group("v1 w2").changed(&change(AUTO, "r2 v2"), Index(9));
    let text = next.as_ref().map(text);
    assert_eq!(text, Ok("v1 v2 | v1 w2 auto".to_owned()));
}

#[test]
fn a_change_for_another_configuration_is_refused() {
    let group = Membership {
        index: Index(3),
        ..group("v1")
    };
    for (expected, present) in [
        (None, Ok("v1 v2")),
        (Some(3), Ok("v1 v2")),
        (Some(2), Err(3)),
        (Some(4), Err(3)),
        (Some(0), Err(3)),
    ] {
        let expected = expected.map(Index);
        let change = ConfChange {
            expected,
            ..change(AUTO, "v2")
        };
        let next = group.changed(&change, Index(9));
        let want = present.map(str::to_owned).map_err(|present| {
            let expected = expected.expect("of the table");
            let present = Index(present);
            ChangeError::Overtaken { expected, present }
        });
        assert_eq!(next.as_ref().map(text).map_err(|&e| e), want);
    }
}

#[test]
fn addresses_come_with_the_change_that_needs_them() {
    // What is done to 2; the address that the change names for it; where it is reached then.
    for (before, steps, given, want) in [
        ("v1", "v2", Some("new"), Some("new")),
        ("v1", "v2", None, Some("")), // somebody will tell by an update
        ("v1 l2", "v2", Some("new"), Some("new")),
        ("v1 l2", "v2", None, Some("n2")),
        ("v1 v2", "u2", Some("new"), Some("new")),
        ("v1 v2", "u2", None, Some("n2")),
        ("v1 v2", "r2", Some("new"), None),
        ("v1", "u2", Some("new"), None), // no member: nothing to move
        ("v1 v2", "u1", Some("new"), Some("n2")), // not one that the change is about
    ] {
        let mut change = change(AUTO, steps);
        change.addresses = given
            .map(|host| (id(2), address(host)))
            .into_iter()
            .collect();
        let next = group(before).changed(&change, Index(9)).expect("valid");
        let member = next.members.get(&id(2));
        let host = member.map(|member| member.address.host.as_str());
        assert_eq!(host, want, "{before}: {steps} with {given:?}");
    }
}

#[test]
fn a_life_is_admitted_until_its_member_leaves() {
    // Before; the change; the life of 2 known before, and the one that the change names; then.
    for (before, transition, steps, known, named, then) in [
        ("v1 v2", AUTO, "u2", None, Some(21), Some(21)), // it becomes known
        ("v1 v2", AUTO, "u2", Some(20), Some(21), Some(20)), // and stays
        ("v1 v2", AUTO, "l2", Some(20), None, Some(20)),
        ("v1 v2", AUTO, "v3", Some(20), None, Some(20)),
        ("v1 v2", AUTO, "r2", Some(20), None, None),
        ("v1 v2", AUTO, "r2", Some(20), Some(21), None),
        ("v1", AUTO, "l2", None, Some(21), Some(21)),
        // What is known of somebody who is no member is not of the one that comes.
        ("v1", AUTO, "l2", Some(20), None, None),
        ("v1", AUTO, "l2", Some(20), Some(21), Some(21)),
        // Nobody is admitted who is no member.
        ("v1", AUTO, "u1", None, Some(21), None),
        // In the outgoing half it still has the vote that its old life promised.
        ("v1 v2", IMPLICIT, "r2", Some(20), None, Some(20)),
        ("v1 v2", IMPLICIT, "r2 l2", Some(20), Some(21), Some(20)),
        ("v1 v2", IMPLICIT, "r2", None, Some(21), Some(21)),
        // Who did not vote there may leave and come back in one change.
        ("v1 l2", IMPLICIT, "r2 l2", Some(20), None, None),
        ("v1 l2", IMPLICIT, "r2 v2", Some(20), Some(21), Some(21)),
        ("v1 l2", IMPLICIT, "r2 v3", Some(20), None, None),
    ] {
        let case = format!("{before}: {steps} known={known:?} named={named:?}");
        let life = |life: Option<u64>| life.map(|life| (id(2), life)).into_iter().collect();
        let group = Membership {
            incarnations: life(known),
            ..group(before)
        };
        let change = ConfChange {
            incarnations: life(named),
            ..change(transition, steps)
        };
        let next = group.changed(&change, Index(9)).expect("valid");
        assert_eq!(next.incarnations.get(&id(2)).copied(), then, "{case}");
    }
}

#[test]
fn a_life_in_the_outgoing_half_is_forgotten_when_that_is_left() {
    let group = Membership {
        incarnations: [(id(1), 10), (id(2), 20)].into(),
        ..group("v1 v2")
    };
    let joint = group.changed(&change(IMPLICIT, "r2 v3"), Index(3));
    let left = joint.and_then(|joint| joint.changed(&ConfChange::default(), Index(4)));
    let left = left.expect("valid");
    assert_eq!(left.incarnations, BTreeMap::from([(id(1), 10)]));
}

#[test]
fn a_change_comes_back_from_its_bytes() {
    for transition in [AUTO, IMPLICIT, EXPLICIT] {
        for change in [
            change(transition, ""),
            change(transition, "v4 l2 w5 r1 u3"),
            ConfChange {
                expected: Some(Index(7)),
                addresses: [(id(4), address("n4")), (id(5), address(""))].into(),
                incarnations: [(id(4), 1), (id(9), u64::MAX)].into(),
                ..change(transition, "v4")
            },
        ] {
            let bytes = change.encode();
            assert_eq!(ConfChange::decode(&bytes), Ok(change));
            for cut in 0..bytes.len() {
                assert!(ConfChange::decode(&bytes[..cut]).is_err(), "cut at {cut}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert!(ConfChange::decode(&longer).is_err(), "a byte too many");
        }
    }
    for (step, node) in change(AUTO, "v1 l2 w3 r4 u5").changes.iter().zip(1..) {
        assert_eq!(step.node(), id(node));
    }
}

#[test]
fn every_byte_out_of_range_is_refused() {
    let change = ConfChange {
        addresses: [(id(4), address("n4"))].into(),
        incarnations: [(id(4), 5)].into(),
        ..change(AUTO, "v4")
    };
    let bytes = change.encode();
    // version, transition, expected (8), changes (2), kind, id (4), addresses (2), id (4), port (2),
    // length (2), "n4", incarnations (2), id (4), incarnation (8)
    assert_eq!(
        bytes.len(),
        1 + 1 + 8 + 2 + 1 + 4 + 2 + 4 + 2 + 2 + 2 + 2 + 4 + 8
    );
    for (case, at, with) in [
        ("an older version", 0, vec![1]),
        ("a newer version", 0, vec![3]),
        ("an unknown transition", 1, vec![3]),
        ("a change more than there are", 10, vec![9]),
        ("kind 0", 12, vec![0]),
        ("kind 6", 12, vec![6]),
        ("a change of node 0", 13, vec![0; 4]),
        ("an address more than there are", 17, vec![9]),
        ("an address of node 0", 19, vec![0; 4]),
        ("a longer host than there are bytes", 25, vec![0xff, 0xff]),
        ("a host that is no text", 27, vec![0xff]),
        ("an incarnation more than there are", 29, vec![2]),
        ("an incarnation of node 0", 31, vec![0; 4]),
        ("incarnation 0", 35, vec![0; 8]),
    ] {
        let mut damaged = bytes.to_vec();
        damaged[at..at + with.len()].copy_from_slice(&with);
        let decoded = ConfChange::decode(&damaged);
        assert_eq!(decoded, Err(MembershipError::Malformed), "{case}");
    }
}

#[test]
fn a_change_has_so_many_steps_and_no_more() {
    for (count, is_taken) in [(2 * MAX_MEMBERS, true), (2 * MAX_MEMBERS + 1, false)] {
        let steps = vec![Change::Learner(id(9)); count];
        let bytes = ConfChange::new(AUTO, steps).encode();
        assert_eq!(ConfChange::decode(&bytes).is_ok(), is_taken, "{count}");
    }
}

#[test]
fn errors_name_numbers() {
    let overtaken = ChangeError::Overtaken {
        expected: Index(2),
        present: Index(3),
    };
    for (error, text) in [
        (overtaken, "made for configuration 2, the present one is 3"),
        (
            ChangeError::TooManyMembers(65),
            "65 members, at most 64 are allowed",
        ),
        (
            ChangeError::WitnessStays(id(2)),
            "node 2 must leave before it can change from or to a witness: its data would lack",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
