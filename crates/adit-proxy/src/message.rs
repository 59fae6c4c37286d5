//! The request and response that every protocol on either side is translated to and from.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use adit_route::mesh::MeshIdentity;
use http::{HeaderValue, Method, StatusCode, Uri, Version};

use crate::body::{Body, Length};
use crate::fields::Fields;
use crate::middleware::TlsInfo;

/// A request as a listener or a tunnel hands it on: head parsed and checked, body not yet read.
#[derive(Debug)]
pub struct Request {
    /// Method as sent.
    pub method: Method,
    /// Always has a path; authority and scheme only if the visitor sent an absolute form.
    pub uri: Uri,
    /// The visitor's protocol version.
    pub version: Version,
    /// Host without user information, as sent (`:authority` or `Host`), with port if one was given.
    pub host: String,
    /// All fields except those that frame the message; `Host` is not among them (see `host`).
    pub headers: Fields,
    /// Content; [`crate::body::Length::Raw`] if `upgrade` is set.
    pub body: Body,
    /// The protocol the visitor wants to switch to (RFC 9110 §7.8), such as `websocket`.
    pub upgrade: Option<Box<str>>,
    /// Who asks, and over what.
    pub visitor: Arc<Visitor>,
}

/// A response: what goes back to the visitor.
#[derive(Debug)]
pub struct Response {
    /// 101 means that `body` is the raw byte stream towards the visitor.
    pub status: StatusCode,
    /// All fields except those that frame the message.
    pub headers: Fields,
    /// Content.
    pub body: Body,
}

/// The visitor's connection.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// Address of the other end of the socket, or what a trusted hop said.
    pub remote: SocketAddr,
    /// The socket's own address.
    pub local: SocketAddr,
    /// True if the visitor's hop is encrypted.
    pub secure: bool,
    /// Name of the entry point that accepted the connection.
    pub entry_point: Arc<str>,
    /// The mesh's peer that was let in, on sockets that only those reach; whoever speaks from its address later is another.
    pub peer: Option<Arc<MeshIdentity>>,
    /// What the TLS handshake settled, if this process ended TLS.
    pub tls: Option<Arc<TlsInfo>>,
    /// The address as fields have it; `AddressText::default()`.
    pub address: AddressText,
}

/// An address as text, made once for all requests of a connection.
#[derive(Debug, Default)]
pub struct AddressText(OnceLock<Option<HeaderValue>>);

impl Clone for AddressText {
    /// Empty: a visitor is cloned to be given another address.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Visitor {
    /// The remote address without its port as a field's value, IPv4 in IPv6 as IPv4.
    pub fn address_text(&self) -> Option<&HeaderValue> {
        let make = || HeaderValue::try_from(self.remote.ip().to_canonical().to_string()).ok();
        self.address.0.get_or_init(make).as_ref()
    }
}

impl Request {
    /// Bytes of content, if there is any and its sender said how much.
    pub fn content_length(&self) -> Option<u64> {
        match self.body.length() {
            Length::Known(bytes) if bytes > 0 => Some(bytes),
            _ => None,
        }
    }
}

impl Response {
    /// A response without content.
    pub fn status(status: StatusCode) -> Self {
        Self { status, headers: Fields::new(), body: Body::empty() }
    }

    /// A response with text content.
    pub fn text(status: StatusCode, content_type: &'static str, text: impl Into<bytes::Bytes>) -> Self {
        let mut response = Self { status, headers: Fields::new(), body: Body::full(text) };
        response.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }
}

/// Answers requests. One per role; shared by all connections.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. Dropping the future aborts the exchange towards the origin.
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send;
}

impl<S: Service> Service for Arc<S> {
    fn call(&self, request: Request) -> impl Future<Output = Response> + Send {
        S::call(self, request)
    }
}
