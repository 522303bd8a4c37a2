//! The commands of scenarios that work on nodes.

use std::collections::BTreeSet;

use bytes::Bytes;
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::effects::{Input, Snapshot};
use multiraft_engine::raft::joining::Wish;
use multiraft_engine::raft::log::ApplyRule;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::message::{Envelope, Message as PeerMessage};
use multiraft_engine::raft::progress::Window;
use multiraft_engine::raft::read_index::ReadMode;
use multiraft_engine::raft::{Limits, OnRemoval};
use multiraft_engine::traits::PeerAddress;
use multiraft_engine::types::{GroupId, Index, NodeId, Term};

use super::cluster::{Cluster, Fate, Message};
use super::node::{Node, Setup};
use super::parse::Command;
use super::show;

type Done = Result<(), String>;

const ELECTION_TICKS: u32 = 3;

impl Cluster {
    /// Does a command; returns its text. An error: no such command, or not with these arguments.
    pub fn run(&mut self, command: &Command) -> Result<String, String> {
        self.text.clear();
        let before = self.state_lines();
        self.dispatch(command)?;
        let after = self.state_lines();
        let changed = after.into_iter().filter(|line| !before.contains(line));
        let lines = self.text.iter().cloned().chain(changed);
        Ok(lines.map(|line| line + "\n").collect())
    }

    fn state_lines(&self) -> Vec<String> {
        let lines = self.nodes.values();
        lines
            .flat_map(|node| [show::state_line(node), show::log_line(node)])
            .collect()
    }

    fn dispatch(&mut self, command: &Command) -> Done {
        match command.name.as_str() {
            "add-nodes" => self.add_nodes(command),
            "campaign" => self.step_first(command, Input::Campaign),
            "tick-election" => self.tick(command, ELECTION_TICKS),
            "tick-heartbeat" => self.tick(command, 1),
            "propose" => self.propose(command),
            "propose-conf-change" => self.propose_conf_change(command),
            "deliver-msgs" => self.deliver_msgs(command),
            "process-ready" => self.each(command, Self::take_batch),
            "process-append-thread" => self.each(command, Self::append),
            "process-apply-thread" => self.each(command, Self::apply),
            "stabilize" => self.stabilize_command(command),
            "transfer-leadership" => self.transfer(command),
            "forget-leader" => self.step_first(command, Input::ForgetLeader),
            "report-unreachable" => self.report_unreachable(command),
            "send-snapshot" => self.send_snapshot(command),
            "compact" => self.compact(command),
            "set-randomized-election-timeout" => self.set_timeout(command),
            "raft-state" => {
                self.show(show::state_line);
                Ok(())
            }
            "raft-log" => {
                self.show(show::log_line);
                Ok(())
            }
            "status" | "log-level" => Ok(()),
            "crash" => self.crash(command),
            "restart" => self.restart(command),
            "wipe" => self.wipe(command),
            "join" => self.join(command),
            "leave" => self.step_first(command, Input::Wish(Some(Wish::Leave))),
            "recover" => self.recover(command),
            "lose-state" => self.lose_state(command),
            "lose-log" => self.lose_log(command),
            "read-index" => self.read_index(command),
            "partition" => self.cut(command),
            "heal" => {
                self.partition.cut.clear();
                Ok(())
            }
            "fail-sync" => self.fail_sync(command),
            "group" => self.select_group(command),
            unknown => Err(format!("unknown command {unknown}")),
        }
    }

