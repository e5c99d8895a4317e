//! Locks of files.

use super::*;

/// What is held by somebody's word, byte by byte: the exclusive ones once, the others by any number.
#[derive(Default)]
struct Believed(std::sync::Mutex<HashMap<(Family, u64), Vec<ByWhom>>>);

/// On which node, and whether exclusive.
type ByWhom = (Holder, usize, bool);

impl Believed {
    fn bytes(range: &Range) -> impl Iterator<Item = (Family, u64)> {
        (range.start..=range.end).map(|byte| (range.holder.family, byte))
    }

    fn taken(&self, node: usize, range: &Range) {
        let mut held = self.0.lock().unwrap();
        for byte in Believed::bytes(range) {
            let holders = held.entry(byte).or_default();
            holders.retain(|(holder, at, _)| (*holder, *at) != (range.holder, node));
            let excluded = holders
                .iter()
                .any(|(_, _, exclusive)| *exclusive || range.exclusive);
            assert!(!excluded, "{range:?} of node {node} beside {holders:?}");
            holders.push((range.holder, node, range.exclusive));
        }
    }

    fn given_up(&self, node: usize, range: &Range) {
        let mut held = self.0.lock().unwrap();
        for byte in Believed::bytes(range) {
            let holders = held.entry(byte).or_default();
            holders.retain(|(holder, at, _)| (*holder, *at) != (range.holder, node));
        }
    }
}

/// Owners on two nodes lock and unlock at random. What one is told to hold nobody else is told to hold.
#[tokio::test(flavor = "multi_thread")]
async fn file_locks_exclude_whatever_happens_at_once() {
    const OWNERS: u64 = 3;
    const STEPS: usize = 150;
    const BYTES: u64 = 8;
    let side = Side::cluster().await;
    let ino = Ino(rand::random());
    let believed = Believed::default();
    let got = AtomicUsize::new(0);
    let each = (0..2).flat_map(|node| (0..OWNERS).map(move |owner| (node, owner)));
    join_all(each.map(|(node, owner)| {
        let (side, believed, got) = (&side, &believed, &got);
        async move {
            let locks = side.node(node).file_locks.as_ref().unwrap();
            for _ in 0..STEPS {
                let (a, b) = (rand::random::<u64>() % BYTES, rand::random::<u64>() % BYTES);
                let family = if rand::random() {
                    Family::Posix
                } else {
                    Family::Flock
                };
                let (start, end) = match family {
                    Family::Posix => (a.min(b), a.max(b)),
                    Family::Flock => (0, BYTES - 1),
                };
                let range = Range {
                    holder: Holder { family, owner },
                    exclusive: rand::random(),
                    start,
                    end,
                    pid: 1,
                };
                // Before the call for what others may get by it, after it for what is got.
                if !range.exclusive || family == Family::Flock {
                    believed.given_up(node, &range);
                }
                match rand::random::<bool>() {
                    true => match locks.attempt(ino, range).await.unwrap() {
                        Attempt::Held(hold) => {
                            assert!(hold.is_valid());
                            got.fetch_add(1, Ordering::Relaxed);
                            believed.taken(node, &range);
                        }
                        Attempt::Busy(conflict, _) => {
                            assert_eq!(conflict.range.holder.family, family);
                            assert!(conflict.range.exclusive || range.exclusive);
                        }
                    },
                    false => {
                        believed.given_up(node, &range);
                        locks.give_up(ino, range.holder, start, end).await;
                    }
                }
            }
        }
    }))
    .await;
    let got = got.load(Ordering::Relaxed);
    assert!(got > STEPS / 10, "only {got} locks were had");
    // Nothing stays in anybody's way.
    for (node, owner) in (0..2).flat_map(|node| (0..OWNERS).map(move |owner| (node, owner))) {
        for family in [Family::Posix, Family::Flock] {
            let locks = side.node(node).file_locks.as_ref().unwrap();
            let holder = Holder { family, owner };
            locks.give_up(ino, holder, 0, TO_THE_END).await;
        }
    }
    for family in [Family::Posix, Family::Flock] {
        let whole = Range {
            holder: Holder { family, owner: 99 },
            exclusive: true,
            start: 0,
            end: TO_THE_END,
            pid: 1,
        };
        let locks = side.node(0).file_locks.as_ref().unwrap();
        assert_eq!(locks.conflict(ino, whole).await.unwrap(), None);
    }
}
