//! One sender's connection: frames to [`Incoming`], and its answers back.

use std::sync::Arc;

use bytes::BytesMut;
use multiraft_engine::raft::message::Envelope;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

use super::{Shared, next_frame};
use crate::error::Error;
use crate::metrics::label;
use crate::snapshot::wire::{self, Frame, Refusal};
use crate::snapshot::{Answer, Ends, Incoming, Receiver, Then};

/// Serves it until it ends; says why.
pub async fn serve(
    shared: &Arc<Shared>,
    receiver: &Arc<Receiver>,
    stream: TcpStream,
    ends: Ends,
) -> Error {
    let incoming = receiver.connection(ends);
    let (reader, writer) = stream.into_split();
    let writer = Mutex::new(writer);
    let result = tokio::select! {
        result = take_frames(shared, reader, &writer, incoming, ends) => result,
        result = show_life(shared, &writer) => result,
    };
    result.err().unwrap_or(Error::Closed)
}

/// Too many connections are open: the sender shall come again. Its offer is read first, for a
/// connection that is closed with bytes unread is reset, and the answer may be lost with it.
pub async fn refuse(shared: &Shared, stream: TcpStream) -> Error {
    let (mut reader, writer) = stream.into_split();
    let (mut buffer, patience) = (BytesMut::new(), shared.config.silence_timeout);
    if let Err(error) = next_frame(&mut reader, &mut buffer, patience).await {
        return error;
    }
    let busy = Frame::Refuse(Refusal::Busy);
    let said = say(shared, &Mutex::new(writer), &busy).await;
    said.err().unwrap_or(Error::Busy)
}

async fn take_frames(
    shared: &Arc<Shared>,
    mut reader: OwnedReadHalf,
    writer: &Mutex<OwnedWriteHalf>,
    mut incoming: Incoming,
    ends: Ends,
) -> Result<(), Error> {
    let label = label(ends.from);
    let bytes_received = &shared.metrics.snapshots.bytes_received;
    let mut buffer = BytesMut::new();
    loop {
        let patience = shared.config.snapshots.stall_timeout;
        let frame = next_frame(&mut reader, &mut buffer, patience).await?;
        let bytes = match &frame {
            Frame::Chunk { bytes, .. } => bytes.len() as u64,
            Frame::Offer(_)
            | Frame::Resume { .. }
            | Frame::Ack { .. }
            | Frame::Done
            | Frame::Refuse(_)
            | Frame::Alive => 0,
        };
        let now = shared.now();
        let work = move |incoming: &mut Incoming| incoming.on_frame(frame, now);
        let mut answer;
        (incoming, answer) = on_blocking_thread(shared, incoming, work).await?;
        bytes_received.get_or_create(&label).inc_by(bytes);
        while let Some(reply) = &answer.reply {
            say(shared, writer, reply).await?;
            if answer.then != Then::Finish {
                break;
            }
            (incoming, answer) = on_blocking_thread(shared, incoming, Incoming::finish).await?;
        }
    }
}

/// The disk's part. A message is delivered right there: the connection may break meanwhile, and the
/// snapshot has arrived all the same.
async fn on_blocking_thread(
    shared: &Arc<Shared>,
    mut incoming: Incoming,
    work: impl FnOnce(&mut Incoming) -> Result<Answer, Error> + Send + 'static,
) -> Result<(Incoming, Answer), Error> {
    let shared = Arc::clone(shared);
    let working = tokio::task::spawn_blocking(move || {
        let answer = work(&mut incoming)?;
        if let Then::Deliver(envelope) = &answer.then {
            deliver(&shared, envelope.clone());
        }
        Ok((incoming, answer))
    });
    working.await.map_err(std::io::Error::other)?
}

fn deliver(shared: &Shared, envelope: Envelope) {
    let received = &shared.metrics.snapshots.received;
    received.get_or_create(&label(envelope.from)).inc();
    if let Some(observer) = shared.observer() {
        observer.on_snapshot_received(envelope);
    }
}

async fn say(shared: &Shared, writer: &Mutex<OwnedWriteHalf>, frame: &Frame) -> Result<(), Error> {
    let bytes = wire::encode(frame);
    let mut writer = writer.lock().await;
    let writing = writer.write_all(&bytes);
    let result = tokio::time::timeout(shared.config.silence_timeout, writing).await;
    Ok(result.map_err(|_| Error::Silent)??)
}

/// Says something every ping period, so that the sender can tell a slow disk from a dead node.
async fn show_life(shared: &Shared, writer: &Mutex<OwnedWriteHalf>) -> Result<(), Error> {
    loop {
        tokio::time::sleep(shared.config.ping_period).await;
        say(shared, writer, &Frame::Alive).await?;
    }
}
