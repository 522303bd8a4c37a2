//! One replica and peers that say anything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use multiraft_engine::block::{Block, EntryKind};
use multiraft_engine::config::Config;
use multiraft_engine::description::{Description, Standing};
use multiraft_engine::raft::conf_change::{Change, ConfChange, Transition};
use multiraft_engine::raft::effects::Snapshot;
use multiraft_engine::raft::membership::{Member, MemberRole, Membership};
use multiraft_engine::raft::message::{
    AppendResponse, Envelope, JoinRefusal, JoinRequest, Message, VoteRequest,
};
use multiraft_engine::shard::{ApplyTask, Loaded, Shard, ShardInput, TurnEffects};
use multiraft_engine::snapshot::SnapshotDone;
use multiraft_engine::traits::{GroupWrite, Log, PeerAddress};
use multiraft_engine::types::{GroupId, HardState, Index, NodeId, Term};
use multiraft_logdb::sim::SimDisk;
use multiraft_logdb::{Identity, LogDb, Options, Writer};

use crate::sim::node::Marks;

const GROUP: GroupId = GroupId(1);
const NODES: u32 = 5;

fn id(id: u32) -> NodeId {
    NodeId::new(id).unwrap()
}

/// Messages that decode, of any content, from anybody, between ticks, proposals, syncs and crashes.
/// Nothing panics, and what must never go back does not.
pub fn raft_input(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let roles = input.arbitrary().unwrap_or(0);
    let mut bench = Bench::start(SimDisk::new(), roles, Promises::default());
    while !input.is_empty() {
        match bench.step(&mut input) {
            Ok(None) => {}
            Ok(Some(seed)) => bench = bench.crash(seed, roles),
            Err(_) => break,
        }
    }
}

/// What the replica has written and said.
#[derive(Default)]
struct Promises {
    written: HardState,
    last: Index,
    /// The highest end of the log that ever was durable.
    durable_last: Index,
    durable: HardState,
    votes: BTreeMap<Term, NodeId>,
    applied: Index,
}

struct Bench {
    disk: Arc<SimDisk>,
    log: Arc<LogDb>,
    writer: Writer,
    marks: Arc<Marks>,
    shard: Shard<u64, u64>,
    promises: Promises,
    /// What becomes durable with each ticket: hard state and end of the log.
    pending: VecDeque<(u64, HardState, Index)>,
    requests: u64,
}

impl Bench {
    fn start(disk: Arc<SimDisk>, roles: u8, mut promises: Promises) -> Self {
        let identity = Identity {
            cluster_id: 1,
            node: id(1),
        };
        let options = Options {
            segment_bytes: 64 << 10,
            cache_bytes: 1 << 10,
            min_free_bytes: 1,
            ..Options::new("", identity)
        };
        let (log, writer) = LogDb::open_on(Arc::<SimDisk>::clone(&disk), 1, options).unwrap();
        let marks = Arc::new(Marks::default());
        log.set_observer(Arc::<Marks>::clone(&marks));
        let mut shard = Shard::new(
            0,
            Config::new(id(1)),
            Arc::<LogDb>::clone(&log) as Arc<dyn Log>,
            1,
        );
        let stored = log.take_stored_groups();
        for group in &stored {
            let runs = group.terms.last();
            promises.last = runs.map_or(group.compacted.0, |run| run.1);
            let (found, durable) = (group.hard_state, promises.durable);
            assert!(found.term >= durable.term, "a term was lost");
            assert!(
                found.term > durable.term || durable.vote.is_none() || found.vote == durable.vote
            );
            (promises.written, promises.durable) = (found, found);
            promises.applied = group.compacted.0;
            let description = Description::decode(&group.meta).unwrap();
            if description.standing == Standing::Left {
                shard.restore_left(group, description.membership);
                continue;
            }
            let loaded = Loaded {
                description,
                applied: promises.applied,
                newest: None,
                recovered: None,
            };
            shard.restore(group, loaded);
        }
        let mut bench = Self {
            disk,
            log,
            writer,
            marks,
            shard,
            promises,
            pending: VecDeque::new(),
            requests: 0,
        };
        if stored.is_empty() {
            let durable = bench.promises.durable;
            assert_eq!(durable, HardState::default(), "a group was lost");
            let promises = &mut bench.promises;
            promises.written = HardState::default();
            (promises.last, promises.applied) = (Index::ZERO, Index::ZERO);
            let bootstrap = ShardInput::Bootstrap(GROUP, membership(roles), Box::new(|_| ()));
            bench.turn(bootstrap);
        }
        bench
    }

    fn crash(self, seed: u64, roles: u8) -> Self {
        let Self { disk, promises, .. } = self;
        disk.crash(seed);
        Self::start(disk, roles, promises)
    }

