//! The snapshots that are to be sent: who waits, who is under way, and what watchers are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use multiraft_engine::raft::message::{Envelope, Message};
use multiraft_engine::snapshot::{SnapshotSending, Travelling};
use multiraft_engine::traits::TransportObserver;
use multiraft_engine::types::{GroupId, NodeId};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::{Shared, send};
use crate::address::Addresses;
use crate::metrics::{SnapshotMetrics, label};
use crate::snapshot::rate::RateLimit;

/// All sends of a node.
pub struct Sends {
    shared: Arc<Shared>,
    runtime: Handle,
    open: Mutex<Open>,
    queue: mpsc::Sender<Job>,
    jobs: Mutex<Option<mpsc::Receiver<Job>>>,
    rate: Arc<Mutex<RateLimit>>,
    /// When a peer was last given up because it could not be reached: what was queued for it before
    /// is given up too. Else 1. a peer dies for which a thousand snapshots wait; 2. every one of them
    /// takes a place for a whole stall time-out; 3. the snapshots for all others wait for hours.
    unreachable: Mutex<BTreeMap<NodeId, Duration>>,
}

#[derive(Default)]
struct Open {
    closed: bool,
    reports: BTreeMap<(NodeId, GroupId), Arc<Report>>,
}

/// A send that waits for its turn.
pub struct Job {
    pub envelope: Envelope,
    pub addresses: watch::Receiver<Addresses>,
    pub ticket: Ticket,
    queued: Duration,
}

/// A send's right to tell watchers; dropping it tells them that it was aborted.
pub struct Ticket {
    sends: Arc<Sends>,
    report: Arc<Report>,
    end: SnapshotSending,
}

/// What watchers know of a send. The lock is held while they are told, so that the order is right
/// also when the transport ends at the same time.
struct Report {
    travelling: Travelling,
    observer: Arc<dyn TransportObserver>,
    metrics: SnapshotMetrics,
    told: Mutex<Option<SnapshotSending>>,
}

impl Report {
    fn tell(&self, sending: SnapshotSending) {
        let mut told = self.told.lock();
        let label = label(self.travelling.to);
        let ended = match (*told, sending) {
            (None, SnapshotSending::Started) => None,
            (None | Some(SnapshotSending::Started), SnapshotSending::Completed) => {
                Some(&self.metrics.sends_completed)
            }
            (None | Some(SnapshotSending::Started), SnapshotSending::Aborted) => {
                Some(&self.metrics.sends_aborted)
            }
            (Some(_), _) => return,
        };
        *told = Some(sending);
        if let Some(counter) = ended {
            counter.get_or_create(&label).inc();
            self.metrics.sends_open.get_or_create(&label).dec();
        }
        self.observer.on_snapshot_sending(self.travelling, sending);
    }
}

impl Ticket {
    /// The first chunk is about to leave, or the end is near: told when the ticket is dropped, when
    /// the place of this send is free again.
    pub fn tell(&mut self, sending: SnapshotSending) {
        match sending {
            SnapshotSending::Started => self.report.tell(sending),
            SnapshotSending::Completed | SnapshotSending::Aborted => self.end = sending,
        }
    }

    /// What travels.
    pub fn travelling(&self) -> Travelling {
        self.report.travelling
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Travelling { group, to, .. } = self.report.travelling;
        let mut open = self.sends.open.lock();
        let own = |report: &Arc<Report>| Arc::ptr_eq(report, &self.report);
        if open.reports.get(&(to, group)).is_some_and(own) {
            open.reports.remove(&(to, group));
        }
        drop(open);
        self.report.tell(self.end);
    }
}

impl Sends {
    pub fn new(shared: Arc<Shared>, runtime: Handle) -> Arc<Self> {
        let limits = &shared.config.snapshots;
        let (queue, jobs) = mpsc::channel(limits.queued_sends);
        let rate = Arc::new(Mutex::new(RateLimit::new(limits.bytes_per_second)));
        Arc::new(Self {
            shared,
            runtime,
            open: Mutex::default(),
            queue,
            jobs: Mutex::new(Some(jobs)),
            rate,
            unreachable: Mutex::default(),
        })
    }

