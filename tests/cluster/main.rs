//! Two and more machines: the real program, mounted through the real kernel, with a real etcd and a real mongod.
//!
//! A missing server is a failure, never a skipped test.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod contents;
mod names;
mod outages;

use common::mount::{Mount, Place};
use common::servers::{Etcd, Mongod, fresh_database, shared_etcd, shared_mongod};

/// A tree of its own in the servers.
struct Cluster {
    options: Vec<String>,
    database: String,
    mongodb: String,
}

impl Cluster {
    /// In the servers that all tests share.
    fn shared() -> Cluster {
        Cluster::of(shared_etcd(), shared_mongod())
    }

    fn of(etcd: &Etcd, mongod: &Mongod) -> Cluster {
        let database = fresh_database();
        let mongodb = mongod.uri();
        let options = ["--mongodb", &mongodb, "--etcd", &etcd.uri()]
            .into_iter()
            .chain(["--database", &database])
            .map(str::to_owned)
            .collect();
        Cluster {
            options,
            database,
            mongodb,
        }
    }

    /// One more node, with an empty data directory.
    fn node(&self) -> Mount {
        self.node_with(&[])
    }

    fn node_with(&self, more: &[&str]) -> Mount {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Mount::start_at(Place::new(), &[&options, more].concat())
    }

    /// Asks the database as any program could.
    fn ask<T>(&self, question: impl AsyncFnOnce(mongodb::Database) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = mongodb::Client::with_uri_str(&self.mongodb).await.unwrap();
            question(client.database(&self.database)).await
        })
    }
}
