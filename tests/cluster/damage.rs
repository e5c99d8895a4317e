//! Objects of the store that are not what they should be: told at once, and healed by whoever has the content again.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Document, doc};

use crate::Cluster;
use crate::common::files::{bytes, sha256, write_closed, xattr};
use crate::common::http::upload;
use crate::common::mount::{Mount, oncefs_ended};
use crate::common::run::{Ended, becomes};

const SOON: Duration = Duration::from_secs(10);
/// How long a reader waits at the most for what does not come.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Four chunks.
const LEN: usize = 900_000;

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    ChunkGone,
    ChunkShort,
    BytesWrong,
    AllGone,
}

fn damage(cluster: &Cluster, content: &[u8], how: Damage) {
    let name = sha256(content);
    cluster.ask(async |db| {
        let files = db.collection::<Document>("fs.files");
        let chunks = db.collection::<Document>("fs.chunks");
        let file = files.find_one(doc! { "filename": &name }).await.unwrap();
        let id = file.unwrap().get_object_id("_id").unwrap();
        let third = doc! { "files_id": id, "n": 2 };
        let replaced = async |bytes: Vec<u8>| {
            let data = Binary {
                subtype: BinarySubtype::Generic,
                bytes,
            };
            let set = doc! { "$set": { "data": data } };
            chunks.update_one(third.clone(), set).await.unwrap();
        };
        match how {
            Damage::ChunkGone => drop(chunks.delete_one(third).await.unwrap()),
            Damage::ChunkShort => replaced(vec![1; 1000]).await,
            Damage::BytesWrong => replaced(vec![1; 255 * 1024]).await,
            Damage::AllGone => {
                files.delete_one(doc! { "_id": id }).await.unwrap();
                chunks.delete_many(doc! { "files_id": id }).await.unwrap();
            }
        }
    });
}

/// How many objects and chunks the store has.
fn stored(cluster: &Cluster) -> (u64, u64) {
    cluster.ask(async |db| {
        let count = async |name: &str| {
            let collection = db.collection::<Document>(name);
            collection.count_documents(doc! {}).await.unwrap()
        };
        (count("fs.files").await, count("fs.chunks").await)
    })
}

fn arrives(path: &Path) {
    becomes(SOON, Some(LEN as u64), || {
        fs::metadata(path).ok().map(|m| m.len())
    });
}

fn fsck(m: &Mount) -> Ended {
    oncefs_ended(["fsck", m.path().to_str().unwrap()])
}

#[track_caller]
fn is_an_error_at_once(path: &Path) {
    let begun = Instant::now();
    let read = fs::read(path).map(|bytes| bytes.len());
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[test]
fn regression_an_object_that_lacks_a_chunk_is_damaged_and_is_healed() {
    for (n, how) in [
        Damage::ChunkGone,
        Damage::ChunkShort,
        Damage::BytesWrong,
        Damage::AllGone,
    ]
    .into_iter()
    .enumerate()
    {
        let cluster = Cluster::shared().without_peers();
        let (a, b) = (cluster.node(), cluster.node());
        let content = bytes(n as u64, LEN);
        write_closed(&a.at("f"), &content).unwrap();
        a.wait_stored();
        arrives(&b.at("f"));
        becomes(SOON, "done".to_string(), || b.status("f"));
        damage(&cluster, &content, how);
        is_an_error_at_once(&b.at("f"));
        is_an_error_at_once(&b.at("f"));
        assert_eq!(b.status("f"), "failed", "{how:?}");
        let why = xattr(&b.at("f"), "user.oncefs.error").unwrap();
        let word = match how {
            Damage::AllGone => "missing",
            _ => "damaged",
        };
        assert!(why.contains(word), "{why}");
        assert_eq!(b.health()["damaged"], 1, "{how:?}");
        let waited = oncefs_ended(["wait", b.at("f").to_str().unwrap()]);
        assert_eq!(waited.status.code(), Some(1), "{waited:?}");
        assert!(waited.stderr.contains("/f: "), "{waited:?}");
        // Any node can tell, also one that has the content on its disk.
        for m in [&a, &b] {
            let looked = fsck(m);
            assert_eq!(looked.status.code(), Some(4), "{how:?}: {looked:?}");
            assert!(looked.stdout.contains("    f\n"), "{looked:?}");
        }
        assert!(fs::read(a.at("f")).unwrap() == content);

        // From any node: the one that has it, the one that met the damage, a new one.
        let c = cluster.node();
        let healer = [&a, &b, &c, &a][n];
        write_closed(&healer.at("again"), &content).unwrap();
        healer.wait_stored();
        for m in [&a, &b, &c] {
            arrives(&m.at("again"));
            becomes(SOON, true, || {
                fs::read(m.at("f")).is_ok_and(|f| f == content)
            });
            assert!(fs::read(m.at("again")).unwrap() == content);
            assert_eq!(m.status("f"), "done", "{how:?}");
            let looked = fsck(m);
            assert_eq!(looked.status.code(), Some(0), "{how:?}: {looked:?}");
        }
        let waited = oncefs_ended(["wait", b.at("f").to_str().unwrap()]);
        assert!(waited.status.success(), "{waited:?}");
        // From the store, and once there.
        let d = cluster.node();
        arrives(&d.at("f"));
        assert!(fs::read(d.at("f")).unwrap() == content);
        assert_eq!(stored(&cluster), (1, 4), "{how:?}");
    }
}

/// Nobody has read it since: whoever closes the same content still does not take it for stored.
#[test]
fn regression_what_lacks_a_chunk_is_no_duplicate() {
    let cluster = Cluster::shared().without_peers();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(7, LEN);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    damage(&cluster, &content, Damage::ChunkGone);
    write_closed(&a.at("again"), &content).unwrap();
    a.wait_stored();
    becomes(SOON, true, || {
        b.at("again").exists() && b.status("again") == "duplicate"
    });
    for name in ["f", "again"] {
        assert!(fs::read(b.at(name)).unwrap() == content, "{name}");
    }
    assert_eq!(b.health()["damaged"], 0);
    assert_eq!(stored(&cluster), (1, 4));
    // Nor for who uploads it under its own name.
    damage(&cluster, &content, Damage::ChunkGone);
    for status in ["queued", "duplicate"] {
        let answer = upload(a.api(), "", "f", &content);
        assert_eq!(answer.json()["status"], status);
    }
    let c = cluster.node();
    assert!(fs::read(c.at("f")).unwrap() == content);
    assert_eq!(stored(&cluster), (1, 4));
    // Nor is an object that the namespace does not know.
    let other = bytes(8, LEN);
    let name = sha256(&other);
    cluster.ask(async |db| {
        let file = doc! {
            "_id": ObjectId::new(), "filename": &name, "length": LEN as i64, "chunkSize": 255 * 1024,
        };
        let files = db.collection::<Document>("fs.files");
        files.insert_one(file).await.unwrap();
    });
    write_closed(&a.at("other"), &other).unwrap();
    a.wait_stored();
    arrives(&b.at("other"));
    assert!(fs::read(b.at("other")).unwrap() == other);
}

#[test]
fn a_node_that_has_it_cached_gives_what_the_store_damaged() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(9, LEN);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    becomes(SOON, "done".to_string(), || b.status("f"));
    // Not what came from the node while it waited to be stored.
    assert_eq!(b.contents(), Vec::<String>::new());
    damage(&cluster, &content, Damage::ChunkGone);
    assert!(fs::read(b.at("f")).unwrap() == content);
    assert_eq!(b.status("f"), "done");
    assert_eq!(fsck(&b).status.code(), Some(4));
}
