//! Nodes that lose the log, work on, and come back: what each did while alone ends in one tree, and nothing is dropped.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::replicas::{HostileLog, submit};
use super::*;
use crate::backend::{Append, BackendError, BlobReader, LogEntry};

/// One node's way to the shared log, which can be cut.
struct Way {
    log: Arc<HostileLog>,
    cut: AtomicBool,
    /// The next append arrives, but its answer does not, and the way is cut.
    lose_answer: AtomicBool,
    /// How long an append takes, in milliseconds.
    slow: AtomicU64,
}

impl Way {
    fn open(&self) -> crate::backend::Result<()> {
        match self.cut.load(Ordering::SeqCst) {
            true => Err(BackendError::Unavailable("cut".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl TreeLog for Way {
    async fn append(&self, entry: &LogEntry) -> crate::backend::Result<Append> {
        self.open()?;
        let slow = Duration::from_millis(self.slow.load(Ordering::SeqCst));
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        let outcome = self.log.append(entry).await;
        if self.lose_answer.swap(false, Ordering::SeqCst) {
            self.cut.store(true, Ordering::SeqCst);
            return Err(BackendError::Unavailable("the answer was lost".into()));
        }
        outcome
    }

    async fn read(&self, from: Seq, limit: usize) -> crate::backend::Result<Vec<LogEntry>> {
        self.open()?;
        self.log.read(from, limit).await
    }

    async fn head(&self) -> crate::backend::Result<Seq> {
        self.open()?;
        self.log.head().await
    }

    async fn changed(&self, after: Seq) -> crate::backend::Result<Seq> {
        self.open()?;
        self.log.changed(after).await
    }

    async fn register(&self, node: &NodeId) -> crate::backend::Result<u32> {
        self.log.register(node).await
    }

    async fn put_checkpoint(&self, seq: Seq, file: &Path) -> crate::backend::Result<()> {
        self.open()?;
        self.log.put_checkpoint(seq, file).await
    }

    async fn checkpoint(
        &self,
        before: Option<Seq>,
    ) -> crate::backend::Result<Option<(Seq, BlobReader)>> {
        self.open()?;
        self.log.checkpoint(before).await
    }

    fn checkpoint_every(&self) -> u64 {
        self.log.checkpoint_every()
    }

    async fn trim(&self, seq: Seq) -> crate::backend::Result<()> {
        self.open()?;
        self.log.trim(seq).await
    }
}

/// A node with its own way to the log, and the bytes that it holds: what was last written to each inode.
pub(super) struct Node {
    name: &'static str,
    path: std::path::PathBuf,
    way: Arc<Way>,
    tree: Option<Arc<Tree>>,
    spool: Arc<Held>,
}

/// What was last written to each inode.
#[derive(Default)]
struct Held {
    bytes: Mutex<std::collections::HashMap<Ino, u64>>,
    /// How often there was no room for bytes of this number.
    refused: AtomicU64,
}

/// Bytes for which there is no room twice.
const LARGE: u64 = 1 << 40;

impl Held {
    fn lock(&self) -> parking_lot::MutexGuard<'_, std::collections::HashMap<Ino, u64>> {
        self.bytes.lock()
    }
}

impl Holdings for Held {
    fn keep_aside(&self, from: Ino, to: Ino) -> std::io::Result<bool> {
        let mut held = self.lock();
        let bytes = *held.get(&from).ok_or(std::io::ErrorKind::NotFound)?;
        if bytes == LARGE {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        held.insert(to, bytes);
        Ok(true)
    }

    fn lose_soon(&self, _: &[(Ino, Generation)]) {}

    fn lose_not(&self, _: &[(Ino, Generation)]) {}

    fn has(&self, ino: Ino, _: Generation) -> bool {
        self.lock().contains_key(&ino)
    }

    fn give_up(&self, versions: &[(Ino, Generation)]) -> std::io::Result<()> {
        let mut held = self.lock();
        for (ino, _) in versions {
            held.remove(ino);
        }
        Ok(())
    }

    fn drop_aside(&self, ino: Ino) {
        self.lock().remove(&ino);
    }
}

impl Node {
    pub(super) async fn new(
        dir: &tempfile::TempDir,
        name: &'static str,
        log: &Arc<HostileLog>,
    ) -> Node {
        let mut node = Node {
            name,
            path: dir.path().join(name),
            way: Arc::new(Way {
                log: log.clone(),
                cut: AtomicBool::new(false),
                lose_answer: AtomicBool::new(false),
                slow: AtomicU64::new(0),
            }),
            tree: None,
            spool: Arc::default(),
        };
        node.start().await;
        node
    }

    pub(super) async fn start(&mut self) {
        let log: Arc<dyn TreeLog> = self.way.clone();
        let id = NodeId(self.name.into());
        let tree = Tree::open(&self.path, &id, Some(log), Box::new(|_, _| {})).await;
        let tree = Arc::new(tree.unwrap());
        tree.merge_with(self.spool.clone());
        self.tree = Some(tree);
    }

    pub(super) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(super) async fn stop(&mut self) {
        let tree = self.tree.take().unwrap();
        tree.close();
        // Its thread lets go of the database when it has seen that.
        while Arc::strong_count(&tree) > 1 {
            tokio::task::yield_now().await;
        }
        drop(tree);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        self.tree.as_ref().unwrap()
    }

    pub(super) fn cut(&self) {
        self.way.cut.store(true, Ordering::SeqCst);
    }

    pub(super) async fn heal(&self) {
        self.way.cut.store(false, Ordering::SeqCst);
        let patience = std::time::Instant::now() + Duration::from_secs(30);
        while self.tree().waiting().unwrap() > 0 {
            assert!(
                std::time::Instant::now() < patience,
                "{}: not merged",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.tree().catch_up().await.unwrap();
    }

    pub(super) async fn make(&self, n: &str, mode: u32, now: i64) -> Ino {
        self.make_in(Ino::ROOT, n, mode, now).await.unwrap()
    }

    async fn make_in(&self, parent: Ino, n: &str, mode: u32, now: i64) -> Result<Ino> {
        let ino = self.tree().new_ino().unwrap();
        let op = create_op(ino, parent, n.as_bytes(), mode, Time(now));
        submit(self.tree(), op).await.map(|_| ino)
    }

    /// Closes the file with these bytes, told apart by their number.
    pub(super) async fn write(&self, ino: Ino, bytes: u64, now: i64) -> Result<()> {
        let generation = self.tree().read(|q| q.inode(ino))?.generation.next();
        let op = Op::Pending {
            ino,
            generation,
            node: NodeId(self.name.into()),
            size: bytes,
            mtime: Time(now),
            ctime: Time(now),
        };
        self.spool.lock().insert(ino, bytes);
        submit(self.tree(), op).await.map(|_| ())
    }

    pub(super) async fn unlink(&self, n: &str, now: i64) -> Result<Applied> {
        let op = Op::Unlink {
            parent: Ino::ROOT,
            name: bytes(n),
            now: Time(now),
        };
        submit(self.tree(), op).await
    }

    pub(super) fn find(&self, n: &str) -> Option<Inode> {
        self.tree().read(|q| q.lookup(Ino::ROOT, n.as_bytes())).ok()
    }

    fn names(&self) -> Vec<String> {
        let listed = self
            .tree()
            .read(|q| q.readdir(Ino::ROOT, 0, 10_000))
            .unwrap();
        let mut names: Vec<String> = listed
            .into_iter()
            .map(|d| String::from_utf8(d.name).unwrap())
            .collect();
        names.sort();
        names
    }
}

pub(super) async fn pair(log: &Arc<HostileLog>) -> (tempfile::TempDir, Node, Node) {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (
        Node::new(&dir, "a", log).await,
        Node::new(&dir, "b", log).await,
    );
    (dir, a, b)
}

pub(super) fn same(a: &Node, b: &Node) {
    assert_eq!(dump(a.tree()), dump(b.tree()));
    a.tree()
        .read(|q| {
            check_tables(q.0);
            Ok(())
        })
        .unwrap();
}

/// The node of a cut way works on, also after a restart, and everybody has it in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_without_the_log_arrives_later() {
    let log = HostileLog::new(1, 0);
    let (_dir, mut a, b) = pair(&log).await;
    let old = a.make("old", FILE, 1).await;
    b.tree().catch_up().await.unwrap();
    a.cut();
    let new = a.make("new", FILE, 2).await;
    a.write(new, 10, 3).await.unwrap();
    a.write(old, 20, 4).await.unwrap();
    assert!(a.make_in(Ino::ROOT, "new", FILE, 5).await.is_err());
    assert_eq!(a.find("new").unwrap().size, 10);
    assert!(b.find("new").is_none());
    let waiting = a.tree().waiting().unwrap();
    assert_eq!(waiting, 3);
    b.make("from-b", FILE, 6).await;
    a.way.cut.store(false, Ordering::SeqCst);
    a.cut();
    a.restart().await;
    assert_eq!(a.find("new").unwrap().size, 10);
    a.heal().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(b.names(), ["from-b", "new", "old"]);
    assert_eq!(b.find("old").unwrap().size, 20);
}

/// An append whose answer was lost is in the log, and not once more in the outbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_does_not_happen_twice() {
    let log = HostileLog::new(2, 0);
    let (_dir, a, b) = pair(&log).await;
    a.way.lose_answer.store(true, Ordering::SeqCst);
    let ino = a.make("once", FILE, 1).await;
    a.make("after", FILE, 2).await;
    b.tree().catch_up().await.unwrap();
    assert_eq!(b.names(), ["once"], "the entry whose answer was lost");
    a.heal().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(a.names(), ["after", "once"]);
    assert_eq!(a.find("once").unwrap().ino, ino);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_both_did_is_kept() {
    let log = HostileLog::new(3, 0);
    let (_dir, a, b) = pair(&log).await;
    let both_write = a.make("both-write", FILE, 1).await;
    let removed_there = a.make("removed-there", FILE, 1).await;
    let removed_here = a.make("removed-here", FILE, 1).await;
    let dir = a.make("dir", DIR, 1).await;
    b.tree().catch_up().await.unwrap();
    a.cut();
    // a, alone.
    let taken = a.make("taken", FILE, 2).await;
    a.write(taken, 1, 3).await.unwrap();
    let ours = a.make("made-twice", DIR, 4).await;
    let in_it = a.make_in(ours, "a", FILE, 5).await.unwrap();
    a.write(both_write, 6, 6).await.unwrap();
    a.write(removed_there, 7, 7).await.unwrap();
    a.unlink("removed-here", 8).await.unwrap();
    let late = a.make_in(dir, "late", FILE, 9).await.unwrap();
    a.write(late, 9, 9).await.unwrap();
    // Meanwhile b.
    let theirs = b.make("taken", FILE, 20).await;
    b.write(theirs, 100, 21).await.unwrap();
    let theirs_dir = b.make("made-twice", DIR, 22).await;
    b.make_in(theirs_dir, "b", FILE, 23).await.unwrap();
    b.write(both_write, 106, 24).await.unwrap();
    b.unlink("removed-there", 25).await.unwrap();
    b.write(removed_here, 108, 26).await.unwrap();
    let op = Op::Rmdir {
        parent: Ino::ROOT,
        name: bytes("dir"),
        now: Time(27),
    };
    submit(b.tree(), op).await.unwrap();

    a.heal().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    let names = b.names();
    let aside = |n: &str| {
        let prefix = format!("{n}.conflict-a-");
        let found: Vec<&String> = names.iter().filter(|x| x.starts_with(&prefix)).collect();
        assert_eq!(found.len(), 1, "{n}: {names:?}");
        b.find(found[0]).unwrap()
    };
    assert_eq!(b.find("taken").unwrap().ino, theirs);
    assert_eq!(aside("taken").ino, taken);
    assert_eq!(b.find("both-write").unwrap().size, 106);
    let kept = aside("both-write");
    assert_eq!((kept.size, a.spool.lock()[&kept.ino]), (6, 6));
    // Removed there and written here: it is back, under its name.
    let back = b.find("removed-there").unwrap();
    assert_eq!((back.size, a.spool.lock()[&back.ino]), (7, 7));
    // Removed here and written there: the writer's.
    assert_eq!(b.find("removed-here").unwrap().size, 108);
    // Two directories of one name are one.
    assert_eq!(b.find("made-twice").unwrap().ino, theirs_dir);
    let inside = b.tree().read(|q| q.readdir(theirs_dir, 0, 10)).unwrap();
    assert_eq!(inside.len(), 2);
    assert!(inside.iter().any(|d| d.ino == in_it));
    // A directory that was removed there has a file from here.
    let dir = b.find("dir").unwrap();
    let inside = b.tree().read(|q| q.readdir(dir.ino, 0, 10)).unwrap();
    assert_eq!(inside[0].ino, late);
    assert_eq!(names.len(), 8, "{names:?}");
}

/// However often one node closed a file while it was alone, another node's version is no older for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_many_closes_do_not_outnumber_another_node() {
    let log = HostileLog::new(4, 0);
    let (_dir, a, b) = pair(&log).await;
    let ino = a.make("f", FILE, 1).await;
    b.tree().catch_up().await.unwrap();
    a.cut();
    for content in 10..15 {
        a.write(ino, content, 2).await.unwrap();
    }
    a.unlink("f", 3).await.unwrap();
    b.write(ino, 100, 4).await.unwrap();
    a.heal().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(b.find("f").unwrap().size, 100);
}

/// Each attempt goes on where the one before it stopped: a merge for which there is no room does not fill the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_merge_that_lacks_space_keeps_nothing_twice() {
    let log = HostileLog::new(5, 0);
    let (_dir, a, b) = pair(&log).await;
    let small = a.make("small", FILE, 1).await;
    let large = a.make("large", FILE, 1).await;
    b.tree().catch_up().await.unwrap();
    a.cut();
    a.write(small, 10, 2).await.unwrap();
    a.write(large, LARGE, 3).await.unwrap();
    b.write(small, 100, 4).await.unwrap();
    b.write(large, 100, 5).await.unwrap();
    a.way.cut.store(false, Ordering::SeqCst);
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while a.spool.refused.load(Ordering::SeqCst) < 3 {
        assert!(std::time::Instant::now() < patience, "never tried again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held = a.spool.lock().values().filter(|b| **b == 10).count();
    assert_eq!(held, 2, "the file, and once what is kept aside");
    a.spool.lock().insert(large, 11);
    a.heal().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(b.names().len(), 4);
    let mut held: Vec<u64> = a.spool.lock().values().copied().collect();
    held.sort_unstable();
    assert_eq!(held, [10, 11]);
}

/// Who was about to announce a version again, and is slower than the merge that gave it up, is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_version_that_lost_does_not_come_back() {
    let log = HostileLog::new(6, 0);
    let (_dir, a, b) = pair(&log).await;
    let ino = a.make("f", FILE, 1).await;
    b.tree().catch_up().await.unwrap();
    a.cut();
    for content in 10..14 {
        a.write(ino, content, 2).await.unwrap();
    }
    let generation = a.tree().read(|q| q.inode(ino)).unwrap().generation;
    b.write(ino, 100, 3).await.unwrap();
    a.heal().await;
    let late = |size| Op::Pending {
        ino,
        generation,
        node: NodeId("a".into()),
        size,
        mtime: Time(4),
        ctime: Time(4),
    };
    let refused = submit(a.tree(), late(13)).await;
    assert_eq!(refused.map(drop), Err(TreeError::Superseded));
    assert_eq!(a.find("f").unwrap().size, 100);
    // A new one may come to the same number.
    a.spool.lock().insert(ino, 50);
    submit(a.tree(), late(50)).await.unwrap();
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(b.find("f").unwrap().size, 50);
}

/// Two nodes whose ways are cut and healed at random, writing and removing in one small directory: in the end both have
/// the same tree, and every content that was closed last under its inode and not removed is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_outages_lose_nothing() {
    let seeds = std::env::var("ONCEFS_MODEL_CASES").map_or(5, |n| n.parse().unwrap());
    let from = std::env::var("ONCEFS_MODEL_SEED").map_or(0, |n| n.parse().unwrap());
    for seed in from..from + seeds {
        random_outages(seed).await;
    }
}

async fn random_outages(seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let log = HostileLog::new(seed, 0);
    let (_dir, a, b) = pair(&log).await;
    let mut nodes = [a, b];
    // Contents that were closed, and neither removed nor closed again by who saw them: they must be somewhere in the end.
    let mut closed = std::collections::BTreeSet::new();
    let mut bytes_no = 1000;
    let mut history = Vec::new();
    for step in 0..60 {
        let side = chance.random_range(0..2);
        let now = 1_000_000_000 * (step + 1);
        let n = format!("f{}", chance.random_range(0..4));
        let who = nodes[side].name;
        // Who is not cut off sees everything, so that it is clear what an op is about.
        if !nodes[side].way.cut.load(Ordering::SeqCst) {
            nodes[side].tree().catch_up().await.unwrap();
        }
        match chance.random_range(0..12) {
            0 => {
                history.push(format!("{who} is cut off"));
                nodes[side].cut();
            }
            1 => {
                history.push(format!("{who} comes back"));
                nodes[side].heal().await;
            }
            2 if chance.random_bool(0.3) => {
                history.push(format!("{who} comes back and starts again"));
                nodes[side].heal().await;
                nodes[side].restart().await;
            }
            3 => {
                if let Some(inode) = nodes[side].find(&n)
                    && nodes[side].unlink(&n, now).await.is_ok()
                {
                    history.push(format!("{who} removes {n}, inode {}", inode.ino));
                    closed.remove(&inode.size);
                }
            }
            4 => {
                let to = format!("f{}", chance.random_range(0..4));
                let op = Op::Rename {
                    parent: Ino::ROOT,
                    name: bytes(&n),
                    new_parent: Ino::ROOT,
                    new_name: bytes(&to),
                    mode: RenameMode::NoReplace,
                    now: Time(now),
                };
                let moved = submit(nodes[side].tree(), op).await.map(|_| ());
                history.push(format!("{who} moves {n} to {to}: {moved:?}"));
            }
            _ => {
                let (ino, before) = match nodes[side].find(&n) {
                    Some(inode) => (inode.ino, inode.size),
                    None => match nodes[side].make_in(Ino::ROOT, &n, FILE, now).await {
                        Ok(ino) => (ino, 0),
                        Err(_) => continue,
                    },
                };
                bytes_no += 1;
                if nodes[side].write(ino, bytes_no, now).await.is_ok() {
                    history.push(format!(
                        "{who} closes {n}, inode {ino}, with content {bytes_no}"
                    ));
                    closed.remove(&before);
                    closed.insert(bytes_no);
                }
            }
        }
    }
    for node in &nodes {
        node.heal().await;
    }
    for node in &nodes {
        node.tree().catch_up().await.unwrap();
    }
    same(&nodes[0], &nodes[1]);
    let names = nodes[0].names();
    let found: Vec<u64> = names
        .iter()
        .map(|n| nodes[0].find(n).unwrap().size)
        .collect();
    for content in &closed {
        assert!(
            found.contains(content),
            "seed {seed}: content {content} is nowhere in {names:?}\n{}",
            history.join("\n")
        );
    }
}

/// A thread of the runtime that waited for the writer kept the log's answer, for which the writer is held, from coming: the
/// node stood still for good.
#[test]
fn regression_who_asks_the_writer_keeps_no_answer_away() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let node = Node::new(&dir, "a", &HostileLog::new(3, 0)).await;
            node.way.slow.store(400, Ordering::SeqCst);
            let tree = node.tree().clone();
            let appending = tokio::spawn(async move {
                let ino = tree.new_ino().unwrap();
                let op = create_op(ino, Ino::ROOT, b"f", FILE, Time(1));
                submit(&tree, op).await.unwrap();
            });
            tokio::time::sleep(Duration::from_millis(150)).await;
            let tree = node.tree().clone();
            let asking = tokio::spawn(async move {
                tree.note_unjudged(true).unwrap();
                assert!(tree.is_unjudged().unwrap());
                assert_eq!(tree.given_up().unwrap(), []);
            });
            appending.await.unwrap();
            asking.await.unwrap();
        });
        done.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(30)).unwrap();
}
