//! Real etcd and mongod processes for tests: on free loopback ports, with data below the build directory, gone with the
//! test process.
//!
//! A missing server is a failure, never a skipped test. `mongod` is looked for in `ONCEFS_MONGOD`, in `PATH`, and at
//! `/opt/oncefs-test/mongod`, where `scripts/test.sh` puts it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
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

use super::net::Machine;

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

/// Where a server runs: on this machine, or on one of a test's network.
#[derive(Clone)]
pub struct Host(Option<Machine>);

impl Host {
    /// The machine of the test itself.
    pub const HERE: Host = Host(None);

    fn address(&self) -> Ipv4Addr {
        self.0
            .as_ref()
            .map_or(Ipv4Addr::LOCALHOST, Machine::address)
    }

    fn command(&self, program: &Path) -> Command {
        match &self.0 {
            Some(machine) => machine.command(program),
            None => Command::new(program),
        }
    }

    fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.0 {
            Some(machine) => machine.run(f),
            None => f(),
        }
    }

    fn listens(&self, port: u16) -> bool {
        let address = self.address();
        self.run(move || TcpStream::connect((address, port)).is_ok())
    }
}

impl From<&Machine> for Host {
    fn from(machine: &Machine) -> Host {
        Host(Some(machine.clone()))
    }
}

/// An etcd of one member.
pub struct Etcd {
    process: Process,
    host: Host,
    port: u16,
    scheme: &'static str,
}

impl Etcd {
    /// Starts one and waits until it is ready.
    pub fn start() -> Etcd {
        Etcd::start_on(free_port())
    }

    /// The same on a port chosen before.
    pub fn start_on(port: u16) -> Etcd {
        let etcd = Etcd::spawn(Host::HERE, port, "http", Vec::new());
        etcd.wait();
        etcd
    }

    /// The same on one of a test's machines.
    pub fn start_at(machine: &Machine) -> Etcd {
        let etcd = Etcd::spawn(machine.into(), 2379, "http", Vec::new());
        etcd.wait();
        etcd
    }

    /// One that speaks TLS to its clients, started with these further options. Waits until it listens, no more.
    pub fn start_with_tls(options: Vec<String>) -> Etcd {
        let etcd = Etcd::spawn(Host::HERE, free_port(), "https", options);
        wait_for("etcd", &etcd.process, || etcd.host.listens(etcd.port));
        etcd
    }

    fn spawn(host: Host, port: u16, scheme: &'static str, options: Vec<String>) -> Etcd {
        let peer = format!("http://127.0.0.1:{}", free_port());
        let set = format!("default={peer}");
        Etcd::spawn_member(host, port, scheme, ("default", &peer, &set), options)
    }

    /// One of a set: its name, its address for the others, and all of them.
    fn spawn_member(
        host: Host,
        port: u16,
        scheme: &'static str,
        (name, peer, set): (&str, &str, &str),
        options: Vec<String>,
    ) -> Etcd {
        let binary = find_in_path("etcd").expect(
            "etcd is not installed: run scripts/test.sh, which installs it (Debian package etcd-server)",
        );
        let dir = fresh_dir("etcd");
        let data = dir.join("data");
        let client = format!("{scheme}://{}:{port}", host.address());
        let (name, peer, set) = (name.to_owned(), peer.to_owned(), set.to_owned());
        let at = host.clone();
        let process = Process::start(dir, move || {
            let mut command = at.command(&binary);
            command
                .arg("--data-dir")
                .arg(&data)
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--name", &name, "--initial-cluster", &set])
                .args(["--log-level", "error"])
                .args(&options);
            command
        });
        Etcd {
            process,
            host,
            port,
            scheme,
        }
    }

    fn wait(&self) {
        wait_for("etcd", &self.process, || {
            let at = (self.host.address(), self.port);
            let answer = self.host.run(move || http_get(at, "/health"));
            answer.is_some_and(|answer| answer.contains("\"true\""))
        });
    }

    /// The endpoint for clients.
    pub fn uri(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host.address(), self.port)
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

    /// Whether it answers as the leader of its set.
    fn leads(&self) -> bool {
        let body = "{}";
        let request = format!(
            "POST /v3/maintenance/status HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let Some(answer) = http((self.host.address(), self.port), &request) else {
            return false;
        };
        let json = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        let leader = &status["leader"];
        leader.is_string() && *leader == status["header"]["member_id"]
    }
}

