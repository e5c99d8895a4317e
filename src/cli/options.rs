//! The options of `oncefs mount`, and their way into a validated [`Config`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use clap::builder::FalseyValueParser;

use super::Result;
use crate::config::{ClusterConfig, Config, EtcdTls, MountConfig, TlsFiles};
use crate::content::disk;

/// How soon changes of other machines are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Consistency {
    /// When they arrive.
    Relaxed,
    /// At once.
    Strict,
}

/// Options of `oncefs mount`.
#[derive(Args, Clone)]
pub struct MountArgs {
    /// An existing directory
    pub mountpoint: PathBuf,
    /// Where everything local is kept [default: /var/lib/oncefs for root, else $XDG_STATE_HOME/oncefs]
    #[arg(long, env = "ONCEFS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Stay in the foreground and log to the terminal
    #[arg(short, long)]
    pub foreground: bool,
    /// MongoDB connection string; together with --etcd this node joins a cluster
    #[arg(
        long,
        env = "ONCEFS_MONGODB",
        value_name = "URI",
        hide_env_values = true
    )]
    pub mongodb: Option<String>,
    /// etcd endpoints; together with --mongodb this node joins a cluster
    #[arg(
        long,
        env = "ONCEFS_ETCD",
        value_name = "ENDPOINT,...",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub etcd: Vec<String>,
    /// Certificates that make an https:// etcd endpoint good, in PEM [default: those of the operating system]
    #[arg(long, env = "ONCEFS_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// This node's certificate for etcd, in PEM
    #[arg(
        long,
        env = "ONCEFS_ETCD_CERT",
        value_name = "FILE",
        requires = "etcd_key"
    )]
    pub etcd_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(
        long,
        env = "ONCEFS_ETCD_KEY",
        value_name = "FILE",
        requires = "etcd_cert"
    )]
    pub etcd_key: Option<PathBuf>,
    /// The MongoDB database of the tree
    #[arg(
        long,
        env = "ONCEFS_DATABASE",
        value_name = "NAME",
        default_value = "oncefs"
    )]
    pub database: String,
    /// Where the sidecar listens, or "off"
    #[arg(
        long,
        env = "ONCEFS_API",
        value_name = "ADDR|off",
        default_value = "127.0.0.1:8080"
    )]
    pub api: String,
    /// Certificate of the sidecar, in PEM, with which it serves HTTPS alone; read anew when it changes
    #[arg(
        long,
        env = "ONCEFS_API_TLS_CERT",
        value_name = "FILE",
        requires = "api_tls_key"
    )]
    pub api_tls_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(
        long,
        env = "ONCEFS_API_TLS_KEY",
        value_name = "FILE",
        requires = "api_tls_cert"
    )]
    pub api_tls_key: Option<PathBuf>,
    /// Allow --api to listen beyond this machine without TLS
    #[arg(long, env = "ONCEFS_API_INSECURE", value_parser = FalseyValueParser::new())]
    pub api_insecure: bool,
    /// Where other machines of the cluster may fetch what this one has closed and not stored yet, or has cached: the
    /// address of this machine as they reach it. Only they get an answer; the bytes are not encrypted
    #[arg(long, env = "ONCEFS_PEER", value_name = "HOST:PORT")]
    pub peer: Option<String>,
    /// Workers that hash and store
    #[arg(long, env = "ONCEFS_WORKERS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Closed files that wait in memory for a worker; more wait on disk
    #[arg(long, env = "ONCEFS_QUEUE", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue: u32,
    /// Seconds that a hash lock lives without renewal
    #[arg(long, env = "ONCEFS_LOCK_TTL", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub lock_ttl: u64,
    /// Entries of the namespace log between two checkpoints, at the least (cluster only)
    #[arg(long, env = "ONCEFS_CHECKPOINT_EVERY", value_name = "ENTRIES", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(10..))]
    pub checkpoint_every: u64,
    /// Bound of the content cache (cluster only)
    #[arg(
        long,
        env = "ONCEFS_CACHE_SIZE",
        value_name = "BYTES",
        default_value = "10GiB"
    )]
    pub cache_size: ByteSize,
    /// How long content that no file has any more is kept, such as 1h or 10m
    #[arg(
        long,
        env = "ONCEFS_GC_GRACE",
        value_name = "TIME",
        default_value = "1h",
        value_parser = humantime::parse_duration
    )]
    pub gc_grace: Duration,
    /// Read the host token for DELETE from this file (or from the variable ONCEFS_TOKEN)
    #[arg(long, env = "ONCEFS_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Let other users use the mount
    #[arg(long, env = "ONCEFS_ALLOW_OTHER", value_parser = FalseyValueParser::new())]
    pub allow_other: bool,
    /// What a lookup, an open and a listing see of other machines: "relaxed", what has arrived (milliseconds behind); or
    /// "strict", everything that was acknowledged before, at the price of a question to MongoDB
    #[arg(
        long,
        env = "ONCEFS_CONSISTENCY",
        value_name = "HOW",
        default_value = "relaxed"
    )]
    pub consistency: Consistency,
    /// Never hand spool files to the kernel
    #[arg(long, env = "ONCEFS_NO_PASSTHROUGH", value_parser = FalseyValueParser::new())]
    pub no_passthrough: bool,
    /// Shown as the source of the mount, as by df and findmnt
    #[arg(long, env = "ONCEFS_FSNAME", value_name = "NAME")]
    pub fsname: Option<String>,
    /// Mount options as in mount(8), such as ro,noexec,fsname=NAME
    #[arg(
        short = 'o',
        long = "options",
        env = "ONCEFS_OPTIONS",
        value_name = "OPTS",
        value_delimiter = ','
    )]
    pub options: Vec<String>,
    /// The process that `oncefs mount` leaves in the background
    #[arg(long, hide = true)]
    pub background_child: bool,
}

