//! Content that is closed and not stored yet, straight from the machine that has it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use mongodb::bson::{Document, doc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::Sha256;

use crate::Cluster;
use crate::common::files::{bytes, close, sha256, write_closed};
use crate::common::http;
use crate::common::locker::Locker;
use crate::common::mount::Mount;
use crate::common::net::Network;
use crate::common::run::{becomes, eventually};
use crate::common::servers::{Etcd, Mongod, blocking, shared_etcd};

const SOON: Duration = Duration::from_secs(10);
/// The deadline of a read, and what a busy test machine may add.
const READ: Duration = Duration::from_secs(5 + 3);

/// Keeps contents from being stored: the locks of their hashes, held by the test.
struct Held(Vec<String>);

async fn etcd() -> etcd_client::Client {
    let client = etcd_client::Client::connect([shared_etcd().uri()], None).await;
    client.unwrap()
}

impl Held {
    fn new(contents: &[&[u8]]) -> Held {
        let key = |content: &&[u8]| format!("/locks/{}", sha256(content));
        let keys: Vec<String> = contents.iter().map(key).collect();
        let to_put = keys.clone();
        blocking(async move {
            for key in to_put {
                etcd().await.put(key, "a test", None).await.unwrap();
            }
        });
        Held(keys)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let keys = std::mem::take(&mut self.0);
        blocking(async move {
            for key in keys {
                etcd().await.delete(key, None).await.unwrap();
            }
        });
    }
}

fn arrives(path: &Path, len: usize) {
    becomes(SOON, Some(len as u64), || {
        fs::metadata(path).ok().map(|m| m.len())
    });
}

fn fetches(m: &Mount) -> (u64, u64) {
    let cache = &m.health()["cache"];
    let count = |name: &str| cache[name].as_u64().unwrap();
    (count("peer_fetches"), count("fetches"))
}

fn stored(cluster: &Cluster, content: &[u8]) -> bool {
    let hash = sha256(content);
    cluster.ask(async |db| {
        let files = db.collection::<Document>("fs.files");
        let found = files.find_one(doc! { "filename": hash }).await.unwrap();
        found.is_some()
    })
}

#[test]
fn what_waits_to_be_stored_is_read_from_the_node_that_closed_it() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let contents = [bytes(11, 1), bytes(12, 5000), bytes(13, 9_000_000)];
    let held = Held::new(&contents.each_ref().map(|c| &c[..]));
    for (n, content) in contents.iter().enumerate() {
        write_closed(&a.at(format!("f{n}")), content).unwrap();
    }
    for (n, content) in contents.iter().enumerate() {
        let path = b.at(format!("f{n}"));
        arrives(&path, content.len());
        assert!(fs::read(&path).unwrap() == *content, "f{n}");
        // From the cache, with no name in the tree yet.
        assert!(fs::read(&path).unwrap() == *content, "f{n}");
        assert!(!stored(&cluster, content), "f{n}");
    }
    assert_eq!(fetches(&b), (3, 0));
    assert_eq!(a.health()["counts"]["waiting"], 3);
    // To be written to as well; what comes of it is the other node's then.
    let mut file = File::options().append(true).open(b.at("f1")).unwrap();
    file.write_all(b"more").unwrap();
    close(file).unwrap();
    let longer = [&contents[1][..], b"more"].concat();
    arrives(&a.at("f1"), longer.len());
    assert!(fs::read(a.at("f1")).unwrap() == longer);
    drop(held);
    a.wait_stored();
    b.wait_stored();
    assert!(fs::read(b.at("f2")).unwrap() == contents[2]);
    assert_eq!(fetches(&b), (3, 0), "the commit names what is here already");
    let c = cluster.node();
    assert!(fs::read(c.at("f1")).unwrap() == longer);
    assert!(fs::read(c.at("f2")).unwrap() == contents[2]);
}

/// A request as a node of the cluster makes it. `None` unless the answer is whole and vouched for.
struct Asker {
    secret: Vec<u8>,
    address: String,
    node: String,
}

