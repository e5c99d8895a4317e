//! The daemon killed at the n-th system call of a kind, and system calls that fail, by strace.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::torture::{Programs, rounds};
use super::workload::{Habits, check_stored};
use super::world::Guarantee;
use crate::common::files::seed;
use crate::common::mount::Mount;
use crate::common::run::{counted, eventually, needs};
use crate::common::servers::spawn_bound_to_process;

const SOON: Duration = Duration::from_secs(20);

/// The calls on the way of a file into the store.
const CALLS: &[&str] = &[
    "pwrite64",
    "fdatasync",
    "linkat",
    "unlink",
    "fchmod",
    "openat",
    "rename",
    "ftruncate",
    "fsync",
    "utimensat",
];

/// strace, attached to the daemon of a mount.
struct Strace(Child);

impl Strace {
    fn attach(m: &Mount, inject: &str) -> Strace {
        needs(&["strace"]);
        let mut command = Command::new("strace");
        command
            .args([
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                inject,
                "-p",
                &m.pid().to_string(),
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let mut strace = Strace(spawn_bound_to_process(command).unwrap());
        let tasks = format!("/proc/{}/task", m.pid());
        eventually(SOON, "strace to be attached", || {
            if !m.is_running() {
                // It came to the call at once.
                return Some(());
            }
            let ended = strace.0.try_wait().unwrap().is_some();
            assert!(!ended || !m.is_running(), "strace ended: {inject}");
            let all = fs::read_dir(&tasks).ok()?.flatten().all(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            });
            all.then_some(())
        });
        strace
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT);
        let _ = self.0.wait();
    }
}

fn habits() -> Habits {
    Habits {
        sync_percent: 20,
        ..Habits::default()
    }
}

fn killed(options: &[&str]) {
    let seed = seed("killed at a system call");
    let m = Mount::start(options);
    let mut programs = Programs::new(&m, 3, habits(), Guarantee::Answered);
    let points = rounds(50);
    for point in 0..points {
        let call = CALLS[point % CALLS.len()];
        // strace counts for each thread.
        let nth = 1 + point / CALLS.len() * 2 + seed as usize % 2;
        let strace = Strace::attach(&m, &format!("inject={call}:signal=SIGKILL:when={nth}"));
        let deadline = Instant::now() + SOON;
        for part in 0.. {
            programs.run(seed + 100 * point as u64 + part, 100, || ());
            if !m.is_running() {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "no thread came to {call} {nth} times"
            );
        }
        drop(strace);
        m.kill9();
        m.remount();
        programs.check();
        if point % 10 == 9 {
            check_stored(&m, &programs.worlds);
        }
    }
    check_stored(&m, &programs.worlds);
    counted(points, "kills at system calls");
}

#[test]
fn killed_passthrough() {
    killed(&["--gc-grace", "0s"]);
}

#[test]
fn killed_through_the_daemon() {
    killed(&["--gc-grace", "0s", "--no-passthrough"]);
}

fn failed(options: &[&str]) {
    let seed = seed("failing system calls");
    let m = Mount::start(options);
    let mut programs = Programs::new(&m, 3, habits(), Guarantee::Answered);
    let mut heard = 0;
    let calls = [
        "pwrite64",
        "fdatasync",
        "linkat",
        "rename",
        "ftruncate",
        "fsync",
        "openat",
        "fchmod",
    ];
    for round in 0..rounds(2 * calls.len()) {
        let call = calls[round % calls.len()];
        let error = if round < calls.len() { "EIO" } else { "ENOSPC" };
        for part in 0..3 {
            let strace = Strace::attach(&m, &format!("inject={call}:error={error}:when=2+5"));
            programs.run(seed + 100 * round as u64 + part, 100, || ());
            // Looking would find the disk failing, too.
            drop(strace);
            for error in programs.errors.drain(..) {
                assert!(
                    matches!(error, Some(libc::EIO | libc::ENOSPC)),
                    "{call} failed, and a program heard {error:?}"
                );
                heard += 1;
            }
            assert!(m.is_running(), "{call} failed");
            programs.check();
        }
        programs.run(seed + 100 * round as u64 + 99, 40, || ());
        assert_eq!(programs.errors, [], "the disk is well again");
        programs.check();
        check_stored(&m, &programs.worlds);
        // What the daemon keeps in mind and what it would find are the same.
        m.kill9();
        m.remount();
        programs.check();
    }
    assert!(heard > 0, "nobody heard of any error");
    counted(heard, "injected errors that programs heard");
}

#[test]
fn failed_passthrough() {
    failed(&["--gc-grace", "0s"]);
}

#[test]
fn failed_through_the_daemon() {
    failed(&["--gc-grace", "0s", "--no-passthrough"]);
}
