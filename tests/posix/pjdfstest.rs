//! The field's own suite, on a mount and on ext4: nothing fails, and only what ext4 skips too is skipped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::run::{Ended, counted, run_within};
use crate::common::servers::find_in_path;
use crate::mounting::with_helper;
use crate::native::{Native, open_to_all};

/// All that it offers on Linux.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;
const ALL: usize = 398;
/// Those that need a read-only filesystem.
const EROFS: usize = 13;
/// It asks pathconf(3) for the most links that a file may have, and glibc knows that of a few filesystems only.
const UNKNOWN_TO_GLIBC: &str = "link::link_count_max";

/// Its last step truncates a running program by `O_RDONLY|O_TRUNC`. The kernel's FUSE does that before it looks whether the
/// program runs (`unsupported.rs` shows it), so the program can die of it before the kernel looks; then the test says that
/// it was not running. Nothing of the kind when it is repeated.
const RACES: &str = "open::etxtbsy";
const REPEATS: usize = 5;

fn tool(name: &str) -> PathBuf {
    let named = std::env::var_os("ONCEFS_TOOLS").map(|dir| Path::new(&dir).join("bin").join(name));
    named
        .filter(|path| path.exists())
        .or_else(|| find_in_path(name))
        .unwrap_or_else(|| {
            panic!("{name} is not installed: run scripts/test.sh, which installs it, or cargo install {name} and name the directory above its bin in ONCEFS_TOOLS")
        })
}

fn check_users() {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let groups = fs::read_to_string("/etc/group").unwrap();
    for (user, group) in [("nobody", "nogroup"), ("tests", "tests")] {
        assert!(
            users.lines().any(|l| l.starts_with(&format!("{user}:")))
                && groups.lines().any(|l| l.starts_with(&format!("{group}:"))),
            "there is no user {user} with a group {group}: run scripts/test.sh, or groupadd {group}; useradd -M -g {group} {user}"
        );
    }
}

struct Summary {
    passed: usize,
    skipped: BTreeSet<String>,
}

/// Runs the suite below `base`, with files in `beside` as the other filesystem. Nothing may fail.
fn run(base: &Path, beside: &Path) -> Summary {
    // Some of its tests leave files open, and then nothing can be remounted read-only: those that do run by themselves.
    let mut all = run_part(base, beside, "false", "", ALL);
    let remounting = run_part(base, beside, "true", "erofs", EROFS);
    assert!(remounting.skipped.is_empty(), "{:?}", remounting.skipped);
    let before = all.skipped.len();
    all.skipped.retain(|name| !name.contains("::erofs_"));
    assert_eq!(before - all.skipped.len(), EROFS);
    all.passed += remounting.passed;
    all
}

fn run_part(base: &Path, beside: &Path, remount: &str, pattern: &str, count: usize) -> Summary {
    let config = beside.join("pjdfstest.toml");
    fs::write(&config, CONFIG.replace("REMOUNT", remount)).unwrap();
    // It makes paths of the longest length in steps of 127 bytes, below two directories of its own, and breaks when the
    // rest is exactly nothing.
    let suite_adds = "/.tmpXXXXXX/.tmpXXXXXX".len();
    let name = ["p", "pj"]
        .into_iter()
        .find(|name| {
            let length = base.join(name).as_os_str().len() + suite_adds;
            (4095 - length) % 127 > 1
        })
        .unwrap();
    let dir = base.join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    for again in 1.. {
        // It remounts by mount(8).
        let mut command = with_helper(r#"NO_COLOR=1 "$1" -c "$2" -s "$3" -p "$4" "$5""#);
        command.arg(tool("pjdfstest"));
        command.args([&config, beside, &dir]).arg(pattern);
        let ended = run_within(Duration::from_secs(300), command);
        let raced = named(&ended, " FAILED") == BTreeSet::from([RACES.to_owned()]);
        if !raced || again == REPEATS {
            return summary(count, &ended);
        }
    }
    unreachable!("the last one is returned")
}

/// The tests whose line ends with this word.
fn named(ended: &Ended, word: &str) -> BTreeSet<String> {
    let lines = ended.stdout.lines().filter(|l| l.ends_with(word));
    lines
        .filter_map(|l| Some(l.split_whitespace().next()?.to_owned()))
        .collect()
}

fn summary(count: usize, ended: &Ended) -> Summary {
    let failed = named(ended, " FAILED");
    assert!(
        ended.status.success() && failed.is_empty(),
        "{failed:?}\n{}\n{}",
        ended.stdout,
        ended.stderr
    );
    let (passed, skipped) = (named(ended, " ok").len(), named(ended, " skipped"));
    assert_eq!(passed + skipped.len(), count, "{}", ended.stdout);
    Summary { passed, skipped }
}

#[test]
fn pjdfstest_passes_and_skips_only_what_ext4_skips() {
    check_users();
    let native = Native::new();
    let beside = tempfile::tempdir().unwrap();
    fs::set_permissions(beside.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let expected = run(&native.path(), beside.path());
    println!(
        "ext4: {} passed, {:?} skipped",
        expected.passed, expected.skipped
    );
    for options in [&[][..], &["--no-passthrough"]] {
        let mount = open_to_all(options);
        let mut ours = run(&mount.path(), beside.path());
        println!(
            "{options:?}: {} passed, {:?} skipped",
            ours.passed, ours.skipped
        );
        counted(ours.passed, "tests of pjdfstest passed");
        ours.skipped.remove(UNKNOWN_TO_GLIBC);
        assert_eq!(ours.skipped, expected.skipped);
    }
}
