//! What etcd's store does, as a map for each revision: what the machine is held against.
#![allow(clippy::unwrap_used, reason = "for tests only")]

use std::collections::BTreeMap;

use bytes::Bytes;
use multiraft_proto::etcdserverpb::range_request::SortTarget;
use multiraft_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use multiraft_proto::mvccpb::KeyValue;

/// The store at each revision; the place in the list is the revision less one.
pub struct Model {
    revisions: Vec<BTreeMap<Bytes, KeyValue>>,
}

impl Default for Model {
    fn default() -> Self {
        let revisions = vec![BTreeMap::new()];
        Self { revisions }
    }
}

impl Model {
    /// The newest revision; 1 at first.
    pub fn revision(&self) -> i64 {
        i64::try_from(self.revisions.len()).unwrap()
    }

    fn now(&self) -> BTreeMap<Bytes, KeyValue> {
        self.revisions.last().unwrap().clone()
    }

    /// Returns the revision after it and the key before, or `None` if it is refused.
    pub fn put(&mut self, request: &PutRequest) -> Option<(i64, Option<KeyValue>)> {
        let mut keys = self.now();
        let before = keys.get(&request.key).cloned();
        if request.ignore_value && before.is_none() {
            return None;
        }
        let revision = self.revision() + 1;
        let kv = KeyValue {
            key: request.key.clone(),
            value: match &before {
                Some(kv) if request.ignore_value => kv.value.clone(),
                _ => request.value.clone(),
            },
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            lease: 0,
        };
        keys.insert(request.key.clone(), kv);
        self.revisions.push(keys);
        Some((revision, before))
    }

    /// Returns the revision after it and the keys that were deleted.
    pub fn delete(&mut self, request: &DeleteRangeRequest) -> (i64, Vec<KeyValue>) {
        let mut keys = self.now();
        let doomed = within(&keys, &request.key, &request.range_end);
        for kv in &doomed {
            keys.remove(&kv.key);
        }
        if !doomed.is_empty() {
            self.revisions.push(keys);
        }
        (self.revision(), doomed)
    }

    /// Returns keys, more and count; `None` for a future revision.
    pub fn range(&self, request: &RangeRequest) -> Option<(Vec<KeyValue>, bool, i64)> {
        let at = match request.revision {
            i64::MIN..=0 => self.revision(),
            at => at,
        };
        let keys = self.revisions.get(usize::try_from(at - 1).unwrap())?;
        let mut kvs = within(keys, &request.key, &request.range_end);
        let count = i64::try_from(kvs.len()).unwrap();
        if request.count_only {
            return Some((Vec::new(), false, count));
        }
        kvs.retain(|kv| kv.mod_revision >= request.min_mod_revision);
        kvs.sort_by_key(|kv| match request.sort_target {
            t if t == SortTarget::Version as i32 => (kv.version, Bytes::new()),
            t if t == SortTarget::Create as i32 => (kv.create_revision, kv.key.clone()),
            t if t == SortTarget::Value as i32 => (0, kv.value.clone()),
            t if t == SortTarget::Mod as i32 => (kv.mod_revision, kv.key.clone()),
            _ => (0, kv.key.clone()),
        });
        let limit = usize::try_from(request.limit).unwrap();
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        Some((kvs, more, count))
    }
}

fn within(keys: &BTreeMap<Bytes, KeyValue>, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
    let inside = |k: &Bytes| match end.as_ref() {
        [] => k == key,
        [0] => k >= key,
        _ => k >= key && k < end,
    };
    let found = keys.values().filter(|kv| inside(&kv.key));
    found.cloned().collect()
}
