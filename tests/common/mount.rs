//! The real program, mounted through the real kernel, gone with the test.
//!
//! Everything of a mount is below one directory of this process: the mount point, the data directory and the log. A mount
//! that is dropped is killed and detached, also by a panic; what a killed test process leaves is cleared by the next one.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::UnmountFlags;
use serde_json::Value;

use super::files::{files_below, xattr};
use super::net::Machine;
use super::run::{Ended, eventually, run_within};
use super::servers::spawn_bound_to_process;

const READY: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(30);
/// Within which a killed daemon usually has ended.
const KILLED: Duration = Duration::from_secs(5);
const STORED: Duration = Duration::from_secs(100);

/// A directory for one mount, removed with everything in it, mounts first.
pub struct Place {
    dir: PathBuf,
    mnt: PathBuf,
}

impl Place {
    /// A new one below the build directory.
    pub fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static CLEAR: Once = Once::new();
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mounts");
        CLEAR.call_once(|| clear_left_behind(&base));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{}-{count}", std::process::id()));
        for part in ["mnt", "data", "work"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        let mnt = dir.join("mnt");
        Place { dir, mnt }
    }

    /// One whose mount point has a short path wherever the build directory is: a socket's path has at most 107 bytes, and
    /// suites add some 70 of their own.
    pub fn with_short_mount_point() -> Place {
        let mut place = Place::new();
        place.mnt = short_mount_point(&place.dir);
        fs::create_dir(&place.mnt).unwrap();
        place
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.mnt.clone()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// An empty directory beside the mount.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// What the daemon logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(&self.dir);
    }
}

/// Where the mount point of the place in this directory is, when it has a short one.
fn short_mount_point(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap().to_str().unwrap();
    Path::new("/tmp").join(format!("oncefs-{name}"))
}

fn clear(dir: &Path) {
    let short = short_mount_point(dir);
    for mnt in [&dir.join("mnt"), &short] {
        // More than one can lie on top of the other.
        while rustix::mount::unmount(mnt, UnmountFlags::FORCE | UnmountFlags::DETACH).is_ok() {}
    }
    let _ = fs::remove_dir(short);
    let _ = fs::remove_dir_all(dir);
}

fn clear_left_behind(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let owner = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            clear(&entry.path());
        }
    }
}

/// Whether an oncefs is in the table of mounts at `place`.
pub fn is_mounted(place: &Path) -> bool {
    // Others may have mounted something with any name.
    let table = fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let place = place.to_str().unwrap();
    table
        .lines()
        .any(|l| l.split(' ').nth(4) == Some(place) && l.contains(" - fuse.oncefs "))
}

/// The program, with no settings from the environment of the tests.
pub fn oncefs() -> Command {
    without_settings(Command::new(env!("CARGO_BIN_EXE_oncefs")))
}

fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"ONCEFS_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs one of its commands to the end.
pub fn oncefs_ended<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    let mut command = oncefs();
    command.args(args);
    run_within(STORED, command)
}

/// A mount and its daemon.
pub struct Mount {
    options: Vec<String>,
    machine: Option<Machine>,
    child: Mutex<Option<Child>>,
    place: Place,
}

impl Mount {
    /// Mounts an empty tree in embedded mode, or as these options say.
    pub fn start(options: &[&str]) -> Mount {
        Mount::start_at(Place::new(), options)
    }

    /// The same at a place made before.
    pub fn start_at(place: Place, options: &[&str]) -> Mount {
        Mount::start_on(None, place, options)
    }

    /// The same on one of a test's machines.
    pub fn start_on(machine: Option<Machine>, place: Place, options: &[&str]) -> Mount {
        assert!(
            Path::new("/dev/fuse").exists(),
            "there is no /dev/fuse: load the module (modprobe fuse), or give the container --device /dev/fuse --cap-add SYS_ADMIN"
        );
        let mount = Mount {
            options: options.iter().map(|o| o.to_string()).collect(),
            machine,
            child: Mutex::new(None),
            place,
        };
        mount.remount();
        mount
    }

    /// The root of the mounted tree.
    pub fn path(&self) -> PathBuf {
        self.place.mnt()
    }

