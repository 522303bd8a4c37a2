//! One event of a node as one readable line.
//!
//! ```text
//! 2022-07-27T01:38:07.123Z  LeaderUpdated          group 1  term 300  leader 3
//! ```

use multiraft_engine::types::NodeId;
use multiraft_proto::node::event::Event as Kind;
use multiraft_proto::node::{ConnectionInfo, Event};
use owo_colors::{OwoColorize, Stream, Style};
use prost_types::Timestamp;

use super::escape;

/// The seconds that a date from year 1 to 9999 can have. The first of them is left out: it stands
/// for "no time known" with some writers.
const KNOWN_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_799..=253_402_300_799;

/// What an event means to somebody who watches a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Something works.
    Good,
    /// Something broke or was given up.
    Bad,
    /// Who leads or who is a member changed.
    Notice,
    /// Routine.
    Quiet,
}

/// The parts of an event's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventText {
    /// In UTC, to the millisecond; `-` if not known.
    pub time: String,
    /// The event's name in the API, without `Event`.
    pub kind: &'static str,
    /// What it means.
    pub tone: Tone,
    /// Names and values, the group first.
    pub fields: Vec<(&'static str, String)>,
}

impl EventText {
    /// The group that the event is about; `None`: it is about a connection.
    pub fn group(&self) -> Option<&str> {
        let group = self.fields.iter().find(|(name, _)| *name == "group");
        group.map(|(_, value)| value.as_str())
    }
}

/// The names of all events.
pub const KINDS: [&str; 14] = [
    "MemberReady",
    "LeaderUpdated",
    "MembershipChanged",
    "SendSnapshotStarted",
    "SendSnapshotCompleted",
    "SendSnapshotAborted",
    "SnapshotReceived",
    "SnapshotRecovered",
    "SnapshotCreated",
    "SnapshotCompacted",
    "LogCompacted",
    "LogDBCompacted",
    "ConnectionEstablished",
    "ConnectionFailed",
];

/// Takes an event apart.
pub fn describe(event: &Event) -> EventText {
    let (kind, tone, fields) = match &event.event {
        Some(kind) => describe_kind(kind),
        None => ("Unknown", Tone::Quiet, Vec::new()),
    };
    EventText {
        time: time_text(event.timestamp),
        kind,
        tone,
        fields,
    }
}

type KindText = (&'static str, Tone, Vec<(&'static str, String)>);

fn describe_kind(kind: &Kind) -> KindText {
    match kind {
        Kind::MemberReady(e) => ("MemberReady", Tone::Good, of_node(e.group_id, e.node_id)),
        Kind::LeaderUpdated(e) => (
            "LeaderUpdated",
            Tone::Notice,
            leader_fields(e.group_id, e.term, e.leader),
        ),
        Kind::MembershipChanged(e) => (
            "MembershipChanged",
            Tone::Notice,
            of_node(e.group_id, e.node_id),
        ),
        Kind::SendSnapshotStarted(e) => (
            "SendSnapshotStarted",
            Tone::Quiet,
            with(e.group_id, e.index, "to", e.to),
        ),
        Kind::SendSnapshotCompleted(e) => (
            "SendSnapshotCompleted",
            Tone::Good,
            with(e.group_id, e.index, "to", e.to),
        ),
        Kind::SendSnapshotAborted(e) => (
            "SendSnapshotAborted",
            Tone::Bad,
            with(e.group_id, e.index, "to", e.to),
        ),
        Kind::SnapshotReceived(e) => (
            "SnapshotReceived",
            Tone::Good,
            with(e.group_id, e.index, "from", e.from),
        ),
        Kind::SnapshotRecovered(e) => (
            "SnapshotRecovered",
            Tone::Good,
            at_index(e.group_id, e.index),
        ),
        Kind::SnapshotCreated(e) => (
            "SnapshotCreated",
            Tone::Quiet,
            at_index(e.group_id, e.index),
        ),
        Kind::SnapshotCompacted(e) => (
            "SnapshotCompacted",
            Tone::Quiet,
            at_index(e.group_id, e.index),
        ),
        Kind::LogCompacted(e) => ("LogCompacted", Tone::Quiet, at_index(e.group_id, e.index)),
        Kind::LogdbCompacted(e) => ("LogDBCompacted", Tone::Quiet, at_index(e.group_id, e.index)),
        Kind::ConnectionEstablished(e) => (
            "ConnectionEstablished",
            Tone::Good,
            connection_fields(e.info.as_ref()),
        ),
        Kind::ConnectionFailed(e) => (
            "ConnectionFailed",
            Tone::Bad,
            connection_fields(e.info.as_ref()),
        ),
    }
}

fn of_node(group: u32, node: u64) -> Vec<(&'static str, String)> {
    vec![("group", group.to_string()), ("node", node.to_string())]
}

fn leader_fields(group: u32, term: u64, leader: u64) -> Vec<(&'static str, String)> {
    let leader = if leader == 0 {
        "none".to_owned()
    } else {
        leader.to_string()
    };
    vec![
        ("group", group.to_string()),
        ("term", term.to_string()),
        ("leader", leader),
    ]
}

fn at_index(group: u32, index: u64) -> Vec<(&'static str, String)> {
    vec![("group", group.to_string()), ("index", index.to_string())]
}

fn with(group: u32, index: u64, name: &'static str, node: u64) -> Vec<(&'static str, String)> {
    let mut fields = at_index(group, index);
    fields.push((name, node.to_string()));
    fields
}

fn connection_fields(info: Option<&ConnectionInfo>) -> Vec<(&'static str, String)> {
    let Some(info) = info else { return Vec::new() };
    let carries = if info.snapshot { "snapshots" } else { "raft" };
    vec![
        ("peer", escape(info.address.as_bytes())),
        ("carries", carries.to_owned()),
    ]
}

fn time_text(timestamp: Option<Timestamp>) -> String {
    let known = timestamp.filter(|time| KNOWN_SECONDS.contains(&time.seconds));
    let Some(Timestamp { seconds, nanos }) = known else {
        return "-".to_owned();
    };
    let whole = Timestamp { seconds, nanos: 0 }.to_string();
    let millis = nanos.clamp(0, 999_999_999) / 1_000_000;
    format!("{}.{millis:03}Z", whole.trim_end_matches('Z'))
}

/// The event as a line without colour. `node` is who tells it, where that is not obvious.
pub fn plain_line(event: &Event, node: Option<NodeId>) -> String {
    line(&describe(event), node, |text, _| text.to_owned())
}

/// The event as a line for standard output, in colour if that is a terminal.
pub fn coloured_line(event: &Event, node: Option<NodeId>) -> String {
    line(&describe(event), node, |text, style| {
        text.if_supports_color(Stream::Stdout, |text| text.style(style))
            .to_string()
    })
}

fn line(text: &EventText, node: Option<NodeId>, paint: impl Fn(&str, Style) -> String) -> String {
    let kind_style = match text.tone {
        Tone::Good => Style::new().green(),
        Tone::Bad => Style::new().red(),
        Tone::Notice => Style::new().yellow(),
        Tone::Quiet => Style::new(),
    };
    let mut parts = vec![paint(&format!("{:24}", text.time), Style::new().dimmed())];
    if let Some(node) = node {
        parts.push(format!("node {node:<2}"));
    }
    parts.push(paint(&format!("{:21}", text.kind), kind_style));
    parts.extend(
        text.fields
            .iter()
            .map(|(name, value)| format!("{name} {value}")),
    );
    parts.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests;