/// The data directory when none is named.
pub fn default_data_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/oncefs".into());
    }
    let var = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    match (var("XDG_STATE_HOME"), var("HOME")) {
        (Some(state), _) => Ok(state.join("oncefs")),
        (None, Some(home)) => Ok(home.join(".local/state/oncefs")),
        (None, None) => {
            Err("neither XDG_STATE_HOME nor HOME is set: name a directory with --data-dir".into())
        }
    }
}

/// `path` from the root, as the table of mounts shows it: no links on the way to it, no trailing slash or dot. What is
/// mounted there now is not looked at, since it may not answer.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let path: PathBuf = std::path::absolute(path)?.components().collect();
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|p| p.join(name)).ok(),
        _ => None,
    };
    Ok(resolved.unwrap_or(path))
}

impl MountArgs {
    /// Checks everything that can be checked without touching disk or network.
    pub fn config(&self) -> Result<Config> {
        let cluster = match (&self.mongodb, self.etcd.is_empty()) {
            (None, true) => None,
            (Some(uri), false) => Some(ClusterConfig {
                mongodb: uri.clone(),
                etcd: self.etcd.clone(),
                etcd_tls: self.etcd_tls()?,
                database: self.database.clone(),
                lock_ttl: Duration::from_secs(self.lock_ttl),
                checkpoint_every: self.checkpoint_every,
            }),
            (Some(_), true) => {
                return Err("--mongodb needs --etcd as well (or leave both out to run embedded on this machine alone)".into());
            }
            (None, false) => {
                return Err("--etcd needs --mongodb as well (or leave both out to run embedded on this machine alone)".into());
            }
        };
        let api = match self.api.as_str() {
            "off" => None,
            addr => Some(addr.parse::<SocketAddr>().map_err(|_| {
                format!("--api {addr}: an address such as 127.0.0.1:8080, or off, is expected")
            })?),
        };
        let api_tls = match (&self.api_tls_cert, &self.api_tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles {
                cert: std::path::absolute(cert)?,
                key: std::path::absolute(key)?,
            }),
            _ => None,
        };
        if let Some(addr) = api
            && !addr.ip().is_loopback()
            && api_tls.is_none()
            && !self.api_insecure
        {
            return Err(format!("--api {addr} would be open to the network without TLS: name a certificate with --api-tls-cert and --api-tls-key, put a proxy with TLS in front of 127.0.0.1, or say --api-insecure").into());
        }
        if let Some(peer) = &self.peer {
            if cluster.is_none() {
                return Err("--peer needs --mongodb and --etcd as well: without a cluster there are no peers".into());
            }
            check_peer(peer)?;
        }
        let token = match (&self.token_file, std::env::var("ONCEFS_TOKEN")) {
            (Some(file), _) => Some(
                disk::read_text(file)?
                    .filter(|t| !t.is_empty())
                    .ok_or_else(|| format!("--token-file {}: no token in it", file.display()))?,
            ),
            (None, Ok(token)) if !token.is_empty() => Some(token),
            (None, _) => None,
        };
        let data_dir = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        Ok(Config {
            mountpoint: absolute(&self.mountpoint)?,
            data_dir: absolute(&data_dir)?,
            cluster,
            api,
            api_tls,
            peer: self.peer.clone(),
            workers: self.workers.into(),
            queue: self.queue as usize,
            cache_bytes: self.cache_size.as_u64(),
            mount: self.mount_config()?,
            gc_grace: self.gc_grace,
            token,
        })
    }

    fn etcd_tls(&self) -> Result<EtcdTls> {
        let read = |option: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|e| format!("{option} {}: {e}", path.display()))
        };
        Ok(EtcdTls {
            ca: match &self.etcd_ca {
                Some(path) => Some(read("--etcd-ca", path)?),
                None => None,
            },
            identity: match (&self.etcd_cert, &self.etcd_key) {
                (Some(cert), Some(key)) => {
                    Some((read("--etcd-cert", cert)?, read("--etcd-key", key)?))
                }
                _ => None,
            },
        })
    }

    fn mount_config(&self) -> Result<MountConfig> {
        let mut mount = MountConfig {
            allow_other: self.allow_other,
            fsname: self.fsname.clone(),
            passthrough: !self.no_passthrough,
            strict: self.consistency == Consistency::Strict,
            ..MountConfig::default()
        };
        for option in self.options.iter().filter(|o| !o.is_empty()) {
            apply(&mut mount, option)?;
        }
        Ok(mount)
    }
}

