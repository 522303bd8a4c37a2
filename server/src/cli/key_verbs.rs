//! The verbs about keys: put, get, del, range.

use std::ffi::OsString;

use bytes::Bytes;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse};

use super::client::Client;
use super::{
    DelArgs, Failure, GetArgs, KeyArgs, PutArgs, RangeArgs, escape, json_line, print_line,
    printable,
};

/// In etcd's API the key of "all keys", and the end of a range without an end.
const NO_LIMIT: &[u8] = b"\0";

fn bytes_of(text: OsString) -> Bytes {
    Bytes::from(text.into_encoded_bytes())
}

/// The end of the range of all keys that start with the prefix: the prefix plus one in its last
/// byte that is not 0xff.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|byte| *byte != u8::MAX) else {
        return Bytes::from_static(NO_LIMIT);
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    end.into()
}

/// The prefix as a range; the empty prefix is all keys.
fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let end = prefix_end(&prefix);
    (
        if prefix.is_empty() {
            Bytes::from_static(NO_LIMIT)
        } else {
            prefix
        },
        end,
    )
}

pub(super) async fn put(args: PutArgs) -> Result<(), Failure> {
    let (key, value) = (bytes_of(args.key), bytes_of(args.value));
    let client = Client::connect_any(&args.keys.connection).await?;
    let request = PutRequest {
        key,
        value,
        ..PutRequest::default()
    };
    let request = client.group_request(args.keys.group, request);
    let answer = client.answer("put", client.kv().put(request)).await?;
    if args.keys.connection.json {
        return print_line(&json_line("put", &answer)?);
    }
    print_line(&format!(
        "OK, revision {}",
        answer.header.map_or(0, |header| header.revision)
    ))
}

pub(super) async fn get(args: GetArgs) -> Result<(), Failure> {
    let key = bytes_of(args.key);
    let request = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    let answer = read("get", &args.keys, request).await?;
    if args.keys.connection.json {
        print_line(&json_line("get", &answer)?)?;
    } else if let Some(kv) = answer.kvs.first() {
        print_line(&printable(&kv.value))?;
    }
    if answer.kvs.is_empty() {
        return Err(Failure::NoSuchKey {
            key: escape(&key),
            group: args.keys.group,
        });
    }
    Ok(())
}

async fn read(
    what: &'static str,
    keys: &KeyArgs,
    request: RangeRequest,
) -> Result<RangeResponse, Failure> {
    let client = Client::connect_any(&keys.connection).await?;
    let request = client.group_request(keys.group, request);
    client.answer(what, client.kv().range(request)).await
}

pub(super) async fn del(args: DelArgs) -> Result<(), Failure> {
    let (key, range_end) = del_range(bytes_of(args.key), args.end.map(bytes_of), args.prefix);
    let client = Client::connect_any(&args.keys.connection).await?;
    let request = DeleteRangeRequest {
        key,
        range_end,
        prev_kv: false,
    };
    let request = client.group_request(args.keys.group, request);
    let answer = client
        .answer("del", client.kv().delete_range(request))
        .await?;
    if args.keys.connection.json {
        return print_line(&json_line("del", &answer)?);
    }
    print_line(&format!("deleted {}", answer.deleted))
}

fn del_range(key: Bytes, end: Option<Bytes>, prefix: bool) -> (Bytes, Bytes) {
    if prefix {
        prefix_range(key)
    } else {
        (key, end.unwrap_or_default())
    }
}

pub(super) async fn range(args: RangeArgs) -> Result<(), Failure> {
    let request = range_request(&args);
    let answer = read("range", &args.keys, request).await?;
    if args.keys.connection.json {
        return print_line(&json_line("range", &answer)?);
    }
    if args.count_only {
        return print_line(&answer.count.to_string());
    }
    let mut lines = Vec::with_capacity(answer.kvs.len());
    for kv in &answer.kvs {
        let key = escape(&kv.key);
        lines.push(if args.keys_only {
            key
        } else {
            format!("{key}\t{}", escape(&kv.value))
        });
    }
    if lines.is_empty() {
        Ok(())
    } else {
        print_line(&lines.join("\n"))
    }
}

fn range_request(args: &RangeArgs) -> RangeRequest {
    let end = args
        .end
        .clone()
        .map_or(Bytes::from_static(NO_LIMIT), bytes_of);
    let (key, range_end) = match args.key.clone().map(bytes_of) {
        Some(prefix) if args.prefix => prefix_range(prefix),
        Some(key) if !key.is_empty() => (key, end),
        Some(_) | None => (Bytes::from_static(NO_LIMIT), end),
    };
    RangeRequest {
        key,
        range_end,
        limit: args.limit,
        revision: args.rev,
        serializable: args.serializable,
        keys_only: args.keys_only,
        count_only: args.count_only,
        ..RangeRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_range_up_to_its_successor() {
        for (prefix, want) in [
            (&b"user/"[..], (&b"user/"[..], &b"user0"[..])),
            (b"a\xff\xff", (b"a\xff\xff", b"b")),
            (b"\xff", (b"\xff", b"\0")), // nothing sorts after all 0xff
            (b"", (b"\0", b"\0")),       // all keys
        ] {
            let (key, end) = prefix_range(Bytes::from_static(prefix));
            assert_eq!((&key[..], &end[..]), want, "{prefix:?}");
        }
    }

    #[test]
    fn del_without_an_end_is_one_key() {
        let key = Bytes::from_static(b"a");
        assert_eq!(
            del_range(key.clone(), None, false),
            (key.clone(), Bytes::new())
        );
        let end = Bytes::from_static(b"b");
        assert_eq!(del_range(key.clone(), Some(end.clone()), false), (key, end));
    }
}
