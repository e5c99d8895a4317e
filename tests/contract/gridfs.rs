//! GridFS as others see it, and what can become of it.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_content_is_plain_gridfs() {
    let side = Side::cluster().await;
    let bytes = random_bytes(20 * 255 * 1024 + 11);
    let put = side.put(0, &bytes).await.unwrap();
    let id = ObjectId::parse_str(&put.blob().0).unwrap();
    let bucket = side.database.as_ref().unwrap().gridfs_bucket(None);
    let name = hash_of(&bytes).to_string();
    let file = bucket
        .find_one(doc! { "filename": &name })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(file.id, Bson::ObjectId(id));
    assert_eq!(file.chunk_size_bytes, 261_120);
    assert_eq!(file.length, bytes.len() as u64);
    let mut read = Vec::new();
    let mut stream = bucket
        .open_download_stream(Bson::ObjectId(id))
        .await
        .unwrap();
    futures_util::AsyncReadExt::read_to_end(&mut stream, &mut read)
        .await
        .unwrap();
    assert!(read == bytes);
    let indexes = side.collection("fs.chunks").list_indexes().await.unwrap();
    let indexes: Vec<_> = futures_util::TryStreamExt::try_collect(indexes)
        .await
        .unwrap();
    let unique = indexes.iter().any(|index: &mongodb::IndexModel| {
        index.keys == doc! { "files_id": 1, "n": 1 }
            && index
                .options
                .as_ref()
                .is_some_and(|o| o.unique == Some(true))
    });
    assert!(unique);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_what_they_claim_are_not_published() {
    let side = Side::cluster().await;
    let (_, path) = side.source(&random_bytes(600_000));
    let claimed = hash_of(b"something else");
    for size in [600_000, 14] {
        let put = side
            .node(0)
            .blobs
            .put(&claimed, size, &path, &|| true)
            .await;
        assert!(matches!(put, Err(BackendError::Corrupt(_))), "{put:?}");
    }
    assert_eq!(side.chunks().await, 0);
    assert!(matches!(
        side.put(0, b"something else").await.unwrap(),
        Put::Stored(_)
    ));
}

/// What can become of the chunks of an object without anybody's will.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Removed(i32),
    Resized(i32, usize),
    Emptied,
}

impl Damage {
    async fn befall(self, side: &Side, blob: &BlobId) {
        let chunks = side.collection("fs.chunks");
        let mut chunk = doc! { "files_id": ObjectId::parse_str(&blob.0).unwrap() };
        match self {
            Damage::Removed(n) => {
                chunk.insert("n", n);
                chunks.delete_one(chunk).await.unwrap();
            }
            Damage::Resized(n, len) => {
                chunk.insert("n", n);
                let data = mongodb::bson::Binary {
                    subtype: mongodb::bson::spec::BinarySubtype::Generic,
                    bytes: vec![7; len],
                };
                let set = doc! { "$set": { "data": data } };
                chunks.update_one(chunk, set).await.unwrap();
            }
            Damage::Emptied => drop(chunks.delete_many(chunk).await.unwrap()),
        }
    }

