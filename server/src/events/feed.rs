//! What happened lately, for any number of watchers, at a cost that does not grow with their number.
//!
//! ```text
//! shard ─ publish ─▶ ring ◀─ takes what is new ─ watcher ◀─ woken, in turn ─ Feed::wake_watchers
//! ```
//!
//! Whoever publishes puts an event into the ring, and wakes one task at most. Each wake-up of a watcher
//! costs a pass through gRPC and a write to a socket, whether there is one event or a hundred: so that task
//! wakes only [`LOT`] watchers each [`PAUSE`], in the order in which they began to wait. The more
//! watchers there are, the later each is woken, and the more it gets at once.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use multiraft_proto::node::Event;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio_stream::Stream;

/// Events that a watcher may lag behind before it is cut off.
pub const RING_EVENTS: usize = 16 << 10;
/// Watchers that are woken at once.
pub const LOT: usize = 5;
/// The time from one lot to the next. With [`LOT`], 250 watchers are woken in a second. Measured in BENCHMARKS.md.
pub const PAUSE: Duration = Duration::from_millis(20);
/// Events that a watcher takes out of the ring at once, so that others get at it in between.
const TAKEN_EVENTS: usize = 64;

/// See the module's documentation.
#[derive(Default)]
pub struct Feed {
    ring: Mutex<Ring>,
    published: Notify,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Event>,
    /// Events published so far: the number of the next one.
    end: u64,
    /// Watchers that have seen everything up to when they came, by ticket: the first has waited longest.
    waiting: BTreeMap<u64, Waiting>,
    next_ticket: u64,
}

struct Waiting {
    /// [`Ring::end`] then. It never goes back, so no later ticket has seen less.
    seen: u64,
    wake: oneshot::Sender<()>,
}

/// The watcher was too slow: so many events were dropped before it took them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were lost")]
pub struct Lost(pub u64);

/// Each event once, in order, from when it was made on. It ends with the first loss.
pub struct Watcher {
    feed: Arc<Feed>,
    /// The number of the first event not taken.
    next: u64,
    taken: std::vec::IntoIter<Event>,
    place: Option<Place>,
    has_lost: bool,
}

/// A watcher's place among those that wait.
struct Place {
    ticket: u64,
    woken: oneshot::Receiver<()>,
}

enum Taken {
    Events(Vec<Event>),
    Lost(Lost),
    Nothing(Place),
}

impl Feed {
    /// Adds an event, and drops the oldest of a full ring.
    pub fn publish(&self, event: Event) {
        let mut ring = self.ring.lock();
        if ring.events.len() == RING_EVENTS {
            ring.events.pop_front();
        }
        ring.events.push_back(event);
        ring.end += 1;
        drop(ring);
        self.published.notify_one();
    }