/// Others are told this address, so it must mean this machine to them.
fn check_peer(peer: &str) -> Result {
    let any = peer
        .parse()
        .is_ok_and(|a: SocketAddr| a.ip().is_unspecified());
    let port = peer
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(_))) if !host.is_empty() && !any => Ok(()),
        _ => Err(format!("--peer {peer}: the name or address of this machine as the others reach it, and a port, are expected, such as 10.0.0.1:8081").into()),
    }
}

/// Whether `option` is a mount option that is understood.
pub(super) fn is_mount_option(option: &str) -> bool {
    apply(&mut MountConfig::default(), option).is_ok()
}

/// Applies a mount option. Of opposites the last one counts, as in mount(8).
fn apply(mount: &mut MountConfig, option: &str) -> Result {
    let mut set = |name: &str, on: bool| {
        mount.options.retain(|o| o != name);
        if on {
            mount.options.push(name.to_owned());
        }
    };
    match option {
        "ro" => mount.read_only = true,
        "rw" => mount.read_only = false,
        "allow_other" => mount.allow_other = true,
        "dev" | "suid" | "noexec" | "noatime" | "sync" | "dirsync" => set(option, true),
        // mount(8) takes `dev` and `suid` for the default and keeps them for itself.
        "allow_dev" => set("dev", true),
        "allow_suid" => set("suid", true),
        "nodev" => set("dev", false),
        "nosuid" => set("suid", false),
        "exec" => set("noexec", false),
        "atime" => set("noatime", false),
        "async" => set("sync", false),
        // What is so anyway, what means nothing here, and what mount(8) and fstab(5) keep for themselves.
        "defaults"
        | "default_permissions"
        | "relatime"
        | "norelatime"
        | "strictatime"
        | "nostrictatime"
        | "lazytime"
        | "nolazytime"
        | "diratime"
        | "nodiratime"
        | "silent"
        | "loud"
        | "nomand"
        | "auto"
        | "noauto"
        | "user"
        | "nouser"
        | "users"
        | "nousers"
        | "owner"
        | "noowner"
        | "group"
        | "nogroup"
        | "nofail"
        | "_netdev" => {}
        o => match o.split_once('=') {
            Some(("fsname", name)) => mount.fsname = Some(name.to_owned()),
            Some(("subtype" | "comment" | "user" | "uhelper", _)) => {}
            _ if o.starts_with("x-") || o.starts_with("X-") => {}
            _ => return Err(format!("unknown mount option {o}").into()),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MountArgs,
    }

    fn config(line: &str) -> Result<Config> {
        Line::try_parse_from(std::iter::once("mount").chain(line.split(' ')))?
            .args
            .config()
    }

    #[test]
    fn a_cluster_needs_both_servers() {
        assert!(config("/m").unwrap().cluster.is_none());
        let both = config("/m --mongodb mongodb://h --etcd http://a:1,http://b:2").unwrap();
        assert_eq!(both.cluster.unwrap().etcd.len(), 2);
        let one = config("/m --etcd http://a:1").err().unwrap().to_string();
        assert!(one.contains("--mongodb"), "{one}");
        let one = config("/m --mongodb mongodb://h")
            .err()
            .unwrap()
            .to_string();
        assert!(one.contains("--etcd"), "{one}");
    }

    #[test]
    fn peers_need_a_cluster_and_an_address() {
        let cluster = "/m --mongodb mongodb://h --etcd http://a:1 --peer";
        for good in ["10.0.0.1:8081", "[::1]:0", "alpha:8081"] {
            let c = config(&format!("{cluster} {good}")).unwrap();
            assert_eq!(c.peer.as_deref(), Some(good));
        }
        for bad in [
            "8081",
            ":8081",
            "alpha",
            "0.0.0.0:8081",
            "[::]:1",
            "h:99999",
        ] {
            assert!(config(&format!("{cluster} {bad}")).is_err(), "{bad}");
        }
        assert!(config("/m --peer 10.0.0.1:8081").is_err());
    }

    #[test]
    fn options_are_known_or_refused() {
        let c = config("/m -o ro,fsname=x,nofail,noexec --cache-size 5MiB --api off").unwrap();
        assert!(c.mount.read_only && c.api.is_none());
        assert_eq!(c.mount.fsname.as_deref(), Some("x"));
        assert_eq!(c.cache_bytes, 5 << 20);
        assert!(config("/m -o frobnicate").is_err());
        assert!(config("/m --workers 0").is_err());
    }

    #[test]
    fn beyond_this_machine_the_api_needs_tls_or_a_word() {
        let open = "/m --api 0.0.0.0:80";
        let refused = config(open).err().unwrap().to_string();
        for way in ["--api-tls-cert", "--api-insecure"] {
            assert!(refused.contains(way), "{refused}");
        }
        assert!(config(&format!("{open} --api-insecure")).is_ok());
        let tls = config(&format!("{open} --api-tls-cert /c --api-tls-key k"));
        let tls = tls.unwrap().api_tls.unwrap();
        assert_eq!(tls.cert, Path::new("/c"));
        // The daemon's working directory is another.
        assert!(tls.key.is_absolute());
        for one in ["--api-tls-cert /c", "--api-tls-key /k"] {
            assert!(config(&format!("/m {one}")).is_err(), "{one}");
        }
    }

    #[test]
    fn a_trailing_slash_does_not_matter() {
        assert_eq!(config("/m/").unwrap().mountpoint, Path::new("/m"));
    }
}
