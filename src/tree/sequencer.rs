//! The single writer. Submissions queue up; whoever leads drains the queue into a batch, applies it inside one
//! transaction with a savepoint per submission, appends the accepted ops to the log where there is one, commits, and
//! answers. While one batch is under way the next one gathers: group commit.
//!
//! Without a log the leader is whichever submitting thread finds the writer free, so that a lone caller pays for no
//! thread switch. With a log the leader waits on the network, so it is a thread of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::Connection;
use tokio::sync::{Notify, oneshot};
use tracing::{error, info, warn};

use super::apply::{Applied, Effect, apply};
use super::op::{Op, TreeError};
use super::query::Query;
use super::{Commitment, Listener, Origin, Result, schema};
use crate::backend::{Append, BackendError, LogEntry, TreeLog};
use crate::types::{NodeId, Seq};

/// Batches that one submitter leads before it goes home with its own answer; the keeper leads on.
const LEAD_MAX: usize = 8;
/// How long a change that was only made visible stays uncommitted.
const SETTLE: Duration = Duration::from_millis(30);
/// Submissions in one batch at the most; keeps a log entry far below MongoDB's document bound of 16 MB.
const BATCH_MAX: usize = 256;
/// Bytes of encoded ops in one log entry at the most.
const ENTRY_BYTES_MAX: usize = 4 << 20;
/// How long a submission waits for a log that does not answer.
const LOG_DEADLINE: Duration = Duration::from_secs(15);
/// A write-ahead log larger than this is written back to the database in the background.
const WAL_BYTES: u64 = 4 << 20;
/// One larger than this makes the writer wait for that.
const WAL_BYTES_MAX: u64 = 64 << 20;

struct Submission {
    ops: Vec<Op>,
    origin: Origin,
    commitment: Commitment,
    reply: oneshot::Sender<Result<Applied>>,
}

/// The writer's connection and its transaction.
struct Writer {
    conn: Connection,
    /// Whether a transaction was begun.
    open: bool,
    /// What the transaction holds that was answered already, for the case that it cannot be committed.
    promised: Vec<Effect>,
    commits: u64,
}

pub(super) struct Sequencer {
    path: PathBuf,
    node: NodeId,
    queue: Mutex<VecDeque<Submission>>,
    writer: Mutex<Writer>,
    /// Whether the transaction holds answered changes, so that readers need not take the writer's mutex to see that there
    /// is nothing to wait for. Set before the answer.
    unsettled: AtomicBool,
    /// Wakes the keeper: a leader went home and the queue is not empty.
    relay: Notify,
    /// Written under the queue's mutex: what is in the queue when this turns true is still answered, and nothing comes
    /// after it.
    closed: AtomicBool,
    log: Option<Arc<dyn TreeLog>>,
    applied: AtomicU64,
    wake: Condvar,
    hint: Mutex<bool>,
    progress: tokio::sync::watch::Sender<u64>,
    checkpoint: Condvar,
    checkpoint_due: Mutex<bool>,
    listener: Listener,
}

pub(super) fn unavailable(e: BackendError) -> TreeError {
    TreeError::Unavailable(e.to_string())
}

