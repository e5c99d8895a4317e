//! The `files` collection: one document per hash, changed only forward.
//!
//! The rule of [`Records::advance`] is part of the update's filter, so it holds between nodes without a lock.

use async_trait::async_trait;
use mongodb::Collection;
use mongodb::bson::{Bson, Document, doc};

use super::mongo::{SMALL, call, from_date, integer_field, to_date};
use crate::backend::{BackendError, FileRecord, Records, Result, forward};
use crate::types::{ContentHash, NodeId, Time};

/// The cluster's records.
pub(super) struct MongoRecords(pub(super) Collection<Document>);

#[async_trait]
impl Records for MongoRecords {
    async fn advance(&self, record: &FileRecord) -> Result<()> {
        let replaceable: Vec<&str> = forward::ALL
            .iter()
            .filter(|kept| forward::status_allows(**kept, record.status))
            .map(|kept| kept.as_str())
            .collect();
        let fence = record.fence as i64;
        let mut filter = doc! { "_id": record.hash.to_string(), "status": { "$in": replaceable } };
        if forward::fence_binds(record) {
            filter.insert("fence", doc! { "$lte": fence });
        }
        let mut set = doc! {
            "size": record.size as i64,
            "status": record.status.as_str(),
            "node": &record.node.0,
        };
        if let Some(worker) = &record.worker {
            set.insert("worker", worker);
        }
        if let Some(time) = record.started_at {
            set.insert("started_at", to_date(time));
        }
        if let Some(time) = record.done_at {
            set.insert("done_at", to_date(time));
        }
        let mut update = doc! {
            "$setOnInsert": {
                "filename": &record.filename,
                "uploaded_at": to_date(record.uploaded_at),
            },
            "$max": { "fence": fence },
        };
        match &record.error {
            Some(error) => {
                set.insert("error", error);
            }
            None => {
                update.insert("$unset", doc! { "error": "" });
            }
        }
        update.insert("$set", set);

        let upsert = self
            .0
            .update_one(filter.clone(), update.clone())
            .upsert(true);
        match call(SMALL, "write a record", upsert).await {
            Ok(_) => Ok(()),
            // There is a document that the filter does not match. Usually it is further on; but it may also have been
            // made between the server's look and its insert, and then it must be advanced.
            Err(e) if e.is_duplicate_key() => {
                let again = self.0.update_one(filter, update);
                call(SMALL, "write a record", again).await?;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    async fn get(&self, hash: &ContentHash) -> Result<Option<FileRecord>> {
        let find = self.0.find_one(doc! { "_id": hash.to_string() });
        let found = call(SMALL, "read a record", find).await?;
        found.map(|document| decode(*hash, &document)).transpose()
    }

    async fn remove(&self, hash: &ContentHash) -> Result<()> {
        let delete = self.0.delete_one(doc! { "_id": hash.to_string() });
        call(SMALL, "remove a record", delete).await?;
        Ok(())
    }
}

fn decode(hash: ContentHash, document: &Document) -> Result<FileRecord> {
    let lacks =
        |field: &str| BackendError::Corrupt(format!("the record of {hash} lacks a good `{field}`"));
    let text = |field: &str| document.get_str(field).ok().map(str::to_string);
    let time =
        |field: &str| -> Option<Time> { document.get_datetime(field).ok().copied().map(from_date) };
    let status = document.get("status").cloned().unwrap_or(Bson::Null);
    Ok(FileRecord {
        hash,
        filename: text("filename").ok_or_else(|| lacks("filename"))?,
        size: integer_field(document, "size")? as u64,
        status: mongodb::bson::from_bson(status).map_err(|_| lacks("status"))?,
        worker: text("worker"),
        node: NodeId(text("node").ok_or_else(|| lacks("node"))?),
        uploaded_at: time("uploaded_at").ok_or_else(|| lacks("uploaded_at"))?,
        started_at: time("started_at"),
        done_at: time("done_at"),
        fence: integer_field(document, "fence")? as u64,
        error: text("error"),
    })
}
