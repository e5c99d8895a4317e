//! The names of what was kept beside a file or directory that somebody else has the name of: `name.conflict-<node>-<time>`.

use std::time::SystemTime;

use super::op::{Bytes, NAME_MAX, TreeError};
use super::query::{Query, Result};
use crate::types::{Ino, NodeId, Time};

const MARK: &[u8] = b".conflict-";
/// How long `20260131T235959Z` is.
const TIME_LEN: usize = 16;

/// One name that says that it was kept aside. Who gives a file such a name by hand is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictCopy {
    /// Its path below the root.
    pub path: Vec<u8>,
    /// What it names.
    pub ino: Ino,
    /// Length in bytes.
    pub size: u64,
    /// The node whose version it is.
    pub node: NodeId,
    /// When that node wrote it, to the second.
    pub time: Time,
}

/// A name that `parent` does not have, for what `node` made as `name` at `now`.
pub(super) fn free_name(
    q: Query<'_>,
    parent: Ino,
    name: &[u8],
    node: &NodeId,
    now: Time,
) -> Result<Bytes> {
    let time = humantime::format_rfc3339_seconds(now.to_system()).to_string();
    let time: String = time.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    for again in 1.. {
        let mut suffix = MARK.to_vec();
        suffix.extend_from_slice(format!("{node}-{time}").as_bytes());
        if again > 1 {
            suffix.extend_from_slice(format!("-{again}").as_bytes());
        }
        let kept = name.len().min(NAME_MAX - suffix.len().min(NAME_MAX));
        let candidate = [&name[..kept], &suffix].concat();
        if q.child(parent, &candidate)?.is_none() {
            return Ok(Bytes::from(candidate));
        }
    }
    Err(TreeError::Exists)
}

/// The node and the time that such a name tells.
fn parse(name: &[u8]) -> Option<(NodeId, Time)> {
    let at = name.windows(MARK.len()).rposition(|part| part == MARK)?;
    let rest = std::str::from_utf8(&name[at + MARK.len()..]).ok()?;
    // The number of one more copy of the same second, if there is one.
    let rest = match rest.rsplit_once('-') {
        Some((before, again)) if again.bytes().all(|b| b.is_ascii_digit()) => before,
        _ => rest,
    };
    let (node, time) = rest.rsplit_once('-')?;
    if node.is_empty() || time.len() != TIME_LEN || !time.is_ascii() {
        return None;
    }
    let (date, clock) = time.split_once('T')?;
    let part = |text: &str, from: usize, to: usize| text.get(from..to).map(str::to_owned);
    let time = format!(
        "{}-{}-{}T{}:{}:{}",
        part(date, 0, 4)?,
        part(date, 4, 6)?,
        part(date, 6, 8)?,
        part(clock, 0, 2)?,
        part(clock, 2, 4)?,
        part(clock, 4, 7)?,
    );
    let time: SystemTime = humantime::parse_rfc3339(&time).ok()?;
    Some((NodeId(node.to_owned()), Time::from(time)))
}

impl Query<'_> {
    /// Up to `limit` names that say that they were kept aside. Looks at every name there is, but at nothing else.
    pub fn conflicts(&self, limit: usize) -> Result<Vec<ConflictCopy>> {
        let mut stmt = self.0.prepare_cached(
            "SELECT d.parent, d.name, d.ino, i.size FROM dentries d CROSS JOIN inodes i ON i.ino=d.ino
             WHERE instr(d.name, ?1)>0",
        )?;
        let mut rows = stmt.query([MARK])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()?
            && found.len() < limit
        {
            let name: Vec<u8> = row.get(1)?;
            let Some((node, time)) = parse(&name) else {
                continue;
            };
            let parent = Ino(row.get(0)?);
            let path = match self.paths_of(parent, 1)?.pop() {
                Some(dir) => [&dir[..], b"/", &name].concat(),
                None => name,
            };
            found.push(ConflictCopy {
                path,
                ino: Ino(row.get(2)?),
                size: row.get(3)?,
                node,
                time,
            });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_who_and_when() {
        let told = |name: &str| parse(name.as_bytes()).map(|(node, t)| (node.0, t.rfc3339()));
        let alpha =
            |again: &str| told(&format!("a.b.conflict-host-1-ab12-20260131T235958Z{again}"));
        let expected = Some(("host-1-ab12".to_owned(), "2026-01-31T23:59:58Z".to_owned()));
        assert_eq!(alpha(""), expected);
        assert_eq!(alpha("-2"), expected);
        assert_eq!(alpha("x"), None);
        for other in [
            "a.conflict-",
            "a.conflict-node",
            "a.conflict-20260131T235958Z",
            "a.conflict-n-20269931T235958Z",
            "a.conflict-n-\u{e9}260131T2359580",
        ] {
            assert_eq!(told(other), None, "{other}");
        }
    }
}
