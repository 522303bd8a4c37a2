//! A group's state out of a node as a stream, and into another cluster.
//!
//! ```text
//! export  newest snapshot ─ read and checked on a blocking thread ─▶ header, data …, end with SHA-256
//! import  parts ─▶ a channel ─▶ written as a snapshot on a blocking thread; the hash is right ─▶ the group
//! ```
//! Neither side holds more than a few parts at once.

use std::io::{self, ErrorKind, Read};
use std::time::Duration;

use multiraft_engine::snapshot::{SnapshotIn, SnapshotOut, SnapshotView};
use multiraft_engine::types::{GroupId, Index, Term};
use multiraft_proto::admin::backup_part::Part;
use multiraft_proto::admin::import_request::Part as ImportPart;
use multiraft_proto::admin::{BackupEnd, BackupHeader, BackupPart, ImportRequest, ImportResponse};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::AdminService;
use crate::convert;

/// Of the stream's form.
const VERSION: u32 = 1;
/// Data in a part.
const PART_BYTES: usize = 256 << 10;
/// Data that is taken in a part.
const MAX_PART_BYTES: usize = 1 << 20;
/// Parts on their way.
const PARTS_QUEUED: usize = 8;
/// A client that sends nothing for so long has gone.
const STALLED: Duration = Duration::from_secs(60);

type Parts = mpsc::Sender<Result<BackupPart, Status>>;

