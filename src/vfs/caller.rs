//! Who asks, and what that means for the set-id bits.

use crate::tree::Inode;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The thread that asks, for its further groups; 0 when it is not known.
    pub thread: u32,
}

/// Whether a file with this mode gives its user or group to who runs it.
pub(super) fn sets_ids(mode: u32) -> bool {
    mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

impl Caller {
    /// The mode of `inode` after this caller changed its content or its owner: nobody may put words into another's
    /// mouth. Set-group-id without group execution, which once meant mandatory locking, stays for members of the group.
    /// (Linux, `setattr_should_drop_sgid`.)
    pub(super) fn mode_without_ids(&self, inode: &Inode) -> u32 {
        let mode = inode.mode;
        if inode.is_dir() || !sets_ids(mode) {
            return mode;
        }
        let keeps_group =
            mode & libc::S_IXGRP == 0 && (self.uid == 0 || self.is_in_group(inode.gid));
        match keeps_group {
            true => mode & !libc::S_ISUID,
            false => mode & !(libc::S_ISUID | libc::S_ISGID),
        }
    }

    fn is_in_group(&self, gid: u32) -> bool {
        self.gid == gid || (self.thread != 0 && further_groups(self.thread).contains(&gid))
    }
}

/// None, when the thread cannot be looked at: it may live in a container that this process does not see into.
fn further_groups(thread: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("Groups:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|g| g.parse().ok())
        .collect()
}
