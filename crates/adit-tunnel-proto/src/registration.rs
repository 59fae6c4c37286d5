//! What connector and edge tell each other when a connection registers (tunnel-protocol.md §3.3, §3.4).

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use adit_config::{Secret, TunnelId};
use capnp::any_pointer;
use thiserror::Error;
use uuid::Uuid;

use crate::{
    generated::tunnelrpc_capnp as schema,
    rpc::{IncomingCall, Method, Results, RpcError},
};

/// A connection's request to serve a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Account tag of the credentials.
    pub account_tag: String,
    /// Secret of the credentials.
    pub secret: Secret,
    /// The tunnel.
    pub tunnel: TunnelId,
    /// Index of the connection, 0 first.
    pub index: u8,
    /// The connector process.
    pub client: Client,
    /// Address the connector dials from.
    pub origin_local_ip: Option<IpAddr>,
    /// Asks the edge to drop an older connection; never set by stock connectors.
    pub replace_existing: bool,
    /// Retries consumed so far (§1.3).
    pub previous_attempts: u8,
}

/// What a connector says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Random per process.
    pub id: Uuid,
    /// What it can do (§1.5).
    pub features: Vec<String>,
    /// Its release.
    pub version: String,
    /// `<os>_<arch>`.
    pub arch: String,
}

/// The edge's consent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The edge's id of the connection.
    pub connection_id: Uuid,
    /// Name of the place.
    pub location: String,
    /// Whether the rules come from the edge rather than from the connector.
    pub remotely_managed: bool,
}

/// The edge's refusal (§3.5).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("edge refused the registration: {cause}")]
pub struct Rejection {
    /// In words, or [`DUPLICATE_CAUSE`].
    pub cause: String,
    /// Least wait before the next attempt.
    pub retry_after: Duration,
    /// Whether another attempt can succeed.
    pub should_retry: bool,
}

impl Rejection {
    /// The refusal of a connection that exists already.
    pub fn duplicate() -> Self {
        Self { cause: DUPLICATE_CAUSE.to_owned(), retry_after: Duration::ZERO, should_retry: true }
    }

    /// A refusal for good.
    pub fn permanent(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), retry_after: Duration::ZERO, should_retry: false }
    }

    /// A refusal for now.
    pub fn temporary(cause: impl Into<String>, retry_after: Duration) -> Self {
        Self { cause: cause.into(), retry_after, should_retry: true }
    }

    /// Whether another address should be used (§3.5).
    pub fn is_duplicate(&self) -> bool {
        self.cause == DUPLICATE_CAUSE
    }
}

