//! The payload of a log entry of the key-value machine.

use bytes::Bytes;
use multiraft_proto::kv_command::Command;
pub use multiraft_proto::kv_command::command::Command as Change;
use prost::Message;

use super::check::MAX_REQUEST_BYTES;
use super::error::Refusal;

/// Encodes a change for the log; refuses one over [`MAX_REQUEST_BYTES`].
pub fn encode_command(change: Change) -> Result<Bytes, Refusal> {
    let command = Command {
        command: Some(change),
    };
    if command.encoded_len() > MAX_REQUEST_BYTES {
        return Err(Refusal::TooLarge);
    }
    Ok(command.encode_to_vec().into())
}

/// Decodes a payload. `None`: well formed, but a kind of change that a newer version brought.
///
/// An empty payload is no command of any version.
pub fn decode(payload: Bytes) -> Result<Option<Change>, Refusal> {
    if payload.is_empty() {
        return Err(Refusal::Undecodable);
    }
    match Command::decode(payload) {
        Ok(command) => Ok(command.command),
        Err(_) => Err(Refusal::Undecodable),
    }
}
