//! Where the local store of a managed mount is, unless the user says so.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use aws_lc_rs::digest;
use blockferry::ops;
use blockferry::volume::cache::Contents;
use blockferry::volume::memory::available_bytes;
use blockferry::volume::{cache, format_size};
use blockferry::{Context, Error, ErrorKind, Result};
use data_encoding::HEXLOWER;
use nix::unistd::geteuid;

use super::managed::{ManagedArgs, StoreKind};
use super::store_choice::{self, Candidate};

/// How many stores of one volume there can be on this host.
const STORES_MAX: u32 = 100;

/// The longest part of a resource's URL in the name of its store.
const NAME_BYTES_MAX: usize = 48;

/// How much of a resource's checksum is in the name of its store, in bytes.
const SUM_BYTES: usize = 4;

/// A store, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct StorePlace {
    pub(super) path: PathBuf,
    pub(super) persistent: bool,
    /// It is kept when the mount ends.
    pub(super) keep: bool,
    /// Its directory was there before.
    existed: bool,
}

/// Where the store of `resource` is: the directory that was asked for, or one of its own that nobody
/// uses at the moment. A mount that died left its store there, and it may have had any number.
///
/// # Errors
/// `Dirty` where several of them hold local writes, `Busy` where all are in use.
pub(super) fn choose(args: &ManagedArgs, resource: &str) -> Result<StorePlace> {
    if let Some(path) = &args.cache {
        return Ok(StorePlace {
            path: path.clone(),
            existed: path.exists(),
            persistent: true,
            keep: true,
        });
    }
    let persistent = args.store == StoreKind::Disk;
    let root = if persistent {
        cache_home()?
    } else {
        memory_home()?
    };
    let name = name_of(resource);
    let candidates = (1..=STORES_MAX).map(|number| {
        Candidate::at(match number {
            1 => root.join(&name),
            number => root.join(format!("{name}-{number}")),
        })
    });
    if let Some(path) = store_choice::choose(candidates.collect(), resource)? {
        return Ok(StorePlace {
            existed: path.exists(),
            path,
            persistent,
            keep: false,
        });
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!(
            "{STORES_MAX} stores of {resource} are in use in {}",
            root.display()
        ),
    ))
}

impl StorePlace {
    /// Why the store cannot be used, with what to do about it.
    pub(super) fn explained(&self, error: Error, chunk_bytes: u64) -> Error {
        let path = self.path.display();
        let elsewhere = match self.keep {
            true => "name another directory with --cache, or ",
            false => "",
        };
        let drop = format!("blockferry cache drop {path}{}", self.drop_option());
        let advice = match error.kind() {
            ErrorKind::Foreign => match self.other_chunk(chunk_bytes) {
                Some(chunk) => {
                    format!("go on with it by --chunk-size {chunk}, or remove it with `{drop}`")
                }
                None => format!("{elsewhere}remove it with `{drop}`"),
            },
            ErrorKind::Damaged => {
                format!("nothing of it was used; {elsewhere}give up what it held with `{drop}`")
            }
            _ => return error,
        };
        Error::new(error.kind(), format!("{}; {advice}", error.chain()))
    }

    /// What dropping it takes: it may hold local writes, or nobody can say what it holds.
    fn drop_option(&self) -> &'static str {
        match cache::inspect(&self.path, &live_maps()).map(|report| report.contents) {
            Ok(Contents::Idle(held)) if held.dirty_bytes == 0 => "",
            Ok(Contents::InUse(_)) => "",
            _ => " --discard-dirty",
        }
    }

    /// Removes its directory, unless that is the user's or has anything in it.
    pub(super) fn forget_unused(&self) {
        if !self.keep {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// Removes its directory after a mount that came to nothing, if that has made it and left nothing there.
    pub(super) fn forget_made(&self) {
        if !(self.keep && self.existed) {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// The chunk that the store was made with, if that is another one.
    fn other_chunk(&self, chunk_bytes: u64) -> Option<String> {
        let report = cache::inspect(&self.path, &live_maps()).ok()?;
        (report.chunk_bytes != chunk_bytes).then(|| format_size(report.chunk_bytes))
    }
}

/// Where the live maps of this user's stores are. No device has such a name.
pub(super) fn live_maps() -> PathBuf {
    ops::run_directory().join(".stores")
}

/// The largest volume whose store may be in memory: half of what is available.
pub(super) fn memory_bytes_max() -> u64 {
    available_bytes() / 2
}

fn cache_home() -> Result<PathBuf> {
    let set = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
    if let Some(path) = set("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(path).join("blockferry/stores"));
    }
    if geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/blockferry/stores"));
    }
    set("HOME")
        .map(|home| PathBuf::from(home).join(".cache/blockferry/stores"))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "there is no home for the local store: set $XDG_CACHE_HOME, or name a directory with --cache",
            )
        })
}

/// Anybody may make a directory there, so it has to be ours alone.
fn memory_home() -> Result<PathBuf> {
    let path = PathBuf::from(format!("/dev/shm/blockferry-{}", geteuid()));
    let cannot = || format!("cannot make {}", path.display());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.context_io(cannot)?,
    }
    let found = fs::symlink_metadata(&path).context_io(cannot)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "{} is not a directory of yours that others cannot write: remove it, or keep the local store on \
                 a disk with --store disk",
                path.display()
            ),
        ));
    }
    Ok(path)
}

/// A name for a directory that tells whose store it is.
fn name_of(resource: &str) -> String {
    let readable: String = resource
        .trim_start_matches("blockferry://")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    // Different resources may read the same.
    let sum = digest::digest(&digest::SHA256, resource.as_bytes());
    let sum = HEXLOWER.encode(&sum.as_ref()[..SUM_BYTES]);
    format!("{readable}-{sum}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_that_read_alike_have_different_stores() {
        let names = [
            "blockferry://host:4480/a-b",
            "blockferry://host:4480/a.b",
            "blockferry://host-4480/a-b",
        ]
        .map(name_of);
        for (index, name) in names.iter().enumerate() {
            assert!(name.starts_with("host-4480-a-b-"), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
        assert_eq!(name_of("blockferry://host:4480/a-b"), names[0]);
    }
}
