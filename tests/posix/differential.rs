//! The same calls on ext4 and on a mount: every result, every error number, and everything that stat(2) says of what the
//! calls touched and of the directories around it, which times moved included.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::calls::{
    Caller, Outcome, ROOT, Snapshot, Stamp, become_user, enter, look, on_own_thread, prepare,
    wait_for_later_times, worded,
};
use crate::cases::{Case, all};
use crate::common::run::counted;
use crate::native::{Native, open_to_all};

/// What became of a case: what its calls returned, and what is there afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Result {
    outcomes: Vec<Outcome>,
    left: BTreeMap<String, String>,
}

fn place(base: &Path, n: usize) -> std::path::PathBuf {
    // Not too many in one directory, since ext4 counts no more than 65,000 links of it.
    base.join(format!("{}/{n}", n / 1000))
}

/// The directories of cases, prepared, and what the calls in them returned.
struct Run {
    before: Vec<Snapshot>,
    started: Stamp,
    outcomes: Vec<Vec<Outcome>>,
}

impl Run {
    fn new(base: &Path, cases: &[Case]) -> Run {
        on_own_thread(|| {
            become_user(ROOT);
            for (n, case) in cases.iter().enumerate() {
                let dir = place(base, n);
                fs::create_dir_all(&dir).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
                enter(&dir);
                let mut caller = Caller::new();
                for op in &case.setup {
                    let made = caller.call(op);
                    assert!(made.is_ok(), "{}: {op:?}: {made:?}", dir.display());
                }
            }
            let before = (0..cases.len())
                .map(|n| {
                    enter(&place(base, n));
                    prepare()
                })
                .collect();
            let started = wait_for_later_times();
            let outcomes = cases
                .iter()
                .enumerate()
                .map(|(n, case)| {
                    become_user(ROOT);
                    enter(&place(base, n));
                    let mut caller = Caller::new();
                    case.act.iter().map(|op| caller.call(op)).collect()
                })
                .collect();
            Run {
                before,
                started,
                outcomes,
            }
        })
    }

    /// What became of the cases, as far as it can be seen now.
    fn results(&self, base: &Path) -> Vec<Result> {
        on_own_thread(|| {
            let each = self.outcomes.iter().zip(&self.before).enumerate();
            each.map(|(n, (outcomes, before))| {
                enter(&place(base, n));
                Result {
                    outcomes: outcomes.clone(),
                    left: worded(&look(), before, self.started),
                }
            })
            .collect()
        })
    }
}

/// Fails with what differs. All of it is printed, since one cause shows in many cases.
fn compare(what: &str, cases: &[Case], native: &[Result], ours: &[Result]) {
    let mut differ = 0;
    for ((case, native), ours) in cases.iter().zip(native).zip(ours) {
        if native == ours {
            continue;
        }
        differ += 1;
        if differ > 3000 {
            continue;
        }
        println!("{what}: {}: {:?}", case.name, case.act);
        if native.outcomes != ours.outcomes {
            println!(
                "  returns  {:?}\n  ext4     {:?}",
                ours.outcomes, native.outcomes
            );
        }
        let names: std::collections::BTreeSet<_> =
            native.left.keys().chain(ours.left.keys()).collect();
        for name in names {
            let (n, o) = (native.left.get(name), ours.left.get(name));
            if n != o {
                println!("  {name:?}\n    is     {o:?}\n    ext4   {n:?}");
            }
        }
    }
    assert_eq!(
        differ,
        0,
        "{what}: so many of {} cases differ from ext4",
        cases.len()
    );
}

#[test]
fn every_call_does_what_it_does_on_ext4() {
    let cases = all();
    assert!(cases.len() > 8800, "only {} cases", cases.len());
    counted(cases.len(), "calls compared with ext4, each in both ways");
    let native = Native::new();
    let expected = Run::new(&native.path(), &cases).results(&native.path());
    let on_a_mount = |options: &[&str]| {
        let mount = open_to_all(options);
        let run = Run::new(&mount.path(), &cases);
        let what = format!("{options:?}, at once");
        compare(&what, &cases, &expected, &run.results(&mount.path()));
        // What the kernel remembered may have been right where the daemon is wrong.
        mount.stop();
        mount.remount();
        let what = format!("{options:?}, mounted again");
        compare(&what, &cases, &expected, &run.results(&mount.path()));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| on_a_mount(&[]));
        scope.spawn(|| on_a_mount(&["--no-passthrough"]));
    });
}
