//! What a change costs the server that orders them, and what a large tree costs the daemon.

use std::fs;
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};

use crate::Cluster;
use crate::common::servers::{Mongod, shared_etcd};

/// How many commands of a kind the server has taken since it started.
fn taken(cluster: &Cluster, kind: &str) -> i64 {
    let status: Document = cluster.ask(async |database| {
        let admin = database.client().database("admin");
        admin.run_command(doc! { "serverStatus": 1 }).await.unwrap()
    });
    let counters = status.get_document("opcounters").unwrap();
    counters
        .get_i64(kind)
        .unwrap_or_else(|_| counters.get_i32(kind).unwrap().into())
}

/// A change that nobody contends for is one insert and one look at where the log begins. The node does not fetch what it
/// appended itself, though the change stream tells it of that, too.
#[test]
fn regression_a_change_costs_one_insert_and_one_read() {
    const CHANGES: i64 = 200;
    let mongod = Mongod::start();
    let cluster = Cluster::of(shared_etcd(), &mongod);
    let a = cluster.node();
    fs::create_dir(a.at("first")).unwrap();
    let counted = || (taken(&cluster, "insert"), taken(&cluster, "query"));
    let (before, begun) = (counted(), Instant::now());
    for n in 0..CHANGES {
        fs::create_dir(a.at(format!("first/{n}"))).unwrap();
    }
    let took = begun.elapsed();
    let after = counted();
    let (inserts, reads) = (after.0 - before.0, after.1 - before.1);
    println!(
        "cost of {CHANGES} changes: {inserts} inserts, {reads} reads, {:.1} ms each",
        1000.0 * took.as_secs_f64() / CHANGES as f64
    );
    // The node looks at the log by itself, too, once in a second in which nothing happens.
    let looks = 4 + 2 * took.as_secs() as i64;
    assert!(inserts <= CHANGES + looks, "{inserts} inserts");
    assert!(reads <= CHANGES + looks, "{reads} reads");

    // Another node has what was made in a moment.
    let b = cluster.node();
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        let name = format!("first/other-{n}");
        fs::create_dir(a.at(&name)).unwrap();
        let begun = Instant::now();
        while !b.at(&name).exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{name} never came"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        slowest = slowest.max(begun.elapsed());
    }
    println!(
        "propagation of a change: at most {} ms",
        slowest.as_millis()
    );
    assert!(slowest < Duration::from_millis(700), "{slowest:?}");
}
