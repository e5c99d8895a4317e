//! The options of `oncefs mount`, and their way into a validated [`Config`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use clap::builder::FalseyValueParser;

use super::Result;
use crate::config::{ClusterConfig, Config, MountConfig};
use crate::content::disk;

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
    /// Allow --api to listen beyond this machine, without TLS
    #[arg(long, env = "ONCEFS_API_INSECURE", value_parser = FalseyValueParser::new())]
    pub api_insecure: bool,
    /// Workers that hash and store
    #[arg(long, env = "ONCEFS_WORKERS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
    /// Closed files that wait in memory for a worker; more wait on disk
    #[arg(long, env = "ONCEFS_QUEUE", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue: u32,
    /// Seconds that a hash lock lives without renewal
    #[arg(long, env = "ONCEFS_LOCK_TTL", value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub lock_ttl: u64,
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
    /// Never hand spool files to the kernel
    #[arg(long, env = "ONCEFS_NO_PASSTHROUGH", value_parser = FalseyValueParser::new())]
    pub no_passthrough: bool,
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

/// `path` from the root, without resolving links: what is mounted there now may not answer.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path)?;
    // A trailing slash or dot would not be found again in the table of mounts.
    Ok(path.components().collect())
}

impl MountArgs {
    /// Checks everything that can be checked without touching disk or network.
    pub fn config(&self) -> Result<Config> {
        let cluster = match (&self.mongodb, self.etcd.is_empty()) {
            (None, true) => None,
            (Some(uri), false) => Some(ClusterConfig {
                mongodb: uri.clone(),
                etcd: self.etcd.clone(),
                database: self.database.clone(),
                lock_ttl: Duration::from_secs(self.lock_ttl),
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
        if let Some(addr) = api
            && !addr.ip().is_loopback()
            && !self.api_insecure
        {
            return Err(format!("--api {addr} would be open to the network without TLS: put a proxy with TLS in front of 127.0.0.1, or say --api-insecure").into());
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
            workers: self.workers.into(),
            queue: self.queue as usize,
            cache_bytes: self.cache_size.as_u64(),
            mount: self.mount_config()?,
            gc_grace: self.gc_grace,
            token,
        })
    }

    fn mount_config(&self) -> Result<MountConfig> {
        let mut mount = MountConfig {
            allow_other: self.allow_other,
            passthrough: !self.no_passthrough,
            ..MountConfig::default()
        };
        for option in self.options.iter().filter(|o| !o.is_empty()) {
            match option.as_str() {
                "ro" => mount.read_only = true,
                "rw" => mount.read_only = false,
                "allow_other" => mount.allow_other = true,
                "dev" | "suid" | "noexec" | "noatime" | "sync" | "dirsync" => {
                    mount.options.push(option.clone());
                }
                // What is so anyway, and what mount(8) and fstab(5) keep for themselves.
                "nodev"
                | "nosuid"
                | "exec"
                | "atime"
                | "relatime"
                | "async"
                | "defaults"
                | "default_permissions"
                | "auto"
                | "noauto"
                | "user"
                | "nouser"
                | "users"
                | "nofail"
                | "_netdev" => {}
                o if o.starts_with("x-") || o.starts_with("subtype=") => {}
                o => match o.split_once('=') {
                    Some(("fsname", name)) => mount.fsname = Some(name.to_owned()),
                    _ => return Err(format!("unknown mount option {o}").into()),
                },
            }
        }
        Ok(mount)
    }
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
    fn options_are_known_or_refused() {
        let c = config("/m -o ro,fsname=x,nofail,noexec --cache-size 5MiB --api off").unwrap();
        assert!(c.mount.read_only && c.api.is_none());
        assert_eq!(c.mount.fsname.as_deref(), Some("x"));
        assert_eq!(c.cache_bytes, 5 << 20);
        assert!(config("/m -o frobnicate").is_err());
        assert!(config("/m --api 0.0.0.0:80").is_err());
        assert!(config("/m --api 0.0.0.0:80 --api-insecure").is_ok());
        assert!(config("/m --workers 0").is_err());
    }

    #[test]
    fn a_trailing_slash_does_not_matter() {
        assert_eq!(config("/m/").unwrap().mountpoint, Path::new("/m"));
    }
}
