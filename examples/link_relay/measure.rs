//! How true a link is on this machine: what it delivers at a load close to its rate, and how much
//! later than it should.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::relay::{Link, Relay};

const DATAGRAM_BYTES: usize = 1472;
const PACKET_BITS: f64 = (DATAGRAM_BYTES + 28) as f64 * 8.0;
const TIME: Duration = Duration::from_secs(3);
const BUFFER_BYTES: usize = 32 << 20;

/// Sends `load_bits_per_s` through a link in one direction, and reports.
///
/// # Errors
/// Whatever the operating system reports.
pub(crate) fn measure(link: Link, load_bits_per_s: f64) -> io::Result<()> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = UdpSocket::bind(any)?;
    let _ = setsockopt(&server, sockopt::RcvBufForce, &BUFFER_BYTES);
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let relay = Relay::to(server.local_addr()?, link)?;
    let client = UdpSocket::bind(any)?;
    client.connect(relay.address())?;
    let begun = Instant::now();
    let ended = AtomicBool::new(false);
    let (sent, late_us) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&server, begun, link.up.delay, &ended));
        let sent = send(&client, begun, load_bits_per_s);
        ended.store(true, Ordering::Relaxed);
        (sent, receiver.join().unwrap_or_default())
    });
    let late = relay.counters().late.load(Ordering::Relaxed);
    report(sent?, late_us, late)
}

/// Sends at an even pace; each datagram carries its time. Gives how many.
fn send(client: &UdpSocket, begun: Instant, load_bits_per_s: f64) -> io::Result<usize> {
    let mut bytes = [0; DATAGRAM_BYTES];
    let mut sent = 0;
    while begun.elapsed() < TIME {
        let due = (begun.elapsed().as_secs_f64() * load_bits_per_s / PACKET_BITS) as usize;
        if sent >= due {
            std::thread::sleep(Duration::from_micros(50));
        }
        while sent < due {
            let now_ns = begun.elapsed().as_nanos() as u64;
            bytes[..8].copy_from_slice(&now_ns.to_le_bytes());
            client.send(&bytes)?;
            sent += 1;
        }
    }
    Ok(sent)
}

/// By how many microseconds each datagram was late.
fn receive(server: &UdpSocket, begun: Instant, delay: Duration, ended: &AtomicBool) -> Vec<u64> {
    let mut late_us = Vec::new();
    let mut bytes = [0; DATAGRAM_BYTES];
    loop {
        let received = server.recv(&mut bytes);
        let now_ns = begun.elapsed().as_nanos() as u64;
        if received.is_err() {
            if ended.load(Ordering::Relaxed) {
                return late_us;
            }
            continue;
        }
        let mut sent_ns = [0; 8];
        sent_ns.copy_from_slice(&bytes[..8]);
        let due_ns = u64::from_le_bytes(sent_ns) + delay.as_nanos() as u64;
        late_us.push(now_ns.saturating_sub(due_ns) / 1000);
    }
}

fn report(sent: usize, mut late_us: Vec<u64>, late: u64) -> io::Result<()> {
    late_us.sort_unstable();
    let percentile = |part: f64| {
        let at = (late_us.len().saturating_sub(1)) as f64 * part;
        late_us.get(at as usize).copied().unwrap_or(0)
    };
    let mbit = |count: usize| count as f64 * PACKET_BITS / TIME.as_secs_f64() / 1e6;
    writeln!(
        io::stdout(),
        "sent {:.0} Mbit/s, delivered {:.0} Mbit/s, {late} datagrams late by the relay; \
         late with all else p50 {} us, p99 {} us, at most {} us",
        mbit(sent),
        mbit(late_us.len()),
        percentile(0.5),
        percentile(0.99),
        percentile(1.0),
    )
}
