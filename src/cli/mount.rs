//! `blockferry mount`: a resource as a block device on this host.
use blockferry::backend::{OpenOptions, open};
use blockferry::device::{Device, DeviceOptions, ublk::UblkDevice};
use blockferry::mount::direct;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    resource: String,
    #[arg(long)]
    direct: bool,
    #[arg(long, default_value_t = 1)]
    queues: u16,
    #[arg(long, default_value_t = 128)]
    depth: u16,
}
impl MountArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let rt = tokio::runtime::Runtime::new()?;
        rt.block_on(async {
            let res = open(
                &self.resource,
                &OpenOptions {
                    direct_io: true,
                    ..Default::default()
                },
            )?;
            let m = direct::mount(&res, 4096, None);
            let mut dev = UblkDevice::start(
                m.volume.clone(),
                &DeviceOptions {
                    name: "x".into(),
                    run_directory: "/tmp".into(),
                    queues: self.queues,
                    depth: self.depth,
                    read_only: false,
                },
            )?;
            println!("{}", dev.path().display());
            let mut term =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! { _ = term.recv() => {}, e = dev.ended() => { eprintln!("{e}"); } }
            dev.flush()?;
            dev.remove()?;
            eprintln!("{:?}", m.volume.counters());
            anyhow::Ok(())
        })
    }
}
