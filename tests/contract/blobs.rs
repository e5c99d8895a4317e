//! Content by hash.

use super::*;

both_sides!(
    what_was_put_can_be_read,
    of_many_puts_one_stores,
    a_closed_gate_publishes_nothing,
    a_put_can_be_repeated,
    removed_content_is_gone_and_can_be_stored_again,
    foreign_blob_ids_are_not_found,
    stored_content_is_not_unfinished,
    faults_are_told_one_by_one,
);

async fn what_was_put_can_be_read(side: Side) {
    // Around the sizes of a chunk and of a batch of chunks.
    let chunk = 255 * 1024;
    for len in [
        0,
        1,
        chunk - 1,
        chunk,
        chunk + 1,
        16 * chunk,
        16 * chunk + 1,
        40 * chunk + 7,
    ] {
        let bytes = random_bytes(len);
        let put = side.put(0, &bytes).await.unwrap();
        assert!(matches!(put, Put::Stored(_)), "{len}: {put:?}");
        assert!(side.read(1, put.blob()).await.unwrap() == bytes, "{len}");
    }
}

async fn of_many_puts_one_stores(side: Side) {
    let side = Arc::new(side);
    let bytes = Arc::new(random_bytes(600_000));
    let puts = (0..16).map(|i| {
        let (side, bytes) = (side.clone(), bytes.clone());
        tokio::spawn(async move { side.put(i, &bytes).await.unwrap() })
    });
    let puts: Vec<Put> = join_all(puts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let stored: Vec<&Put> = puts
        .iter()
        .filter(|p| matches!(p, Put::Stored(_)))
        .collect();
    assert_eq!(stored.len(), 1, "{puts:?}");
    assert!(puts.iter().all(|p| p.blob() == stored[0].blob()));
    assert!(side.read(0, stored[0].blob()).await.unwrap() == *bytes);
    if side.database.is_some() {
        assert_eq!(side.chunks().await, 3, "losers left chunks behind");
    }
}

async fn a_closed_gate_publishes_nothing(side: Side) {
    let bytes = random_bytes(1000);
    let (hash, path) = side.source(&bytes);
    let asked = AtomicUsize::new(0);
    let gate = || {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    };
    let put = side.node(0).blobs.put(&hash, 1000, &path, &gate).await;
    assert!(matches!(put, Err(BackendError::Cancelled)), "{put:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(side.chunks().await, 0);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    // Had anything been published, this would be a duplicate.
    assert!(matches!(side.put(0, &bytes).await.unwrap(), Put::Stored(_)));
}

async fn a_put_can_be_repeated(side: Side) {
    let bytes = random_bytes(1000);
    let (hash, path) = side.source(&bytes);
    let first = side
        .node(0)
        .blobs
        .put(&hash, 1000, &path, &|| true)
        .await
        .unwrap();
    let again = side
        .node(0)
        .blobs
        .put(&hash, 1000, &path, &|| true)
        .await
        .unwrap();
    assert_eq!(first.blob(), again.blob());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

async fn removed_content_is_gone_and_can_be_stored_again(side: Side) {
    let bytes = random_bytes(1000);
    let put = side.put(0, &bytes).await.unwrap();
    for _ in 0..2 {
        side.node(1).blobs.delete(put.blob()).await.unwrap();
    }
    let read = side.read(0, put.blob()).await;
    assert!(matches!(read, Err(BackendError::NotFound)), "{read:?}");
    assert_eq!(side.chunks().await, 0);
    let again = side.put(1, &bytes).await.unwrap();
    assert!(matches!(again, Put::Stored(_)));
    assert_eq!(side.read(0, again.blob()).await.unwrap(), bytes);
}

async fn foreign_blob_ids_are_not_found(side: Side) {
    for id in [
        "",
        "x",
        "../../../etc/passwd",
        &"0".repeat(64),
        &"0".repeat(24),
    ] {
        let blob = BlobId(id.to_string());
        let got = side.node(0).blobs.get(&blob).await.map(|_| ());
        assert!(matches!(got, Err(BackendError::NotFound)), "{id}: {got:?}");
        side.node(0).blobs.delete(&blob).await.unwrap();
    }
}

async fn stored_content_is_not_unfinished(side: Side) {
    let bytes = random_bytes(600_000);
    side.put(0, &bytes).await.unwrap();
    let unfinished = side.node(1).blobs.unfinished(Duration::ZERO).await;
    assert_eq!(unfinished.unwrap(), []);
}

async fn faults_are_told_one_by_one(side: Side) {
    let (gone, stays) = (random_bytes(600_000), random_bytes(1));
    let (gone, stays) = (
        side.put(0, &gone).await.unwrap(),
        side.put(1, &stays).await.unwrap(),
    );
    let foreign = BlobId("x".into());
    let asked = [foreign, gone.blob().clone(), stays.blob().clone()];
    for seen in [[true, false, false], [true, true, false]] {
        let faults = side.node(1).blobs.faults(&asked).await.unwrap();
        assert_eq!(
            faults.iter().map(Option::is_some).collect::<Vec<_>>(),
            seen,
            "{faults:?}"
        );
        for (blob, seen) in asked.iter().zip(seen) {
            assert_eq!(side.node(0).blobs.is_whole(blob).await.unwrap(), !seen);
        }
        side.node(0).blobs.delete(gone.blob()).await.unwrap();
    }
    assert!(side.node(0).blobs.faults(&[]).await.unwrap().is_empty());
}
