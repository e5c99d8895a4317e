//! One running node: the only place where the rooms are wired together. Opens, recovers, starts the workers, mounts,
//! serves, and ends it all in the opposite order.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::backend::{self, BackendError, Load, Member, Membership};
use crate::config::{Config, DataDir};
use crate::content::{Sealed, Spool, disk, leases_work};
use crate::fuse::{self, notify::Invalidations};
use crate::ingest::Ingest;
use crate::sidecar;
use crate::tree::{Commitment, Op, Origin, Tree, TreeError};
use crate::types::{Ino, NodeId, Time};
use crate::vfs::{Caller, Vfs};

/// How long workers may finish what they have in hand when the node ends.
const WORKERS_DEADLINE: Duration = Duration::from_secs(10);

/// How long the namespace may finish the call to the log that it is in.
const TREE_DEADLINE: Duration = Duration::from_secs(8);

/// How often a node tells the others how far it is.
const REPORT: Duration = Duration::from_secs(2);
/// How long a new node waits for one that is ending. It takes longer than [`WORKERS_DEADLINE`] in the worst case only.
pub(crate) const ENDING_DEADLINE: Duration = Duration::from_secs(15);

/// How long a killed daemon may take to end by itself.
const DYING_DEADLINE: Duration = Duration::from_secs(3);

/// Why a node did not start, or did not end well: a sentence for the person who started it.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The mount point is not usable.
    #[error("mount point {0}: {1}")]
    Mountpoint(String, String),
    /// The data directory is not usable.
    #[error("data directory {0}: {1}")]
    DataDir(String, String),
    /// There is no /dev/fuse, or it may not be used.
    #[error("{0}")]
    Fuse(String),
    /// MongoDB, etcd, or what is in them.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The namespace database.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The sidecar could not be started.
    #[error("sidecar: {0}")]
    Sidecar(io::Error),
    /// The operating system.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Holds the data directory for this process.
pub(crate) struct DataLock(File);

