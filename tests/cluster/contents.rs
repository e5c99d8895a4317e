//! Content that was closed on one machine, on the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{AsyncReadExt, TryStreamExt};
use mongodb::bson::{Document, doc};

use crate::Cluster;
use crate::common::files::{bytes, close, disk_usage, sha256, write_closed, xattr};
use crate::common::mount::oncefs_ended;
use crate::common::run::becomes;

const SOON: Duration = Duration::from_secs(2);
const STORED: Duration = Duration::from_secs(60);

/// Waits until a file is there at its full length: it is made, and empty, before it is closed.
fn arrives(path: &Path, len: u64) {
    becomes(SOON, Some(len), || fs::metadata(path).ok().map(|m| m.len()));
}

#[test]
fn what_is_closed_here_is_read_there_and_by_a_third() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let sizes = [0, 1, 5000, 255 * 1024, 255 * 1024 + 1, 4_000_000];
    for (n, len) in sizes.into_iter().enumerate() {
        let (from, to) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let name = format!("f{n}");
        let content = bytes(n as u64, len);
        assert!(!to.at(&name).exists());
        write_closed(&from.at(&name), &content).unwrap();
        // It may not be stored yet: whoever reads waits, and sees all of it.
        arrives(&to.at(&name), len as u64);
        assert!(fs::read(to.at(&name)).unwrap() == content, "{name}");
    }
    a.wait_stored();
    b.wait_stored();
    let c = cluster.node();
    for (n, len) in sizes.into_iter().enumerate() {
        let content = bytes(n as u64, len);
        let path = c.at(format!("f{n}"));
        assert!(fs::read(&path).unwrap() == content);
        assert_eq!(
            xattr(&path, "user.oncefs.sha256").unwrap(),
            sha256(&content)
        );
    }
}

#[test]
fn equal_content_is_stored_once_whoever_brings_it() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = |n: u64| bytes(n % 100, 3000 + 17 * (n % 100) as usize);
    std::thread::scope(|scope| {
        for (m, dir) in [(&a, "from-a"), (&b, "from-b")] {
            scope.spawn(move || {
                fs::create_dir(m.at(dir)).unwrap();
                for n in 0..500 {
                    write_closed(&m.at(format!("{dir}/{n}")), &content(n)).unwrap();
                }
            });
        }
    });
    a.wait_stored();
    b.wait_stored();
    let expected: BTreeMap<String, Vec<u8>> = (0..100)
        .map(|n| (sha256(&content(n)), content(n)))
        .collect();
    assert_eq!(expected.len(), 100);
    let (stored, records): (BTreeMap<String, Vec<u8>>, Vec<Document>) = cluster.ask(async |db| {
        let bucket = db.gridfs_bucket(None);
        let files: Vec<_> = bucket
            .find(doc! {})
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(files.len(), 100, "each content has one document");
        let mut stored = BTreeMap::new();
        for file in files {
            let mut all = Vec::new();
            let mut stream = bucket.open_download_stream(file.id).await.unwrap();
            stream.read_to_end(&mut all).await.unwrap();
            stored.insert(file.filename.unwrap(), all);
        }
        let records = db.collection::<Document>("files");
        let records = records.find(doc! {}).await.unwrap();
        (stored, records.try_collect().await.unwrap())
    });
    assert!(stored == expected);
    let done: BTreeSet<&str> = records
        .iter()
        .map(|r| {
            assert_eq!(r.get_str("status").unwrap(), "done", "{r}");
            assert!(r.get_str("worker").unwrap().starts_with("worker-"), "{r}");
            r.get_str("_id").unwrap()
        })
        .collect();
    assert_eq!((done.len(), records.len()), (100, 100));
    assert!(done.iter().all(|hash| expected.contains_key(*hash)));
    let mut words = BTreeMap::new();
    for dir in ["from-a", "from-b"] {
        for n in 0..500 {
            // Each from the node that did not write it.
            let reader = if dir == "from-a" { &b } else { &a };
            let path = reader.at(format!("{dir}/{n}"));
            assert!(fs::read(&path).unwrap() == content(n));
            let word = xattr(&path, "user.oncefs.status").unwrap();
            *words.entry(word).or_insert(0) += 1;
        }
    }
    let words: Vec<_> = words.into_iter().collect();
    assert_eq!(
        words,
        [("done".to_string(), 100), ("duplicate".to_string(), 900)]
    );
}

