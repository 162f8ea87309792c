//! From a URL to an open resource.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::migrate::records;
use crate::volume::{
    AsyncBackend, FileOptions, FileStore, Geometry, MemoryMap, Pooled, instance, size::parse_size,
};
use crate::{Backend, Context, Error, ErrorKind, Result};

use super::local::{LocalFile, LocalMemory};

/// How a resource is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// The device's logical block in bytes; the resource's own unless given.
    pub block_bytes: Option<u32>,
    /// For a file that a ring will drive, with page-aligned buffers: past the page cache where that
    /// is possible.
    pub direct_io: bool,
    /// How long to wait for whoever holds the lock of a file.
    pub lock_patience: Duration,
    /// Also a file that has moved away, or has a part of a volume: the caller is part of its migration.
    pub migrates: bool,
}

/// What a resource is, once it is open.
#[derive(Clone)]
pub enum Kind {
    /// Memory of this process.
    Memory(Arc<MemoryMap>),
    /// A local file or block device.
    File(Arc<FileStore>),
    /// Anything else.
    Other(Arc<dyn AsyncBackend>),
}

/// An open resource.
#[derive(Clone)]
pub struct Resource {
    /// Its URL, without secrets.
    pub url: String,
    /// Its sizes.
    pub geometry: Geometry,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Changes when what was written but not flushed may be gone: with a reboot for a file, with
    /// the process for memory.
    pub instance: [u8; 16],
    /// The resource itself.
    pub kind: Kind,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource")
            .field("url", &self.url)
            .field("geometry", &self.geometry)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Resource {
    /// A resource over a backend of the caller's own.
    ///
    /// # Errors
    /// When the backend cannot tell its size, or the size makes no device.
    pub fn custom(name: &str, backend: Arc<dyn Backend>, options: OpenOptions) -> Result<Self> {
        let pooled =
            Pooled::new(backend).context_io(|| format!("cannot find the size of {name}"))?;
        Self::remote(name, Arc::new(pooled), options)
    }

    /// A resource over an asynchronous backend.
    ///
    /// # Errors
    /// When its size makes no device.
    pub fn remote(
        name: &str,
        backend: Arc<dyn AsyncBackend>,
        options: OpenOptions,
    ) -> Result<Self> {
        let capabilities = backend.capabilities();
        Ok(Self {
            url: name.to_owned(),
            geometry: Geometry::with_blocks(
                backend.size(),
                capabilities.logical_block_bytes,
                options.block_bytes,
            )?,
            read_only: options.read_only || capabilities.read_only,
            instance: instance::fresh()?,
            kind: Kind::Other(backend),
        })
    }

    /// Its asynchronous face, for a server or a fetcher.
    pub fn as_async(&self) -> Arc<dyn AsyncBackend> {
        match &self.kind {
            Kind::Memory(memory) => Arc::new(LocalMemory::new(memory.clone())),
            Kind::File(file) => Arc::new(LocalFile::new(file.clone())),
            Kind::Other(backend) => backend.clone(),
        }
    }
}

/// Opens a local resource: `mem:SIZE` or `file:PATH`.
///
/// ```
/// use blockferry::backend::{OpenOptions, open};
/// let disk = open("mem:1MiB", &OpenOptions::default())?;
/// assert_eq!(disk.geometry.device_bytes(), 1 << 20);
/// # Ok::<(), blockferry::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput` for a URL that cannot be understood, and what opening the resource gives.
pub fn open(url: &str, options: &OpenOptions) -> Result<Resource> {
    match parse(url)? {
        Local::Memory { len_bytes } => open_memory(url, len_bytes, options),
        Local::File(path) => open_file(url, path, options),
    }
}

/// Whether [`open`] understands the URL. Looks at nothing that it names.
///
/// # Errors
/// `InvalidInput`, with what would be understood.
pub fn check(url: &str) -> Result<()> {
    parse(url).map(drop)
}

/// What the URL of a local resource says.
enum Local<'a> {
    Memory { len_bytes: u64 },
    File(&'a Path),
}

fn parse(url: &str) -> Result<Local<'_>> {
    let (scheme, rest) = url.split_once(':').ok_or_else(|| {
        let hint = if Path::new(url).exists() {
            format!("; did you mean file:{url}?")
        } else {
            String::new()
        };
        invalid(format!("`{url}` is no resource URL{hint}{KNOWN_SCHEMES}"))
    })?;
    match scheme {
        "mem" => {
            let len_bytes = parse_size(rest)?;
            Geometry::new(len_bytes, 512).map(|_| Local::Memory { len_bytes })
        }
        "file" => match path_of(rest) {
            path if path.as_os_str().is_empty() => {
                Err(invalid(format!("`{url}` names no file{KNOWN_SCHEMES}")))
            }
            path => Ok(Local::File(path)),
        },
        other => Err(invalid(format!(
            "`{other}:` is no kind of resource that is known here{KNOWN_SCHEMES}"
        ))),
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidInput, context)
}

