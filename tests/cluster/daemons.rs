//! Four daemons write the same contents while etcd is frozen for longer than the locks live, and daemons are killed in the
//! middle of their work: each content is in the store once, by one worker, and whoever comes later reads everything.
//! `ONCEFS_MATRIX=all` does it for a minute instead of some seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};

use crate::Cluster;
use crate::common::files::sha256;
use crate::common::mount::Mount;
use crate::common::run::{counted, eventually};
use crate::common::servers::{Etcd, shared_mongod};
use crate::load::{Told, write_until};

const NODES: usize = 4;
const DIR: &str = "dir";
/// How long a lock lives.
const TTL: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(60);
/// How many of the contents all nodes write.
const SHARED: u64 = 200;

/// Seed and length of a content.
fn content(n: u64) -> (u64, usize) {
    (n, 500 + (n % 50) as usize * 1500)
}

async fn all(db: &mongodb::Database, collection: &str) -> Vec<Document> {
    let all = db.collection(collection).find(doc! {}).await.unwrap();
    all.try_collect().await.unwrap()
}

#[test]
fn frozen_locks_and_killed_workers_store_each_content_once() {
    let long = std::env::var("ONCEFS_MATRIX").is_ok_and(|v| v == "all");
    let etcd = Etcd::start();
    let cluster = Cluster::of(&etcd, shared_mongod());
    let ttl = TTL.as_secs().to_string();
    let node = || cluster.node_with(&["--lock-ttl", &ttl, "--workers", "4"]);
    let nodes: Vec<Mount> = (0..NODES).map(|_| node()).collect();
    // Not in the root: while a node is not mounted its mount point is a directory like any other.
    fs::create_dir(nodes[0].at(DIR)).unwrap();
    for m in &nodes {
        eventually(SOON, "the directory", || m.at(DIR).exists().then_some(()));
    }
    let stop = AtomicBool::new(false);
    let (mut kills, mut told) = (0, Told::default());
    std::thread::scope(|scope| {
        let writers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(n, m)| {
                let (stop, dir) = (&stop, m.at(DIR));
                scope.spawn(move || {
                    let pause = Duration::from_millis(20);
                    // Each in an order of its own.
                    write_until(stop, &dir, &format!("of-{n}"), pause, |k| {
                        content((k * [1, 3, 7, 9][n] + 50 * n as u64) % SHARED)
                    })
                })
            })
            .collect();
        let working = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let until = Instant::now() + Duration::from_secs(if long { 60 } else { 3 });
            loop {
                std::thread::sleep(Duration::from_millis(700));
                etcd.freeze();

                let frozen = Instant::now();
                // Two that die in the middle, one of them while nobody can ask for locks for long.
                for (victim, after) in [(1 + kills % 2, TTL / 3), (3, TTL)] {
                    std::thread::sleep(after.saturating_sub(frozen.elapsed()));
                    nodes[victim].kill9();

                    nodes[victim].remount();
                    kills += 1;
                }
                std::thread::sleep((TTL * 2).saturating_sub(frozen.elapsed()));
                etcd.thaw();

                if Instant::now() > until {
                    break;
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            told.add(writer.join().unwrap());
        }
        if let Err(panic) = working {
            std::panic::resume_unwind(panic);
        }
    });
    // A daemon that is killed takes the calls with it that it had not answered, and those of the moment after.
    let of_survivor = told
        .refused
        .iter()
        .find(|(name, _)| name.starts_with("of-0-"));
    assert!(of_survivor.is_none(), "{of_survivor:?}");
    for m in &nodes {
        m.wait_stored();
    }
    let fresh = node();
    let there = |name: &String| fresh.at(DIR).join(name).exists();
    eventually(SOON, "all names", || {
        told.files.keys().all(there).then_some(())
    });

    told.check(&fresh.at(DIR));

    // A file that was made and not written yet may have been stored as it was, or have no content at all.
    let nothing = sha256(b"");
    // Also what killed daemons had begun to write, and nobody was told of.
    let expected: BTreeSet<String> = fs::read_dir(fresh.at(DIR))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .map(|content| sha256(&content))
        .filter(|hash| *hash != nothing)
        .collect();
    let (files, records) =
        cluster.ask(async |db| (all(&db, "fs.files").await, all(&db, "files").await));
    let name = |f: &Document| f.get_str("filename").unwrap().to_owned();
    let mut stored: Vec<String> = files.iter().map(name).collect();
    stored.retain(|hash| *hash != nothing);
    stored.sort();
    assert_eq!(stored, expected.iter().cloned().collect::<Vec<_>>());
    let mut by: BTreeMap<String, usize> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for record in &records {
        assert_eq!(record.get_str("status").unwrap(), "done", "{record}");
        let worker = record.get_str("worker").unwrap();
        assert!(worker.starts_with("worker-"), "{record}");
        *by.entry(record.get_str("node").unwrap().to_owned())
            .or_default() += 1;
        known.insert(record.get_str("_id").unwrap().to_owned());
    }
    known.remove(&nothing);
    assert_eq!(known, expected, "each content has one record");
    println!(
        "exactly-once daemons: {} files acknowledged, {} contents each stored once, {kills} daemons killed, slowest write \
         {:.1} s; stored by {by:?}",
        told.files.len(),
        expected.len(),
        told.slowest.as_secs_f64()
    );
    counted(
        told.files.len(),
        "files written by daemons that are killed without locks",
    );
}
