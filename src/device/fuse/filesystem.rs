//! A file system of one directory with one file in it: the device.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use super::requests::Requests;
use super::{BACKGROUND_MAX, REQUEST_BYTES_MAX};
use crate::volume::{ByteOffset, Geometry, Op, Request};

const ROOT: INodeNo = INodeNo::ROOT;
const FILE: INodeNo = INodeNo(2);

/// Names and sizes never change, so the kernel may remember them for as long as it likes.
const REMEMBER: Duration = Duration::from_secs(24 * 3600);

/// The file system.
pub(super) struct OneFile {
    name: OsString,
    size_bytes: u64,
    block_bytes: u32,
    read_only: bool,
    since: SystemTime,
    requests: Requests,
    /// Nobody opens the file before.
    started: Arc<AtomicBool>,
}

impl OneFile {
    /// A file `name` as long as the device, served by `requests` when it is `started`.
    pub(super) fn new(
        name: &str,
        geometry: &Geometry,
        read_only: bool,
        requests: Requests,
        started: Arc<AtomicBool>,
    ) -> Self {
        Self {
            name: name.into(),
            size_bytes: geometry.device_bytes(),
            block_bytes: geometry.logical_block_bytes(),
            read_only,
            since: SystemTime::now(),
            requests,
            started,
        }
    }

    fn attributes(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size, nlink) = match ino {
            ROOT => (FileType::Directory, 0o500, 0, 2),
            FILE if self.read_only => (FileType::RegularFile, 0o400, self.size_bytes, 1),
            FILE => (FileType::RegularFile, 0o600, self.size_bytes, 1),
            _ => return None,
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind,
            perm,
            nlink,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: REQUEST_BYTES_MAX as u32,
            flags: 0,
        })
    }

    /// The file ends where the device ends: nothing can be written behind it.
    fn range_check(&self, offset: u64, len_bytes: u64) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::EROFS);
        }
        match offset.checked_add(len_bytes) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(Errno::ENOSPC),
        }
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let too_much = |_| io::Error::from_raw_os_error(libc::EINVAL);
        config
            .set_max_write(REQUEST_BYTES_MAX as u32)
            .map_err(too_much)?;
        let background = |_| io::Error::from_raw_os_error(libc::EINVAL);
        config
            .set_max_background(BACKGROUND_MAX)
            .map_err(background)?;
        config
            .set_congestion_threshold(BACKGROUND_MAX)
            .map_err(background)?;
        // Each is an improvement where the kernel has it, and none is needed.
        for flag in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len_bytes = self.size_bytes.saturating_sub(offset).min(u64::from(size));
        match usize::try_from(len_bytes) {
            Ok(0) => reply.data(&[]),
            Ok(len_bytes) if len_bytes <= REQUEST_BYTES_MAX => {
                self.requests.read(offset, len_bytes, reply);
            }
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.range_check(offset, data.len() as u64) {
            Ok(()) if data.is_empty() => reply.written(0),
            Ok(()) if data.len() <= REQUEST_BYTES_MAX => {
                // O_SYNC has the bit of O_DSYNC in it. No fsync follows such a write.
                let fua = flags.0 & libc::O_DSYNC != 0;
                self.requests.write(offset, data, fua, reply);
            }
            Ok(()) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let flush = Request::new(Op::Flush, ByteOffset(0), 0);
        self.requests.run(flush, reply);
    }

    fn fallocate(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if let Err(errno) = self.range_check(offset, length) {
            return reply.error(errno);
        }
        if mode & !libc::FALLOC_FL_KEEP_SIZE != 0
            && self.requests.zeroes_whole_blocks_only()
            && !(offset | length).is_multiple_of(u64::from(self.block_bytes))
        {
            // As a block device would.
            return reply.error(Errno::EINVAL);
        }
        let zeroes = Request::new(Op::WriteZeroes, ByteOffset(offset), length);
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            // All space that there can be is there.
            0 => reply.ok(),
            // A file's hole reads as zeros, always; a mere discard does not promise that.
            libc::FALLOC_FL_PUNCH_HOLE => self.requests.run(zeroes, reply),
            libc::FALLOC_FL_ZERO_RANGE => self.requests.run(
                Request {
                    no_unmap: true,
                    ..zeroes
                },
                reply,
            ),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn lookup(&self, _: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE) {
            Some(file) if parent == ROOT && name == self.name => {
                reply.entry(&REMEMBER, &file, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &fuser::Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Some(attributes) => reply.attr(&REMEMBER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(attributes) = self.attributes(ino) else {
            return reply.error(Errno::ENOENT);
        };
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        match size {
            None => {}
            Some(_) if self.read_only => return reply.error(Errno::EROFS),
            Some(size) if size == self.size_bytes => {}
            // A block device ignores O_TRUNC, which `dd` and a shell's `>` pass; so does this.
            Some(0) if handle.is_none() => {}
            Some(_) => return reply.error(Errno::EINVAL),
        }
        reply.attr(&REMEMBER, &attributes);
    }

    fn open(&self, _: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if ino != FILE {
            return reply.error(Errno::EISDIR);
        }
        if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if !self.started.load(Acquire) {
            return reply.error(Errno::EBUSY);
        }
        reply.opened(
            FileHandle(0),
            FopenFlags::FOPEN_DIRECT_IO
                | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
                | FopenFlags::FOPEN_NOFLUSH,
        );
    }

    /// A close, not a request to make anything durable; kernels that know `FOPEN_NOFLUSH` do not
    /// ask.
    fn flush(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &fuser::Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, OsStr::new(".")),
            (ROOT, FileType::Directory, OsStr::new("..")),
            (FILE, FileType::RegularFile, self.name.as_os_str()),
        ];
        for (index, (ino, kind, name)) in (0..).zip(entries) {
            if index >= offset && reply.add(ino, index + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &fuser::Request, _: INodeNo, reply: ReplyStatfs) {
        // The loop device takes the block size for the granularity of its discards.
        let block_bytes = 4096;
        let blocks = self.size_bytes.div_ceil(block_bytes);
        reply.statfs(
            blocks,
            0,
            0,
            2,
            0,
            block_bytes as u32,
            255,
            block_bytes as u32,
        );
    }

    fn access(&self, _: &fuser::Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    /// Once answered so, the kernel looks for holes itself and finds none.
    fn lseek(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: i64,
        _: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// Once answered so, the kernel does not ask again before each write.
    fn getxattr(&self, _: &fuser::Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &fuser::Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
