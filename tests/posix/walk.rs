//! A random walk over a few names by several users, on ext4 and on a mount, compared after every step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use libc::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::calls::Op::*;
use crate::calls::{
    Caller, MEMBER, NOW, OMIT, OWNER, Op, Outcome, ROOT, STRANGER, Snapshot, Stamp, become_user,
    enter, look, on_own_thread, prepare, wait_for_later_times, worded,
};
use crate::cases::{KINDS, make};
use crate::common::files::seed;
use crate::native::{Native, open_to_all};

const STEPS: usize = 1500;
/// Steps that are shown before one that differs.
const SHOWN: usize = 25;

fn path(rng: &mut StdRng) -> String {
    let depth = *[1, 1, 1, 2, 2, 3].choose(rng).unwrap();
    let names: Vec<&str> = (0..depth)
        .map(|_| *["a", "b", "c"].choose(rng).unwrap())
        .collect();
    names.join("/")
}

fn stamp(rng: &mut StdRng) -> Stamp {
    *[NOW, OMIT, (-7, 9), (1, 2), (5_000_000_000, 3)]
        .choose(rng)
        .unwrap()
}

fn mode(rng: &mut StdRng) -> u32 {
    *[0o777, 0o755, 0o700, 0o644, 0o1777, 0o2775, 0o6755, 0o070]
        .choose(rng)
        .unwrap()
}

/// Not both unchanged: `unsupported.rs::a_chown_of_nothing_can_pass_for_a_write`.
fn owners(rng: &mut StdRng) -> (i64, i64) {
    let user = [-1, 0, 10_001, 10_002, 10_003].choose(rng).unwrap();
    let group = [-1, 0, 20_001, 20_002, 20_003].choose(rng).unwrap();
    match (*user, *group) {
        (-1, -1) => owners(rng),
        both => both,
    }
}

fn step(rng: &mut StdRng) -> Op {
    let p = path(rng);
    match rng.random_range(0..32) {
        0 | 1 => make(*KINDS.choose(rng).unwrap(), &p, mode(rng)),
        2 => Mkdir(p, mode(rng)),
        3 => Open(p, O_CREAT | O_RDWR | O_NONBLOCK, mode(rng)),
        4 => Hold(p, O_RDWR | O_NONBLOCK, 0),
        5 => Hold(p, O_CREAT | O_RDWR | O_TRUNC | O_NONBLOCK, mode(rng)),
        6 => Hold(p, O_RDONLY | O_NONBLOCK, 0),
        7 => Close,
        8 | 9 => FWrite("some words"),
        10 => FTruncate(rng.random_range(0..40)),
        11 => FChmod(mode(rng)),
        12 => FStat,
        13 => FRead,
        14 => Symlink(path(rng), p),
        15 | 16 => Link(path(rng), p),
        17 => Unlink(p),
        18 => Rmdir(p),
        19..=21 => {
            let flags = *[0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]
                .choose(rng)
                .unwrap();
            Rename(path(rng), p, flags)
        }
        22 => Chmod(p, mode(rng)),
        23 => {
            let (user, group) = owners(rng);
            Chown(p, user, group)
        }
        24 => {
            let (user, group) = owners(rng);
            Lchown(p, user, group)
        }
        25 => Truncate(p, rng.random_range(0..40)),
        26 => {
            let (a, m) = (stamp(rng), stamp(rng));
            Utimens(p, a, m, rng.random_bool(0.5))
        }
        27 => FUtimens(stamp(rng), stamp(rng)),
        28 => Stat(p),
        29 => Access(p, *[R_OK, W_OK, X_OK].choose(rng).unwrap()),
        30 => FSync,
        _ => Become(*[ROOT, ROOT, OWNER, MEMBER, STRANGER].choose(rng).unwrap()),
    }
}

/// What a step returned, and what is there after it.
type Seen = (Outcome, BTreeMap<String, String>);

/// Makes the steps that come, each with all times in the past before it, and says what came of them.
fn walk(dir: &Path, steps: mpsc::Receiver<Op>, seen: mpsc::Sender<Seen>) {
    on_own_thread(|| {
        enter(dir);
        let mut caller = Caller::new();
        let mut user = ROOT;
        for op in steps {
            let before: Snapshot = prepare();
            let started = wait_for_later_times();
            if let Become(who) = op {
                user = who;
            }
            become_user(user);
            let outcome = caller.call(&op);
            let after = worded(&look(), &before, started);
            if seen.send((outcome, after)).is_err() {
                return;
            }
        }
    });
}

struct Walker {
    steps: mpsc::Sender<Op>,
    seen: mpsc::Receiver<Seen>,
}

impl Walker {
    fn new(dir: PathBuf) -> Walker {
        std::fs::create_dir(&dir).unwrap();
        rustix::fs::chmod(&dir, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        let (steps, receiver) = mpsc::channel();
        let (sender, seen) = mpsc::channel();
        std::thread::spawn(move || walk(&dir, receiver, sender));
        Walker { steps, seen }
    }
}

fn a_walk_like_on_ext4(options: &[&str]) {
    let seed = seed("walk");
    let mut rng = StdRng::seed_from_u64(seed);
    let native = Native::new();
    let mount = open_to_all(options);
    let walkers = [native.path(), mount.path()].map(|dir| Walker::new(dir.join("walk")));
    let mut done: Vec<Op> = Vec::new();
    for n in 0..STEPS {
        let op = step(&mut rng);
        done.push(op.clone());
        for walker in &walkers {
            walker.steps.send(op.clone()).unwrap();
        }
        let [expected, found] = walkers.each_ref().map(|w| w.seen.recv().unwrap());
        if expected == found {
            continue;
        }
        println!("the last steps:");
        for op in &done[done.len().saturating_sub(SHOWN)..] {
            println!("  {op:?}");
        }
        println!("returned {:?}, on ext4 {:?}", found.0, expected.0);
        for name in expected.1.keys().chain(found.1.keys()) {
            let (is, should) = (found.1.get(name), expected.1.get(name));
            if is != should {
                println!("{name:?}\n  is   {is:?}\n  ext4 {should:?}");
            }
        }
        panic!("step {n} of the walk with ONCEFS_TEST_SEED={seed} differs from ext4");
    }
}

#[test]
fn a_random_walk_is_the_same_on_ext4_with_passthrough() {
    a_walk_like_on_ext4(&[]);
}

#[test]
fn a_random_walk_is_the_same_on_ext4_through_the_daemon() {
    a_walk_like_on_ext4(&["--no-passthrough"]);
}
