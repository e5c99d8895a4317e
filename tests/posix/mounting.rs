//! mount(8), umount(8) and fstab(5). The helper that they call is put in place in a mount namespace of each test's own, so
//! nothing is installed here.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::files::write_closed;
use crate::common::http::{get, request, upload};
use crate::common::mount::{Background, Mount, Place, oncefs_ended};
use crate::common::run::{Ended, needs, run_within};
use crate::native::need_root;

/// In a namespace of its own: `/sbin` with everything that it had, and the helper.
const INSTALL: &str = r#"
set -euo pipefail
oncefs=$0; tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
sbin=$(readlink -f /sbin); mkdir "$tmp/was" "$tmp/is"
mount --bind "$sbin" "$tmp/was"
( cd "$tmp/was"; for f in *; do ln -s "$tmp/was/$f" "$tmp/is/$f"; done )
ln -sfn "$oncefs" "$tmp/is/mount.fuse.oncefs"
mount --bind "$tmp/is" "$sbin"
trap 'cd /; umount "$sbin" "$tmp/was"; rm -rf "$tmp"' EXIT
"#;

/// bash with this script, which gets the arguments that are added, where `mount -t fuse.oncefs` works.
pub fn with_helper(script: &str) -> Command {
    need_root();
    needs(&["unshare", "mount", "umount", "findmnt"]);
    let mut command = Command::new("unshare");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ONCEFS_")) {
        command.env_remove(name);
    }
    command
        .args(["-m", "bash", "-c"])
        .arg(format!("{INSTALL}\n{script}"))
        .arg(env!("CARGO_BIN_EXE_oncefs"))
        .env("LC_ALL", "C");
    command
}

/// Runs it with the data directory as `$data` and the mount point as `$mnt`.
fn run(place: &Place, script: &str) -> Ended {
    let mut command = with_helper(&format!("data=$1 mnt=$2 work=$3; cd \"$work\"\n{script}"));
    command.arg(place.data()).arg(place.mnt()).arg(place.work());
    run_within(Duration::from_secs(120), command)
}

fn succeeds(place: &Place, script: &str) -> String {
    let ended = run(place, script);
    assert!(
        ended.status.success(),
        "{script}\n{}\n{}\n{}",
        ended.status,
        ended.stdout,
        ended.stderr
    );
    ended.stdout
}

#[test]
fn mount_shows_the_source_and_is_safe_by_default() {
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"mount -t fuse.oncefs "$data" "$mnt" -o api=off
        findmnt -rn -o SOURCE,FSTYPE,OPTIONS --mountpoint "$mnt"
        df --output=source "$mnt" | tail -n 1
        findmnt -rn -S "$data" -o TARGET
        umount "$mnt""#,
    );
    let data = b.0.data().display().to_string();
    let lines: Vec<&str> = shown.lines().collect();
    let fields: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(fields[..2], [data.as_str(), "fuse.oncefs"]);
    let options: Vec<&str> = fields[2].split(',').collect();
    for option in ["rw", "nosuid", "nodev", "default_permissions"] {
        assert!(options.contains(&option), "{option}: {shown}");
    }
    assert!(!options.contains(&"allow_other"), "{shown}");
    assert_eq!(lines[1], data);
    assert_eq!(lines[2], b.0.mnt().to_str().unwrap());
}

#[test]
fn mount_options_reach_kernel_and_daemon() {
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"mount -t fuse.oncefs label "$mnt" -o "data_dir=$data,api=off,workers=5,no-passthrough,allow_other,allow_dev,allow_suid,noexec,noatime,nofail,_netdev,x-systemd.automount,fsname=shown"
        findmnt -rn -o SOURCE,OPTIONS --mountpoint "$mnt"
        "$oncefs" status --data-dir "$data" --json
        cp /bin/true "$mnt/true"; ! "$mnt/true" 2>/dev/null
        umount "$mnt""#,
    );
    let first = shown.lines().next().unwrap();
    let options: Vec<&str> = first.split([' ', ',']).collect();
    assert_eq!(options[0], "shown");
    for option in ["rw", "allow_other", "noexec", "noatime"] {
        assert!(options.contains(&option), "{option}: {first}");
    }
    assert!(!options.contains(&"nosuid") && !options.contains(&"nodev"));
    assert!(shown.contains("\"workers\": 5"), "{shown}");
}

