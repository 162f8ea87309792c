//! Bytes of a large volume of which few are not zero.

use std::collections::BTreeMap;

pub(crate) const PAGE_BYTES: u64 = 4096;

type Page = Box<[u8; PAGE_BYTES as usize]>;

/// Pages that were written; all others are zeros.
#[derive(Clone, Default)]
pub(crate) struct Bytes {
    pages: BTreeMap<u64, Page>,
}

impl Bytes {
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) {
        for (page, within, range) in parts(offset, to.len()) {
            let to = &mut to[range];
            match self.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[within..within + to.len()]),
                None => to.fill(0),
            }
        }
    }

    pub(crate) fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        for (page, within, range) in parts(offset, from.len()) {
            let from = &from[range];
            let bytes = self.pages.entry(page).or_insert_with(zeros);
            bytes[within..within + from.len()].copy_from_slice(from);
        }
    }

    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let (first, last) = (offset / PAGE_BYTES, (end - 1) / PAGE_BYTES);
        let touched: Vec<u64> = self
            .pages
            .range(first..=last)
            .map(|(page, _)| *page)
            .collect();
        for page in touched {
            let start = page * PAGE_BYTES;
            let from = offset.max(start) - start;
            let to = end.min(start + PAGE_BYTES) - start;
            if to - from == PAGE_BYTES {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[from as usize..to as usize].fill(0);
            }
        }
    }

    /// The pages from `first` to `last` that may have something.
    pub(crate) fn touched(&self, first: u64, last: u64) -> Vec<u64> {
        self.pages
            .range(first..=last)
            .map(|(page, _)| *page)
            .collect()
    }

    /// Makes a page what it is in `other`.
    pub(crate) fn copy_page(&mut self, page: u64, other: &Self) {
        match other.pages.get(&page) {
            Some(bytes) => drop(self.pages.insert(page, bytes.clone())),
            None => drop(self.pages.remove(&page)),
        }
    }

    /// The first byte, before `end`, that is another one there.
    pub(crate) fn first_difference(&self, other: &Self, end: u64) -> Option<u64> {
        let zero = zeros();
        let pages: std::collections::BTreeSet<u64> = self
            .pages
            .keys()
            .chain(other.pages.keys())
            .copied()
            .collect();
        pages.into_iter().find_map(|page| {
            let ours = self.pages.get(&page).unwrap_or(&zero);
            let theirs = other.pages.get(&page).unwrap_or(&zero);
            let at = ours.iter().zip(theirs.iter()).position(|(a, b)| a != b)?;
            let at = page * PAGE_BYTES + at as u64;
            (at < end).then_some(at)
        })
    }
}

fn zeros() -> Page {
    Box::new([0; PAGE_BYTES as usize])
}

/// The pages of a range: each with where in it, and which of the range's bytes.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE_BYTES) as usize;
        let count = (PAGE_BYTES as usize - within).min(len - done);
        let range = done..done + count;
        done += count;
        Some((at / PAGE_BYTES, within, range))
    })
}
