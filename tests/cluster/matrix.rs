//! Every part that can fail, in every way that it can: two nodes, an etcd and a mongod, each on a machine of its own, and
//! one fault at a time. `ONCEFS_MATRIX=all` tries every cell, else those that differ most; each prints a line.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::files::{bytes, write_closed};
use crate::common::mount::{Mount, Place};
use crate::common::net::{Machine, Network};
use crate::common::run::counted;
use crate::common::servers::{Etcd, Mongod};
use crate::load::Row;

/// No read of cached content takes longer, whatever is down.
const READ_DEADLINE: Duration = Duration::from_secs(5);
/// The first change after a fault may find out about it; the deadline of one call to a server that hangs is in it.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// Until health says what is down.
const NOTICED: Duration = Duration::from_secs(20);
/// From healing until nothing waits any more.
const DRAINED: Duration = Duration::from_secs(10);
/// A server that was killed needs some time of its own to be there again.
const SERVER_BACK: Duration = Duration::from_secs(30);
/// How long a fault lasts at the least.
const LASTS: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Etcd,
    Mongo,
    Both,
    Peer,
    OwnNetwork,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Stopped,
    Frozen,
    Dropped,
    OneWay,
    Reset,
    Slow,
    Restarted,
    Flapping,
}

const PARTS: [Part; 5] = [
    Part::Etcd,
    Part::Mongo,
    Part::Both,
    Part::Peer,
    Part::OwnNetwork,
];
const FAULTS: [Fault; 8] = [
    Fault::Stopped,
    Fault::Frozen,
    Fault::Dropped,
    Fault::OneWay,
    Fault::Reset,
    Fault::Slow,
    Fault::Restarted,
    Fault::Flapping,
];

struct Bed {
    etcd: (Etcd, Machine),
    mongod: (Mongod, Machine),
    /// The node that is looked at, and its peer.
    a: (Mount, Machine),
    b: (Mount, Machine),
    _network: Network,
}

impl Bed {
    fn new() -> Bed {
        let network = Network::new();
        let [m, e, a, b] = [(); 4].map(|()| network.machine());
        let (etcd, mongod) = (Etcd::start_at(&e), Mongod::start_at(&m));
        let (mongodb, endpoint) = (mongod.uri(), etcd.uri());
        let options = [
            "--mongodb",
            &mongodb,
            "--etcd",
            &endpoint,
            "--lock-ttl",
            "5",
        ];
        let node =
            |machine: &Machine| Mount::start_on(Some(machine.clone()), Place::new(), &options);
        Bed {
            a: (node(&a), a),
            b: (node(&b), b),
            etcd: (etcd, e),
            mongod: (mongod, m),
            _network: network,
        }
    }

    fn begin(&self, part: Part, fault: Fault) {
        match fault {
            Fault::Stopped | Fault::Restarted => match part {
                Part::Etcd => self.etcd.0.kill(),
                Part::Mongo => self.mongod.0.kill(),
                Part::Both => {
                    self.etcd.0.kill();
                    self.mongod.0.kill();
                }
                Part::Peer => self.b.0.kill9(),
                Part::OwnNetwork => {}
            },
            Fault::Frozen => match part {
                Part::Etcd => self.etcd.0.freeze(),
                Part::Mongo => self.mongod.0.freeze(),
                Part::Both => {
                    self.etcd.0.freeze();
                    self.mongod.0.freeze();
                }
                Part::Peer => self.b.0.signal(Signal::SIGSTOP),
                Part::OwnNetwork => {}
            },
            Fault::Dropped | Fault::Flapping => self.machines(part).for_each(Machine::cut),
            Fault::OneWay => self.machines(part).for_each(Machine::mute),
            Fault::Reset => self.machines(part).for_each(Machine::reset),
            Fault::Slow => self.machines(part).for_each(Machine::slow),
        }
        if fault == Fault::Restarted {
            self.end(part, fault);
        }
    }

    fn end(&self, part: Part, fault: Fault) {
        let (etcd, mongo) = (
            matches!(part, Part::Etcd | Part::Both),
            matches!(part, Part::Mongo | Part::Both),
        );
        match fault {
            Fault::Stopped | Fault::Restarted => {
                if etcd {
                    self.etcd.0.restart();
                }
                if mongo {
                    self.mongod.0.restart();
                }
                if part == Part::Peer {
                    self.b.0.remount();
                }
            }
            Fault::Frozen => {
                if etcd {
                    self.etcd.0.thaw();
                }
                if mongo {
                    self.mongod.0.thaw();
                }
                if part == Part::Peer {
                    self.b.0.signal(Signal::SIGCONT);
                }
            }
            Fault::Dropped | Fault::Flapping | Fault::OneWay | Fault::Reset | Fault::Slow => {
                self.machines(part).for_each(Machine::heal);
            }
        }
    }

    fn machines(&self, part: Part) -> impl Iterator<Item = &Machine> {
        let (one, other) = match part {
            Part::Etcd => (&self.etcd.1, None),
            Part::Mongo => (&self.mongod.1, None),
            Part::Both => (&self.etcd.1, Some(&self.mongod.1)),
            Part::Peer => (&self.b.1, None),
            Part::OwnNetwork => (&self.a.1, None),
        };
        std::iter::once(one).chain(other)
    }

