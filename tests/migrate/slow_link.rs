//! A link between the two ends that is slow, and can be cut.

use std::net::SocketAddr;
use std::time::Duration;

use super::ends::{World, address_in};
use super::relay::{Link, Relay};

/// What may wait to go over it, in bytes.
const QUEUE_BYTES: usize = 64 << 10;

/// A link, which can be exchanged for a faster one at the same address.
pub(crate) struct SlowLink {
    slow: Relay,
    seeder: SocketAddr,
}

impl World {
    /// From now on leechers reach the seeder over a link of so many bits a second.
    pub(crate) fn put_link_before(&self, bits_per_s: u64) -> SlowLink {
        let ticket = std::fs::read_to_string(self.path("ticket")).expect("a ticket");
        let address = address_in(&ticket);
        let seeder = address.parse().expect("an address");
        let link = Link::symmetric(Duration::ZERO, 0.0, Some(bits_per_s), QUEUE_BYTES);
        let slow = Relay::to(seeder, link).expect("a link");
        let over_it = ticket.replace(address, &slow.address().to_string());
        std::fs::write(self.path("ticket-of-link"), over_it).expect("written");
        SlowLink { slow, seeder }
    }
}

impl SlowLink {
    pub(crate) fn cut(&self) {
        self.slow.cut();
    }

    pub(crate) fn mend(&self) {
        self.slow.mend();
    }

    /// As fast as it goes from here on, until what this gives is dropped.
    #[must_use]
    pub(crate) fn fast(self) -> Relay {
        let address = self.slow.address();
        drop(self.slow);
        let link = Link::symmetric(Duration::ZERO, 0.0, None, QUEUE_BYTES);
        Relay::start(address, self.seeder, link).expect("a link")
    }
}
