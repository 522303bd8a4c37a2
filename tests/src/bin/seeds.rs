//! Writes what fuzzing begins with: frames of a simulated cluster, segments of a real log,
//! configuration files, and schedules of many lengths.

use std::path::{Path, PathBuf};

use bytes::BytesMut;
use clap::Parser;
use multiraft_tests::fuzz::{TARGETS, log_image, transfer_bytes};
use multiraft_tests::sim::{self, Options, Plan};
use multiraft_transport::codec::{Item, encode};
use multiraft_transport::frame::FrameBuilder;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Writes the first inputs of all fuzz targets, the same every time.
#[derive(Parser)]
struct Arguments {
    /// Where to, a directory for each target.
    #[arg(default_value = "fuzz/seeds")]
    out: PathBuf,
}

/// Inputs of one target.
const COUNT: usize = 12;

fn main() -> std::io::Result<()> {
    let out = Arguments::parse().out;
    for (target, _) in TARGETS {
        let dir = out.join(target);
        std::fs::create_dir_all(&dir)?;
        for (at, bytes) in inputs(target).iter().enumerate() {
            std::fs::write(dir.join(format!("{at:02}")), bytes)?;
        }
    }
    println!("wrote {}", Path::new(&out).display());
    Ok(())
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire_frame" => turns().iter().map(|items| frame(items)).collect(),
        "message_decode" => turns().iter().map(|items| message(&items[0])).collect(),
        "logdb_recover" => {
            let image = |at| [vec![0], log_image(at)].concat(); // 0: nothing but these bytes
            let mut images: Vec<Vec<u8>> = (1..4).map(image).collect();
            images.extend(
                schedules(1)
                    .into_iter()
                    .map(|bytes| [vec![1], bytes].concat()),
            );
            images
        }
        "snapshot_chunks" => {
            let mut all: Vec<Vec<u8>> = (0..6).map(transfer).collect();
            all.extend((0..6).map(steps));
            let damages = schedules(2).into_iter().take(6);
            all.extend(damages.map(|bytes| [vec![0], bytes].concat()));
            all
        }
        "config_file" => CONFIGS
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect(),
        _ => schedules(u64::from(crc(target))),
    }
}

fn crc(name: &str) -> u32 {
    name.bytes()
        .fold(7, |sum, byte| sum * 31 % 65_521 + u32::from(byte))
}

/// Turns of a cluster in which something was said, spread over its life.
fn turns() -> Vec<Vec<Item>> {
    let options = Options {
        groups: Some(3),
        ticks: 600,
        ..Options::default()
    };
    let said: Vec<_> = sim::listen(&Plan::draw(11, &options))
        .into_iter()
        .filter(|items| !items.is_empty())
        .collect();
    let step = said.len() / COUNT;
    said.into_iter().step_by(step.max(1)).take(COUNT).collect()
}

/// The bytes of a real transfer, said on one connection in pieces; see `Hostile::step`.
fn transfer(number: usize) -> Vec<u8> {
    const HOSTILE: u8 = 6;
    const RAW: u8 = 2;
    let mut out = vec![1, 0]; // not damage; how it ends
    for piece in transfer_bytes(number).chunks(200) {
        let length = u8::try_from(piece.len()).unwrap_or(u8::MAX);
        out.extend([HOSTILE, RAW, length]);
        out.extend(piece);
    }
    out
}

/// A genuine snapshot that is offered and sent step by step, with a fault and a crash in between.
fn steps(number: u8) -> Vec<u8> {
    const CRASH: [u8; 2] = [5, 1];
    let offer = [6, 5, number];
    let send = [6, 15].repeat(4 + usize::from(number));
    let (fault, save) = ([4, number], [1, number]);
    let steps = [
        &[1, number],
        &offer[..],
        &send,
        &save,
        &fault,
        &offer,
        &send,
        &CRASH,
    ];
    [&steps.concat()[..], &offer, &send, &[0, number, 15]].concat()
}

fn frame(items: &[Item]) -> Vec<u8> {
    let mut builder = FrameBuilder::default();
    for item in items {
        builder.push(item);
    }
    builder.finish().concat()
}

fn message(item: &Item) -> Vec<u8> {
    let (mut meta, mut blocks) = (BytesMut::new(), Vec::new());
    encode(item, &mut meta, &mut blocks);
    let length = u16::try_from(meta.len()).unwrap_or(u16::MAX);
    [&length.to_le_bytes()[..], &meta, &blocks.concat()].concat()
}

/// Random bytes, short and long.
fn schedules(seed: u64) -> Vec<Vec<u8>> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let schedule = |at: usize| {
        let mut bytes = vec![0; 16 << (at % 8)];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    (0..COUNT).map(schedule).collect()
}

const CONFIGS: [&str; 6] = [
    "{}",
    r#"{"heartbeatPeriod": "0.1s", "electionTimeout": "1s", "dataDir": "data"}"#,
    r#"{"snapshot_entry_threshold": 1000, "compaction_retain_entries": 10}"#,
    "heartbeatPeriod = \"0.2s\"\nelectionTimeout = \"2s\"\n",
    "data_dir = \"data\"\nsnapshotEntryThreshold = 5\n",
    r#"{"electionTimeout": 5}"#,
];
