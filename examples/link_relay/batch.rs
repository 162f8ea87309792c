//! Many datagrams with one system call.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// How many.
pub const BATCH: usize = 64;

/// Where datagrams of one kind of socket are received.
pub struct Inbox {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Vec<u8>,
    each: usize,
}

impl Inbox {
    /// Datagrams of more than `len` bytes are cut off behind the byte after that.
    pub fn new(len: usize) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, None),
            buffers: vec![0; BATCH * (len + 1)],
            each: len + 1,
        }
    }

    /// Hands what has arrived to `take`, at most a batch.
    pub fn receive(&mut self, socket: &UdpSocket, mut take: impl FnMut(&[u8], SockaddrStorage)) {
        let buffers = self.buffers.chunks_mut(self.each);
        let mut slices: Vec<_> = buffers.map(|part| [IoSliceMut::new(part)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        // Nothing has arrived, or the other end of a connected socket is away.
        let Ok(received) = recvmmsg(fd, &mut self.headers, slices.iter_mut(), flags, None) else {
            return;
        };
        for datagram in received {
            if let (Some(bytes), Some(address)) = (datagram.iovs().next(), datagram.address) {
                take(bytes, address);
            }
        }
    }
}

/// A row of datagrams that leave together.
pub struct Outbox(MultiHeaders<SockaddrStorage>);

impl Outbox {
    /// Room for a batch.
    pub fn new() -> Self {
        Self(MultiHeaders::preallocate(BATCH, None))
    }

    /// Sends them, at most a batch, each to its address if it has one. Gives how many went.
    pub fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        datagrams: impl Iterator<Item = (&'a [u8], Option<SockaddrStorage>)>,
    ) -> usize {
        let (slices, addresses): (Vec<_>, Vec<_>) = datagrams
            .take(BATCH)
            .map(|(bytes, to)| ([IoSlice::new(bytes)], to))
            .unzip();
        let flags = MsgFlags::MSG_DONTWAIT;
        let fd = socket.as_raw_fd();
        let sent = sendmmsg(fd, &mut self.0, &slices, &addresses, [], flags);
        sent.map_or(0, Iterator::count)
    }
}
