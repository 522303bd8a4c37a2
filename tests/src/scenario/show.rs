//! The lines that scenarios print.

use std::fmt::Write;

use multiraft_engine::block::{Block, Entry, EntryKind};
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::membership::{Configuration, MemberRole, Membership};
use multiraft_engine::raft::message::{AppendResponse, Envelope, Message};
use multiraft_engine::raft::progress::ProgressState;
use multiraft_engine::types::NodeId;

use super::node::Node;

/// `n1 role=… term=… …`: what the core holds in memory, what the disk holds, what a leader knows.
pub fn state_line(node: &Node) -> String {
    let raft = &node.raft;
    let id = |id: Option<NodeId>| id.map_or(0, NodeId::get);
    let mut line = format!(
        "n{} role={:?} term={} vote={} lead={} commit={} applied={} first={} last={} cfg=\"{}\"",
        node.id,
        raft.role(),
        raft.term(),
        id(raft.vote()),
        id(raft.leader()),
        raft.log().commit(),
        raft.log().applied(),
        node.disk.first(),
        node.disk.last(),
        configuration(raft.membership()),
    );
    for (id, peer) in raft.progress() {
        let state = progress_state(peer.state);
        write!(line, " p{id}={state}/{}/{}", peer.matched, peer.next).expect("into a string");
    }
    line
}

/// `log n1 11:1:cbf29ce4 …`: every entry on the disk.
pub fn log_line(node: &Node) -> String {
    let mut line = format!("log n{}", node.id);
    for (index, entry) in (node.disk.first().0..).zip(&node.disk.entries) {
        let hash = fnv1a(&payload(entry.kind, &entry.payload)) >> 32;
        write!(line, " {index}:{}:{hash:08x}", entry.term).expect("into a string");
    }
    line
}

/// The name of a progress state.
pub fn progress_state(state: ProgressState) -> &'static str {
    match state {
        ProgressState::Probe => "Probe",
        ProgressState::Replicate => "Replicate",
        ProgressState::Snapshot(_) => "Snapshot",
    }
}

/// What is hashed: the command, or the text of a configuration change.
fn payload(kind: EntryKind, payload: &[u8]) -> Vec<u8> {
    match kind {
        EntryKind::Normal | EntryKind::Noop => payload.to_vec(),
        EntryKind::ConfChange => match ConfChange::decode(payload) {
            Ok(change) => change_text(&change).into_bytes(),
            Err(_) => payload.to_vec(),
        },
    }
}

/// `conf-change auto v2 l3`.
fn change_text(change: &ConfChange) -> String {
    let transition = match change.transition {
        Transition::Auto => "auto",
        Transition::Implicit => "implicit",
        Transition::Explicit => "explicit",
    };
    let mut text = format!("conf-change {transition}");
    for change in &change.changes {
        let letter = match change {
            Change::Voter(_) => 'v',
            Change::Learner(_) => 'l',
            Change::Witness(_) => 'w',
            Change::Remove(_) => 'r',
            Change::Update(_) => 'u',
        };
        write!(text, " {letter}{}", change.node()).expect("into a string");
    }
    text
}

/// FNV-1a with 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// `voters=(1 2)&&(3) learners=(4) … autoleave`.
pub fn configuration(membership: &Membership) -> String {
    let Configuration {
        voters,
        outgoing,
        learners,
        learners_next,
        witnesses,
        auto_leave,
    } = membership.configuration();
    let ids = |set: &std::collections::BTreeSet<NodeId>| {
        let ids: Vec<String> = set.iter().map(ToString::to_string).collect();
        format!("({})", ids.join(" "))
    };
    let mut text = format!("voters={}", ids(&voters));
    if !outgoing.is_empty() {
        write!(text, "&&{}", ids(&outgoing)).expect("into a string");
    }
    for (name, set) in [
        ("learners", &learners),
        ("learners_next", &learners_next),
        ("witnesses", &witnesses),
    ] {
        if !set.is_empty() {
            write!(text, " {name}={}", ids(set)).expect("into a string");
        }
    }
    if auto_leave {
        text += " autoleave";
    }
    text
}

/// `1→3 AppendEntries term=1 …`.
pub fn message(envelope: &Envelope) -> String {
    let Envelope {
        from,
        to,
        term,
        message,
        ..
    } = envelope;
    format!("{from}→{to} {} term={term}{}", name(message), body(message))
}

