//! A UDP link between clients and a server: delay, loss, a rate and a bounded queue in each
//! direction. It can be cut and mended while it runs. For tests and measurements.
//!
//! A datagram that arrives is lost by chance, or dropped when the queue is full; else it leaves when
//! those before it have left at the link's rate, and is delivered after the delay.

#[path = "batch.rs"]
mod batch;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{SockaddrStorage, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use batch::{Inbox, Outbox};

/// What IPv4 and UDP add to a payload, in bytes.
const HEADER_BYTES: usize = 28;

/// How many datagrams are on the way in a direction; what is above is dropped.
const IN_FLIGHT_MAX: usize = 1 << 17;

/// How many clients there are; the one that came first is forgotten for a further one.
const CLIENTS_MAX: usize = 64;

/// How soon an order to stop or to cut is seen.
const ATTENTION: Duration = Duration::from_millis(10);

/// What is delivered by so much later than it should counts as late.
const LATE: Duration = Duration::from_millis(1);

const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// One direction of a link.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// How long a datagram is under way once it has left.
    pub delay: Duration,
    /// The part of all datagrams that is lost, from 0 to 1.
    pub loss: f64,
    /// Bits a second, headers included; `None` for as fast as it goes.
    pub rate_bits_per_s: Option<u64>,
    /// What may wait to leave, in bytes; the rest is dropped. Without a rate nothing waits.
    pub queue_bytes: usize,
}

/// A link.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// From the clients to the server.
    pub up: Path,
    /// From the server to the clients.
    pub down: Path,
    /// The largest packet, headers included; larger ones are dropped.
    pub mtu_bytes: usize,
    /// Which datagrams are lost: the same ones, counted in each direction, for the same seed.
    pub seed: u64,
}

impl Link {
    /// The same both ways, each with half of the round trip time.
    pub fn symmetric(rtt: Duration, loss: f64, rate_bits_per_s: Option<u64>, queue: usize) -> Self {
        let path = Path {
            delay: rtt / 2,
            loss,
            rate_bits_per_s,
            queue_bytes: queue,
        };
        Self {
            up: path,
            down: path,
            mtu_bytes: 1500,
            seed: 1,
        }
    }
}

/// What became of the datagrams of both directions.
#[derive(Debug, Default)]
pub struct Counters {
    /// Delivered.
    pub delivered: AtomicU64,
    /// Of these, more than a millisecond after they were due: the machine was busy.
    pub late: AtomicU64,
    /// Lost by chance.
    pub lost: AtomicU64,
    /// Dropped: the queue was full, the packet too large, or the link cut.
    pub dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    cut: AtomicBool,
    counters: Counters,
}

/// A link that is up until it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Listens on `listen` and passes what comes to the server at `to`, and back.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn start(listen: SocketAddr, to: SocketAddr, link: Link) -> io::Result<Self> {
        let socket = socket(listen)?;
        let address = socket.local_addr()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("link-relay".to_owned())
            .spawn(move || {
                go_first();
                Running::new(link, to, theirs).run(Arc::new(socket));
            })?;
        Ok(Self {
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// A link on a free port of the loopback interface.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn to(server: SocketAddr, link: Link) -> io::Result<Self> {
        Self::start((Ipv4Addr::LOCALHOST, 0).into(), server, link)
    }

    /// Where clients find the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing gets through, nor does what is under way.
    pub fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// What comes gets through again.
    pub fn mend(&self) {
        self.shared.cut.store(false, Ordering::Relaxed);
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let size = SOCKET_BUFFER_BYTES;
    if setsockopt(&socket, sockopt::RcvBufForce, &size).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &size);
    }
    if setsockopt(&socket, sockopt::SndBufForce, &size).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &size);
    }
    Ok(socket)
}

/// A client, and the socket by which the server sees it.
struct Client {
    address: SockaddrStorage,
    socket: Arc<UdpSocket>,
}

/// A datagram on its way.
struct Datagram {
    due: Instant,
    by: Arc<UdpSocket>,
    /// `None` where the socket is connected.
    to: Option<SockaddrStorage>,
    bytes: Box<[u8]>,
}

/// One direction of a link that is up.
struct Direction {
    path: Path,
    dice: u64,
    /// When all that waits will have left.
    busy_until: Instant,
    in_flight: VecDeque<Datagram>,
}

impl Direction {
    fn new(path: Path, seed: u64) -> Self {
        Self {
            path,
            dice: seed,
            busy_until: Instant::now(),
            in_flight: VecDeque::new(),
        }
    }

