//! From a sealed spool file to stored content.
//!
//! The queue is only a wake-up, bounded and in memory: what is on disk and in the namespace is the truth, so a full queue
//! or a crash loses nothing. `jobs` says which of them a worker takes, and when one comes again; `worker` takes it through
//! hash, lock, store and commit; [`recovery`] finds at start what was left, `judging` what it could not judge yet; [`gc`]
//! removes content that no file has any more, [`sweep`] and [`strays`] what no file ever had; [`lasting`] sees to what power
//! loss would leave; `large`, `share` and `snapshot` say how large files, copies, and files that stay open are treated.

mod durable;
pub mod gc;
mod jobs;
mod judging;
mod large;
pub mod lasting;
mod present;
mod records;
pub mod recovery;
mod share;
mod snapshot;
pub mod strays;
pub mod sweep;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
pub(crate) use worker::StoreError;

use crate::backend::{Backends, Records};
use crate::content::{Sealed, Spool};
use crate::tree::Tree;
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId};

/// One wake-up: this generation of this inode is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    ino: Ino,
    generation: Generation,
    /// How often storing it failed.
    failures: u32,
}

/// What the workers did so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Contents stored.
    pub stored: AtomicU64,
    /// Files whose content was stored before.
    pub duplicates: AtomicU64,
    /// Attempts that failed and are tried again.
    pub failures: AtomicU64,
    /// Bytes of the contents stored.
    pub bytes: AtomicU64,
}

/// The way into the store.
pub struct Ingest {
    node: NodeId,
    tree: Arc<Tree>,
    spool: Arc<Spool>,
    sealed: Arc<Sealed>,
    backends: Backends,
    queue: mpsc::Sender<Job>,
    jobs: tokio::sync::Mutex<mpsc::Receiver<Job>>,
    /// A job did not fit the queue: look through the spool once the queue is empty.
    overflow: AtomicBool,
    /// The store did not answer the last job.
    away: AtomicBool,
    in_flight: Mutex<HashSet<(Ino, Generation)>>,
    busy: AtomicUsize,
    large: large::Lane,
    /// One worker hashes ahead, and not before this.
    hashing_ahead: tokio::sync::Mutex<Option<Instant>>,
    stop: watch::Sender<bool>,
    durable: durable::Barrier,
    unjudged: Mutex<recovery::Unjudged>,
    /// Contents whose record may not say yet that they are stored: the daemon ended before it was written.
    unsettled: Mutex<Vec<ContentHash>>,
    /// Content that left the namespace and whose bytes could not be removed yet.
    reaped: Mutex<Vec<(ContentHash, BlobId)>>,
    /// What happened so far.
    pub counters: Counters,
}

impl Ingest {
    /// With room for `queue` waiting jobs. Nothing runs before [`Ingest::start`].
    pub fn new(
        node: NodeId,
        tree: Arc<Tree>,
        spool: Arc<Spool>,
        sealed: Arc<Sealed>,
        backends: Backends,
        queue: usize,
    ) -> Ingest {
        let (sender, receiver) = mpsc::channel(queue.max(1));
        Ingest {
            node,
            tree,
            spool,
            sealed,
            backends,
            queue: sender,
            jobs: tokio::sync::Mutex::new(receiver),
            overflow: AtomicBool::new(false),
            away: AtomicBool::new(false),
            in_flight: Mutex::default(),
            busy: AtomicUsize::new(0),
            large: large::Lane::default(),
            hashing_ahead: tokio::sync::Mutex::default(),
            stop: watch::channel(false).0,
            durable: durable::Barrier::default(),
            unjudged: Mutex::default(),
            unsettled: Mutex::default(),
            reaped: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// Starts the workers and the collector. They end after [`Ingest::stop`], each with what it has in hand.
    pub fn start(self: &Arc<Self>, workers: usize, gc_grace: Duration) -> JoinSet<()> {
        self.large.open_for(workers);
        let mut tasks = JoinSet::new();
        for n in 1..=workers.max(1) {
            tasks.spawn(jobs::run(self.clone(), format!("worker-{n}")));
        }
        tasks.spawn(gc::run(self.clone(), gc_grace));
        tasks.spawn(lasting::run(self.clone()));
        tasks.spawn(self.clone().judge_later());
        tasks
    }

    /// Tells workers to end. What is not stored yet is stored after the next start.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Says that a file was sealed. Never waits.
    pub fn enqueue(&self, ino: Ino, generation: Generation) {
        self.push(Job {
            ino,
            generation,
            failures: 0,
        });
    }

    fn push(&self, job: Job) {
        if self.queue.try_send(job).is_err() {
            self.spool.set_waiting(job.ino, job.generation, true);
            self.overflow.store(true, Ordering::Release);
        }
    }

    /// How many jobs wait in the queue, and how many files are in the workers' hands.
    pub fn depth(&self) -> (usize, usize) {
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        (waiting, self.busy.load(Ordering::Relaxed))
    }

    /// The public records.
    pub fn records(&self) -> &dyn Records {
        &*self.backends.records
    }
}
