//! Who counts, and the bytes in which it is kept.

use super::*;

const VOTER: MemberRole = MemberRole::Voter;
const LEARNER: MemberRole = MemberRole::Learner;
const WITNESS: MemberRole = MemberRole::Witness;

fn id(id: u32) -> NodeId {
    NodeId::new(id).expect("not zero")
}

fn ids<const N: usize>(ids: [u32; N]) -> BTreeSet<NodeId> {
    ids.into_iter().map(id).collect()
}

fn address(host: &str, port: u16) -> PeerAddress {
    PeerAddress {
        host: host.to_owned(),
        port,
    }
}

/// Each on an address of its own.
fn members(roles: &[(u32, MemberRole)]) -> BTreeMap<NodeId, Member> {
    let member = |&(number, role): &(u32, MemberRole)| {
        let address = address(&format!("n{number}"), 5000);
        (id(number), Member { role, address })
    };
    roles.iter().map(member).collect()
}

fn membership(roles: &[(u32, MemberRole)]) -> Membership {
    Membership::new(members(roles))
}

/// Voters 1, 2 and witness 3 on the way out; 2 is to be a learner, 4 is new.
fn joint() -> Membership {
    Membership {
        joint: Some(Joint {
            outgoing: members(&[(1, VOTER), (2, VOTER), (3, WITNESS)]),
            auto_leave: true,
        }),
        index: Index(7),
        incarnations: [(id(1), 11), (id(4), u64::MAX)].into(),
        ..membership(&[(1, VOTER), (2, LEARNER), (4, VOTER), (5, LEARNER)])
    }
}

#[test]
fn a_group_starts_with_a_voter_and_an_address_each() {
    let many = |count: u32| (1..=count).map(|id| (id, VOTER)).collect::<Vec<_>>();
    for (roles, want) in [
        (vec![], Err(MembershipError::NoVoter)),
        (vec![(1, LEARNER)], Err(MembershipError::NoVoter)),
        // It could not be led.
        (
            vec![(1, WITNESS), (2, LEARNER)],
            Err(MembershipError::NoVoter),
        ),
        (vec![(1, VOTER)], Ok(())),
        (vec![(1, WITNESS), (2, VOTER)], Ok(())),
        (many(64), Ok(())),
        (many(65), Err(MembershipError::TooMany(65))),
    ] {
        assert_eq!(membership(&roles).check(), want, "{} members", roles.len());
    }
    let mut same = membership(&[(1, VOTER), (2, LEARNER), (3, VOTER)]);
    let host = |membership: &mut Membership, number, host: &str, port| {
        let member = membership.members.get_mut(&id(number)).expect("a member");
        member.address = address(host, port);
    };
    host(&mut same, 3, "n1", 5001);
    assert_eq!(same.check(), Ok(()), "another port of the same host");
    host(&mut same, 3, "n1", 5000);
    let duplicate = MembershipError::DuplicateAddress(id(1), id(3));
    assert_eq!(same.check(), Err(duplicate));
}

