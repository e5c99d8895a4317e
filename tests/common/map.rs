//! Mappings of files, shared with whoever else has the file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// A mapping of a file, shared.
pub struct Map(*mut u8, usize);

impl Map {
    pub fn new(file: &File, len: usize, protection: i32) -> Map {
        // SAFETY: a new mapping of an open file; nothing else uses the address.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Map(at.cast(), len)
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as self, and the file is not shortened meanwhile.
        unsafe { std::slice::from_raw_parts_mut(self.0, self.1) }
    }

    pub fn sync(&self) {
        // SAFETY: of this very mapping.
        let synced = unsafe { libc::msync(self.0.cast(), self.1, libc::MS_SYNC) };
        assert_eq!(synced, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: of this very mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}