    /// Whether the looked-at node must say that this server is down.
    fn is_down(part: Part, fault: Fault, server: &str) -> bool {
        let hit = match part {
            Part::Etcd => server == "etcd",
            Part::Mongo => server == "mongo",
            Part::Both | Part::OwnNetwork => true,
            Part::Peer => false,
        };
        hit && !matches!(fault, Fault::Slow | Fault::Restarted | Fault::Flapping)
    }
}

fn timed<T>(deadline: Duration, what: &str, f: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let done = f();
    let took = begin.elapsed();
    assert!(took < deadline, "{what} took {took:?}");
    (done, took)
}

fn until(deadline: Duration, what: &str, mut met: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !met() {
        assert!(
            begin.elapsed() < deadline,
            "{what}: not within {deadline:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    begin.elapsed()
}

/// One fault: what goes on, what is said, and how it ends. The line of the table.
fn cell(bed: &Bed, part: Part, fault: Fault) -> Row {
    let name = format!("{part:?}-{fault:?}");
    let (a, b) = (&bed.a.0, &bed.b.0);
    let cached = bytes(7, 150_000);
    let before = a.at(format!("{name}-before"));
    write_closed(&before, &cached).unwrap();
    a.wait_stored();
    assert!(fs::read(&before).unwrap() == cached);

    let began = Instant::now();
    bed.begin(part, fault);
    let read = || {
        let read = || fs::read(&before).unwrap();
        let (read, took) = timed(READ_DEADLINE, "a read of cached content", read);
        assert!(read == cached);
        took
    };
    let mut slowest_read = read();
    timed(READ_DEADLINE, "a listing", || {
        fs::read_dir(a.path()).unwrap().count()
    });
    let mut written = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 0..5u64 {
        let (file, content) = (format!("{name}-{n}"), bytes(100 + n, 20_000));
        let write = || write_closed(&a.at(&file), &content).unwrap();
        let ((), took) = timed(WRITE_DEADLINE, "a write", write);
        longest = longest.max(took);
        slowest_read = slowest_read.max(read());
        assert!(fs::read(a.at(&file)).unwrap() == content);
        written.push((file, content));
        if fault == Fault::Flapping {
            std::thread::sleep(Duration::from_secs(1));
            match n % 2 {
                0 => bed.end(part, fault),
                _ => bed.begin(part, fault),
            }
        }
    }
    let mut said = Vec::new();
    for server in ["etcd", "mongo"] {
        if Bed::is_down(part, fault, server) {
            until(NOTICED, "health says that it is down", || {
                a.health()[server] == false
            });
            said.push(server);
        }
    }
    std::thread::sleep(LASTS.saturating_sub(began.elapsed()));

    if fault != Fault::Restarted {
        bed.end(part, fault);
    }
    for server in ["etcd", "mongo"] {
        until(SERVER_BACK, "health says that it is back", || {
            a.health()[server] == true
        });
    }
    let drained = until(DRAINED, "everything is stored", || {
        let (health, other) = (a.health(), b.health());
        [&health, &other]
            .iter()
            .all(|h| h["waiting_changes"] == 0 && h["counts"]["waiting"] == 0)
    });
    for m in [a, b] {
        for (file, content) in &written {
            until(DRAINED, "the file is there", || {
                fs::read(m.at(file)).is_ok_and(|f| f == *content)
            });
        }
    }
    let conflicts = fs::read_dir(a.path()).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains(".conflict-")
    });
    assert_eq!(conflicts.count(), 0, "nobody else wrote these names");
    Row {
        cell: format!("{part:?} {fault:?}"),
        read: Some(slowest_read),
        write: longest,
        said: match said.is_empty() {
            true => "-".into(),
            false => said.join("+"),
        },
        drained,
        files: written.len(),
    }
}

fn makes_sense(part: Part, fault: Fault) -> bool {
    // A network cannot be stopped or frozen.
    part != Part::OwnNetwork || !matches!(fault, Fault::Stopped | Fault::Frozen | Fault::Restarted)
}

#[test]
fn every_part_fails_in_every_way() {
    let all = std::env::var("ONCEFS_MATRIX").is_ok_and(|v| v == "all");
    let few = [
        (Part::Mongo, Fault::Stopped),
        (Part::Both, Fault::Frozen),
        (Part::OwnNetwork, Fault::Dropped),
        (Part::Mongo, Fault::OneWay),
        (Part::Etcd, Fault::Reset),
        (Part::OwnNetwork, Fault::Flapping),
        (Part::Peer, Fault::Stopped),
    ];
    let bed = Bed::new();
    for part in PARTS {
        for fault in FAULTS {
            if makes_sense(part, fault) && (all || few.contains(&(part, fault))) {
                eprintln!("matrix {part:?} {fault:?} begins");
                cell(&bed, part, fault).print();
                counted(1, "outages of the matrix");
            }
        }
    }
}
