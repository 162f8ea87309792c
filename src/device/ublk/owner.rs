//! ublk without root: whose the nodes of a device are.
//!
//! The driver makes a device for whoever can open its control node, and takes commands for it from
//! those who can open the node of its queues. Both are root's until udev gives them away: the
//! control node to all by its mode, the others to their owner, whom only the driver can name.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, chown};

use super::control::{Control, is_unprivileged};
use crate::{Context, Error, ErrorKind, Result};

/// What an unprivileged device lacks whose nodes are still root's.
pub(super) const WHAT_IS_NEEDED: &str =
    "udev has to give it away: let root install the rules that `blockferry udev` prints";

/// Where udev looks for rules.
const RULE_FOLDERS: [&str; 5] = [
    "/etc/udev/rules.d",
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
];

/// The rules for udev that let every user make ublk devices and have them, by running `program`.
pub fn udev_rules(program: &Path) -> String {
    format!(
        "# Every user may make ublk devices, and is given those that he made.\n\
         ACTION!=\"remove\", KERNEL==\"ublk-control\", MODE=\"0666\"\n\
         ACTION==\"add\", KERNEL==\"ublk[bc]*\", ENV{{DEVTYPE}}!=\"partition\", RUN+=\"{} udev $devnode\"\n",
        program.display()
    )
}

/// The file of a udev rule that is about the nodes of ublk devices, if there is one. Nothing else
/// tells whether a device that is about to be made could be used, or removed again.
pub fn udev_rule() -> Option<PathBuf> {
    let files = RULE_FOLDERS
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    files
        .map(|file| file.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "rules")
        })
        .find(|path| fs::read_to_string(path).is_ok_and(|rules| gives_nodes_away(&rules)))
}

/// Whether a line says something of `ublkc0` or `ublkb0`, and not of the control node alone.
fn gives_nodes_away(rules: &str) -> bool {
    rules
        .lines()
        .map(|line| line.trim_start().replace("ublk-control", ""))
        .any(|line| !line.starts_with('#') && line.contains("ublk"))
}

/// Gives a node (`/dev/ublkbN`, `/dev/ublkcN`) to the user who made the device. Those of a device
/// that root made stay as they are.
///
/// # Errors
/// `InvalidInput` for any other path; what the driver or the operating system says.
pub fn give_to_owner(node: &Path) -> Result<()> {
    let id = device_of(node).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no node of a ublk device", node.display()),
        )
    })?;
    // A device that is gone by now has nothing to give away.
    let Some(info) = Control::open()?.info(id)?.filter(is_unprivileged) else {
        return Ok(());
    };
    let (user, group) = (Uid::from_raw(info.owner_uid), Gid::from_raw(info.owner_gid));
    match chown(node, Some(user), Some(group)) {
        Err(Errno::ENOENT) => Ok(()),
        other => other.context_io(|| format!("cannot give {} to user {user}", node.display())),
    }
}

/// The number in the path of a node.
fn device_of(node: &Path) -> Option<u32> {
    let name = node.to_str()?.strip_prefix("/dev/ublk")?;
    let digits = name.strip_prefix('b').or(name.strip_prefix('c'))?;
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_of_ublk_devices_are_given_away() {
        for (path, id) in [
            ("/dev/ublkc0", Some(0)),
            ("/dev/ublkb17", Some(17)),
            ("/dev/ublk-control", None),
            ("/dev/ublkb0p1", None),
            ("/dev/ublkb+1", None),
            ("/dev/ublkc", None),
            ("/dev/ublkc4294967296", None),
            ("/dev/../etc/ublkc0", None),
            ("/tmp/ublkc0", None),
            ("/dev/sda", None),
        ] {
            assert_eq!(device_of(Path::new(path)), id, "{path}");
        }
    }

    #[test]
    fn a_rule_for_the_control_node_alone_gives_no_device_away() {
        let control = "KERNEL==\"ublk-control\", MODE=\"0666\"\n";
        assert!(!gives_nodes_away(control));
        assert!(!gives_nodes_away("# KERNEL==\"ublkc*\", GROUP=\"disk\"\n"));
        assert!(gives_nodes_away("KERNEL==\"ublkc*\", GROUP=\"disk\"\n"));
        assert!(gives_nodes_away(&udev_rules(Path::new("/bin/blockferry"))));
    }
}
