//! The one rule by which a record may replace another. Both sides use it: the embedded side as it stands, the cluster
//! side by asking for each status whether it may be replaced and putting the answer into a query.

use super::FileRecord;
use crate::types::Status;

/// Every status, in order.
pub(super) const ALL: [Status; 5] = [
    Status::Queued,
    Status::Processing,
    Status::Failed,
    Status::Done,
    Status::Duplicate,
];

/// Whether a record with status `new` may replace one with status `kept`, as far as the status goes.
pub(super) fn status_allows(kept: Status, new: Status) -> bool {
    kept <= new || (kept == Status::Failed && new == Status::Processing)
}

/// Whether `new` is bound by the fence of the kept record.
///
/// Content that is stored is a fact whoever found it out. A worker that had no lock service to ask (fence 0) may say
/// so, else an outage in the middle of the work would leave the record at `processing` for good. A worker whose lock
/// was lost (an older fence above 0) may not.
pub(super) fn fence_binds(new: &FileRecord) -> bool {
    !(new.fence == 0 && new.status >= Status::Done)
}

/// Whether `new` may replace `kept`.
pub(super) fn may_replace(kept: &FileRecord, new: &FileRecord) -> bool {
    status_allows(kept.status, new.status) && (kept.fence <= new.fence || !fence_binds(new))
}
