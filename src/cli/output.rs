//! Answers on standard output, failures on standard error.

use std::fmt::Display;
use std::io::{self, Write};

use blockferry::{Context, Error, Result};
use serde::Serialize;

/// Writes a line to standard output, at once. Whoever reads it may go away at any time.
pub(super) fn line(text: impl Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes a value as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(io::Error::from)
        .context_io(|| "cannot write JSON")?;
    line(text)
}

/// Writes bytes to standard output as they are.
pub(super) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context_io(|| "cannot write to standard output"),
    }
}

/// Says on standard error what went wrong, with all causes.
pub(super) fn failure(error: &Error) {
    // There is nobody left to tell if this fails too.
    let _ = writeln!(io::stderr().lock(), "blockferry: {}", error.chain());
}

/// Rows as columns of equal width, two blanks between them.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let line: String = cells
                .map(|(cell, width)| format!("{cell:width$}  "))
                .collect();
            line.trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}