/// The second node reads a file all the time, while the first one replaces it as careful programs do.
#[test]
fn regression_a_replaced_file_is_always_there_and_whole() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    // Each version has a length and a fill byte of its own.
    let version = |n: u8| vec![n; 40_000 + 1000 * usize::from(n)];
    write_closed(&a.at("f"), &version(0)).unwrap();
    // It is made, and empty, before it is closed.
    becomes(SOON, Some(version(0)), || fs::read(b.at("f")).ok());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut last = 0;
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let got = fs::read(b.at("f")).unwrap();
                let n = *got.first().expect("never empty");
                let whole = got == version(n);
                assert!(whole, "{} bytes, {n} to {:?}", got.len(), got.last());
                assert!(n >= last, "{n} after {last}");
                last = n;
                reads += 1;
            }
            reads
        });
        for n in 1..=25 {
            write_closed(&a.at("f.new"), &version(n)).unwrap();
            fs::rename(a.at("f.new"), a.at("f")).unwrap();
            std::thread::sleep(Duration::from_millis(30));
        }
        let newest = || fs::read(b.at("f")).unwrap().first().copied();
        let end = std::time::Instant::now() + SOON;
        while newest() != Some(25) && std::time::Instant::now() < end && !reading.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        done.store(true, Ordering::Relaxed);
        assert!(reading.join().expect("a reader that is content") > 5);
        assert_eq!(newest(), Some(25));
    });
}

#[test]
fn a_file_written_anew_is_seen_by_who_opens_it_later() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    for n in 0..10u64 {
        let version = bytes(n, 40_000 + 3000 * (n * 7 % 10) as usize);
        write_closed(&a.at("f"), &version).unwrap();
        becomes(SOON, true, || {
            fs::read(b.at("f")).is_ok_and(|f| f == version)
        });
        // With the pages of this version in the cache.
        assert!(fs::read(b.at("f")).unwrap() == version);
    }
}

#[test]
fn a_reader_keeps_what_the_other_node_removes() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(1, 3_000_000);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    arrives(&b.at("f"), 3_000_000);
    let open = File::open(b.at("f")).unwrap();
    let mut got = vec![0; content.len()];
    open.read_exact_at(&mut got[..1000], 0).unwrap();
    fs::remove_file(a.at("f")).unwrap();
    becomes(SOON, false, || b.at("f").exists());
    open.read_exact_at(&mut got, 0).unwrap();
    assert!(got == content);
    write_closed(&b.at("f"), b"another").unwrap();
    becomes(SOON, Some(b"another".to_vec()), || fs::read(a.at("f")).ok());
}

#[test]
fn a_killed_node_keeps_its_promises() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = |n: u64| bytes(n, 300_000);
    for n in 0..20 {
        write_closed(&a.at(format!("f{n}")), &content(n)).unwrap();
    }
    a.kill9();
    arrives(&b.at("f19"), 300_000);
    a.remount();
    for n in 0..20 {
        let path = b.at(format!("f{n}"));
        assert!(fs::read(&path).unwrap() == content(n), "f{n}");
    }
    a.wait_stored();
    a.wait_spool_empty();
}

#[test]
fn a_small_cache_is_filled_again() {
    let cluster = Cluster::shared();
    let a = cluster.node();
    let b = cluster.node_with(&["--cache-size", "2MiB"]);
    let content = |n: u64| bytes(n, 500_000);
    for n in 0..12 {
        write_closed(&a.at(format!("f{n}")), &content(n)).unwrap();
    }
    a.wait_stored();
    for _ in 0..2 {
        for n in 0..12 {
            let path = b.at(format!("f{n}"));
            arrives(&path, 500_000);
            assert!(fs::read(&path).unwrap() == content(n));
        }
    }
    // Open files are pinned; nothing is open now.
    becomes(Duration::from_secs(10), true, || {
        disk_usage(&b.data().join("content")) <= 2 << 20
    });
    // What it wrote itself can go as well, once it is stored.
    for n in 20..32 {
        write_closed(&b.at(format!("f{n}")), &content(n)).unwrap();
    }
    b.wait_stored();
    for n in 20..32 {
        assert!(fs::read(b.at(format!("f{n}"))).unwrap() == content(n));
    }
    let cache = &b.health()["cache"];
    assert!(cache["evictions"].as_u64() > Some(0), "{cache}");
    assert_eq!(cache["mismatches"], 0);
    becomes(STORED, true, || {
        disk_usage(&b.data().join("content")) <= 2 << 20
    });
}

