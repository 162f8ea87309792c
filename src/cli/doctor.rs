//! `blockferry doctor`: what this machine offers.

use blockferry::ops::doctor::{self, Report};
use blockferry::{Error, ErrorKind, Result};

use super::output;

/// How long lines of details get, in characters, where there is a blank to break at.
const DETAIL_CHARS: usize = 72;

/// Says what this machine offers, and how to get what it lacks
///
/// Looks at the kernel's drivers and limits without changing anything, and says which kind of device
/// `mount` would make and why not a better one. Fails if there is none.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  blockferry doctor\n  blockferry doctor --json | jq -r .device"
)]
pub(super) struct Args {
    /// Write a JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let report = doctor::examine();
    match args.json {
        true => output::json(&report)?,
        false => output::line(text(&report))?,
    }
    match report.device {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::Unsupported, report.because)),
    }
}

fn text(report: &Report) -> String {
    let row =
        |name: &str, mark: &str, detail: &str| [name, mark, detail].map(str::to_owned).to_vec();
    let mut rows = vec![row("kernel", "", &report.kernel)];
    for finding in &report.findings {
        let mark = if finding.ok { "yes" } else { "no" };
        let mut lines = wrapped(&finding.detail).into_iter();
        rows.push(row(finding.name, mark, &lines.next().unwrap_or_default()));
        rows.extend(lines.map(|line| row("", "", &line)));
        if let Some(mend) = &finding.mend {
            rows.push(row("", "", &format!("try: {mend}")));
        }
    }
    let device = report.device.map(|kind| kind.to_string());
    rows.push(match device {
        Some(kind) => row("auto", &kind, &report.because),
        // Why is said on standard error.
        None => row("auto", "none", ""),
    });
    for rejected in &report.rejected {
        let kind = rejected.device.to_string();
        rows.push(row("", "", &format!("not {kind}: {}", rejected.because)));
    }
    output::table(&rows)
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= DETAIL_CHARS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
