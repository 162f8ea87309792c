//! Where the bytes of a request are.

use std::ptr::NonNull;

/// The memory of one request, owned by the device that asked.
///
/// A device hands it to the engine with the request and gets it back with the answer; in between
/// nobody else touches it.
#[derive(Debug)]
pub struct RequestMemory {
    address: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: it stands for exclusive access to plain bytes, which any thread may use.
unsafe impl Send for RequestMemory {}
// SAFETY: shared, it only lets its bytes be read.
unsafe impl Sync for RequestMemory {}

impl RequestMemory {
    /// The `len_bytes` at `address`.
    ///
    /// # Safety
    /// They stay valid and are used by nobody else until the request was answered.
    pub unsafe fn new(address: NonNull<u8>, len_bytes: usize) -> Self {
        Self { address, len_bytes }
    }

    /// No bytes, for a request without data.
    pub fn empty() -> Self {
        Self {
            address: NonNull::dangling(),
            len_bytes: 0,
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: valid and exclusively ours by the contract of `new`.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len_bytes) }
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: valid and exclusively ours by the contract of `new`.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len_bytes) }
    }

    /// Where they start.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// How many they are.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

/// The bytes of a request, as the device offers them.
#[derive(Debug)]
pub enum RequestBuffer {
    /// Ordinary memory.
    Memory(RequestMemory),
    /// The request's own pages, which the kernel has registered with the queue's ring under this
    /// index. Only I/O on that ring can reach them.
    Registered(u16),
}
