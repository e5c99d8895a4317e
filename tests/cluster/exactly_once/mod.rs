//! The exactly-once protocol with no lock at all: many writers, deleters and collectors on four nodes, against a real
//! mongod and through the real way into the store, with random pauses and crashes between any two steps.
//!
//! A crash drops what a node's workers and collectors have in hand at whatever call they are in, closes its tree, and
//! starts the node again from its data directory. What the node was answered by the store may be lost, too.
//! `ONCEFS_STORES` says how many contents are to be stored, else it runs for a time that fits continuous integration;
//! `ONCEFS_SEED` repeats the choices of a run, as far as the timing lets it.

mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use oncefs::types::ContentHash;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::common::run::counted;
use crate::common::servers::{fresh_database, shared_etcd, shared_mongod};
use node::{Node, Servers};

const NODES: usize = 4;
const WRITERS: usize = 64;
const COLLECTORS: usize = 8;
/// Names that each writer has for itself.
const NAMES: u64 = 2;
/// So few that the same ones come, go and come back all the time.
const CONTENTS: u64 = 1000;
/// Those that a third of all writes write.
const POPULAR: u64 = 12;
const USUAL: Duration = Duration::from_secs(12);
/// From the last crash until everything is stored.
const SETTLED: Duration = Duration::from_secs(120);

/// Where pauses, crashes and lost answers come from.
pub struct Chaos {
    rng: parking_lot::Mutex<StdRng>,
    calm: AtomicBool,
    pub stored: AtomicU64,
    pub duplicates: AtomicU64,
    pub lost_answers: AtomicU64,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        Chaos {
            rng: parking_lot::Mutex::new(StdRng::seed_from_u64(seed)),
            calm: AtomicBool::new(false),
            stored: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            lost_answers: AtomicU64::new(0),
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.lock().random_range(0..n)
    }

    pub fn one_in(&self, n: u64) -> bool {
        !self.calm.load(Ordering::Relaxed) && self.below(n) == 0
    }

    fn pause_length(&self) -> Option<Duration> {
        if self.calm.load(Ordering::Relaxed) {
            return None;
        }
        Some(match self.below(100) {
            0..60 => return None,
            60..98 => Duration::from_millis(self.below(8)),
            _ => Duration::from_millis(self.below(400)),
        })
    }

    /// Between two steps.
    pub async fn pause(&self) {
        match self.pause_length() {
            Some(length) => tokio::time::sleep(length).await,
            None => tokio::task::yield_now().await,
        }
    }

    /// The same where nothing can be awaited.
    pub fn pause_blocking(&self) {
        if let Some(length) = self.pause_length() {
            tokio::task::block_in_place(|| std::thread::sleep(length));
        }
    }
}

fn content(n: u64) -> Vec<u8> {
    let len = match n {
        0 => 0,
        // More than one chunk, and more than the end of one.
        1 => 600_000,
        2 => 255 * 1024,
        n => 100 + 11 * n as usize,
    };
    crate::common::files::bytes(n, len)
}

fn hash_of(bytes: &[u8]) -> ContentHash {
    ContentHash(Sha256::digest(bytes).into())
}

struct World {
    chaos: Arc<Chaos>,
    nodes: Vec<Arc<Node>>,
    contents: Vec<(ContentHash, Vec<u8>)>,
    over: AtomicBool,
    closed: AtomicU64,
    reads: AtomicU64,
    removed: AtomicU64,
    crashes: AtomicU64,
    given_up: AtomicU64,
}

