//! A server goes away and comes back, with the mount in use all the time.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::common::files::{bytes, sha256, write_closed, xattr};
use crate::common::http::get;
use crate::common::mount::Mount;
use crate::common::run::becomes;
use crate::common::servers::{Etcd, Mongod, shared_etcd, shared_mongod};

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
    // On both sides, and one name on both.
    for n in 0..3 {
        let write = || write_closed(&a.at(format!("during{n}")), b"during").unwrap();
        within_deadline("a write", write);
        assert_eq!(fs::read(a.at(format!("during{n}"))).unwrap(), b"during");
    }
    write_closed(&a.at("both"), b"of a").unwrap();
    within_deadline("a write", || {
        write_closed(&b.at("both"), b"of b").unwrap();
    });
    fs::rename(a.at("during2"), a.at("moved")).unwrap();
    fs::remove_file(a.at("during1")).unwrap();
    assert!(a.health()["waiting_changes"].as_u64().unwrap() > 0);
    // Also over a new start, with the database still away.
    a.kill9();
    a.remount();
    assert_eq!(fs::read(a.at("moved")).unwrap(), b"during");
    assert!(fs::read(a.at("cached")).unwrap() == cached);
    write_closed(&a.at("started-alone"), b"alone").unwrap();
    assert!(a.health()["waiting_changes"].as_u64().unwrap() > 0);
    mongod.restart();
    becomes(BACK, true.into(), || a.health()["mongo"].clone());
    // By itself, with no error in between.
    write_closed(&a.at("after"), b"after").unwrap();
    for m in [&a, &b] {
        becomes(BACK, 0.into(), || m.health()["waiting_changes"].clone());
    }
    within_deadline("storing", || a.wait_stored());
    becomes(BACK, Some(b"after".to_vec()), || {
        fs::read(b.at("after")).ok()
    });
    assert!(fs::read(b.at("pending")).unwrap() == pending);
    within_deadline("storing", || b.wait_stored());
    becomes(BACK, Some(b"alone".to_vec()), || {
        fs::read(b.at("started-alone")).ok()
    });
    for (name, there) in [("during0", true), ("during1", false), ("moved", true)] {
        becomes(BACK, there, || {
            fs::read(b.at(name)).is_ok_and(|f| f == b"during")
        });
    }
    // One of the two has the name, the other lies beside it, and all see the same.
    let seen = |m: &Mount| {
        let names = fs::read_dir(m.path()).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut both: Vec<String> = names.filter(|n| n.starts_with("both")).collect();
        both.sort();
        both
    };
    becomes(BACK, true, || {
        let (of_a, of_b) = (seen(&a), seen(&b));
        of_a == of_b && of_a.len() == 2 && of_a[1].starts_with("both.conflict-")
    });
    let mut kept: Vec<Vec<u8>> = seen(&b)
        .iter()
        .map(|n| fs::read(b.at(n)).unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, [b"of a".to_vec(), b"of b".to_vec()]);
    assert_eq!(
        xattr(&b.at("pending"), "user.oncefs.sha256").unwrap(),
        sha256(&pending)
    );
    becomes(BACK, "ok".into(), || b.health()["status"].clone());
}