impl Asker {
    fn of(cluster: &Cluster, m: &Mount) -> Asker {
        let health = m.health();
        let members = health["members"].as_array().unwrap();
        let me = members.iter().find(|m| m["node"] == health["node"]);
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let address = text(&me.unwrap()["peer"]);
        // Made when it is needed first.
        let guess = "Authorization: oncefs-peer 00\r\n";
        let refused = http::request(
            address.parse().unwrap(),
            "GET",
            "/peer/content/1/1",
            guess,
            b"",
        );
        assert_eq!(refused.code, 403);
        let secret = cluster.ask(async |db| {
            let meta = db.collection::<Document>("meta");
            meta.find_one(doc! { "_id": "peers" }).await.unwrap()
        });
        Asker {
            secret: hex::decode(secret.unwrap().get_str("secret").unwrap()).unwrap(),
            address,
            node: text(&health["node"]),
        }
    }

    fn digest(&self, fields: &[&str]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).unwrap();
        for field in fields {
            mac.update(format!("{field}\n").as_bytes());
        }
        hex::encode(mac.finalize().into_bytes())
    }

    fn authorization(&self, path: &str) -> String {
        let proof = self.digest(&["ask", &self.node, path]);
        format!("Authorization: oncefs-peer {proof}\r\n")
    }

    fn get(&self, path: &str, headers: &str) -> http::Response {
        http::request(self.address.parse().unwrap(), "GET", path, headers, b"")
    }

    /// The status and what was sent, read at leisure.
    fn fetch(&self, path: &str) -> (u16, Option<Vec<u8>>) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nTE: trailers\r\n{}\r\n",
            self.address,
            self.authorization(path)
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut part = vec![0; 700_000];
        // A connection that was cut off ends with an error or not.
        while let Ok(n @ 1..) = stream.read(&mut part) {
            answer.extend_from_slice(&part[..n]);
        }
        let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
        (status, self.vouched(path, &answer))
    }

    fn vouched(&self, path: &str, answer: &[u8]) -> Option<Vec<u8>> {
        let line = |from: usize| {
            let end = answer[from..].windows(2).position(|w| w == b"\r\n")?;
            let text = std::str::from_utf8(&answer[from..from + end]).ok()?;
            Some((text, from + end + 2))
        };
        let mut at = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let mut body = Vec::new();
        loop {
            let (size, start) = line(at)?;
            let size = usize::from_str_radix(size, 16).ok()?;
            if size == 0 {
                let (trailer, _) = line(start)?;
                let proof = trailer.strip_prefix("oncefs-proof: ")?;
                let right = self.digest(&["answer", path, &sha256(&body)]);
                return (proof == right).then_some(body);
            }
            body.extend_from_slice(answer.get(start..start + size)?);
            at = start + size + 2;
        }
    }
}

/// The path for the file that waits in the spool.
fn waiting(m: &Mount) -> Option<String> {
    let spooled = m.spooled();
    let name = spooled.first()?.file_name()?.to_str()?.to_owned();
    let (ino, generation) = name.split_once('.')?;
    Some(format!("/peer/content/{ino}/{generation}"))
}

/// The same, once it is closed.
fn becomes_waiting(m: &Mount) -> String {
    eventually(SOON, "a closed file", || {
        let waits = m.health()["counts"]["waiting"] == 1;
        waits.then(|| waiting(m)).flatten()
    })
}

