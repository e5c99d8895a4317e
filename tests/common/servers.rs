//! Real etcd and mongod processes for tests: on free loopback ports, with data below the build directory, gone with the
//! test process.
//!
//! A missing server is a failure, never a skipped test. `mongod` is looked for in `ONCEFS_MONGOD`, in `PATH`, and at
//! `/opt/oncefs-test/mongod`, where `scripts/test.sh` puts it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const READY: Duration = Duration::from_secs(60);

/// A server process.
struct Process {
    make: Box<dyn Fn() -> Command + Send + Sync>,
    child: Mutex<Option<Child>>,
    dir: PathBuf,
}

impl Process {
    fn start(dir: PathBuf, make: impl Fn() -> Command + Send + Sync + 'static) -> Process {
        let process = Process {
            make: Box::new(make),
            child: Mutex::new(None),
            dir,
        };
        process.spawn();
        process
    }

    fn spawn(&self) {
        let mut command = (self.make)();
        let log = fs::File::create(self.dir.join("log")).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let name = command.get_program().to_owned();
        let child = spawn_bound_to_process(command)
            .unwrap_or_else(|e| panic!("cannot start {}: {e}", name.display()));
        *self.child.lock().unwrap() = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.lock().unwrap();
        let child = child.as_ref().expect("the server was killed");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let tail = log.len().saturating_sub(2000);
        log.get(tail..).unwrap_or(&log).to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Starts `command` so that the kernel kills it when this process ends, however it ends.
///
/// The kernel goes by the *thread* that started it, and test threads come and go; so one thread that never ends starts
/// them all.
pub fn spawn_bound_to_process(mut command: Command) -> std::io::Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    // SAFETY: prctl is async-signal-safe, and nothing else happens between fork and exec.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let (sender, answer) = mpsc::channel();
    spawner.lock().unwrap().send((command, sender)).unwrap();
    answer.recv().unwrap()
}

/// A new directory that belongs to this process. Those of processes that are gone are removed first.
fn fresh_dir(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("servers");
    fs::create_dir_all(&base).unwrap();
    for entry in fs::read_dir(&base).unwrap().flatten() {
        let name = entry.file_name();
        let owner = name.to_string_lossy().split('-').next().map(str::to_string);
        let alive = owner.is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = base.join(format!("{}-{name}-{count}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn wait_for(what: &str, process: &Process, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + READY;
    while !ready() {
        assert!(
            Instant::now() < deadline,
            "{what} was not ready in time; its log ends with:\n{}",
            process.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The program `name`, as a shell would find it.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// An etcd of one member.
pub struct Etcd {
    process: Process,
    port: u16,
}

impl Etcd {
    /// Starts one and waits until it is ready.
    pub fn start() -> Etcd {
        Etcd::start_on(free_port())
    }

    /// The same on a port chosen before.
    pub fn start_on(port: u16) -> Etcd {
        let binary = find_in_path("etcd").expect(
            "etcd is not installed: run scripts/test.sh, which installs it (Debian package etcd-server)",
        );
        let dir = fresh_dir("etcd");
        let data = dir.join("data");
        let peer = format!("http://127.0.0.1:{}", free_port());
        let client = format!("http://127.0.0.1:{port}");
        let process = Process::start(dir, move || {
            let mut command = Command::new(&binary);
            command
                .arg("--data-dir")
                .arg(&data)
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}")])
                .args(["--log-level", "error"]);
            command
        });
        let etcd = Etcd { process, port };
        etcd.wait();
        etcd
    }

    fn wait(&self) {
        wait_for("etcd", &self.process, || {
            http_get(self.port, "/health").is_some_and(|answer| answer.contains("\"true\""))
        });
    }

    /// The endpoint for clients.
    pub fn uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Stops it from running without closing anything, as a hung machine would.
    pub fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Kills it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts it again on the same port and data.
    pub fn restart(&self) {
        self.process.kill();
        self.process.spawn();
        self.wait();
    }
}

fn http_get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A MongoDB replica set of one member.
pub struct Mongod {
    process: Process,
    port: u16,
}

impl Mongod {
    /// Starts one and waits until it is primary.
    pub fn start() -> Mongod {
        let mongod = Mongod::start_with(&["--replSet", "rs0"]);
        let port = mongod.port;
        blocking(async move {
            let admin = connect(port).await.database("admin");
            let member = doc! { "_id": 0, "host": format!("127.0.0.1:{port}") };
            let config = doc! { "_id": "rs0", "members": [member] };
            let initiate = admin.run_command(doc! { "replSetInitiate": config });
            initiate.await.unwrap();
        });
        mongod.wait_for_primary();
        mongod
    }

    /// Starts one with these further options and waits until it answers, no more.
    pub fn start_with(options: &'static [&'static str]) -> Mongod {
        let binary = std::env::var_os("ONCEFS_MONGOD")
            .map(PathBuf::from)
            .or_else(|| find_in_path("mongod"))
            .or_else(|| Some(PathBuf::from("/opt/oncefs-test/mongod")))
            .filter(|file| file.is_file())
            .expect("mongod is not installed: run scripts/test.sh, which installs it, or set ONCEFS_MONGOD to its path");
        let port = free_port();
        let dir = fresh_dir("mongod");
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        let process = Process::start(dir, move || {
            let mut command = Command::new(&binary);
            command
                .arg("--dbpath")
                .arg(&data)
                .args(["--port", &port.to_string(), "--bind_ip", "127.0.0.1"])
                .args(["--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"])
                .args(["--nounixsocket", "--quiet"])
                .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
                // For fail points.
                .args(["--setParameter", "enableTestCommands=1"])
                .args(options);
            command
        });
        let mongod = Mongod { process, port };
        wait_for("mongod", &mongod.process, || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        mongod
    }

    fn wait_for_primary(&self) {
        let port = self.port;
        wait_for("mongod's primary", &self.process, || {
            blocking(async move {
                let admin = connect(port).await.database("admin");
                let hello = admin.run_command(doc! { "hello": 1 }).await;
                hello.is_ok_and(|h: Document| h.get_bool("isWritablePrimary") == Ok(true))
            })
        });
    }

    /// The connection string.
    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?replicaSet=rs0", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops it from running without closing anything, as a hung machine would.
    pub fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Kills it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Starts it again on the same port and data, and waits until it is primary.
    pub fn restart(&self) {
        self.process.kill();
        self.process.spawn();
        self.wait_for_primary();
    }
}

async fn connect(port: u16) -> mongodb::Client {
    let uri = format!("mongodb://127.0.0.1:{port}/?directConnection=true");
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.server_selection_timeout = Some(Duration::from_secs(10));
    mongodb::Client::with_options(options).unwrap()
}

/// Runs `future` on a runtime of its own, wherever the caller is.
fn blocking<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(future)
    });
    thread.join().unwrap()
}

/// The etcd that the tests of this binary share. Do not freeze or stop it.
pub fn shared_etcd() -> &'static Etcd {
    static ETCD: OnceLock<Etcd> = OnceLock::new();
    ETCD.get_or_init(Etcd::start)
}

/// The mongod that the tests of this binary share. Do not freeze or stop it; use [`fresh_database`].
pub fn shared_mongod() -> &'static Mongod {
    static MONGOD: OnceLock<Mongod> = OnceLock::new();
    MONGOD.get_or_init(Mongod::start)
}

/// The name of a database that no other test uses.
pub fn fresh_database() -> String {
    format!("test-{:016x}", rand::random::<u64>())
}
