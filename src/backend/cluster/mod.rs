//! The cluster side: content, records and the namespace log in MongoDB, locks and membership in etcd.
//!
//! MongoDB decides, etcd saves work: everything here stays correct without etcd, so a cluster opens when etcd is away.
//! When MongoDB is away it opens only for a data directory that has been in use: nobody else could say which tree this is.
//! Before the log is used then, the database is asked whether it still holds that tree.

mod blobs;
mod etcd;
mod file_locks;
mod gridfs;
mod gridfs_faults;
mod locks;
mod log;
mod membership;
mod mongo;
mod peers;
mod records;

use std::sync::Arc;

use super::{BackendError, Backends, Result};
use crate::config::ClusterConfig;
use crate::types::NodeId;

/// How the names of trees in a database begin.
const TREE: &str = "cluster ";

/// Connects to the servers of `cluster` and prepares the database: format marker and indexes.
///
/// `Unavailable`: MongoDB does not answer, within seconds, and the tree is not `known`. `Unusable`: it answers, but cannot
/// serve as it is set up, or an address makes no sense. No error holds a password.
pub async fn open(cluster: &ClusterConfig, node: &NodeId, known: Option<&str>) -> Result<Backends> {
    // First, since it needs no server to find fault with an address.
    let etcd = etcd::Etcd::start(&cluster.etcd, &cluster.etcd_tls, cluster.lock_ttl).await?;
    let etcd = Arc::new(etcd);
    let database = mongo::database(cluster).await?;
    let content = gridfs::Bucket::new(&database, "fs");
    let log = log::MongoLog::new(&database, cluster.checkpoint_every);
    let known = known.and_then(|k| k.strip_prefix(TREE));
    let prepared = async {
        let tree = mongo::greet(cluster, &database).await?;
        content.create_indexes().await?;
        log.create_indexes().await?;
        Ok(tree)
    };
    let tree = match (prepared.await, known) {
        (Ok(tree), _) => tree,
        (Err(BackendError::Unavailable(e)), Some(known)) => {
            tracing::warn!("{e}; starting with what this machine knows");
            log.expect(known);
            known.to_owned()
        }
        (Err(e), _) => return Err(e),
    };
    log.follow();
    let directory = membership::Directory::new(etcd.clone(), &database);
    let peers = peers::ClusterPeers::new(node, database.clone(), directory.clone());
    if let Err(e) = peers.learn().await {
        tracing::debug!("the peers' secret is asked for later: {e}");
    }
    Ok(Backends {
        mode: "cluster",
        tree: format!("{TREE}{tree}"),
        content_dir_is_store: false,
        blobs: Arc::new(blobs::GridFsBlobs(content)),
        log: Some(Arc::new(log)),
        file_locks: Some(file_locks::EtcdFileLocks::new(etcd.clone(), node, &tree)),
        locks: Arc::new(locks::EtcdLocks::new(etcd.clone(), node)),
        records: Arc::new(records::MongoRecords(database.collection("files"))),
        membership: Arc::new(membership::EtcdMembership::new(directory, database)),
        peers: Some(Arc::new(peers)),
    })
}
