//! A link with delay, loss, a rate and a bounded queue, on the way to a server that speaks UDP.
//!
//! ```text
//! cargo run --release --example link_relay -- --to 127.0.0.1:4480 --rtt-ms 25 --rate-mbit 1000
//! ```
//!
//! It prints the address that stands for the server, and takes commands on standard input, one a
//! line: `cut`, `mend`, `count`. It ends with its input.

mod measure;
#[allow(unreachable_pub, reason = "the tests share it")]
mod relay;

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use relay::{Link, Relay};

/// A UDP link with delay, loss, a rate and a bounded queue, each direction on its own
#[derive(Debug, Parser)]
struct Args {
    /// Where clients find the server
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// The server
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "measure")]
    to: Option<SocketAddr>,

    /// The round trip time, in milliseconds; half of it each way
    #[arg(long, default_value = "0")]
    rtt_ms: f64,

    /// How many of a hundred packets are lost each way
    #[arg(long, default_value = "0", value_name = "PERCENT")]
    loss: f64,

    /// The rate each way, in Mbit/s; 0 for as fast as it goes
    #[arg(long, default_value = "0")]
    rate_mbit: f64,

    /// What may wait to leave each way, in KiB
    #[arg(long, default_value = "256")]
    queue_kib: usize,

    /// The largest packet, in bytes
    #[arg(long, default_value = "1500")]
    mtu: usize,

    /// Which packets are lost
    #[arg(long, default_value = "1")]
    seed: u64,

    /// Measure how true such a link is on this machine, at a load of so many Mbit/s
    #[arg(long, value_name = "MBIT")]
    measure: Option<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let rtt = Duration::try_from_secs_f64(args.rtt_ms / 1e3)?;
    let rate = (args.rate_mbit > 0.0).then_some((args.rate_mbit * 1e6) as u64);
    let link = Link {
        mtu_bytes: args.mtu,
        seed: args.seed,
        ..Link::symmetric(rtt, args.loss / 100.0, rate, args.queue_kib << 10)
    };
    if let Some(load_mbit) = args.measure {
        return Ok(measure::measure(link, load_mbit * 1e6)?);
    }
    let to = args.to.ok_or("--to says where the server is")?;
    let relay = Relay::start(args.listen, to, link)?;
    let mut out = io::stdout();
    writeln!(out, "{}", relay.address())?;
    for line in io::stdin().lock().lines() {
        match line?.trim() {
            "cut" => relay.cut(),
            "mend" => relay.mend(),
            "count" => {
                let counters = relay.counters();
                let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let (delivered, late) = (read(&counters.delivered), read(&counters.late));
                let (lost, dropped) = (read(&counters.lost), read(&counters.dropped));
                writeln!(
                    out,
                    "delivered {delivered} (late {late}) lost {lost} dropped {dropped}"
                )?;
            }
            other => writeln!(
                io::stderr(),
                "no command: {other}; there are cut, mend, count"
            )?,
        }
    }
    Ok(())
}
