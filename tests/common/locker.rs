//! Processes that lock files as a test tells them.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run::{eventually, needs};
use super::servers::spawn_bound_to_process;

/// Of flock(2), of a process, and of an open file description.
pub const KINDS: [&str; 3] = ["flock", "posix", "ofd"];

/// Takes orders from its standard input: `how wait start length`.
const SCRIPT: &str = r#"
import errno, fcntl, os, signal, struct, sys
# What is started in the background of a shell ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
kind, path = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
POSIX = {"ex": fcntl.F_WRLCK, "sh": fcntl.F_RDLCK, "un": fcntl.F_UNLCK}
FLOCK = {"ex": fcntl.LOCK_EX, "sh": fcntl.LOCK_SH, "un": fcntl.LOCK_UN}
for line in sys.stdin:
    how, wait, start, length = line.split()
    wait = wait == "wait"
    try:
        if how == "reopen":
            os.close(os.open(path, os.O_RDONLY))
        elif how == "close":
            os.close(fd)
        elif how == "open":
            fd = os.open(path, os.O_RDWR)
        elif how == "write":
            os.pwrite(fd, b"written", int(start))
        elif how == "read":
            os.pread(fd, 1, int(start))
        elif how == "truncate":
            os.ftruncate(fd, int(start))
        elif how == "sync":
            os.fsync(fd)
        elif how == "get":
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, int(start), int(length), 0)
            found = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
            name = {fcntl.F_UNLCK: "free", fcntl.F_RDLCK: "sh", fcntl.F_WRLCK: "ex"}[found[0]]
            print(name if name == "free" else f"{name} {found[2]} {found[3]} {found[4]}", flush=True)
            continue
        elif kind == "flock":
            fcntl.flock(fd, FLOCK[how] | (0 if wait else fcntl.LOCK_NB))
        else:
            lock = struct.pack("hhqqi", POSIX[how], 0, int(start), int(length), 0)
            command = {("posix", True): fcntl.F_SETLKW, ("posix", False): fcntl.F_SETLK,
                       ("ofd", True): 38, ("ofd", False): 37}[kind, wait]
            fcntl.fcntl(fd, command, lock)
        print("ok", flush=True)
    except OSError as e:
        print(errno.errorcode.get(e.errno, e.errno), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"#;

/// A process that has the file open and locks it as it is told.
pub struct Locker(Child, ChildStdin, BufReader<ChildStdout>);

impl Locker {
    /// Opens the file, and waits for orders.
    pub fn start(kind: &str, path: &Path) -> Locker {
        needs(&["python3"]);
        let mut command = Command::new("python3");
        command
            .args(["-c", SCRIPT, kind])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = spawn_bound_to_process(command).unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Locker(child, stdin, BufReader::new(stdout))
    }

    /// Gives an order.
    pub fn tell(&mut self, order: &str) {
        writeln!(self.1, "{order}").unwrap();
    }

    /// What became of the last order: `ok`, or the name of an error.
    pub fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.2.read_line(&mut answer).unwrap();
        answer.trim().to_string()
    }

    /// `how`, at once, the whole file.
    pub fn try_whole(&mut self, how: &str) -> String {
        self.try_range(how, 0, 0)
    }

    /// `how`, at once, these bytes.
    pub fn try_range(&mut self, how: &str, start: u64, length: u64) -> String {
        self.tell(&format!("{how} now {start} {length}"));
        self.answer()
    }

    /// Asks for the lock and returns once the process sleeps in that very call.
    pub fn wait_for(&mut self, how: &str) {
        self.tell(&format!("{how} wait 0 0"));
        let wchan = format!("/proc/{}/syscall", self.0.id());
        eventually(
            std::time::Duration::from_secs(20),
            "a wait for the lock",
            || {
                let call = std::fs::read_to_string(&wchan).unwrap_or_default();
                let number = call.split(' ').next()?.parse::<i64>().ok()?;
                [libc::SYS_flock, libc::SYS_fcntl]
                    .contains(&number)
                    .then_some(())
            },
        );
    }
}

impl Locker {
    /// Kills the process, and waits for its end.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
