//! Which method a request calls, and how that method says no.

use std::io;

use larder_protocol::error::ErrorCode;
use larder_protocol::handshake::Refusal;
use larder_protocol::service::admin::AdminError;
use larder_protocol::service::registry::RegistryError;
use larder_protocol::service::{LarderRequest, LarderResponse};
use tarpc::ServerError;

/// A method of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `hello`
    Hello,
    /// `query`
    Query,
    /// `promised`
    Promised,
    /// `renew`
    Renew,
    /// `breaks`
    Breaks,
    /// `mutate`
    Mutate,
    /// `stage`
    Stage,
    /// `write`
    Write,
    /// `commit`
    Commit,
    /// `sync`
    Sync,
    /// `volume`
    Volume,
    /// `admin`
    Admin,
    /// `registry`
    Registry,
    /// `transfer`
    Transfer,
    /// `goodbye`
    Goodbye,
    /// `stats`
    Stats,
}

impl Method {
    /// The method that a request calls.
    pub fn of(request: &LarderRequest) -> Method {
        match request {
            LarderRequest::Hello { .. } => Method::Hello,
            LarderRequest::Query { .. } => Method::Query,
            LarderRequest::Promised { .. } => Method::Promised,
            LarderRequest::Renew { .. } => Method::Renew,
            LarderRequest::Breaks { .. } => Method::Breaks,
            LarderRequest::Mutate { .. } => Method::Mutate,
            LarderRequest::Stage { .. } => Method::Stage,
            LarderRequest::Write { .. } => Method::Write,
            LarderRequest::Commit { .. } => Method::Commit,
            LarderRequest::Sync { .. } => Method::Sync,
            LarderRequest::Volume { .. } => Method::Volume,
            LarderRequest::Admin { .. } => Method::Admin,
            LarderRequest::Registry { .. } => Method::Registry,
            LarderRequest::Transfer { .. } => Method::Transfer,
            LarderRequest::Goodbye { .. } => Method::Goodbye,
            LarderRequest::Stats { .. } => Method::Stats,
        }
    }

    /// The answer that says no.
    ///
    /// # Errors
    /// The method has no way to say no, so there is no answer.
    pub fn failed(self, code: ErrorCode) -> Result<LarderResponse, ServerError> {
        Ok(match self {
            Method::Hello => LarderResponse::Hello(Err(Refusal::Unavailable)),
            Method::Query => LarderResponse::Query(Err(code)),
            Method::Promised => LarderResponse::Promised(Err(code)),
            Method::Renew => LarderResponse::Renew(Err(code)),
            Method::Breaks => LarderResponse::Breaks(Err(code)),
            Method::Mutate => LarderResponse::Mutate(Err(code)),
            Method::Stage => LarderResponse::Stage(Err(code)),
            Method::Write => LarderResponse::Write(Err(code)),
            Method::Commit => LarderResponse::Commit(Err(code)),
            Method::Sync => LarderResponse::Sync(Err(code)),
            Method::Volume => LarderResponse::Volume(Err(code)),
            Method::Admin => LarderResponse::Admin(Err(undone(code))),
            Method::Transfer => LarderResponse::Transfer(Err(undone(code))),
            Method::Registry => {
                let (service, cause) = ("this server's".to_owned(), code.to_string());
                LarderResponse::Registry(Err(RegistryError { service, cause }))
            }
            Method::Goodbye => LarderResponse::Goodbye(Err(code)),
            Method::Stats => return Err(ServerError::new(io::ErrorKind::Other, code.to_string())),
        })
    }
}

fn undone(code: ErrorCode) -> AdminError {
    AdminError { code, text: format!("the server did not carry it out: {code}") }
}