    /// The seed of a crash, if there is to be one.
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<Option<u64>> {
        self.requests += 1;
        let request = self.requests;
        let shard_input = match input.int_in_range(0..=31)? {
            0..4 => ShardInput::Tick,
            4 => ShardInput::Propose(GROUP, payload(input)?, request),
            5 => ShardInput::Read(GROUP, request),
            6 => ShardInput::PeerDown(node(input)?),
            7 => ShardInput::TransferLeadership(GROUP, node(input)?),
            8 => ShardInput::ChangeMembership(GROUP, change(input)?, Box::new(|_| ())),
            9 => ShardInput::Compact(GROUP, self.promises.applied),
            10..14 => {
                self.sync();
                return Ok(None);
            }
            14 => return Ok(Some(input.arbitrary::<u8>()?.into())),
            15 => {
                for _ in 0..25 {
                    self.turn(ShardInput::Tick);
                    self.sync();
                }
                return Ok(None);
            }
            16 => ShardInput::MakeSnapshot(GROUP),
            17 => match input.int_in_range(0..=3)? {
                0 => ShardInput::Leave(GROUP, Box::new(|_| ())),
                1 => ShardInput::GiveUp(GROUP),
                _ => ShardInput::Join(GROUP, membership(input.arbitrary()?), Box::new(|_| ())),
            },
            _ => match envelope(input)? {
                // With its file, as a rule; one without it must change nothing.
                envelope
                    if matches!(envelope.message, Message::InstallSnapshot { .. })
                        && input.ratio(7, 8)? =>
                {
                    ShardInput::SnapshotReceived(envelope)
                }
                envelope => ShardInput::Messages(vec![envelope]),
            },
        };
        self.turn(shard_input);
        Ok(None)
    }

    fn sync(&mut self) {
        self.writer.turn();
        for (_, ticket) in self.marks.take_durable() {
            while let Some(&(at, hard_state, last)) = self.pending.front() {
                if at > ticket {
                    break;
                }
                self.pending.pop_front();
                self.promises.durable = hard_state;
                self.promises.durable_last = self.promises.durable_last.max(last);
                if let Some(vote) = hard_state.vote {
                    let before = self.promises.votes.insert(hard_state.term, vote);
                    assert!(
                        before.is_none_or(|before| before == vote),
                        "two votes in a term"
                    );
                }
            }
            self.turn(ShardInput::Durable(ticket));
        }
        self.log.prepare().unwrap();
    }

    fn turn(&mut self, input: ShardInput<u64, u64>) {
        let mut inputs = vec![input];
        loop {
            let effects = self.shard.turn(std::mem::take(&mut inputs));
            let wants_turn = effects.wants_turn;
            inputs = self.carry_out(effects);
            if inputs.is_empty() && !wants_turn {
                return;
            }
        }
    }

    /// Checks and does what a turn asks for; gives what the apply stage answers.
    fn carry_out(&mut self, effects: TurnEffects<u64, u64>) -> Vec<ShardInput<u64, u64>> {
        if let Some(batch) = effects.write {
            for write in &batch.writes {
                self.check_write(write);
            }
            self.pending
                .push_back((batch.ticket, self.promises.written, self.promises.last));
            self.log.append(batch).unwrap();
        }
        for envelope in &effects.send {
            assert!(
                envelope.from == id(1) && envelope.to != id(1),
                "{envelope:?}"
            );
            self.check_promise(envelope);
        }
        let mut answers = Vec::new();
        for task in effects.apply {
            answers.extend(self.apply(task));
        }
        answers
    }

    fn apply(&mut self, task: ApplyTask<u64>) -> Option<ShardInput<u64, u64>> {
        match task {
            ApplyTask::Apply(_, blocks) => {
                for block in blocks {
                    assert_eq!(
                        block.first(),
                        self.promises.applied.next(),
                        "a gap in what is applied"
                    );
                    assert!(
                        block.last() <= self.promises.durable_last,
                        "applied before it is durable"
                    );
                    self.promises.applied = block.last();
                }
                Some(self.applied())
            }
            ApplyTask::Pass(_, index) => {
                self.promises.applied = index;
                Some(self.applied())
            }
            ApplyTask::Save(_, snapshot) => {
                assert_eq!(snapshot.index, self.promises.applied, "another state");
                let removed = Vec::new();
                let is_saved = !snapshot.index.0.is_multiple_of(3);
                let saved = SnapshotDone::Saved { snapshot, removed };
                let done = if is_saved {
                    saved
                } else {
                    SnapshotDone::NotSaved
                };
                Some(ShardInput::SnapshotDone(GROUP, done))
            }
            ApplyTask::Restore(_, snapshot) => {
                assert!(
                    snapshot.index <= self.promises.durable_last,
                    "taken over before the log has restarted"
                );
                let index = snapshot.index;
                let done = if index.0.is_multiple_of(5) {
                    SnapshotDone::Lost(index)
                } else {
                    self.promises.applied = index;
                    let removed = Vec::new();
                    SnapshotDone::Restored { snapshot, removed }
                };
                Some(ShardInput::SnapshotDone(GROUP, done))
            }
            ApplyTask::Remove(_) => {
                // Not with the removal's write: the apply stage may still have work of that life then.
                self.promises.applied = Index::ZERO;
                let removed = SnapshotDone::Removed(Vec::new());
                Some(ShardInput::SnapshotDone(GROUP, removed))
            }
            ApplyTask::Await(..) | ApplyTask::GiveUp => None,
        }
    }

