//! The order of a tree with a shared log. Submissions queue up; a thread of its own, since it waits on the network, drains
//! the queue into a batch, applies it inside one transaction with a savepoint per submission, appends the accepted ops to
//! the log at exactly `applied + 1`, commits, and answers. While one batch is under way the next one gathers: group commit.
//!
//! When the log does not answer, the batch goes to the [`outbox`] (see [`super::fork`]), and so does all that comes
//! after it, until [`Logged::rebase`] has brought the two together again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::apply::{Applied, Effect};
use super::follow::{self, Position};
use super::fork::{Aside, Merging};
use super::op::{Op, TreeError};
use super::query::Query;
use super::reserve::{Reserve, frees_space};
use super::writer::{self, Writer, encode, spawn_thread};
use super::{Commitment, Listener, Origin, Result, join, outbox, unavailable};
use crate::backend::{Append, BackendError, LogEntry, TreeLog};
use crate::types::{NodeId, Seq};

/// Submissions in one batch at the most; keeps a log entry far below MongoDB's document bound of 16 MB.
const BATCH_MAX: usize = 256;
/// Bytes of encoded ops in one log entry at the most.
pub(super) const ENTRY_BYTES_MAX: usize = 4 << 20;
/// How long a batch tries again before it goes to the outbox. A call that hangs has a deadline of its own.
const OUTBOX_AFTER: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to join a log that can be read.
const REST: Duration = Duration::from_secs(2);

/// What waits for its turn.
pub(super) struct Submission {
    pub ops: Vec<Op>,
    origin: Origin,
    commitment: Commitment,
    reply: oneshot::Sender<Result<Applied>>,
}

/// The shared order, as seen by one of its nodes.
pub(super) struct Logged {
    pub(super) path: PathBuf,
    pub(super) node: NodeId,
    queue: Mutex<VecDeque<Submission>>,
    pub(super) writer: Mutex<Writer>,
    /// Written under the queue's mutex: what is in the queue when this turns true is still answered, and nothing comes
    /// after it.
    closed: AtomicBool,
    /// The leader has ended: nothing is written here any more.
    ended: tokio::sync::watch::Sender<bool>,
    /// The replica holds what the log does not: the outbox.
    pub(super) forked: AtomicBool,
    /// This start has not reached the log's head yet.
    pub(super) behind: AtomicBool,
    /// An absent log has answered.
    pub(super) back: AtomicBool,
    /// This node appended the entry after which a checkpoint may be made.
    checkpoint_due: AtomicBool,
    /// Held by the one that is being made.
    pub(super) checkpointing: tokio::sync::Mutex<()>,
    /// Set once the files of this node can be kept aside; the outbox waits for that.
    pub(super) aside: OnceLock<Aside>,
    pub(super) merging: Mutex<Merging>,
    pub(super) log: Arc<dyn TreeLog>,
    pub(super) position: Position,
    /// Space for what frees space, joining the log again among it: the store takes what the spool holds.
    reserve: Reserve,
    wake: Condvar,
    hint: Mutex<bool>,
    listener: Listener,
}

