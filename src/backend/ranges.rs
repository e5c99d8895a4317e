//! The file locks that one node holds on one inode: byte ranges that split and merge as fcntl(2) says. Plain values; knows
//! neither nodes nor time.

use serde::{Deserialize, Serialize};

/// The end of a range that reaches to the end of the file, however long that gets.
pub const TO_THE_END: u64 = u64::MAX;

/// The two kinds of locks, which know nothing of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// flock(2): of an open file description.
    Flock,
    /// fcntl(2): of a process, or of an open file description (`F_OFD_SETLK`).
    Posix,
}

/// Whose lock. The owner is a number that means something on one node only: the handle where the family is flock(2), else
/// what the kernel calls the process or the open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Which kind.
    pub family: Family,
    /// Which process or open file description.
    pub owner: u64,
}

/// A lock on the bytes from `start` up to and including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Whose.
    #[serde(flatten)]
    pub holder: Holder,
    /// Nobody else may hold any lock there; else others may hold those that are not exclusive either.
    pub exclusive: bool,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
    /// The process that asked, to be told to others.
    pub pid: u32,
}

impl Range {
    fn meets(&self, other: &Range) -> bool {
        self.holder.family == other.holder.family
            && self.start <= other.end
            && other.start <= self.end
    }

    /// Whether these two, of different holders, cannot be held at the same time.
    fn excludes(&self, other: &Range) -> bool {
        self.meets(other) && (self.exclusive || other.exclusive)
    }
}

/// Locks that are held at the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The first lock in the way of `wanted`, which a holder of another node asks for.
    pub fn conflict_abroad(&self, wanted: &Range) -> Option<Range> {
        let mut inside = self.0.iter().filter(|held| held.excludes(wanted));
        inside.next().copied()
    }

    /// The first lock in the way of `wanted`, which a holder of this node asks for.
    pub fn conflict(&self, wanted: &Range) -> Option<Range> {
        let mut others = self.0.iter().filter(|held| held.holder != wanted.holder);
        others.find(|held| held.excludes(wanted)).copied()
    }

    /// Holds `wanted` in place of what its holder held there. The caller has looked for conflicts.
    pub fn set(&mut self, wanted: Range) {
        self.clear(wanted.holder, wanted.start, wanted.end);
        let mut merged = wanted;
        self.0.retain(|held| {
            let joins = held.holder == merged.holder
                && held.exclusive == merged.exclusive
                && held.start <= merged.end.saturating_add(1)
                && merged.start <= held.end.saturating_add(1);
            if joins {
                merged.start = merged.start.min(held.start);
                merged.end = merged.end.max(held.end);
            }
            !joins
        });
        self.0.push(merged);
    }

    /// Gives up what `holder` holds of the bytes from `start` up to and including `end`.
    pub fn clear(&mut self, holder: Holder, start: u64, end: u64) {
        let mut left = Vec::with_capacity(self.0.len() + 1);
        for held in self.0.drain(..) {
            if held.holder != holder || end < held.start || held.end < start {
                left.push(held);
                continue;
            }
            if held.start < start {
                let end = start - 1;
                left.push(Range { end, ..held });
            }
            if end < held.end {
                let start = end + 1;
                left.push(Range { start, ..held });
            }
        }
        self.0 = left;
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether any of it is exclusive.
    pub fn any_exclusive(&self) -> bool {
        self.0.iter().any(|held| held.exclusive)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const BYTES: u64 = 24;

    #[derive(Clone, Debug)]
    struct Step {
        holder: Holder,
        /// `None`: unlock.
        exclusive: Option<bool>,
        start: u64,
        end: u64,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let family = prop_oneof![Just(Family::Flock), Just(Family::Posix)];
        let step = (family, 0..3u64, any::<Option<bool>>(), 0..BYTES, 0..BYTES).prop_map(
            |(family, owner, exclusive, a, b)| Step {
                holder: Holder { family, owner },
                exclusive,
                start: a.min(b),
                end: a.max(b),
            },
        );
        prop::collection::vec(step, 1..60)
    }

    /// What each holder holds of each byte.
    type Reference = HashMap<(u64, Holder), bool>;

    fn refused(model: &Reference, wanted: &Range) -> bool {
        model.iter().any(|((byte, holder), exclusive)| {
            holder.family == wanted.holder.family
                && *holder != wanted.holder
                && (wanted.start..=wanted.end).contains(byte)
                && (*exclusive || wanted.exclusive)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn ranges_do_what_a_map_of_bytes_does(steps in steps()) {
            let mut ranges = Ranges::default();
            let mut model = Reference::new();
            for step in steps {
                let range = Range {
                    holder: step.holder,
                    exclusive: step.exclusive.unwrap_or(false),
                    start: step.start,
                    end: step.end,
                    pid: 1,
                };
                let bytes = step.start..=step.end;
                match step.exclusive {
                    None => {
                        ranges.clear(step.holder, step.start, step.end);
                        for byte in bytes {
                            model.remove(&(byte, step.holder));
                        }
                    }
                    Some(exclusive) => {
                        let conflict = ranges.conflict(&range);
                        prop_assert_eq!(conflict.is_some(), refused(&model, &range));
                        if let Some(conflict) = conflict {
                            prop_assert!(conflict.excludes(&range));
                            prop_assert_ne!(conflict.holder, range.holder);
                            continue;
                        }
                        ranges.set(range);
                        for byte in bytes {
                            model.insert((byte, step.holder), exclusive);
                        }
                    }
                }
                // Byte by byte the same, and no two ranges of a holder that could be one.
                let mut held = Reference::new();
                for range in &ranges.0 {
                    for byte in range.start..=range.end {
                        let before = held.insert((byte, range.holder), range.exclusive);
                        prop_assert_eq!(before, None);
                    }
                    let touching = ranges.0.iter().any(|other| {
                        other.holder == range.holder
                            && other.exclusive == range.exclusive
                            && other.start == range.end + 1
                    });
                    prop_assert!(!touching, "{:?}", ranges);
                }
                prop_assert_eq!(&held, &model);
                prop_assert_eq!(ranges.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn ranges_may_reach_to_the_very_end() {
        let holder = Holder {
            family: Family::Posix,
            owner: 1,
        };
        let range = |start, end| Range {
            holder,
            exclusive: true,
            start,
            end,
            pid: 1,
        };
        let mut ranges = Ranges::default();
        ranges.set(range(100, TO_THE_END));
        ranges.set(range(0, 99));
        assert_eq!(ranges.0, [range(0, TO_THE_END)]);
        ranges.clear(holder, 10, 10);
        assert_eq!(ranges.0, [range(0, 9), range(11, TO_THE_END)]);
        ranges.clear(holder, 0, TO_THE_END);
        assert!(ranges.is_empty());
    }
}
