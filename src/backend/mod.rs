//! The seams to what keeps content, order and locks. Each has an embedded and a cluster side, and one suite of contract
//! tests (`tests/contract.rs`) holds both sides to the same promises.
//!
//! Only this room names a MongoDB or an etcd type. [`open`] is the one place that picks a side from the configuration;
//! callers never ask which one they got. A namespace log exists only in a cluster: in embedded mode the local commit
//! order is the order, so [`Backends::log`] is `None`.

pub mod cluster;
pub mod embedded;
mod forward;
mod group_sync;
mod local_locks;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Serialize;
use tokio::io::AsyncRead;

use crate::config::Config;
use crate::types::{BlobId, ContentHash, NodeId, Seq, Status, Time};

/// What can go wrong at a seam, in the few kinds that a caller can act on. The cause is kept for the log.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The thing asked for is not there. Never used for "could not find out".
    #[error("not found")]
    NotFound,
    /// The gate given to [`BlobStore::put`] said no: nothing was published.
    #[error("cancelled before publication")]
    Cancelled,
    /// The stored or the given bytes are not what their name says.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The server or the disk cannot answer now; the same call may work later. The outcome of a write is unknown.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// It will not work by trying again: wrong set-up, refused credentials, a newer format. The text says what to do.
    #[error("{0}")]
    Unusable(String),
    /// The local disk said no.
    #[error("local disk: {0}")]
    Io(#[from] std::io::Error),
}

/// A result at a seam.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// The bytes of a stored content, streamed.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// Asked at most once by [`BlobStore::put`], directly before it publishes; `false` means that the source has changed hands.
/// `true` is a promise: nobody writes to the source from then on, since the stored content may be the same inode.
/// It may go unasked when the content is found to be stored already.
pub type Gate<'a> = &'a (dyn Fn() -> bool + Send + Sync);

/// How a put ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call published the content under this id.
    Stored(BlobId),
    /// The content was already published under this id; this call left nothing behind.
    Duplicate(BlobId),
}

impl Put {
    /// The id under which the content can be read now.
    pub fn blob(&self) -> &BlobId {
        match self {
            Put::Stored(id) | Put::Duplicate(id) => id,
        }
    }
}

/// Keeps each content once, named by its hash.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Publishes the file `source`, whose SHA-256 the caller found to be `hash`, and makes it durable.
    ///
    /// Publication is atomic: of any number of callers on any number of machines exactly one gets [`Put::Stored`].
    /// A caller that fails or dies leaves nothing that can be read. Idempotent. The implementation may hard-link
    /// `source` (never change or remove it), or read it: bytes that do not hash to `hash` are `Corrupt`.
    async fn put(
        &self,
        hash: &ContentHash,
        size: u64,
        source: &Path,
        gate: Gate<'_>,
    ) -> Result<Put>;

    /// Opens a published content. `NotFound` when it is not there. The reader does not verify the hash; callers do.
    async fn get(&self, blob: &BlobId) -> Result<BlobReader>;

    /// Whether a published content is there, without reading it.
    async fn exists(&self, blob: &BlobId) -> Result<bool>;

    /// Removes a published content by its id. Removing what is not there is a success.
    async fn delete(&self, blob: &BlobId) -> Result<()>;

    /// Removes what uploads that died longer ago than `grace` left behind; returns how many uploads that were.
    async fn sweep(&self, grace: Duration) -> Result<u64>;
}

/// One entry of the namespace log: a batch of ops that one node validated against exactly the state before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position. Positions have no gaps.
    pub seq: Seq,
    /// Who wrote it.
    pub node: NodeId,
    /// Random name of the batch, by which an unknown outcome is resolved.
    pub batch: String,
    /// The encoded ops; this room does not look inside.
    pub payload: Vec<u8>,
}

/// How an append ended, when it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Append {
    /// The entry is at its position, majority-acknowledged and journaled.
    Appended,
    /// Another batch is at that position.
    Conflict,
}

/// The total order of a cluster's namespace: an append-only log, appended by compare-and-swap on the position.
#[async_trait]
pub trait TreeLog: Send + Sync {
    /// Writes `entry` at `entry.seq`. Repeating the same batch is a success. `Unavailable` means: outcome unknown, the
    /// entry may still appear; call again with the same entry to find out. `NotFound` means: that position has been
    /// trimmed away, so the log can no longer tell whether the entry was ever there; nothing was added, go on from the
    /// newest checkpoint. `Unusable` when the log ends before `entry.seq - 1`: the database lost acknowledged entries.
    async fn append(&self, entry: &LogEntry) -> Result<Append>;

    /// Up to `limit` majority-committed entries from position `from` on, in order. Empty at the head.
    /// `NotFound` when `from` lies behind the trimmed start of the log.
    async fn read(&self, from: Seq, limit: usize) -> Result<Vec<LogEntry>>;

    /// The last majority-committed position (0 when empty).
    async fn head(&self) -> Result<Seq>;

    /// Returns once the log may hold entries beyond `after`, or after a second at the latest. Spurious returns are fine.
    async fn changed(&self, after: Seq) -> Result<()>;

    /// The number of this node's inode range: 1 or more, different for every node, the same at every call.
    async fn register(&self, node: &NodeId) -> Result<u32>;

