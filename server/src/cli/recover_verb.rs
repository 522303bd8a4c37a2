//! `recover-quorum`: first a plan, then, when it is confirmed, what it says.

use std::collections::BTreeSet;

use crc32fast::Hasher;
use multiraft_proto::admin::group_status::Role;
use multiraft_proto::admin::{GroupStatus, RecoverQuorumRequest, StatusResponse};

use super::member_verbs::all_statuses;
use super::output::{print_answer, print_line};
use super::status_table::{members_text, role_text};
use super::{Failure, RecoverArgs};

/// What would be done.
#[derive(Debug)]
struct Plan<'a> {
    group: u32,
    /// Each survivor and its replica, by rising id.
    survivors: Vec<(u32, &'a GroupStatus)>,
    /// Who goes on: of those with data the one with the most complete log.
    best: usize,
    /// Who is removed.
    lost: Vec<u32>,
}

pub(super) async fn recover_quorum(args: RecoverArgs) -> Result<(), Failure> {
    let (clients, statuses) = all_statuses(&args.connection).await?;
    let survivors: BTreeSet<u32> = args.survivors.iter().copied().collect();
    let plan = Plan::new(args.group, &survivors, &statuses);
    let plan = plan.map_err(|message| Failure::Refused {
        what: "recover-quorum",
        message,
    })?;
    let code = plan.code();
    let Some(confirm) = &args.confirm else {
        return print_line(&plan.text(&code));
    };
    if *confirm != code {
        return Err(Failure::Refused {
            what: "recover-quorum",
            message: format!(
                "--confirm {confirm} is not the code of the present plan: the survivors have changed \
                 since it was shown. Look at the plan again, without --confirm"
            ),
        });
    }
    let (node, replica) = plan.survivors[plan.best];
    let at = statuses.iter().position(|status| status.node_id == node);
    let client = &clients[at.expect("it has answered")];
    let mut admin = client.admin();
    let request = client.request(RecoverQuorumRequest {
        group_id: args.group,
        survivors: survivors.into_iter().collect(),
        last_index: replica.last_index,
        last_term: replica.last_term,
        membership_index: replica.membership_index,
    });
    let answer = client
        .answer("recover-quorum", admin.recover_quorum(request))
        .await?;
    let text = format!(
        "node {node} leads group {} in term {}; its members are {}\nDestroy the data of the nodes that \
         were lost before any of them is started again: {}",
        args.group,
        answer.term,
        members_text(&answer.members),
        list(&plan.lost),
    );
    print_answer("recover-quorum", args.connection.json, &answer, &text)
}

impl<'a> Plan<'a> {
    /// The plan, or in words why there is none.
    fn new(
        group: u32,
        survivors: &BTreeSet<u32>,
        statuses: &'a [StatusResponse],
    ) -> Result<Self, String> {
        let replicas = statuses.iter().flat_map(|status| {
            let replicas = status.groups.iter().filter(|g| g.group_id == group);
            replicas.map(|replica| (status.node_id, replica))
        });
        let replicas: Vec<(u32, &GroupStatus)> = replicas.collect();
        let mut found = Vec::new();
        for &survivor in survivors {
            let replica = replicas.iter().find(|(node, _)| *node == survivor);
            found.push(*replica.ok_or_else(|| {
                format!(
                    "node {survivor} did not tell of group {group}: name its endpoint, or leave it out of \
                     --survivors if it is lost"
                )
            })?);
        }
        if let Some((node, replica)) = replicas.iter().find(|(_, r)| r.leader_id != 0) {
            return Err(format!(
                "node {node} says that node {} leads group {group}: it has a quorum, or had one a moment ago. \
                 Nothing is to be recovered; use `multiraft remove` for members that are lost",
                replica.leader_id
            ));
        }
        let end = |replica: &GroupStatus| (replica.last_term, replica.last_index);
        let has_data = |replica: &GroupStatus| {
            !matches!(
                replica.role(),
                Role::Witness | Role::Joining | Role::Unknown
            )
        };
        let usable = found.iter().enumerate().filter(|(_, (_, r))| has_data(r));
        let best = usable.max_by_key(|(at, (_, r))| (end(r), std::cmp::Reverse(*at)));
        let (best, &(_, replica)) = best.ok_or_else(|| {
            format!("none of the survivors has the data of group {group}: restore it from a backup")
        })?;
        if let Some((node, longer)) = replicas
            .iter()
            .find(|(_, r)| has_data(r) && end(r) > end(replica))
        {
            return Err(format!(
                "node {node} answers and has a more complete log (entry {} of term {}) than all survivors: \
                 make it one of them",
                longer.last_index, longer.last_term
            ));
        }
        let members = replica.members.iter().map(|member| member.node_id);
        let lost: Vec<u32> = members.filter(|id| !survivors.contains(id)).collect();
        Ok(Self {
            group,
            survivors: found,
            best,
            lost,
        })
    }

