//! The promises of the seams in `oncefs::backend`, held against both sides by one suite, and what only the cluster
//! side promises, held against real servers.

#[allow(unsafe_code)]
mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::servers::{Etcd, Mongod, free_port, fresh_database, shared_etcd, shared_mongod};
use futures_util::future::join_all;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use oncefs::backend::file_locks::Attempt;
use oncefs::backend::ranges::{Family, Holder, Range, TO_THE_END};
use oncefs::backend::{
    self, Append, BackendError, Backends, FileRecord, LogEntry, Member, Object, Page, Put, TreeLog,
};
use oncefs::config::{ClusterConfig, Config, MountConfig};
use oncefs::types::{BlobId, ContentHash, Ino, NodeId, Seq, Status, Time};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

/// One side under test.
struct Side {
    /// Two nodes of the same tree. Embedded knows only one, so there both are the same.
    nodes: [Backends; 2],
    dir: TempDir,
    database: Option<mongodb::Database>,
}

impl Side {
    async fn embedded() -> Side {
        let dir = tempfile::tempdir().unwrap();
        let backends = backend::open(&config(dir.path(), None), &node("solo"), None)
            .await
            .unwrap();
        Side {
            nodes: [backends.clone(), backends],
            dir,
            database: None,
        }
    }

    async fn cluster() -> Side {
        Side::of(shared_mongod(), &shared_etcd().uri(), 30).await
    }

    async fn of(mongod: &Mongod, etcd: &str, ttl: u64) -> Side {
        let cluster = cluster_config(&mongod.uri(), etcd, ttl);
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), Some(cluster.clone()));
        let a = backend::open(&config, &node("a"), None).await.unwrap();
        let b = backend::open(&config, &node("b"), None).await.unwrap();
        let client = mongodb::Client::with_uri_str(mongod.uri()).await.unwrap();
        Side {
            nodes: [a, b],
            dir,
            database: Some(client.database(&cluster.database)),
        }
    }

    fn node(&self, i: usize) -> &Backends {
        &self.nodes[i % 2]
    }

    fn log(&self, i: usize) -> &dyn TreeLog {
        self.node(i).log.as_deref().unwrap()
    }

    /// A new source file with `bytes`.
    fn source(&self, bytes: &[u8]) -> (ContentHash, PathBuf) {
        let path = self
            .dir
            .path()
            .join(format!("source-{}", rand::random::<u64>()));
        std::fs::write(&path, bytes).unwrap();
        (hash_of(bytes), path)
    }

    async fn put(&self, i: usize, bytes: &[u8]) -> backend::Result<Put> {
        let (hash, path) = self.source(bytes);
        let blobs = &self.node(i).blobs;
        blobs.put(&hash, bytes.len() as u64, &path, &|| true).await
    }

    async fn read(&self, i: usize, blob: &BlobId) -> backend::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = self.node(i).blobs.get(blob).await?;
        reader.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    fn collection(&self, name: &str) -> mongodb::Collection<Document> {
        self.database.as_ref().unwrap().collection(name)
    }

    /// How many chunks the store holds; 0 for a side that has none.
    async fn chunks(&self) -> u64 {
        match &self.database {
            None => 0,
            Some(_) => self
                .collection("fs.chunks")
                .count_documents(doc! {})
                .await
                .unwrap(),
        }
    }
}

/// What is held by somebody's word, byte by byte: the exclusive ones once, the others by any number.
#[derive(Default)]
struct Believed(std::sync::Mutex<HashMap<(Family, u64), Vec<ByWhom>>>);

/// On which node, and whether exclusive.
type ByWhom = (Holder, usize, bool);

impl Believed {
    fn bytes(range: &Range) -> impl Iterator<Item = (Family, u64)> {
        (range.start..=range.end).map(|byte| (range.holder.family, byte))
    }

    fn taken(&self, node: usize, range: &Range) {
        let mut held = self.0.lock().unwrap();
        for byte in Believed::bytes(range) {
            let holders = held.entry(byte).or_default();
            holders.retain(|(holder, at, _)| (*holder, *at) != (range.holder, node));
            let excluded = holders
                .iter()
                .any(|(_, _, exclusive)| *exclusive || range.exclusive);
            assert!(!excluded, "{range:?} of node {node} beside {holders:?}");
            holders.push((range.holder, node, range.exclusive));
        }
    }

    fn given_up(&self, node: usize, range: &Range) {
        let mut held = self.0.lock().unwrap();
        for byte in Believed::bytes(range) {
            let holders = held.entry(byte).or_default();
            holders.retain(|(holder, at, _)| (*holder, *at) != (range.holder, node));
        }
    }
}

/// Owners on two nodes lock and unlock at random. What one is told to hold nobody else is told to hold.
#[tokio::test(flavor = "multi_thread")]
async fn file_locks_exclude_whatever_happens_at_once() {
    const OWNERS: u64 = 3;
    const STEPS: usize = 150;
    const BYTES: u64 = 8;
    let side = Side::cluster().await;
    let ino = Ino(rand::random());
    let believed = Believed::default();
    let got = AtomicUsize::new(0);
    let each = (0..2).flat_map(|node| (0..OWNERS).map(move |owner| (node, owner)));
    join_all(each.map(|(node, owner)| {
        let (side, believed, got) = (&side, &believed, &got);
        async move {
            let locks = side.node(node).file_locks.as_ref().unwrap();
            for _ in 0..STEPS {
                let (a, b) = (rand::random::<u64>() % BYTES, rand::random::<u64>() % BYTES);
                let family = if rand::random() {
                    Family::Posix
                } else {
                    Family::Flock
                };
                let (start, end) = match family {
                    Family::Posix => (a.min(b), a.max(b)),
                    Family::Flock => (0, BYTES - 1),
                };
                let range = Range {
                    holder: Holder { family, owner },
                    exclusive: rand::random(),
                    start,
                    end,
                    pid: 1,
                };
                // Before the call for what others may get by it, after it for what is got.
                if !range.exclusive || family == Family::Flock {
                    believed.given_up(node, &range);
                }
                match rand::random::<bool>() {
                    true => match locks.attempt(ino, range).await.unwrap() {
                        Attempt::Held(hold) => {
                            assert!(hold.is_valid());
                            got.fetch_add(1, Ordering::Relaxed);
                            believed.taken(node, &range);
                        }
                        Attempt::Busy(conflict, _) => {
                            assert_eq!(conflict.range.holder.family, family);
                            assert!(conflict.range.exclusive || range.exclusive);
                        }
                    },
                    false => {
                        believed.given_up(node, &range);
                        locks.give_up(ino, range.holder, start, end).await;
                    }
                }
            }
        }
    }))
    .await;
    let got = got.load(Ordering::Relaxed);
    assert!(got > STEPS / 10, "only {got} locks were had");
    // Nothing stays in anybody's way.
    for (node, owner) in (0..2).flat_map(|node| (0..OWNERS).map(move |owner| (node, owner))) {
        for family in [Family::Posix, Family::Flock] {
            let locks = side.node(node).file_locks.as_ref().unwrap();
            let holder = Holder { family, owner };
            locks.give_up(ino, holder, 0, TO_THE_END).await;
        }
    }
    for family in [Family::Posix, Family::Flock] {
        let whole = Range {
            holder: Holder { family, owner: 99 },
            exclusive: true,
            start: 0,
            end: TO_THE_END,
            pid: 1,
        };
        let locks = side.node(0).file_locks.as_ref().unwrap();
        assert_eq!(locks.conflict(ino, whole).await.unwrap(), None);
    }
}

