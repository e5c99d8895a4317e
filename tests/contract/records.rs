//! The public records of contents.

use super::*;

both_sides!(records_only_go_forward, records_heed_fences,);

fn record(hash: ContentHash, status: Status, fence: u64) -> FileRecord {
    FileRecord {
        hash,
        filename: format!("at-{status}-{fence}.txt"),
        size: 5_000_000_000,
        status,
        worker: Some(format!("worker-{fence}")),
        node: node("a"),
        uploaded_at: Time(1_700_000_000_000_000_000 + fence as i64 * 1_000_000_000),
        started_at: (status > Status::Queued).then_some(Time(1_700_000_100_123_000_000)),
        done_at: (status >= Status::Done).then_some(Time(1_700_000_200_000_000_000)),
        fence,
        error: (status == Status::Failed).then(|| "no space".to_string()),
    }
}

async fn records_only_go_forward(side: Side) {
    use Status::*;
    let hash = hash_of(&random_bytes(8));
    let (writer, reader) = (&side.node(0).records, &side.node(1).records);
    assert_eq!(reader.get(&hash).await.unwrap(), None);
    for (write, expected) in [
        (Queued, Queued),
        (Processing, Processing),
        (Queued, Processing),
        (Failed, Failed),
        (Queued, Failed),
        (Processing, Processing),
    ] {
        writer.advance(&record(hash, write, 1)).await.unwrap();
        let kept = reader.get(&hash).await.unwrap().unwrap();
        assert_eq!(kept.status, expected, "after {write}");
        assert_eq!(kept.error.is_some(), expected == Failed, "after {write}");
        // Of the first writer.
        assert_eq!(kept.filename, "at-queued-1.txt");
        assert_eq!(kept.uploaded_at, record(hash, Queued, 1).uploaded_at);
        assert_eq!(kept.size, 5_000_000_000);
        if kept.status != Queued {
            assert_eq!(kept.started_at, record(hash, Processing, 1).started_at);
        }
    }
    writer.advance(&record(hash, Done, 1)).await.unwrap();
    if let Some(kept) = reader.get(&hash).await.unwrap() {
        assert_eq!(
            (kept.status, kept.done_at),
            (Done, record(hash, Done, 1).done_at)
        );
        writer.advance(&record(hash, Processing, 9)).await.unwrap();
        assert_eq!(reader.get(&hash).await.unwrap().unwrap().status, Done);
    } else {
        assert!(
            side.database.is_none(),
            "only the embedded side forgets what is done"
        );
    }
    writer.remove(&hash).await.unwrap();
    writer.remove(&hash).await.unwrap();
    assert_eq!(reader.get(&hash).await.unwrap(), None);
}

async fn records_heed_fences(side: Side) {
    use Status::*;
    let hash = hash_of(&random_bytes(8));
    let records = &side.node(0).records;
    let status = async || {
        records
            .get(&hash)
            .await
            .unwrap()
            .map(|r| (r.status, r.fence))
    };
    records.advance(&record(hash, Processing, 5)).await.unwrap();
    for late in [
        record(hash, Failed, 4),
        record(hash, Done, 4),
        record(hash, Failed, 0),
    ] {
        records.advance(&late).await.unwrap();
        assert_eq!(status().await, Some((Processing, 5)), "{late:?}");
    }
    records.advance(&record(hash, Processing, 7)).await.unwrap();
    assert_eq!(status().await, Some((Processing, 7)));
    // A worker that had no lock service to ask still tells that the content is stored.
    records.advance(&record(hash, Done, 0)).await.unwrap();
    let kept = status().await;
    assert!(kept.is_none() || kept == Some((Done, 7)), "{kept:?}");
}