impl DataLock {
    /// A daemon whose mount is gone is ending, and is waited for: `umount` returns before it has.
    pub(crate) async fn take(data: &DataDir, mountpoint: &Path) -> Result<DataLock, NodeError> {
        let refuse = |why: String| NodeError::DataDir(data.root().display().to_string(), why);
        match data.foreign() {
            Ok(None) => {}
            Ok(Some(found)) => {
                return Err(refuse(format!(
                    "holds {}, which is not of an oncefs; name an empty or a new directory",
                    found.display()
                )));
            }
            Err(e) => return Err(refuse(format!("cannot be read: {e}"))),
        }
        for dir in [
            data.root().to_owned(),
            data.spool(),
            data.spare(),
            data.content(),
            data.tmp(),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|e| refuse(format!("cannot be made: {e}")))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(data.lock())
            .map_err(|e| refuse(format!("cannot be used: {e}")))?;
        let deadline = Instant::now() + ENDING_DEADLINE;
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let (pid, mounted) = holder(&mut file)?;
            let mounted = mounted.as_path();
            let serves = pid.parse().is_ok_and(|pid| {
                fuse::table::find_as(pid, mounted).is_ok_and(|found| found.is_some())
            });
            if serves || Instant::now() > deadline {
                return Err(refuse(format!(
                    "in use by process {pid}; unmount that first, or choose another with --data-dir"
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut line = format!("{}\n", std::process::id()).into_bytes();
        line.extend_from_slice(mountpoint.as_os_str().as_bytes());
        line.push(b'\n');
        // Over what is there, which takes no room that is not taken already. It only informs.
        let noted = file
            .write_all_at(&line, 0)
            .and_then(|()| file.set_len(line.len() as u64));
        match noted {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                warn!("the disk is full: who holds the data directory is not noted");
            }
            noted => noted?,
        }
        Ok(DataLock(file))
    }
}

/// Who noted that it uses the data directory: process id and mount point.
fn holder(file: &mut File) -> io::Result<(String, PathBuf)> {
    let mut noted = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut noted)?;
    let mut lines = noted.splitn(2, |b| *b == b'\n');
    let pid = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mounted = lines.next().unwrap_or_default().trim_ascii_end();
    Ok((pid, PathBuf::from(OsStr::from_bytes(mounted))))
}

/// Lets a daemon end that was killed and cannot: it still holds the data directory, and whoever looks at its mount waits
/// for ever. Most end by themselves, within moments.
async fn release_killed(data: &DataDir) -> io::Result<()> {
    // What is wrong with it is told by who takes it.
    let Ok(mut file) = File::open(data.lock()) else {
        return Ok(());
    };
    let patience = Instant::now() + DYING_DEADLINE;
    loop {
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(());
        }
        let (pid, mounted) = holder(&mut file)?;
        if !pid.parse().is_ok_and(fuse::is_dying) {
            return Ok(());
        }
        if Instant::now() > patience {
            warn!("process {pid} was killed and cannot end; ending its connection");
            return fuse::abort(&mounted);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Drop for DataLock {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

/// Runs a node until `stop` completes or its mount is taken away. `held` is called once the data directory is this
/// process's own: before that nothing may be written there. `ready` is called once the mount serves.
pub async fn run(
    config: Config,
    held: impl FnOnce() -> io::Result<()>,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    check_fuse()?;
    let tls = config.api_tls.as_ref().map(sidecar::Tls::load).transpose();
    let tls = tls.map_err(NodeError::Sidecar)?;
    let data = DataDir::new(&config.data_dir);
    release_killed(&data).await?;
    prepare_mountpoint(&config)?;
    let lock = DataLock::take(&data, &config.mountpoint).await?;
    held()?;
    empty(&data.tmp())?;
    empty(&data.spare())?;
    let node = node_id(&data)?;
    let boot = Boot::look(&data)?;
    let same_boot = boot.same;
    let owner = disk::read_text(&data.belongs_to())?.filter(|t| !t.is_empty());
    let backends = backend::open(&config, &node, owner.as_deref()).await?;
    claim(&data, &backends.tree)?;
    if !same_boot && !backends.content_dir_is_store {
        // A cache file that was never synced may be torn after power loss, and everything in it can be fetched again.
        empty(&data.content())?;
    }

    if backends.content_dir_is_store {
        refuse_without_names(&data)?;
    }

    let invalidations = Invalidations::default();
    let target: Arc<OnceLock<Weak<Vfs>>> = Arc::default();
    let tree = {
        let (invalidations, target) = (invalidations.clone(), target.clone());
        let listener = Box::new(move |origin, effects: &[_]| {
            if let Some(vfs) = target.get().and_then(Weak::upgrade) {
                vfs.on_effects(origin, effects);
            }
            invalidations.note(origin, effects);
        });
        Arc::new(Tree::open(&data.tree(), &node, backends.log.clone(), listener).await?)
    };
    own_root(&tree).await?;
    let limit = (!backends.content_dir_is_store).then_some(config.cache_bytes);
    let sealed = Arc::new(Sealed::open_dir(&data, backends.blobs.clone(), limit)?);
    let spool = Arc::new(Spool::new(data.spool(), data.spare()));
    let ingest = Arc::new(Ingest::new(
        node.clone(),
        tree.clone(),
        spool.clone(),
        sealed.clone(),
        backends.clone(),
        config.queue,
    ));
    let passthrough = config.mount.passthrough && leases_work(&data.node())?;
    if config.mount.passthrough && !passthrough {
        warn!(
            "no passthrough: the disk of the data directory has no leases, which tell when a mapping ends"
        );
    }
    let vfs = Arc::new(Vfs::new(
        node.clone(),
        tree.clone(),
        spool.clone(),
        sealed.clone(),
        ingest.clone(),
        passthrough,
        backends.file_locks.clone(),
        backends.peers.clone(),
    ));
    // Only set here, so it cannot be set already.
    let _ = target.set(Arc::downgrade(&vfs));
    ingest.recover(same_boot, &data.torn()).await?;
    boot.note(&data)?;
    tree.merge_with(spool);
    let workers = ingest.start(config.workers, config.gc_grace);

    let token = sidecar::load_token(&data, config.token.as_deref())?;
    let started_at = Time::now();
    let context = sidecar::Context {
        vfs: vfs.clone(),
        ingest: ingest.clone(),
        sealed,
        backends: backends.clone(),
        node: node.clone(),
        mountpoint: config.mountpoint.clone(),
        workers: config.workers,
        started_at,
        token,
        owner: me(),
        read_only: {
            let (mountpoint, asked) = (config.mountpoint.clone(), config.mount.read_only);
            // The kernel's table, since it can be mounted anew without this daemon being told. Before the mount, and
            // after it, what was asked for holds.
            Box::new(move || match fuse::table::find(&mountpoint) {
                Ok(Some(listed)) => listed.read_only,
                Ok(None) | Err(_) => asked,
            })
        },
        data: data.clone(),
        gc_grace: config.gc_grace,
    };
    let doors = sidecar::Doors {
        api: config.api,
        tls,
        peer: config.peer.as_deref(),
        control: &data.control(),
    };
    let serving = sidecar::start(context, doors).await;
    let serving = serving.map_err(NodeError::Sidecar)?;

    let vfs_of_reports = vfs.clone();
    let (ended, mount_ended) = oneshot::channel();
    let mounted = fuse::mount(
        vfs,
        &config.mountpoint,
        &config.mount,
        invalidations,
        move || {
            let _ = ended.send(());
        },
    )
    .map_err(|e| mount_error(&config, e))?;
    let member = Member {
        node: node.clone(),
        mountpoint: config.mountpoint.display().to_string(),
        api: serving.addr().map_or_else(String::new, |a| a.to_string()),
        peer: serving.peer().unwrap_or_default().to_owned(),
        version: env!("CARGO_PKG_VERSION").into(),
        started_at,
        load: Load::default(),
    };
    if let Err(e) = backends.membership.join(member).await {
        warn!("this node is not announced to the others: {e}");
    }
    let reporting = tokio::spawn(report(vfs_of_reports, backends.membership.clone()));
    info!(
        "{} ({}) mounted at {}",
        node,
        backends.mode,
        config.mountpoint.display()
    );
    ready();

    tokio::select! {
        () = stop => info!("asked to end"),
        _ = mount_ended => info!("the mount was taken away"),
    }
    serving.stop_scrub();
    reporting.abort();
    let mountpoint = config.mountpoint.clone();
    let unmounted = tokio::task::spawn_blocking(move || mounted.unmount(&mountpoint)).await;
    ingest.stop();
    if tokio::time::timeout(WORKERS_DEADLINE, workers.join_all())
        .await
        .is_err()
    {
        warn!("workers were still busy; what they had in hand is stored after the next start");
    }
    serving.stop().await;
    if let Err(e) = ingest.outlast().await {
        warn!("what is not stored yet may not outlast the power: {e}");
    }
    tree.close();
    // Only then may the data directory be somebody else's.
    if tokio::time::timeout(TREE_DEADLINE, tree.ended())
        .await
        .is_err()
    {
        warn!("the namespace log does not answer; ending without it");
    }
    drop(lock);
    info!("ended");
    match unmounted {
        Ok(result) => Ok(result?),
        Err(e) => Err(NodeError::Io(io::Error::other(e))),
    }
}

/// Tells the other nodes every now and then what this one has to do.
async fn report(vfs: Arc<Vfs>, membership: Arc<dyn Membership>) {
    loop {
        let asked = vfs.clone();
        match tokio::task::spawn_blocking(move || asked.node_load()).await {
            Ok(Ok(load)) => membership.report(load),
            Ok(Err(e)) => warn!("this node cannot say what it has to do: {e}"),
            Err(_) => return,
        }
        tokio::time::sleep(REPORT).await;
    }
}

fn me() -> Caller {
    Caller {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        thread: 0,
    }
}

fn check_fuse() -> Result<(), NodeError> {
    if !Path::new("/dev/fuse").exists() {
        return Err(NodeError::Fuse(
            "there is no /dev/fuse: load the module (modprobe fuse), or give the container the device (--device /dev/fuse --cap-add SYS_ADMIN)".into(),
        ));
    }
    Ok(())
}

fn prepare_mountpoint(config: &Config) -> Result<(), NodeError> {
    let place = &config.mountpoint;
    let refuse = |why: &str| NodeError::Mountpoint(place.display().to_string(), why.into());
    if fuse::clear_stale(place).map_err(|e| {
        refuse(&format!(
            "a killed daemon left it mounted and it cannot be cleared: {e}"
        ))
    })? {
        info!("cleared the stale mount at {}", place.display());
    }
    match fs::metadata(place) {
        Ok(meta) if !meta.is_dir() => return Err(refuse("is not a directory")),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(refuse("does not exist; make it with mkdir -p"));
        }
        Err(e) => return Err(refuse(&e.to_string())),
    }
    if fuse::table::find(place)?.is_some() {
        return Err(refuse("an oncefs is mounted there already"));
    }
    let (place, data) = (fs::canonicalize(place)?, resolved(&config.data_dir));
    if data.starts_with(&place) || place.starts_with(&data) {
        return Err(refuse(
            "must not lie in the data directory, nor the data directory in it",
        ));
    }
    if let Some(other) = place.ancestors().find(|dir| is_data_dir(dir)) {
        return Err(refuse(&format!(
            "lies in {}, which is the data directory of another mount",
            other.display()
        )));
    }
    if let Some(other) = fuse::table::holding(&data)? {
        return Err(NodeError::DataDir(
            data.display().to_string(),
            format!(
                "lies in the oncefs mounted at {}; name one on the disk itself",
                other.display()
            ),
        ));
    }
    Ok(())
}

fn is_data_dir(dir: &Path) -> bool {
    let data = DataDir::new(dir);
    data.node().is_file() && data.tree().is_file()
}

/// `path` without links on the way, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let existing = path.ancestors().find_map(|dir| {
        let found = fs::canonicalize(dir).ok()?;
        Some(found.join(path.strip_prefix(dir).ok()?))
    });
    // Joining nothing leaves a slash behind.
    existing.map_or_else(|| path.to_owned(), |path| path.components().collect())
}

fn mount_error(config: &Config, e: io::Error) -> NodeError {
    let why = match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!(
            "mounting is not permitted ({e}): run as root, or install fuse3 so that fusermount3 can do it for you"
        ),
        _ if e.kind() == io::ErrorKind::NotFound => {
            format!("{e}: is fusermount3 (package fuse3) installed?")
        }
        _ => e.to_string(),
    };
    NodeError::Mountpoint(config.mountpoint.display().to_string(), why)
}