#[test]
fn a_damaged_cache_file_is_fetched_again() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let contents = [bytes(1, 5000), bytes(2, 900_000)];
    for (n, content) in contents.iter().enumerate() {
        write_closed(&a.at(format!("f{n}")), content).unwrap();
    }
    a.wait_stored();
    let cached = |content: &[u8]| {
        let hash = sha256(content);
        b.data().join("content").join(&hash[..2]).join(hash)
    };
    let damage = || {
        for (n, content) in contents.iter().enumerate() {
            let mut wrong = content.clone();
            wrong[4000 + n] ^= 1;
            fs::set_permissions(cached(content), fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(cached(content), wrong).unwrap();
        }
    };
    for (n, content) in contents.iter().enumerate() {
        arrives(&b.at(format!("f{n}")), content.len() as u64);
        assert!(fs::read(b.at(format!("f{n}"))).unwrap() == *content);
    }
    b.stop();
    damage();
    b.remount();
    for (n, content) in contents.iter().enumerate() {
        assert!(fs::read(b.at(format!("f{n}"))).unwrap() == *content, "f{n}");
    }
    assert_eq!(b.health()["damaged"], 2);
    assert_eq!(b.health()["cache"]["fetches"], 2);
    // Also when it is to be written to.
    b.stop();
    damage();
    b.remount();
    for (n, content) in contents.iter().enumerate() {
        let mut file = File::options()
            .append(true)
            .open(b.at(format!("f{n}")))
            .unwrap();
        file.write_all(b"more").unwrap();
        close(file).unwrap();
        assert!(fs::read(b.at(format!("f{n}"))).unwrap() == [&content[..], b"more"].concat());
    }
    b.wait_stored();
    // It is a copy only, so fsck can remove it.
    b.stop();
    damage();
    let ended = oncefs_ended(["fsck", "--data", "-y", b.data().to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(contents.iter().all(|content| !cached(content).exists()));
    let ended = oncefs_ended(["fsck", "--data", b.data().to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    b.remount();
    assert!(!b.data().join("quarantine").exists());
}

/// A reader that waits for content which a dead node still has holds up nobody else on its machine.
#[test]
fn regression_a_waiting_reader_does_not_keep_changes_from_being_seen() {
    let cluster = Cluster::shared().without_peers();
    let (a, b, c) = (cluster.node(), cluster.node(), cluster.node());
    write_closed(&a.at("f"), &bytes(1, 30_000_000)).unwrap();
    a.kill9();
    arrives(&b.at("f"), 30_000_000);
    fs::create_dir(c.at("d")).unwrap();
    becomes(SOON, true, || b.at("d").exists());
    std::thread::scope(|scope| {
        // Each time until the deadline of a read.
        let reader = scope.spawn(|| {
            loop {
                match fs::read(b.at("f")) {
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => {}
                    read => break read.unwrap(),
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        let killed_too = bytes(2, 30_000_000);
        write_closed(&c.at("f"), &killed_too).unwrap();
        c.kill9();
        // As long as the reader waits.
        std::thread::sleep(Duration::from_millis(300));
        a.remount();
        assert!(!reader.is_finished());
        fs::rename(a.at("d"), a.at("e")).unwrap();
        becomes(SOON, false, || b.at("d").exists());
        c.remount();
        assert!(reader.join().unwrap() == killed_too);
        c.wait_stored();
        assert!(fs::read(b.at("f")).unwrap() == killed_too);
    });
}

/// The store has lost an object, by hand or by an older copy of it that was restored: whoever closes the same content again
/// brings it back, for all files that have it.
#[test]
fn regression_what_the_store_lost_is_stored_again() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(77, 300_000);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    let hash = sha256(&content);
    cluster.ask(async |db| {
        let files = db.collection::<Document>("fs.files");
        let lost = files.find_one_and_delete(doc! { "filename": &hash }).await;
        let id = lost.unwrap().unwrap().get_object_id("_id").unwrap();
        let chunks = db.collection::<Document>("fs.chunks");
        chunks.delete_many(doc! { "files_id": id }).await.unwrap();
    });
    write_closed(&a.at("again"), &content).unwrap();
    a.wait_stored();
    arrives(&b.at("again"), content.len() as u64);
    for name in ["f", "again"] {
        assert!(fs::read(b.at(name)).unwrap() == content, "{name}");
    }
}
