//! fsx, the file system exerciser: random reads, writes and mappings of one file, every byte checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::setting;
use crate::common::files::seed;
use crate::common::mount::Mount;
use crate::common::run::{counted, run_within};
use crate::common::servers::find_in_path;

const OPERATIONS: u32 = 100_000;
const LIMIT: Duration = Duration::from_secs(1200);

/// Everything that it can do and Linux has.
const CONFIG: &str = "
flen = 262144
[opsize]
min = 1
max = 65536
[weights]
close_open = 1
invalidate = 1
mapread = MAPPED
mapwrite = MAPPED
read = 10
write = 10
truncate = 10
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1
punch_hole = 5
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
";

fn tool() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fsx");
    std::env::var_os("ONCEFS_TOOLS")
        .map(|tools| Path::new(&tools).join("bin/fsx"))
        .filter(|path| path.exists())
        .or_else(|| find_in_path("fsx"))
        .or_else(|| built.exists().then_some(built))
        .expect("fsx is not installed: run scripts/test.sh, or cargo install --locked --root target/tools fsx@0.3.2")
}

fn exercise(options: &[&str], mapped: u32) {
    let mount = Mount::start(options);
    let config = mount.work().join("fsx.toml");
    fs::write(&config, CONFIG.replace("MAPPED", &mapped.to_string())).unwrap();
    let mut command = Command::new(tool());
    command
        .arg("-f")
        .arg(config)
        .args([
            "-N",
            &setting("ONCEFS_FSX_OPERATIONS", OPERATIONS).to_string(),
        ])
        .args(["-S", &seed("fsx").to_string()])
        .arg("-P")
        .arg(mount.work())
        .arg(mount.at("file"));
    let ended = run_within(LIMIT, command);
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    mount.wait_stored();
    let stored = fs::read(mount.at("file")).unwrap();
    mount.kill9();
    mount.remount();
    assert!(fs::read(mount.at("file")).unwrap() == stored);
    let operations = setting("ONCEFS_FSX_OPERATIONS", OPERATIONS);
    counted(operations, "operations of fsx");
}

#[test]
fn passthrough_with_mappings() {
    exercise(&[], 10);
}

#[test]
fn passthrough_without_mappings() {
    exercise(&[], 0);
}

#[test]
fn through_the_daemon_with_mappings() {
    exercise(&["--no-passthrough"], 10);
}

#[test]
fn through_the_daemon_without_mappings() {
    exercise(&["--no-passthrough"], 0);
}
