//! Two replicas over one log that misbehaves wherever its contract allows it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::backend::{Append, BackendError, BlobReader, LogEntry};

/// A log that fails before and after appending, reads short, wakes for nothing, and lets a third node come first.
pub(super) struct HostileLog {
    /// Entries between two checkpoints.
    every: u64,
    state: Mutex<State>,
    grown: tokio::sync::Notify,
    /// Chance of each trick in percent; 0 is a well-behaved log.
    tricks: u32,
    /// Says that there is more, but not what.
    mute: AtomicBool,
    /// Others hear of an entry before its maker is answered.
    pub(super) slow: AtomicBool,
    /// Calls of `changed`.
    asked: AtomicU64,
    /// Calls of `read`.
    reads: AtomicU64,
    /// Checkpoints on their way.
    storing: AtomicU64,
}

struct State {
    entries: Vec<LogEntry>,
    /// Entries up to this one can no longer be read.
    trimmed: u64,
    /// The last two.
    checkpoints: Vec<(Seq, PathBuf)>,
    /// Where it is kept.
    files: tempfile::TempDir,
    nodes: Vec<NodeId>,
    chance: StdRng,
}

fn away() -> BackendError {
    BackendError::Unavailable("as the test wants it".into())
}

fn entry(seq: u64, ops: &[&Op]) -> LogEntry {
    let mut payload = Vec::new();
    ciborium::into_writer(ops, &mut payload).unwrap();
    LogEntry {
        seq: Seq(seq),
        node: NodeId("third".into()),
        batch: format!("third-{seq}"),
        payload,
    }
}

impl HostileLog {
    pub(super) fn new(seed: u64, tricks: u32) -> Arc<HostileLog> {
        HostileLog::made(seed, tricks, u64::MAX)
    }

    /// A well-behaved one that is trimmed.
    pub(super) fn with_checkpoints(seed: u64, every: u64) -> Arc<HostileLog> {
        HostileLog::made(seed, 0, every)
    }

    /// One that has so many entries.
    pub(super) fn grown_readable(entries: u64) -> Arc<HostileLog> {
        let log = HostileLog::new(1, 0);
        {
            let mut state = log.state.lock();
            (0..entries).for_each(|_| log.third_node(&mut state));
        }
        log
    }

    /// One that has so many entries, all behind the checkpoint in `file` and gone.
    pub(super) fn grown(entries: u64, file: &Path) -> Arc<HostileLog> {
        let log = HostileLog::grown_readable(entries);
        {
            let mut state = log.state.lock();
            state.checkpoints.push((Seq(entries), file.to_owned()));
            state.trimmed = entries;
        }
        log
    }

    /// The newest checkpoint rots.
    pub(super) fn damage_newest_checkpoint(&self) {
        let state = self.state.lock();
        let mut bytes = std::fs::read(&state.checkpoints[1].1).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&state.checkpoints[1].1, bytes).unwrap();
    }

    /// How many checkpoints are on their way, and of which entry the last one is that arrived.
    pub(super) fn checkpoints(&self) -> (u64, u64) {
        let stored = self.state.lock().checkpoints.last().map_or(0, |c| c.0.0);
        (self.storing.load(Ordering::SeqCst), stored)
    }

    pub(super) fn trimmed(&self) -> u64 {
        self.state.lock().trimmed
    }

    fn made(seed: u64, tricks: u32, every: u64) -> Arc<HostileLog> {
        Arc::new(HostileLog {
            every,
            state: Mutex::new(State {
                entries: Vec::new(),
                trimmed: 0,
                checkpoints: Vec::new(),
                files: tempfile::tempdir().unwrap(),
                nodes: Vec::new(),
                chance: StdRng::seed_from_u64(seed),
            }),
            grown: tokio::sync::Notify::new(),
            tricks,
            mute: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            storing: AtomicU64::new(0),
        })
    }

    fn insert(&self, entry: &LogEntry) -> crate::backend::Result<Append> {
        let mut state = self.state.lock();
        if self.trick(&mut state) {
            return Err(away());
        }
        if self.trick(&mut state) {
            self.third_node(&mut state);
        }
        let at = entry.seq.0 as usize;
        assert!(
            at >= 1 && at <= state.entries.len() + 1,
            "append at {at} leaves a gap after {}",
            state.entries.len()
        );
        assert!(!entry.payload.is_empty());
        let outcome = match state.entries.get(at - 1) {
            None => {
                let known = state.entries.iter().any(|e| e.batch == entry.batch);
                assert!(!known, "a batch is appended twice");
                state.entries.push(entry.clone());
                self.grown.notify_waiters();
                Append::Appended
            }
            Some(there) if there.batch == entry.batch => {
                assert_eq!(there, entry, "a batch changed between attempts");
                Append::Appended
            }
            Some(_) => Append::Conflict,
        };
        match self.trick(&mut state) {
            true => Err(away()),
            false => Ok(outcome),
        }
    }

    fn trick(&self, state: &mut State) -> bool {
        state.chance.random_range(0..100) < self.tricks
    }

    /// What the third node does: an op that is valid in every state.
    fn third_node(&self, state: &mut State) {
        let seq = state.entries.len() as u64 + 1;
        let op = Op::SetAttr {
            ino: Ino::ROOT,
            mode: None,
            uid: None,
            gid: None,
            atime: Some(Time(seq as i64)),
            mtime: None,
            now: Time(1_000_000 + seq as i64),
        };
        state.entries.push(entry(seq, &[&op]));
        self.grown.notify_waiters();
    }
}

