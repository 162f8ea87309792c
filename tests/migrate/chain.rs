//! What has come goes on from the same process.

use super::ends::{World, address_in, are_equal, until};
use super::writer::{Writer, Written};

fn strings(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn a_volume_goes_from_host_to_host_and_back_to_the_first_with_its_device_in_use_all_the_time() {
    let Some(world) = World::new() else { return };
    let mut first = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&first.device, 1, Written::default());

    let on = world.seeding_on("ticket-b");
    let (b, c, a) = (world.url("b.img"), world.url("c.img"), world.url("a.img"));
    let second = world.leech_as("second", "host-b", "ticket", &b, &strings(&on));
    let mut second = second.wait_until_ready();
    let ticket = std::fs::read_to_string(world.path("ticket-b")).expect("written");
    assert_eq!(second.second, ticket.trim());
    assert!(second.line().starts_with("downtime "));
    let written = writer.failed();
    assert_eq!(first.ended(), Some(0), "{}", first.log());
    written.is_on(&second.device);
    assert_eq!(world.status("second").expect("JSON")["role"], "seeder");
    let writer = Writer::start(&second.device, 2, written);

    let on = world.seeding_on("ticket-c");
    let third = world.leech_as("third", "host-c", "ticket-b", &c, &strings(&on));
    let mut third = third.wait_until_ready();
    let written = writer.failed();
    assert_eq!(second.ended(), Some(0), "{}", second.log());
    written.is_on(&third.device);
    let writer = Writer::start(&third.device, 3, written);

    let back = world.leech_as("leecher", "host-a", "ticket-c", &a, &[]);
    let mut back = back.wait_until_ready();
    let written = writer.failed();
    assert_eq!(third.ended(), Some(0), "{}", third.log());
    assert!(are_equal(&world.path("a.img"), &world.path("c.img")));
    Writer::start(&back.device, 4, written)
        .stop()
        .is_on(&back.device);
    world.fails(&["mount", &b], &["has moved to host-c (epoch 2)"]);
    world.fails(&["mount", &c], &["has moved to host-a (epoch 3)"]);
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(back.ended(), Some(0), "{}", back.log());
    let mut mount = world.mount("a.img");
    assert!(!mount.line().is_empty(), "{}", mount.log());
}

#[test]
fn a_leecher_that_seeds_on_is_stopped_as_a_seeder_is_and_keeps_the_volume_when_it_is_killed() {
    let Some(world) = World::new() else { return };
    let mut first = world.seed("a.img", &[]).wait_until_ready();
    let on = world.seeding_on("ticket-b");
    let b = world.url("b.img");
    let second = world.leech_as("second", "host-b", "ticket", &b, &strings(&on));
    let mut second = second.wait_until_ready();
    assert_eq!(first.ended(), Some(0), "{}", first.log());
    world.fails(&["finalize", "second"], &["for the leecher"]);
    let writer = Writer::start(&second.device, 1, Written::default());
    second.crash();
    let written = writer.failed();

    // Its seeder is gone; the record says that it needs none.
    let second = world.leech_as("second", "host-b", "ticket", &b, &strings(&on));
    let mut second = second.wait_until_ready();
    assert!(second.second.starts_with("blockferry://"));
    written.is_on(&second.device);
    let leecher = world.leech_as(
        "leecher",
        "host-c",
        "ticket-b",
        "mem:",
        &["--finalize", "manual"],
    );
    world.until_rounds(1);
    until("the leecher is seen", || {
        let status = world.status("second");
        status.is_some_and(|status| status["leechers"] == 1)
    });
    world.succeeds(&["abort", "second"]);
    drop(leecher);
    written.is_on(&second.device);
    world.succeeds(&["stop", "second"]);
    assert_eq!(second.ended(), Some(0), "{}", second.log());
    let mut mount = world.mount("b.img");
    assert!(!mount.line().is_empty(), "{}", mount.log());
}

#[test]
fn what_cannot_be_seeded_on_does_not_move_here() {
    let Some(world) = World::new() else { return };
    let seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let ticket = std::fs::read_to_string(world.path("ticket")).expect("written");
    let address = address_in(&ticket);
    let store = world.url("b.img");
    let state = world.path("state").display().to_string();
    let nowhere = world.path("no/such/ticket").display().to_string();
    let common = [
        "leech",
        ticket.trim(),
        "--store",
        &store,
        "--device",
        "fuse",
    ];
    std::fs::write(world.path("c.img"), [1; 4096]).expect("written");
    let mut server = world.serve("c.img");
    for (service, part) in [
        // A port that is taken, a name that another process serves, and a ticket that nobody would get.
        (["--listen", address, "--name", "second"], "in use"),
        (
            ["--listen", "127.0.0.1:0", "--name", "served"],
            "serves a volume named `served`",
        ),
        (
            ["--listen", "127.0.0.1:0", "--ticket-file", &nowhere],
            "no/such/ticket",
        ),
    ] {
        let args = [&common[..], &service, &["--state-dir", &state]].concat();
        world.fails(&args, &[part]);
        assert!(!world.path("b.img").exists(), "{part}");
    }
    server.crash();
    writer.stop().is_on(&seeder.device);
}

#[test]
fn what_only_a_service_needs_is_refused_without_one() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let ticket = format!("@{}", world.path("ticket").display());
    let args = [
        "leech",
        &ticket,
        "--store",
        "mem:",
        "--on-before-sync",
        "true",
    ];
    let output = world.command(&args).output().expect("started");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--listen"));
}
