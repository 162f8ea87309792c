//! What is kept of a mount, so that it can be repeated after its process has died.

use std::path::Path;

use blockferry::backend::{Kind, Resource};
use blockferry::device::DeviceOptions;
use blockferry::ops::{Claim, MountRecord, redacted};
use blockferry::{Context, Error, ErrorKind, Result};

/// How this process was told to mount `argument`, which names `resource`.
pub(super) fn record(argument: Option<&str>, resource: String) -> Result<MountRecord> {
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned());
    let (arguments, needs_ticket) = without_ticket(arguments, argument);
    Ok(MountRecord {
        arguments,
        directory: std::env::current_dir().context_io(|| "cannot find the current folder")?,
        resource,
        file: None,
        needs_ticket,
    })
}

/// Leaves a ticket out unless it is in a file, and says whether one is missing then.
fn without_ticket(
    arguments: impl Iterator<Item = String>,
    resource: Option<&str>,
) -> (Vec<String>, bool) {
    let needs_ticket = match resource {
        None | Some("-") => true,
        Some(resource) => !resource.starts_with('@') && redacted(resource) != resource,
    };
    let ticket = resource.filter(|_| needs_ticket);
    let arguments = arguments.filter(|argument| Some(argument.as_str()) != ticket);
    (arguments.collect(), needs_ticket)
}

/// The record of a mount whose resource is open by now.
///
/// # Errors
/// `InvalidInput` where the device in the run-time directory is one of another file.
pub(super) fn of_resource(
    record: MountRecord,
    resource: &Resource,
    run_directory: &Path,
) -> Result<MountRecord> {
    let (file, path) = match &resource.kind {
        Kind::File(store) => {
            let path = store.path().display().to_string();
            let mark = store
                .mark()
                .context_io(|| format!("cannot examine {path}"))?;
            (Some(mark), path)
        }
        Kind::Memory(_) | Kind::Other(_) => (None, resource.url.clone()),
    };
    let before = MountRecord::load(run_directory)?;
    let is_other = |before: MountRecord| match (&file, &before.file) {
        (Some(now), Some(before)) => !now.is_the_file_of_any_size(before),
        (now, before) => now.is_some() != before.is_some(),
    };
    if before.is_some_and(is_other) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{path} is another file than the one that the device is of"),
        ));
    }
    Ok(MountRecord { file, ..record })
}

/// Keeps the record, if the device is one that can be taken over.
pub(super) fn keep(record: &MountRecord, options: &DeviceOptions, claim: &Claim) -> Result<()> {
    match options.recoverable {
        true => record.save(claim.directory()),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_no_ticket_in_it_and_says_if_one_is_missing() {
        for (resource, kept) in [
            ("blockferry://host:4480/disk#v1.fingerprint.secret", false),
            ("redis://user:secret@host/0", false),
            ("-", false),
            ("@disk.ticket", true),
            ("blockferry://host:4480/disk", true),
            ("file:/srv/a#b", true),
        ] {
            let words = ["mount", resource, "--direct"].map(str::to_owned);
            let (arguments, needs_ticket) = without_ticket(words.into_iter(), Some(resource));
            assert_eq!(needs_ticket, !kept, "{resource}");
            assert_eq!(arguments.contains(&resource.to_owned()), kept, "{resource}");
            assert!(arguments.contains(&"--direct".to_owned()));
            assert!(!arguments.concat().contains("secret"));
        }
        let (arguments, needs_ticket) = without_ticket(["mount".to_owned()].into_iter(), None);
        assert!(needs_ticket && arguments == ["mount"]);
    }
}