#[async_trait]
impl TreeLog for HostileLog {
    async fn append(&self, entry: &LogEntry) -> crate::backend::Result<Append> {
        tokio::task::yield_now().await;
        let outcome = self.insert(entry);
        if self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        outcome
    }

    async fn read(&self, from: Seq, limit: usize) -> crate::backend::Result<Vec<LogEntry>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state.lock();
        if self.mute.load(Ordering::SeqCst) || self.trick(&mut state) {
            return Err(away());
        }
        assert!(from.0 >= 1);
        if from.0 <= state.trimmed {
            return Err(BackendError::NotFound);
        }
        let limit = if self.trick(&mut state) { 1 } else { limit };
        let entries = state.entries.iter().skip(from.0 as usize - 1);
        Ok(entries.take(limit).cloned().collect())
    }

    async fn head(&self) -> crate::backend::Result<Seq> {
        Ok(Seq(self.state.lock().entries.len() as u64))
    }

    async fn changed(&self, after: Seq) -> crate::backend::Result<Seq> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let grown = self.grown.notified();
        {
            let mut state = self.state.lock();
            let heard = state.entries.len() as u64;
            if self.trick(&mut state) || heard > after.0 {
                return Ok(Seq(heard));
            }
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), grown).await;
        Ok(Seq(self.state.lock().entries.len() as u64))
    }

    async fn register(&self, node: &NodeId) -> crate::backend::Result<u32> {
        let mut state = self.state.lock();
        let known = state.nodes.iter().position(|n| n == node);
        Ok(known.unwrap_or_else(|| {
            state.nodes.push(node.clone());
            state.nodes.len() - 1
        }) as u32
            + 1)
    }

    async fn put_checkpoint(&self, seq: Seq, file: &Path) -> crate::backend::Result<()> {
        let others = self.storing.fetch_add(1, Ordering::SeqCst);
        assert_eq!(others, 0, "two checkpoints at once");
        if self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.storing.fetch_sub(1, Ordering::SeqCst);
        let mut state = self.state.lock();
        assert!(seq.0 <= state.entries.len() as u64);
        let kept = state.files.path().join(seq.to_string());
        std::fs::copy(file, &kept)?;
        state.checkpoints.push((seq, kept));
        let old = state.checkpoints.len().saturating_sub(2);
        state.checkpoints.drain(..old);
        Ok(())
    }

    async fn checkpoint(
        &self,
        before: Option<Seq>,
    ) -> crate::backend::Result<Option<(Seq, BlobReader)>> {
        let stored = self.state.lock().checkpoints.clone();
        let mut wanted = stored.into_iter().rev();
        let Some((seq, kept)) = wanted.find(|c| before.is_none_or(|before| c.0 < before)) else {
            return Ok(None);
        };
        let reader: BlobReader = Box::new(tokio::fs::File::open(kept).await?);
        Ok(Some((seq, reader)))
    }

    fn checkpoint_every(&self) -> u64 {
        self.every
    }

    async fn trim(&self, seq: Seq) -> crate::backend::Result<()> {
        let mut state = self.state.lock();
        let covered = state.checkpoints.last().map_or(0, |(seq, _)| seq.0);
        assert!(seq.0 <= covered, "trimmed beyond the checkpoint");
        state.trimmed = state.trimmed.max(seq.0);
        Ok(())
    }
}

