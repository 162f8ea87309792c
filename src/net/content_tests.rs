use super::*;
use crate::volume::FileOptions;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const A: Writer = Writer {
    client_id: [1; 16],
    session: 1,
};
const B: Writer = Writer {
    client_id: [2; 16],
    session: 1,
};

/// A state directory and a place for files.
struct Place {
    dir: tempfile::TempDir,
    state: StateDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(Some(&dir.path().join("state"))).expect("opened");
        Self { dir, state }
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, [1; 8192]).expect("written");
        path
    }

    /// What a server that starts finds.
    fn find(&self, source: Content, instance: u8) -> (ServedContent, bool) {
        let name = "disk".parse().expect("a name");
        let found = ServedContent::find(source, [instance; 16], 8192, &self.state, &name);
        let found = found.expect("found");
        let replaced = found.replaced;
        (found.keep().expect("kept"), replaced)
    }

    /// The same of a file that nobody else has open.
    fn find_file(&self, path: &Path) -> (ServedContent, bool) {
        let file = FileStore::open(path, FileOptions::default()).expect("opened");
        self.find(Content::File(Arc::new(file)), 1)
    }
}

/// Somebody writes the file while no server has it.
fn change(path: &Path) {
    let file = File::options().write(true).open(path).expect("opened");
    file.write_all_at(&[9; 512], 0).expect("written");
    let later = SystemTime::now() + Duration::from_secs(5);
    file.set_modified(later).expect("dated");
}

#[tokio::test]
async fn a_file_keeps_its_identity_over_restarts_with_writes_of_its_clients() {
    let place = Place::new();
    let path = place.file("disk.img");
    let (first, replaced) = place.find_file(&path);
    assert!(!replaced, "there was nothing before");
    let identity = first.identity();
    first.begin_writing(A).await.expect("noted");
    // What clients write goes through the server's own descriptor.
    change(&path);
    first.end_writing(A).await;
    first.settle().await;
    drop(first);
    for _ in 0..2 {
        let (again, replaced) = place.find_file(&path);
        assert_eq!((again.identity(), replaced), (identity, false));
        again.settle().await;
    }
}

#[tokio::test]
async fn a_file_that_was_written_while_no_server_had_it_is_another_content() {
    let place = Place::new();
    let path = place.file("disk.img");
    let (first, _) = place.find_file(&path);
    let identity = first.identity();
    first.settle().await;
    drop(first);
    change(&path);
    let (again, replaced) = place.find_file(&path);
    assert!(again.identity() != identity && replaced);
}

#[tokio::test]
async fn after_a_crash_the_file_decides_and_its_time_does_not() {
    let place = Place::new();
    let path = place.file("disk.img");
    let identity = place.find_file(&path).0.identity();
    change(&path);
    let (again, replaced) = place.find_file(&path);
    assert_eq!((again.identity(), replaced), (identity, false));
    drop(again);
    let other = place.file("other.img");
    std::fs::rename(&other, &path).expect("moved");
    let (other, replaced) = place.find_file(&path);
    assert!(other.identity() != identity && replaced);
}

#[tokio::test]
async fn memory_is_another_content_with_each_instance_and_a_name_with_none() {
    let place = Place::new();
    let first = place.find(Content::Instance, 1).0.identity();
    let (again, replaced) = place.find(Content::Instance, 1);
    assert_eq!((again.identity(), replaced), (first, false));
    let (other, replaced) = place.find(Content::Instance, 2);
    assert!(replaced && other.identity() != first);

    let (named, replaced) = place.find(Content::Name, 2);
    assert!(replaced && named.identity() != other.identity());
    let (again, replaced) = place.find(Content::Name, 3);
    assert_eq!((again.identity(), replaced), (named.identity(), false));
}

#[tokio::test]
async fn the_generation_grows_with_each_session_that_writes_and_with_nothing_else() {
    let place = Place::new();
    let (content, _) = place.find(Content::Name, 1);
    assert_eq!(content.generation().await, Some(0));
    content.end_writing(A).await;
    assert_eq!(content.generation().await, Some(0), "it never wrote");
    for before in [0, 2] {
        content.begin_writing(A).await.expect("noted");
        content.begin_writing(A).await.expect("noted once");
        assert_eq!(content.generation().await, None);
        content.end_writing(A).await;
        assert_eq!(content.generation().await, Some(before + 2));
    }
    // A session takes the place of one whose end was not seen.
    content.begin_writing(A).await.expect("noted");
    content.begin_writing(B).await.expect("noted");
    content.end_writing(A).await;
    assert_eq!(content.generation().await, None);
    content.end_writing(B).await;
    assert_eq!(content.generation().await, Some(6));
    content.settle().await;
    let (again, _) = place.find(Content::Name, 1);
    assert_eq!(again.generation().await, Some(6));
}

#[tokio::test]
async fn no_generation_that_anybody_saw_comes_back_after_a_crash() {
    let place = Place::new();
    let (content, _) = place.find(Content::Name, 1);
    content.begin_writing(A).await.expect("noted");
    // While it is being written nobody is told a generation; the next one is new.
    let (again, _) = place.find(Content::Name, 1);
    assert_eq!(again.generation().await, Some(2));
    // At rest, but what was written then may not have been durable.
    let (again, _) = place.find(Content::Name, 1);
    assert_eq!(again.generation().await, Some(4));
}
