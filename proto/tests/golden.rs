//! The wire vectors of the Node API: every one in the three ways that make two programs agree.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use multiraft_proto::{descriptor_pool, node};
use prost::{Message, Name};
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    name: String,
    message: String,
    json: serde_json::Value,
    hex: String,
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("golden.json")).unwrap()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "odd hex: {hex}");
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn descriptor(vector: &Vector) -> MessageDescriptor {
    descriptor_pool()
        .get_message_by_name(&vector.message)
        .expect(&vector.message)
}

fn from_json(vector: &Vector) -> DynamicMessage {
    DynamicMessage::deserialize(descriptor(vector), &vector.json).expect(&vector.name)
}

#[test]
fn the_file_is_whole() {
    let vectors = vectors();
    let messages: BTreeSet<_> = vectors.iter().map(|v| &v.message).collect();
    assert_eq!((vectors.len(), messages.len()), (79, 28));
}

#[test]
fn bytes_decode_to_the_json() {
    for vector in vectors() {
        let decoded =
            DynamicMessage::decode(descriptor(&vector), bytes_of(&vector.hex).as_slice()).unwrap();
        assert_eq!(decoded, from_json(&vector), "{}", vector.name);
        assert_eq!(decoded.unknown_fields().count(), 0, "{}", vector.name);
        let json = serde_json::to_value(&decoded).unwrap();
        assert_eq!(json, vector.json, "{}", vector.name);
    }
}

#[test]
fn json_encodes_to_the_bytes() {
    for vector in vectors() {
        let bytes = from_json(&vector).encode_to_vec();
        assert_eq!(bytes, bytes_of(&vector.hex), "{}", vector.name);
    }
}

/// Both ways with the generated type: from the JSON to the bytes, and from the bytes to the bytes.
fn check<M: Message + Name + Default + PartialEq + std::fmt::Debug>(vector: &Vector) {
    assert_eq!(M::full_name(), vector.message);
    let bytes = bytes_of(&vector.hex);
    let decoded = M::decode(bytes.as_slice()).unwrap();
    assert_eq!(
        decoded.encode_to_vec(),
        bytes,
        "{}: decode, encode",
        vector.name
    );
    let built: M = from_json(vector).transcode_to().unwrap();
    assert_eq!(built, decoded, "{}: the JSON, in Rust", vector.name);
    assert_eq!(
        built.encode_to_vec(),
        bytes,
        "{}: the JSON, encoded",
        vector.name
    );
}

macro_rules! check_by_name {
    ($vector:expr, $($name:literal => $message:ident),+ $(,)?) => {
        match $vector.message.strip_prefix("atomix.multiraft.v1.").unwrap() {
            $($name => check::<node::$message>($vector),)+
            other => panic!("{}: no generated type for {other}", $vector.name),
        }
    };
}

#[test]
fn generated_types_have_the_same_bytes() {
    for vector in vectors() {
        check_by_name!(&vector,
            "BootstrapRequest" => BootstrapRequest,
            "BootstrapResponse" => BootstrapResponse,
            "ConnectionEstablishedEvent" => ConnectionEstablishedEvent,
            "ConnectionFailedEvent" => ConnectionFailedEvent,
            "ConnectionInfo" => ConnectionInfo,
            "Event" => Event,
            "GroupConfig" => GroupConfig,
            "JoinRequest" => JoinRequest,
            "JoinResponse" => JoinResponse,
            "LeaderUpdatedEvent" => LeaderUpdatedEvent,
            "LeaveRequest" => LeaveRequest,
            "LeaveResponse" => LeaveResponse,
            "LogCompactedEvent" => LogCompactedEvent,
            "LogDBCompactedEvent" => LogDbCompactedEvent,
            "LogEvent" => LogEvent,
            "MemberConfig" => MemberConfig,
            "MemberReadyEvent" => MemberReadyEvent,
            "MembershipChangedEvent" => MembershipChangedEvent,
            "MultiRaftConfig" => MultiRaftConfig,
            "NodeConfig" => NodeConfig,
            "SendSnapshotAbortedEvent" => SendSnapshotAbortedEvent,
            "SendSnapshotCompletedEvent" => SendSnapshotCompletedEvent,
            "SendSnapshotStartedEvent" => SendSnapshotStartedEvent,
            "SnapshotCompactedEvent" => SnapshotCompactedEvent,
            "SnapshotCreatedEvent" => SnapshotCreatedEvent,
            "SnapshotReceivedEvent" => SnapshotReceivedEvent,
            "SnapshotRecoveredEvent" => SnapshotRecoveredEvent,
            "WatchRequest" => WatchRequest,
        );
    }
}

/// The numbers that the vectors cannot tell: Compare's far field, and a union in a transaction.
#[test]
fn etcd_messages_have_the_public_numbers() {
    let pool = descriptor_pool();
    for (message, field, number) in [
        ("etcdserverpb.RangeRequest", "max_create_revision", 13),
        ("etcdserverpb.PutRequest", "ignore_lease", 6),
        ("etcdserverpb.DeleteRangeResponse", "prev_kvs", 3),
        ("etcdserverpb.RequestOp", "request_txn", 4),
        ("etcdserverpb.Compare", "lease", 8),
        ("etcdserverpb.Compare", "range_end", 64),
        ("mvccpb.KeyValue", "value", 5),
    ] {
        let message = pool.get_message_by_name(message).expect(message);
        assert_eq!(
            message.get_field_by_name(field).expect(field).number(),
            number,
            "{field}"
        );
    }
}