impl Logged {
    /// Opens the replica, starts following the log, and returns when it has caught up.
    pub(super) async fn open(
        path: &Path,
        node: &NodeId,
        log: Arc<dyn TreeLog>,
        listener: Listener,
    ) -> Result<Arc<Logged>> {
        let reserve = Reserve::new(path);
        reserve.give_up_if_needed();
        let reached = join::start(path, &*log).await;
        let writer = Writer::open(path)?;
        outbox::prepare(writer.conn())?;
        let forked = outbox::is_forked(writer.conn())?;
        let applied = writer.query().applied()?;
        let this = Arc::new(Logged {
            path: path.to_owned(),
            node: node.clone(),
            queue: Mutex::default(),
            writer: Mutex::new(writer),
            closed: AtomicBool::new(false),
            ended: tokio::sync::watch::channel(false).0,
            forked: AtomicBool::new(forked),
            behind: AtomicBool::new(true),
            back: AtomicBool::new(false),
            checkpoint_due: AtomicBool::new(false),
            checkpointing: tokio::sync::Mutex::default(),
            aside: OnceLock::new(),
            merging: Mutex::default(),
            log,
            position: Position::new(applied),
            reserve,
            wake: Condvar::new(),
            hint: Mutex::new(true),
            listener,
        });
        let handle = tokio::runtime::Handle::current();
        let leader = this.clone();
        spawn_thread("tree-sequencer", move || {
            leader.lead(&handle);
            leader.ended.send_replace(true);
        })?;
        tokio::spawn(follow::watch(Arc::downgrade(&this)));
        // A fork is merged later, when the files of this node can be kept aside.
        if forked {
            return Ok(this);
        }
        let caught_up = match reached {
            Ok(()) => this.catch_up().await,
            Err(e) => Err(e),
        };
        match caught_up {
            Ok(()) => {
                this.behind.store(false, Ordering::Release);
                Ok(this)
            }
            // What this replica knows is better than nothing.
            Err(TreeError::Unavailable(e)) if applied > Seq(0) => {
                warn!("starting without having caught up with the others: {e}");
                Ok(this)
            }
            Err(e) => {
                this.close();
                Err(e)
            }
        }
    }

