//! The messages and services of multiraft's APIs, generated from the files in `proto/`.
//!
//! | module | protobuf package | what it is |
//! | --- | --- | --- |
//! | [`node`] | `atomix.multiraft.v1` | groups are started, joined, left and watched |
//! | [`etcdserverpb`], [`mvccpb`] | the same | the etcd v3 API that every group speaks |
//! | [`admin`] | `multiraft.admin.v1` | what operators ask a node |
//! | [`kv_command`] | `multiraft.kv.v1` | what the key-value machine writes into the Raft log |
//!
//! This crate has no logic. Invariant: what leaves here has the bytes of `tests/golden.json`.

#![forbid(unsafe_code)]

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

#[allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    rustdoc::all,
    reason = "generated: its comments and its shape are those of the .proto files"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}

pub use generated::atomix::multiraft::v1 as node;
pub use generated::multiraft::admin::v1 as admin;
pub use generated::multiraft::kv::v1 as kv_command;
pub use generated::{etcdserverpb, mvccpb};

/// All the `.proto` files, comments included, as an encoded `google.protobuf.FileDescriptorSet`:
/// what the gRPC reflection service wants.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The descriptors of all messages, for messages by name and for proto3 JSON.
pub fn descriptor_pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build made it from checked files")
    });
    &POOL
}
