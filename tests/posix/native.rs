//! A native filesystem to compare with: ext4 in an image file, mounted for the length of a test.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::common::mount::{Mount, Place};
use crate::common::run::{needs, sh};

/// An ext4. Its mount point is beside a mount's, so paths in both have about the same length.
pub struct Native(Place);

impl Native {
    pub fn new() -> Native {
        need_root();
        needs(&["mkfs.ext4", "mount", "umount"]);
        let place = Place::with_short_mount_point();
        let image = place.work().join("image");
        File::create(&image).unwrap().set_len(4 << 30).unwrap();
        // noatime: reading moves no time in a mount of ours, so it must not here.
        sh(&place.work(), "mkfs.ext4 -q -F -I 256 -N 400000 image");
        let mnt = place.mnt();
        sh(
            &place.work(),
            &format!("mount -o loop,noatime,dev,suid image {}", mnt.display()),
        );
        Native(place)
    }

    pub fn path(&self) -> PathBuf {
        self.0.mnt()
    }
}

/// A mount that everybody may use, devices and set-id bits included.
pub fn open_to_all(more: &[&str]) -> Mount {
    need_root();
    let mut options = vec!["--allow-other", "-o", "dev,suid"];
    options.extend(more);
    let mount = Mount::start_at(Place::with_short_mount_point(), &options);
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o755)).unwrap();
    mount
}

pub fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make files of several users and mount an ext4: run them as root"
    );
}
