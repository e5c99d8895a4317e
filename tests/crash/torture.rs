//! How much of it: a suite runs for minutes, `scripts/suites.sh` as long as one likes.

use std::path::PathBuf;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::workload::Habits;
use super::world::{Guarantee, World};
use crate::common::mount::Mount;

/// `usual` rounds, times what `ONCEFS_TORTURE` says.
pub fn rounds(usual: usize) -> usize {
    let times = std::env::var("ONCEFS_TORTURE").map_or(1, |t| t.parse().unwrap());
    usual * times
}

/// Programs that change a tree until it fails them, each in a directory of its own.
pub struct Programs {
    /// What each may find afterwards.
    pub worlds: Vec<World>,
    /// What ended each, by the system's numbers.
    pub errors: Vec<Option<i32>>,
    habits: Habits,
}

impl Programs {
    /// `count` of them in the mount.
    pub fn new(m: &Mount, count: usize, habits: Habits, guarantee: Guarantee) -> Programs {
        let dir = |n| -> PathBuf { m.at(format!("program-{n}")) };
        Programs {
            worlds: (0..count).map(|n| World::new(dir(n), guarantee)).collect(),
            errors: Vec::new(),
            habits,
        }
    }

    /// Runs them all beside `meanwhile`, each for up to `changes` changes or until one fails. Returns how many changes
    /// were answered.
    pub fn run(&mut self, seed: u64, changes: usize, meanwhile: impl FnOnce()) -> usize {
        let habits = self.habits;
        self.errors.clear();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0u64..)
                .zip(&mut self.worlds)
                .map(|(n, world)| {
                    scope.spawn(move || {
                        let mut rng = StdRng::seed_from_u64(seed ^ (n << 32));
                        let mut failed = |n| habits.change(world, &mut rng).err().map(|e| (n, e));
                        (0..changes).find_map(&mut failed)
                    })
                })
                .collect();
            meanwhile();
            let ended = running.into_iter().map(|r| r.join().unwrap());
            ended
                .map(|ended| match ended {
                    None => changes,
                    Some((done, error)) => {
                        self.errors.push(error.raw_os_error());
                        done
                    }
                })
                .sum()
        })
    }

    /// Fails unless every program finds what it may find; from now on that is what it has.
    pub fn check(&mut self) {
        for world in &mut self.worlds {
            world.check();
            world.rebase();
        }
    }
}