/// Why a call's parameters are of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    /// Not a valid message.
    #[error("parameters are malformed")]
    Malformed,
    /// An id does not have 16 bytes.
    #[error("{0} must have 16 bytes")]
    IdLength(&'static str),
    /// A text or list is longer than allowed.
    #[error("{0} is too long")]
    TooLong(&'static str),
}

impl From<RpcError> for ParameterError {
    fn from(_: RpcError) -> Self {
        Self::Malformed
    }
}

impl From<capnp::Error> for ParameterError {
    fn from(_: capnp::Error) -> Self {
        Self::Malformed
    }
}

/// Writes the parameters of `registerConnection`.
pub(crate) fn write_registration(
    params: any_pointer::Builder<'_>,
    registration: &Registration,
) -> capnp::Result<()> {
    let mut params = params.init_as::<schema::register_connection_params::Builder<'_>>();
    params.set_tunnel_id(registration.tunnel.as_bytes());
    params.set_conn_index(registration.index);
    let mut auth = params.reborrow().init_auth();
    auth.set_account_tag(&registration.account_tag);
    auth.set_tunnel_secret(registration.secret.expose());
    let mut options = params.init_options();
    options.set_replace_existing(registration.replace_existing);
    options.set_num_previous_attempts(registration.previous_attempts);
    if let Some(ip) = registration.origin_local_ip {
        // 16 bytes always: IPv4 goes IPv4-mapped (§3.4).
        let ip = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        options.set_origin_local_ip(&ip.octets());
    }
    let mut client = options.init_client();
    client.set_client_id(registration.client.id.as_bytes());
    client.set_version(&registration.client.version);
    client.set_arch(&registration.client.arch);
    let count = u32::try_from(registration.client.features.len()).unwrap_or(u32::MAX);
    let mut features = client.init_features(count);
    for (index, feature) in (0..count).zip(&registration.client.features) {
        features.set(index, feature);
    }
    Ok(())
}

/// Reads the parameters of `registerConnection`.
pub(crate) fn read_registration(call: &IncomingCall) -> Result<Registration, ParameterError> {
    call.read::<schema::register_connection_params::Owned, _>(|params| Ok(registration_of(params)))?
}

/// Writes the results of `registerConnection`.
pub(crate) fn write_outcome(
    results: any_pointer::Builder<'_>,
    outcome: &Result<Registered, Rejection>,
) -> capnp::Result<()> {
    let results = results.init_as::<schema::register_connection_results::Builder<'_>>();
    let result = results.init_result().init_result();
    match outcome {
        Ok(registered) => {
            let mut details = result.init_connection_details();
            details.set_uuid(registered.connection_id.as_bytes());
            details.set_location_name(&registered.location);
            details.set_tunnel_is_remotely_managed(registered.remotely_managed);
        }
        Err(rejection) => {
            let mut error = result.init_error();
            error.set_cause(&rejection.cause);
            error.set_retry_after(i64::try_from(rejection.retry_after.as_nanos()).unwrap_or(i64::MAX));
            error.set_should_retry(rejection.should_retry);
        }
    }
    Ok(())
}

/// Reads the results of `registerConnection`.
pub(crate) fn read_outcome(results: &Results) -> Result<Result<Registered, Rejection>, ParameterError> {
    results.read::<schema::register_connection_results::Owned, _>(|results| Ok(outcome_of(results)))?
}

fn outcome_of(
    results: schema::register_connection_results::Reader<'_>,
) -> Result<Result<Registered, Rejection>, ParameterError> {
    use schema::connection_response::result::{ConnectionDetails, Error};
    match results.get_result()?.get_result().which() {
        Ok(Error(error)) => {
            let error = error?;
            // A negative wait means none; a longer one than an hour is not believed.
            let retry_after = Duration::from_nanos(u64::try_from(error.get_retry_after()).unwrap_or(0));
            Ok(Err(Rejection {
                cause: text("cause", error.get_cause()?, CAUSE_BYTES_MAX)?,
                retry_after: retry_after.min(RETRY_AFTER_MAX),
                should_retry: error.get_should_retry(),
            }))
        }
        Ok(ConnectionDetails(details)) => {
            let details = details?;
            Ok(Ok(Registered {
                connection_id: uuid("connection id", details.get_uuid()?)?,
                location: text("location", details.get_location_name()?, TEXT_BYTES_MAX)?,
                remotely_managed: details.get_tunnel_is_remotely_managed(),
            }))
        }
        Err(_) => Err(ParameterError::Malformed),
    }
}

fn registration_of(
    params: schema::register_connection_params::Reader<'_>,
) -> Result<Registration, ParameterError> {
    let auth = params.get_auth()?;
    let options = params.get_options()?;
    let client = options.get_client()?;
    let secret = auth.get_tunnel_secret()?;
    if secret.len() > SECRET_BYTES_MAX {
        return Err(ParameterError::TooLong("secret"));
    }
    let features = client.get_features()?;
    if features.len() > FEATURES_MAX {
        return Err(ParameterError::TooLong("features"));
    }
    let features = features.iter().map(|feature| text("feature", feature?, TEXT_BYTES_MAX));
    Ok(Registration {
        account_tag: text("account tag", auth.get_account_tag()?, TEXT_BYTES_MAX)?,
        secret: Secret::new(secret.to_vec()),
        tunnel: TunnelId(uuid("tunnel id", params.get_tunnel_id()?)?),
        index: params.get_conn_index(),
        client: Client {
            id: uuid("client id", client.get_client_id()?)?,
            features: features.collect::<Result<_, _>>()?,
            version: text("version", client.get_version()?, TEXT_BYTES_MAX)?,
            arch: text("arch", client.get_arch()?, TEXT_BYTES_MAX)?,
        },
        origin_local_ip: ip(options.get_origin_local_ip()?),
        replace_existing: options.get_replace_existing(),
        previous_attempts: options.get_num_previous_attempts(),
    })
}

fn uuid(what: &'static str, bytes: &[u8]) -> Result<Uuid, ParameterError> {
    Uuid::from_slice(bytes).map_err(|_| ParameterError::IdLength(what))
}

fn text(
    what: &'static str,
    text: capnp::text::Reader<'_>,
    bytes_max: usize,
) -> Result<String, ParameterError> {
    if text.len() > bytes_max {
        return Err(ParameterError::TooLong(what));
    }
    text.to_string().map_err(|_| ParameterError::Malformed)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(octets));
    }
    let octets: [u8; 16] = bytes.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

/// Cause of the refusal of a connection that exists already (§3.5).
pub const DUPLICATE_CAUSE: &str = "EDUPCONN";

/// `registerConnection` of `RegistrationServer` (§3.2).
pub(crate) const REGISTER_CONNECTION: Method = Method { interface: 0xf716_95ec_7fe8_5497, ordinal: 0 };
/// `unregisterConnection` of `RegistrationServer` (§3.2).
pub(crate) const UNREGISTER_CONNECTION: Method = Method { interface: 0xf716_95ec_7fe8_5497, ordinal: 1 };
/// `updateLocalConfiguration` of `RegistrationServer` (§3.2).
pub(crate) const UPDATE_LOCAL_CONFIGURATION: Method = Method { interface: 0xf716_95ec_7fe8_5497, ordinal: 2 };
/// `registerUdpSession` of `SessionManager` (§3.2).
pub(crate) const REGISTER_UDP_SESSION: Method = Method { interface: 0x8394_45a5_9fb0_1686, ordinal: 0 };
/// `unregisterUdpSession` of `SessionManager` (§3.2).
pub(crate) const UNREGISTER_UDP_SESSION: Method = Method { interface: 0x8394_45a5_9fb0_1686, ordinal: 1 };
/// `updateConfiguration` of `ConfigurationManager` (§3.2).
pub(crate) const UPDATE_CONFIGURATION: Method = Method { interface: 0xb48e_dfbd_aa25_db04, ordinal: 0 };

/// Longest text kept of a registration, in bytes: with 64 features a connection costs below 20 KiB.
const TEXT_BYTES_MAX: usize = 256;
/// Longest refusal kept, in bytes; it is logged.
const CAUSE_BYTES_MAX: usize = 4096;
/// Longest secret, in bytes; real ones have 32.
const SECRET_BYTES_MAX: usize = 1024;
/// Most feature strings; stock connectors send about 7.
const FEATURES_MAX: u32 = 64;
/// Longest wait that an edge can impose.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
