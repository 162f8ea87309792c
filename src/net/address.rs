//! The address that goes into a ticket.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::wire::HostPort;
use crate::{Error, Result};

/// The address listened on; where that is every address, this host's first one that others can
/// reach.
pub(super) fn advertised(listening: SocketAddr) -> Result<HostPort> {
    let address = listening.ip();
    let address = if address.is_unspecified() {
        first_reachable(address.is_ipv4())?
    } else {
        address
    };
    Ok(HostPort {
        host: address.to_string(),
        port: listening.port(),
    })
}

fn first_reachable(only_v4: bool) -> Result<IpAddr> {
    let interfaces = getifaddrs().map_err(|errno| {
        Error::io(
            "cannot list this host's addresses",
            std::io::Error::from(errno),
        )
    })?;
    let addresses: Vec<IpAddr> = interfaces
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| is_reachable(*address))
        .collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let any = addresses.first().filter(|_| !only_v4);
    // A host without a network still serves itself.
    let loopback = IpAddr::from([127, 0, 0, 1]);
    Ok(v4.or(any).copied().unwrap_or(loopback))
}

fn is_reachable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_listened_on_is_advertised_as_it_is() {
        let listening = "192.0.2.1:4480".parse().expect("an address");
        let advertised = advertised(listening).expect("as it is");
        assert_eq!(advertised.to_string(), "192.0.2.1:4480");
        let listening = "[2001:db8::1]:4480".parse().expect("an address");
        let advertised = super::advertised(listening).expect("as it is");
        assert_eq!(advertised.to_string(), "[2001:db8::1]:4480");
    }

    #[test]
    fn every_address_becomes_one_that_is_not_every_address() {
        for listening in ["0.0.0.0:1", "[::]:1"] {
            let listening = listening.parse().expect("an address");
            let advertised = advertised(listening).expect("some address");
            let address: IpAddr = advertised.host.parse().expect("an address");
            assert!(!address.is_unspecified());
            assert_eq!(advertised.port, 1);
        }
    }
}
