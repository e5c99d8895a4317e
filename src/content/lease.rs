//! Asking the kernel whether anybody can write to a file. Unsafe code, as no library offers leases.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Once;

/// Whether the file that `file` (opened for reading only) refers to is certainly open for writing nowhere, not even in
/// the kernel. "No" may also mean that this disk cannot tell.
pub fn has_no_writer(file: &File) -> bool {
    // The kernel grants a read lease exactly when nobody can write.
    is_granted(file, libc::F_RDLCK)
}

/// Whether the file is certainly open nowhere else, not even in the kernel. "No" may also mean that this disk cannot tell.
pub fn is_nobody_elses(file: &File) -> bool {
    // And a write lease when nobody else can read or write.
    is_granted(file, libc::F_WRLCK)
}

fn is_granted(file: &File, lease: libc::c_int) -> bool {
    ignore_breaks();
    // It ends with the second call, or with the descriptor.
    // SAFETY: fcntl with these commands takes an integer and touches no memory of ours.
    unsafe {
        let fd = file.as_raw_fd();
        let granted = libc::fcntl(fd, libc::F_SETLEASE, lease) == 0;
        granted && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Whoever opens the file in the moment in which the lease is held makes the kernel send SIGIO to its holder, and a process
/// that has said nothing about that signal ends by it. The opener goes on by itself as soon as the lease is given back.
fn ignore_breaks() {
    static IGNORED: Once = Once::new();
    IGNORED.call_once(|| {
        // SAFETY: no handler is installed, so nothing of ours runs in a signal's context.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
}

/// Whether the disk can tell on which `file` lies, which nobody writes now. Where it cannot, [`has_no_writer`] always says
/// no.
pub fn leases_work(file: &Path) -> io::Result<bool> {
    Ok(has_no_writer(&File::open(file)?))
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
        assert!(is_nobody_elses(&writer));
        drop(writer);
        let reader = File::open(&path).unwrap();
        assert!(has_no_writer(&reader));
        assert!(!is_nobody_elses(&File::create(&path).unwrap()));
        drop(reader);
        assert!(is_nobody_elses(&File::create(&path).unwrap()));
    }

    #[test]
    fn regression_an_open_while_the_lease_is_held_ends_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        drop(file);
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    has_no_writer(&reader);
                }
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                drop(File::options().write(true).open(&path).unwrap());
            }
        });
    }
}
