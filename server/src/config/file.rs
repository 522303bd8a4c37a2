//! The configuration file: `MultiRaftConfig` in proto3 JSON form, or in TOML with the same fields.
//!
//! Fields may be written in either case (`dataDir`, `data_dir`). As everywhere in proto3, a number
//! that is 0 is a number that is not given: the default stays. Fields are read one by one, so that
//! an error can name the one it is about.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use multiraft_proto::descriptor_pool;
use multiraft_proto::node::MultiRaftConfig;
use prost::Name;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{Config, ConfigError};

/// Sets in `config` what the file at `path` gives.
pub(super) fn apply(path: &Path, config: &mut Config) -> Result<(), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let file = parse_fields(path, parse_object(path, &text)?)?;
    if let Some(period) = file.heartbeat_period {
        config.heartbeat_period = checked_duration(path, "heartbeat_period", period)?;
    }
    if let Some(timeout) = file.election_timeout {
        config.election_timeout = checked_duration(path, "election_timeout", timeout)?;
    }
    if file.snapshot_entry_threshold != 0 {
        config.snapshot_entry_threshold = file.snapshot_entry_threshold;
    }
    if file.compaction_retain_entries != 0 {
        config.compaction_retain_entries = file.compaction_retain_entries;
    }
    if !file.data_dir.is_empty() {
        config.data_dir = PathBuf::from(file.data_dir);
    }
    Ok(())
}

/// `*.toml` is TOML, everything else JSON.
fn parse_object(path: &Path, text: &str) -> Result<Map<String, Value>, ConfigError> {
    let path_buf = || path.to_owned();
    let value = if path
        .extension()
        .is_some_and(|extension| extension == "toml")
    {
        let table: toml::Table = toml::from_str(text).map_err(|source| ConfigError::Toml {
            path: path_buf(),
            source: Box::new(source),
        })?;
        serde_json::to_value(table)
    } else {
        serde_json::from_str(text)
    };
    match value.map_err(|source| ConfigError::Json {
        path: path_buf(),
        source,
    })? {
        Value::Object(object) => Ok(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(ConfigError::NoObject { path: path_buf() })
        }
    }
}

fn parse_fields(path: &Path, object: Map<String, Value>) -> Result<MultiRaftConfig, ConfigError> {
    let descriptor = descriptor_pool()
        .get_message_by_name(&MultiRaftConfig::full_name())
        .expect("the pool holds all generated messages");
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, value) in object {
        let field = find_field(path, &descriptor, &name)?;
        let one = Value::Object(Map::from_iter([(name.clone(), value)]));
        let part = DynamicMessage::deserialize(descriptor.clone(), one).map_err(|source| {
            let expected = expected(&field);
            ConfigError::Field {
                path: path.to_owned(),
                field: name.clone(),
                source,
                expected,
            }
        })?;
        if message.has_field(&field) {
            return Err(ConfigError::DuplicateField {
                path: path.to_owned(),
                field: name,
            });
        }
        if part.has_field(&field) {
            message.set_field(&field, part.get_field(&field).into_owned());
        }
    }
    Ok(message
        .transcode_to()
        .expect("the descriptor is the type's own"))
}

fn find_field(
    path: &Path,
    descriptor: &MessageDescriptor,
    name: &str,
) -> Result<FieldDescriptor, ConfigError> {
    let found = descriptor
        .get_field_by_json_name(name)
        .or_else(|| descriptor.get_field_by_name(name));
    found.ok_or_else(|| {
        let known: Vec<_> = descriptor
            .fields()
            .map(|f| f.json_name().to_owned())
            .collect();
        let (path, field) = (path.to_owned(), name.to_owned());
        ConfigError::UnknownField {
            path,
            field,
            known: known.join(", "),
        }
    })
}

/// What to write instead of a value of the wrong type.
fn expected(field: &FieldDescriptor) -> &'static str {
    match field.kind() {
        Kind::Message(_) => "write a duration as text with its unit, as in \"0.1s\"",
        Kind::String => "write text in quotation marks",
        _ => "write a whole number from 0",
    }
}

fn checked_duration(
    path: &Path,
    field: &'static str,
    duration: prost_types::Duration,
) -> Result<Duration, ConfigError> {
    let seconds = duration.seconds;
    Duration::try_from(duration).map_err(|_| ConfigError::Duration {
        path: path.to_owned(),
        field,
        seconds,
    })
}