const KNOWN_SCHEMES: &str =
    "; there are mem:SIZE (mem:1GiB), file:PATH (file:/srv/disk.img) and blockferry://… tickets";

fn open_memory(url: &str, len_bytes: u64, options: &OpenOptions) -> Result<Resource> {
    let geometry = Geometry::with_blocks(len_bytes, 512, options.block_bytes)?;
    Ok(Resource {
        url: url.to_owned(),
        geometry,
        read_only: options.read_only,
        instance: instance::fresh()?,
        kind: Kind::Memory(Arc::new(MemoryMap::new(len_bytes)?)),
    })
}

fn open_file(url: &str, path: &Path, options: &OpenOptions) -> Result<Resource> {
    let store = FileStore::open(
        path,
        FileOptions {
            read_only: options.read_only,
            direct_alignment_bytes: options
                .direct_io
                .then_some(options.block_bytes.unwrap_or(512)),
            lock_patience: options.lock_patience,
        },
    )?;
    if !options.migrates {
        records::refuse_elsewhere(path)?;
    }
    Ok(Resource {
        url: url.to_owned(),
        geometry: Geometry::with_blocks(
            store.len_bytes(),
            store.logical_block_bytes(),
            options.block_bytes,
        )?,
        read_only: options.read_only,
        instance: instance::of_boot()?,
        kind: Kind::File(Arc::new(store)),
    })
}

fn path_of(rest: &str) -> &Path {
    Path::new(rest.strip_prefix("//").unwrap_or(rest))
}

/// The URL by which a local resource is found again: of two that name the same file they are equal.
/// What is no file, or not there, stays as it is.
pub fn canonical(url: &str) -> String {
    let path = match url.split_once(':') {
        Some(("file", rest)) => fs::canonicalize(path_of(rest)),
        _ => return url.to_owned(),
    };
    match path.as_deref().map(Path::to_str) {
        Ok(Some(path)) => format!("file:{path}"),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_name_nothing_say_what_would() {
        for url in [
            "",
            "nonsense",
            "ftp://host/x",
            "mem:",
            "mem:-1",
            "mem:1Gb",
            "file:",
            "mem:0",
        ] {
            let error = open(url, &OpenOptions::default()).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}: {error}");
        }
    }

    #[test]
    fn a_file_has_one_canonical_url_however_it_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("a path");
        fs::write(dir.join("disk.img"), "x").expect("written");
        std::os::unix::fs::symlink("disk.img", dir.join("link")).expect("made");
        let dir = dir.display();
        for url in [
            format!("file:{dir}/disk.img"),
            format!("file://{dir}/./disk.img"),
            format!("file:{dir}/link"),
        ] {
            assert_eq!(canonical(&url), format!("file:{dir}/disk.img"));
        }
        for url in ["mem:1GiB", "file:/no/such/file", "nonsense", "file:"] {
            assert_eq!(canonical(url), url);
        }
    }

    #[test]
    fn a_path_without_a_scheme_gets_a_hint() {
        let error = open("/etc/hostname", &OpenOptions::default()).expect_err("no scheme");
        assert!(error.to_string().contains("file:/etc/hostname"), "{error}");
    }
}
