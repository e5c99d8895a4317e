//! Every moment at which a crash was thought through, by name, each with the state that is legal after it.
//!
//! A build for tests (`cargo test` turns the `fail` crate's `failpoints` on) can be told through `FAILPOINTS` to be killed
//! in a window (`store-link=3*off->return(kill)`), or, where the step can fail, to find it failing (`return(enospc)`,
//! `return(eio)`). In any other build a window is nothing.

use std::io;

/// A moment between two steps.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// As `FAILPOINTS` names it.
    pub name: &'static str,
    /// Which state is legal after a crash here.
    pub legal: &'static str,
}

impl Window {
    /// Goes on, unless a test wants a crash here, or an error of the disk.
    pub fn pass(&self) -> io::Result<()> {
        fail::fail_point!(self.name, |how| {
            tracing::warn!("window {}: {}", self.name, how.as_deref().unwrap_or("kill"));
            match how.as_deref() {
                Some("enospc") => Err(rustix::io::Errno::NOSPC.into()),
                Some("eio") => Err(rustix::io::Errno::IO.into()),
                _ => loop {
                    // Not abort: nothing may run on the way out.
                    let me = rustix::process::getpid();
                    let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                },
            }
        });
        Ok(())
    }

    /// The same where nothing can fail any more: an error that a test wants is not heard.
    pub fn passed(&self) {
        let _ = self.pass();
    }
}

macro_rules! windows {
    ($($id:ident $name:literal: $legal:literal;)*) => {
        $(#[doc = $legal] pub const $id: Window = Window { name: $name, legal: $legal };)*
        /// All of them.
        pub const ALL: &[Window] = &[$($id),*];
    };
}

windows! {
    LOOKUP "lookup":
        "Nothing happened.";
    CREATE_SPOOL "create-spool":
        "A spool file that no inode has; recovery removes it.";
    CREATE_NAME "create-name":
        "The name is there with an empty file, whose maker was not answered.";
    CLOSE "close":
        "The file is as it was before it was opened, or holds what was written; close(2) was not answered.";
    CLOSE_KNOWN "close-known":
        "The namespace knows length and time of a spool file that is still open; close(2) was not answered.";
    SEAL "seal":
        "The file is closed and answered for; no worker has heard of it, recovery wakes one.";
    HASH "hash":
        "As after the close: a hash is kept in memory only.";
    LOCK "lock":
        "As after the close: an embedded lock ends with the process, one in etcd with its lease.";
    STORE_SYNC "store-sync":
        "The spool file is read-only and on disk; it is stored again.";
    STORE_LINK "store-link":
        "The spool file is content as well, which the namespace does not know; storing it again finds its own link, and \
         without a file that wants it the sweep removes it.";
    STORE_NAME "store-name":
        "The same, and the content's name is on disk.";
    ADOPT "adopt":
        "The same.";
    COMMIT "commit":
        "The namespace has the file's content under its hash; recovery removes the spool file.";
    COMMIT_DURABLE "commit-durable":
        "The same, and it survives power loss.";
    SPOOL_GONE "spool-gone":
        "All is done.";
    RENAME "rename":
        "The new name is there and the old one is not; what it replaced is gone. The caller was not answered.";
    DISCARD "discard":
        "A spool file whose inode has no name any more; recovery removes it.";
    TAKE_BACK "take-back":
        "A closed file under a generation that the namespace has not heard of; recovery takes it as it is.";
    COPY "copy":
        "A copy without its final name; recovery removes it, the content it is of is still the file's.";
    COPY_NAME "copy-name":
        "A copy that nobody has written to; it is stored again and found to be a duplicate.";
    TRUNCATE "truncate":
        "The spool file has its new length, the namespace the old one; recovery takes the spool file's.";
    SYNC_DATA "sync-data":
        "The bytes are on disk and nothing says so yet; fsync(2) was not answered.";
    SYNC_MARK "sync-mark":
        "The spool file says that its bytes are on disk, which they are; fsync(2) was not answered.";
    SYNC_KNOWN "sync-known":
        "The namespace knows what was synced, but may lose it with the power; fsync(2) was not answered.";
    REAP "reap":
        "The namespace has forgotten a content whose bytes are still there; the sweep removes them.";
    REAP_DURABLE "reap-durable":
        "The same, and it survives power loss.";
    REAP_DELETE "reap-delete":
        "All is done.";
    SWEEP "sweep":
        "Some of the content that the namespace does not know is gone.";
    JOURNAL_APPEND "journal-append":
        "The change did not happen; nobody was answered.";
    JOURNAL_APPENDED "journal-appended":
        "The change happened, though nobody was answered.";
    DATABASE_COMMIT "database-commit":
        "The journal has every change since the commit before.";
    DATABASE_COMMITTED "database-committed":
        "The journal's records are in the database as well; they are not applied twice.";
    FORK "fork":
        "The change did not happen here, and may be in the log; nobody was answered.";
    FORKED "forked":
        "The change happened, though nobody was answered; it waits in the outbox.";
    MERGE_ASIDE "merge-aside":
        "A spool file that no inode has, beside the one that it is a copy of; recovery keeps it until the merge is done, \
         which makes another.";
    MERGE_APPENDED "merge-appended":
        "Some of the outbox is in the log, and the replica still a fork. The merge is done again without it; a spool file \
         that no inode has here is that of an inode which the log has.";
    MERGE "merge":
        "The same, with all of the outbox.";
    MERGED "merged":
        "The replica is the log's, and notes which spool files lost; recovery removes those.";
    MERGE_GIVEN_UP "merge-given-up":
        "The same, and they are gone.";
    JOIN "join":
        "The replica is as it was; the checkpoint beside it is fetched again.";
    JOINED "joined":
        "The replica is the checkpoint's, with what belongs to this node alone.";
    CHECKPOINT "checkpoint":
        "The write-ahead log has everything.";
    CHECKPOINT_DONE "checkpoint-done":
        "The same, and the database too.";
    NUMBERS "numbers":
        "Inode numbers were set aside that nobody uses.";
    REPLAY "replay":
        "The journal is read again from its start.";
    RECOVER "recover":
        "Nothing was recovered; the next start begins anew.";
    RECOVER_PART "recover-part":
        "A copy that took the place of a spool file which programs of before still write to.";
    RECOVER_KNOWN "recover-known":
        "The namespace knows the spool file of a file that was open; recovering it again changes nothing.";
    RECOVERED "recovered":
        "All is recovered; the next start finds it so.";
    UPLOAD "upload":
        "A spool file that no inode has; the upload was not answered.";
    IMPORT_STAGED "import-staged":
        "An entry is in the target's staging directory, which the next import removes.";
    IMPORT "import":
        "An entry is in the target, and found there by the next import.";
    FETCH "fetch":
        "The cache has one content more, or a temporary file that the next start removes.";
    EVICT "evict":
        "The cache has one content less, which the store has.";
}
