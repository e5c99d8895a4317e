//! The promises of the seams in `oncefs::backend`, held against both sides by one suite, and what only the cluster
//! side promises, held against real servers.

#[allow(unsafe_code)]
#[path = "../common/mod.rs"]
mod common;

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

mod blobs;
mod file_locks;
mod gridfs;
mod locks;
mod log;
mod membership;
mod opening;
mod outages;
mod records;

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

fn entry(seq: u64, batch: &str) -> LogEntry {
    LogEntry {
        seq: Seq(seq),
        node: node("a"),
        batch: batch.to_string(),
        payload: format!("payload of {batch}").into_bytes(),
    }
}
