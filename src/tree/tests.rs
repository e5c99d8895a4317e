use super::op::{RenameMode, StoredBy, XattrMode};
use super::*;
use crate::types::{BlobId, ContentHash, Generation, Time};

async fn tree() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let node = NodeId("test".into());
    let tree = Tree::open(&dir.path().join("t"), &node, None, Box::new(|_, _| {}))
        .await
        .unwrap();
    (dir, tree)
}

fn name(n: &str) -> op::Bytes {
    op::Bytes::from(n.as_bytes().to_vec())
}

async fn create(t: &Tree, parent: Ino, n: &str, mode: u32) -> Result<Inode> {
    let ino = t.new_ino()?;
    let op = Op::Create {
        parent,
        name: name(n),
        ino,
        mode,
        uid: 1,
        gid: 2,
        rdev: 0,
        target: None,
        now: Time(5),
    };
    let applied = t
        .submit(Origin::Kernel, Commitment::Visible, vec![op])
        .await?;
    Ok(applied.inode.unwrap())
}

#[tokio::test]
async fn a_created_file_is_seen_by_readers_at_once() {
    let (_d, t) = tree().await;
    let f = create(&t, Ino::ROOT, "f", libc::S_IFREG | 0o644)
        .await
        .unwrap();
    assert_eq!(t.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap(), f);
    assert_eq!(
        create(&t, Ino::ROOT, "f", libc::S_IFREG | 0o644).await,
        Err(TreeError::Exists)
    );
}
