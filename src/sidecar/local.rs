//! Socket files under any path: the address of a Unix socket holds 107 bytes of path only, so a longer one goes through
//! an open directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// `sun_path` of unix(7), without its final NUL.
const ADDRESS_MAX: usize = 107;

/// A path to a socket file that fits an address, for as long as this lives.
pub(super) struct Reach {
    _dir: Option<File>,
    path: PathBuf,
}

impl Reach {
    pub(super) fn new(path: &Path) -> io::Result<Reach> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() <= ADDRESS_MAX {
            return Ok(Reach {
                _dir: None,
                path: path.to_owned(),
            });
        }
        let dir = File::open(dir)?;
        let path = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        Ok(Reach {
            _dir: Some(dir),
            path,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