/// A server that hangs, which is worse than one that is gone.
/// What waits for MongoDB is hashed meanwhile, so that what the disk does to it shows: to who reads it here or elsewhere, also
/// after a restart. It is not stored, until another file brings the same content.
#[test]
fn what_waits_for_mongodb_is_not_taken_for_another_content() {
    let mongod = Mongod::start();
    let cluster = Cluster::of(shared_etcd(), &mongod);
    let (a, b) = (cluster.node(), cluster.node());
    let files = [
        ("whole", bytes(1, 300_000)),
        ("small", bytes(2, 5000)),
        ("large", bytes(3, 700_000)),
    ];
    mongod.freeze();
    for (name, content) in &files {
        write_closed(&a.at(name), content).unwrap();
    }
    for (name, content) in &files {
        becomes(BACK, Some(sha256(content)), || {
            xattr(&a.at(name), "user.oncefs.sha256")
        });
    }
    becomes(BACK, files.len(), || {
        let noted =
            |path: &PathBuf| rustix::fs::getxattr(path, "user.oncefs.closed", &mut [0; 64]).is_ok();
        a.spooled().iter().filter(|path| noted(path)).count()
    });
    a.kill9();
    for path in a.spooled() {
        let file = fs::File::options().read(true).write(true).open(path);
        let (file, mut byte) = (file.unwrap(), [0]);
        let meta = file.metadata().unwrap();
        if meta.len() != files[0].1.len() as u64 {
            file.read_exact_at(&mut byte, 4000).unwrap();
            file.write_all_at(&[byte[0] ^ 16], 4000).unwrap();
            file.set_modified(meta.modified().unwrap()).unwrap();
        }
    }
    mongod.thaw();
    a.remount();
    for (name, _) in &files[1..] {
        becomes(BACK, "failed".to_string(), || a.status(name));
    }
    for node in [&a, &b] {
        for (n, (name, content)) in files.iter().enumerate() {
            // It is made, and then closed, where that is told of now as well.
            becomes(BACK, Some(content.len() as u64), || {
                Some(fs::metadata(node.at(name)).ok()?.len())
            });
            match fs::read(node.at(name)) {
                Ok(read) => assert!(read == *content, "{name}"),
                Err(e) => assert!(n > 0 && e.raw_os_error() == Some(libc::EIO), "{name}: {e}"),
            }
        }
    }
    for (name, content) in &files[1..] {
        write_closed(&b.at(format!("same-{name}")), content).unwrap();
    }
    for node in [&a, &b] {
        for (name, content) in &files {
            becomes(BACK, true, || {
                fs::read(node.at(name)).is_ok_and(|read| read == *content)
            });
        }
    }
    a.wait_spool_empty();
    a.wait_stored();
}

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
    assert!(within_deadline("a write", write));
    mongod.thaw();
    write_closed(&a.at("after"), b"after").unwrap();
    within_deadline("storing", || a.wait_stored());
    assert_eq!(fs::read(a.at("during")).unwrap(), b"during");
    assert_eq!(fs::read(a.at("after")).unwrap(), b"after");
}

/// Each server's failed calls are counted by what was wrong; what was read from this disk, and what was not, as well.
#[test]
fn metrics_count_what_failed_and_what_was_here() {
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod);
    let (a, b) = (cluster.node(), cluster.node());
    let value = |m: &Mount, name: &str| -> u64 {
        let text = get(m.api(), "/metrics").body;
        let text = String::from_utf8(text).unwrap();
        let line = text.lines().find(|l| l.split(' ').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let failed = |m: &Mount, server: &str| -> u64 {
        let of = |kind| {
            let labels = format!("{{backend=\"{server}\",kind=\"{kind}\"}}");
            value(m, &format!("oncefs_backend_errors_total{labels}"))
        };
        ["timeout", "unavailable", "refused", "corrupt"]
            .map(of)
            .iter()
            .sum()
    };
    let content = bytes(5, 60_000);
    for name in ["one", "two"] {
        write_closed(&a.at(name), &content).unwrap();
    }
    a.wait_stored();
    becomes(SOON, true, || {
        fs::read(b.at("one")).is_ok_and(|f| f == content)
    });
    assert_eq!(value(&b, "oncefs_cache_misses_total"), 1);
    assert_eq!(value(&b, "oncefs_cache_fetches_total"), 1);
    let hits = value(&b, "oncefs_cache_hits_total");
    becomes(SOON, true, || {
        fs::read(b.at("two")).is_ok_and(|f| f == content)
    });
    assert!(value(&b, "oncefs_cache_hits_total") > hits);
    assert_eq!(value(&b, "oncefs_logical_bytes"), 120_000);
    assert_eq!(value(&b, "oncefs_stored_bytes"), 60_000);
    let before = [failed(&a, "etcd"), failed(&a, "mongodb")];
    etcd.kill();
    mongod.kill();
    write_closed(&a.at("during"), b"during").unwrap();
    becomes(SOON, true, || failed(&a, "etcd") > before[0]);
    becomes(SOON, true, || failed(&a, "mongodb") > before[1]);
}
