//! A leecher that nobody but the seeder can tell whether it has the volume.

use std::fs::File;
use std::future::pending;
use std::time::Duration;

use blockferry::backend::{self, OpenOptions};
use blockferry::migrate::RecordKeeper;
use blockferry::migrate::protocol::{
    AttemptId, Epoch, Instance, LeechRecord, MigrationId, SessionId, Stage, VolumeId,
};
use blockferry::net::{Arrival, Content, ServedVolume, Server, ServerConfig, arrivals};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::ends::{SIZE, World, are_equal, until};

/// For how long signals count as one, and a little more.
const SAME_SIGNAL_WITHIN: Duration = Duration::from_millis(1200);

const VOLUME: VolumeId = VolumeId([3; 16]);

impl World {
    /// What a leecher leaves that is killed when it has committed.
    fn leave_in_doubt(&self, file: &str, post_copy: bool) {
        let store = File::create(self.path(file)).expect("made");
        store.set_len(SIZE).expect("sized");
        let options = OpenOptions {
            migrates: true,
            ..OpenOptions::default()
        };
        let store = backend::open(&self.url(file), &options).expect("opened");
        let session = SessionId {
            migration: MigrationId([1; 16]),
            instance: Instance([2; 16]),
            number: 1,
        };
        let record = LeechRecord {
            volume: VOLUME,
            epoch: Epoch(1),
            stage: Stage::Prepared,
            attempt: Some(AttemptId { session, number: 1 }),
            post_copy,
        };
        let mut records = RecordKeeper::of(&store).expect("read");
        records.write_leech(record).expect("written");
    }
}

/// Stands in for the seeder of what was left in doubt, until it is dropped.
struct Seeder {
    _runtime: Runtime,
    /// Those who have asked, if it is seeded, and get no answer.
    _arrivals: Option<mpsc::Receiver<Arrival>>,
}

impl Seeder {
    fn start(world: &World, is_seeded: bool) -> Self {
        let runtime = Runtime::new().expect("started");
        let guard = runtime.enter();
        let options = OpenOptions::default();
        let resource = backend::open(&format!("mem:{SIZE}"), &options).expect("opened");
        let config = ServerConfig {
            state_dir: Some(world.path("state")),
            ..ServerConfig::on("127.0.0.1:0".parse().expect("an address"))
        };
        let mut server = Server::bind(config, Vec::new()).expect("it listens");
        let (to_arrive, arriving) = arrivals();
        let ticket = server
            .add(ServedVolume {
                name: "disk".parse().expect("a name"),
                backend: resource.as_async(),
                block_bytes: None,
                read_only: true,
                content: Content::Known(VOLUME.0),
                instance: resource.instance,
                leechers: is_seeded.then_some(to_arrive),
            })
            .expect("added");
        std::fs::write(world.path("ticket"), ticket.reveal()).expect("written");
        runtime.spawn(server.run(pending()));
        drop(guard);
        Self {
            _runtime: runtime,
            _arrivals: is_seeded.then_some(arriving),
        }
    }
}

fn is_still_in_doubt(world: &World) {
    let store = world.url("b.img");
    world.fails(&["mount", &store, "--device", "fuse"], &["only that knows"]);
}

#[test]
fn a_leecher_in_doubt_ends_where_nobody_will_ever_answer_and_says_what_to_do() {
    let Some(world) = World::new() else { return };
    world.leave_in_doubt("b.img", false);
    let _seeder = Seeder::start(&world, false);
    let mut leecher = world.leech(&world.url("b.img"), &[]);
    assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
    let log = leecher.log();
    assert!(log.contains("give the same command a new one"), "{log}");
    assert!(log.contains("cannot be leeched"), "and why: {log}");
    is_still_in_doubt(&world);
}

#[test]
fn a_leecher_in_doubt_can_be_left_by_a_second_signal_and_by_force() {
    let Some(world) = World::new() else { return };
    world.leave_in_doubt("b.img", false);
    let _seeder = Seeder::start(&world, true);
    let mut leecher = world.leech(&world.url("b.img"), &[]);
    until("it asks", || world.status("leecher").is_some());
    leecher.signal(Signal::SIGINT);
    until("it says that it is too late", || {
        leecher.log().contains("it is too late")
    });
    // One that comes sooner says no more than the first.
    std::thread::sleep(SAME_SIGNAL_WITHIN);
    leecher.signal(Signal::SIGINT);
    assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
    is_still_in_doubt(&world);

    let mut leecher = world.leech(&world.url("b.img"), &[]);
    until("it asks", || world.status("leecher").is_some());
    world.fails(&["stop", "leecher"], &["it is too late"]);
    assert!(leecher.child.try_wait().expect("waited").is_none());
    world.succeeds(&["stop", "--force", "leecher"]);
    assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
    is_still_in_doubt(&world);
}

#[test]
fn a_leecher_in_doubt_whose_seeder_is_gone_for_good_has_the_volume_if_its_user_says_so() {
    let Some(world) = World::new() else { return };
    let server = world.serve("a.img");
    drop(server);
    world.leave_in_doubt("b.img", false);
    std::fs::copy(world.path("b.img"), world.path("before.img")).expect("copied");
    let store = world.url("b.img");
    let leecher = world.leech(&store, &["--assume-committed"]);
    let mut leecher = leecher.wait_until_here();
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
    assert!(are_equal(&world.path("b.img"), &world.path("before.img")));
    // It is an owner like any other.
    let mut mount = world.mount("b.img");
    assert!(!mount.line().is_empty(), "{}", mount.log());
}

#[test]
fn nothing_is_assumed_of_a_store_that_lacks_bytes_or_is_not_in_doubt() {
    let Some(world) = World::new() else { return };
    let server = world.serve("a.img");
    drop(server);
    world.leave_in_doubt("part.img", true);
    std::fs::copy(world.path("a.img"), world.path("other.img")).expect("copied");
    for (file, why) in [
        ("part.img", "left at the seeder"),
        ("other.img", "there is no doubt"),
    ] {
        let mut leecher = world.leech(&world.url(file), &["--assume-committed"]);
        assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
        assert!(leecher.log().contains(why), "{}", leecher.log());
    }
}
