//! A server goes away and comes back, with the mount in use all the time.

use std::fs;
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::common::files::{bytes, sha256, write_closed, xattr};
use crate::common::run::becomes;
use crate::common::servers::{Etcd, Mongod, shared_mongod};

const SOON: Duration = Duration::from_secs(5);
const BACK: Duration = Duration::from_secs(30);
/// Nothing takes longer, whatever is down.
const DEADLINE: Duration = Duration::from_secs(40);

fn within_deadline<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    let took = start.elapsed();
    assert!(took < DEADLINE, "{what} took {took:?}");
    result
}

#[test]
fn work_goes_on_without_etcd() {
    let etcd = Etcd::start();
    let cluster = Cluster::of(&etcd, shared_mongod());
    let (a, b) = (cluster.node(), cluster.node());
    write_closed(&a.at("before"), b"before").unwrap();
    a.wait_stored();
    assert_eq!(a.health()["etcd"], true);
    etcd.kill();
    becomes(SOON, false.into(), || a.health()["etcd"].clone());
    assert_eq!(a.health()["mongo"], true);
    assert_eq!(a.health()["status"], "degraded");
    for n in 0..10u64 {
        let write = || write_closed(&a.at(format!("f{n}")), &bytes(n / 2, 5000)).unwrap();
        within_deadline("a write", write);
        write_closed(&b.at(format!("g{n}")), &bytes(n / 2, 5000)).unwrap();
    }
    within_deadline("storing", || a.wait_stored());
    within_deadline("storing", || b.wait_stored());
    for n in 0..10 {
        let expected = bytes(n / 2, 5000);
        becomes(SOON, true, || {
            fs::read(b.at(format!("f{n}"))).is_ok_and(|f| f == expected)
        });
    }
    etcd.restart();
    becomes(BACK, true.into(), || a.health()["etcd"].clone());
    becomes(BACK, "ok".into(), || b.health()["status"].clone());
    write_closed(&a.at("after"), b"after").unwrap();
    a.wait_stored();
    becomes(SOON, Some(b"after".to_vec()), || {
        fs::read(b.at("after")).ok()
    });
    becomes(BACK, 2, || a.health()["members"].as_array().unwrap().len());
}

#[test]
fn reads_go_on_without_mongodb_and_writes_come_back() {
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod);
    let (a, b) = (cluster.node(), cluster.node());
    let cached = bytes(1, 200_000);
    write_closed(&a.at("cached"), &cached).unwrap();
    a.wait_stored();
    becomes(SOON, true, || {
        fs::read(b.at("cached")).is_ok_and(|f| f == cached)
    });
    // Closed, not stored yet: that close was a promise.
    let pending = bytes(2, 3_000_000);
    write_closed(&a.at("pending"), &pending).unwrap();
    mongod.kill();
    for m in [&a, &b] {
        let read = within_deadline("a read", || fs::read(m.at("cached")).unwrap());
        assert!(read == cached);
        within_deadline("a listing", || fs::read_dir(m.path()).unwrap().count());
        becomes(SOON, false.into(), || m.health()["mongo"].clone());
    }
    assert!(fs::read(a.at("pending")).unwrap() == pending);
    // What is acknowledged now must not be lost; a refusal must come in time.
    let during: Vec<(String, bool)> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..3)
            .map(|n| {
                let (path, name) = (a.at(format!("during{n}")), format!("during{n}"));
                scope.spawn(move || {
                    let ok = within_deadline("a write", || write_closed(&path, b"during").is_ok());
                    (name, ok)
                })
            })
            .collect();
        tries.into_iter().map(|t| t.join().unwrap()).collect()
    });
    mongod.restart();
    becomes(BACK, true.into(), || a.health()["mongo"].clone());
    // By itself, with no error left behind.
    let back = Instant::now();
    while let Err(e) = write_closed(&a.at("after"), b"after") {
        assert!(back.elapsed() < BACK, "writing does not work again: {e}");
        std::thread::sleep(Duration::from_millis(200));
    }
    within_deadline("storing", || a.wait_stored());
    becomes(BACK, Some(b"after".to_vec()), || {
        fs::read(b.at("after")).ok()
    });
    assert!(fs::read(b.at("pending")).unwrap() == pending);
    for (name, acknowledged) in during {
        if acknowledged {
            assert_eq!(fs::read(b.at(&name)).unwrap(), b"during", "{name}");
        }
    }
    assert_eq!(
        xattr(&b.at("pending"), "user.oncefs.sha256").unwrap(),
        sha256(&pending)
    );
    becomes(BACK, "ok".into(), || b.health()["status"].clone());
}

/// A server that hangs, which is worse than one that is gone.
#[test]
fn a_frozen_mongodb_stops_no_reader_for_long() {
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod);
    let a = cluster.node();
    write_closed(&a.at("cached"), b"cached").unwrap();
    a.wait_stored();
    mongod.freeze();
    assert_eq!(fs::read(a.at("cached")).unwrap(), b"cached");
    becomes(SOON, false.into(), || a.health()["mongo"].clone());
    let write = || write_closed(&a.at("during"), b"during").is_ok();
    let acknowledged = within_deadline("a write", write);
    mongod.thaw();
    let back = Instant::now();
    while let Err(e) = write_closed(&a.at("after"), b"after") {
        assert!(back.elapsed() < BACK, "writing does not work again: {e}");
        std::thread::sleep(Duration::from_millis(200));
    }
    within_deadline("storing", || a.wait_stored());
    if acknowledged {
        assert_eq!(fs::read(a.at("during")).unwrap(), b"during");
    }
    assert_eq!(fs::read(a.at("after")).unwrap(), b"after");
}