    fn applied(&self) -> ShardInput<u64, u64> {
        ShardInput::Applied(vec![(GROUP, self.promises.applied)])
    }

    fn check_write(&mut self, write: &GroupWrite) {
        let promises = &mut self.promises;
        if write.remove {
            let before = promises.written;
            assert!(
                write.hard_state.is_some() || before.term == Term::ZERO,
                "who has voted leaves and forgets it"
            );
            promises.written.commit = Index::ZERO;
            promises.last = Index::ZERO;
        }
        if let Some(hard_state) = write.hard_state {
            let before = promises.written;
            assert!(hard_state.term >= before.term, "the term goes back");
            assert!(
                hard_state.commit >= before.commit,
                "the commit index goes back"
            );
            let is_same = hard_state.term == before.term && before.vote.is_some();
            assert!(!is_same || hard_state.vote == before.vote, "a second vote");
            promises.written = hard_state;
        }
        if let Some((index, _)) = write.restart_after {
            promises.last = index;
            promises.applied = index;
        }
        if let Some(from) = write.truncate_from {
            assert!(from > promises.applied, "what was applied is cut");
            promises.last = from.prev();
        }
        for block in &write.blocks {
            assert_eq!(block.first(), promises.last.next(), "a gap in the log");
            promises.last = block.last();
        }
    }

    fn check_promise(&self, envelope: &Envelope) {
        match &envelope.message {
            Message::RequestVoteResponse { granted: true, .. } => {
                let vote = self.promises.votes.get(&envelope.term);
                assert_eq!(vote, Some(&envelope.to), "a vote that is not durable");
            }
            Message::AppendEntriesResponse(AppendResponse::Accepted { last }) => {
                assert!(
                    *last <= self.promises.durable_last,
                    "accepted before it is durable"
                );
            }
            _ => {}
        }
    }
}

/// Two voters with data, and two members that the bits decide.
fn membership(roles: u8) -> Membership {
    let member = |number: u32| {
        let role = match roles >> (2 * (number - 1)) & 3 {
            2 if number > 2 => MemberRole::Learner,
            3 if number > 2 => MemberRole::Witness,
            _ => MemberRole::Voter,
        };
        let host = format!("n{number}");
        let address = PeerAddress { host, port: 1 };
        (id(number), Member { role, address })
    };
    Membership::new((1..=3 + u32::from(roles & 1)).map(member).collect())
}

/// Mostly small, sometimes of any size.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        small @ 0..240 => u64::from(small % 16),
        240..250 => u64::from(input.arbitrary::<u16>()?),
        250..253 => u64::MAX - u64::from(input.arbitrary::<u8>()?),
        _ => input.arbitrary()?,
    })
}

fn node(input: &mut Unstructured<'_>) -> Result<NodeId> {
    Ok(id(input.int_in_range(1..=NODES)?))
}

fn payload(input: &mut Unstructured<'_>) -> Result<Bytes> {
    let length = input.int_in_range(0..=20)?;
    Ok(Bytes::from(vec![7; length]))
}

fn change(input: &mut Unstructured<'_>) -> Result<ConfChange> {
    let transition =
        *input.choose(&[Transition::Auto, Transition::Implicit, Transition::Explicit])?;
    let mut changes = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let node = node(input)?;
        changes.push(match input.int_in_range(0..=4)? {
            0 => Change::Voter(node),
            1 => Change::Learner(node),
            2 => Change::Witness(node),
            3 => Change::Remove(node),
            _ => Change::Update(node),
        });
    }
    Ok(ConfChange::new(transition, changes))
}