    const ALL: [Damage; 6] = [
        Damage::Removed(0),
        Damage::Removed(1),
        Damage::Removed(2),
        Damage::Resized(1, 100),
        Damage::Resized(2, 300 * 1024),
        Damage::Emptied,
    ];
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_and_short_chunks_are_damage() {
    let side = Side::cluster().await;
    for damage in Damage::ALL {
        let put = side.put(0, &random_bytes(3 * 255 * 1024)).await.unwrap();
        damage.befall(&side, put.blob()).await;
        let e = side.read(0, put.blob()).await.unwrap_err();
        let BackendError::Io(e) = e else {
            panic!("{damage:?}: {e}")
        };
        // A kind of trouble of its own: no waiting helps.
        let e = e.downcast::<BackendError>().unwrap();
        assert!(matches!(e, BackendError::Corrupt(_)), "{damage:?}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_object_is_a_duplicate_of_nothing() {
    let side = Side::cluster().await;
    for damage in Damage::ALL {
        let bytes = random_bytes(3 * 255 * 1024);
        let first = side.put(0, &bytes).await.unwrap();
        assert!(side.node(0).blobs.is_whole(first.blob()).await.unwrap());
        damage.befall(&side, first.blob()).await;
        // What only a reader can see, a reader says.
        if let Damage::Resized(..) = damage {
            side.node(0).blobs.condemn(first.blob()).await.unwrap();
        }
        assert!(!side.node(1).blobs.is_whole(first.blob()).await.unwrap());
        let again = side.put(1, &bytes).await.unwrap();
        assert!(matches!(again, Put::Stored(_)), "{damage:?}: {again:?}");
        assert!(side.read(0, again.blob()).await.unwrap() == bytes);
        assert!(side.node(0).blobs.is_whole(again.blob()).await.unwrap());
        let found = side.put(0, &bytes).await.unwrap();
        assert_eq!(found, Put::Duplicate(again.blob().clone()), "{damage:?}");
        side.node(0).blobs.delete(again.blob()).await.unwrap();
        assert_eq!(side.chunks().await, 0, "{damage:?}");
    }
    // What is not there cannot be noted, and is no error.
    let gone = BlobId("0".repeat(24));
    side.node(0).blobs.condemn(&gone).await.unwrap();
    assert!(!side.node(0).blobs.is_whole(&gone).await.unwrap());
}

fn aged_id(age: Duration) -> ObjectId {
    let mut bytes = ObjectId::new().bytes();
    let now = std::time::SystemTime::now();
    let then = now.duration_since(std::time::UNIX_EPOCH).unwrap() - age;
    bytes[..4].copy_from_slice(&(then.as_secs() as u32).to_be_bytes());
    ObjectId::from_bytes(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_objects_are_listed_in_pages() {
    let side = Side::cluster().await;
    let blobs = &side.node(1).blobs;
    let mut expected = Vec::new();
    for n in 0..5 {
        let bytes = random_bytes(n);
        let put = side.put(0, &bytes).await.unwrap();
        let (blob, hash) = (put.blob().clone(), hash_of(&bytes));
        expected.push(Object { blob, hash });
    }
    expected.sort_by(|a, b| a.blob.0.cmp(&b.blob.0));
    let hour = Duration::from_secs(3600);
    // What somebody else put there is not ours, and hides nothing.
    let foreign = [aged_id(hour), aged_id(hour), aged_id(hour)];
    for (n, id) in foreign.into_iter().enumerate() {
        let files = side.collection("fs.files");
        let file = doc! { "_id": id, "filename": format!("foreign-{n}") };
        files.insert_one(file).await.unwrap();
    }
    let young = blobs.published(None, 2 * hour, 10).await.unwrap();
    assert_eq!(young, Page::default());
    // Ids begin with their second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut found: Vec<Object> = Vec::new();
    let mut after = None;
    loop {
        let page = blobs.published(after.as_ref(), Duration::ZERO, 2).await;
        let page = page.unwrap();
        found.extend(page.objects);
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_uploads_are_told_from_slow_ones() {
    let side = Side::cluster().await;
    let hours = |h: u64| Duration::from_secs(h * 3600);
    let chunks = side.collection("fs.chunks");
    let stored = side.put(0, &random_bytes(600_000)).await.unwrap();
    // Dead; recent; and long under way, but alive a moment ago.
    let uploads = [
        (hours(2), hours(2)),
        (hours(0), hours(0)),
        (hours(9), hours(0)),
    ];
    let mut ids = Vec::new();
    for (begun, last) in uploads {
        let id = aged_id(begun);
        ids.push(BlobId(id.to_hex()));
        for (n, age) in [(0, begun), (1, last)] {
            let data = mongodb::bson::Binary {
                subtype: mongodb::bson::spec::BinarySubtype::Generic,
                bytes: vec![1; 10],
            };
            let chunk = doc! { "_id": aged_id(age), "files_id": id, "n": n, "data": data };
            chunks.insert_one(chunk).await.unwrap();
        }
    }
    let blobs = &side.node(0).blobs;
    assert_eq!(blobs.unfinished(hours(1)).await.unwrap(), ids[..1]);
    blobs.delete(&ids[0]).await.unwrap();
    assert_eq!(side.chunks().await, 3 + 4);
    assert_eq!(blobs.unfinished(hours(1)).await.unwrap(), []);
    assert_eq!(side.read(0, stored.blob()).await.unwrap().len(), 600_000);
}