fn node(name: &str) -> NodeId {
    NodeId(format!("{name}-00000000"))
}

fn cluster_config(mongodb: &str, etcd: &str, ttl: u64) -> ClusterConfig {
    ClusterConfig {
        mongodb: mongodb.to_string(),
        etcd: vec![etcd.to_string()],
        database: fresh_database(),
        lock_ttl: Duration::from_secs(ttl),
        checkpoint_every: 10_000,
        etcd_tls: Default::default(),
    }
}

fn config(dir: &Path, cluster: Option<ClusterConfig>) -> Config {
    Config {
        mountpoint: dir.join("mnt"),
        data_dir: dir.join("data"),
        cluster,
        peer: None,
        api: None,
        api_tls: None,
        workers: 1,
        queue: 1,
        cache_bytes: 1 << 30,
        mount: MountConfig::default(),
        gc_grace: Duration::from_secs(1),
        token: None,
    }
}

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(Sha256::digest(bytes).into())
}

fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rand::fill(&mut bytes[..]);
    bytes
}

/// Instantiates each named contract for both sides.
macro_rules! both_sides {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Side::embedded().await).await })*
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Side::cluster().await).await })*
        }
    };
}

both_sides!(
    what_was_put_can_be_read,
    of_many_puts_one_stores,
    a_closed_gate_publishes_nothing,
    a_put_can_be_repeated,
    removed_content_is_gone_and_can_be_stored_again,
    foreign_blob_ids_are_not_found,
    stored_content_is_not_unfinished,
    faults_are_told_one_by_one,
    locks_exclude_and_fences_grow,
    locks_of_different_hashes_do_not_wait,
    a_waiter_that_gives_up_leaves_no_trace,
    records_only_go_forward,
    records_heed_fences,
    a_member_sees_itself,
);

// ---- BlobStore ----

async fn what_was_put_can_be_read(side: Side) {
    // Around the sizes of a chunk and of a batch of chunks.
    let chunk = 255 * 1024;
    for len in [
        0,
        1,
        chunk - 1,
        chunk,
        chunk + 1,
        16 * chunk,
        16 * chunk + 1,
        40 * chunk + 7,
    ] {
        let bytes = random_bytes(len);
        let put = side.put(0, &bytes).await.unwrap();
        assert!(matches!(put, Put::Stored(_)), "{len}: {put:?}");
        assert!(side.read(1, put.blob()).await.unwrap() == bytes, "{len}");
    }
}