/// Removes everything in `dir`, but not `dir`.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The lasting name of this data directory, made at its first use.
fn node_id(data: &DataDir) -> io::Result<NodeId> {
    if let Some(name) = disk::read_text(&data.node())?.filter(|n| !n.is_empty()) {
        return Ok(NodeId(name));
    }
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let host: String = host
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(40)
        .collect();
    let name = format!("{host}-{}", hex::encode(rand::random::<[u8; 4]>()));
    disk::write_private(&data.node(), name.as_bytes())?;
    Ok(NodeId(name))
}

/// Binds the data directory to the tree that it is used for first. In another tree its content would pass for a cache
/// that may be emptied, and its names would be nobody's.
fn claim(data: &DataDir, tree: &str) -> Result<(), NodeError> {
    let path = data.belongs_to();
    match disk::read_text(&path)?.filter(|t| !t.is_empty()) {
        None => Ok(disk::write_private(&path, tree.as_bytes())?),
        Some(owner) if owner == tree => Ok(()),
        Some(owner) => Err(NodeError::DataDir(
            data.root().display().to_string(),
            format!(
                "holds the local part of another tree ({}); this mount is {}. Name another directory with --data-dir",
                described(&owner),
                described(tree)
            ),
        )),
    }
}

/// Content without a namespace is not a new tree, but one that lost its names: beginning anew would remove it as unused.
fn refuse_without_names(data: &DataDir) -> Result<(), NodeError> {
    let names = fs::metadata(data.tree()).map_or(0, |m| m.len());
    if names > 0 || crate::config::is_empty_below(&data.content()) {
        return Ok(());
    }
    Err(NodeError::DataDir(
        data.root().display().to_string(),
        format!(
            "there is content, but {} is missing or empty: restore it from a backup, or move {} away to begin with an empty tree",
            data.tree().display(),
            data.content().display()
        ),
    ))
}

