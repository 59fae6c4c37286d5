//! The networks that an interface of the machine is in: what a rule means that names an interface.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::socket::index_of;

/// Networks of the addresses of the interface `name`, as they are now.
///
/// # Errors
/// No such interface, or the system's.
pub fn networks_of(name: &str) -> io::Result<Vec<IpNet>> {
    let index = index_of(name)?;
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    rustix::net::send(&socket, &bytes, SendFlags::empty())?;
    let mut networks: Vec<IpNet> = Vec::new();
    let mut part = vec![0; PART_BYTES];
    loop {
        let (length, _) = rustix::net::recv(&socket, &mut part[..], RecvFlags::empty())?;
        let mut rest = &part[..length.min(PART_BYTES)];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            // Messages begin at multiples of four bytes (RFC 3549 §2.3.2).
            let taken = (message.header.length as usize).max(1).next_multiple_of(4);
            rest = rest.get(taken..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(networks),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                    let found = network(&address).filter(|_| address.header.index == index);
                    networks.extend(found.filter(|net| !networks.contains(net)));
                }
                _ => {}
            }
        }
    }
}

fn network(message: &AddressMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    Some(IpNet::new(address?, message.header.prefix_len).ok()?.trunc())
}

/// The kernel's parts of a dump have at most 32 KiB.
const PART_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_in_its_network_and_what_does_not_exist_is_named() {
        let networks = networks_of("lo").unwrap();
        assert!(networks.contains(&"127.0.0.0/8".parse().unwrap()), "{networks:?}");
        assert!(networks_of("no-such-if").is_err());
    }
}
