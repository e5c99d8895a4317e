//! Notices that a program which waits in a system call got a signal.
//!
//! The kernel's own word for it (`FUSE_INTERRUPT`) is not handed on by fuser, and a killed process stays until its request
//! is answered. So whoever answers late looks at the waiting thread some times a second: [`interrupted`] returns once that
//! thread has a signal to see to, and the request is then answered with `EINTR`, on which the kernel either delivers the
//! signal or starts the call again. Without a signal that answer would reach the program as an unknown error number, so
//! nothing is guessed here: a thread that cannot be seen (of another process namespace, or hidden) has no signals. One that
//! was seen and has ended waits for nothing; what the kernel reads ahead for it outlives it.

use std::time::Duration;

/// How often a waiting thread is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Waits until thread `thread` has a signal to see to, or has ended.
pub async fn interrupted(thread: u32) {
    let seen = is_visible(thread);
    loop {
        tokio::time::sleep(LOOK).await;
        if seen && !is_visible(thread) {
            return;
        }
        // Again, since a signal that another thread of the process is about to take is seen here for a moment.
        if is_interrupted(thread) {
            tokio::time::sleep(LOOK / 4).await;
            if is_interrupted(thread) {
                return;
            }
        }
    }
}

/// Whether a thread can be seen from here, and so its signals.
pub fn is_visible(thread: u32) -> bool {
    Signals::of(thread).is_some()
}

fn is_interrupted(thread: u32) -> bool {
    let Some(signals) = Signals::of(thread) else {
        return false;
    };
    let leader = match signals.leader == thread {
        true => None,
        false => Signals::of(signals.leader),
    };
    signals.wake(leader.as_ref())
}

/// Sets of signals, and the first thread of the process.
#[derive(Debug, Default, PartialEq, Eq)]
struct Signals {
    leader: u32,
    /// It has ended, and nobody has asked for its exit code yet.
    ended: bool,
    own: u64,
    shared: u64,
    blocked: u64,
    ignored: u64,
}

impl Signals {
    fn of(thread: u32) -> Option<Signals> {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        Signals::parse(&status)
    }

    fn parse(status: &str) -> Option<Signals> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim())
        };
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        Some(Signals {
            leader: field("Tgid:")?.parse().ok()?,
            ended: field("State:")?.starts_with(['Z', 'X']),
            own: set("SigPnd:")?,
            shared: set("ShdPnd:")?,
            blocked: set("SigBlk:")?,
            ignored: set("SigIgn:")?,
        })
    }

    /// Whether the thread itself has to see to one. A signal for the whole process is the first thread's, unless that
    /// blocks it. (Linux, `complete_signal`; what kills the process is put to each thread.)
    fn wake(&self, leader: Option<&Signals>) -> bool {
        let shared = match leader {
            Some(leader) => self.shared & leader.blocked,
            None => self.shared,
        };
        self.ended || (self.own | shared) & !self.blocked & !self.ignored != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signals_that_wake_a_thread() {
        let set = |n: u32| 1u64 << (n - 1);
        let of = |own, shared, blocked, ignored| Signals {
            leader: 1,
            ended: false,
            own,
            shared,
            blocked,
            ignored,
        };
        let (int, kill) = (set(2), set(9));
        assert!(!of(0, 0, 0, 0).wake(None));
        assert!(of(0, int, 0, 0).wake(None));
        assert!(!of(0, int, int, 0).wake(None));
        assert!(!of(int, 0, 0, int).wake(None));
        assert!(of(kill | int, 0, int, 0).wake(None));
        // For the process: the first thread's, unless that blocks it.
        assert!(!of(0, int, 0, 0).wake(Some(&of(0, int, 0, 0))));
        assert!(of(0, int, 0, 0).wake(Some(&of(0, int, int, 0))));
        assert!(of(kill, int, 0, 0).wake(Some(&of(0, int, 0, 0))));
    }

    #[tokio::test]
    async fn regression_a_program_that_has_ended_waits_for_nothing() {
        for asked_for in [true, false] {
            let mut program = std::process::Command::new("sleep")
                .arg("60")
                .spawn()
                .unwrap();
            let waiting = tokio::spawn(interrupted(program.id()));
            tokio::time::sleep(LOOK / 2).await;
            program.kill().unwrap();
            if asked_for {
                program.wait().unwrap();
            }
            let ended = tokio::time::timeout(LOOK * 100, waiting).await;
            ended.expect("a program that has ended is noticed").unwrap();
            program.wait().unwrap();
        }
    }

    #[test]
    fn this_thread_can_be_seen_and_has_no_signals() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let signals = Signals::of(thread).unwrap();
        assert_eq!(signals.leader, std::process::id());
        assert!(!is_interrupted(thread));
        assert!(!is_visible(0));
    }
}
