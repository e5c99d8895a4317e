//! The validated configuration: what the rest of the program is given. Made by [`crate::cli`] from options and environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The servers of a cluster.
#[derive(Clone)]
pub struct ClusterConfig {
    /// MongoDB connection string. May hold a password: show it only through [`redact_uri`].
    pub mongodb: String,
    /// etcd endpoints such as `http://10.0.0.1:2379`. May hold user and password likewise.
    pub etcd: Vec<String>,
    /// How to be sure of etcd, and etcd of this node, where the endpoints are `https://`.
    pub etcd_tls: EtcdTls,
    /// The database that holds everything of one tree.
    pub database: String,
    /// Life of a hash lock without renewal.
    pub lock_ttl: Duration,
    /// Log entries between two checkpoints of the namespace, at the least.
    pub checkpoint_every: u64,
}

/// Certificates for etcd, in PEM. What MongoDB needs of this kind is in its connection string.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// Whose signature makes a server certificate good; without one the roots of the operating system.
    pub ca: Option<Vec<u8>>,
    /// The certificate and key of this node, where etcd asks for them.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Where the API's certificate and its key are, in PEM; absolute.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by those between it and its authority.
    pub cert: PathBuf,
    /// The key, without a passphrase.
    pub key: PathBuf,
}

/// Options of the mount itself.
#[derive(Clone, Debug, Default)]
pub struct MountConfig {
    /// Let other users in (`allow_other`).
    pub allow_other: bool,
    /// Mount read-only.
    pub read_only: bool,
    /// Ask for the log's head before names are looked up, files opened and directories listed.
    pub strict: bool,
    /// Shown as the source of the mount.
    pub fsname: Option<String>,
    /// Further mount options, already checked to be known.
    pub options: Vec<String>,
    /// Hand spool files to the kernel where it and the privileges allow it.
    pub passthrough: bool,
}

/// Everything that a node needs to run.
#[derive(Clone)]
pub struct Config {
    /// Where to mount; absolute.
    pub mountpoint: PathBuf,
    /// Where everything local is kept; absolute.
    pub data_dir: PathBuf,
    /// `None`: embedded.
    pub cluster: Option<ClusterConfig>,
    /// Where the sidecar listens; `None`: only on the control socket in the data directory.
    pub api: Option<SocketAddr>,
    /// What the sidecar proves itself with there; `None`: plain HTTP.
    pub api_tls: Option<TlsFiles>,
    /// Where peers of the cluster may ask for content, as they reach this node: host and port. `None`: nowhere.
    pub peer: Option<String>,
    /// How many workers store content.
    pub workers: usize,
    /// How many jobs wait in memory at the most.
    pub queue: usize,
    /// The bound of the content cache, in bytes. Without meaning in embedded mode, where the directory is the store.
    pub cache_bytes: u64,
    /// The mount.
    pub mount: MountConfig,
    /// How long content without any name is kept before it is removed.
    pub gc_grace: Duration,
    /// The host token when it was given from outside; otherwise one is kept in the data directory.
    pub token: Option<String>,
}

/// The places inside a data directory.
#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The layout below `root`.
    pub fn new(root: impl Into<PathBuf>) -> DataDir {
        DataDir(root.into())
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Locked by the daemon that uses this directory; holds its process id.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Whether the directory is one of this program's own, or holds nothing that is anybody else's: what is of no use here
    /// is removed, so nobody's files may lie here. Names the first thing that is not.
    pub fn foreign(&self) -> std::io::Result<Option<PathBuf>> {
        if self.node().exists() {
            return Ok(None);
        }
        let listed = match std::fs::read_dir(&self.0) {
            Ok(listed) => listed,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        // What a first start that was cut off can have left, and the empty root of a disk.
        let own = ["lock", "oncefs.log", "node.new", "boot", "belongs-to"];
        let own_dirs = ["spool", "spare", "content", "tmp", "lost+found"];
        for entry in listed {
            let entry = entry?;
            let name = entry.file_name();
            let is_dir = entry.file_type()?.is_dir();
            let known = name.to_str().is_some_and(|name| match is_dir {
                true => own_dirs.contains(&name) && is_empty_below(&entry.path()),
                false => own.contains(&name),
            });
            if !known {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }

    /// The lasting name of this node.
    pub fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    /// Which start of the machine recovered this directory last.
    pub fn boot(&self) -> PathBuf {
        self.0.join("boot")
    }

    /// Says which tree the directory belongs to.
    pub fn belongs_to(&self) -> PathBuf {
        self.0.join("belongs-to")
    }

    /// The namespace database.
    pub fn tree(&self) -> PathBuf {
        self.0.join("tree.sqlite")
    }

    /// Files that are written or not yet stored, `<ino>.<generation>`.
    pub fn spool(&self) -> PathBuf {
        self.0.join("spool")
    }

    /// Empty files that become spool files; emptied at start.
    pub fn spare(&self) -> PathBuf {
        self.0.join("spare")
    }

    /// Sealed content by hash: the store in embedded mode, the cache in a cluster.
    pub fn content(&self) -> PathBuf {
        self.0.join("content")
    }

    /// Unfinished fetches and uploads; emptied at start.
    pub fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }

    /// Content that was found damaged, `<hash>.<time>`; nothing reads it again.
    pub fn quarantine(&self) -> PathBuf {
        self.0.join("quarantine")
    }

    /// Files that were closed and not on disk when the machine went down, for a person to look at.
    pub fn torn(&self) -> PathBuf {
        self.0.join("torn")
    }

    /// The host token, when it was not given from outside.
    pub fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    /// The socket by which the command line talks to the daemon.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The log of a daemon in the background.
    pub fn log(&self) -> PathBuf {
        self.0.join("oncefs.log")
    }

    /// Where sealed content `hash` lies below the content directory `dir`.
    pub fn content_path(dir: &Path, hash: &crate::types::ContentHash) -> PathBuf {
        let name = hash.to_string();
        dir.join(&name[..2]).join(name)
    }
}

/// Whether there is no file in `dir`, nor in the directories in it.
pub(crate) fn is_empty_below(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|e| {
                e.file_type().is_ok_and(|t| t.is_dir())
                    && std::fs::read_dir(e.path()).is_ok_and(|mut inner| inner.next().is_none())
            })
        })
    })
}

/// `uri` with its user part replaced, fit to be shown.
pub fn redact_uri(uri: &str) -> String {
    match (uri.find("://"), uri.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}***{}", &uri[..scheme + 3], &uri[at..])
        }
        _ => uri.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::redact_uri;

    #[test]
    fn passwords_are_never_shown() {
        assert_eq!(
            redact_uri("mongodb://u:p@ss@h:1/?x=y"),
            "mongodb://***@h:1/?x=y"
        );
        assert_eq!(redact_uri("http://10.0.0.1:2379"), "http://10.0.0.1:2379");
    }
}
