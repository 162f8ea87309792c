//! The map of a managed mount's volume, for a terminal and for programs.

use std::io::{self, IsTerminal};

use blockferry::Result;
use blockferry::ops::{self, Name};
use blockferry::volume::format_size;
use blockferry::volume::geometry::BLOCK_BYTES;
use blockferry::volume::state_map::Heat;
use serde::Serialize;
use terminal_size::{Width, terminal_size};

use super::output;

/// How many lines the map has.
const LINES: u32 = 16;

/// How wide it is where there is no terminal, in characters.
const WIDTH_DEFAULT: u32 = 80;

/// A part of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Part {
    offset_bytes: u64,
    size_bytes: u64,
    local_bytes: u64,
    dirty_bytes: u64,
}

/// The volume of a device in so many parts.
pub(super) fn parts(name: &Name, parts: u32) -> Result<Vec<Part>> {
    let heat = ops::map(name, parts)?;
    let mut offset_bytes: u64 = 0;
    let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
    let part = |heat: &Heat| {
        let part = Part {
            offset_bytes,
            size_bytes: bytes(heat.blocks),
            local_bytes: bytes(heat.present),
            dirty_bytes: bytes(heat.dirty),
        };
        offset_bytes = offset_bytes.saturating_add(part.size_bytes);
        part
    };
    Ok(heat.iter().map(part).collect())
}

/// Draws the volume of a device.
pub(super) fn show(name: &Name) -> Result<()> {
    let in_colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let columns = (width().saturating_sub(LABEL_WIDTH + 1)).clamp(1, ops::MAP_PARTS_MAX / LINES);
    let parts = parts(name, columns * LINES)?;
    output::line(draw(&parts, columns as usize, in_colour))
}

/// The columns that the offset before each line takes.
const LABEL_WIDTH: u32 = 9;

fn width() -> u32 {
    let set = std::env::var("COLUMNS").ok();
    let set = set.and_then(|text| text.parse().ok()).filter(|n| *n > 0);
    let terminal = || terminal_size().map(|(Width(columns), _)| columns.into());
    set.or_else(terminal).unwrap_or(WIDTH_DEFAULT)
}

/// What a part is drawn as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Absent,
    Partly,
    Local,
    Dirty,
}

impl Look {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Absent, "absent"),
        (Self::Partly, "partly local"),
        (Self::Local, "local"),
        (Self::Dirty, "dirty: local, and not at the origin yet"),
    ];

    fn of(part: &Part) -> Self {
        match (part.dirty_bytes, part.local_bytes) {
            (1.., _) => Self::Dirty,
            (0, 0) => Self::Absent,
            (0, local) if local < part.size_bytes => Self::Partly,
            _ => Self::Local,
        }
    }

    fn plain(self) -> char {
        match self {
            Self::Absent => '.',
            Self::Partly => '-',
            Self::Local => '#',
            Self::Dirty => 'D',
        }
    }

    /// A block, and the number of its colour.
    fn coloured(self) -> (char, u8) {
        match self {
            Self::Absent => ('░', 90),
            Self::Partly => ('▒', 36),
            Self::Local => ('█', 32),
            Self::Dirty => ('█', 33),
        }
    }
}

fn draw(parts: &[Part], columns: usize, in_colour: bool) -> String {
    let mut lines: Vec<String> = parts
        .chunks(columns)
        .map(|row| {
            let offset = row.first().map_or(0, |part| part.offset_bytes);
            let cells = cells(row.iter().map(Look::of), in_colour);
            let width = LABEL_WIDTH as usize;
            format!("{:>width$} {cells}", format_size(offset))
        })
        .collect();
    let legend: Vec<String> = Look::ALL
        .iter()
        .map(|(look, meaning)| format!("{} {meaning}", cells([*look], in_colour)))
        .collect();
    lines.push(String::new());
    lines.push(legend.join("   "));
    if let Some(part) = parts.first() {
        let size = format_size(part.size_bytes);
        lines.push(format!("{} characters of about {size} each", parts.len()));
    }
    lines.join("\n")
}

/// One character for each; a colour is begun where it changes.
fn cells(looks: impl IntoIterator<Item = Look>, in_colour: bool) -> String {
    let mut text = String::new();
    let mut last = None;
    for look in looks {
        if !in_colour {
            text.push(look.plain());
            continue;
        }
        let (block, colour) = look.coloured();
        if last != Some(look) {
            text.push_str(&format!("\x1b[{colour}m"));
        }
        text.push(block);
        last = Some(look);
    }
    if last.is_some() {
        text.push_str("\x1b[0m");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u64, local_bytes: u64, dirty_bytes: u64) -> Part {
        Part {
            offset_bytes: index << 20,
            size_bytes: 1 << 20,
            local_bytes,
            dirty_bytes,
        }
    }

    const MIB: u64 = 1 << 20;

    fn volume() -> Vec<Part> {
        let kinds = [(MIB, 0), (MIB, 4096), (4096, 4096), (4096, 0), (0, 0)];
        let parts = kinds.iter().enumerate();
        parts
            .map(|(at, (local, dirty))| part(at as u64, *local, *dirty))
            .collect()
    }

    #[test]
    fn a_part_with_anything_dirty_shows_as_dirty_and_one_that_lacks_anything_not_as_local() {
        let drawn = draw(&volume(), 3, false);
        let lines: Vec<_> = drawn.lines().collect();
        assert_eq!(lines[0], "       0B #DD");
        assert_eq!(lines[1], "     3MiB -.");
        assert!(lines[3].contains("D dirty") && lines[3].contains(". absent"));
        assert!(lines[4].contains("5 characters of about 1MiB"), "{drawn}");
        assert!(!drawn.contains('\x1b'));
    }

    #[test]
    fn colours_end_with_their_line_and_take_no_place() {
        let drawn = draw(&volume(), 3, true);
        for line in drawn.lines().filter(|line| line.contains('\x1b')) {
            assert!(line.contains("\x1b[0m"), "{line:?}");
        }
        let mut first = drawn.lines().next().expect("a line").to_owned();
        for code in ["\x1b[32m", "\x1b[33m", "\x1b[0m"] {
            assert_eq!(first.matches(code).count(), 1, "{first:?}");
            first = first.replace(code, "");
        }
        assert_eq!(first.chars().count(), LABEL_WIDTH as usize + 1 + 3);
    }
}
