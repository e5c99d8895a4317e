//! The daemon killed at any moment, under load from several programs.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::torture::{Programs, rounds};
use super::workload::{Habits, check_stored};
use super::world::Guarantee;
use crate::common::files::seed;
use crate::common::mount::Mount;
use crate::common::run::counted;

#[test]
fn passthrough() {
    killed(&Mount::start(&["--gc-grace", "0s"]));
}

#[test]
fn through_the_daemon() {
    killed(&Mount::start(&["--gc-grace", "0s", "--no-passthrough"]));
}

fn killed(m: &Mount) {
    let seed = seed("killed");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut programs = Programs::new(m, 4, Habits::default(), Guarantee::Answered);
    let rounds = rounds(100);
    let mut answered = 0;
    for round in 0..rounds as u64 {
        let pause = Duration::from_micros(rng.random_range(0..250_000));
        answered += programs.run(seed + round, usize::MAX, || {
            std::thread::sleep(pause);
            m.kill9();
        });
        m.remount();
        programs.check();
        if round % 10 == 9 {
            check_stored(m, &programs.worlds);
        }
    }
    check_stored(m, &programs.worlds);
    assert!(!m.log().contains("should be in the spool and is not"));
    assert!(answered > rounds, "the programs were not let do anything");
    counted(rounds, "kills at any moment");
    counted(answered, "changes answered before a kill");
}
