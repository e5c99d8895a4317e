//! What is wrong with published files, as far as one sees without reading them.
//!
//! That every part is there is told from an index alone. That a part is too short, or holds other bytes, is found by who
//! reads it, and noted in the files document for everybody.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};

use super::gridfs::{Bucket, object_id};
use super::mongo::{LARGE, SMALL, call, integer_field};
use crate::backend::Result;

/// What is wrong with what is not there.
pub(super) const MISSING: &str = "is missing";
/// When somebody read other bytes than there should be.
const DAMAGED: &str = "metadata.damaged";

impl Bucket {
    /// What is wrong with the file `id`.
    pub(super) async fn fault(&self, id: ObjectId) -> Result<Option<String>> {
        Ok(self.faults(&[id]).await?.remove(&id))
    }

    /// What is wrong with those of the files `ids` with which something is.
    pub(super) async fn faults(&self, ids: &[ObjectId]) -> Result<HashMap<ObjectId, String>> {
        let files = self
            .files
            .find(doc! { "_id": { "$in": ids } })
            .projection(doc! { "length": 1, "chunkSize": 1, DAMAGED: 1 });
        let files = async { files.await?.try_collect::<Vec<Document>>().await };
        let chunks = self.chunks.aggregate([
            doc! { "$match": { "files_id": { "$in": ids } } },
            doc! { "$group": { "_id": "$files_id", "count": { "$sum": 1 } } },
        ]);
        let chunks = async { chunks.await?.try_collect::<Vec<Document>>().await };
        let (files, chunks) = tokio::join!(
            call(LARGE, "look up stored files", files),
            call(LARGE, "count the chunks of stored files", chunks),
        );
        let mut counts = HashMap::new();
        for counted in chunks? {
            let count = integer_field(&counted, "count")?;
            counts.insert(object_id(&counted, "_id")?, count);
        }
        let missing = ids.iter().map(|id| (*id, MISSING.to_owned()));
        let mut faults: HashMap<_, _> = missing.collect();
        for file in files? {
            let id = object_id(&file, "_id")?;
            let count = counts.get(&id).copied().unwrap_or(0);
            match fault_of(&file, count) {
                Some(fault) => faults.insert(id, fault),
                None => faults.remove(&id),
            };
        }
        Ok(faults)
    }

    /// Notes that the bytes of the file `id` are not what they should be.
    pub(super) async fn condemn(&self, id: ObjectId) -> Result<()> {
        let note = doc! { "$set": { DAMAGED: DateTime::now() } };
        let update = self.files.update_one(doc! { "_id": id }, note);
        call(SMALL, "note that a stored file is damaged", update).await?;
        Ok(())
    }
}

fn fault_of(file: &Document, count: i64) -> Option<String> {
    let (Ok(length @ 0..), Ok(chunk @ 1..)) = (
        integer_field(file, "length"),
        integer_field(file, "chunkSize"),
    ) else {
        return Some("has no possible length".into());
    };
    let whole = length.unsigned_abs().div_ceil(chunk.unsigned_abs());
    let damaged = file.get_document("metadata");
    match damaged.is_ok_and(|metadata| metadata.contains_key("damaged")) {
        true => Some("was found damaged".into()),
        false if count.unsigned_abs() != whole => {
            Some(format!("has {count} chunks instead of {whole}"))
        }
        false => None,
    }
}