    /// A watcher of what is published from now on.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        Watcher {
            feed: Arc::clone(self),
            next: self.ring.lock().end,
            taken: Vec::new().into_iter(),
            place: None,
            has_lost: false,
        }
    }

    /// Wakes those who wait for what was published, until it is dropped. Without it they wait for ever.
    pub async fn wake_watchers(&self) {
        loop {
            let lot = self.ring.lock().take_lot();
            if lot.is_empty() {
                self.published.notified().await; // at once if anything came since the look
                continue;
            }
            for wake in lot {
                if wake.send(()).is_err() {
                    tracing::trace!("a watcher left before its turn");
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Ring {
    /// Those who have waited longest for something that is there now.
    fn take_lot(&mut self) -> Vec<oneshot::Sender<()>> {
        let mut lot = Vec::new();
        while lot.len() < LOT {
            match self.waiting.first_entry() {
                Some(first) if first.get().seen < self.end => lot.push(first.remove().wake),
                _ => break,
            }
        }
        lot
    }

    fn take(&mut self, next: &mut u64) -> Taken {
        let first = self.end - self.events.len() as u64;
        if *next < first {
            return Taken::Lost(Lost(first - *next));
        }
        if *next == self.end {
            return Taken::Nothing(self.wait());
        }
        let skipped = usize::try_from(*next - first).expect("it is within the ring");
        let events = self.events.range(skipped..).take(TAKEN_EVENTS);
        let events: Vec<Event> = events.cloned().collect();
        *next += events.len() as u64;
        Taken::Events(events)
    }

    fn wait(&mut self) -> Place {
        let (wake, woken) = oneshot::channel();
        let (ticket, seen) = (self.next_ticket, self.end);
        self.next_ticket += 1;
        self.waiting.insert(ticket, Waiting { seen, wake });
        Place { ticket, woken }
    }
}

impl Stream for Watcher {
    type Item = Result<Event, Lost>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.has_lost {
            if let Some(event) = this.taken.next() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(place) = &mut this.place {
                // A sender is never dropped unused: a place is given up by its watcher alone.
                let woken = ready!(Pin::new(&mut place.woken).poll(cx));
                debug_assert_eq!(woken, Ok(()));
                this.place = None;
            }
            match this.feed.ring.lock().take(&mut this.next) {
                Taken::Events(events) => this.taken = events.into_iter(),
                Taken::Nothing(place) => this.place = Some(place),
                Taken::Lost(lost) => {
                    this.has_lost = true;
                    return Poll::Ready(Some(Err(lost)));
                }
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            self.feed.ring.lock().waiting.remove(&place.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use multiraft_proto::node::LeaderUpdatedEvent;
    use multiraft_proto::node::event::Event as Kind;
    use tokio::task::JoinSet;
    use tokio_stream::StreamExt;

    use super::*;

    fn event(term: u64) -> Event {
        let updated = LeaderUpdatedEvent {
            group_id: 1,
            term,
            leader: 1,
        };
        Event {
            timestamp: None,
            event: Some(Kind::LeaderUpdated(updated)),
        }
    }

    fn look(watcher: &mut Watcher) -> Poll<Option<Result<Event, Lost>>> {
        Pin::new(watcher).poll_next(&mut Context::from_waker(Waker::noop()))
    }

    fn has(event: Event) -> Poll<Option<Result<Event, Lost>>> {
        Poll::Ready(Some(Ok(event)))
    }

    fn wake_lot(feed: &Feed) -> usize {
        let lot = feed.ring.lock().take_lot();
        lot.into_iter()
            .filter_map(|wake| wake.send(()).ok())
            .count()
    }

    #[test]
    fn a_watcher_gets_what_is_new_in_order_and_then_waits_for_its_turn() {
        let feed = Arc::<Feed>::default();
        feed.publish(event(1));
        let mut watcher = feed.watch();
        for term in 2..200 {
            feed.publish(event(term)); // more than are taken at once
        }
        for term in 2..200 {
            assert_eq!(look(&mut watcher), has(event(term)));
        }
        assert_eq!(look(&mut watcher), Poll::Pending);
        feed.publish(event(200));
        assert_eq!(look(&mut watcher), Poll::Pending, "its turn has not come");
        assert_eq!(wake_lot(&feed), 1);
        assert_eq!(look(&mut watcher), has(event(200)));
    }

    #[test]
    fn those_who_waited_longest_are_woken_first_and_nobody_for_nothing() {
        let feed = Arc::<Feed>::default();
        let mut watchers: Vec<Watcher> = (0..=LOT).map(|_| feed.watch()).collect();
        for watcher in &mut watchers {
            assert_eq!(look(watcher), Poll::Pending);
        }
        assert_eq!(wake_lot(&feed), 0, "nothing has happened");
        feed.publish(event(1));
        assert_eq!(wake_lot(&feed), LOT);
        let (last, lot) = watchers.split_last_mut().expect("there are some");
        for watcher in &mut *lot {
            assert_eq!(look(watcher), has(event(1)));
            assert_eq!(look(watcher), Poll::Pending);
        }
        feed.publish(event(2));
        assert_eq!(wake_lot(&feed), LOT);
        assert_eq!(
            look(last),
            has(event(1)),
            "it came before the second turn of others"
        );
        assert_eq!(look(last), has(event(2)));
        assert_eq!(
            look(&mut lot[LOT - 1]),
            Poll::Pending,
            "the next lot has it"
        );
        assert_eq!(wake_lot(&feed), 1);
        assert_eq!(look(&mut lot[LOT - 1]), has(event(2)));
        assert_eq!(wake_lot(&feed), 0, "all are told");
    }

    #[test]
    fn who_leaves_keeps_no_place() {
        let feed = Arc::<Feed>::default();
        let mut watcher = feed.watch();
        assert_eq!(look(&mut watcher), Poll::Pending);
        assert_eq!(feed.ring.lock().waiting.len(), 1);
        drop(watcher);
        assert_eq!(feed.ring.lock().waiting.len(), 0);
    }

    #[test]
    fn a_watcher_behind_the_ring_learns_how_much_it_lost_and_ends() {
        let feed = Arc::<Feed>::default();
        let mut watcher = feed.watch();
        for term in 0..RING_EVENTS as u64 + 5 {
            feed.publish(event(term));
        }
        assert_eq!(look(&mut watcher), Poll::Ready(Some(Err(Lost(5)))));
        assert_eq!(look(&mut watcher), Poll::Ready(None));
        let mut watcher = feed.watch();
        assert_eq!(look(&mut watcher), Poll::Pending, "a new one begins anew");
        feed.publish(event(7));
        assert_eq!(wake_lot(&feed), 1);
        assert_eq!(look(&mut watcher), has(event(7)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_watchers_are_woken_also_while_more_happens() {
        const EVENTS: u16 = 500;
        let feed = Arc::<Feed>::default();
        let mut waking = JoinSet::new();
        let woken = Arc::clone(&feed);
        waking.spawn(async move { woken.wake_watchers().await });
        let mut watching = JoinSet::new();
        for _ in 0..5 * LOT {
            let watcher = feed.watch().take(usize::from(EVENTS));
            watching.spawn(watcher.collect::<Vec<_>>());
        }
        for term in 0..EVENTS {
            feed.publish(event(u64::from(term)));
            if term % 100 == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        let expected: Vec<Result<Event, Lost>> =
            (0..EVENTS).map(|term| Ok(event(u64::from(term)))).collect();
        while let Some(seen) = watching.join_next().await {
            assert_eq!(seen.expect("it watches"), expected);
        }
    }
}
