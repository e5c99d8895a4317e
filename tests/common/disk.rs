//! Disks of their own: an image on a loop device, small enough to be filled, and one whose power can be cut.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::run::{needs, sh};

/// `_IOR('X', 125, __u32)`, the same number for both file systems.
/// <https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git/tree/src/godown.c>
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Nothing more reaches the disk, not even what is in the journal.
const NO_LOG_FLUSH: u32 = 2;

/// A file system on an image, mounted.
pub struct Disk {
    dir: PathBuf,
    /// The loop device. Kept over all mounts: one that goes with its mount may do so in the middle of the next.
    device: String,
}

impl Disk {
    /// Mounts a new one of `megabytes` at `dir`, made by `mkfs` and its options.
    pub fn new(dir: &Path, image: &Path, megabytes: u32, mkfs: &str) -> Disk {
        let program = mkfs.split(' ').next().unwrap();
        needs(&["losetup", "mount", program]);
        fs::create_dir_all(dir).unwrap();
        let image = image.display();
        let script = format!(
            "truncate -s {megabytes}M {image} && {mkfs} -q {image} && losetup --find --show {image}"
        );
        let disk = Disk {
            dir: dir.to_owned(),
            device: sh(Path::new("/"), &script),
        };
        disk.mount();
        disk
    }

    fn mount(&self) {
        let dir = self.dir.display();
        sh(Path::new("/"), &format!("mount {} {dir}", self.device));
    }

    /// From now on nothing reaches the disk.
    pub fn cut_power(&self) {
        let dir = File::open(&self.dir).unwrap();
        // SAFETY: the ioctl reads one number, which outlives the call.
        let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// After [`Disk::cut_power`], with nobody left who has a file open on it: what a machine finds that starts again.
    pub fn start_again(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let unmounted = rustix::mount::unmount(&self.dir, UnmountFlags::empty());
            if unmounted.is_ok() {
                self.mount();
                // The kernel keeps a file system for as long as it has a file of it open, by whatever way.
                if fs::write(self.dir.join("probe"), b"").is_ok() {
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "{}: {unmounted:?}",
                self.dir.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.dir, UnmountFlags::DETACH);
        let mut detach = Command::new("losetup");
        detach.args(["--detach", &self.device]);
        let _ = detach.status();
    }
}