#[test]
fn a_wrong_option_is_named() {
    let b = Background(Place::new());
    for (options, word) in [
        ("frobnicate", "frobnicate"),
        ("workers=many", "--workers"),
        ("api=nowhere", "--api"),
        ("etcd=http://127.0.0.1:1", "--mongodb"),
        ("foreground", "foreground"),
    ] {
        let script = format!("mount -t fuse.oncefs \"$data\" \"$mnt\" -o {options}");
        let ended = run(&b.0, &script);
        assert!(!ended.status.success(), "{options}");
        assert!(ended.stderr.contains(word), "{options}: {}", ended.stderr);
    }
    let shown = succeeds(
        &b.0,
        r#"mount -f -t fuse.oncefs "$data" "$mnt" -o api=off; ! findmnt --mountpoint "$mnt"
        mount -s -t fuse.oncefs "$data" "$mnt" -o api=off,frobnicate; findmnt -rn -o TARGET --mountpoint "$mnt"
        umount "$mnt""#,
    );
    assert_eq!(shown.trim(), b.0.mnt().to_str().unwrap());
}

#[test]
fn mounting_right_after_umount_waits_for_the_daemon_that_ends() {
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"for n in 1 2 3 4 5 6; do
            mount -t fuse.oncefs "$data" "$mnt" -o api=off
            head -c 3000000 /dev/urandom > "$mnt/$n"; sha256sum "$mnt/$n" >> sums
            umount "$mnt"
        done
        mount -t fuse.oncefs "$data" "$mnt" -o api=off; sha256sum --quiet -c sums; ls "$mnt" | wc -l; umount "$mnt""#,
    );
    assert_eq!(shown.trim(), "6");
}

#[test]
fn fstab_lines_work() {
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"echo "$data $mnt fuse.oncefs noauto,nofail,_netdev,ro,api=off,x-systemd.requires=network.target,comment=hello 0 0" > fstab
        mount -T fstab "$mnt"; findmnt -rn -o SOURCE,OPTIONS --mountpoint "$mnt"; umount "$mnt"
        echo "$data $mnt fuse.oncefs defaults,api=off 0 0" > fstab
        mount -a -T fstab; touch "$mnt/file"; mount -T fstab -o remount,ro "$mnt"; ! touch "$mnt/other" 2>/dev/null
        mount -T fstab -o remount,rw "$mnt"; touch "$mnt/third"; umount "$mnt""#,
    );
    let data = b.0.data().display().to_string();
    assert!(shown.starts_with(&format!("{data} ro,")), "{shown}");
}

#[test]
fn mount_fuse_finds_the_program() {
    needs(&["mount.fuse3"]);
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"mkdir bin; ln -s "$oncefs" bin/oncefs; PATH=$work/bin:$PATH
        mount.fuse3 "$data" "$mnt" -t fuse.oncefs -o rw,nosuid,nodev,api=off
        findmnt -rn -o SOURCE,FSTYPE --mountpoint "$mnt"; umount "$mnt""#,
    );
    let data = b.0.data().display().to_string();
    assert_eq!(shown.trim(), format!("{data} fuse.oncefs"));
}

