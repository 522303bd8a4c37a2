//! Commands without nodes: configuration changes and quorums as bare arithmetic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use multiraft_engine::raft::conf_change::{ChangeError, ConfChange, Transition};
use multiraft_engine::raft::membership::Membership;
use multiraft_engine::raft::progress::Progress;
use multiraft_engine::raft::quorum::{VoteResult, joint_index, joint_vote};
use multiraft_engine::types::{Index, NodeId};

use super::commands::changes;
use super::parse::Command;
use super::show;

/// One configuration, kept through the file.
#[derive(Default)]
pub struct Arithmetic {
    membership: Membership,
    peers: BTreeMap<NodeId, Progress>,
    /// Commands so far.
    count: u64,
}

impl Arithmetic {
    /// The command's text; `None` if it is none of arithmetic.
    pub fn run(&mut self, command: &Command) -> Result<Option<String>, String> {
        match command.name.as_str() {
            "simple" | "enter-joint" | "leave-joint" => self.change(command).map(Some),
            "committed" => committed(command).map(Some),
            "vote" => vote(command).map(Some),
            _ => Ok(None),
        }
    }

    fn change(&mut self, command: &Command) -> Result<String, String> {
        let last = Index(self.count);
        self.count += 1;
        let changes = changes(&command.input)?;
        let auto_leave = command.values("autoleave").next() == Some("true");
        let transition = if auto_leave {
            Transition::Implicit
        } else {
            Transition::Explicit
        };
        let change = ConfChange::new(transition, changes);
        let next = match command.name.as_str() {
            "simple" => self.membership.simple(&change),
            "enter-joint" => self.membership.enter_joint(&change),
            _ if change.changes.is_empty() => self.membership.leave_joint(),
            _ => Err(ChangeError::NotJoint), // leaving takes no changes
        };
        let Ok(next) = next else {
            return Ok("err=conf_change_refused\n".to_owned());
        };
        let all = next.configuration().all();
        self.peers.retain(|id, _| all.contains(id));
        for id in all {
            let joined = || Progress::joined(last);
            self.peers.entry(id).or_insert_with(joined);
        }
        self.membership = next;
        let mut line = format!("cfg=\"{}\"", show::configuration(&self.membership));
        for (id, peer) in &self.peers {
            let state = show::progress_state(peer.state);
            write!(line, " p{id}={state}/{}/{}", peer.matched, peer.next).expect("into a string");
        }
        Ok(line + "\n")
    }
}

/// The two halves, and the values given for their members in order of first mention.
struct Halves<T> {
    incoming: BTreeSet<NodeId>,
    outgoing: BTreeSet<NodeId>,
    values: BTreeMap<NodeId, T>,
}

fn halves<T>(
    command: &Command,
    key: &str,
    value: fn(&str) -> Option<T>,
) -> Result<Halves<T>, String> {
    let ids = |key: &str| -> Result<Vec<NodeId>, String> {
        let words = command.values(key).filter(|word| *word != "zero");
        words
            .map(|word| {
                let id = word.parse().ok().and_then(NodeId::new);
                id.ok_or_else(|| format!("{word} is no node"))
            })
            .collect()
    };
    let (incoming, outgoing) = (ids("cfg")?, ids("cfgj")?);
    let mut order: Vec<NodeId> = Vec::new();
    for &id in incoming.iter().chain(&outgoing) {
        if !order.contains(&id) {
            order.push(id);
        }
    }
    let mut values = BTreeMap::new();
    for (id, word) in order.into_iter().zip(command.values(key)) {
        if word != "_" {
            let value = value(word).ok_or_else(|| format!("{key}: {word}?"))?;
            values.insert(id, value);
        }
    }
    Ok(Halves {
        incoming: incoming.into_iter().collect(),
        outgoing: outgoing.into_iter().collect(),
        values,
    })
}

fn committed(command: &Command) -> Result<String, String> {
    let halves = halves(command, "idx", |word| word.parse().ok().map(Index))?;
    let matched = |id| halves.values.get(&id).copied().unwrap_or_default();
    let index = joint_index([&halves.incoming, &halves.outgoing], matched);
    let index = index.map_or("inf".to_owned(), |index| index.to_string());
    Ok(format!("commit={index}\n"))
}

fn vote(command: &Command) -> Result<String, String> {
    let halves = halves(command, "votes", |word| match word {
        "y" => Some(true),
        "n" => Some(false),
        _ => None,
    })?;
    let given = |id| halves.values.get(&id).copied();
    let result = match joint_vote([&halves.incoming, &halves.outgoing], given) {
        VoteResult::Won => "Won",
        VoteResult::Lost => "Lost",
        VoteResult::Pending => "Pending",
    };
    Ok(format!("result={result}\n"))
}
