//! The locks of hashes.

use super::*;

both_sides!(
    locks_exclude_and_fences_grow,
    locks_of_different_hashes_do_not_wait,
    a_waiter_that_gives_up_leaves_no_trace,
);

async fn locks_exclude_and_fences_grow(side: Side) {
    let side = Arc::new(side);
    let hash = hash_of(&random_bytes(8));
    let inside = Arc::new(AtomicBool::new(false));
    let fences = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tasks = (0..12).map(|i| {
        let (side, inside, fences) = (side.clone(), inside.clone(), fences.clone());
        tokio::spawn(async move {
            for _ in 0..3 {
                let lock = side.node(i).locks.acquire(&hash).await.unwrap();
                assert!(
                    !inside.swap(true, Ordering::SeqCst),
                    "two hold the same lock"
                );
                assert!(lock.is_valid());
                fences.lock().unwrap().push(lock.fence);
                tokio::time::sleep(Duration::from_millis(2)).await;
                inside.store(false, Ordering::SeqCst);
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let fences = fences.lock().unwrap();
    assert_eq!(fences.len(), 36);
    assert!(
        fences[0] > 0 && fences.is_sorted_by(|a, b| a < b),
        "{fences:?}"
    );
}

async fn locks_of_different_hashes_do_not_wait(side: Side) {
    let _held = side.node(0).locks.acquire(&hash_of(b"one")).await.unwrap();
    let other = hash_of(&random_bytes(8));
    let other = side.node(0).locks.acquire(&other);
    tokio::time::timeout(Duration::from_secs(5), other)
        .await
        .unwrap()
        .unwrap();
}

async fn a_waiter_that_gives_up_leaves_no_trace(side: Side) {
    let hash = hash_of(&random_bytes(8));
    let held = side.node(0).locks.acquire(&hash).await.unwrap();
    for i in 0..4 {
        let waiter = side.node(i).locks.acquire(&hash);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), waiter)
                .await
                .is_err()
        );
    }
    drop(held);
    let next = side.node(1).locks.acquire(&hash);
    let next = tokio::time::timeout(Duration::from_secs(5), next)
        .await
        .unwrap();
    assert!(next.unwrap().fence > 0);
}
