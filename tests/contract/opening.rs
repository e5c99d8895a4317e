//! What opening the backends says of servers and addresses.

use super::*;

async fn refusal(cluster: ClusterConfig) -> (BackendError, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let opened = backend::open(&config(dir.path(), Some(cluster)), &node("a"), None).await;
    (opened.map(|_| ()).unwrap_err(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_named_without_its_password() {
    let uri = format!(
        "mongodb://me:secret@127.0.0.1:{}/?replicaSet=rs0",
        free_port()
    );
    let (error, took) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("***@127.0.0.1"), "{error}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_addresses_are_refused_without_their_passwords() {
    let etcd = shared_etcd().uri();
    let mongo = shared_mongod().uri();
    for (mongo, etcd) in [
        ("mongodb://me:secret@", etcd.as_str()),
        ("http://me:secret@h:1", etcd.as_str()),
        ("me:secret@h:1", etcd.as_str()),
        ("mongodb://me:sec/ret@h:1", etcd.as_str()),
        (mongo.as_str(), "ftp://me:secret@h:1"),
        (mongo.as_str(), "http://me:secret@bad host:1"),
    ] {
        let (error, _) = refusal(cluster_config(mongo, etcd, 30)).await;
        assert!(
            matches!(error, BackendError::Unusable(_)),
            "{mongo} {etcd}: {error:?}"
        );
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert!(!format!("{error:?}").contains("sec/ret"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_outside_a_replica_set_is_explained() {
    for options in [&[][..], &["--replSet", "rs0"]] {
        let mongod = Mongod::start_with(options);
        let uri = format!("mongodb://127.0.0.1:{}/", mongod.port());
        let (error, _) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
        assert!(
            matches!(error, BackendError::Unusable(_)),
            "{options:?}: {error:?}"
        );
        assert!(error.to_string().contains("rs.initiate()"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_the_name_of_the_set_will_do() {
    let uri = format!("mongodb://127.0.0.1:{}", shared_mongod().port());
    // The URI cannot weaken what correctness rests on either.
    for options in [
        "",
        "/?w=0",
        "/?readConcernLevel=local&readPreference=secondary&w=1",
    ] {
        let cluster = cluster_config(&format!("{uri}{options}"), &shared_etcd().uri(), 30);
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), Some(cluster));
        let backends = backend::open(&config, &node("a"), None).await.unwrap();
        let path = dir.path().join("source");
        std::fs::write(&path, b"x").unwrap();
        let put = backends.blobs.put(&hash_of(b"x"), 1, &path, &|| true).await;
        assert!(matches!(put, Ok(Put::Stored(_))), "{options}: {put:?}");
        let log = backends.log.unwrap();
        assert_eq!(log.append(&entry(1, "x")).await.unwrap(), Append::Appended);
        log.changed(Seq(0)).await.unwrap();
        assert_eq!(log.head().await.unwrap(), Seq(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_format_is_refused() {
    let cluster = cluster_config(&shared_mongod().uri(), &shared_etcd().uri(), 30);
    let client = mongodb::Client::with_uri_str(&cluster.mongodb)
        .await
        .unwrap();
    let meta = client
        .database(&cluster.database)
        .collection::<Document>("meta");
    meta.insert_one(doc! { "_id": "format", "version": 2 })
        .await
        .unwrap();
    let (error, _) = refusal(cluster).await;
    assert!(matches!(error, BackendError::Unusable(_)), "{error:?}");
    assert!(error.to_string().contains("format 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_explained_without_them() {
    let mongod = Mongod::start_with(&["--auth"]);
    let uri = format!("mongodb://me:secret@127.0.0.1:{}/", mongod.port());
    let (error, _) = refusal(cluster_config(&uri, &shared_etcd().uri(), 30)).await;
    assert!(matches!(error, BackendError::Unusable(_)), "{error:?}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_with_users_is_served() {
    let etcd = Etcd::start();
    let mut client = etcd_client::Client::connect([etcd.uri()], None)
        .await
        .unwrap();
    client.user_add("root", "sec@ret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
    let uri = etcd.uri().replace("http://", "http://root:sec%40ret@");
    let side = Side::of(shared_mongod(), &uri, 30).await;
    assert!(
        side.node(0)
            .locks
            .acquire(&hash_of(b"x"))
            .await
            .unwrap()
            .fence
            > 0
    );
    let stranger = Side::of(shared_mongod(), &etcd.uri(), 30).await;
    assert_eq!(
        stranger
            .node(0)
            .locks
            .acquire(&hash_of(b"y"))
            .await
            .unwrap()
            .fence,
        0
    );
}
