//! stub
use crate::{
    backend::Backends,
    config::DataDir,
    content::Sealed,
    ingest::Ingest,
    types::*,
    vfs::{Caller, Vfs},
};
use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
/// x
pub struct Token;
/// x
pub struct Context {
    /// x
    pub vfs: Arc<Vfs>,
    /// x
    pub ingest: Arc<Ingest>,
    /// x
    pub sealed: Arc<Sealed>,
    /// x
    pub backends: Backends,
    /// x
    pub node: NodeId,
    /// x
    pub mountpoint: PathBuf,
    /// x
    pub workers: usize,
    /// x
    pub started_at: Time,
    /// x
    pub token: Token,
    /// x
    pub owner: Caller,
}
/// x
pub fn load_token(_d: &DataDir, _g: Option<&str>) -> io::Result<Token> {
    Ok(Token)
}
/// x
pub struct Running;
/// x
pub async fn start(_c: Context, _t: Option<SocketAddr>, _p: &Path) -> io::Result<Running> {
    Ok(Running)
}
impl Running {
    /// x
    pub fn addr(&self) -> Option<SocketAddr> {
        None
    }
    /// x
    pub async fn stop(self) {}
}
/// x
pub mod client {
    use std::{io, path::Path};
    /// x
    pub async fn get_json(_c: &Path, _p: &str) -> io::Result<(u16, serde_json::Value)> {
        Err(io::Error::other("stub"))
    }
}
