//! How long a bare QUIC stream takes for so many bytes over a link: what a migration is held against.
//!
//! ```text
//! cargo run --release --example bare_stream -- --rtt-ms 25 --rate-mbit 1000
//! ```
//!
//! Both ends and the link are in this process, the ends with a runtime each. It prints seconds, a line a
//! round, from before the connection is opened.

#[path = "link_relay/relay.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the program beside this one uses the rest of it"
)]
mod relay;

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use blockferry::net::bare_stream::Source;
use bytes::Bytes;
use clap::Parser;
use relay::{Link, Relay};
use tokio::runtime::Runtime;

/// How long a bare QUIC stream takes
#[derive(Debug, Parser)]
struct Args {
    /// The local address of both ends
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,

    /// The round trip time, in milliseconds
    #[arg(long, default_value = "0")]
    rtt_ms: f64,

    /// The rate each way, in Mbit/s
    #[arg(long, default_value = "1000")]
    rate_mbit: f64,

    /// What may wait to leave each way, in KiB
    #[arg(long, default_value = "1024")]
    queue_kib: usize,

    /// How much is fetched, in MiB
    #[arg(long, default_value = "1024")]
    mib: usize,

    /// How often
    #[arg(long, default_value = "1")]
    rounds: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let args = Args::parse();
    let (server, client) = (runtime()?, runtime()?);
    let rtt = Duration::try_from_secs_f64(args.rtt_ms / 1e3)?;
    let rate = (args.rate_mbit * 1e6) as u64;
    let link = Link::symmetric(rtt, 0.0, Some(rate), args.queue_kib << 10);
    let len = args.mib << 20;
    let source = {
        let _guard = server.enter();
        Source::listen(args.address, Bytes::from(vec![0xA5; len]))?
    };
    let relay = Relay::start((args.address, 0).into(), source.address()?, link)?;
    for _ in 0..args.rounds {
        let begun = Instant::now();
        client.block_on(async {
            let stream = source.connect_to(relay.address()).await?;
            stream.fetch(len).await
        })?;
        writeln!(io::stdout(), "{:.3}", begun.elapsed().as_secs_f64())?;
    }
    Ok(())
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}