/// An etcd of three members on loopback ports.
pub struct EtcdSet(Vec<Etcd>);

impl EtcdSet {
    /// Starts one and waits until it has a leader.
    pub fn start() -> EtcdSet {
        let names = ["one", "two", "three"];
        let peers = names.map(|_| format!("http://127.0.0.1:{}", free_port()));
        let named = |(name, peer)| format!("{name}={peer}");
        let set: Vec<String> = names.iter().zip(&peers).map(named).collect();
        let set = set.join(",");
        let quick = ["--heartbeat-interval", "100", "--election-timeout", "1000"];
        let members = names.iter().zip(&peers).map(|(name, peer)| {
            let quick = quick.map(str::to_owned).to_vec();
            let own = (*name, peer.as_str(), set.as_str());
            Etcd::spawn_member(Host::HERE, free_port(), "http", own, quick)
        });
        let set = EtcdSet(members.collect());
        set.leader();
        set
    }

    /// The endpoints for clients.
    pub fn uri(&self) -> String {
        let uris: Vec<String> = self.0.iter().map(Etcd::uri).collect();
        uris.join(",")
    }

    /// The member that leads, as soon as there is one.
    pub fn leader(&self) -> &Etcd {
        self.leader_but(None)
    }

    /// The same among the others than this one, which may be frozen.
    pub fn leader_but(&self, but: Option<&Etcd>) -> &Etcd {
        let others = || {
            self.0
                .iter()
                .filter(|e| but.is_none_or(|b| b.port != e.port))
        };
        let mut found = None;
        wait_for("etcd's leader", &self.0[0].process, || {
            found = others().find(|e| e.leads());
            found.is_some()
        });
        found.unwrap()
    }
}

fn http_get(at: (Ipv4Addr, u16), path: &str) -> Option<String> {
    http(at, &format!("GET {path} HTTP/1.0\r\n\r\n"))
}

