//! What a managed mount makes of a link with delay, loss and a rate, beside a direct mount and a bare
//! QUIC stream over the same link.
//!
//! ```text
//! cargo run --release --example managed_link -- --rtt-ms 25 --rate-mbit 1000
//! ```
//!
//! Server, link and client are in this process, the ends with a runtime each. Requests come from a
//! device in miniature, a queue on a thread of its own, so that no device's own cost is measured. The
//! origin is in memory, the local store on tmpfs. It prints one JSON object.

mod cases;
mod load;
#[path = "../link_relay/relay.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the program beside this one uses the rest of it"
)]
mod relay;
mod world;

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use clap::Parser;
use relay::Link;
use serde_json::{Map, Value};
use world::World;

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// What a managed mount makes of a link
#[derive(Debug, Parser)]
struct Args {
    /// The local address of both ends. On one that is not a loopback address they do what they would
    /// do on a network: packets begin small, and grow as far as the link lets them
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,

    /// The round trip time, in milliseconds
    #[arg(long, default_value = "0")]
    rtt_ms: f64,

    /// How many of a hundred packets are lost each way
    #[arg(long, default_value = "0", value_name = "PERCENT")]
    loss: f64,

    /// The rate each way, in Mbit/s
    #[arg(long, default_value = "1000")]
    rate_mbit: f64,

    /// What may wait to leave each way, in KiB
    #[arg(long, default_value = "1024")]
    queue_kib: usize,

    /// Which packets are lost
    #[arg(long, default_value = "1")]
    seed: u64,

    /// The volume, in MiB
    #[arg(long, default_value = "1024")]
    mib: usize,

    /// How often each thing is done
    #[arg(long, default_value = "5")]
    rounds: usize,

    /// How long a rate is measured, in seconds
    #[arg(long, default_value = "3", value_name = "SECONDS")]
    time: f64,

    /// What to measure
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "open,pull,demand,write,sequential"
    )]
    only: Vec<cases::Case>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .try_init();
    let rtt = Duration::try_from_secs_f64(args.rtt_ms / 1e3)?;
    let rate = (args.rate_mbit * 1e6) as u64;
    let link = Link {
        seed: args.seed,
        ..Link::symmetric(rtt, args.loss / 100.0, Some(rate), args.queue_kib << 10)
    };
    let time = Duration::try_from_secs_f64(args.time)?;
    let world = World::new(args.address, args.mib << 20, link)?;
    let mut report = Map::new();
    for (name, value) in [
        ("rtt_ms", Value::from(args.rtt_ms)),
        ("loss_percent", args.loss.into()),
        ("rate_mbit", args.rate_mbit.into()),
        ("queue_kib", args.queue_kib.into()),
    ] {
        report.insert(name.to_owned(), value);
    }
    for case in &args.only {
        report.insert(case.name(), case.run(&world, args.rounds, time)?);
    }
    report.insert("link".to_owned(), world.link_report());
    writeln!(io::stdout(), "{}", Value::from(report))?;
    Ok(())
}
