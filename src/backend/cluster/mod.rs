//! The cluster side: content, records and the namespace log in MongoDB, locks and membership in etcd.
//!
//! MongoDB decides, etcd saves work: everything here stays correct without etcd, so a cluster opens when etcd is away.
//! It does not open when MongoDB is away, because nobody could then say whether the two belong together.

mod blobs;
mod etcd;
mod gridfs;
mod locks;
mod log;
mod membership;
mod mongo;
mod records;

use std::sync::Arc;

use super::{Backends, Result};
use crate::config::ClusterConfig;
use crate::types::NodeId;

/// Connects to the servers of `cluster` and prepares the database: format marker and indexes.
///
/// `Unavailable`: MongoDB does not answer, within seconds. `Unusable`: it answers, but cannot serve as it is set up, or
/// an address makes no sense. No error holds a password.
pub async fn open(cluster: &ClusterConfig, node: &NodeId) -> Result<Backends> {
    // First, since it needs no server to find fault with an address.
    let etcd = Arc::new(etcd::Etcd::start(&cluster.etcd, cluster.lock_ttl).await?);
    let (database, tree) = mongo::connect(cluster).await?;
    let content = gridfs::Bucket::new(&database, "fs");
    content.create_indexes().await?;
    Ok(Backends {
        mode: "cluster",
        tree: format!("cluster {tree}"),
        content_dir_is_store: false,
        blobs: Arc::new(blobs::GridFsBlobs(content)),
        log: Some(Arc::new(log::MongoLog::open(&database).await?)),
        locks: Arc::new(locks::EtcdLocks::new(etcd.clone(), node)),
        records: Arc::new(records::MongoRecords(database.collection("files"))),
        membership: Arc::new(membership::EtcdMembership::new(etcd, database)),
    })
}