/// The name of a message.
pub fn name(message: &Message) -> &'static str {
    match message {
        Message::PreVote(_) => "PreVote",
        Message::PreVoteResponse { .. } => "PreVoteResponse",
        Message::RequestVote(_) => "RequestVote",
        Message::RequestVoteResponse { .. } => "RequestVoteResponse",
        Message::AppendEntries { .. } => "AppendEntries",
        Message::AppendEntriesResponse(_) => "AppendEntriesResponse",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::HeartbeatResponse { .. } => "HeartbeatResponse",
        Message::InstallSnapshot { .. } => "InstallSnapshot",
        Message::TimeoutNow => "TimeoutNow",
        Message::TransferLeadership { .. } => "TransferLeadership",
        Message::ProposeConfChange { .. } => "ProposeConfChange",
        Message::Propose { .. } => "Propose",
        Message::ProposeResponse { .. } => "ProposeResponse",
        Message::ReadIndex { .. } => "ReadIndex",
        Message::ReadIndexResponse { .. } => "ReadIndexResponse",
        Message::AmIMember => "AmIMember",
        Message::Removed { .. } => "Removed",
        Message::Join(_) => "Join",
        Message::JoinRefused(_) => "JoinRefused",
    }
}

fn body(message: &Message) -> String {
    match message {
        Message::PreVote(request) | Message::RequestVote(request) => {
            format!(" last={}@{}", request.last_index, request.last_term)
        }
        Message::PreVoteResponse { granted } | Message::RequestVoteResponse { granted, .. } => {
            if *granted { " granted" } else { " refused" }.to_owned()
        }
        Message::AppendEntries {
            prev_index,
            prev_term,
            commit,
            blocks,
        } => format!(
            " prev={prev_index}@{prev_term} commit={commit} entries=[{}]",
            entries(blocks)
        ),
        Message::AppendEntriesResponse(AppendResponse::Accepted { last }) => {
            format!(" accepted last={last}")
        }
        Message::AppendEntriesResponse(AppendResponse::Rejected {
            prev,
            hint_index,
            hint_term,
            ..
        }) => format!(" rejected prev={prev} hint={hint_index}@{hint_term}"),
        Message::AppendEntriesResponse(AppendResponse::StateMissing { from }) => {
            format!(" state missing from={from}")
        }
        Message::Heartbeat { commit, .. } => format!(" commit={commit}"),
        Message::InstallSnapshot { snapshot } => {
            format!(" snapshot={}@{}", snapshot.index, snapshot.term)
        }
        Message::TransferLeadership { to } => format!(" to={to}"),
        Message::ProposeConfChange { change, .. } => format!(" {}", change_text(change)),
        Message::Propose { payloads, .. } => format!(" payloads={}", payloads.len()),
        Message::ProposeResponse { index, .. } | Message::ReadIndexResponse { index, .. } => {
            index.map_or(" refused".to_owned(), |index| format!(" index={index}"))
        }
        Message::Removed {
            membership,
            applied,
        } => format!(" configuration={} applied={applied}", membership.index),
        Message::Join(request) => {
            format!(" n{} as {}", request.node, role_text(request.member.role))
        }
        Message::JoinRefused(reason) => format!(": {reason}"),
        Message::HeartbeatResponse { .. }
        | Message::TimeoutNow
        | Message::AmIMember
        | Message::ReadIndex { .. } => String::new(),
    }
}

fn role_text(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Witness => "witness",
    }
}

fn entries(blocks: &[Block]) -> String {
    let entries = blocks
        .iter()
        .flat_map(|b| b.entries().collect::<Vec<Entry>>());
    let entries: Vec<String> = entries.map(|e| format!("{}@{}", e.index, e.term)).collect();
    entries.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_published_examples() {
        for (text, hash) in [
            ("", 0xcbf2_9ce4),
            ("foo", 0xdcb2_7518),
            ("conf-change auto v2", 0xcb30_c6d3),
            ("conf-change explicit v2 l3 r1", 0x815e_0d06),
            ("conf-change auto", 0x039a_9a1e_u64),
        ] {
            assert_eq!(fnv1a(text.as_bytes()) >> 32, hash, "{text}");
        }
    }
}
