//! Programs that tests run: with a deadline each, and a sentence that says what to install when one is missing.

use std::fmt::Debug;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::servers::{find_in_path, spawn_bound_to_process};

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Fails unless all these programs are there.
pub fn needs(programs: &[&str]) {
    for program in programs {
        assert!(
            find_in_path(program).is_some(),
            "{program} is not installed: run scripts/test.sh, which installs what the tests need"
        );
    }
}

/// Runs a program to its end, which must come within `limit`.
pub fn run_within(limit: Duration, mut command: Command) -> Ended {
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap());
    let shown = format!("{command:?}");
    let mut child = spawn_bound_to_process(command).unwrap_or_else(|e| panic!("{shown}: {e}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (read(&mut out), read(&mut err));
    let status = status
        .unwrap_or_else(|| panic!("{shown} did not end within {limit:?}\n{stdout}\n{stderr}"));
    Ended {
        status,
        stdout,
        stderr,
    }
}

/// Runs a shell script in `dir`, stopping at the first command that fails, which is a failure of the test. Returns what
/// it wrote, without white space around.
pub fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent");
    let ended = run_within(Duration::from_secs(120), command);
    assert!(
        ended.status.success(),
        "{script}\n{}\n{}\n{}",
        ended.status,
        ended.stdout,
        ended.stderr
    );
    ended.stdout.trim().to_string()
}

/// Polls `look` until it returns something; fails after `limit`.
pub fn eventually<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls until `look` returns `expected`; fails after `limit`, saying what it was.
pub fn becomes<T: PartialEq + Debug>(limit: Duration, expected: T, mut look: impl FnMut() -> T) {
    let deadline = Instant::now() + limit;
    loop {
        let found = look();
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "within {limit:?} it became {found:?}, not {expected:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says how much of something a test did. `scripts/suites.sh` adds it up.
pub fn counted(n: impl std::fmt::Display, what: &str) {
    println!("counted {n} {what}");
}