fn blocks(input: &mut Unstructured<'_>, after: u64) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut first = if input.ratio(7, 8)? {
        after.wrapping_add(1)
    } else {
        number(input)?
    };
    for _ in 0..input.int_in_range(0..=3)? {
        let term = Term(number(input)?);
        let mut entries = Vec::new();
        for _ in 0..input.int_in_range(1..=4)? {
            entries.push(match input.int_in_range(0..=5)? {
                0 => (EntryKind::ConfChange, change(input)?.encode()),
                1 => (EntryKind::ConfChange, payload(input)?),
                2 => (EntryKind::Noop, Bytes::new()),
                _ => (EntryKind::Normal, payload(input)?),
            });
        }
        let block = Block::encode(Index(first.max(1)), term, &entries);
        // Only what a peer could have sent.
        if let Ok(block) = Block::decode(block.bytes().clone()) {
            first = block.last().0.wrapping_add(1);
            blocks.push(block);
        }
    }
    Ok(blocks)
}

fn vote(input: &mut Unstructured<'_>) -> Result<VoteRequest> {
    Ok(VoteRequest {
        last_index: Index(number(input)?),
        last_term: Term(number(input)?),
        transfer: input.arbitrary()?,
        configuration: Index(number(input)?),
    })
}

fn index_or_none(input: &mut Unstructured<'_>) -> Result<Option<Index>> {
    Ok(if input.arbitrary()? {
        Some(Index(number(input)?))
    } else {
        None
    })
}

fn envelope(input: &mut Unstructured<'_>) -> Result<Envelope> {
    let is_ours = input.ratio(31, 32)?;
    Ok(Envelope {
        group: if is_ours {
            GROUP
        } else {
            GroupId(input.arbitrary()?)
        },
        from: node(input)?,
        to: if is_ours { id(1) } else { node(input)? },
        term: Term(number(input)?),
        incarnation: input.int_in_range(0..=2)?,
        message: message(input)?,
    })
}

fn message(input: &mut Unstructured<'_>) -> Result<Message> {
    Ok(match input.int_in_range(0..=24)? {
        0 => Message::PreVote(vote(input)?),
        1 => Message::PreVoteResponse {
            granted: input.arbitrary()?,
        },
        2 => Message::RequestVote(vote(input)?),
        3 => Message::RequestVoteResponse {
            granted: input.arbitrary()?,
            last_index: Index(number(input)?),
            last_term: Term(number(input)?),
        },
        4..8 => {
            let prev_index = number(input)?;
            Message::AppendEntries {
                prev_index: Index(prev_index),
                prev_term: Term(number(input)?),
                commit: Index(number(input)?),
                blocks: blocks(input, prev_index)?,
            }
        }
        8 => Message::AppendEntriesResponse(AppendResponse::Accepted {
            last: Index(number(input)?),
        }),
        9 => Message::AppendEntriesResponse(AppendResponse::Rejected {
            prev: Index(number(input)?),
            hint_index: Index(number(input)?),
            hint_term: Term(number(input)?),
            last: Index(number(input)?),
        }),
        20 => Message::AppendEntriesResponse(AppendResponse::StateMissing {
            from: Index(number(input)?),
        }),
        10 => Message::Heartbeat {
            commit: Index(number(input)?),
            read_round: number(input)?,
        },
        11 => Message::HeartbeatResponse {
            read_round: number(input)?,
        },
        12 => Message::InstallSnapshot {
            snapshot: Snapshot {
                index: Index(number(input)?),
                term: Term(number(input)?),
                membership: membership(input.arbitrary()?),
            },
        },
        13 => Message::TimeoutNow,
        14 => Message::TransferLeadership { to: node(input)? },
        15 => Message::ProposeConfChange {
            request: number(input)?,
            change: change(input)?,
        },
        16 => Message::Propose {
            first_request: number(input)?,
            payloads: vec![payload(input)?; input.int_in_range(0..=3)?],
        },
        17 => Message::ProposeResponse {
            first_request: number(input)?,
            count: input.arbitrary::<u8>()?.into(),
            index: index_or_none(input)?,
        },
        18 => Message::ReadIndex {
            request: number(input)?,
        },
        21 => Message::AmIMember,
        22 => Message::Removed {
            membership: Membership {
                index: Index(number(input)?),
                ..membership(input.arbitrary()?)
            },
            applied: Index(number(input)?),
        },
        23 => Message::Join(JoinRequest {
            node: node(input)?,
            incarnation: number(input)?,
            member: Member {
                role: [MemberRole::Voter, MemberRole::Learner, MemberRole::Witness]
                    [input.int_in_range(0..=2)?],
                address: PeerAddress {
                    host: String::new(),
                    port: input.arbitrary()?,
                },
            },
        }),
        24 => Message::JoinRefused(JoinRefusal::OtherRole),
        _ => Message::ReadIndexResponse {
            request: number(input)?,
            index: index_or_none(input)?,
        },
    })
}