impl World {
    fn node(&self) -> &Arc<Node> {
        &self.nodes[self.chaos.below(NODES as u64) as usize]
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Writes, writes over and removes its own names, each time on some node. Returns what it was told is there.
    async fn writer(self: Arc<Self>, writer: usize) -> BTreeMap<String, u64> {
        let mut mine: BTreeMap<String, u64> = BTreeMap::new();
        while self.goes_on() {
            let name = format!("{writer}-{}", self.chaos.below(NAMES));
            let node = self.node();
            if mine.contains_key(&name) && self.chaos.below(5) < 2 {
                node.remove(&name).await;
                mine.remove(&name);
            } else {
                let n = match self.chaos.below(3) {
                    0 => self.chaos.below(POPULAR),
                    _ => self.chaos.below(CONTENTS),
                };
                node.write(&name, &self.contents[n as usize].1).await;
                mine.insert(name, n);
                self.closed.fetch_add(1, Ordering::Relaxed);
            }
            self.chaos.pause().await;
        }
        mine
    }

    async fn reader(self: Arc<Self>) {
        while self.goes_on() {
            if self.node().read_one(|n| self.chaos.below(n)).await {
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
            self.chaos.pause().await;
        }
    }

    /// Removes what no file has, and what uploads left, and is killed at any moment.
    async fn collector(self: Arc<Self>) {
        while self.goes_on() {
            let strays = self.chaos.below(4) == 0;
            let collecting = self.node().until_crash(async |ingest| match strays {
                true => ingest.remove_strays(Duration::ZERO).await,
                false => ingest.collect(Duration::ZERO).await,
            });
            let patience = Duration::from_millis(20 + self.chaos.below(1500));
            match tokio::time::timeout(patience, collecting).await {
                Ok(Some(Ok(n))) => drop(self.removed.fetch_add(n as u64, Ordering::Relaxed)),
                Ok(Some(Err(_)) | None) | Err(_) => {
                    self.given_up.fetch_add(1, Ordering::Relaxed);
                }
            }
            let between = Duration::from_millis(self.chaos.below(60));
            tokio::time::sleep(between).await;
        }
    }

    async fn killer(self: Arc<Self>) {
        while self.goes_on() {
            let until = Duration::from_millis(100 + self.chaos.below(900));
            tokio::time::sleep(until).await;
            self.node().crash().await;
            self.crashes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn without_any_lock_content_is_stored_once_and_nothing_is_lost() {
    let seed = std::env::var("ONCEFS_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("exactly-once model: seed {seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(model(seed));
}

async fn model(seed: u64) {
    let wanted: Option<u64> = std::env::var("ONCEFS_STORES")
        .ok()
        .map(|n| n.parse().unwrap());
    let chaos = Arc::new(Chaos::new(seed));
    let servers = Servers {
        mongodb: shared_mongod().uri(),
        etcd: shared_etcd().uri(),
        database: fresh_database(),
    };
    let mut nodes = Vec::new();
    for n in 0..NODES {
        nodes.push(Arc::new(Node::start(&servers, n, chaos.clone()).await));
    }
    let world = Arc::new(World {
        chaos: chaos.clone(),
        nodes,
        contents: (0..CONTENTS)
            .map(|n| (hash_of(&content(n)), content(n)))
            .collect(),
        over: AtomicBool::new(false),
        closed: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        removed: AtomicU64::new(0),
        crashes: AtomicU64::new(0),
        given_up: AtomicU64::new(0),
    });
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(world.clone().writer(writer));
    }
    let mut others = JoinSet::new();
    for _ in 0..COLLECTORS {
        others.spawn(world.clone().collector());
    }
    others.spawn(world.clone().reader());
    others.spawn(world.clone().killer());
    let stored = || chaos.stored.load(Ordering::Relaxed);
    while wanted.map_or(began.elapsed() < USUAL, |n| stored() < n) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A task that panicked found something.
        while let Some(ended) = others.try_join_next() {
            ended.unwrap();
        }
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
    }
    world.over.store(true, Ordering::Relaxed);
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for mine in writers.join_all().await {
        expected.extend(mine);
    }
    others.join_all().await;
    chaos.calm.store(true, Ordering::Relaxed);
    let took = began.elapsed();
    let begin = Instant::now();
    for node in &world.nodes {
        node.settle(SETTLED).await;
    }
    let settled = begin.elapsed();

    let of = |n: &u64| world.contents[*n as usize].0;
    for node in &world.nodes {
        node.catch_up().await;
        let there = node.files().await;
        let told: BTreeMap<String, ContentHash> =
            expected.iter().map(|(k, n)| (k.clone(), of(n))).collect();
        assert_eq!(there, told, "names and contents on {}", node.id);
        for (name, n) in &expected {
            let read = node.read(name).await;
            assert!(read == world.contents[*n as usize].1, "{name}");
        }
    }
    // Ids of objects begin with their second, so what is to be old must be a second old.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let ingest = world.nodes[0].ingest().await;
    while ingest.collect(Duration::ZERO).await.unwrap() > 0 {}
    let strays = ingest.remove_strays(Duration::ZERO).await.unwrap();
    assert_eq!(ingest.remove_strays(Duration::ZERO).await.unwrap(), 0);
    let live: BTreeSet<ContentHash> = expected.values().map(of).collect();
    compare(&servers, &world, &live).await;

    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "exactly-once model: {} stores, {} duplicates, {} closes, {} reads, {} contents removed, {} crashes of a node, {} \
         collectors given up, {} answers lost, in {:.0} s; settled {:.1} s after it, {strays} strays removed then; {} \
         contents live, each stored once",
        count(&chaos.stored),
        count(&chaos.duplicates),
        count(&world.closed),
        count(&world.reads),
        count(&world.removed),
        count(&world.crashes),
        count(&world.given_up),
        count(&chaos.lost_answers),
        took.as_secs_f64(),
        settled.as_secs_f64(),
        live.len(),
    );
    counted(count(&chaos.stored), "contents stored without a lock");
}

/// What GridFS holds is what the tree knows is what files have, and no chunk belongs to nobody.
async fn compare(servers: &Servers, world: &World, live: &BTreeSet<ContentHash>) {
    let client = mongodb::Client::with_uri_str(&servers.mongodb).await;
    let db = client.unwrap().database(&servers.database);
    let files: Vec<Document> = db
        .collection("fs.files")
        .find(doc! {})
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let mut stored = BTreeMap::new();
    let mut chunks_expected = BTreeMap::new();
    for file in &files {
        let hash: ContentHash = file.get_str("filename").unwrap().parse().unwrap();
        let id = file.get_object_id("_id").unwrap();
        let length = file.get_i64("length").unwrap();
        assert!(stored.insert(hash, id.to_hex()).is_none(), "{hash} twice");
        if length > 0 {
            chunks_expected.insert(
                id,
                length.div_euclid(255 * 1024) + i64::from(length % (255 * 1024) > 0),
            );
        }
    }
    assert_eq!(&stored.keys().copied().collect::<BTreeSet<_>>(), live);
    for node in &world.nodes {
        node.catch_up().await;
        assert_eq!(node.contents().await, stored, "{} knows", node.id);
    }
    let groups = [doc! { "$group": { "_id": "$files_id", "count": { "$sum": 1i64 } } }];
    let chunks: Vec<Document> = db
        .collection::<Document>("fs.chunks")
        .aggregate(groups)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let chunks: BTreeMap<ObjectId, i64> = chunks
        .iter()
        .map(|g| (g.get_object_id("_id").unwrap(), g.get_i64("count").unwrap()))
        .collect();
    assert_eq!(chunks, chunks_expected, "chunks of each object");
}