#[test]
fn nobody_but_a_node_of_the_cluster_is_served() {
    let cluster = Cluster::shared();
    let (a, other) = (cluster.node(), cluster.node());
    // By a process that makes no other: each that ends would close the file along with it.
    write_closed(&a.at("open"), b"").unwrap();
    a.wait_stored();
    let mut writer = Locker::start("flock", &a.at("open"));
    assert_eq!(writer.try_whole("write"), "ok");
    let path = waiting(&a).unwrap();
    let asker = Asker::of(&cluster, &a);
    assert_eq!(asker.fetch(&path).0, 404);
    // Known to the namespace from now on.
    assert_eq!(writer.try_whole("sync"), "ok");
    assert_eq!(asker.fetch(&path), (200, Some(b"written".to_vec())));
    drop(writer);
    a.wait_stored();
    a.wait_spool_empty();

    let content = bytes(21, 700_000);
    let _held = Held::new(&[&content]);
    write_closed(&a.at("f"), &content).unwrap();
    let path = becomes_waiting(&a);
    becomes(SOON, (200, Some(content.clone())), || asker.fetch(&path));
    assert_eq!(asker.fetch(&format!("{path}9")).0, 404);
    assert_eq!(asker.fetch("/peer/content/99999/1").0, 404);

    let right = asker.authorization(&path);
    let token = format!("X-Host-Token: {}\r\n", a.token());
    let bearer = format!("Authorization: Bearer {}\r\n", hex::encode(&asker.secret));
    let wrong = right.replace("oncefs-peer ", "oncefs-peer 00");
    let next = asker.authorization(&format!("{path}0"));
    for headers in ["", &token, &bearer, &wrong, &next] {
        let refused = asker.get(&path, headers);
        assert_eq!(refused.code, 403, "{headers}: {refused:?}");
        assert!(refused.body.len() < 200);
    }
    // For another node, and with another cluster's secret.
    let of_other = Asker::of(&cluster, &other);
    assert_eq!(asker.get(&path, &of_other.authorization(&path)).code, 403);
    let foreign = Cluster::shared();
    let stranger = Asker {
        secret: Asker::of(&foreign, &foreign.node()).secret,
        address: asker.address.clone(),
        node: asker.node.clone(),
    };
    assert_eq!(stranger.fetch(&path), (403, None));
    // Nothing else is at that door, and this is at no other.
    for elsewhere in ["/health", "/files", "/metrics", "/"] {
        let headers = asker.authorization(elsewhere) + &token;
        assert_eq!(asker.get(elsewhere, &headers).code, 403, "{elsewhere}");
    }
    assert_eq!(http::get(a.api(), &path).code, 403);
    let both = right + &token;
    let at_api = http::request(a.api(), "GET", &path, &both, b"");
    assert_eq!(at_api.code, 403);
}

fn read_fails(path: &Path) {
    let begin = Instant::now();
    let failed = fs::read(path).map(|got| got.len());
    let failed = failed.expect_err("nobody can have sent it");
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    let took = begin.elapsed();
    assert!(took < READ, "it took {took:?}");
}

#[test]
fn a_node_that_does_not_answer_is_an_error_in_time() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let (content, second) = (bytes(31, 300_000), bytes(32, 300_000));
    let held = Held::new(&[&content, &second]);
    write_closed(&a.at("f"), &content).unwrap();
    write_closed(&a.at("g"), &second).unwrap();
    write_closed(&a.at("h"), &second).unwrap();
    arrives(&b.at("h"), second.len());
    a.signal(Signal::SIGSTOP);
    // However many wait, and also those who want to write.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| read_fails(&b.at("f")));
            scope.spawn(|| {
                let begin = Instant::now();
                let mut file = File::options().append(true).open(b.at("g")).unwrap();
                let failed = file.write_all(b"more").unwrap_err();
                assert_eq!(failed.raw_os_error(), Some(libc::EIO));
                assert!(begin.elapsed() < READ, "it took {:?}", begin.elapsed());
            });
        }
    });
    a.signal(Signal::SIGCONT);
    becomes(SOON, true, || {
        fs::read(b.at("f")).is_ok_and(|f| f == content)
    });
    a.kill9();
    read_fails(&b.at("h"));
    a.remount();
    becomes(SOON, true, || {
        fs::read(b.at("h")).is_ok_and(|f| f == second)
    });
    drop(held);
    a.wait_stored();
    assert!(fs::read(b.at("f")).unwrap() == content);
}

/// Waits until a thread waits in one of these system calls.
fn is_in(thread: u32, calls: &[libc::c_long]) {
    let place = format!("/proc/{thread}/syscall");
    let mut last = String::new();
    becomes(SOON, (true, String::new()), || {
        last = fs::read_to_string(&place).unwrap_or_default();
        let call = last.split(' ').next().and_then(|c| c.parse().ok());
        match call.is_some_and(|call| calls.contains(&call)) {
            true => (true, String::new()),
            false => (false, last.clone()),
        }
    });
}

