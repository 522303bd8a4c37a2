#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use multiraft_proto::node::{
    ConnectionEstablishedEvent, ConnectionFailedEvent, LeaderUpdatedEvent, LogCompactedEvent,
    LogDbCompactedEvent, MemberReadyEvent, MembershipChangedEvent, SendSnapshotAbortedEvent,
    SendSnapshotCompletedEvent, SendSnapshotStartedEvent, SnapshotCompactedEvent,
    SnapshotCreatedEvent, SnapshotReceivedEvent, SnapshotRecoveredEvent,
};

use super::*;

fn event(kind: Kind) -> Event {
    let timestamp = Some(Timestamp {
        seconds: 1_658_885_887,
        nanos: 123_456_789,
    });
    Event {
        timestamp,
        event: Some(kind),
    }
}

fn info(snapshot: bool) -> ConnectionInfo {
    ConnectionInfo {
        address: "[::1]:5001".to_owned(),
        snapshot,
    }
}

#[test]
fn each_kind_has_a_line() {
    let (group_id, index, node_id) = (1, 1000, 2);
    let mut names = Vec::new();
    for (kind, want) in [
        (
            Kind::MemberReady(MemberReadyEvent { group_id, node_id }),
            "MemberReady            group 1  node 2",
        ),
        (
            Kind::LeaderUpdated(LeaderUpdatedEvent {
                group_id,
                term: 300,
                leader: 3,
            }),
            "LeaderUpdated          group 1  term 300  leader 3",
        ),
        (
            Kind::MembershipChanged(MembershipChangedEvent { group_id, node_id }),
            "MembershipChanged      group 1  node 2",
        ),
        (
            Kind::SendSnapshotStarted(SendSnapshotStartedEvent {
                group_id,
                index,
                to: 2,
            }),
            "SendSnapshotStarted    group 1  index 1000  to 2",
        ),
        (
            Kind::SendSnapshotCompleted(SendSnapshotCompletedEvent {
                group_id,
                index,
                to: 2,
            }),
            "SendSnapshotCompleted  group 1  index 1000  to 2",
        ),
        (
            Kind::SendSnapshotAborted(SendSnapshotAbortedEvent {
                group_id,
                index,
                to: 2,
            }),
            "SendSnapshotAborted    group 1  index 1000  to 2",
        ),
        (
            Kind::SnapshotReceived(SnapshotReceivedEvent {
                group_id,
                index,
                from: 3,
            }),
            "SnapshotReceived       group 1  index 1000  from 3",
        ),
        (
            Kind::SnapshotRecovered(SnapshotRecoveredEvent { group_id, index }),
            "SnapshotRecovered      group 1  index 1000",
        ),
        (
            Kind::SnapshotCreated(SnapshotCreatedEvent { group_id, index }),
            "SnapshotCreated        group 1  index 1000",
        ),
        (
            Kind::SnapshotCompacted(SnapshotCompactedEvent { group_id, index }),
            "SnapshotCompacted      group 1  index 1000",
        ),
        (
            Kind::LogCompacted(LogCompactedEvent { group_id, index }),
            "LogCompacted           group 1  index 1000",
        ),
        (
            Kind::LogdbCompacted(LogDbCompactedEvent { group_id, index }),
            "LogDBCompacted         group 1  index 1000",
        ),
        (
            Kind::ConnectionEstablished(ConnectionEstablishedEvent {
                info: Some(info(false)),
            }),
            "ConnectionEstablished  peer [::1]:5001  carries raft",
        ),
        (
            Kind::ConnectionFailed(ConnectionFailedEvent {
                info: Some(info(true)),
            }),
            "ConnectionFailed       peer [::1]:5001  carries snapshots",
        ),
    ] {
        let event = event(kind);
        let want = format!("2022-07-27T01:38:07.123Z  {want}");
        assert_eq!(plain_line(&event, None), want);
        names.push(describe(&event).kind);
        check_json(&event);
    }
    assert_eq!(names, KINDS);
}

/// The rules of proto3's JSON form, by a reader that knows no protobuf: names in lower camel case, 64-bit
/// numbers as text, smaller ones as numbers, times as RFC 3339 says.
fn check_json(event: &Event) {
    let line = crate::cli::json_line("watch", event).unwrap();
    assert!(!line.contains('\n'), "{line}");
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    let mut json = json.as_object().unwrap().clone();
    let time = json.remove("timestamp").unwrap();
    assert_eq!(time, "2022-07-27T01:38:07.123456789Z");
    let text = describe(event);
    let (first, rest) = text.kind.split_at(1);
    let mut name = (first.to_lowercase() + rest).replace("DB", "db");
    let fields = json.remove(&name).unwrap();
    assert!(json.is_empty(), "{line}");
    for (field, value) in text.fields {
        name = match field {
            "group" => {
                assert_eq!(fields["groupId"].to_string(), value, "{line}");
                continue;
            }
            "peer" => {
                assert_eq!(fields["info"]["address"], value, "{line}");
                continue;
            }
            "carries" => {
                let is_snapshot = fields["info"]["snapshot"] == true;
                assert_eq!(is_snapshot, value == "snapshots", "{line}");
                continue;
            }
            "node" => "nodeId".to_owned(),
            other => other.to_owned(),
        };
        assert_eq!(fields[&name], value, "{line}");
    }
}

#[test]
fn a_line_can_name_the_node_that_tells() {
    let kind = Kind::LeaderUpdated(LeaderUpdatedEvent {
        group_id: 1,
        term: 2,
        leader: 0,
    });
    let want =
        "2022-07-27T01:38:07.123Z  node 7   LeaderUpdated          group 1  term 2  leader none";
    assert_eq!(plain_line(&event(kind), NodeId::new(7)), want);
}

#[test]
fn times_that_say_nothing_are_a_dash() {
    for (seconds, want) in [
        (-62_135_596_800, "-"), // year 1
        (i64::MIN, "-"),
        (i64::MAX, "-"),
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.000Z"),
    ] {
        assert_eq!(
            time_text(Some(Timestamp { seconds, nanos: 0 })),
            want,
            "{seconds}"
        );
    }
    assert_eq!(time_text(None), "-");
}

#[test]
fn what_is_not_known_does_not_break_the_line() {
    assert_eq!(
        plain_line(&Event::default(), None)
            .split_whitespace()
            .last(),
        Some("Unknown")
    );
    let kind = Kind::ConnectionFailed(ConnectionFailedEvent { info: None });
    assert!(plain_line(&event(kind), None).ends_with("ConnectionFailed"));
    let address = "\u{1b}[2J".to_owned();
    let info = Some(ConnectionInfo {
        address,
        snapshot: false,
    });
    let kind = Kind::ConnectionFailed(ConnectionFailedEvent { info });
    assert!(!plain_line(&event(kind), None).contains('\u{1b}'));
}