impl Sequencer {
    pub(super) async fn open(
        path: &Path,
        node: &NodeId,
        log: Option<Arc<dyn TreeLog>>,
        listener: Listener,
    ) -> Result<Arc<Sequencer>> {
        let conn = schema::open_writer(path)?;
        let applied = Query(&conn).applied()?;
        let this = Arc::new(Sequencer {
            path: path.to_owned(),
            node: node.clone(),
            queue: Mutex::default(),
            writer: Mutex::new(Writer {
                conn,
                open: false,
                promised: Vec::new(),
                commits: 0,
            }),
            unsettled: AtomicBool::new(false),
            relay: Notify::new(),
            closed: AtomicBool::new(false),
            log,
            applied: AtomicU64::new(applied.0),
            wake: Condvar::new(),
            hint: Mutex::new(true),
            progress: tokio::sync::watch::channel(applied.0).0,
            checkpoint: Condvar::new(),
            checkpoint_due: Mutex::new(false),
            listener,
        });
        let checkpointer = this.clone();
        spawn_thread("tree-checkpoint", move || checkpointer.checkpoint_loop())?;
        match this.log.clone() {
            None => {
                tokio::spawn(keep(Arc::downgrade(&this)));
            }
            Some(log) => {
                let handle = tokio::runtime::Handle::current();
                let leader = this.clone();
                let its_log = log.clone();
                spawn_thread("tree-sequencer", move || {
                    leader.lead_log(&*its_log, &handle)
                })?;
                tokio::spawn(watch(Arc::downgrade(&this), log));
                if let Err(e) = this.catch_up().await {
                    this.close();
                    return Err(e);
                }
            }
        }
        Ok(this)
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
        match self.log {
            None => self.lead_local(),
            Some(_) => self.nudge(),
        }
        let applied = answer
            .await
            .map_err(|_| TreeError::Unavailable("shutting down".into()))??;
        if commitment == Commitment::Durable {
            self.sync_wal()?;
        }
        Ok(applied)
    }

    /// Commits what was only made visible.
    pub(super) fn settle(&self) -> Result<()> {
        if !self.unsettled.load(Ordering::Acquire) {
            return Ok(());
        }
        let result = self.commit(&mut self.writer.lock());
        self.lead_on();
        result
    }

