//! Who goes first.

use std::sync::Arc;

use blockferry::backend::{OpenOptions, Resource, faults};
use blockferry::mount::managed::{ManagedOptions, PullOrder};
use blockferry::volume::{MemoryMap, Op, Priority};

use super::engine_support::Rig;
use super::managed_support::{BLOCK, CHUNK, Origin, Plan, Trouble, World, until};
use super::{number_of, numbered};

const CHUNKS: u64 = 256;

#[test]
fn a_demand_read_goes_at_once_while_every_pull_is_held() {
    let world = World::new(numbered(CHUNKS * CHUNK / BLOCK));
    world.origin.plan(Plan::always(Op::Read, Trouble::Hold));
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        // Hardly more than the pull would take.
        memory_limit_bytes: 8 << 20,
        ..world.options.clone()
    });
    // What the window allows before anything is known of the link.
    world.run(world.origin.held(2));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| Rig::of(&mount).get(200 * CHUNK, BLOCK)[0]);
        world.run(world.origin.came(|call| {
            call.range == (200 * CHUNK..200 * CHUNK + BLOCK)
                && call.priority == Some(Priority::Demand)
        }));
        world.origin.release();
        assert_eq!(reader.join().expect("read"), number_of(200 * CHUNK / BLOCK));
    });
    world.run(mount.pulled());
}

#[test]
fn a_chunk_that_waits_to_be_pulled_goes_at_once_when_somebody_asks_for_it() {
    let world = World::new(numbered(CHUNKS * CHUNK / BLOCK));
    world.origin.plan(Plan::always(Op::Read, Trouble::Hold));
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        pull_workers: 32,
        ..world.options.clone()
    });
    world.run(world.origin.held(2));
    until("many wait", || mount.status().fetches_under_way == 32);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| Rig::of(&mount).get(31 * CHUNK, BLOCK)[0]);
        world.run(world.origin.came(|call| {
            call.range == (31 * CHUNK..31 * CHUNK + BLOCK)
                && call.priority == Some(Priority::Demand)
        }));
        world.origin.release();
        assert_eq!(reader.join().expect("read"), number_of(31 * CHUNK / BLOCK));
    });
}

#[test]
fn a_chunk_that_waits_for_the_rate_limit_does_not_when_somebody_asks_for_it() {
    let world = World::new(numbered(CHUNKS * CHUNK / BLOCK));
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        pull_workers: 8,
        pull_rate: Some(1),
        ..world.options.clone()
    });
    // The first goes, the others have years to wait.
    until("all workers wait", || mount.status().fetches_under_way >= 7);
    let mut rig = Rig::of(&mount);
    assert_eq!(rig.get(5 * CHUNK, BLOCK)[0], number_of(5 * CHUNK / BLOCK));
}

#[test]
fn demand_is_not_kept_from_a_backend_with_few_calls() {
    let backend = Arc::new(faults::Faulty::new(
        MemoryMap::new(CHUNKS * CHUNK).expect("memory"),
    ));
    backend.plan(faults::Rule {
        range: Some(0..100 * CHUNK),
        ..faults::Rule::always(Op::Read, faults::Fault::Hold)
    });
    let mut world = World::new(Origin::new(CHUNKS * CHUNK));
    let resource = Resource::custom("faulty", backend.clone(), OpenOptions::default());
    world.resource = resource.expect("a resource");
    let mount = world.mount_as(ManagedOptions {
        pull: PullOrder::Sequential,
        ..world.options.clone()
    });
    until("the pull is held", || backend.held() > 1);
    let mut rig = Rig::of(&mount);
    for chunk in 100..120 {
        assert_eq!(rig.get(chunk * CHUNK, BLOCK)[0], 0);
    }
    backend.release();
}
