//! A node without a mount and without locks, whose store pauses and loses answers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use oncefs::backend::{
    self, BackendError, Backends, BlobReader, BlobStore, FileRecord, Gate, HashLock, Locks, Page,
    Put, Records, Result,
};
use oncefs::config::{ClusterConfig, Config, DataDir, MountConfig};
use oncefs::content::{Sealed, Spool};
use oncefs::ingest::Ingest;
use oncefs::tree::{Body, Tree, TreeError};
use oncefs::types::{BlobId, ContentHash, Ino, NodeId};
use oncefs::vfs::{Access, Caller, Vfs, VfsError};
use tokio::io::AsyncReadExt;
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;

use super::{Chaos, hash_of};

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    thread: 0,
};

pub struct Servers {
    pub mongodb: String,
    pub etcd: String,
    pub database: String,
}

/// Everybody has every lock at once.
struct NoLocks(Arc<Chaos>);

#[async_trait]
impl Locks for NoLocks {
    async fn acquire(&self, _: &ContentHash) -> Result<HashLock> {
        self.0.pause().await;
        Ok(HashLock::without(()))
    }
}

struct Shaky<T: ?Sized>(Arc<T>, Arc<Chaos>);

impl<T: ?Sized> Shaky<T> {
    /// What happened is not heard.
    fn lose<R>(&self, answer: Result<R>) -> Result<R> {
        if self.1.one_in(50) {
            self.1.lost_answers.fetch_add(1, Ordering::Relaxed);
            return Err(BackendError::Unavailable("the answer was lost".into()));
        }
        answer
    }
}

#[async_trait]
impl BlobStore for Shaky<dyn BlobStore> {
    async fn put(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &std::path::Path,
        gate: Gate<'_>,
    ) -> Result<Put> {
        self.1.pause().await;
        let slow = || {
            self.1.pause_blocking();
            let open = gate();
            self.1.pause_blocking();
            open
        };
        let put = self.0.put(hash, size, source, &slow).await;
        match &put {
            Ok(Put::Stored(_)) => self.1.stored.fetch_add(1, Ordering::Relaxed),
            Ok(Put::Duplicate(_)) => self.1.duplicates.fetch_add(1, Ordering::Relaxed),
            Err(_) => 0,
        };
        self.1.pause().await;
        self.lose(put)
    }

    async fn get(&self, blob: &BlobId) -> Result<BlobReader> {
        self.0.get(blob).await
    }

    async fn faults(&self, blobs: &[BlobId]) -> Result<Vec<Option<String>>> {
        self.1.pause().await;
        let faults = self.0.faults(blobs).await;
        self.1.pause().await;
        faults
    }

    async fn condemn(&self, blob: &BlobId) -> Result<()> {
        self.0.condemn(blob).await
    }

    async fn delete(&self, blob: &BlobId) -> Result<()> {
        self.1.pause().await;
        if self.1.one_in(50) {
            return Err(BackendError::Unavailable("nothing was asked".into()));
        }
        let deleted = self.0.delete(blob).await;
        self.1.pause().await;
        self.lose(deleted)
    }

    async fn unfinished(&self, grace: Duration) -> Result<Vec<BlobId>> {
        let found = self.0.unfinished(grace).await;
        self.1.pause().await;
        found
    }

    async fn published(
        &self,
        after: Option<&BlobId>,
        grace: Duration,
        limit: usize,
    ) -> Result<Page> {
        let found = self.0.published(after, grace, limit).await;
        self.1.pause().await;
        found
    }
}

#[async_trait]
impl Records for Shaky<dyn Records> {
    async fn advance(&self, record: &FileRecord) -> Result<()> {
        self.1.pause().await;
        self.0.advance(record).await
    }

    async fn get(&self, hash: &ContentHash) -> Result<Option<FileRecord>> {
        self.0.get(hash).await
    }

    async fn remove(&self, hash: &ContentHash) -> Result<()> {
        self.1.pause().await;
        self.0.remove(hash).await
    }
}

/// What a crash takes away.
struct Running {
    tree: Arc<Tree>,
    spool: Arc<Spool>,
    vfs: Arc<Vfs>,
    ingest: Arc<Ingest>,
    workers: JoinSet<()>,
}

pub struct Node {
    pub id: NodeId,
    data: DataDir,
    /// As they are.
    plain: Backends,
    shaky: Backends,
    /// Held for writing by a crash only, so that a file operation is not half done: those have tests of their own.
    running: RwLock<Running>,
    /// Counts the crashes, before each.
    crashes: watch::Sender<u64>,
    _dir: tempfile::TempDir,
}