fn described(tree: &str) -> String {
    match tree.strip_prefix("cluster ") {
        Some(id) => format!("cluster tree {id}"),
        None => "embedded on this machine alone".into(),
    }
}

/// Which start of the machine this is.
struct Boot {
    id: String,
    /// The same as when the data directory was recovered last, or the data directory is new.
    same: bool,
    noted: bool,
}

impl Boot {
    fn look(data: &DataDir) -> io::Result<Boot> {
        let id = disk::read_text(Path::new("/proc/sys/kernel/random/boot_id"))?.unwrap_or_default();
        let before = disk::read_text(&data.boot())?;
        let noted = before.as_ref() == Some(&id);
        let same = before.is_none_or(|b| b == id);
        if !same {
            info!("the machine was restarted since this data directory was used last");
        }
        Ok(Boot { id, same, noted })
    }

    /// Only after recovery: a start that failed before must not hide that the machine went down.
    fn note(&self, data: &DataDir) -> io::Result<()> {
        // A full disk has no room to say the same again.
        if self.noted {
            return Ok(());
        }
        disk::write_private(&data.boot(), self.id.as_bytes())
    }
}

/// The root of a new tree belongs to whoever mounted it first.
async fn own_root(tree: &Tree) -> Result<(), NodeError> {
    if tree.read(|q| q.inode(Ino::ROOT))?.ctime != Time::default() {
        return Ok(());
    }
    let (caller, now) = (me(), Time::now());
    let op = Op::SetAttr {
        ino: Ino::ROOT,
        mode: None,
        uid: Some(caller.uid),
        gid: Some(caller.gid),
        atime: Some(now),
        mtime: Some(now),
        now,
    };
    if let Err(e) = tree
        .submit(Origin::Node, Commitment::Committed, vec![op])
        .await
    {
        error!("the root directory keeps no owner: {e}");
    }
    Ok(())
}