    pub(super) async fn submit(
        &self,
        origin: Origin,
        commitment: Commitment,
        ops: Vec<Op>,
    ) -> Result<Applied> {
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if self.closed.load(Ordering::Acquire) {
                return Err(TreeError::Unavailable("shutting down".into()));
            }
            queue.push_back(Submission {
                ops,
                origin,
                commitment,
                reply,
            });
        }
        self.nudge();
        answer
            .await
            .map_err(|_| TreeError::Unavailable("shutting down".into()))?
    }

    /// Makes everything committed survive power loss of this machine.
    pub(super) fn give_up_reserve(&self) -> bool {
        self.reserve.give_up()
    }

    pub(super) fn sync(&self) -> Result<()> {
        writer::sync_wal(&self.path)
    }

    /// Asks the writer's own connection, between two transactions.
    pub(super) fn query<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        self.with_writer(|writer| f(writer.query()))
    }

    /// Calls `f` with the writer, from anywhere but the leader. That holds the writer while it waits for the log, whose
    /// answers the runtime's threads bring: one of them that waits here would wait for itself, and the whole node with it.
    /// So the runtime is told, and another thread takes its place.
    pub(super) fn with_writer<T>(&self, f: impl FnOnce(&mut Writer) -> T) -> T {
        waiting(|| f(&mut self.writer.lock()))
    }

    /// Keeps a value that belongs to this node alone. It survives the daemon being killed.
    pub(super) fn set_local(&self, key: &str, value: u64) -> Result<()> {
        self.with_writer(|writer| {
            let result = writer
                .begin()
                .and_then(|()| writer.set("local", key, value))
                .and_then(|()| writer.commit());
            if result.is_err() {
                writer.rollback();
            }
            result
        })
    }

    pub(super) fn close(&self) {
        {
            let _queue = self.queue.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.nudge();
    }

    /// Returns when the leader has ended, after [`Logged::close`].
    pub(super) async fn ended(&self) {
        // The sender is in `self`, so it cannot be gone.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    pub(super) fn nudge(&self) {
        *self.hint.lock() = true;
        self.wake.notify_one();
    }

    fn next_batch(&self) -> Vec<Submission> {
        let mut queue = self.queue.lock();
        let n = queue.len().min(BATCH_MAX);
        queue.drain(..n).collect()
    }

    pub(super) fn answer(&self, batch: Vec<Submission>, results: Vec<Result<Applied>>) {
        for (submission, mut result) in batch.into_iter().zip(results) {
            if let Ok(applied) = &result {
                (self.listener)(submission.origin, &applied.effects);
                if submission.commitment == Commitment::Durable
                    && let Err(e) = self.sync()
                {
                    result = Err(e);
                }
            }
            // A caller that went away does not change that it happened.
            let _ = submission.reply.send(result);
        }
    }

    fn lead(self: &Arc<Self>, runtime: &tokio::runtime::Handle) {
        // Nobody is answered while the log is being joined. A log that can be read and takes nothing (no majority) is not
        // asked all the time, so that a change waits for one attempt and not for one after the other.
        let mut rest = Instant::now();
        loop {
            {
                let mut hint = self.hint.lock();
                // Once closed nobody nudges any more, and the last nudge may have gone with a batch.
                while !*hint && self.queue.lock().is_empty() && !self.closed.load(Ordering::Acquire)
                {
                    self.wake.wait(&mut hint);
                }
                *hint = false;
            }
            // In this order: nothing is queued once `closed` is set, so an empty queue after it stays empty.
            let closed = self.closed.load(Ordering::Acquire);
            let batch = self.next_batch();
            if closed && batch.is_empty() {
                return;
            }
            if self.forked()
                && self.aside.get().is_some()
                && Instant::now() >= rest
                && self.back.swap(false, Ordering::AcqRel)
            {
                let begun = Instant::now();
                match self.rebase(runtime) {
                    Ok(()) => info!("the namespace log is back"),
                    Err(e) => {
                        if e == TreeError::NoSpace {
                            self.reserve.give_up();
                        }
                        warn!("the namespace log is back, but not joined yet: {e}");
                        rest = Instant::now() + begun.elapsed().min(REST);
                    }
                }
            }
            self.give_up_the_rest();
            let batch = self.refuse_given_up(batch);
            if batch.is_empty() {
                self.reserve.renew();
                if !self.forked()
                    && let Err(e) = self.follow(runtime)
                {
                    tracing::debug!("following the namespace log: {e}");
                }
            } else if self.forked() {
                self.divert(batch, None);
            } else {
                self.run(runtime, batch);
                if self.checkpoint_due.swap(false, Ordering::AcqRel) {
                    runtime.spawn(self.clone().make_checkpoint());
                }
            }
        }
    }

    /// Takes a batch through validation, append and commit, as often as other nodes come first. When the log does not
    /// answer, the batch goes to the outbox.
    fn run(&self, runtime: &tokio::runtime::Handle, mut batch: Vec<Submission>) {
        let deadline = Instant::now() + OUTBOX_AFTER;
        let mut pause = Duration::from_millis(50);
        while !batch.is_empty() {
            let mut in_doubt = None;
            let attempt = self.attempt(runtime, &mut batch, deadline, &mut in_doubt);
            if attempt.is_err() {
                self.position.disclaim();
                self.abandon();
            }
            match attempt {
                Ok(()) => {}
                Err(TreeError::Unavailable(e))
                    if in_doubt.is_none() && Instant::now() < deadline =>
                {
                    tracing::debug!("namespace log: {e}; trying again");
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                Err(TreeError::Unavailable(e)) => {
                    warn!("namespace log: {e}; changes are kept here until it is back");
                    self.divert(std::mem::take(&mut batch), in_doubt.as_deref());
                    // Nothing may have gone to the outbox, and the position that was claimed be another node's.
                    self.nudge();
                }
                Err(TreeError::NoSpace) if frees(&batch) && self.reserve.give_up() => {}
                Err(e) => {
                    let results = batch.iter().map(|_| Err(e.clone())).collect();
                    self.answer(std::mem::take(&mut batch), results);
                    // The position that was claimed may be another node's, which nobody has been told of.
                    self.nudge();
                }
            }
        }
    }

    pub(super) fn tell(&self, origin: Origin, effects: &[Effect]) {
        (self.listener)(origin, effects);
    }

    /// One attempt. What it answers, it takes out of `batch`; what stays is to be tried again.
    fn attempt(
        &self,
        runtime: &tokio::runtime::Handle,
        batch: &mut Vec<Submission>,
        deadline: Instant,
        in_doubt: &mut Option<String>,
    ) -> Result<()> {
        let mut writer = self.writer.lock();
        writer.begin()?;
        let results = apply_all(&mut writer, batch)?;
        let accepted: Vec<&Op> = batch
            .iter()
            .zip(&results)
            .filter(|(_, r)| r.is_ok())
            .flat_map(|(s, _)| &s.ops)
            .collect();
        if accepted.is_empty() {
            writer.rollback();
            // Refused by a state that may be behind: let the refusal stand only against the log's head.
            let before = self.position.applied();
            drop(writer);
            self.follow(runtime)?;
            if self.position.applied() == before {
                self.answer(std::mem::take(batch), results);
            }
            return Ok(());
        }
        let payload = encode(&accepted)?;
        if payload.len() > ENTRY_BYTES_MAX && batch.len() > 1 {
            writer.rollback();
            let rest = batch.split_off(batch.len() / 2);
            let mut queue = self.queue.lock();
            for submission in rest.into_iter().rev() {
                queue.push_front(submission);
            }
            return Ok(());
        }
        let seq = self.position.applied().next();
        self.position.claim(seq);
        let entry = LogEntry {
            seq,
            node: self.node.clone(),
            batch: hex::encode(rand::random::<[u8; 12]>()),
            payload,
        };
        // Until the outcome is known the same entry is offered again: appending is idempotent by the batch's name.
        let outcome = loop {
            match runtime.block_on(self.log.append(&entry)) {
                Err(BackendError::Unavailable(e)) if Instant::now() < deadline => {
                    warn!("append {seq} to the namespace log: {e}; trying again");
                    std::thread::sleep(Duration::from_millis(200));
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(Append::Appended) => {
                let here = writer
                    .set("meta", "applied", seq.0)
                    .and_then(|()| writer.commit());
                drop(writer);
                if let Err(e) = here {
                    // It has happened, for every node: an error would be a lie as long as this replica can still follow.
                    warn!("namespace log entry {seq} is appended but not applied here yet: {e}");
                    self.abandon();
                    self.apply_own(&entry, deadline)?;
                }
                self.answer(std::mem::take(batch), results);
                self.position.reached(seq);
                // Of all nodes one appends this entry, so one makes the checkpoint.
                if seq.0.is_multiple_of(self.log.checkpoint_every()) {
                    self.checkpoint_due.store(true, Ordering::Release);
                }
                Ok(())
            }
            Ok(Append::Conflict) => {
                self.position.disclaim();
                writer.rollback();
                drop(writer);
                self.follow(runtime)
            }
            Err(BackendError::NotFound) => {
                writer.rollback();
                drop(writer);
                self.rebase(runtime)
            }
            Err(e) => {
                writer.rollback();
                *in_doubt = Some(entry.batch);
                Err(unavailable(e))
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Undoes what a failed attempt left in the writer's transaction. With a log nothing in it was ever answered.
    pub(super) fn abandon(&self) {
        self.writer.lock().rollback();
    }

    pub(super) fn applied(&self) -> Seq {
        self.position.applied()
    }
}

/// Calls `f`, which may wait for what the runtime's threads bring, from wherever it is.
pub(super) fn waiting<T>(f: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(f),
        _ => f(),
    }
}

/// Whether something in the batch frees space, if only that of a spool file.
fn frees(batch: &[Submission]) -> bool {
    let frees = |op: &Op| frees_space(op) || matches!(op, Op::Commit { .. });
    batch.iter().any(|s| s.ops.iter().any(frees))
}

/// Applies each submission inside a savepoint of its own; a refused one leaves nothing. An error means that SQLite has
/// rolled back the whole transaction: nothing of the batch is left.
fn apply_all(writer: &mut Writer, batch: &[Submission]) -> Result<Vec<Result<Applied>>> {
    let mut results = Vec::with_capacity(batch.len());
    for submission in batch {
        let result = writer.apply(&submission.ops, || Ok(()));
        if writer.was_rolled_back() {
            return Err(result
                .err()
                .unwrap_or_else(|| TreeError::Database("the transaction ended by itself".into())));
        }
        results.push(result);
    }
    Ok(results)
}
