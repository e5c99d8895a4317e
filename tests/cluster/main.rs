//! Two and more machines: the real program, mounted through the real kernel, with a real etcd and a real mongod.
//!
//! A missing server is a failure, never a skipped test.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod contents;
mod costs;
mod daemons;
mod damage;
mod exactly_once;
mod import;
mod joining;
mod load;
mod locks;
mod matrix;
mod merges;
mod names;
mod outages;
mod peers;
mod races;
mod replica_sets;
mod secure;
mod small_disk;

use common::mount::{Mount, Place};
use common::net::Machine;
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
        Cluster::at(&etcd.uri(), mongod.uri())
    }

    /// In the servers at these addresses.
    fn at(etcd: &str, mongodb: String) -> Cluster {
        let database = fresh_database();
        let options = ["--mongodb", &mongodb, "--etcd", etcd]
            .into_iter()
            .chain(["--database", &database, "--peer", "127.0.0.1:0"])
            .map(str::to_owned)
            .collect();
        Cluster {
            options,
            database,
            mongodb,
        }
    }

    /// The same, but its nodes give nothing to each other.
    fn without_peers(mut self) -> Cluster {
        let at = self.options.iter().position(|o| o == "--peer").unwrap();
        self.options.drain(at..at + 2);
        self
    }

    /// One more node, with an empty data directory.
    fn node(&self) -> Mount {
        self.node_with(&[])
    }

    fn node_with(&self, more: &[&str]) -> Mount {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Mount::start_at(Place::new(), &[&options, more].concat())
    }

    /// One on a machine of its own.
    fn node_on(&self, machine: &Machine) -> Mount {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        Mount::start_on(Some(machine.clone()), Place::new(), &options)
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
