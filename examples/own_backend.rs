//! A resource of one's own as a block device: run as root, then `dd if=DEVICE bs=4k count=1`.
//!
//! Every 8 bytes of this disk hold their own position.

use std::io;
use std::sync::Arc;

use blockferry::backend::{OpenOptions, Resource};
use blockferry::device::{self, DeviceOptions, choose};
use blockferry::ops::{Claim, Running};
use blockferry::{Backend, mount::direct};

struct Positions;

impl Backend for Positions {
    fn size(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        for (word, position) in buf.chunks_exact_mut(8).zip((offset..).step_by(8)) {
            word.copy_from_slice(&position.to_le_bytes());
        }
        Ok(buf.len())
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let read_only = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let resource = Resource::custom("positions", Arc::new(Positions), read_only)?;
    let claim = Claim::take(None, "positions")?;
    let options = DeviceOptions::new(claim.name().as_str(), claim.directory());
    let mount = direct::mount(&resource, options.requests_max(), None);
    let size_bytes = mount.volume.geometry().device_bytes();
    let mut device = device::start(choose(None)?.kind, mount.volume, &options)?;
    // Shows it in `blockferry list`.
    let record = device.record();
    claim.publish(&Running::new(
        device.path(),
        record,
        "positions",
        size_bytes,
    ))?;
    eprintln!("{} is ready; end it with Ctrl-C", device.path().display());
    tokio::signal::ctrl_c().await?;
    device.remove()?;
    Ok(())
}