#[test]
fn errors_name_numbers() {
    for (error, text) in [
        (
            MembershipError::TooMany(65),
            "65 members, at most 64 are allowed",
        ),
        (
            MembershipError::DuplicateAddress(id(1), id(3)),
            "members 1 and 3 have the same address",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_configuration_counts_voters_and_witnesses_and_not_learners() {
    let simple = membership(&[(1, VOTER), (2, WITNESS), (3, LEARNER)]).configuration();
    let want = Configuration {
        voters: ids([1, 2]),
        learners: ids([3]),
        witnesses: ids([2]),
        ..Configuration::default()
    };
    assert_eq!(simple, want);
    let joint = joint().configuration();
    let want = Configuration {
        voters: ids([1, 4]),
        outgoing: ids([1, 2, 3]),
        learners: ids([5]),
        learners_next: ids([2]), // it still votes in the outgoing half
        witnesses: ids([3]),
        auto_leave: true,
    };
    assert_eq!(joint, want);
    assert_eq!(joint.halves(), [&ids([1, 4]), &ids([1, 2, 3])]);
    assert!(joint.is_joint() && !simple.is_joint());
    assert_eq!(joint.all(), ids([1, 2, 3, 4, 5]));
    // Node; whether it votes, takes part, may lead.
    for (node, votes, contains, may_lead) in [
        (1, true, true, true),
        (2, true, true, true), // until the joint configuration is left
        (3, true, true, false),
        (4, true, true, true),
        (5, false, true, false),
        (6, false, false, false),
    ] {
        assert_eq!(joint.votes(id(node)), votes, "node {node}");
        assert_eq!(joint.contains(id(node)), contains, "node {node}");
        assert_eq!(joint.may_lead(id(node)), may_lead, "node {node}");
    }
    for (role, votes) in [(VOTER, true), (LEARNER, false), (WITNESS, true)] {
        assert_eq!(role.votes(), votes, "{role:?}");
    }
}

#[test]
fn both_halves_are_reached_by_address() {
    let joint = joint();
    let hosts: Vec<_> = joint
        .addresses()
        .map(|(id, address)| format!("{id}={}", address.host))
        .collect();
    let both = [
        "1=n1", "2=n2", "4=n4", "5=n5", // incoming
        "1=n1", "2=n2", "3=n3", // outgoing
    ];
    assert_eq!(hosts, both);
}

#[test]
fn groups_spread_their_first_candidates_over_the_voters() {
    let roles = [
        (1, WITNESS),
        (2, VOTER),
        (3, LEARNER),
        (5, VOTER),
        (9, VOTER),
    ];
    let group = membership(&roles);
    for (seed, first) in [(0, 2), (1, 5), (2, 9), (3, 2), (u32::MAX, 2)] {
        assert_eq!(group.first_candidate(seed), Some(id(first)), "group {seed}");
    }
    assert_eq!(Membership::default().first_candidate(1), None);
}

#[test]
fn a_membership_comes_back_from_its_bytes() {
    for (case, membership) in [
        ("empty", Membership::default()),
        (
            "simple",
            membership(&[(1, VOTER), (2, LEARNER), (3, WITNESS)]),
        ),
        ("joint", joint()),
        (
            "joint, left by hand",
            Membership {
                joint: Some(Joint {
                    outgoing: members(&[(1, VOTER)]),
                    auto_leave: false,
                }),
                ..membership(&[(1, VOTER)])
            },
        ),
    ] {
        let bytes = membership.encode();
        assert_eq!(Membership::decode(&bytes), Ok(membership), "{case}");
        for cut in 0..bytes.len() {
            let decoded = Membership::decode(&bytes[..cut]);
            let malformed = Err(MembershipError::Malformed);
            assert_eq!(decoded, malformed, "{case}, cut at {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(
            Membership::decode(&longer),
            Err(MembershipError::Malformed),
            "{case}, a byte too many"
        );
    }
}

#[test]
fn every_byte_out_of_range_is_refused() {
    let group = Membership {
        incarnations: [(id(1), 5)].into(),
        ..membership(&[(1, VOTER)])
    };
    let bytes = group.encode();
    // version, index (8), count (2), id (4), role, port (2), host length (2), "n1", joint,
    // incarnations (2), id (4), incarnation (8)
    assert_eq!(bytes.len(), 1 + 8 + 2 + 4 + 1 + 2 + 2 + 2 + 1 + 2 + 4 + 8);
    for (case, at, with) in [
        ("an older version", 0, vec![2]),
        ("a newer version", 0, vec![4]),
        ("a member more than there are", 9, vec![2]),
        ("no member, but bytes of one", 9, vec![0]),
        ("node 0", 11, vec![0, 0, 0, 0]),
        ("role 0", 15, vec![0]),
        ("role 4", 15, vec![4]),
        ("a longer host than there are bytes", 18, vec![0xff, 0xff]),
        ("a host that is no text", 20, vec![0xff]),
        ("an unknown kind of half", 22, vec![3]),
        ("a half without bytes", 22, vec![1]),
        ("an incarnation of node 0", 25, vec![0, 0, 0, 0]),
        ("incarnation 0", 29, vec![0; 8]),
        ("an incarnation more than there are", 23, vec![2]),
    ] {
        let mut damaged = bytes.to_vec();
        damaged[at..at + with.len()].copy_from_slice(&with);
        let decoded = Membership::decode(&damaged);
        assert_eq!(decoded, Err(MembershipError::Malformed), "{case}");
    }
}
