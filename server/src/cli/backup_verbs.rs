//! `export` and `import`: a group's state as a file.
//!
//! ```text
//! file = "MRBACKUP" | part …      each part a multiraft.admin.v1.BackupPart behind its length, u32 little endian
//! ```

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::path::Path;

use indicatif::HumanBytes;
use multiraft_proto::admin::backup_part::Part;
use multiraft_proto::admin::import_request::Part as ImportPart;
use multiraft_proto::admin::{BackupPart, ExportRequest, ImportRequest, ImportResponse};
use multiraft_proto::node::GroupConfig;
use prost::Message;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::client::Client;
use super::member_verbs::{join_as, own_member, status_of};
use super::output::print_answer;
use super::{AddArgs, ExportArgs, Failure, ImportArgs, RoleName};

const MAGIC: [u8; 8] = *b"MRBACKUP";
/// No part is longer: a length that is, is damage.
const MAX_PART_BYTES: u32 = 2 << 20;
/// Parts read ahead.
const PARTS_QUEUED: usize = 4;

fn at_file(path: &Path, source: io::Error) -> Failure {
    Failure::File {
        path: path.to_owned(),
        source,
    }
}

/// The name under which a file is written until it is whole.
fn partial_name(path: &Path) -> std::path::PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(".partial");
    path.with_file_name(name)
}

pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    let client = Client::connect_any(&args.connection).await?;
    let partial = partial_name(&args.file);
    let exported = export_to(&client, &args, &partial).await;
    let end = match exported {
        Ok(end) => end,
        Err(failure) => {
            // What is there is of no use; if it cannot be deleted, its name says what it is.
            tokio::fs::remove_file(&partial).await.ok();
            return Err(failure);
        }
    };
    let text = format!(
        "wrote group {} to {}: {}, sha256 {}",
        args.group,
        args.file.display(),
        HumanBytes(end.bytes),
        hex(&end.sha256)
    );
    print_answer("export", args.connection.json, &end, &text)
}

async fn export_to(
    client: &Client,
    args: &ExportArgs,
    partial: &Path,
) -> Result<multiraft_proto::admin::BackupEnd, Failure> {
    let mut admin = client.admin();
    let request = Request::new(ExportRequest {
        group_id: args.group,
    });
    let mut parts = client.answer("export", admin.export(request)).await?;
    let file = File::create(partial).await;
    let mut file = BufWriter::new(file.map_err(|source| at_file(partial, source))?);
    let written = async |file: &mut BufWriter<File>, bytes: &[u8]| {
        let written = file.write_all(bytes).await;
        written.map_err(|source| at_file(partial, source))
    };
    written(&mut file, &MAGIC).await?;
    let mut end = None;
    while let Some(part) = client.next("export", &mut parts).await? {
        let bytes = part.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        written(&mut file, &length.to_le_bytes()).await?;
        written(&mut file, &bytes).await?;
        if let Some(Part::End(told)) = part.part {
            end = Some(told);
        }
    }
    let end = end.ok_or(Failure::Refused {
        what: "export",
        message: "the node ended the copy too early: try again".to_owned(),
    })?;
    let durable = async {
        file.flush().await?;
        file.get_ref().sync_all().await?;
        tokio::fs::rename(partial, &args.file).await
    };
    durable
        .await
        .map_err(|source| at_file(&args.file, source))?;
    Ok(end)
}

pub(super) async fn import(args: ImportArgs) -> Result<(), Failure> {
    let [first, others @ ..] = args.connection.endpoint.as_slice() else {
        return Err(Failure::Usage {
            message: "--endpoint is empty".to_owned(),
        });
    };
    let client = Client::connect(first, args.connection.timeout).await?;
    let answer = import_at(&client, &args).await?;
    let text = format!(
        "group {} runs at {first} with the state of {}, sha256 {}",
        args.group,
        args.file.display(),
        hex(&answer.sha256)
    );
    print_answer("import", args.connection.json, &answer, &text)?;
    for endpoint in others {
        let status = status_of(&client, args.group).await?;
        let members = status.groups.into_iter().flat_map(|group| group.members);
        let add = AddArgs {
            group: args.group,
            new: endpoint.clone(),
            role: RoleName::Member,
            raft_address: None,
            connection: args.connection.clone(),
        };
        let new = join_as(&add, members.collect()).await?;
        if !args.connection.json {
            super::print_line(&format!("node {} is in group {}", new.node_id, args.group))?;
        }
    }
    Ok(())
}

/// Starts the group on one node.
async fn import_at(client: &Client, args: &ImportArgs) -> Result<ImportResponse, Failure> {
    let path = &args.file;
    let file = File::open(path).await;
    let mut file = BufReader::new(file.map_err(|source| at_file(path, source))?);
    let mut magic = [0; MAGIC.len()];
    let read = file.read_exact(&mut magic).await;
    if read.is_err() || magic != MAGIC {
        return Err(Failure::Refused {
            what: "import",
            message: format!(
                "{} is no backup that `multiraft export` wrote",
                path.display()
            ),
        });
    }
    let own = own_member(client, None).await?;
    let group = GroupConfig {
        group_id: args.group,
        members: vec![own],
    };
    let (sender, receiver) = mpsc::channel(PARTS_QUEUED);
    let sending = async {
        let first = ImportRequest {
            part: Some(ImportPart::Group(group)),
        };
        if sender.send(first).await.is_err() {
            return Ok(()); // the node has answered already
        }
        while let Some(part) = read_part(&mut file).await? {
            let part = Some(ImportPart::Backup(part));
            if sender.send(ImportRequest { part }).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok(())
    };
    let mut admin = client.admin();
    let stream = ReceiverStream::new(receiver);
    let (sent, answer) = tokio::join!(sending, admin.import(Request::new(stream)));
    sent.map_err(|source| at_file(path, source))?;
    let answer = answer.map_err(|status| client.failure("import", status))?;
    Ok(answer.into_inner())
}

/// The next part, or `None` at the end of the file.
async fn read_part(file: &mut BufReader<File>) -> io::Result<Option<BackupPart>> {
    if file.fill_buf().await?.is_empty() {
        return Ok(None);
    }
    let length = file.read_u32_le().await?;
    if length > MAX_PART_BYTES {
        let error = "the backup is damaged: a part is too long";
        return Err(io::Error::new(ErrorKind::InvalidData, error));
    }
    let mut bytes = Vec::new();
    file.take(length.into()).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 != u64::from(length) {
        let error = "the backup is cut short";
        return Err(io::Error::new(ErrorKind::UnexpectedEof, error));
    }
    let part = BackupPart::decode(bytes.as_slice());
    part.map(Some)
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes all");
        text
    })
}