#[test]
fn cached_content_comes_from_its_node_while_mongodb_does_not_answer() {
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod);
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(51, 2_000_000);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    arrives(&b.at("f"), content.len());
    mongod.freeze();
    let begin = Instant::now();
    assert!(fs::read(b.at("f")).unwrap() == content);
    let took = begin.elapsed();
    assert!(took < READ, "it took {took:?}");
    assert_eq!(fetches(&b), (1, 0));
    mongod.thaw();
}

/// Who was told that it does not come is not told so again when it came in the meantime.
#[test]
fn regression_what_came_after_all_is_read_at_once() {
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod).without_peers();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(52, 300_000);
    for name in ["f", "same"] {
        write_closed(&a.at(name), &content).unwrap();
    }
    a.wait_stored();
    arrives(&b.at("same"), content.len());
    mongod.freeze();
    let mut open = File::open(b.at("f")).unwrap();
    read_fails(&b.at("f"));
    mongod.thaw();
    assert!(fs::read(b.at("same")).unwrap() == content);
    let mut came = Vec::new();
    open.read_to_end(&mut came).unwrap();
    assert!(came == content);
}

/// The deadline is for waiting, not for the whole of a long fetch.
#[test]
fn a_slow_fetch_that_moves_is_waited_for() {
    let network = Network::new();
    let [m, e, a, b] = [(); 4].map(|()| network.machine());
    let (etcd, mongod) = (Etcd::start_at(&e), Mongod::start_at(&m));
    let cluster = Cluster::of(&etcd, &mongod).without_peers();
    let (a, b) = (cluster.node_on(&a), cluster.node_on(&b));
    let content = bytes(61, 1_000_000);
    write_closed(&a.at("f"), &content).unwrap();
    a.wait_stored();
    arrives(&b.at("f"), content.len());
    m.slow();
    let begin = Instant::now();
    assert!(fs::read(b.at("f")).unwrap() == content);
    assert!(begin.elapsed() > Duration::from_secs(5), "not slow");
    m.heal();
}

/// A program, ended by SIGKILL if the test ends before it.
struct Program(Child);

impl Program {
    fn start(script: &str, path: &Path) -> Program {
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg("sh").arg(path);
        command.stdout(Stdio::null()).process_group(0);
        Program(command.spawn().unwrap())
    }

    /// Waits until it is in read(2) or write(2).
    fn waits(&self) {
        is_in(self.0.id(), &[libc::SYS_read, libc::SYS_write]);
    }

    fn ends_by(&mut self, signal: Signal) -> Duration {
        let begin = Instant::now();
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        eventually(SOON, "the end of a program", || self.0.try_wait().unwrap());
        begin.elapsed()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_signal_ends_the_waiting() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(41, 300_000);
    let _held = Held::new(&[&content]);
    write_closed(&a.at("f"), &content).unwrap();
    arrives(&b.at("f"), content.len());
    a.signal(Signal::SIGSTOP);
    let prompt = Duration::from_millis(2500);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // The last of them waits for the one before, who holds the file while it waits for the other node.
        let scripts = [
            "exec cat \"$1\"",
            "exec >>\"$1\"; echo x",
            "exec >>\"$1\"; echo x",
        ];
        for script in scripts {
            let mut program = Program::start(script, &b.at("f"));
            program.waits();
            let took = program.ends_by(signal);
            assert!(took < prompt, "{signal} {script}: {took:?}");
        }
    }
    // One that goes on living gets EINTR. SIGUSR1 has no handler in this process but this one.
    extern "C" fn heard(_: libc::c_int) {}
    // SAFETY: the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = heard as extern "C" fn(libc::c_int) as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
            0
        );
    }
    let path = b.at("f");
    let (tell, told) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .unwrap();
        tell.send(nix::unistd::gettid()).unwrap();
        let mut buffer = [0; 4096];
        let begin = Instant::now();
        (file.read_at(&mut buffer, 0), begin.elapsed())
    });
    let thread = told.recv().unwrap();
    is_in(thread.as_raw() as u32, &[libc::SYS_pread64]);
    // SAFETY: the thread is there until it is joined.
    unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGUSR1) };
    let (read, took) = reader.join().unwrap();
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Interrupted);
    assert!(took < Duration::from_secs(4), "{took:?}");
    a.signal(Signal::SIGCONT);
    becomes(SOON, true, || {
        fs::read(b.at("f")).is_ok_and(|f| f == content)
    });
}

