//! Fixed layouts: fields one after the other, and the checksum over them.

use aws_lc_rs::digest;

/// The SHA-256 of the parts in a row.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// Takes fields off the front of a layout.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// `bytes` are as long as the layout: what is taken past their end reads as zeros.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (front, rest) = self.rest.split_at(N.min(self.rest.len()));
        field[..front.len()].copy_from_slice(front);
        self.rest = rest;
        field
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Puts fields into a layout, one after the other.
pub(super) struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The layout has room for all that is put into it.
    pub(super) fn put(&mut self, field: &[u8]) {
        let (front, rest) = std::mem::take(&mut self.rest).split_at_mut(field.len());
        front.copy_from_slice(field);
        self.rest = rest;
    }
}