impl AdminService {
    /// A copy of a group with all that was acknowledged by now.
    pub(super) async fn copy_out(
        &self,
        group: GroupId,
    ) -> Result<ReceiverStream<Result<BackupPart, Status>>, Status> {
        self.group(group).await?;
        let read = self.host.read_index(group).await;
        read.map_err(|error| Status::unavailable(error.to_string()))?;
        self.snapshot_of(group).await?;
        let (host, cluster_id) = (self.host.clone(), self.about.cluster_id);
        let (sender, receiver) = mpsc::channel(PARTS_QUEUED);
        tokio::task::spawn_blocking(move || {
            let copied = host
                .export(group)
                .map_err(|error| Status::unavailable(error.to_string()))
                .and_then(|(snapshot, mut file)| {
                    let header = BackupHeader {
                        version: VERSION,
                        group_id: group.0,
                        index: snapshot.index.0,
                        term: snapshot.term.0,
                        members: convert::member_configs(&snapshot.membership),
                        cluster_id,
                        made_by: format!("multiraft {}", env!("CARGO_PKG_VERSION")),
                    };
                    send(&sender, Part::Header(header))?;
                    copy(&mut *file, &sender)
                });
            if let Err(status) = copied
                && sender.blocking_send(Err(status)).is_err()
            {
                tracing::debug!(%group, "nobody waits for the copy any more");
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    /// Starts a group from a copy.
    pub(super) async fn copy_in(
        &self,
        mut parts: Streaming<ImportRequest>,
    ) -> Result<ImportResponse, Status> {
        let Some(ImportPart::Group(config)) = next(&mut parts).await? else {
            return Err(Status::invalid_argument(
                "the first part of an import must be the group to start",
            ));
        };
        let (group, membership) = convert::group(Some(config))?;
        let Some(ImportPart::Backup(BackupPart {
            part: Some(Part::Header(header)),
        })) = next(&mut parts).await?
        else {
            return Err(Status::invalid_argument(
                "the second part of an import must be the copy's header: is this a backup?",
            ));
        };
        if header.version != VERSION {
            return Err(Status::invalid_argument(format!(
                "the copy has version {}, this node reads version {VERSION}: use a node of version {} \
                 or newer",
                header.version, header.made_by
            )));
        }
        let (sender, receiver) = mpsc::channel(PARTS_QUEUED);
        let (hash_sender, hash) = oneshot::channel();
        let view = Upload {
            parts: receiver,
            hash: Some(hash_sender),
        };
        let position = (Index(header.index), Term(header.term));
        let importing = self
            .host
            .import(group, membership, position, Box::new(view));
        let (imported, ()) = tokio::join!(importing, pump(&mut parts, sender));
        imported.map_err(|error| convert::import_status(&error))?;
        let is_so = |status: &multiraft_engine::shard::GroupStatus| {
            status.applied > position.0 && status.leader == Some(self.about.node)
        };
        self.insist(group, || {}, is_so).await?;
        let sha256 = hash.await.unwrap_or_default();
        Ok(ImportResponse {
            index: header.index,
            sha256,
        })
    }
}

fn send(to: &Parts, part: Part) -> Result<(), Status> {
    let part = BackupPart { part: Some(part) };
    to.blocking_send(Ok(part))
        .map_err(|_| Status::cancelled("nobody waits for the copy any more"))
}

/// Sends the state and the files beside it, and their hash.
fn copy(file: &mut dyn SnapshotIn, to: &Parts) -> Result<(), Status> {
    let damaged = |error: io::Error| Status::data_loss(format!("the snapshot: {error}"));
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    loop {
        loop {
            let mut data = Vec::with_capacity(PART_BYTES);
            let limit = PART_BYTES as u64;
            let read = (&mut *file).take(limit).read_to_end(&mut data);
            if read.map_err(damaged)? == 0 {
                break;
            }
            hasher.update(&data);
            bytes += data.len() as u64;
            send(to, Part::Data(data))?;
        }
        match file.next_file().map_err(damaged)? {
            Some(name) => send(to, Part::File(name))?,
            None => break,
        }
    }
    let sha256 = hasher.finalize().to_vec();
    send(to, Part::End(BackupEnd { bytes, sha256 }))
}

async fn next(parts: &mut Streaming<ImportRequest>) -> Result<Option<ImportPart>, Status> {
    let next = tokio::time::timeout(STALLED, parts.next()).await;
    let next = next.map_err(|_| {
        Status::deadline_exceeded(format!("no part of the import came for {STALLED:?}"))
    })?;
    Ok(next.transpose()?.and_then(|request| request.part))
}

/// Hands parts on until there are no more, or nobody takes them.
async fn pump(parts: &mut Streaming<ImportRequest>, to: mpsc::Sender<Part>) {
    loop {
        match next(parts).await {
            Ok(Some(ImportPart::Backup(BackupPart { part: Some(part) }))) => {
                let is_last = matches!(part, Part::End(_));
                if to.send(part).await.is_err() || is_last {
                    return;
                }
            }
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "an import was cut off");
                return;
            }
        }
    }
}

/// A copy on its way in, written as a snapshot.
struct Upload {
    parts: mpsc::Receiver<Part>,
    /// Told once all came and was right.
    hash: Option<oneshot::Sender<Vec<u8>>>,
}

impl SnapshotView for Upload {
    fn write_to(&mut self, out: &mut dyn SnapshotOut) -> io::Result<()> {
        let mut hasher = Sha256::new();
        let mut bytes = 0;
        loop {
            let part = self.parts.blocking_recv();
            match part.ok_or_else(|| invalid("the copy ends too early"))? {
                Part::Header(_) => return Err(invalid("a second header")),
                Part::Data(data) if data.len() > MAX_PART_BYTES => {
                    return Err(invalid("a part of more than 1 MiB"));
                }
                Part::Data(data) => {
                    hasher.update(&data);
                    bytes += data.len() as u64;
                    out.write_all(&data)?;
                }
                Part::File(name) => out.begin_file(&name)?,
                Part::End(end) => {
                    let sha256 = hasher.finalize().to_vec();
                    if (end.bytes, &end.sha256) != (bytes, &sha256) {
                        return Err(invalid("the hash is not right"));
                    }
                    if let Some(hash) = self.hash.take() {
                        hash.send(sha256).ok(); // a client that left needs no answer
                    }
                    return Ok(());
                }
            }
        }
    }
}

/// What is wrong with a copy.
#[derive(Debug, thiserror::Error)]
#[error("the backup is damaged or cut short: {0}")]
struct Invalid(&'static str);

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, Invalid(what))
}