    /// A path in it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.place.mnt().join(name)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.place.data()
    }

    /// A directory beside the mount.
    pub fn work(&self) -> PathBuf {
        self.place.work()
    }

    /// All that the daemon logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.place.log()).unwrap_or_default()
    }

    /// The process id of the daemon.
    pub fn pid(&self) -> u32 {
        let child = self.child.lock().unwrap();
        child.as_ref().expect("the daemon has ended").id()
    }

    /// Starts the daemon (again) and waits until the mount serves.
    pub fn remount(&self) {
        assert!(
            self.try_remount(&[]),
            "not mounted; the log ends with:\n{}",
            self.log_tail()
        );
    }

    /// The same with these environment variables; false when the daemon ends before the mount serves.
    pub fn try_remount(&self, environment: &[(&str, &str)]) -> bool {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.place.log())
            .unwrap();
        let mut command = match &self.machine {
            Some(machine) => {
                without_settings(machine.command(Path::new(env!("CARGO_BIN_EXE_oncefs"))))
            }
            None => oncefs(),
        };
        command
            .args(["mount", "-f", "--api", "127.0.0.1:0", "--data-dir"])
            .arg(self.place.data())
            .args(&self.options)
            .arg(self.place.mnt())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let starts = self.starts();
        let mut daemon = self.child.lock().unwrap();
        assert!(daemon.is_none(), "the daemon still runs");
        *daemon = Some(spawn_bound_to_process(command).unwrap());
        drop(daemon);
        let deadline = Instant::now() + READY;
        while self.starts() == starts {
            let mut child = self.child.lock().unwrap();
            if ended(child.as_mut().unwrap()).is_some() {
                *child = None;
                return false;
            }
            drop(child);
            assert!(
                Instant::now() < deadline,
                "not mounted in time; the log ends with:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(is_mounted(&self.path()));
        if !environment.is_empty() {
            // It may be meant to end at once.
            return true;
        }
        let named = xattr(&self.path(), "user.oncefs.data_dir");
        assert_eq!(named.as_deref(), self.data().to_str());
        true
    }

    /// Whether the daemon runs.
    pub fn is_running(&self) -> bool {
        let mut daemon = self.child.lock().unwrap();
        daemon.as_mut().is_some_and(|d| ended(d).is_none())
    }

    /// How often the daemon said that the mount serves.
    fn starts(&self) -> usize {
        self.log().matches(" mounted at ").count()
    }

    /// Asks the daemon over its control socket.
    fn ask(&self, path: &str) -> std::io::Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let control = self.data().join("control.sock");
        let answer = runtime.block_on(oncefs::sidecar::client::get_json(&control, path))?;
        assert_eq!(answer.0, 200, "{}", answer.1);
        Ok(answer.1)
    }

    /// `GET /health`.
    pub fn health(&self) -> Value {
        self.ask("/health").unwrap()
    }

    /// Where the sidecar listens.
    pub fn api(&self) -> SocketAddr {
        let health = self.health();
        let members = health["members"].as_array().unwrap();
        let me = members.iter().find(|m| m["node"] == health["node"]);
        let api = me.unwrap_or_else(|| panic!("not a member of itself: {health:#}"))["api"].clone();
        api.as_str().unwrap().parse().unwrap()
    }

    /// The host token.
    pub fn token(&self) -> String {
        let token = fs::read_to_string(self.data().join("token")).unwrap();
        token.trim().to_string()
    }

    /// Kills the daemon as nothing else can, and leaves what that leaves.
    pub fn kill9(&self) {
        if let Some(mut daemon) = self.child.lock().unwrap().take() {
            let _ = daemon.kill();
            // The kernel may keep it until the next start, or the end of its mount, frees it.
            let deadline = Instant::now() + KILLED;
            while ended(&mut daemon).is_none() {
                if Instant::now() > deadline {
                    std::thread::spawn(move || daemon.wait());
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    /// Waits until the daemon has ended by itself.
    pub fn wait_ended(&self) -> ExitStatus {
        let mut daemon = self.child.lock().unwrap().take().unwrap();
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = ended(&mut daemon) {
                return status;
            }
            if Instant::now() > deadline {
                let _ = daemon.kill();
                let _ = daemon.wait();
                panic!("the daemon did not end within {END:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the daemon in order; it must succeed and leave nothing mounted.
    pub fn stop(&self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_ended();
        assert!(status.success(), "{status}");
        assert!(!is_mounted(&self.path()));
    }

    /// Waits until everything in the tree is stored.
    pub fn wait_stored(&self) {
        let ended = oncefs_ended([Path::new("wait"), &self.path()]);
        assert!(ended.status.success(), "{ended:?}");
    }

    /// The names of the files in the spool.
    pub fn spooled(&self) -> Vec<PathBuf> {
        files_below(&self.data().join("spool"))
    }

    /// Waits until the spool is empty.
    pub fn wait_spool_empty(&self) {
        eventually(Duration::from_secs(20), "an empty spool", || {
            self.spooled().is_empty().then_some(())
        });
    }

    /// The hashes of the contents on the disk, sorted.
    pub fn contents(&self) -> Vec<String> {
        let mut hashes: Vec<String> = files_below(&self.data().join("content"))
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_string())
            .filter(|name| !name.ends_with(".sums"))
            .collect();
        hashes.sort();
        hashes
    }

    /// Where a file stands, as its attribute says.
    pub fn status(&self, name: &str) -> String {
        xattr(&self.at(name), "user.oncefs.status").unwrap()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let tail = log.len().saturating_sub(4000);
        log.get(tail..).unwrap_or(&log).to_string()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log ends with:\n{}", self.log_tail());
        }
        self.kill9();
    }
}

/// How the daemon ended, if it has. Only a test kills it: any other signal is one that it should have lived through.
fn ended(daemon: &mut Child) -> Option<ExitStatus> {
    let status = daemon.try_wait().unwrap()?;
    let expected = matches!(status.signal(), None | Some(libc::SIGKILL));
    assert!(
        expected || std::thread::panicking(),
        "the daemon ended by a signal of its own: {status}"
    );
    Some(status)
}

/// Takes a mount away that a command of this test made in the background.
pub struct Background(pub Place);

impl Drop for Background {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0.data().join("lock")).unwrap_or_default();
        let Ok(pid) = pid.lines().next().unwrap_or_default().parse() else {
            return;
        };
        // Only what really is the daemon of this place.
        let ours = fs::metadata(format!("/proc/{pid}"))
            .is_ok_and(|m| m.uid() == rustix::process::geteuid().as_raw())
            && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                let data = self.0.data();
                let data = data.as_os_str().as_bytes();
                line.windows(data.len()).any(|w| w == data)
            });
        if ours {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