    /// Takes a datagram that arrived at `now`, unless there is no room for it.
    fn take(
        &mut self,
        now: Instant,
        bytes: &[u8],
        by: &Arc<UdpSocket>,
        to: Option<SockaddrStorage>,
        counters: &Counters,
    ) {
        if self.is_lost() {
            counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(leaves) = self.leaves(now, bytes.len() + HEADER_BYTES) else {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.in_flight.push_back(Datagram {
            due: leaves + self.path.delay,
            by: Arc::clone(by),
            to,
            bytes: bytes.into(),
        });
    }

    /// When a packet will have left; `None` if the queue is full.
    fn leaves(&mut self, now: Instant, len: usize) -> Option<Instant> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        let Some(rate) = self.path.rate_bits_per_s else {
            return Some(now);
        };
        let waiting = self.busy_until.saturating_duration_since(now);
        let waiting_bytes = waiting.as_secs_f64() * rate as f64 / 8.0;
        if waiting_bytes + len as f64 > self.path.queue_bytes as f64 {
            return None;
        }
        let sending = Duration::from_secs_f64(len as f64 * 8.0 / rate as f64);
        self.busy_until = self.busy_until.max(now) + sending;
        Some(self.busy_until)
    }

    /// A generator of the kind of splitmix64 decides.
    fn is_lost(&mut self) -> bool {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((mixed >> 11) as f64 / (1u64 << 53) as f64) < self.path.loss
    }

    /// Delivers what is due.
    fn deliver(&mut self, now: Instant, outbox: &mut Outbox, counters: &Counters) {
        while let Some(first) = self.in_flight.front().filter(|first| first.due <= now) {
            let socket = Arc::clone(&first.by);
            let due = self
                .in_flight
                .iter()
                .take_while(|next| next.due <= now && Arc::ptr_eq(&next.by, &socket))
                .map(|next| (&*next.bytes, next.to));
            let sent = outbox.send(&socket, due);
            let gone = self.in_flight.drain(..sent);
            let late = gone.filter(|datagram| now > datagram.due + LATE).count();
            counters.late.fetch_add(late as u64, Ordering::Relaxed);
            counters.delivered.fetch_add(sent as u64, Ordering::Relaxed);
            if sent == 0 {
                // Nobody listens there at this time, or its buffers are full.
                counters.dropped.fetch_add(1, Ordering::Relaxed);
                self.in_flight.pop_front();
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.in_flight.front().map(|first| first.due)
    }
}

/// What the relay's thread has.
struct Running {
    clients: Vec<Client>,
    up: Direction,
    down: Direction,
    payload_bytes_max: usize,
    from_clients: Inbox,
    from_server: Inbox,
    outbox: Outbox,
    shared: Arc<Shared>,
    to: SocketAddr,
}

impl Running {
    fn new(link: Link, to: SocketAddr, shared: Arc<Shared>) -> Self {
        let payload = link.mtu_bytes.saturating_sub(HEADER_BYTES);
        Self {
            clients: Vec::new(),
            up: Direction::new(link.up, link.seed),
            down: Direction::new(link.down, link.seed ^ 0x5555_5555_5555_5555),
            payload_bytes_max: payload,
            from_clients: Inbox::new(payload),
            from_server: Inbox::new(payload),
            outbox: Outbox::new(),
            shared,
            to,
        }
    }

    fn run(mut self, listening: Arc<UdpSocket>) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if self.wait(&listening).is_err() {
                return;
            }
            if self.shared.cut.load(Ordering::Relaxed) {
                self.up.in_flight.clear();
                self.down.in_flight.clear();
            }
            self.take_from_clients(&listening);
            self.take_from_server(&listening);
            let now = Instant::now();
            let counters = &self.shared.counters;
            self.up.deliver(now, &mut self.outbox, counters);
            self.down.deliver(now, &mut self.outbox, counters);
        }
    }

    /// Returns when something has arrived or is due.
    fn wait(&self, listening: &UdpSocket) -> nix::Result<()> {
        let now = Instant::now();
        let due = [self.up.next_due(), self.down.next_due()];
        let until_due = due.into_iter().flatten().min();
        let wait = until_due
            .map_or(ATTENTION, |due| due.saturating_duration_since(now))
            .min(ATTENTION);
        let sockets = self.clients.iter().map(|client| &*client.socket);
        let mut sockets: Vec<PollFd<'_>> = std::iter::once(listening)
            .chain(sockets)
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        match ppoll(&mut sockets, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take_from_clients(&mut self, listening: &UdpSocket) {
        let now = Instant::now();
        let gate = Gate::new(&self.shared, self.payload_bytes_max);
        let (up, clients) = (&mut self.up, &mut self.clients);
        self.from_clients.receive(listening, |bytes, address| {
            if !gate.lets_in(bytes) {
                return;
            }
            if let Ok(socket) = socket_of(clients, address, self.to) {
                up.take(now, bytes, &socket, None, gate.counters);
            }
        });
    }

    fn take_from_server(&mut self, listening: &Arc<UdpSocket>) {
        let now = Instant::now();
        let gate = Gate::new(&self.shared, self.payload_bytes_max);
        let down = &mut self.down;
        for client in &self.clients {
            self.from_server.receive(&client.socket, |bytes, _| {
                if gate.lets_in(bytes) {
                    let to = Some(client.address);
                    down.take(now, bytes, listening, to, gate.counters);
                }
            });
        }
    }
}

/// What can get onto the link at all.
struct Gate<'a> {
    cut: bool,
    payload_bytes_max: usize,
    counters: &'a Counters,
}

impl<'a> Gate<'a> {
    fn new(shared: &'a Shared, payload_bytes_max: usize) -> Self {
        Self {
            cut: shared.cut.load(Ordering::Relaxed),
            payload_bytes_max,
            counters: &shared.counters,
        }
    }

    fn lets_in(&self, bytes: &[u8]) -> bool {
        let barred = self.cut || bytes.len() > self.payload_bytes_max;
        if barred {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
        }
        !barred
    }
}

/// By which the client speaks to the server.
fn socket_of(
    clients: &mut Vec<Client>,
    client: SockaddrStorage,
    server: SocketAddr,
) -> io::Result<Arc<UdpSocket>> {
    if let Some(known) = clients.iter().find(|known| known.address == client) {
        return Ok(Arc::clone(&known.socket));
    }
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = Arc::new(socket(any)?);
    socket.connect(server)?;
    if clients.len() == CLIENTS_MAX {
        clients.remove(0);
    }
    clients.push(Client {
        address: client,
        socket: Arc::clone(&socket),
    });
    Ok(socket)
}

/// Lets this thread run before all ordinary ones, as the kernel's own network code does, where
/// that is allowed. It sleeps whenever nothing is due.
fn go_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call, which keeps nothing of them.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
}