    /// Changes with all that the plan was made of.
    fn code(&self) -> String {
        let mut hasher = Hasher::new();
        let mut add = |number: u64| hasher.update(&number.to_le_bytes());
        add(u64::from(self.group));
        for (node, replica) in &self.survivors {
            add(u64::from(*node));
            add(replica.last_term);
            add(replica.last_index);
            add(replica.membership_index);
        }
        self.lost.iter().for_each(|node| add(u64::from(*node)));
        format!("{:08x}", hasher.finalize())
    }

    fn text(&self, code: &str) -> String {
        let replica = |(node, replica): &(u32, &GroupStatus)| {
            format!(
                "  node {node}, {}: log up to entry {} of term {}, committed up to {}\n",
                role_text(replica),
                replica.last_index,
                replica.last_term,
                replica.commit_index
            )
        };
        let survivors: String = self.survivors.iter().map(replica).collect();
        let (node, best) = self.survivors[self.best];
        format!(
            "Plan for group {}, nothing is changed yet.\n{survivors}\
             Node {node} goes on with its log up to entry {} and leads; the other survivors follow it.\n\
             Removed from the group: {}.\n\
             ! WRITES THAT ONLY THE REMOVED NODES HAD ARE LOST, EVEN IF THEY WERE ACKNOWLEDGED.\n\
             ! A REMOVED NODE THAT STARTS AGAIN WITH ITS OLD DATA CAN FORM A SECOND GROUP: destroy its data.\n\
             To do it, repeat the command with --confirm {code}",
            self.group,
            best.last_index,
            list(&self.lost),
        )
    }
}

fn list(nodes: &[u32]) -> String {
    if nodes.is_empty() {
        return "nobody".to_owned();
    }
    let nodes: Vec<String> = nodes.iter().map(|node| format!("node {node}")).collect();
    nodes.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use multiraft_proto::node::MemberConfig;

    use super::*;

    fn status(node_id: u32, role: Role, end: (u64, u64), leader_id: u32) -> StatusResponse {
        let member = |node_id| MemberConfig {
            node_id,
            ..MemberConfig::default()
        };
        let replica = GroupStatus {
            group_id: 7,
            role: role.into(),
            leader_id,
            last_term: end.0,
            last_index: end.1,
            members: (1..=5).map(member).collect(),
            ..GroupStatus::default()
        };
        StatusResponse {
            node_id,
            groups: vec![replica],
            ..StatusResponse::default()
        }
    }

    fn survivors(nodes: &[u32]) -> BTreeSet<u32> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn the_survivor_with_the_most_complete_log_goes_on() {
        let follower = |node, end| status(node, Role::Follower, end, 0);
        for (statuses, best) in [
            (vec![follower(1, (3, 9)), follower(2, (3, 9))], 1), // equal: the first
            (vec![follower(1, (3, 9)), follower(2, (3, 10))], 2),
            (vec![follower(1, (4, 8)), follower(2, (3, 10))], 1), // a later term counts more
            (
                vec![status(1, Role::Witness, (4, 12), 0), follower(2, (3, 10))],
                2,
            ), // has no data
        ] {
            let plan = Plan::new(7, &survivors(&[1, 2]), &statuses).unwrap();
            assert_eq!(plan.survivors[plan.best].0, best);
            assert_eq!(plan.lost, [3, 4, 5]);
        }
    }

    fn refusal(survivors: &BTreeSet<u32>, statuses: &[StatusResponse]) -> String {
        Plan::new(7, survivors, statuses).unwrap_err()
    }

    #[test]
    fn what_would_lose_more_than_it_must_is_refused() {
        let two = [
            status(1, Role::Follower, (3, 9), 0),
            status(2, Role::Follower, (3, 12), 0),
        ];
        let text = refusal(&survivors(&[1]), &two);
        assert!(
            text.contains("node 2 answers and has a more complete log"),
            "{text}"
        );
        let text = refusal(&survivors(&[1, 4]), &two);
        assert!(text.contains("node 4 did not tell"), "{text}");
        let led = [status(1, Role::Follower, (3, 9), 5)];
        let text = refusal(&survivors(&[1]), &led);
        assert!(text.contains("node 5 leads group 7"), "{text}");
        let witness = [status(1, Role::Witness, (3, 9), 0)];
        let text = refusal(&survivors(&[1]), &witness);
        assert!(text.contains("backup"), "{text}");
    }

    #[test]
    fn a_code_is_for_one_plan_only() {
        let one = [status(1, Role::Follower, (3, 9), 0)];
        let other = [status(1, Role::Follower, (3, 10), 0)];
        let code = |statuses| Plan::new(7, &survivors(&[1]), statuses).unwrap().code();
        assert_eq!(code(&one), code(&one));
        assert_ne!(code(&one), code(&other));
    }
}