    /// Stores the file `snapshot` as the state after `seq` and removes checkpoints that it replaces.
    async fn put_checkpoint(&self, seq: Seq, snapshot: &Path) -> Result<()>;

    /// The newest checkpoint, if there is one.
    async fn checkpoint(&self) -> Result<Option<(Seq, BlobReader)>>;

    /// Drops entries up to and including `seq`, which a stored checkpoint covers.
    async fn trim(&self, seq: Seq) -> Result<()>;
}

/// The held lock of one hash. Dropping it gives it up.
///
/// Holding it only saves work. It may be lost without notice, so [`HashLock::is_valid`] goes by the local clock and
/// turns false before the lock could be somebody else's.
pub struct HashLock {
    /// Grows from holder to holder of the same hash; 0 when no lock service could be asked.
    pub fence: u64,
    /// After this moment the lock may have been lost; `None` for a lock that cannot be.
    pub(crate) valid_until: Option<Arc<dyn Fn() -> Option<Instant> + Send + Sync>>,
    /// Gives the lock up when dropped.
    pub(crate) _release: Box<dyn std::any::Any + Send + Sync>,
}

impl HashLock {
    /// Whether the lock is certainly still held.
    pub fn is_valid(&self) -> bool {
        match &self.valid_until {
            None => true,
            Some(until) => until().is_some_and(|t| Instant::now() < t),
        }
    }
}

impl std::fmt::Debug for HashLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "HashLock(fence {}, valid {})",
            self.fence,
            self.is_valid()
        )
    }
}

/// Mutual exclusion per content hash.
#[async_trait]
pub trait Locks: Send + Sync {
    /// Waits until this caller holds the lock of `hash`. When the lock service is away it returns, within seconds, a
    /// lock with fence 0 and says so in the log once per outage: work goes on, the store still decides who publishes.
    async fn acquire(&self, hash: &ContentHash) -> Result<HashLock>;
}

/// The public record of one content: what `GET /status` shows and what the `files` collection holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// The content.
    pub hash: ContentHash,
    /// The name under which it was first seen.
    pub filename: String,
    /// Its length in bytes.
    pub size: u64,
    /// Where it stands.
    pub status: Status,
    /// The worker that processes or processed it, such as `worker-2`.
    pub worker: Option<String>,
    /// The node of that worker.
    pub node: NodeId,
    /// When its first file was closed or uploaded.
    pub uploaded_at: Time,
    /// When a worker began.
    pub started_at: Option<Time>,
    /// When it was stored.
    pub done_at: Option<Time>,
    /// The fencing token of the lock under which this was written.
    pub fence: u64,
    /// Why it failed, when it did.
    pub error: Option<String>,
}

/// Keeps the records of contents.
#[async_trait]
pub trait Records: Send + Sync {
    /// Writes `record` unless the kept one is further on (a later [`Status`]) or has a newer fence: records only go
    /// forward, with one exception: `failed` may go back to `processing` under the same or a newer fence.
    /// `uploaded_at` and `filename` of the first writer stay. `done` and `duplicate` under fence 0 (no lock service could
    /// be asked) are not bound by the kept fence: that content is stored is a fact.
    async fn advance(&self, record: &FileRecord) -> Result<()>;

    /// The record of `hash`, if one is kept. The embedded side keeps only those that are not done yet: the tree knows
    /// the others.
    async fn get(&self, hash: &ContentHash) -> Result<Option<FileRecord>>;

    /// Removes the record of a content that was removed.
    async fn remove(&self, hash: &ContentHash) -> Result<()>;
}

/// What a node tells the others about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Where its sidecar listens, empty when off.
    pub api: String,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started_at: Time,
}

/// What is reachable now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The lock service answered within its deadline. False when none is configured.
    pub etcd: bool,
    /// The database answered within its deadline. False when none is configured.
    pub mongo: bool,
}

/// Who is there, and what answers.
#[async_trait]
pub trait Membership: Send + Sync {
    /// Makes this node known until the process ends; kept alive in the background, renewed after an outage.
    async fn join(&self, me: Member) -> Result<()>;

    /// The nodes that are alive, this one included. Falls back to this one alone when nobody can be asked.
    async fn members(&self) -> Vec<Member>;

    /// Asks the servers, each with a deadline of at most two seconds.
    async fn health(&self) -> Health;
}

/// Everything that lies beyond this process.
#[derive(Clone)]
pub struct Backends {
    /// `embedded` or `cluster`, for display only.
    pub mode: &'static str,
    /// Which tree this is. A data directory belongs to one tree for good.
    pub tree: String,
    /// Whether the content directory is the store itself, so that nothing may be evicted from it.
    pub content_dir_is_store: bool,
    /// The content.
    pub blobs: Arc<dyn BlobStore>,
    /// The order of the namespace, if it is shared.
    pub log: Option<Arc<dyn TreeLog>>,
    /// The lock of each hash.
    pub locks: Arc<dyn Locks>,
    /// The public records.
    pub records: Arc<dyn Records>,
    /// Who is there.
    pub membership: Arc<dyn Membership>,
}

/// Connects what the configuration names. Errors are sentences for the person who started the program.
pub async fn open(config: &Config, node: &NodeId) -> Result<Backends> {
    match &config.cluster {
        None => embedded::open(config),
        Some(cluster) => cluster::open(cluster, node).await,
    }
}
