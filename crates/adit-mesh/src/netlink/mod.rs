//! Addresses, MTU and routes of the interface, set by rtnetlink.

mod exit;
mod networks;
mod socket;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

pub use exit::Exit;
pub use networks::networks_of;
use socket::{RouteSocket, index_of};

/// What an interface should look like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfaceSpec {
    /// Longest IP packet, in bytes.
    pub mtu: u32,
    /// Own addresses with their networks.
    pub addresses: Vec<IpNet>,
    /// Networks to send into the interface, besides those of its addresses.
    pub routes: Vec<IpNet>,
    /// Routing table of the routes; `None` for the main table.
    pub table: Option<u32>,
    /// Everything that has no better route goes into the interface, but for the mesh's own datagrams.
    pub exit: Option<Exit>,
}

/// An interface of this network namespace, and what was applied to it.
#[derive(Debug)]
pub struct Interface {
    socket: RouteSocket,
    index: u32,
    applied: InterfaceSpec,
}

/// What could not be set.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No netlink socket, or no such interface.
    #[error("cannot reach the interface `{name}`")]
    Lookup {
        /// Its name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a change.
    #[error("cannot {what}")]
    Refused {
        /// What was to be done.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Interface {
    /// Finds the interface `name`.
    ///
    /// # Errors
    /// [`InterfaceError::Lookup`].
    pub fn find(name: &str) -> Result<Self, InterfaceError> {
        let lookup = |source| InterfaceError::Lookup { name: name.to_owned(), source };
        let socket = RouteSocket::open().map_err(lookup)?;
        let index = index_of(name).map_err(lookup)?;
        Ok(Self { socket, index, applied: InterfaceSpec::default() })
    }

    /// Number of the interface.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Brings the interface up as `spec` says; a second call changes only what differs from the first.
    ///
    /// # Errors
    /// [`InterfaceError::Refused`] at the first change that the kernel refuses; those before it stand.
    pub fn apply(&mut self, spec: &InterfaceSpec) -> Result<(), InterfaceError> {
        if self.applied.mtu != spec.mtu {
            self.link(spec.mtu)?;
            self.applied.mtu = spec.mtu;
        }
        if self.applied.table != spec.table {
            self.remove_routes(|_| true)?;
            self.applied.table = spec.table;
        }
        if self.applied.exit != spec.exit {
            self.exit(spec.exit)?;
        }
        self.remove_routes(|route| !spec.routes.contains(route))?;
        for address in self.applied.addresses.clone() {
            if !spec.addresses.contains(&address) {
                self.address(address, false)?;
                self.applied.addresses.retain(|other| *other != address);
            }
        }
        for &address in &spec.addresses {
            if !self.applied.addresses.contains(&address) {
                self.address(address, true)?;
                self.applied.addresses.push(address);
            }
        }
        for &route in &spec.routes {
            if !self.applied.routes.contains(&route) {
                self.route(route, true)?;
                self.applied.routes.push(route);
            }
        }
        Ok(())
    }

    /// Sets, changes or removes the default routes into the interface.
    fn exit(&mut self, exit: Option<Exit>) -> Result<(), InterfaceError> {
        if let Some(old) = self.applied.exit.take() {
            exit::set(&self.socket, self.index, old, false)?;
        }
        if let Some(new) = exit {
            exit::set(&self.socket, self.index, new, true)?;
            self.applied.exit = Some(new);
        }
        Ok(())
    }

    fn remove_routes(&mut self, gone: impl Fn(&IpNet) -> bool) -> Result<(), InterfaceError> {
        for route in self.applied.routes.clone() {
            if gone(&route) {
                self.route(route, false)?;
                self.applied.routes.retain(|other| *other != route);
            }
        }
        Ok(())
    }

    fn link(&self, mtu: u32) -> Result<(), InterfaceError> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let segments = train_segments(mtu);
        message.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(TX_QUEUE_LEN)];
        let what = format!("bring the interface up with MTU {mtu}");
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK, what)?;
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.attributes = vec![
            LinkAttribute::GsoMaxSegs(segments),
            LinkAttribute::GsoMaxSize(segments * mtu),
            LinkAttribute::GsoIpv4MaxSize(segments * mtu),
        ];
        // A wish, and unknown to old kernels: a longer super-packet works, it only makes a short train.
        if let Err(error) = self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK, String::new()) {
            tracing::debug!(%error, "the kernel does not bound its super-packets");
        }
        Ok(())
    }

    fn address(&self, address: IpNet, add: bool) -> Result<(), InterfaceError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = self.index;
        // Nobody on a tunnel could answer (RFC 4862 §5.4), and until the wait is over nobody can bind the address.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes =
            vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        if add {
            let what = format!("give the interface the address {address}");
            let message = RouteNetlinkMessage::NewAddress(message);
            self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, what)
        } else {
            let what = format!("take the address {address} from the interface");
            self.request(RouteNetlinkMessage::DelAddress(message), NLM_F_ACK, what)
        }
    }

    fn route(&self, route: IpNet, add: bool) -> Result<(), InterfaceError> {
        let message = route_message(route, self.index, self.applied.table);
        if add {
            let what = format!("route {route} into the interface");
            let message = RouteNetlinkMessage::NewRoute(message);
            self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, what)
        } else {
            let what = format!("remove the route of {route}");
            self.request(RouteNetlinkMessage::DelRoute(message), NLM_F_ACK, what)
        }
    }

    fn request(&self, message: RouteNetlinkMessage, flags: u16, what: String) -> Result<(), InterfaceError> {
        self.socket.request(message, flags).map_err(|source| InterfaceError::Refused { what, source })
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        // The interface takes its addresses and routes along; rules belong to nobody.
        if let Err(error) = self.exit(None) {
            tracing::warn!(%error, "routing rules of the mesh's exit are left behind");
        }
    }
}

/// A route of `route` into the interface `index`, in the main table unless another is named.
fn route_message(route: IpNet, index: u32, table: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.addr());
    message.header.destination_prefix_length = route.prefix_len();
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if route.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    if let Some(table) = table {
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(table));
    }
    message.attributes.push(RouteAttribute::Destination(route.network().into()));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// How many packets of `mtu` bytes fit one UDP train: 65,507 bytes of payload with 32 bytes of
/// WireGuard around each packet. Super-packets of that size fill trains without a short one behind.
fn train_segments(mtu: u32) -> u32 {
    (65_507 / (mtu + 32)).clamp(1, 64)
}

/// Packets that wait for the lane's thread. The kernel's 500 are 0.7 ms of full packets at 8 Gbit/s, less
/// than a thread may be off its core; 1,000 super-packets are 64 MiB, which their senders' socket buffers
/// pay for.
const TX_QUEUE_LEN: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn super_packets_are_as_long_as_a_train() {
        assert_eq!(train_segments(1420), 45);
        assert_eq!(train_segments(1280), 49);
        assert_eq!(train_segments(65_455), 1);
    }
}
