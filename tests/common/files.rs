//! Content for tests, and looks at files.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// `len` bytes that are the same for the same seed.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A new seed, printed so that a failure can be repeated.
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var("ONCEFS_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::rng().random::<u32>().into(),
    };
    println!("{what}: ONCEFS_TEST_SEED={seed}");
    seed
}

/// The SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Writes a new file and says what close(2) says, which `fs::write` does not.
pub fn write_closed(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    close(file)
}

/// Closes, and returns what close(2) says.
pub fn close(file: File) -> std::io::Result<()> {
    // SAFETY: the descriptor was given up by its owner just now.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The value of an extended attribute as text; `None` when it is not set.
pub fn xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0u8; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(n) => Some(String::from_utf8(value[..n].to_vec()).unwrap()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{name} of {}: {e}", path.display()),
    }
}

/// All regular files below `dir`.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            // Gone between the two calls.
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files
}

/// What the files below `dir` take on its disk, in bytes, each inode once.
pub fn disk_usage(dir: &Path) -> u64 {
    let mut seen = HashSet::new();
    files_below(dir)
        .into_iter()
        .filter_map(|path| fs::symlink_metadata(path).ok())
        .filter(|meta| seen.insert(meta.ino()))
        .map(|meta| meta.blocks() * 512)
        .sum()
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