    /// Asks the writer's own connection.
    pub(super) fn query<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        let result = f(Query(&self.writer.lock().conn));
        self.lead_on();
        result
    }

    /// Keeps a value that belongs to this node alone. It survives the daemon being killed.
    pub(super) fn set_local(&self, key: &str, value: i64) -> Result<()> {
        let result = {
            let mut writer = self.writer.lock();
            let result = self.begin(&mut writer).and_then(|()| {
                writer
                    .conn
                    .prepare_cached("INSERT OR REPLACE INTO local VALUES(?1,?2)")?
                    .execute((key, value))?;
                self.commit(&mut writer)
            });
            if result.is_err() && writer.open {
                if writer.conn.is_autocommit() || writer.promised.is_empty() {
                    self.rollback(&mut writer);
                } else {
                    // Others were answered for this transaction, and it still stands.
                    self.unsettled.store(true, Ordering::Release);
                }
            }
            result
        };
        self.lead_on();
        result
    }

    pub(super) fn sync_wal(&self) -> Result<()> {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        let synced = match File::open(&wal) {
            Ok(file) => file.sync_data(),
            // Everything was written back to the database, which is synced then.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        };
        synced.map_err(|e| TreeError::Database(format!("fsync of {}: {e}", wal.display())))
    }

    pub(super) async fn catch_up(&self) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let head = log.head().await.map_err(unavailable)?;
        let mut progress = self.progress.subscribe();
        self.nudge();
        let reached = tokio::time::timeout(
            LOG_DEADLINE,
            progress.wait_for(|applied| *applied >= head.0),
        );
        match reached.await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(TreeError::Unavailable(format!(
                "log entry {head} was not applied in time"
            ))),
        }
    }

    pub(super) fn close(&self) {
        {
            let _queue = self.queue.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.nudge();
        if self.log.is_none() {
            // From here on every batch is committed before it is answered, so this commit leaves nothing behind.
            if let Err(e) = self.commit(&mut self.writer.lock()) {
                error!("namespace: {e}");
            }
            while !self.queue.lock().is_empty() {
                self.lead_local();
                std::thread::yield_now();
            }
        }
        *self.checkpoint_due.lock() = true;
        self.checkpoint.notify_all();
    }

    fn nudge(&self) {
        *self.hint.lock() = true;
        self.wake.notify_one();
    }

    // ---- without a log -------------------------------------------------------------------------------------------

    /// Whoever has held the writer calls this after letting go, so that a submission that found it taken is never left
    /// behind.
    fn lead_on(&self) {
        if self.log.is_none() {
            self.lead_local();
        }
    }

    /// Leads until the queue is empty, if nobody else does, and for [`LEAD_MAX`] batches at the most: a submitter that
    /// led for as long as others submit would never see its own answer.
    fn lead_local(&self) {
        for _ in 0..LEAD_MAX {
            if self.queue.lock().is_empty() {
                return;
            }
            // Taken: its holder looks at the queue after letting go.
            let Some(mut writer) = self.writer.try_lock() else {
                return;
            };
            let batch = self.next_batch();
            self.run_local(&mut writer, batch);
            // Readers and the keeper wait for this mutex to commit what is only visible; under load an unfair unlock
            // would let the next batch overtake them again and again.
            MutexGuard::unlock_fair(writer);
        }
        if !self.queue.lock().is_empty() {
            self.relay.notify_one();
        }
    }

    fn next_batch(&self) -> Vec<Submission> {
        let mut queue = self.queue.lock();
        let n = queue.len().min(BATCH_MAX);
        queue.drain(..n).collect()
    }

    fn run_local(&self, writer: &mut Writer, batch: Vec<Submission>) {
        let visible_only = !self.closed.load(Ordering::Acquire)
            && batch.iter().all(|s| s.commitment == Commitment::Visible);
        let done = self.begin(writer).and_then(|()| {
            let results = apply_all(&writer.conn, &batch)?;
            if !visible_only {
                self.commit(writer)?;
            }
            Ok(results)
        });
        let results = match done {
            Ok(results) => results,
            Err(e) => {
                if writer.open {
                    self.rollback(writer);
                }
                batch.iter().map(|_| Err(e.clone())).collect()
            }
        };
        if visible_only && writer.open {
            let accepted = results.iter().flatten();
            writer
                .promised
                .extend(accepted.flat_map(|a| a.effects.clone()));
            self.unsettled.store(true, Ordering::Release);
        }
        self.answer(batch, results);
    }

    fn answer(&self, batch: Vec<Submission>, results: Vec<Result<Applied>>) {
        for (submission, result) in batch.into_iter().zip(results) {
            if let Ok(applied) = &result {
                (self.listener)(submission.origin, &applied.effects);
            }
            // A caller that went away does not change that it happened.
            let _ = submission.reply.send(result);
        }
    }

    // ---- with a log ----------------------------------------------------------------------------------------------

    fn lead_log(&self, log: &dyn TreeLog, runtime: &tokio::runtime::Handle) {
        loop {
            {
                let mut hint = self.hint.lock();
                while !*hint && self.queue.lock().is_empty() {
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
            if batch.is_empty() {
                if let Err(e) = self.follow(log, runtime) {
                    tracing::debug!("following the namespace log: {e}");
                }
            } else {
                self.run_logged(log, runtime, batch);
            }
        }
    }

    /// Takes a batch through validation, append and commit, as often as other nodes come first.
    fn run_logged(
        &self,
        log: &dyn TreeLog,
        runtime: &tokio::runtime::Handle,
        mut batch: Vec<Submission>,
    ) {
        let deadline = Instant::now() + LOG_DEADLINE;
        let mut pause = Duration::from_millis(50);
        while !batch.is_empty() {
            let attempt = self.try_logged(log, runtime, &mut batch, deadline);
            if attempt.is_err() {
                self.abandon();
            }
            match attempt {
                Ok(()) => {}
                Err(TreeError::Unavailable(e)) if Instant::now() < deadline => {
                    warn!("namespace log: {e}; trying again");
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(e) => {
                    let results = batch.iter().map(|_| Err(e.clone())).collect();
                    self.answer(std::mem::take(&mut batch), results);
                }
            }
        }
    }

    /// One attempt. What it answers, it takes out of `batch`; what stays is to be tried again.
    fn try_logged(
        &self,
        log: &dyn TreeLog,
        runtime: &tokio::runtime::Handle,
        batch: &mut Vec<Submission>,
        deadline: Instant,
    ) -> Result<()> {
        let mut writer = self.writer.lock();
        self.begin(&mut writer)?;
        let results = apply_all(&writer.conn, batch)?;
        let accepted: Vec<&Op> = batch
            .iter()
            .zip(&results)
            .filter(|(_, r)| r.is_ok())
            .flat_map(|(s, _)| &s.ops)
            .collect();
        if accepted.is_empty() {
            self.rollback(&mut writer);
            // Refused by a state that may be behind: let the refusal stand only against the log's head.
            let before = self.applied.load(Ordering::Acquire);
            drop(writer);
            self.follow(log, runtime)?;
            if self.applied.load(Ordering::Acquire) == before {
                self.answer(std::mem::take(batch), results);
            }
            return Ok(());
        }
        let payload = encode(&accepted)?;
        if payload.len() > ENTRY_BYTES_MAX && batch.len() > 1 {
            self.rollback(&mut writer);
            let rest = batch.split_off(batch.len() / 2);
            let mut queue = self.queue.lock();
            for submission in rest.into_iter().rev() {
                queue.push_front(submission);
            }
            return Ok(());
        }
        let seq = Seq(self.applied.load(Ordering::Acquire)).next();
        let entry = LogEntry {
            seq,
            node: self.node.clone(),
            batch: hex::encode(rand::random::<[u8; 12]>()),
            payload,
        };
        // Until the outcome is known the same entry is offered again: appending is idempotent by the batch's name.
        let outcome = loop {
            match runtime.block_on(log.append(&entry)) {
                Err(BackendError::Unavailable(e)) if Instant::now() < deadline => {
                    warn!("append {seq} to the namespace log: {e}; trying again");
                    std::thread::sleep(Duration::from_millis(200));
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(Append::Appended) => {
                let here = self
                    .set_applied(&mut writer, seq)
                    .and_then(|()| self.commit(&mut writer));
                drop(writer);
                if let Err(e) = here {
                    // It has happened, for every node: an error would be a lie as long as this replica can still follow.
                    warn!("namespace log entry {seq} is appended but not applied here yet: {e}");
                    self.abandon();
                    self.apply_own(&entry, deadline)?;
                }
                self.answer(std::mem::take(batch), results);
                self.publish_applied(seq);
                Ok(())
            }
            Ok(Append::Conflict) => {
                self.rollback(&mut writer);
                drop(writer);
                self.follow(log, runtime)
            }
            Err(e) => {
                self.rollback(&mut writer);
                Err(unavailable(e))
            }
        }
    }

    /// Applies what other nodes appended.
    fn follow(&self, log: &dyn TreeLog, runtime: &tokio::runtime::Handle) -> Result<()> {
        loop {
            let from = Seq(self.applied.load(Ordering::Acquire)).next();
            let entries = match runtime.block_on(log.read(from, 256)) {
                Ok(entries) => entries,
                Err(BackendError::NotFound) => {
                    error!("the namespace log no longer reaches back to entry {from}");
                    return Err(TreeError::Unavailable(format!(
                        "the log no longer holds entry {from}"
                    )));
                }
                Err(e) => return Err(unavailable(e)),
            };
            if entries.is_empty() {
                self.progress.send_replace(from.0 - 1);
                return Ok(());
            }
            for entry in entries {
                self.apply_entry(&entry)?;
            }
        }
    }

    fn apply_entry(&self, entry: &LogEntry) -> Result<()> {
        match self.commit_entry(entry) {
            Ok(effects) => {
                // Before the position is published: who has caught up with the log finds the kernel's caches told.
                (self.listener)(Origin::Remote, &effects);
                self.publish_applied(entry.seq);
                Ok(())
            }
            Err(e) => {
                self.abandon();
                Err(e)
            }
        }
    }

    /// Applies the entry that this node just appended, after its own transaction failed.
    fn apply_own(&self, entry: &LogEntry, deadline: Instant) -> Result<()> {
        loop {
            match self.commit_entry(entry) {
                Ok(_) => return Ok(()),
                Err(e) => {
                    self.abandon();
                    if Instant::now() >= deadline || self.closed.load(Ordering::Acquire) {
                        return Err(e);
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    fn commit_entry(&self, entry: &LogEntry) -> Result<Vec<Effect>> {
        let ops = decode(&entry.payload)?;
        let mut effects: Vec<Effect> = Vec::new();
        let mut writer = self.writer.lock();
        self.begin(&mut writer)?;
        for op in &ops {
            match apply(&writer.conn, op) {
                Ok(applied) => effects.extend(applied.effects),
                // The disk, not the op.
                Err(e) if writer.conn.is_autocommit() => return Err(e),
                Err(e) => {
                    // It was accepted against this very state elsewhere, so this replica differs: going on would make
                    // it differ more.
                    error!(
                        "log entry {} by {} does not apply here ({e}): this replica has diverged",
                        entry.seq, entry.node
                    );
                    return Err(TreeError::Database(format!(
                        "log entry {} does not apply: {e}",
                        entry.seq
                    )));
                }
            }
        }
        self.set_applied(&mut writer, entry.seq)?;
        self.commit(&mut writer)?;
        Ok(effects)
    }

    /// Undoes what a failed attempt left in the writer's transaction. With a log nothing in it was ever answered.
    fn abandon(&self) {
        let mut writer = self.writer.lock();
        if writer.open {
            self.rollback(&mut writer);
        }
    }

    fn set_applied(&self, writer: &mut Writer, seq: Seq) -> Result<()> {
        writer
            .conn
            .prepare_cached("UPDATE meta SET value=?1 WHERE key='applied'")?
            .execute([seq.0])?;
        Ok(())
    }

    fn publish_applied(&self, seq: Seq) {
        self.applied.store(seq.0, Ordering::Release);
        self.progress.send_replace(seq.0);
    }

    // ---- the transaction -----------------------------------------------------------------------------------------

    fn begin(&self, writer: &mut Writer) -> Result<()> {
        if !writer.open {
            writer.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
            writer.open = true;
        }
        Ok(())
    }

    fn commit(&self, writer: &mut Writer) -> Result<()> {
        if !writer.open {
            return Ok(());
        }
        let committed = writer
            .conn
            .prepare_cached("COMMIT")
            .and_then(|mut s| s.execute([]));
        if let Err(e) = committed {
            self.rollback(writer);
            return Err(e.into());
        }
        writer.open = false;
        writer.promised.clear();
        self.unsettled.store(false, Ordering::Release);
        writer.commits += 1;
        if writer.commits.is_multiple_of(64) {
            self.look_at_wal(writer);
        }
        Ok(())
    }

    fn rollback(&self, writer: &mut Writer) {
        if let Err(e) = writer.conn.execute_batch("ROLLBACK") {
            // SQLite has rolled back by itself after some errors.
            tracing::debug!("rollback: {e}");
        }
        writer.open = false;
        self.unsettled.store(false, Ordering::Release);
        let lost = std::mem::take(&mut writer.promised);
        if lost.is_empty() {
            return;
        }
        // The submitters were told, and the kernel with them; it must at least forget what it was told.
        error!("namespace: changes that were visible could not be committed and are undone");
        let stale: Vec<Effect> = lost
            .into_iter()
            .filter(|e| {
                matches!(
                    e,
                    Effect::Entry { .. } | Effect::Attributes(_) | Effect::Content(_)
                )
            })
            .collect();
        (self.listener)(Origin::Node, &stale);
    }

    fn wal_bytes(&self) -> u64 {
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        std::fs::metadata(wal).map_or(0, |m| m.len())
    }

    fn look_at_wal(&self, writer: &Writer) {
        let bytes = self.wal_bytes();
        if bytes > WAL_BYTES_MAX {
            checkpoint(&writer.conn, "TRUNCATE");
        } else if bytes > WAL_BYTES {
            *self.checkpoint_due.lock() = true;
            self.checkpoint.notify_one();
        }
    }

    fn checkpoint_loop(&self) {
        let conn = match schema::open_reader(&self.path) {
            Ok(conn) => conn,
            Err(e) => {
                error!("namespace: no checkpoints: {e}");
                return;
            }
        };
        if let Err(e) = conn.execute_batch("PRAGMA query_only=0") {
            error!("namespace: no checkpoints: {e}");
        }
        loop {
            {
                let mut due = self.checkpoint_due.lock();
                while !*due {
                    self.checkpoint.wait(&mut due);
                }
                *due = false;
            }
            checkpoint(&conn, "PASSIVE");
            if self.closed.load(Ordering::Acquire) {
                info!("namespace closed");
                return;
            }
        }
    }
}

fn checkpoint(conn: &Connection, mode: &str) {
    let done = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
    if let Err(e) = done {
        warn!("namespace checkpoint: {e}");
    }
}

fn spawn_thread(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .map(drop)
        .map_err(|e| TreeError::Unavailable(format!("cannot start a thread: {e}")))
}

/// Commits what is only visible within [`SETTLE`], and leads where leaders went home, until the tree is closed.
async fn keep(sequencer: Weak<Sequencer>) {
    while let Some(this) = sequencer.upgrade() {
        if this.closed.load(Ordering::Acquire) {
            return;
        }
        if let Err(e) = this.settle() {
            error!("namespace: {e}");
        }
        this.lead_local();
        let _ = tokio::time::timeout(SETTLE, this.relay.notified()).await;
    }
}

/// Wakes the leader when the log grows, until the tree is closed.
async fn watch(sequencer: Weak<Sequencer>, log: Arc<dyn TreeLog>) {
    while let Some(this) = sequencer.upgrade() {
        if this.closed.load(Ordering::Acquire) {
            return;
        }
        let mut progress = this.progress.subscribe();
        let applied = Seq(this.applied.load(Ordering::Acquire));
        if let Err(e) = log.changed(applied).await {
            tracing::debug!("following the namespace log: {e}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        progress.mark_unchanged();
        this.nudge();
        // Until the leader has looked, the log would only say the same again.
        let _ = tokio::time::timeout(Duration::from_millis(200), progress.changed()).await;
    }
}

/// Applies each submission inside a savepoint of its own; a refused one leaves nothing. An error means that SQLite has
/// rolled back the whole transaction, as it does when the disk is full: nothing of the batch, or of what the transaction
/// held before, is left, and going on would apply the rest outside of any transaction.
fn apply_all(conn: &Connection, batch: &[Submission]) -> Result<Vec<Result<Applied>>> {
    let mut results = Vec::with_capacity(batch.len());
    for submission in batch {
        let result = apply_one(conn, &submission.ops);
        if conn.is_autocommit() {
            return Err(result
                .err()
                .unwrap_or_else(|| TreeError::Database("the transaction ended by itself".into())));
        }
        results.push(result);
    }
    Ok(results)
}

fn apply_one(conn: &Connection, ops: &[Op]) -> Result<Applied> {
    conn.prepare_cached("SAVEPOINT one")?.execute([])?;
    let mut all = Applied::default();
    for op in ops {
        match apply(conn, op) {
            Ok(applied) => {
                all.inode = applied.inode.or(all.inode);
                all.effects.extend(applied.effects);
            }
            Err(e) if conn.is_autocommit() => return Err(e),
            Err(e) => {
                conn.prepare_cached("ROLLBACK TO one")?.execute([])?;
                conn.prepare_cached("RELEASE one")?.execute([])?;
                return Err(e);
            }
        }
    }
    conn.prepare_cached("RELEASE one")?.execute([])?;
    Ok(all)
}

fn encode(ops: &[&Op]) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    ciborium::into_writer(ops, &mut payload)
        .map_err(|e| TreeError::Database(format!("cannot encode ops: {e}")))?;
    Ok(payload)
}

fn decode(payload: &[u8]) -> Result<Vec<Op>> {
    ciborium::from_reader(payload)
        .map_err(|e| TreeError::Database(format!("cannot decode a log entry: {e}")))
}
