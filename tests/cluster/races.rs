//! Several machines that want the same thing at the same time.

use std::fs::{self, File};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::common::files::{bytes, write_closed};
use crate::common::mount::Mount;
use crate::common::run::{becomes, counted};

const NODES: usize = 4;
const RACERS: usize = 8;
const SOON: Duration = Duration::from_secs(10);

/// Eight racers on four machines, each name made by exactly one of them, whichever way it is made.
#[test]
fn a_name_has_one_winner() {
    let names = std::env::var("ONCEFS_RACE_NAMES").map_or(200, |n| n.parse().unwrap());
    let cluster = Cluster::shared();
    let nodes: Vec<Mount> = (0..NODES).map(|_| cluster.node()).collect();
    for dir in ["file", "dir", "link", "rename"] {
        fs::create_dir(nodes[0].at(dir)).unwrap();
    }
    for racer in 0..RACERS {
        for name in 0..names {
            write_closed(&nodes[0].at(format!("of-{racer}-{name}")), b"").unwrap();
        }
    }
    for node in &nodes {
        let last = format!("of-{}-{}", RACERS - 1, names - 1);
        becomes(SOON, true, || node.at(&last).exists());
    }
    let start = Barrier::new(RACERS);
    let wins: Vec<[Vec<usize>; 4]> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|racer| {
                let (node, start) = (&nodes[racer % NODES], &start);
                scope.spawn(move || {
                    start.wait();
                    let mut won: [Vec<usize>; 4] = Default::default();
                    for name in 0..names {
                        let at = |dir: &str| node.at(format!("{dir}/{name}"));
                        let own = node.at(format!("of-{racer}-{name}"));
                        let won_by = [
                            File::create_new(at("file")).is_ok(),
                            fs::create_dir(at("dir")).is_ok(),
                            fs::hard_link(&own, at("link")).is_ok(),
                            rustix::fs::renameat_with(
                                rustix::fs::CWD,
                                &own,
                                rustix::fs::CWD,
                                at("rename"),
                                rustix::fs::RenameFlags::NOREPLACE,
                            )
                            .is_ok(),
                        ];
                        for (way, won_it) in won_by.into_iter().enumerate() {
                            if won_it {
                                won[way].push(name);
                            }
                        }
                    }
                    won
                })
            })
            .collect();
        racers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    counted(4 * names, "names raced for by eight on four machines");
    for way in 0..4 {
        let mut winners: Vec<usize> = wins.iter().flat_map(|w| w[way].clone()).collect();
        winners.sort();
        let each_once: Vec<usize> = (0..names).collect();
        assert_eq!(winners, each_once, "way {way}");
        let nodes_that_won = (0..NODES).filter(|n| {
            wins.iter()
                .enumerate()
                .any(|(racer, w)| racer % NODES == *n && !w[way].is_empty())
        });
        assert!(nodes_that_won.count() > 1, "nobody raced");
    }
}

/// A strict mount sees at once what another machine was told is done.
#[test]
fn strict_sees_what_was_acknowledged() {
    let cluster = Cluster::shared();
    let (a, b) = (
        cluster.node(),
        cluster.node_with(&["--consistency", "strict"]),
    );
    for n in 0..200u64 {
        let (name, content) = (format!("f{}", n % 5), bytes(n, 1000 + n as usize));
        // A negative name, a listing and attributes that the kernel could remember.
        let _ = fs::metadata(b.at(format!("new{n}")));
        write_closed(&a.at(&name), &content).unwrap();
        assert!(
            fs::read(b.at(&name)).unwrap() == content,
            "{name}, round {n}"
        );
        fs::create_dir(a.at(format!("new{n}"))).unwrap();
        assert!(fs::metadata(b.at(format!("new{n}"))).unwrap().is_dir());
        let listed = fs::read_dir(b.path()).unwrap().count();
        assert_eq!(listed, fs::read_dir(a.path()).unwrap().count(), "round {n}");
    }
}

/// How long a change takes to another machine's `stat`, kernel caches included. Measured and printed.
#[test]
fn changes_arrive() {
    let cluster = Cluster::shared();
    let (a, b) = (cluster.node(), cluster.node());
    let mut took: Vec<Duration> = (0..300)
        .map(|n| {
            let name = format!("f{n}");
            // The kernel there knows that it is not there.
            assert!(!b.at(&name).exists());
            File::create_new(a.at(&name)).unwrap();
            let begin = Instant::now();
            while !b.at(&name).exists() {
                assert!(begin.elapsed() < SOON, "{name} does not arrive");
                std::thread::sleep(Duration::from_micros(200));
            }
            begin.elapsed()
        })
        .collect();
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "propagation of a create to another node's stat: median {:.1} ms, p99 {:.1} ms, worst {:.1} ms",
        at(50),
        at(99),
        at(100)
    );
}