/// One node rewrites a file in every way, the other reads it and is never given a mix.
#[test]
fn a_file_that_is_rewritten_all_the_time_is_never_mixed() {
    const PAGE: usize = 4096;
    const LONG: usize = 6 << 20;
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let marks = 1..=8u8;
    let version = |mark: u8, len: usize| vec![mark; len];
    let all: Vec<Vec<u8>> = marks
        .clone()
        .flat_map(|m| [version(m, PAGE), version(m, LONG)])
        .collect();
    let refs: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let held = Held::new(&refs);
    write_closed(&a.at("page"), &version(1, PAGE)).unwrap();
    arrives(&b.at("page"), PAGE);
    let uniform = |what: &str, got: &[u8], len: usize| {
        assert_eq!(got.len(), len, "{what}");
        assert!(
            got.iter().all(|byte| *byte == got[0] && *byte != 0),
            "{what}"
        );
        got[0]
    };
    let done = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(6);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| {
            // Truncated, and by renaming.
            for mark in marks.clone().cycle() {
                write_closed(&a.at("page"), &version(mark, PAGE)).unwrap();
                write_closed(&a.at("new"), &version(mark, PAGE)).unwrap();
                fs::rename(a.at("new"), a.at("renamed")).unwrap();
                if Instant::now() > end {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            let (mut seen, mut changes, mut stale, mut last) = (0, 0, 0, 0);
            while !done.load(Ordering::Relaxed) {
                for name in ["page", "renamed"] {
                    let got = match fs::read(b.at(name)) {
                        Ok(got) => got,
                        Err(e) if name == "renamed" && e.kind() == ErrorKind::NotFound => continue,
                        // The version that was opened was removed before anybody had it.
                        Err(e) if name == "renamed" && e.raw_os_error() == Some(libc::ESTALE) => {
                            stale += 1;
                            continue;
                        }
                        Err(e) => panic!("{name}: {e}"),
                    };
                    // Made, and not closed yet.
                    if name == "renamed" && got.is_empty() {
                        continue;
                    }
                    let mark = uniform(name, &got, PAGE);
                    changes += u32::from(mark != last);
                    last = mark;
                    seen += 1;
                }
            }
            println!("{seen} reads, {changes} versions, {stale} stale");
            assert!(changes > 3, "{seen} reads, {changes} versions");
        });
        stop.join().unwrap();
    });
    let (peer_fetches, _) = fetches(&b);
    assert!(peer_fetches > 3, "{peer_fetches}");
    fs::remove_file(a.at("page")).unwrap();
    fs::remove_file(a.at("renamed")).unwrap();
    a.wait_spool_empty();

    // Over and over the same spool file: a transfer that a writer came into is not given as whole.
    write_closed(&a.at("long"), &version(1, LONG)).unwrap();
    let asker = Asker::of(&cluster, &a);
    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for mark in marks.clone().cycle() {
                let mut file = File::options()
                    .read(true)
                    .write(true)
                    .open(a.at("long"))
                    .unwrap();
                file.rewind().unwrap();
                file.write_all(&version(mark, LONG)).unwrap();
                close(file).unwrap();
                if Instant::now() > end {
                    break;
                }
                std::thread::sleep(Duration::from_millis(u64::from(mark) * 5));
            }
        });
        let (mut whole, mut torn) = (0, 0);
        while Instant::now() < end {
            let Some(path) = waiting(&a) else { continue };
            match asker.fetch(&path) {
                (200, Some(got)) => {
                    uniform("a transfer", &got, LONG);
                    whole += 1;
                }
                (200, None) => torn += 1,
                (404, _) => {}
                other => panic!("{}", other.0),
            }
        }
        println!("{whole} transfers, {torn} broken off");
        assert!(whole > 0 && torn > 0, "{whole} whole, {torn} broken off");
    });
    drop(held);
    a.wait_stored();
    let content = fs::read(a.at("long")).unwrap();
    becomes(SOON, true, || {
        fs::read(b.at("long")).is_ok_and(|f| f == content)
    });
    assert_eq!(fs::metadata(b.at("long")).unwrap().size(), LONG as u64);
}

