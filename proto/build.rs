//! Compiles the `.proto` files: messages and services into Rust, descriptors into one set.
//!
//! `protox` does what `protoc` would, so that there is nothing to install.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

const FILES: [&str; 6] = [
    "atomix/multiraft/v1/config.proto",
    "atomix/multiraft/v1/node.proto",
    "etcdserverpb/rpc.proto",
    "multiraft/admin/v1/admin.proto",
    "multiraft/kv/v1/command.proto",
    "mvccpb/kv.proto",
];

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names(); // how a generated type finds its descriptor, for proto3 JSON
    tonic_prost_build::configure()
        // Keys and values are shared by log, network and store: no copies.
        .bytes(".etcdserverpb")
        .bytes(".mvccpb")
        .include_file("all.rs")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