    /// Queues a send. One without an address, beyond the queue's limit, or of a group of which a
    /// snapshot is still on its way to the same peer, is aborted. The last for this reason: two
    /// transfers would take the receiver's place from each other for ever.
    pub fn send(
        self: &Arc<Self>,
        envelope: Envelope,
        addresses: Option<watch::Receiver<Addresses>>,
    ) {
        let Message::InstallSnapshot { snapshot } = &envelope.message else {
            panic!("send_snapshot is for InstallSnapshot alone");
        };
        let Some(observer) = self.shared.observer() else {
            return; // nobody to tell, before the start and after the end
        };
        let travelling = Travelling {
            group: envelope.group,
            to: envelope.to,
            index: snapshot.index,
        };
        let (ticket, is_first) = self.ticket(travelling, observer);
        let addresses = addresses.filter(|known| is_first && known.borrow().dialled().is_some());
        let refused = match addresses {
            None => Some(ticket),
            Some(addresses) => {
                let job = Job {
                    envelope,
                    addresses,
                    ticket,
                    queued: self.shared.now(),
                };
                let result = self.queue.try_send(job);
                result.err().map(|full| full.into_inner().ticket)
            }
        };
        if let Some(ticket) = refused {
            tracing::debug!(?travelling, "a snapshot is not sent");
            // Told on a thread of ours: the caller may hold what its observer needs.
            self.runtime.spawn(async move { drop(ticket) });
        }
    }

    /// A ticket, and whether nothing else is open of this group to this peer.
    fn ticket(
        self: &Arc<Self>,
        travelling: Travelling,
        observer: Arc<dyn TransportObserver>,
    ) -> (Ticket, bool) {
        let metrics = self.shared.metrics.snapshots.clone();
        metrics
            .sends_open
            .get_or_create(&label(travelling.to))
            .inc();
        let report = Arc::new(Report {
            travelling,
            observer,
            metrics,
            told: Mutex::default(),
        });
        let mut open = self.open.lock();
        let place = (travelling.to, travelling.group);
        let is_first = !open.closed && !open.reports.contains_key(&place);
        if is_first {
            open.reports.insert(place, Arc::clone(&report));
        }
        let ticket = Ticket {
            sends: Arc::clone(self),
            report,
            end: SnapshotSending::Aborted,
        };
        (ticket, is_first)
    }

    /// Runs a few at once, in the order in which they came.
    pub async fn work(&self) {
        let Some(mut jobs) = self.jobs.lock().take() else {
            return;
        };
        let places = Arc::new(Semaphore::new(self.shared.config.snapshots.parallel_sends));
        let mut running = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            while running.try_join_next().is_some() {}
            let Some(job) = jobs.recv().await else {
                return;
            };
            if self.was_unreachable_since(&job) {
                continue;
            }
            let (shared, rate) = (Arc::clone(&self.shared), Arc::clone(&self.rate));
            running.spawn(async move {
                send::run(shared, rate, job).await;
                drop(place);
            });
        }
    }

    fn was_unreachable_since(&self, job: &Job) -> bool {
        let given_up = self.unreachable.lock().get(&job.envelope.to).copied();
        given_up.is_some_and(|given_up| job.queued < given_up)
    }

    /// A peer was given up because it could not be reached.
    pub fn on_unreachable(&self, node: NodeId) {
        self.unreachable.lock().insert(node, self.shared.now());
    }

    /// Aborts all.
    pub fn shut_down(&self) {
        let mut open = self.open.lock();
        open.closed = true;
        let reports = std::mem::take(&mut open.reports);
        drop(open);
        for report in reports.into_values() {
            report.tell(SnapshotSending::Aborted);
        }
    }
}

impl Ticket {
    /// The peer cannot be reached: others that wait for it need not try.
    pub fn on_unreachable(&self) {
        self.sends.on_unreachable(self.report.travelling.to);
    }
}