/// The kernel writes to the file by itself, or through the daemon.
const WAYS: [&[&str]; 2] = [&[], &["--no-passthrough"]];

/// What was synced is known to all, so they can read it before its writer closes it.
#[test]
fn what_was_synced_and_is_still_open_is_read_elsewhere() {
    let cluster = Cluster::shared();
    let b = cluster.node();
    for (n, way) in WAYS.into_iter().enumerate() {
        let a = cluster.node_with(way);
        let path = b.at(format!("f{n}"));
        let mut content = bytes(71, 300_000);
        let mut file = File::create(a.at(format!("f{n}"))).unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        arrives(&path, content.len());
        assert!(fs::read(&path).unwrap() == content, "{way:?}");
        // Synced again, in the middle and longer.
        content[1000..200_000].fill(7);
        content.extend(bytes(72, 100_000));
        file.rewind().unwrap();
        file.write_all(&content).unwrap();
        file.sync_data().unwrap();
        becomes(SOON, true, || fs::read(&path).is_ok_and(|f| f == content));
        // Synced, and written to since: whoever comes for it gets what there is when nobody writes.
        content.fill(8);
        file.rewind().unwrap();
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        content.fill(9);
        file.rewind().unwrap();
        file.write_all(&content).unwrap();
        becomes(SOON, true, || fs::read(&path).is_ok_and(|f| f == content));
        close(file).unwrap();
        a.wait_stored();
        assert!(fs::read(&path).unwrap() == content, "{way:?}");
        // Of a large one nobody makes copies.
        let large = vec![1; 9 << 20];
        let mut file = File::create(a.at("large")).unwrap();
        file.write_all(&large).unwrap();
        file.sync_all().unwrap();
        arrives(&b.at("large"), large.len());
        read_fails(&b.at("large"));
        close(file).unwrap();
        becomes(SOON, true, || {
            fs::read(b.at("large")).is_ok_and(|f| f == large)
        });
        fs::remove_file(a.at("large")).unwrap();
        becomes(SOON, false, || b.at("large").exists());
    }
}

/// Reads all of it by one request: the kernel's pages are read one by one, and another version may come in between.
fn at_once(path: &Path, len: usize) -> std::io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut got = vec![0; len + 1];
    let n = file.read_at(&mut got, 0)?;
    got.truncate(n);
    Ok(got)
}

/// A program that syncs and writes on all the time: whatever is read is one of its versions.
#[test]
fn what_is_synced_and_written_on_is_never_mixed() {
    const LEN: usize = 200_000;
    let cluster = Cluster::shared();
    let b = cluster.node();
    for (n, way) in WAYS.into_iter().enumerate() {
        let a = cluster.node_with(way);
        let path = b.at(format!("f{n}"));
        let file = File::create(a.at(format!("f{n}"))).unwrap();
        file.write_all_at(&[1; LEN], 0).unwrap();
        file.sync_all().unwrap();
        arrives(&path, LEN);
        let end = Instant::now() + Duration::from_secs(6);
        let last = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for mark in (2..=9u8).cycle() {
                    // Not at once, so that there is a middle.
                    for part in 0..4 {
                        let at = part * LEN / 4;
                        file.write_all_at(&vec![mark; LEN / 4], at as u64).unwrap();
                    }
                    file.sync_data().unwrap();
                    if Instant::now() > end {
                        return mark;
                    }
                    std::thread::sleep(Duration::from_millis(u64::from(mark) * 25));
                }
                unreachable!()
            });
            let (mut whole, mut late, mut seen) = (0, 0, 0);
            while Instant::now() < end {
                match at_once(&path, LEN) {
                    Ok(got) => {
                        assert_eq!(got.len(), LEN, "{way:?}");
                        assert!(got.iter().all(|byte| *byte == got[0]), "{way:?}");
                        whole += 1;
                        seen |= 1 << got[0];
                    }
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{way:?}");
                        late += 1;
                    }
                }
            }
            println!("{way:?}: {whole} reads, {late} late, versions {seen:b}");
            assert!(i32::count_ones(seen) > 2, "{way:?}: {whole} reads");
            writer.join().unwrap()
        });
        becomes(SOON, true, || {
            fs::read(&path).is_ok_and(|f| f == [last; LEN])
        });
        close(file).unwrap();
        a.wait_stored();
        assert!(fs::read(&path).unwrap() == [last; LEN], "{way:?}");
    }
}