/// Holds no bytes, and needs none.
struct Nothing;

impl Holdings for Nothing {
    fn keep_aside(&self, _: Ino, _: Ino) -> std::io::Result<bool> {
        Ok(true)
    }

    fn lose_soon(&self, _: &[(Ino, Generation)]) {}

    fn lose_not(&self, _: &[(Ino, Generation)]) {}

    fn has(&self, _: Ino, _: Generation) -> bool {
        true
    }

    fn give_up(&self, _: &[(Ino, Generation)]) -> std::io::Result<()> {
        Ok(())
    }

    fn drop_aside(&self, _: Ino) {}
}

async fn replica(dir: &tempfile::TempDir, n: &str, log: &Arc<HostileLog>) -> Arc<Tree> {
    let (path, node) = (dir.path().join(n), NodeId(n.into()));
    let tree = Tree::open(&path, &node, Some(log.clone()), Box::new(|_, _| {}));
    let tree = Arc::new(tree.await.unwrap());
    tree.merge_with(Arc::new(Nothing));
    tree
}

pub(super) async fn submit(tree: &Tree, op: Op) -> Result<Applied> {
    tree.submit(Origin::Kernel, Commitment::Committed, vec![op])
        .await
}

fn rename(from: &str, to: &str, now: i64) -> Op {
    Op::Rename {
        parent: Ino::ROOT,
        name: bytes(from),
        new_parent: Ino::ROOT,
        new_name: bytes(to),
        mode: RenameMode::NoReplace,
        now: Time(now),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_replicas_converge_over_a_hostile_log() {
    const SHARED: i64 = 18;
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(11, 8);
    let trees = [
        replica(&dir, "a", &log).await,
        replica(&dir, "b", &log).await,
    ];
    assert_ne!(
        trees[0].new_ino().unwrap().range(),
        trees[1].new_ino().unwrap().range()
    );
    let mut tasks = Vec::new();
    for (side, tree) in trees.iter().cloned().enumerate() {
        for task in 0..3 {
            let tree = tree.clone();
            tasks.push(tokio::spawn(async move {
                let mut won = Vec::new();
                for i in 0..SHARED {
                    let time = Time(i);
                    let ino = tree.new_ino().unwrap();
                    // A name that all want, a name of its own, and a move of what was won.
                    let shared = format!("x{i}");
                    let op = create_op(ino, Ino::ROOT, shared.as_bytes(), FILE, time);
                    match submit(&tree, op).await {
                        Ok(_) => won.push((shared, ino)),
                        Err(e) => assert_eq!(e, TreeError::Exists),
                    }
                    let ino = tree.new_ino().unwrap();
                    let own = format!("{side}-{task}-{i}");
                    let op = create_op(ino, Ino::ROOT, own.as_bytes(), DIR, time);
                    submit(&tree, op).await.unwrap();
                    let seen = tree.read(|q| q.lookup(Ino::ROOT, own.as_bytes()));
                    assert_eq!(seen.unwrap().ino, ino);
                    let moved = format!("moved-{own}");
                    submit(&tree, rename(&own, &moved, i)).await.unwrap();
                    won.push((moved, ino));
                }
                won
            }));
        }
    }
    let mut won = Vec::new();
    for task in tasks {
        won.extend(task.await.unwrap());
    }
    for tree in &trees {
        tree.catch_up().await.unwrap();
        tree.read(|q| {
            check_tables(q.0);
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(dump(&trees[0]), dump(&trees[1]));
    assert_eq!(trees[0].applied(), trees[1].applied());
    // Shared names with one winner each, and all the others.
    assert_eq!(won.len() as i64, SHARED + 6 * SHARED);
    for (name, ino) in &won {
        let found = trees[0].read(|q| q.lookup(Ino::ROOT, name.as_bytes()));
        assert_eq!(found.unwrap().ino, *ino, "{name}");
    }
    // A third replica that replays the log comes to the same rows.
    let late = replica(&dir, "c", &log).await;
    late.catch_up().await.unwrap();
    assert_eq!(dump(&late), dump(&trees[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_refusal_stands_only_against_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(1, 15);
    let (a, b) = (
        replica(&dir, "a", &log).await,
        replica(&dir, "b", &log).await,
    );
    for i in 0..25 {
        let op = create_op(a.new_ino().unwrap(), Ino::ROOT, b"f", FILE, Time(i));
        submit(&a, op).await.unwrap();
        // Refused by b's own state, most likely; accepted by the log's.
        let unlink = Op::Unlink {
            parent: Ino::ROOT,
            name: bytes("f"),
            now: Time(i),
        };
        submit(&b, unlink).await.unwrap();
    }
    let refused = submit(&b, rename("f", "g", 1)).await;
    assert_eq!(refused, Err(TreeError::NotFound));
}

/// Who has caught up finds the kernel's caches told already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_listener_hears_before_catch_up_returns() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(1, 0);
    let a = replica(&dir, "a", &log).await;
    let heard = Arc::new(AtomicU64::new(0));
    let counter = heard.clone();
    let listener: Listener = Box::new(move |origin, _| {
        assert_eq!(origin, Origin::Remote);
        std::thread::sleep(Duration::from_millis(5));
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let path = dir.path().join("b");
    let b = Tree::open(&path, &NodeId("b".into()), Some(log.clone()), listener)
        .await
        .unwrap();
    for i in 1..=20u64 {
        let n = format!("f{i}");
        let op = create_op(
            a.new_ino().unwrap(),
            Ino::ROOT,
            n.as_bytes(),
            FILE,
            Time(i as i64),
        );
        submit(&a, op).await.unwrap();
        b.catch_up().await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), i);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_batch_is_split() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(3, 0);
    let a = replica(&dir, "a", &log).await;
    let ops = (0..40).map(|i| {
        let mut op = create_op(
            a.new_ino().unwrap(),
            Ino::ROOT,
            format!("d{i}").as_bytes(),
            DIR,
            Time(i),
        );
        if let Op::Create { ino, .. } = &mut op {
            let set = Op::SetXattr {
                ino: *ino,
                name: bytes("user.big"),
                value: bytes(vec![7; 200 << 10]),
                mode: XattrMode::Set,
                now: Time(i),
            };
            return vec![op, set];
        }
        unreachable!()
    });
    let tasks: Vec<_> = ops
        .map(|ops| {
            let a = a.clone();
            tokio::spawn(async move {
                a.submit(Origin::Kernel, Commitment::Committed, ops)
                    .await
                    .map(drop)
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let largest = log
        .state
        .lock()
        .entries
        .iter()
        .map(|e| e.payload.len())
        .max();
    assert!(largest.unwrap() <= 5 << 20);
    let b = replica(&dir, "b", &log).await;
    assert_eq!(dump(&a), dump(&b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_replica_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(5, 0);
    let a = replica(&dir, "a", &log).await;
    let first = a.new_ino().unwrap();
    submit(&a, create_op(first, Ino::ROOT, b"f", FILE, Time(1)))
        .await
        .unwrap();
    a.close();
    assert!(matches!(
        submit(&a, rename("f", "g", 2)).await,
        Err(TreeError::Unavailable(_))
    ));
    drop(a);
    let b = replica(&dir, "b", &log).await;
    submit(&b, rename("f", "g", 2)).await.unwrap();
    let a = replica(&dir, "a", &log).await;
    assert_eq!(a.read(|q| q.lookup(Ino::ROOT, b"g")).unwrap().ino, first);
    assert!(a.new_ino().unwrap() > first);
    assert_eq!(dump(&a), dump(&b));
}

/// What SQLite rolled back when the disk was full is not in the log, and what is in the log is applied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_full_disk_does_not_let_a_replica_diverge() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(5, 0);
    let a = replica(&dir, "a", &log).await;
    super::durability::limit_pages(&a, true);
    // All at once, so that they share batches: what comes before and after the one that finds the disk full.
    let tasks: Vec<_> = (0..60)
        .map(|i| {
            let a = a.clone();
            tokio::spawn(async move {
                let short = format!("f{i}");
                let ops = [short.as_bytes(), &[i as u8 + 1; 200]]
                    .map(|n| create_op(a.new_ino().unwrap(), Ino::ROOT, n, FILE, Time(i)));
                a.submit(Origin::Kernel, Commitment::Committed, ops.into())
                    .await
            })
        })
        .collect();
    let mut failed = 0;
    for task in tasks {
        failed += task.await.unwrap().is_err() as usize;
    }
    assert!(failed > 0);
    super::durability::limit_pages(&a, false);
    submit(
        &a,
        create_op(a.new_ino().unwrap(), Ino::ROOT, b"last", FILE, Time(99)),
    )
    .await
    .unwrap();
    let b = replica(&dir, "b", &log).await;
    assert_eq!(dump(&a), dump(&b));
    let entries = a.read(|q| q.readdir(Ino::ROOT, 0, 1000)).unwrap().len();
    assert_eq!(entries, 2 * (60 - failed) + 1);
}

/// Appended is done, for every node: when the local database fails directly afterwards, the submitter is told so only
/// once this replica has it, and never that it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_an_appended_op_is_not_answered_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(5, 0);
    let a = replica(&dir, "a", &log).await;
    for raise in ["ABORT", "ROLLBACK"] {
        a.sequencer
            .ask_writer(|q| {
                Ok(q.0.execute_batch(&format!(
                    "DROP TRIGGER IF EXISTS fails;
                     CREATE TEMP TABLE IF NOT EXISTS until(t); DELETE FROM until;
                     INSERT INTO until VALUES(unixepoch('subsec')+0.3);
                     CREATE TEMP TRIGGER fails BEFORE UPDATE ON main.meta
                       WHEN unixepoch('subsec')<(SELECT t FROM until)
                       BEGIN SELECT RAISE({raise}, 'as the test wants it'); END"
                ))?)
            })
            .unwrap();
        let before = log.state.lock().entries.len();
        let op = create_op(
            a.new_ino().unwrap(),
            Ino::ROOT,
            raise.as_bytes(),
            FILE,
            Time(1),
        );
        let created = submit(&a, op).await.unwrap().inode.unwrap();
        assert_eq!(
            a.read(|q| q.lookup(Ino::ROOT, raise.as_bytes())).unwrap(),
            created
        );
        assert_eq!(log.state.lock().entries.len(), before + 1);
    }
    let b = replica(&dir, "b", &log).await;
    assert_eq!(dump(&a), dump(&b));
}

/// The log says that there is more for as long as the leader cannot fetch it; asking again at once would be a busy loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_replica_that_is_behind_asks_with_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(1, 0);
    let a = replica(&dir, "a", &log).await;
    log.mute.store(true, Ordering::SeqCst);
    log.third_node(&mut log.state.lock());
    let before = log.asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(log.asked.load(Ordering::SeqCst) - before < 20);
    log.mute.store(false, Ordering::SeqCst);
    a.catch_up().await.unwrap();
    assert_eq!(a.applied().unwrap(), Seq(1));
}

/// What a node appended it need not fetch: a change costs the log one append. What others appended is there in a moment
/// all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_node_does_not_read_its_own_entries() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(1, 0);
    log.slow.store(true, Ordering::SeqCst);
    let a = replica(&dir, "a", &log).await;
    let (before, begun) = (log.reads.load(Ordering::SeqCst), Instant::now());
    for i in 0..300 {
        let name = format!("f{i}");
        let ino = a.new_ino().unwrap();
        let op = create_op(ino, Ino::ROOT, name.as_bytes(), FILE, Time(i));
        submit(&a, op).await.unwrap();
    }
    // The watch may look by itself, once a second.
    let looks = 10 + 2 * begun.elapsed().as_secs();
    let reads = log.reads.load(Ordering::SeqCst) - before;
    assert!(reads <= looks, "{reads} reads for 300 changes");
    // A refusal is still held against the head: another node may have made room.
    let refused = submit(&a, rename("nothing", "x", 1)).await;
    assert_eq!(refused, Err(TreeError::NotFound));
    assert!(log.reads.load(Ordering::SeqCst) > before);

    let b = replica(&dir, "b", &log).await;
    let mut slowest = Duration::ZERO;
    for i in 0..20 {
        let name = format!("g{i}");
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let ino = from.new_ino().unwrap();
        let op = create_op(ino, Ino::ROOT, name.as_bytes(), FILE, Time(i));
        submit(from, op).await.unwrap();
        let begun = Instant::now();
        while to.read(|q| q.lookup(Ino::ROOT, name.as_bytes())).is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{name} never came"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        slowest = slowest.max(begun.elapsed());
    }
    // Far below the second after which the watch looks by itself.
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// A data directory that was put back from an older copy does not give out numbers that the log has seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_an_older_copy_of_a_replica_does_not_reuse_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::new(1, 0);
    let a = replica(&dir, "a", &log).await;
    let ino = a.new_ino().unwrap();
    submit(&a, create_op(ino, Ino::ROOT, b"f", FILE, Time(1)))
        .await
        .unwrap();
    drop(a);
    let older = tempfile::tempdir().unwrap();
    let a = replica(&older, "a", &log).await;
    assert!(a.new_ino().unwrap() > ino);
}
