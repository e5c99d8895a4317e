//! The namespace under test: every op and refusal, a reference model, two replicas over a hostile log, many submitters.

mod check;
mod concurrency;
mod contents;
mod damage;
mod durability;
mod joining;
mod memory;
mod model;
mod names;
mod outages;
mod renames;
mod replicas;

use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::op::{Bytes, RenameMode, StoredBy, XattrMode};
use super::*;
use crate::types::{BlobId, ContentHash, Generation, Time};

const FILE: u32 = libc::S_IFREG | 0o644;
const DIR: u32 = libc::S_IFDIR | 0o755;

/// A tree of its own, with a clock that ticks once per op.
struct Bed {
    runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
    tree: Tree,
    clock: i64,
}

impl Bed {
    fn new() -> Bed {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let tree = runtime.block_on(open(&dir.path().join("t")));
        Bed {
            runtime,
            dir,
            tree,
            clock: 100,
        }
    }

    fn now(&mut self) -> Time {
        self.clock += 1;
        Time(self.clock)
    }

    fn run(&self, op: Op) -> Result<Applied> {
        self.run_all(vec![op])
    }

    fn run_all(&self, ops: Vec<Op>) -> Result<Applied> {
        self.runtime
            .block_on(self.tree.submit(Origin::Kernel, Commitment::Committed, ops))
    }

    /// Runs `op`, which must succeed, leave the tables consistent, and return the inode as it is then.
    fn ok(&self, op: Op) -> Applied {
        let applied = self
            .run(op.clone())
            .unwrap_or_else(|e| panic!("{op:?}: {e}"));
        if let Some(inode) = &applied.inode {
            match self.tree.read(|q| q.inode(inode.ino)) {
                Ok(found) => assert_eq!(&found, inode, "{op:?}"),
                Err(e) => assert_eq!((e, inode.nlink), (TreeError::NotFound, 0), "{op:?}"),
            }
        }
        self.check();
        applied
    }

    /// Runs `op`, which must be refused with `error` and change nothing.
    fn refused(&self, op: Op, error: TreeError) {
        let before = dump(&self.tree);
        assert_eq!(self.run(op.clone()), Err(error), "{op:?}");
        assert_eq!(dump(&self.tree), before, "{op:?} was refused");
    }

    fn check(&self) {
        self.tree
            .read(|q| {
                check_tables(q.0);
                Ok(())
            })
            .unwrap();
    }

    fn make(&mut self, parent: Ino, n: &str, mode: u32) -> Ino {
        let op = self.create_op(parent, n.as_bytes(), mode);
        self.ok(op).inode.unwrap().ino
    }

    fn create_op(&mut self, parent: Ino, n: &[u8], mode: u32) -> Op {
        create_op(self.tree.new_ino().unwrap(), parent, n, mode, self.now())
    }

    fn link_op(&mut self, ino: Ino, parent: Ino, n: &str) -> Op {
        Op::Link {
            ino,
            parent,
            name: bytes(n),
            now: self.now(),
        }
    }

    fn unlink_op(&mut self, parent: Ino, n: &str) -> Op {
        Op::Unlink {
            parent,
            name: bytes(n),
            now: self.now(),
        }
    }

    fn rmdir_op(&mut self, parent: Ino, n: &str) -> Op {
        Op::Rmdir {
            parent,
            name: bytes(n),
            now: self.now(),
        }
    }

    fn rename_op(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Op {
        Op::Rename {
            parent: from.0,
            name: bytes(from.1),
            new_parent: to.0,
            new_name: bytes(to.1),
            mode,
            now: self.now(),
        }
    }

    fn pending_op(&mut self, ino: Ino, generation: u64, node: &str, size: u64) -> Op {
        let now = self.now();
        Op::Pending {
            ino,
            generation: Generation(generation),
            node: NodeId(node.into()),
            size,
            mtime: now,
            ctime: now,
        }
    }

    fn commit_op(&mut self, ino: Ino, generation: u64, h: u8, blob: &str) -> Op {
        Op::Commit {
            ino,
            generation: Generation(generation),
            hash: hash(h),
            size: h as u64,
            blob: BlobId(blob.into()),
            by: by(),
            now: self.now(),
        }
    }

    fn reap_op(&mut self, h: u8) -> Op {
        Op::Reap {
            hash: hash(h),
            now: self.now(),
        }
    }

    /// A new file with stored content `h`.
    fn stored(&mut self, n: &str, h: u8, blob: &str) -> Ino {
        let ino = self.make(Ino::ROOT, n, FILE);
        let op = self.pending_op(ino, 1, "n1", h as u64);
        self.ok(op);
        let op = self.commit_op(ino, 1, h, blob);
        self.ok(op);
        ino
    }

    fn inode(&self, ino: Ino) -> Inode {
        self.tree.read(|q| q.inode(ino)).unwrap()
    }

    fn content(&self, h: u8) -> Content {
        self.tree.read(|q| q.content(&hash(h))).unwrap().unwrap()
    }

    fn names(&self, parent: Ino) -> Vec<String> {
        let entries = self.tree.read(|q| q.readdir(parent, 0, 1000)).unwrap();
        entries
            .into_iter()
            .map(|d| String::from_utf8(d.name).unwrap())
            .collect()
    }
}

async fn open(path: &Path) -> Tree {
    Tree::open(path, &NodeId("n1".into()), None, Box::new(|_, _| {}))
        .await
        .unwrap()
}

fn bytes(n: impl AsRef<[u8]>) -> Bytes {
    Bytes::from(n.as_ref().to_vec())
}

fn hash(h: u8) -> ContentHash {
    ContentHash([h; 32])
}

fn by() -> StoredBy {
    StoredBy {
        node: NodeId("n1".into()),
        worker: "worker-1".into(),
        uploaded_at: Time(7),
        started_at: Time(8),
    }
}

fn create_op(ino: Ino, parent: Ino, n: &[u8], mode: u32, now: Time) -> Op {
    Op::Create {
        parent,
        name: bytes(n),
        ino,
        mode,
        uid: 1,
        gid: 2,
        rdev: 0,
        target: None,
        now,
    }
}

/// Every row of every table that the ops decide, as text.
fn dump(tree: &Tree) -> Vec<String> {
    tree.read(|q| Ok(dump_tables(q.0))).unwrap()
}

fn dump_tables(conn: &Connection) -> Vec<String> {
    let mut lines = Vec::new();
    for table in ["inodes", "dentries", "xattrs", "contents", "tombstones"] {
        let mut stmt = conn
            .prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2"))
            .unwrap();
        let columns: Vec<String> = stmt.column_names().map(str::to_owned).collect();
        let mut rows = stmt.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let mut line = table.to_owned();
            for (i, column) in columns.iter().enumerate() {
                let value = match row.get_ref(i).unwrap() {
                    ValueRef::Null => "-".to_owned(),
                    ValueRef::Integer(n) => n.to_string(),
                    ValueRef::Text(t) | ValueRef::Blob(t) => t.escape_ascii().to_string(),
                    ValueRef::Real(r) => panic!("{table}.{column} holds the float {r}"),
                };
                line += &format!(" {column}={value}");
            }
            lines.push(line);
        }
    }
    lines
}