async fn of_many_puts_one_stores(side: Side) {
    let side = Arc::new(side);
    let bytes = Arc::new(random_bytes(600_000));
    let puts = (0..16).map(|i| {
        let (side, bytes) = (side.clone(), bytes.clone());
        tokio::spawn(async move { side.put(i, &bytes).await.unwrap() })
    });
    let puts: Vec<Put> = join_all(puts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let stored: Vec<&Put> = puts
        .iter()
        .filter(|p| matches!(p, Put::Stored(_)))
        .collect();
    assert_eq!(stored.len(), 1, "{puts:?}");
    assert!(puts.iter().all(|p| p.blob() == stored[0].blob()));
    assert!(side.read(0, stored[0].blob()).await.unwrap() == *bytes);
    if side.database.is_some() {
        assert_eq!(side.chunks().await, 3, "losers left chunks behind");
    }
}

async fn a_closed_gate_publishes_nothing(side: Side) {
    let bytes = random_bytes(1000);
    let (hash, path) = side.source(&bytes);
    let asked = AtomicUsize::new(0);
    let gate = || {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    };
    let put = side.node(0).blobs.put(&hash, 1000, &path, &gate).await;
    assert!(matches!(put, Err(BackendError::Cancelled)), "{put:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(side.chunks().await, 0);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // Had anything been published, this would be a duplicate.
    assert!(matches!(side.put(0, &bytes).await.unwrap(), Put::Stored(_)));
}

async fn a_put_can_be_repeated(side: Side) {
    let bytes = random_bytes(1000);
    let (hash, path) = side.source(&bytes);
    let first = side
        .node(0)
        .blobs
        .put(&hash, 1000, &path, &|| true)
        .await
        .unwrap();
    let again = side
        .node(0)
        .blobs
        .put(&hash, 1000, &path, &|| true)
        .await
        .unwrap();
    assert_eq!(first.blob(), again.blob());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

async fn removed_content_is_gone_and_can_be_stored_again(side: Side) {
    let bytes = random_bytes(1000);
    let put = side.put(0, &bytes).await.unwrap();
    for _ in 0..2 {
        side.node(1).blobs.delete(put.blob()).await.unwrap();
    }
    let read = side.read(0, put.blob()).await;
    assert!(matches!(read, Err(BackendError::NotFound)), "{read:?}");
    assert_eq!(side.chunks().await, 0);
    let again = side.put(1, &bytes).await.unwrap();
    assert!(matches!(again, Put::Stored(_)));
    assert_eq!(side.read(0, again.blob()).await.unwrap(), bytes);
}

async fn foreign_blob_ids_are_not_found(side: Side) {
    for id in [
        "",
        "x",
        "../../../etc/passwd",
        &"0".repeat(64),
        &"0".repeat(24),
    ] {
        let blob = BlobId(id.to_string());
        let got = side.node(0).blobs.get(&blob).await.map(|_| ());
        assert!(matches!(got, Err(BackendError::NotFound)), "{id}: {got:?}");
        side.node(0).blobs.delete(&blob).await.unwrap();
    }
}

async fn stored_content_is_not_unfinished(side: Side) {
    let bytes = random_bytes(600_000);
    side.put(0, &bytes).await.unwrap();
    let unfinished = side.node(1).blobs.unfinished(Duration::ZERO).await;
    assert_eq!(unfinished.unwrap(), []);
}

async fn faults_are_told_one_by_one(side: Side) {
    let (gone, stays) = (random_bytes(600_000), random_bytes(1));
    let (gone, stays) = (
        side.put(0, &gone).await.unwrap(),
        side.put(1, &stays).await.unwrap(),
    );
    let foreign = BlobId("x".into());
    let asked = [foreign, gone.blob().clone(), stays.blob().clone()];
    for seen in [[true, false, false], [true, true, false]] {
        let faults = side.node(1).blobs.faults(&asked).await.unwrap();
        assert_eq!(
            faults.iter().map(Option::is_some).collect::<Vec<_>>(),
            seen,
            "{faults:?}"
        );
        for (blob, seen) in asked.iter().zip(seen) {
            assert_eq!(side.node(0).blobs.is_whole(blob).await.unwrap(), !seen);
        }
        side.node(0).blobs.delete(gone.blob()).await.unwrap();
    }
    assert!(side.node(0).blobs.faults(&[]).await.unwrap().is_empty());
}

// ---- Locks ----

async fn locks_exclude_and_fences_grow(side: Side) {
    let side = Arc::new(side);
    let hash = hash_of(&random_bytes(8));
    let inside = Arc::new(AtomicBool::new(false));
    let fences = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tasks = (0..12).map(|i| {
        let (side, inside, fences) = (side.clone(), inside.clone(), fences.clone());
        tokio::spawn(async move {
            for _ in 0..3 {
                let lock = side.node(i).locks.acquire(&hash).await.unwrap();
                assert!(
                    !inside.swap(true, Ordering::SeqCst),
                    "two hold the same lock"
                );
                assert!(lock.is_valid());
                fences.lock().unwrap().push(lock.fence);
                tokio::time::sleep(Duration::from_millis(2)).await;
                inside.store(false, Ordering::SeqCst);
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let fences = fences.lock().unwrap();
    assert_eq!(fences.len(), 36);
    assert!(
        fences[0] > 0 && fences.is_sorted_by(|a, b| a < b),
        "{fences:?}"
    );
}

async fn locks_of_different_hashes_do_not_wait(side: Side) {
    let _held = side.node(0).locks.acquire(&hash_of(b"one")).await.unwrap();
    let other = hash_of(&random_bytes(8));
    let other = side.node(0).locks.acquire(&other);
    tokio::time::timeout(Duration::from_secs(5), other)
        .await
        .unwrap()
        .unwrap();
}

async fn a_waiter_that_gives_up_leaves_no_trace(side: Side) {
    let hash = hash_of(&random_bytes(8));
    let held = side.node(0).locks.acquire(&hash).await.unwrap();
    for i in 0..4 {
        let waiter = side.node(i).locks.acquire(&hash);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), waiter)
                .await
                .is_err()
        );
    }
    drop(held);
    let next = side.node(1).locks.acquire(&hash);
    let next = tokio::time::timeout(Duration::from_secs(5), next)
        .await
        .unwrap();
    assert!(next.unwrap().fence > 0);
}

// ---- Records ----

fn record(hash: ContentHash, status: Status, fence: u64) -> FileRecord {
    FileRecord {
        hash,
        filename: format!("at-{status}-{fence}.txt"),
        size: 5_000_000_000,
        status,
        worker: Some(format!("worker-{fence}")),
        node: node("a"),
        uploaded_at: Time(1_700_000_000_000_000_000 + fence as i64 * 1_000_000_000),
        started_at: (status > Status::Queued).then_some(Time(1_700_000_100_123_000_000)),
        done_at: (status >= Status::Done).then_some(Time(1_700_000_200_000_000_000)),
        fence,
        error: (status == Status::Failed).then(|| "no space".to_string()),
    }
}

async fn records_only_go_forward(side: Side) {
    use Status::*;
    let hash = hash_of(&random_bytes(8));
    let (writer, reader) = (&side.node(0).records, &side.node(1).records);
    assert_eq!(reader.get(&hash).await.unwrap(), None);
    for (write, expected) in [
        (Queued, Queued),
        (Processing, Processing),
        (Queued, Processing),
        (Failed, Failed),
        (Queued, Failed),
        (Processing, Processing),
    ] {
        writer.advance(&record(hash, write, 1)).await.unwrap();
        let kept = reader.get(&hash).await.unwrap().unwrap();
        assert_eq!(kept.status, expected, "after {write}");
        assert_eq!(kept.error.is_some(), expected == Failed, "after {write}");
        // Of the first writer.
        assert_eq!(kept.filename, "at-queued-1.txt");
        assert_eq!(kept.uploaded_at, record(hash, Queued, 1).uploaded_at);
        assert_eq!(kept.size, 5_000_000_000);
        if kept.status != Queued {
            assert_eq!(kept.started_at, record(hash, Processing, 1).started_at);
        }
    }
    writer.advance(&record(hash, Done, 1)).await.unwrap();
    if let Some(kept) = reader.get(&hash).await.unwrap() {
        assert_eq!(
            (kept.status, kept.done_at),
            (Done, record(hash, Done, 1).done_at)
        );
        writer.advance(&record(hash, Processing, 9)).await.unwrap();
        assert_eq!(reader.get(&hash).await.unwrap().unwrap().status, Done);
    } else {
        assert!(
            side.database.is_none(),
            "only the embedded side forgets what is done"
        );
    }
    writer.remove(&hash).await.unwrap();
    writer.remove(&hash).await.unwrap();
    assert_eq!(reader.get(&hash).await.unwrap(), None);
}

async fn records_heed_fences(side: Side) {
    use Status::*;
    let hash = hash_of(&random_bytes(8));
    let records = &side.node(0).records;
    let status = async || {
        records
            .get(&hash)
            .await
            .unwrap()
            .map(|r| (r.status, r.fence))
    };
    records.advance(&record(hash, Processing, 5)).await.unwrap();
    for late in [
        record(hash, Failed, 4),
        record(hash, Done, 4),
        record(hash, Failed, 0),
    ] {
        records.advance(&late).await.unwrap();
        assert_eq!(status().await, Some((Processing, 5)), "{late:?}");
    }
    records.advance(&record(hash, Processing, 7)).await.unwrap();
    assert_eq!(status().await, Some((Processing, 7)));
    // A worker that had no lock service to ask still tells that the content is stored.
    records.advance(&record(hash, Done, 0)).await.unwrap();
    let kept = status().await;
    assert!(kept.is_none() || kept == Some((Done, 7)), "{kept:?}");
}

// ---- Membership ----

async fn a_member_sees_itself(side: Side) {
    let me = |name: &str| Member {
        node: node(name),
        mountpoint: "/mnt".to_string(),
        peer: String::new(),
        api: String::new(),
        version: "1".to_string(),
        started_at: Time(5),
        load: Default::default(),
    };
    side.node(0).membership.join(me("a")).await.unwrap();
    assert!(side.node(0).membership.members().await.contains(&me("a")));
    let health = side.node(0).membership.health().await;
    assert_eq!(
        (health.etcd, health.mongo),
        (side.database.is_some(), side.database.is_some())
    );
    if side.database.is_some() {
        side.node(1).membership.join(me("b")).await.unwrap();
        let both = vec![me("a"), me("b")];
        eventually(5, async || side.node(0).membership.members().await == both).await;
        eventually(5, async || side.node(1).membership.members().await == both).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_is_a_member_no_more() {
    let Side { nodes: [a, b], .. } = Side::cluster().await;
    let me = |name: &str| Member {
        node: node(name),
        mountpoint: "/mnt".to_string(),
        peer: String::new(),
        api: String::new(),
        version: "1".to_string(),
        started_at: Time(5),
        load: Default::default(),
    };
    a.membership.join(me("a")).await.unwrap();
    b.membership.join(me("b")).await.unwrap();
    eventually(5, async || a.membership.members().await.len() == 2).await;
    // Long before its lease of 30 s would run out.
    drop(b);
    eventually(5, async || a.membership.members().await == [me("a")]).await;
}

/// Waits until `check` holds, for at most `secs` seconds.
async fn eventually(secs: u64, check: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(secs);
    while !check().await {
        assert!(
            Instant::now() < deadline,
            "it did not come about in {secs} s"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

// ---- TreeLog ----

fn entry(seq: u64, batch: &str) -> LogEntry {
    LogEntry {
        seq: Seq(seq),
        node: node("a"),
        batch: batch.to_string(),
        payload: format!("payload of {batch}").into_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_is_appended_by_compare_and_swap() {
    let side = Side::cluster().await;
    assert_eq!(side.log(0).head().await.unwrap(), Seq(0));
    assert_eq!(side.log(0).read(Seq(1), 10).await.unwrap(), []);
    assert_eq!(
        side.log(0).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(1).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(1).append(&entry(1, "y")).await.unwrap(),
        Append::Conflict
    );
    assert_eq!(
        side.log(1).append(&entry(2, "y")).await.unwrap(),
        Append::Appended
    );
    let gap = side.log(0).append(&entry(4, "z")).await;
    assert!(matches!(gap, Err(BackendError::Unusable(_))), "{gap:?}");
    assert_eq!(side.log(0).head().await.unwrap(), Seq(2));
    let all = vec![entry(1, "x"), entry(2, "y")];
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap(), all);
    assert_eq!(side.log(1).read(Seq(1), 1).await.unwrap(), all[..1]);
    assert_eq!(side.log(1).read(Seq(1), 0).await.unwrap(), []);
    assert_eq!(side.log(1).read(Seq(3), 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_positions_have_one_winner() {
    let side = Arc::new(Side::cluster().await);
    for seq in 1..=5 {
        let racers = (0..16).map(|i| {
            let side = side.clone();
            tokio::spawn(async move {
                side.log(i)
                    .append(&entry(seq, &format!("{seq}-{i}")))
                    .await
                    .unwrap()
            })
        });
        let outcomes = join_all(racers).await;
        let won = outcomes
            .iter()
            .filter(|o| matches!(o, Ok(Append::Appended)))
            .count();
        assert_eq!(won, 1, "{outcomes:?}");
    }
    assert_eq!(side.log(0).read(Seq(1), 100).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_start_moves_by_trim_only() {
    let side = Side::cluster().await;
    for seq in 1..=6 {
        side.log(0)
            .append(&entry(seq, &format!("b{seq}")))
            .await
            .unwrap();
    }
    side.log(0).trim(Seq(4)).await.unwrap();
    side.log(1).trim(Seq(2)).await.unwrap();
    for from in [1, 4] {
        let read = side.log(1).read(Seq(from), 10).await;
        assert!(
            matches!(read, Err(BackendError::NotFound)),
            "{from}: {read:?}"
        );
    }
    assert_eq!(side.log(1).read(Seq(5), 10).await.unwrap().len(), 2);
    // A freed position is not free, neither for a new batch nor for the one that was there.
    for batch in ["new", "b3"] {
        let late = side.log(1).append(&entry(3, batch)).await;
        assert!(matches!(late, Err(BackendError::NotFound)), "{late:?}");
    }
    assert_eq!(
        side.collection("log")
            .count_documents(doc! {})
            .await
            .unwrap(),
        2
    );
    // Also when nothing is left, and when more is asked for than there is.
    side.log(0).trim(Seq(100)).await.unwrap();
    assert_eq!(side.log(1).head().await.unwrap(), Seq(6));
    assert_eq!(
        side.log(1).append(&entry(7, "b7")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(0).read(Seq(7), 10).await.unwrap(),
        [entry(7, "b7")]
    );
}

/// A node that has much to catch up with takes it in pieces that fit its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_log_entries_are_read_a_few_at_a_time() {
    let side = Side::cluster().await;
    let large = |seq: u64| LogEntry {
        payload: vec![seq as u8; 3 << 20],
        ..entry(seq, &seq.to_string())
    };
    for seq in 1..=7 {
        let appended = side.log(0).append(&large(seq)).await.unwrap();
        assert_eq!(appended, Append::Appended);
    }
    let (mut next, mut pieces) = (1, 0);
    loop {
        let piece = side.log(1).read(Seq(next), 256).await.unwrap();
        assert!(piece.len() <= 3, "{} entries at once", piece.len());
        for (entry, seq) in piece.iter().zip(next..) {
            assert_eq!(*entry, large(seq));
        }
        if piece.is_empty() {
            break;
        }
        next += piece.len() as u64;
        pieces += 1;
    }
    assert_eq!((next, pieces), (8, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_followers_wake() {
    let side = Side::cluster().await;
    side.log(0).append(&entry(1, "x")).await.unwrap();
    side.log(1).changed(Seq(0)).await.unwrap();
    // Nothing new: it comes back after a second.
    let begun = Instant::now();
    side.log(1).changed(Seq(1)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3));
    // The change stream is open by now: something new comes at once.
    let mut fastest = Duration::MAX;
    for seq in 2..8 {
        let wait = async {
            side.log(1).changed(Seq(seq - 1)).await.unwrap();
            Instant::now()
        };
        let append = async {
            side.log(0)
                .append(&entry(seq, &seq.to_string()))
                .await
                .unwrap();
            Instant::now()
        };
        let (woken, appended) = tokio::join!(wait, append);
        fastest = fastest.min(woken.saturating_duration_since(appended));
        assert_eq!(side.log(1).read(Seq(seq), 1).await.unwrap().len(), 1);
        // It says how far it knows, so that a node can tell its own entries from news.
        for log in [0, 1] {
            let heard = side.log(log).changed(Seq(seq - 1)).await.unwrap();
            assert_eq!(heard, Seq(seq));
        }
    }
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_ranges_differ_and_last() {
    let side = Arc::new(Side::cluster().await);
    let calls = (0..16).map(|i| {
        let side = side.clone();
        tokio::spawn(async move {
            let name = format!("n{}", i / 2);
            (i / 2, side.log(i).register(&node(&name)).await.unwrap())
        })
    });
    let mut ranges: Vec<(usize, u32)> = join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    ranges.sort();
    ranges.dedup();
    assert_eq!(ranges.len(), 8, "one range per node: {ranges:?}");
    let mut numbers: Vec<u32> = ranges.iter().map(|r| r.1).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 8, "no range twice: {ranges:?}");
    assert!(numbers[0] >= 1);
    assert_eq!(
        side.log(1).register(&node("n0")).await.unwrap(),
        ranges[0].1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_checkpoint_wins() {
    let side = Side::cluster().await;
    assert!(side.log(0).checkpoint(None).await.unwrap().is_none());
    // 9 and 10: as text the order would be another.
    for seq in [2, 9, 10] {
        let (_, path) = side.source(format!("state after {seq}").as_bytes());
        side.log(0).put_checkpoint(Seq(seq), &path).await.unwrap();
        side.log(1).put_checkpoint(Seq(seq), &path).await.unwrap();
    }
    let (seq, mut reader) = side.log(1).checkpoint(None).await.unwrap().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    assert_eq!((seq, text.as_str()), (Seq(10), "state after 10"));
    // And the one before, for whom the newest is of no use.
    let older = |before| side.log(1).checkpoint(Some(before));
    assert_eq!(older(Seq(10)).await.unwrap().unwrap().0, Seq(9));
    assert!(older(Seq(9)).await.unwrap().is_none());
    let kept = side
        .collection("checkpoints.files")
        .count_documents(doc! {})
        .await
        .unwrap();
    let chunks = side
        .collection("checkpoints.chunks")
        .count_documents(doc! {})
        .await
        .unwrap();
    assert_eq!((kept, chunks), (2, 2));
}

// ---- GridFS as others see it ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_content_is_plain_gridfs() {
    let side = Side::cluster().await;
    let bytes = random_bytes(20 * 255 * 1024 + 11);
    let put = side.put(0, &bytes).await.unwrap();
    let id = ObjectId::parse_str(&put.blob().0).unwrap();
    let bucket = side.database.as_ref().unwrap().gridfs_bucket(None);
    let name = hash_of(&bytes).to_string();
    let file = bucket
        .find_one(doc! { "filename": &name })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(file.id, Bson::ObjectId(id));
    assert_eq!(file.chunk_size_bytes, 261_120);
    assert_eq!(file.length, bytes.len() as u64);
    let mut read = Vec::new();
    let mut stream = bucket
        .open_download_stream(Bson::ObjectId(id))
        .await
        .unwrap();
    futures_util::AsyncReadExt::read_to_end(&mut stream, &mut read)
        .await
        .unwrap();
    assert!(read == bytes);
    let indexes = side.collection("fs.chunks").list_indexes().await.unwrap();
    let indexes: Vec<_> = futures_util::TryStreamExt::try_collect(indexes)
        .await
        .unwrap();
    let unique = indexes.iter().any(|index: &mongodb::IndexModel| {
        index.keys == doc! { "files_id": 1, "n": 1 }
            && index
                .options
                .as_ref()
                .is_some_and(|o| o.unique == Some(true))
    });
    assert!(unique);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_what_they_claim_are_not_published() {
    let side = Side::cluster().await;
    let (_, path) = side.source(&random_bytes(600_000));
    let claimed = hash_of(b"something else");
    for size in [600_000, 14] {
        let put = side
            .node(0)
            .blobs
            .put(&claimed, size, &path, &|| true)
            .await;
        assert!(matches!(put, Err(BackendError::Corrupt(_))), "{put:?}");
    }
    assert_eq!(side.chunks().await, 0);
    assert!(matches!(
        side.put(0, b"something else").await.unwrap(),
        Put::Stored(_)
    ));
}

/// What can become of the chunks of an object without anybody's will.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Removed(i32),
    Resized(i32, usize),
    Emptied,
}

impl Damage {
    async fn befall(self, side: &Side, blob: &BlobId) {
        let chunks = side.collection("fs.chunks");
        let mut chunk = doc! { "files_id": ObjectId::parse_str(&blob.0).unwrap() };
        match self {
            Damage::Removed(n) => {
                chunk.insert("n", n);
                chunks.delete_one(chunk).await.unwrap();
            }
            Damage::Resized(n, len) => {
                chunk.insert("n", n);
                let data = mongodb::bson::Binary {
                    subtype: mongodb::bson::spec::BinarySubtype::Generic,
                    bytes: vec![7; len],
                };
                let set = doc! { "$set": { "data": data } };
                chunks.update_one(chunk, set).await.unwrap();
            }
            Damage::Emptied => drop(chunks.delete_many(chunk).await.unwrap()),
        }
    }

    const ALL: [Damage; 6] = [
        Damage::Removed(0),
        Damage::Removed(1),
        Damage::Removed(2),
        Damage::Resized(1, 100),
        Damage::Resized(2, 300 * 1024),
        Damage::Emptied,
    ];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_and_short_chunks_are_damage() {
    let side = Side::cluster().await;
    for damage in Damage::ALL {
        let put = side.put(0, &random_bytes(3 * 255 * 1024)).await.unwrap();
        damage.befall(&side, put.blob()).await;
        let e = side.read(0, put.blob()).await.unwrap_err();
        let BackendError::Io(e) = e else {
            panic!("{damage:?}: {e}")
        };
        // A kind of trouble of its own: no waiting helps.
        let e = e.downcast::<BackendError>().unwrap();
        assert!(matches!(e, BackendError::Corrupt(_)), "{damage:?}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_is_a_duplicate_of_nothing() {
    let side = Side::cluster().await;
    for damage in Damage::ALL {
        let bytes = random_bytes(3 * 255 * 1024);
        let first = side.put(0, &bytes).await.unwrap();
        assert!(side.node(0).blobs.is_whole(first.blob()).await.unwrap());
        damage.befall(&side, first.blob()).await;
        // What only a reader can see, a reader says.
        if let Damage::Resized(..) = damage {
            side.node(0).blobs.condemn(first.blob()).await.unwrap();
        }
        assert!(!side.node(1).blobs.is_whole(first.blob()).await.unwrap());
        let again = side.put(1, &bytes).await.unwrap();
        assert!(matches!(again, Put::Stored(_)), "{damage:?}: {again:?}");
        assert!(side.read(0, again.blob()).await.unwrap() == bytes);
        assert!(side.node(0).blobs.is_whole(again.blob()).await.unwrap());
        let found = side.put(0, &bytes).await.unwrap();
        assert_eq!(found, Put::Duplicate(again.blob().clone()), "{damage:?}");
        side.node(0).blobs.delete(again.blob()).await.unwrap();
        assert_eq!(side.chunks().await, 0, "{damage:?}");
    }
    // What is not there cannot be noted, and is no error.
    let gone = BlobId("0".repeat(24));
    side.node(0).blobs.condemn(&gone).await.unwrap();
    assert!(!side.node(0).blobs.is_whole(&gone).await.unwrap());
}

fn aged_id(age: Duration) -> ObjectId {
    let mut bytes = ObjectId::new().bytes();
    let now = std::time::SystemTime::now();
    let then = now.duration_since(std::time::UNIX_EPOCH).unwrap() - age;
    bytes[..4].copy_from_slice(&(then.as_secs() as u32).to_be_bytes());
    ObjectId::from_bytes(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_objects_are_listed_in_pages() {
    let side = Side::cluster().await;
    let blobs = &side.node(1).blobs;
    let mut expected = Vec::new();
    for n in 0..5 {
        let bytes = random_bytes(n);
        let put = side.put(0, &bytes).await.unwrap();
        let (blob, hash) = (put.blob().clone(), hash_of(&bytes));
        expected.push(Object { blob, hash });
    }
    expected.sort_by(|a, b| a.blob.0.cmp(&b.blob.0));
    let hour = Duration::from_secs(3600);
    // What somebody else put there is not ours, and hides nothing.
    let foreign = [aged_id(hour), aged_id(hour), aged_id(hour)];
    for (n, id) in foreign.into_iter().enumerate() {
        let files = side.collection("fs.files");
        let file = doc! { "_id": id, "filename": format!("foreign-{n}") };
        files.insert_one(file).await.unwrap();
    }
    let young = blobs.published(None, 2 * hour, 10).await.unwrap();
    assert_eq!(young, Page::default());
    // Ids begin with their second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut found: Vec<Object> = Vec::new();
    let mut after = None;
    loop {
        let page = blobs.published(after.as_ref(), Duration::ZERO, 2).await;
        let page = page.unwrap();
        found.extend(page.objects);
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_uploads_are_told_from_slow_ones() {
    let side = Side::cluster().await;
    let hours = |h: u64| Duration::from_secs(h * 3600);
    let chunks = side.collection("fs.chunks");
    let stored = side.put(0, &random_bytes(600_000)).await.unwrap();
    // Dead; recent; and long under way, but alive a moment ago.
    let uploads = [
        (hours(2), hours(2)),
        (hours(0), hours(0)),
        (hours(9), hours(0)),
    ];
    let mut ids = Vec::new();
    for (begun, last) in uploads {
        let id = aged_id(begun);
        ids.push(BlobId(id.to_hex()));
        for (n, age) in [(0, begun), (1, last)] {
            let data = mongodb::bson::Binary {
                subtype: mongodb::bson::spec::BinarySubtype::Generic,
                bytes: vec![1; 10],
            };
            let chunk = doc! { "_id": aged_id(age), "files_id": id, "n": n, "data": data };
            chunks.insert_one(chunk).await.unwrap();
        }
    }
    let blobs = &side.node(0).blobs;
    assert_eq!(blobs.unfinished(hours(1)).await.unwrap(), ids[..1]);
    blobs.delete(&ids[0]).await.unwrap();
    assert_eq!(side.chunks().await, 3 + 4);
    assert_eq!(blobs.unfinished(hours(1)).await.unwrap(), []);
    assert_eq!(side.read(0, stored.blob()).await.unwrap().len(), 600_000);
}

// ---- What open() says ----

async fn refusal(cluster: ClusterConfig) -> (BackendError, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let opened = backend::open(&config(dir.path(), Some(cluster)), &node("a"), None).await;
    (opened.map(|_| ()).unwrap_err(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_named_without_its_password() {
    let uri = format!(
        "mongodb://me:secret@127.0.0.1:{}/?replicaSet=rs0",
        free_port()
    );
    let (error, took) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("***@127.0.0.1"), "{error}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_addresses_are_refused_without_their_passwords() {
    let etcd = shared_etcd().uri();
    let mongo = shared_mongod().uri();
    for (mongo, etcd) in [
        ("mongodb://me:secret@", etcd.as_str()),
        ("http://me:secret@h:1", etcd.as_str()),
        ("me:secret@h:1", etcd.as_str()),
        ("mongodb://me:sec/ret@h:1", etcd.as_str()),
        (mongo.as_str(), "ftp://me:secret@h:1"),
        (mongo.as_str(), "http://me:secret@bad host:1"),
    ] {
        let (error, _) = refusal(cluster_config(mongo, etcd, 30)).await;
        assert!(
            matches!(error, BackendError::Unusable(_)),
            "{mongo} {etcd}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert!(!format!("{error:?}").contains("sec/ret"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_outside_a_replica_set_is_explained() {
    for options in [&[][..], &["--replSet", "rs0"]] {
        let mongod = Mongod::start_with(options);
        let uri = format!("mongodb://127.0.0.1:{}/", mongod.port());
        let (error, _) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
        assert!(
            matches!(error, BackendError::Unusable(_)),
            "{options:?}: {error:?}"
        );
        assert!(error.to_string().contains("rs.initiate()"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_the_name_of_the_set_will_do() {
    let uri = format!("mongodb://127.0.0.1:{}", shared_mongod().port());
    // The URI cannot weaken what correctness rests on either.
    for options in [
        "",
        "/?w=0",
        "/?readConcernLevel=local&readPreference=secondary&w=1",
    ] {
        let cluster = cluster_config(&format!("{uri}{options}"), &shared_etcd().uri(), 30);
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), Some(cluster));
        let backends = backend::open(&config, &node("a"), None).await.unwrap();
        let path = dir.path().join("source");
        std::fs::write(&path, b"x").unwrap();
        let put = backends.blobs.put(&hash_of(b"x"), 1, &path, &|| true).await;
        assert!(matches!(put, Ok(Put::Stored(_))), "{options}: {put:?}");
        let log = backends.log.unwrap();
        assert_eq!(log.append(&entry(1, "x")).await.unwrap(), Append::Appended);
        log.changed(Seq(0)).await.unwrap();
        assert_eq!(log.head().await.unwrap(), Seq(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_format_is_refused() {
    let cluster = cluster_config(&shared_mongod().uri(), &shared_etcd().uri(), 30);
    let client = mongodb::Client::with_uri_str(&cluster.mongodb)
        .await
        .unwrap();
    let meta = client
        .database(&cluster.database)
        .collection::<Document>("meta");
    meta.insert_one(doc! { "_id": "format", "version": 2 })
        .await
        .unwrap();
    let (error, _) = refusal(cluster).await;
    assert!(matches!(error, BackendError::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_explained_without_them() {
    let mongod = Mongod::start_with(&["--auth"]);
    let uri = format!("mongodb://me:secret@127.0.0.1:{}/", mongod.port());
    let (error, _) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
    assert!(matches!(error, BackendError::Unusable(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_with_users_is_served() {
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.uri()], None)
        .await
        .unwrap();
    client.user_add("root", "sec@ret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let uri = etcd.uri().replace("http://", "http://root:sec%40ret@");
    let side = Side::of(shared_mongod(), &uri, 30).await;
    assert!(
        side.node(0)
            .locks
            .acquire(&hash_of(b"x"))
            .await
            .unwrap()
            .fence
            > 0
    );
    let stranger = Side::of(shared_mongod(), &etcd.uri(), 30).await;
    assert_eq!(
        stranger
            .node(0)
            .locks
            .acquire(&hash_of(b"y"))
            .await
            .unwrap()
            .fence,
        0
    );
}

// ---- Unknown outcomes ----

/// Makes the next insert into `collection` of this side's database fail in the given way.
async fn fail_next_insert(side: &Side, collection: &str, how: Document) {
    let database = side.database.as_ref().unwrap();
    let mut data = doc! {
        "failCommands": ["insert"],
        "namespace": format!("{}.{collection}", database.name()),
    };
    data.extend(how);
    let admin = database.client().database("admin");
    let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
    admin.run_command(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_found_out() {
    // A server of its own: a fail point is the server's, and the next one replaces it.
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let unacknowledged = || doc! { "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } };

    // Published, but the acknowledgement was lost: reading back finds it.
    fail_next_insert(&side, "fs.files", unacknowledged()).await;
    let put = side.put(0, b"unacknowledged").await.unwrap();
    assert!(matches!(put, Put::Stored(_)), "{put:?}");
    assert_eq!(side.read(1, put.blob()).await.unwrap(), b"unacknowledged");

    // The connection breaks before anything happens: the driver's retry publishes.
    fail_next_insert(&side, "fs.files", doc! { "closeConnection": true }).await;
    let put = side.put(0, b"broken off").await.unwrap();
    assert_eq!(side.read(1, put.blob()).await.unwrap(), b"broken off");

    // The server takes the insert, but acts on it only after we gave up. Whatever wins, nothing published lacks bytes.
    let late = doc! { "blockConnection": true, "blockTimeMS": 7000 };
    fail_next_insert(&side, "fs.files", late).await;
    let put = side.put(0, b"too late").await;
    assert!(matches!(put, Err(BackendError::Unavailable(_))), "{put:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let again = side.put(1, b"too late").await.unwrap();
    // It did arrive, and needs the chunks that a rash clean-up would have removed.
    assert!(matches!(again, Put::Duplicate(_)), "{again:?}");
    assert_eq!(side.read(0, again.blob()).await.unwrap(), b"too late");

    // The same for the log.
    fail_next_insert(&side, "log", unacknowledged()).await;
    let append = side.log(0).append(&entry(1, "x")).await;
    assert!(
        matches!(append, Err(BackendError::Unavailable(_))),
        "{append:?}"
    );
    assert_eq!(
        side.log(1).append(&entry(1, "y")).await.unwrap(),
        Append::Conflict
    );
    assert_eq!(
        side.log(0).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
}

// ---- Outages ----

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_costs_a_moment_and_no_more() {
    let etcd = Etcd::start();
    let side = Side::of(shared_mongod(), &etcd.uri(), 30).await;
    let hash = hash_of(b"frozen");
    let before = side.node(0).locks.acquire(&hash).await.unwrap().fence;
    assert!(before > 0);
    etcd.freeze();
    let begun = Instant::now();
    let lock = side.node(0).locks.acquire(&hash).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(lock.fence, 0);
    assert!(lock.is_valid());
    // Known to be away: the next ones do not wait for it.
    let begun = Instant::now();
    for i in 0..10u8 {
        let lock = side.node(0).locks.acquire(&hash_of(&[i])).await.unwrap();
        assert_eq!(lock.fence, 0);
    }
    assert!(
        begun.elapsed() < Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    assert!(!side.node(0).membership.health().await.etcd);
    drop(lock);
    etcd.thaw();
    // What the frozen server was sent must not keep the lock either.
    eventually(10, async || {
        side.node(0).locks.acquire(&hash).await.unwrap().fence > before
    })
    .await;
    eventually(10, async || {
        side.node(1).locks.acquire(&hash).await.unwrap().fence > before
    })
    .await;
    assert!(side.node(0).membership.health().await.etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_not_valid_past_its_lease() {
    let etcd = Etcd::start();
    let side = Side::of(shared_mongod(), &etcd.uri(), 2).await;
    let hash = hash_of(b"expiring");
    let lock = side.node(0).locks.acquire(&hash).await.unwrap();
    // Renewed while etcd answers.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(lock.is_valid());
    etcd.freeze();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(!lock.is_valid());
    // After a thaw etcd finds the lease expired. (A restart would not do: etcd gives every lease its full time then.)
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.thaw();
    let newer = async {
        loop {
            let next = side.node(1).locks.acquire(&hash).await.unwrap();
            if next.fence > lock.fence {
                return next;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let next = tokio::time::timeout(Duration::from_secs(15), newer)
        .await
        .unwrap();
    assert!(!lock.is_valid());
    // Giving up the lost lock does not take the new one away.
    drop(lock);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = side.node(0).locks.acquire(&hash);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), third)
            .await
            .is_err()
    );
    assert!(next.is_valid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_opens_while_etcd_is_away() {
    let port = free_port();
    let side = Side::of(shared_mongod(), &format!("http://127.0.0.1:{port}"), 30).await;
    let hash = hash_of(b"later");
    let begun = Instant::now();
    assert_eq!(side.node(0).locks.acquire(&hash).await.unwrap().fence, 0);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(matches!(
        side.put(0, b"later").await.unwrap(),
        Put::Stored(_)
    ));
    let _etcd = Etcd::start_on(port);
    eventually(10, async || {
        side.node(0).locks.acquire(&hash).await.unwrap().fence > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_mongod_is_an_answer_within_seconds() {
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let first = side.put(0, b"before").await.unwrap();
    side.log(0).append(&entry(1, "x")).await.unwrap();
    mongod.freeze();
    let begun = Instant::now();
    let appended = entry(2, "y");
    let (put, append, read, health, changed) = tokio::join!(
        side.put(0, b"during"),
        side.log(0).append(&appended),
        side.read(1, first.blob()),
        side.node(0).membership.health(),
        side.log(0).changed(Seq(1)),
    );
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    assert!(matches!(put, Err(BackendError::Unavailable(_))), "{put:?}");
    assert!(
        matches!(append, Err(BackendError::Unavailable(_))),
        "{append:?}"
    );
    assert!(
        matches!(read, Err(BackendError::Unavailable(_))),
        "{read:?}"
    );
    assert!(!health.mongo && health.etcd);
    changed.unwrap();
    mongod.thaw();
    eventually(20, async || side.put(0, b"during").await.is_ok()).await;
    eventually(20, async || side.log(0).append(&appended).await.is_ok()).await;
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap().len(), 2);
    assert!(matches!(
        side.put(1, b"during").await.unwrap(),
        Put::Duplicate(_)
    ));
    // Followers find their way back as well.
    side.log(0).append(&entry(3, "z")).await.unwrap();
    eventually(20, async || {
        let begun = Instant::now();
        side.log(1).changed(Seq(2)).await.unwrap();
        begun.elapsed() < Duration::from_millis(500)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_mongod_is_met_again() {
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let bytes = random_bytes(600_000);
    let put = side.put(0, &bytes).await.unwrap();
    side.log(0).append(&entry(1, "x")).await.unwrap();
    mongod.kill();
    let away = side.put(0, b"away").await;
    assert!(
        matches!(away, Err(BackendError::Unavailable(_))),
        "{away:?}"
    );
    mongod.restart();
    // Acknowledged means still there after a kill.
    assert!(side.read(1, put.blob()).await.unwrap() == bytes);
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap(), [entry(1, "x")]);
    assert!(matches!(
        side.put(0, b"away").await.unwrap(),
        Put::Stored(_)
    ));
}