/// As a suite does that mounts by device name: the same name shows again, and a second one beside it.
#[test]
fn two_devices_as_a_test_suite_mounts_them() {
    let (b, scratch) = (Background(Place::new()), Background(Place::new()));
    let mut command = with_helper(
        r#"for round in 1 2; do
            mount -t fuse.oncefs -o api=off,allow_other,allow_dev,allow_suid "$1" "$2"
            mount -t fuse.oncefs -o api=off,allow_other,allow_dev,allow_suid "$3" "$4"
            [ "$(findmnt -rncv -S "$1" -o TARGET)" = "$2" ]; [ "$(findmnt -rncv -S "$3" -o TARGET)" = "$4" ]
            [ "$(df -T "$2" | tail -n 1 | awk '{ print $1, $2 }')" = "$1 fuse.oncefs" ]
            mount -o remount,ro "$4"; mount -o remount,rw "$4"; rm -rf "$4"/*; mkdir "$4/$round"
            umount "$2"; umount "$4"
        done
        # By labels, which umount finds without a directory of that name.
        mount -t fuse.oncefs -o "api=off,data_dir=$1" test_dev "$2"; touch "$2/file"; umount test_dev
        ! findmnt --mountpoint "$2""#,
    );
    command.arg(b.0.data()).arg(b.0.mnt());
    command.arg(scratch.0.data()).arg(scratch.0.mnt());
    let ended = run_within(Duration::from_secs(120), command);
    assert!(ended.status.success(), "{ended:?}");
}

fn writes_are_refused(m: &Mount, hash: &str) {
    let errno = fs::write(m.at("new"), "x").unwrap_err().raw_os_error();
    assert_eq!(errno, Some(libc::EROFS));
    let answer = upload(m.api(), "", "new", b"bytes");
    assert_eq!(answer.code, 403, "{answer:?}");
    assert!(
        answer.json()["error"]
            .as_str()
            .unwrap()
            .contains("read-only")
    );
    let token = format!("X-Host-Token: {}\r\n", m.token());
    let answer = request(m.api(), "DELETE", &format!("/delete/{hash}"), &token, b"");
    assert_eq!(answer.code, 403, "{answer:?}");
    assert_eq!(get(m.api(), &format!("/download/{hash}")).code, 200);
    assert_eq!(fs::read(m.at("file")).unwrap(), b"kept");
}

#[test]
fn read_only_holds_for_the_mount_and_for_the_sidecar() {
    let m = Mount::start(&[]);
    let remount = |how: &str| {
        let mut command = with_helper(r#"mount -o "remount,$2" "$1""#);
        command.arg(m.path()).arg(how);
        run_within(Duration::from_secs(60), command)
    };
    write_closed(&m.at("file"), b"kept").unwrap();
    m.wait_stored();
    let hash = crate::common::files::sha256(b"kept");
    let mut open = File::create(m.at("open")).unwrap();
    let busy = remount("ro");
    assert!(!busy.status.success());
    assert!(busy.stderr.contains("open for writing"), "{busy:?}");
    open.write_all(b"still").unwrap();
    drop(open);
    assert!(remount("ro").status.success());
    writes_are_refused(&m, &hash);
    assert!(remount("rw").status.success());
    write_closed(&m.at("new"), b"new").unwrap();
    assert_eq!(upload(m.api(), "", "uploaded", b"bytes").code, 200);
    m.stop();

    let again = Mount::start(&["-o", "ro"]);
    assert_eq!(
        fs::metadata(again.path()).unwrap().permissions().mode() & 0o777,
        0o755
    );
    let answer = upload(again.api(), "", "new", b"bytes");
    assert_eq!(answer.code, 403);
}

#[test]
fn regression_what_is_mounted_read_only_can_be_looked_at() {
    let m = Mount::start(&["--gc-grace", "1h"]);
    write_closed(&m.at("file"), b"kept").unwrap();
    write_closed(&m.at("unused"), b"unused").unwrap();
    m.wait_stored();
    fs::remove_file(m.at("unused")).unwrap();
    let mut command = with_helper(r#"mount -o remount,ro "$1""#);
    command.arg(m.path());
    assert!(
        run_within(Duration::from_secs(60), command)
            .status
            .success()
    );
    let run = |args: &[&str]| {
        let path = m.path();
        oncefs_ended(args.iter().copied().chain([path.to_str().unwrap()]))
    };
    for (args, says) in [
        (&["fsck", "--data"][..], "2 hashed: 0 errors"),
        (&["gc", "--grace", "0s"], "nothing was removed"),
        (&["scrub", "--wait"], "2 contents hashed, 0 damaged"),
    ] {
        let ended = run(args);
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.stdout.contains(says), "{ended:?}");
    }
    for (args, code) in [
        (&["fsck", "-y"][..], 8),
        (&["gc", "-y", "--grace", "0s"], 1),
    ] {
        let ended = run(args);
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains("read-only"), "{ended:?}");
    }
    assert_eq!(m.contents().len(), 2);
}

#[test]
fn a_mount_point_behind_a_link_is_found_again() {
    let b = Background(Place::new());
    let shown = succeeds(
        &b.0,
        r#"ln -s "$(dirname "$mnt")" link
        "$oncefs" mount --api off --data-dir "$data" link/mnt; findmnt -rn -o TARGET --mountpoint "$mnt"
        ! "$oncefs" mount --api off --data-dir "$work/other" link/mnt 2>&1; "$oncefs" umount link/mnt"#,
    );
    assert!(shown.contains("mounted there already"), "{shown}");
    assert!(Path::new(shown.lines().next().unwrap()).ends_with("mnt"));
}