/// What must hold after every op, each as a question for its exceptions.
const INVARIANTS: &[(&str, &str)] = &[
    (
        "each entry names an inode",
        "SELECT ino FROM dentries WHERE ino NOT IN (SELECT ino FROM inodes)",
    ),
    (
        "each entry is in a directory",
        "SELECT parent FROM dentries WHERE parent NOT IN (SELECT ino FROM inodes WHERE mode&0xf000=0x4000)",
    ),
    (
        "an inode has a name",
        "SELECT ino FROM inodes WHERE ino<>1 AND ino NOT IN (SELECT ino FROM dentries)",
    ),
    (
        "a file has as many links as names",
        "SELECT ino FROM inodes i WHERE mode&0xf000<>0x4000
           AND nlink<>(SELECT count(*) FROM dentries d WHERE d.ino=i.ino)",
    ),
    (
        "a directory has two links and one for each directory in it",
        "SELECT ino FROM inodes i WHERE mode&0xf000=0x4000 AND nlink<>2+(SELECT count(*) FROM dentries d
           JOIN inodes c ON c.ino=d.ino WHERE d.parent=i.ino AND c.mode&0xf000=0x4000)",
    ),
    (
        "a directory has one name, in its parent",
        "SELECT ino FROM inodes i WHERE ino<>1 AND mode&0xf000=0x4000 AND (SELECT count(*) FROM dentries d
           WHERE d.ino=i.ino AND d.parent=i.parent)<>1 OR (SELECT count(*) FROM dentries d
           WHERE d.ino=i.ino AND i.mode&0xf000=0x4000)>1",
    ),
    (
        "only directories have a parent",
        "SELECT ino FROM inodes WHERE (mode&0xf000=0x4000)<>(parent IS NOT NULL)",
    ),
    (
        "every inode is reached from the root",
        "WITH RECURSIVE r(ino) AS (SELECT 1 UNION SELECT d.ino FROM dentries d JOIN r ON d.parent=r.ino)
           SELECT ino FROM inodes WHERE ino NOT IN r",
    ),
    (
        "attributes belong to an inode",
        "SELECT ino FROM xattrs WHERE ino NOT IN (SELECT ino FROM inodes)",
    ),
    (
        "content is unreferenced when no inode has its hash",
        "SELECT size FROM contents c WHERE (unreferenced_at IS NOT NULL)
           <>(NOT EXISTS(SELECT 1 FROM inodes i WHERE i.hash=c.hash))",
    ),
    (
        "each hash of an inode is known",
        "SELECT ino FROM inodes WHERE hash IS NOT NULL AND hash NOT IN (SELECT hash FROM contents)",
    ),
    (
        "a pending file says where, a stored one what",
        "SELECT ino FROM inodes WHERE (state=1)<>(node IS NOT NULL) OR (state>=2 AND hash IS NULL)
           OR (state=0 AND hash IS NOT NULL) OR (state<>0 AND mode&0xf000<>0x8000)",
    ),
    (
        "cookies do not run ahead of their directory",
        "SELECT d.ino FROM dentries d JOIN inodes i ON i.ino=d.parent WHERE d.cookie>i.cookie OR d.cookie<1",
    ),
    (
        "a removed object is not stored",
        "SELECT 1 FROM contents WHERE blob IN (SELECT blob FROM tombstones)",
    ),
];

fn check_tables(conn: &Connection) {
    for (what, sql) in INVARIANTS {
        let mut stmt = conn.prepare_cached(sql).unwrap();
        let wrong: Vec<i64> = stmt
            .query_map([], |r| r.get(0))
            .unwrap()
            .map(|r| r.unwrap())
            .collect();
        assert!(
            wrong.is_empty(),
            "{what}: not {wrong:?} in\n{}",
            dump_tables(conn).join("\n")
        );
    }
}