    fn show(&mut self, line: fn(&Node) -> String) {
        let lines = self.nodes.values().map(line);
        self.text.extend(lines);
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node, String> {
        let node = self.nodes.get_mut(&id);
        node.ok_or_else(|| format!("there is no node {id}"))
    }

    fn step_first(&mut self, command: &Command, input: Input) -> Done {
        let id = first_id(command)?;
        self.node(id)?.step(input);
        Ok(())
    }

    fn each(&mut self, command: &Command, act: fn(&mut Self, NodeId)) -> Done {
        for id in ids(command)? {
            self.node(id)?;
            act(self, id);
        }
        Ok(())
    }

    fn tick(&mut self, command: &Command, ticks: u32) -> Done {
        let id = first_id(command)?;
        for _ in 0..ticks {
            self.node(id)?.step(Input::Tick);
        }
        Ok(())
    }

    fn add_nodes(&mut self, command: &Command) -> Done {
        let count: u32 = first_number(command)?;
        let setup = setup(command)?;
        for _ in 0..count {
            let last = self.nodes.keys().last().map_or(0, |id| id.get());
            let id = node_id(last + 1)?;
            self.nodes.insert(id, Node::new(id, setup.clone()));
        }
        Ok(())
    }

    fn propose(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let word = command.arguments.get(1);
        let payload = word.map(whole_word).unwrap_or_default();
        let payload = Bytes::from(payload);
        let request = self.request();
        self.node(id)?.step(Input::Propose { request, payload });
        self.refused(id)
    }

    fn propose_conf_change(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let transition = match command.values("transition").next() {
            None | Some("auto") => Transition::Auto,
            Some("implicit") => Transition::Implicit,
            Some("explicit") => Transition::Explicit,
            Some(other) => return Err(format!("unknown transition {other}")),
        };
        let change = ConfChange {
            expected: number(command, "expected")?.map(Index),
            ..ConfChange::new(transition, changes(&command.input)?)
        };
        let request = self.request();
        let input = Input::ProposeConfChange { request, change };
        self.node(id)?.step(input);
        self.refused(id)
    }

    fn refused(&mut self, id: NodeId) -> Done {
        if self.node(id)?.was_refused() {
            self.text.push("err=proposal_dropped".to_owned());
        }
        Ok(())
    }

    fn request(&mut self) -> u64 {
        self.next_request += 1;
        self.next_request
    }

    fn read_index(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let context = command.plain().nth(1).unwrap_or_default().to_owned();
        let request = self.request();
        self.reads.insert(request, context);
        self.node(id)?.step(Input::Read { request });
        Ok(())
    }

    fn deliver_msgs(&mut self, command: &Command) -> Done {
        let wanted = command.values("type").next().map(message_name);
        for argument in &command.arguments {
            if argument.values.is_empty() {
                self.deliver(parse_id(&argument.key)?, Fate::Deliver, wanted);
            } else if argument.key == "drop" {
                for id in &argument.values {
                    self.deliver(parse_id(id)?, Fate::Drop, wanted);
                }
            }
        }
        Ok(())
    }

    fn stabilize_command(&mut self, command: &Command) -> Done {
        let mut ids = ids(command)?;
        if ids.is_empty() {
            ids = self.nodes.keys().copied().collect();
        }
        for &id in &ids {
            self.node(id)?;
        }
        self.stabilize(&ids)
    }

    fn transfer(&mut self, command: &Command) -> Done {
        let id = |key| {
            let value = command.values(key).next();
            parse_id(value.ok_or(format!("{key}= is missing"))?)
        };
        let (from, to) = (id("from")?, id("to")?);
        self.node(from)?.step(Input::TransferLeadership(to));
        Ok(())
    }

    fn report_unreachable(&mut self, command: &Command) -> Done {
        let [at, peer] = two_ids(command)?;
        self.node(at)?.step(Input::Unreachable(peer));
        Ok(())
    }

    fn send_snapshot(&mut self, command: &Command) -> Done {
        let [from, to] = two_ids(command)?;
        let node = self.node(from)?;
        let snapshot = node.disk.snapshot.clone();
        let envelope = Envelope {
            group: GroupId(1),
            from,
            to,
            term: node.raft.term(),
            incarnation: 0,
            message: PeerMessage::InstallSnapshot { snapshot },
        };
        self.messages.push_back(Message::Peer(envelope));
        Ok(())
    }

    fn compact(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let index = command.plain().nth(1).and_then(|word| word.parse().ok());
        let index = index.ok_or("compact NODE INDEX")?;
        self.node(id)?.compact(Index(index));
        Ok(())
    }

    fn set_timeout(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let ticks: u32 = number(command, "timeout")?.ok_or("timeout= is missing")?;
        self.node(id)?.raft.set_election_timeout(ticks);
        Ok(())
    }

    /// What the append thread has not done is lost; `torn`: the first half of it is on the disk.
    fn crash(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let is_torn = command.has("torn");
        let node = self.node(id)?;
        if is_torn {
            let kept = node.append_work.len().div_ceil(2);
            for work in node.append_work.drain(..kept).collect::<Vec<_>>() {
                node.write(&work);
            }
        }
        node.crash();
        self.drop_own_answers(id);
        Ok(())
    }

    /// A node's own disk answers no more.
    fn drop_own_answers(&mut self, id: NodeId) {
        let is_own = |m: &Message| matches!(m, Message::Appended(node, _) | Message::Applied(node, _) if *node == id);
        self.messages.retain(|message| !is_own(message));
    }

    fn wipe(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        self.node(id)?.wipe();
        self.drop_own_answers(id);
        Ok(())
    }

    /// `join 4 role=voter of=(1,2,3)`: a node that is new, or has left, asks these to be one of them.
    fn join(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        let role = match command.values("role").next() {
            None | Some("voter") => MemberRole::Voter,
            Some("learner") => MemberRole::Learner,
            Some("witness") => MemberRole::Witness,
            Some(other) => return Err(format!("unknown role {other}")),
        };
        let told = command
            .values("of")
            .map(|other| Ok((parse_id(other)?, MemberRole::Voter)));
        let told: Vec<_> = told.collect::<Result<_, String>>()?;
        let told = told.into_iter().chain([(id, role)]).map(|(id, role)| {
            let port = u16::try_from(id.get()).unwrap_or(u16::MAX);
            let host = String::new();
            let address = PeerAddress { host, port };
            (id, Member { role, address })
        });
        let told = Membership::new(told.collect());
        let setup = setup(command)?;
        let node = self.nodes.entry(id).or_insert_with(|| Node::new(id, setup));
        node.join(told);
        self.drop_own_answers(id);
        Ok(())
    }

    /// An operator, who has just looked, says who is left.
    fn recover(&mut self, command: &Command) -> Done {
        let node = first_id(command)?;
        let survivors = command.values("survivors").map(parse_id);
        let survivors = survivors.collect::<Result<BTreeSet<_>, _>>()?;
        let node = self.node(node)?;
        if let Err(reason) = node.raft.check_recovery(&survivors, node.raft.seen()) {
            self.text.push(format!("refused: {reason}"));
            return Ok(());
        }
        node.step(Input::Recover(survivors));
        Ok(())
    }

    fn lose_state(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        self.node(id)?.lose_state();
        self.drop_own_answers(id);
        Ok(())
    }

    fn lose_log(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        self.node(id)?.lose_log();
        self.drop_own_answers(id);
        Ok(())
    }

    fn restart(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        self.node(id)?.is_down = false;
        Ok(())
    }

    fn cut(&mut self, command: &Command) -> Done {
        let line = command.arguments.iter().map(|a| a.key.as_str());
        let text: String = line.filter(|word| *word != "oneway").collect();
        let sides = text
            .split(')')
            .map(|side| side.trim_start_matches(['(', ',', ' ']));
        let sides = sides.filter(|side| !side.is_empty());
        let sides: Vec<Vec<NodeId>> = sides
            .map(|side| {
                side.split([',', ' '])
                    .filter(|s| !s.is_empty())
                    .map(parse_id)
                    .collect()
            })
            .collect::<Result<_, _>>()?;
        let is_oneway = command.has("oneway");
        for (at, side) in sides.iter().enumerate() {
            let others = sides.iter().enumerate();
            for (_, other) in others.filter(|o| o.0 > at || (o.0 < at && !is_oneway)) {
                let pairs = side
                    .iter()
                    .flat_map(|&a| other.iter().map(move |&b| (a, b)));
                self.partition.cut.extend(pairs);
            }
        }
        Ok(())
    }

    /// The disk of a node serves all its groups.
    fn fail_sync(&mut self, command: &Command) -> Done {
        let id = first_id(command)?;
        self.node(id)?.fails_sync = true;
        for (nodes, _) in self.others.values_mut() {
            if let Some(node) = nodes.get_mut(&id) {
                node.fails_sync = true;
            }
        }
        Ok(())
    }

    fn select_group(&mut self, command: &Command) -> Done {
        let group: u32 = first_number(command)?;
        let (nodes, messages) = self.others.remove(&group).unwrap_or_default();
        let nodes = std::mem::replace(&mut self.nodes, nodes);
        let messages = std::mem::replace(&mut self.messages, messages);
        let old = std::mem::replace(&mut self.group, group);
        if old == group {
            (self.nodes, self.messages) = (nodes, messages);
        } else {
            self.others.insert(old, (nodes, messages));
        }
        Ok(())
    }
}

fn node_id(id: u32) -> Result<NodeId, String> {
    NodeId::new(id).ok_or_else(|| "there is no node 0".to_owned())
}

fn parse_id(word: &str) -> Result<NodeId, String> {
    let id = word.parse().map_err(|_| format!("{word} is no node"))?;
    node_id(id)
}

fn ids(command: &Command) -> Result<Vec<NodeId>, String> {
    command.plain().map(parse_id).collect()
}

fn first_id(command: &Command) -> Result<NodeId, String> {
    let word = command.plain().next();
    parse_id(word.ok_or("which node?")?)
}

fn two_ids(command: &Command) -> Result<[NodeId; 2], String> {
    let ids = ids(command)?;
    ids.try_into()
        .map_err(|_| "two nodes are needed".to_owned())
}

fn first_number(command: &Command) -> Result<u32, String> {
    let word = command.plain().next().ok_or("a number is missing")?;
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn number<T: std::str::FromStr>(command: &Command, key: &str) -> Result<Option<T>, String> {
    let Some(word) = command.values(key).next() else {
        return Ok(None);
    };
    let number = word
        .parse()
        .map_err(|_| format!("{key}={word} is no number"));
    number.map(Some)
}

fn flag(command: &Command, key: &str) -> Result<bool, String> {
    match command.values(key).next() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(format!("{key}={other} is neither true nor false")),
    }
}

fn whole_word(argument: &super::parse::Argument) -> String {
    match argument.values.as_slice() {
        [] => argument.key.clone(),
        values => format!("{}={}", argument.key, values.join(",")),
    }
}

/// `v1 l2 w3 r4 u5`. One of node 0 changes nobody, by convention.
pub fn changes(text: &str) -> Result<Vec<Change>, String> {
    let words = text.split_whitespace();
    let words = words.filter(|word| word.get(1..).is_none_or(|id| id != "0"));
    let change = |word: &str| {
        let kind: fn(NodeId) -> Change = match word.chars().next() {
            Some('v') => Change::Voter,
            Some('l') => Change::Learner,
            Some('w') => Change::Witness,
            Some('r') => Change::Remove,
            Some('u') => Change::Update,
            _ => return Err(format!("unknown change {word}")),
        };
        parse_id(&word[1..]).map(kind)
    };
    words.map(change).collect()
}

/// Types of messages may be asked for by our names or by the ones that are usual elsewhere.
fn message_name(word: &str) -> &str {
    match word {
        "MsgApp" => "AppendEntries",
        "MsgAppResp" => "AppendEntriesResponse",
        "MsgVote" => "RequestVote",
        "MsgVoteResp" => "RequestVoteResponse",
        "MsgPreVote" => "PreVote",
        "MsgPreVoteResp" => "PreVoteResponse",
        "MsgHeartbeat" => "Heartbeat",
        "MsgHeartbeatResp" => "HeartbeatResponse",
        "MsgSnap" => "InstallSnapshot",
        "MsgTimeoutNow" => "TimeoutNow",
        "MsgTransferLeader" => "TransferLeadership",
        "MsgProp" => "Propose",
        "MsgReadIndex" => "ReadIndex",
        "MsgReadIndexResp" => "ReadIndexResponse",
        "MsgStorageAppendResp" => "Appended",
        "MsgStorageApplyResp" => "Applied",
        other => other,
    }
}

fn setup(command: &Command) -> Result<Setup, String> {
    let is_async = flag(command, "async-storage-writes")?;
    let inflight = number(command, "inflight")?.unwrap_or(usize::MAX);
    let reads = match command.values("read-only").next() {
        None | Some("safe") => ReadMode::Index,
        Some("lease-based") => ReadMode::Lease { drift_ticks: 0 },
        Some(other) => return Err(format!("unknown read-only={other}")),
    };
    let on_removal = if flag(command, "step-down-on-removal")? {
        OnRemoval::StepDown
    } else {
        OnRemoval::LeadOn
    };
    let apply_rule = if is_async {
        ApplyRule::Durable
    } else {
        ApplyRule::WithWrite
    };
    let limits = Limits {
        election_ticks: ELECTION_TICKS,
        heartbeat_ticks: 1,
        stuck_disk_ticks: number(command, "stuck-disk-ticks")?.unwrap_or(u32::MAX),
        pre_vote: flag(command, "prevote")?,
        check_quorum: flag(command, "checkquorum")?,
        window: Window {
            messages: inflight,
            bytes: usize::MAX,
        },
        append_bytes: number(command, "max-append-bytes")?.unwrap_or(usize::MAX),
        uncommitted_bytes: usize::MAX / 2,
        cache_bytes: usize::MAX,
        apply_bytes: number(command, "max-committed-size-per-ready")?.unwrap_or(usize::MAX),
        apply_rule,
        reads,
        on_removal,
        unchecked_conf_changes: flag(command, "disable-conf-change-validation")?,
        ..Limits::default()
    };
    Ok(Setup {
        limits,
        is_async,
        snapshot: boot_snapshot(command)?,
        has_incarnations: flag(command, "incarnations")?,
    })
}

fn boot_snapshot(command: &Command) -> Result<Snapshot, String> {
    let index = Index(number(command, "index")?.unwrap_or(0));
    let mut membership = Membership::default();
    for (key, role) in [
        ("voters", MemberRole::Voter),
        ("learners", MemberRole::Learner),
        ("witness", MemberRole::Witness),
    ] {
        for id in command.values(key) {
            let address = PeerAddress {
                host: String::new(),
                port: 0,
            };
            let member = Member { role, address };
            membership.members.insert(parse_id(id)?, member);
        }
    }
    let term = if index == Index::ZERO {
        Term(0)
    } else {
        Term(1)
    };
    membership.index = index;
    Ok(Snapshot {
        index,
        term,
        membership,
    })
}
