//! An ordinary user, who mounts through fusermount3.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::mount::is_mounted;
use crate::common::run::{needs, sh};

const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    needs(&["fusermount3", "setpriv"]);
    let root = rustix::process::geteuid().is_root();
    // Not below the build directory, which others may not enter.
    let dir = tempfile::Builder::new()
        .prefix("oncefs-user")
        .tempdir()
        .unwrap();
    let path = dir.path();
    struct Detach<'a>(&'a Path);
    impl Drop for Detach<'_> {
        fn drop(&mut self) {
            let _ = Command::new("fusermount3").arg("-uzq").arg(self.0).status();
        }
    }
    let mnt = path.join("mnt");
    let _detach = Detach(&mnt);
    fs::copy(env!("CARGO_BIN_EXE_oncefs"), path.join("oncefs")).unwrap();
    fs::create_dir(&mnt).unwrap();
    fs::create_dir(path.join("home")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    if root {
        // As udev makes it on every installed system; a bare container may have it closed.
        fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        std::os::unix::fs::chown(&mnt, Some(NOBODY), Some(NOBODY)).unwrap();
        std::os::unix::fs::chown(path.join("home"), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let user = if root {
        "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all"
    } else {
        ""
    };
    let script = |text: &str| {
        let text = format!(
            "export HOME={0}/home XDG_STATE_HOME=; exec {user} bash -euc 'cd {0}; {text}'",
            path.display()
        );
        sh(path, &text)
    };
    script(
        "./oncefs mount --api 127.0.0.1:0 mnt
         test -d home/.local/state/oncefs/content
         mkdir mnt/d; echo hello > mnt/d/f; cp mnt/d/f mnt/g; chmod 600 mnt/g; ln mnt/g mnt/h
         ./oncefs wait mnt; { ./oncefs status mnt/d/f; ./oncefs status mnt/g; } | grep duplicate; ./oncefs status | grep embedded
         head -c 3000000 /dev/zero > mnt/large; cmp -n 3000000 mnt/large /dev/zero",
    );
    assert!(is_mounted(&mnt));
    if root {
        // Nobody else gets in, not even root, without allow_other.
        let seen = fs::read_dir(&mnt);
        assert_eq!(seen.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
    script("./oncefs umount mnt");
    assert!(!is_mounted(&mnt));
    script(
        "./oncefs mount --api off mnt; test $(cat mnt/h) = hello; test $(stat -c %a%u mnt/g) = 600$(id -u); ./oncefs umount mnt",
    );
}