fn http(at: (Ipv4Addr, u16), request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A MongoDB replica set of one member.
pub struct Mongod {
    process: Process,
    host: Host,
    port: u16,
}

impl Mongod {
    /// Starts one and waits until it is primary.
    pub fn start() -> Mongod {
        Mongod::spawn(Host::HERE, free_port(), &["--replSet", "rs0"]).initiated()
    }

    /// The same on one of a test's machines.
    pub fn start_at(machine: &Machine) -> Mongod {
        Mongod::spawn(machine.into(), 27017, &["--replSet", "rs0"]).initiated()
    }

    fn initiated(self) -> Mongod {
        let at = (self.host.address(), self.port);
        self.host.run(move || {
            blocking(async move {
                let admin = connect(at).await.database("admin");
                let member = doc! { "_id": 0, "host": format!("{}:{}", at.0, at.1) };
                let config = doc! { "_id": "rs0", "members": [member] };
                let initiate = admin.run_command(doc! { "replSetInitiate": config });
                initiate.await.unwrap();
            });
        });
        self.wait_for_primary();
        self
    }

    /// Starts one with these further options and waits until it answers, no more.
    pub fn start_with(options: &[&str]) -> Mongod {
        Mongod::spawn(Host::HERE, free_port(), options)
    }

    fn spawn(host: Host, port: u16, options: &[&str]) -> Mongod {
        let options: Vec<String> = options.iter().map(|o| o.to_string()).collect();
        let binary = std::env::var_os("ONCEFS_MONGOD")
            .map(PathBuf::from)
            .or_else(|| find_in_path("mongod"))
            .or_else(|| Some(PathBuf::from("/opt/oncefs-test/mongod")))
            .filter(|file| file.is_file())
            .expect("mongod is not installed: run scripts/test.sh, which installs it, or set ONCEFS_MONGOD to its path");
        let dir = fresh_dir("mongod");
        let data = dir.join("data");
        fs::create_dir_all(&data).unwrap();
        let at = host.clone();
        let process = Process::start(dir, move || {
            let mut command = at.command(&binary);
            let address = at.address().to_string();
            command
                .arg("--dbpath")
                .arg(&data)
                .args(["--port", &port.to_string(), "--bind_ip", &address])
                .args(["--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64"])
                .args(["--nounixsocket", "--quiet"])
                .args(["--setParameter", "diagnosticDataCollectionEnabled=false"])
                // For fail points.
                .args(["--setParameter", "enableTestCommands=1"])
                .args(&options);
            command
        });
        let mongod = Mongod {
            process,
            host,
            port,
        };
        wait_for("mongod", &mongod.process, || mongod.host.listens(port));
        mongod
    }

    fn wait_for_primary(&self) {
        wait_for("mongod's primary", &self.process, || self.is_primary());
    }

    fn is_primary(&self) -> bool {
        self.says("isWritablePrimary")
    }

    /// Whether this field of its `hello` is true.
    fn says(&self, field: &'static str) -> bool {
        let at = (self.host.address(), self.port);
        self.host.run(move || {
            blocking(async move {
                let admin = connect(at).await.database("admin");
                let hello = admin.run_command(doc! { "hello": 1 }).await;
                hello.is_ok_and(|h: Document| h.get_bool(field) == Ok(true))
            })
        })
    }

    /// The connection string.
    pub fn uri(&self) -> String {
        let address = self.host.address();
        format!("mongodb://{address}:{}/?replicaSet=rs0", self.port)
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

    /// Starts one of a set again on the same port and data.
    pub fn restart_member(&self) {
        self.process.kill();
        self.process.spawn();
        self.wait_for_member();
    }

    /// Waits until it is a primary or a secondary.
    pub fn wait_for_member(&self) {
        wait_for("a mongod of a set", &self.process, || {
            self.is_primary() || self.says("secondary")
        });
    }

    /// Starts it again on the same port and data, and waits until it is primary.
    pub fn restart(&self) {
        self.process.kill();
        self.process.spawn();
        self.wait_for_primary();
    }
}

/// A MongoDB replica set of three members on loopback ports, which elects a new primary within a few seconds.
pub struct MongodSet(Vec<Mongod>);

impl MongodSet {
    /// Starts one and waits until it has a primary.
    pub fn start() -> MongodSet {
        let spawn = |_| Mongod::spawn(Host::HERE, free_port(), &["--replSet", "rs0"]);
        let set = MongodSet((0..3).map(spawn).collect());
        let hosts: Vec<String> = set.hosts().collect();
        let first = (Ipv4Addr::LOCALHOST, set.0[0].port);
        blocking(async move {
            let admin = connect(first).await.database("admin");
            let members = (0i32..).zip(&hosts);
            let members: Vec<Document> = members
                .map(|(n, host)| doc! { "_id": n, "host": host })
                .collect();
            let settings = doc! { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 };
            let config = doc! { "_id": "rs0", "members": members, "settings": settings };
            let initiate = admin.run_command(doc! { "replSetInitiate": config });
            initiate.await.unwrap();
        });
        set.primary();
        for member in &set.0 {
            member.wait_for_member();
        }
        set
    }

    fn hosts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|m| format!("127.0.0.1:{}", m.port))
    }

    /// The connection string.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.hosts().collect();
        format!("mongodb://{}/?replicaSet=rs0", hosts.join(","))
    }

    /// The member that is primary, as soon as there is one.
    pub fn primary(&self) -> &Mongod {
        self.primary_but(None)
    }

    /// The same among the others than this one, which may be frozen.
    pub fn primary_but(&self, but: Option<&Mongod>) -> &Mongod {
        let others = || {
            self.0
                .iter()
                .filter(|m| but.is_none_or(|b| b.port != m.port))
        };
        let mut found = None;
        wait_for("a primary", &self.0[0].process, || {
            found = others().find(|m| m.is_primary());
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until `primary` has a write acknowledged by a majority. A member that followed a frozen one notices after
    /// some seconds only, so this comes later than the election.
    pub fn wait_for_majority(&self, primary: &Mongod) {
        let at = (primary.host.address(), primary.port);
        blocking(async move {
            let probe = connect(at).await.database("probe");
            let write = probe.run_command(doc! {
                "insert": "probe",
                "documents": [{ "at": mongodb::bson::DateTime::now() }],
                "writeConcern": { "w": "majority", "j": true },
            });
            let limit = Duration::from_secs(60);
            let written = tokio::time::timeout(limit, write).await;
            written.expect("no majority acknowledges anything").unwrap();
        });
    }
}

async fn connect((address, port): (Ipv4Addr, u16)) -> mongodb::Client {
    let uri = format!("mongodb://{address}:{port}/?directConnection=true");
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.server_selection_timeout = Some(Duration::from_secs(10));
    mongodb::Client::with_options(options).unwrap()
}

/// Runs `future` on a runtime of its own, wherever the caller is.
pub fn blocking<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
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
