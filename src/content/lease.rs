//! Asking the kernel whether anybody can write to a file. The only unsafe code of this crate: no library offers leases.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Whether the file that `file` (opened for reading only) refers to is certainly open for writing nowhere, not even in
/// the kernel. "No" may also mean that this disk cannot tell.
pub fn has_no_writer(file: &File) -> bool {
    // The kernel grants a read lease exactly when nobody can write. It ends with the next line, or with the descriptor.
    // SAFETY: fcntl with these commands takes an integer and touches no memory of ours.
    unsafe {
        let fd = file.as_raw_fd();
        let granted = libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0;
        granted && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Whether the disk below `dir` can tell. Where it cannot, [`has_no_writer`] always says no.
pub fn leases_work(dir: &Path) -> io::Result<bool> {
    let path = dir.join("lease-probe");
    drop(File::create(&path)?);
    let answer = File::open(&path).map(|file| has_no_writer(&file));
    std::fs::remove_file(&path)?;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_as_long_as_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        assert!(!has_no_writer(&File::open(&path).unwrap()));
        drop(writer);
        assert!(has_no_writer(&File::open(&path).unwrap()));
    }
}