/// Nobody had fetched a version yet, and whoever has it open reads it although it is removed, replaced or written over.
#[test]
fn what_goes_before_it_is_fetched_is_read_by_those_who_opened_it() {
    let cluster = Cluster::shared();
    let b = cluster.node();
    for (n, way) in WAYS.into_iter().enumerate() {
        let a = cluster.node_with(way);
        let dir = format!("d{n}");
        fs::create_dir(a.at(&dir)).unwrap();
        let (old, new) = (bytes(81, 300_000), bytes(82, 300_000));
        let held = Held::new(&[&old, &new]);
        let names = ["removed", "replaced", "truncated", "written over"];
        for name in names {
            write_closed(&a.at(&dir).join(name), &old).unwrap();
        }
        let paths = names.map(|name| b.at(&dir).join(name));
        for path in &paths {
            arrives(path, old.len());
        }
        // It cannot have them when they go, and asks for them later.
        a.signal(Signal::SIGSTOP);
        let mut open = paths.each_ref().map(|path| File::open(path).unwrap());
        std::thread::sleep(Duration::from_millis(2500));
        a.signal(Signal::SIGCONT);
        let here = |name: &str| a.at(&dir).join(name);
        fs::remove_file(here("removed")).unwrap();
        write_closed(&here("new"), &new).unwrap();
        fs::rename(here("new"), here("replaced")).unwrap();
        // By a process that makes no other: each that ends would close the file along with it.
        let mut writers = ["truncated", "written over"].map(|n| Locker::start("flock", &here(n)));
        assert_eq!(writers[0].try_whole("truncate"), "ok", "{way:?}");
        for writer in &mut writers {
            assert_eq!(writer.try_range("write", 1000, 0), "ok", "{way:?}");
        }
        for (name, file) in names.iter().zip(&mut open) {
            let mut got = Vec::new();
            file.read_to_end(&mut got).unwrap();
            assert!(got == old, "{way:?}: {name}");
        }
        drop(writers);
        let mut over = old.clone();
        over[1000..1007].copy_from_slice(b"written");
        let short = [&[0; 1000][..], b"written"].concat();
        for (name, content) in [
            ("replaced", &new),
            ("truncated", &short),
            ("written over", &over),
        ] {
            becomes(SOON, true, || {
                fs::read(b.at(&dir).join(name)).is_ok_and(|f| f == *content)
            });
        }
        drop(held);
        a.wait_stored();
    }
}

/// What went is kept for a few seconds, and what a reader opened comes at once.
#[test]
fn what_went_is_kept_for_a_moment_and_fetched_when_it_is_opened() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let content = bytes(91, 300_000);
    let _held = Held::new(&[&content]);
    write_closed(&a.at("f"), &content).unwrap();
    let path = becomes_waiting(&a);
    let asker = Asker::of(&cluster, &a);
    arrives(&b.at("f"), content.len());
    let mut open = File::open(b.at("f")).unwrap();
    becomes(SOON, (1, 0), || fetches(&b));
    fs::remove_file(a.at("f")).unwrap();
    assert_eq!(asker.fetch(&path), (200, Some(content.clone())));
    becomes(SOON * 3, 404, || asker.fetch(&path).0);
    let mut got = Vec::new();
    open.read_to_end(&mut got).unwrap();
    assert!(got == content);
    assert_eq!(fetches(&b), (1, 0));
}