impl Node {
    pub async fn start(servers: &Servers, n: usize, chaos: Arc<Chaos>) -> Node {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = DataDir::new(dir.path());
        for place in [data.spool(), data.content()] {
            std::fs::create_dir_all(place).unwrap();
        }
        let id = NodeId(format!("n{n}-00000000"));
        let config = Config {
            mountpoint: "/nowhere".into(),
            data_dir: dir.path().into(),
            cluster: Some(ClusterConfig {
                mongodb: servers.mongodb.clone(),
                etcd: vec![servers.etcd.clone()],
                database: servers.database.clone(),
                lock_ttl: Duration::from_secs(30),
                checkpoint_every: 5000,
                etcd_tls: Default::default(),
            }),
            api: None,
            api_tls: None,
            peer: None,
            workers: 3,
            queue: 100,
            cache_bytes: 2 << 20,
            mount: MountConfig::default(),
            gc_grace: Duration::from_secs(3600),
            token: None,
        };
        let plain = backend::open(&config, &id, None).await.unwrap();
        let shaky = Backends {
            blobs: Arc::new(Shaky(plain.blobs.clone(), chaos.clone())),
            records: Arc::new(Shaky(plain.records.clone(), chaos.clone())),
            locks: Arc::new(NoLocks(chaos)),
            ..plain.clone()
        };
        let running = boot(&id, &data, &shaky).await;
        Node {
            id,
            data,
            plain,
            shaky,
            running: RwLock::new(running),
            crashes: watch::channel(0).0,
            _dir: dir,
        }
    }

    /// Whatever workers and collectors have in hand is dropped, and the node starts anew from its data directory.
    pub async fn crash(&self) {
        self.crashes.send_modify(|n| *n += 1);
        let mut running = self.running.write().await;
        running.workers.abort_all();
        while running.workers.join_next().await.is_some() {}
        running.tree.close();
        running.tree.ended().await;
        *running = boot(&self.id, &self.data, &self.shaky).await;
    }

    /// Runs `work`, unless a crash comes first.
    pub async fn until_crash<T>(&self, work: impl AsyncFnOnce(&Ingest) -> T) -> Option<T> {
        let running = self.running.read().await;
        let mut crashes = self.crashes.subscribe();
        tokio::select! {
            done = work(&running.ingest) => Some(done),
            _ = crashes.changed() => None,
        }
    }

    pub async fn ingest(&self) -> Arc<Ingest> {
        self.running.read().await.ingest.clone()
    }

    pub async fn write(&self, name: &str, content: &[u8]) {
        let running = self.running.read().await;
        let vfs = &running.vfs;
        let written = async {
            vfs.catch_up().await?;
            let access = Access {
                write: true,
                truncate: true,
                ..Access::default()
            };
            let opened = match vfs.lookup(Ino::ROOT, name.as_bytes()) {
                Ok(attr) => {
                    vfs.open(attr.inode.ino, access, &|_| unreachable!())
                        .await?
                }
                Err(VfsError::Tree(TreeError::NotFound)) => {
                    let name = name.as_bytes();
                    let made = vfs.create(
                        ROOT,
                        Ino::ROOT,
                        name,
                        0o644,
                        access,
                        true,
                        &|_| unreachable!(),
                    );
                    made.await?.1
                }
                Err(e) => return Err(e),
            };
            vfs.write(opened.fh, 0, content, None).await?;
            vfs.flush(opened.fh).await?;
            vfs.release(opened.fh).await
        };
        if let Err(e) = written.await {
            panic!("{}: writing {name}: {e:?}", self.id);
        }
    }

    pub async fn remove(&self, name: &str) {
        let running = self.running.read().await;
        running.vfs.catch_up().await.unwrap();
        let removed = running.vfs.unlink(Ino::ROOT, name.as_bytes()).await;
        removed.unwrap_or_else(|e| panic!("{}: removing {name}: {e:?}", self.id));
    }

    /// Reads some file from the store itself, as a node with an empty cache would. False when there was none to read.
    pub async fn read_one(&self, below: impl Fn(u64) -> u64) -> bool {
        let running = self.running.read().await;
        let listed = running.vfs.list(Ino::ROOT, 0, 1000).unwrap();
        if listed.is_empty() {
            return false;
        }
        let ino = listed[below(listed.len() as u64) as usize].attr.inode.ino;
        let stored = || {
            let found = running.tree.read(|q| match q.inode(ino)?.body {
                Body::Stored { hash, .. } => Ok(q.content(&hash)?.map(|c| (hash, c.blob))),
                Body::Empty | Body::Pending { .. } => Ok(None),
            });
            match found {
                Err(TreeError::NotFound) => None,
                found => found.unwrap(),
            }
        };
        let Some((hash, blob)) = stored() else {
            return false;
        };
        let read = async {
            let mut bytes = Vec::new();
            let mut reader = self.plain.blobs.get(&blob).await?;
            reader.read_to_end(&mut bytes).await?;
            Ok::<_, BackendError>(bytes)
        };
        match read.await {
            Ok(bytes) => {
                assert_eq!(hash_of(&bytes), hash, "a bad read of {blob:?}");
                true
            }
            Err(e) => {
                // It may have gone since: then the tree says so.
                running.vfs.catch_up().await.unwrap();
                let still = stored() == Some((hash, blob));
                assert!(
                    !still,
                    "{}: {hash} is a file's and cannot be read: {e}",
                    self.id
                );
                false
            }
        }
    }

