//! The kernel's table of mounts, as far as it lists mounts of ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The file system type in the table is `fuse.` and this.
pub(super) const SUBTYPE: &str = "oncefs";

/// An oncefs in the table, alive or dead.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its device number, `major:minor`.
    pub device: String,
    /// The options of the mount, such as `nosuid`.
    pub options: Vec<String>,
    /// Whether the whole filesystem is read-only, as after `mount -o ro` and `mount -o remount,ro`.
    pub read_only: bool,
}

/// The oncefs that is mounted at exactly this place, the topmost if there are more.
pub fn find(mountpoint: &Path) -> io::Result<Option<Listed>> {
    Ok(find_in(&fs::read("/proc/self/mountinfo")?, mountpoint))
}

/// The same as process `pid` sees it. An error also when that has ended.
pub fn find_as(pid: u32, mountpoint: &Path) -> io::Result<Option<Listed>> {
    let table = fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(find_in(&table, mountpoint))
}

/// Where the oncefs is mounted in which `path` lies, if it lies in one. `path` is absolute and has no links in it.
pub fn holding(path: &Path) -> io::Result<Option<PathBuf>> {
    Ok(holding_in(&fs::read("/proc/self/mountinfo")?, path))
}

fn holding_in(table: &[u8], path: &Path) -> Option<PathBuf> {
    let mounts = table.split(|b| *b == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        let place = unescape(fields.get(4)?);
        let ours = *fields.get(dash + 1)? == [b"fuse.", SUBTYPE.as_bytes()].concat();
        path.starts_with(&place).then_some((place, ours))
    });
    // The deepest one, and of those at one place the last, which lies above the others.
    let (place, ours) = mounts.max_by_key(|(place, _)| place.as_os_str().len())?;
    ours.then_some(place)
}

fn find_in(table: &[u8], mountpoint: &Path) -> Option<Listed> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    table.split(|b| *b == b'\n').rev().find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        let kind = fields.get(dash + 1)?;
        let ours = unescape(fields.get(4)?) == mountpoint
            && *kind == [b"fuse.", SUBTYPE.as_bytes()].concat();
        ours.then(|| Listed {
            device: text(fields[2]),
            options: text(fields[5]).split(',').map(str::to_owned).collect(),
            read_only: fields
                .get(dash + 3)
                .is_some_and(|o| o.split(|b| *b == b',').any(|o| o == b"ro")),
        })
    })
}

/// mountinfo writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::new();
    let mut at = 0;
    while at < field.len() {
        let digits = field
            .get(at + 1..at + 4)
            .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match digits {
            Some(byte) if field[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_ours_are_recognised() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            60 22 0:51 / /mnt/my\\040files rw,nosuid,nodev shared:9 - fuse.oncefs /srv/data ro,user_id=0\n\
            61 22 0:52 / /mnt/other ro - fuse.sshfs host: ro,user_id=0\n";
        let found = find_in(table, Path::new("/mnt/my files")).unwrap();
        assert_eq!(found.device, "0:51");
        assert_eq!(found.options, ["rw", "nosuid", "nodev"]);
        assert!(found.read_only);
        assert_eq!(find_in(table, Path::new("/")), None);
        assert_eq!(find_in(table, Path::new("/mnt/other")), None);
        assert_eq!(unescape(br"/a\134b"), Path::new(r"/a\b"));
    }

    #[test]
    fn the_deepest_and_last_mount_is_the_one_that_holds_a_path() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            60 22 0:51 / /mnt rw - fuse.oncefs x rw\n\
            61 60 0:52 / /mnt/other rw - ext4 y rw\n\
            62 22 0:53 / /m rw - ext4 z rw\n\
            63 62 0:54 / /m rw - fuse.oncefs z rw\n";
        let holding = |path: &str| holding_in(table, Path::new(path));
        assert_eq!(holding("/mnt/a/b"), Some("/mnt".into()));
        assert_eq!(holding("/mnt"), Some("/mnt".into()));
        assert_eq!(holding("/m/a"), Some("/m".into()));
        for path in ["/mnt/other/a", "/mntx", "/"] {
            assert_eq!(holding(path), None, "{path}");
        }
    }
}
