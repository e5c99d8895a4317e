//! `mount -o remount`: changes what the kernel itself enforces, while the daemon goes on.

use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

use super::table;

/// The kernel's flag for an option, and whether the option sets it or takes it away.
fn flag(option: &str) -> Option<(MountFlags, bool)> {
    Some(match option {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        _ => return None,
    })
}

/// Applies `options` to the mount at `mountpoint`, in their order, on top of what it has. The options of the daemon stay
/// as they are: mount(8) names those of the fstab line too.
pub fn remount(mountpoint: &Path, options: &[String]) -> io::Result<()> {
    let listed = table::find(mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
    let mut flags = MountFlags::empty();
    for option in listed.options.iter().chain(options) {
        if let Some((flag, set)) = flag(option) {
            flags.set(flag, set);
        }
    }
    Ok(rustix::mount::mount_remount(mountpoint, flags, c"")?)
}