    /// Waits until all that was closed is stored.
    pub async fn settle(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let running = self.running.read().await;
            let waiting = running.spool.counts();
            if waiting == (0, 0) && running.tree.waiting().unwrap() == 0 {
                return;
            }
            if Instant::now() > deadline {
                let stuck: Vec<_> = running
                    .spool
                    .scan()
                    .unwrap()
                    .into_iter()
                    .map(|f| (f.ino, f.generation, running.spool.progress(f.ino)))
                    .collect();
                panic!("{}: not stored within {limit:?}: {stuck:#?}", self.id);
            }
            drop(running);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn catch_up(&self) {
        self.running.read().await.vfs.catch_up().await.unwrap();
    }

    /// The tree as this node knows it.
    pub async fn files(&self) -> BTreeMap<String, ContentHash> {
        let running = self.running.read().await;
        let listed = running.vfs.list(Ino::ROOT, 0, 10_000).unwrap();
        let of = |body: &Body| match body {
            Body::Stored { hash, .. } => *hash,
            Body::Empty => hash_of(b""),
            Body::Pending { .. } => panic!("pending after everything was stored"),
        };
        listed
            .iter()
            .map(|l| {
                let name = String::from_utf8(l.dentry.name.clone()).unwrap();
                (name, of(&l.attr.inode.body))
            })
            .collect()
    }

    /// The contents that this node knows, and the object that holds each.
    pub async fn contents(&self) -> BTreeMap<ContentHash, String> {
        let running = self.running.read().await;
        let contents = running.tree.scan(|q| q.contents(None, 100_000)).unwrap();
        contents.into_iter().map(|c| (c.hash, c.blob.0)).collect()
    }

    pub async fn read(&self, name: &str) -> Vec<u8> {
        let running = self.running.read().await;
        let vfs = &running.vfs;
        let attr = vfs.lookup(Ino::ROOT, name.as_bytes()).unwrap();
        let access = Access::default();
        let opened = vfs.open(attr.inode.ino, access, &|_| unreachable!());
        let fh = opened.await.unwrap().fh;
        let mut bytes = vec![0; attr.inode.size as usize + 1];
        let read = vfs.read(fh, 0, &mut bytes).await;
        let read = read.unwrap_or_else(|e| panic!("{}: reading {name}: {e:?}", self.id));
        vfs.release(fh).await.unwrap();
        bytes.truncate(read);
        bytes
    }
}

/// As `node::run` does it, without mount and sidecar.
async fn boot(id: &NodeId, data: &DataDir, backends: &Backends) -> Running {
    for place in [data.tmp(), data.spare()] {
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(place).unwrap();
    }
    let target: Arc<OnceLock<Weak<Vfs>>> = Arc::default();
    let listening = target.clone();
    let listener = Box::new(move |origin, effects: &[_]| {
        if let Some(vfs) = listening.get().and_then(Weak::upgrade) {
            vfs.on_effects(origin, effects);
        }
    });
    let tree = Tree::open(&data.tree(), id, backends.log.clone(), listener).await;
    let tree = Arc::new(tree.unwrap());
    let sealed = Sealed::open_dir(data, backends.blobs.clone(), Some(2 << 20)).unwrap();
    let sealed = Arc::new(sealed);
    let spool = Arc::new(Spool::new(data.spool(), data.spare()));
    let ingest = Arc::new(Ingest::new(
        id.clone(),
        tree.clone(),
        spool.clone(),
        sealed.clone(),
        backends.clone(),
        100,
    ));
    let vfs = Arc::new(Vfs::new(
        id.clone(),
        tree.clone(),
        spool.clone(),
        sealed,
        ingest.clone(),
        false,
        None,
        None,
    ));
    let _ = target.set(Arc::downgrade(&vfs));
    let recovered = ingest.recover(true, &data.torn()).await.unwrap();
    assert_eq!(recovered.lost, 0, "{id}: {recovered:?}");
    tree.merge_with(spool.clone());
    let workers = ingest.start(3, Duration::from_secs(3600));
    Running {
        tree,
        spool,
        vfs,
        ingest,
        workers,
    }
}
