//! Without root the device is the file, mounted by fusermount3. The test itself needs root, to make
//! a /dev/fuse that everybody may open, in a mount namespace of its own.

mod fuse_support;

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use blockferry::device::DeviceRecord;
use fuse_support::*;

/// Not a test: what the unprivileged process does.
#[test]
#[ignore = "run by the other test"]
fn child() {
    if nix::unistd::geteuid().is_root() {
        return;
    }
    for url in ["mem:1MiB".to_owned(), std::env::var("IMAGE").expect("set")] {
        let mut served = serve(&url, Wish::default());
        let path = served.device.path().to_owned();
        assert_eq!(path, served.file());
        assert!(matches!(
            served.device.record(),
            DeviceRecord::Fuse {
                loop_device: None,
                ..
            }
        ));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("opened");
        let bytes = pattern(1, 100_000);
        file.write_all_at(&bytes, 777).expect("written");
        file.sync_all().expect("flushed");
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 777).expect("read");
        assert!(read == bytes);
        // It is taken away although it is open, if the kernel shows the way to do that.
        served.device.flush().expect("flushed");
        served.device.remove().expect("removed");
        let connections = std::fs::read_dir("/sys/fs/fuse/connections");
        if connections.is_ok_and(|mut list| list.next().is_some()) {
            assert!(file.read_at(&mut read, 0).is_err());
        }
        assert!(!path.exists());
        assert!(!served.directory.path().join("fuse").exists());
    }
}

#[test]
fn without_root_the_device_is_the_file() {
    let Some(_turn) = turn() else { return };
    let (found, _) = try_run("sh", ["-c", "command -v fusermount3 setpriv unshare"]);
    if !found {
        eprintln!("skipped: fusermount3, setpriv or unshare is missing");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let all = |path: &Path, mode| {
        let mode = PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("allowed");
    };
    all(directory.path(), 0o777);
    let program = directory.path().join("program");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("copied");
    all(&program, 0o755);
    let image = directory.path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).expect("an image");
    all(&image, 0o666);
    let script = "set -e
        mknod -m 666 $DIRECTORY/fuse c 10 229
        mount --bind $DIRECTORY/fuse /dev/fuse
        cd $DIRECTORY
        exec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=+all \
            env TMPDIR=$DIRECTORY IMAGE=file:$DIRECTORY/disk.img \
            ./program --exact child --ignored --nocapture";
    let directory_variable = format!("DIRECTORY={}", directory.path().display());
    let output = run(
        "env",
        [
            directory_variable.as_str(),
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
        ],
    );
    assert!(output.contains("1 passed"), "{output}");
}
