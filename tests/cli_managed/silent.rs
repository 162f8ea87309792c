//! The end of a mount whose link was cut a moment ago: the transport takes its time to notice.

use std::time::{Duration, Instant};

use super::support::{CHUNK, Host, KEEP_DIRTY, Mount, pattern, said};

/// The transport gives an end up that was not heard of for so long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops it before the transport has noticed anything, and gives what it said.
fn stops_at_once(host: &Host, mount: &mut Mount, args: &[&str]) -> String {
    let begun = Instant::now();
    let output = host.run(&[&["stop", "disk"], args].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert!(begun.elapsed() < IDLE_TIMEOUT, "{:?}", begun.elapsed());
    assert_eq!(mount.ended(), Some(0));
    said(&output)
}

#[test]
fn with_a_cache_it_keeps_what_it_cannot_send_without_waiting_for_the_transport() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let relay = host.put_link_before(&server);
    let cache = host.text("cache");
    let mut mount = host.mount(&[&["--cache", &cache], &KEEP_DIRTY[..]].concat());
    host.until_local();
    let written = pattern(CHUNK, CHUNK as usize, 1);
    mount.write(CHUNK, &written);
    relay.cut();
    let said = stops_at_once(&host, &mut mount, &[]);
    assert!(said.contains("256KiB of local writes stay"), "{said}");

    relay.mend();
    let mut mount = host.mount(&["--cache", &cache]);
    host.until_clean();
    assert_eq!(host.at_origin(CHUNK, CHUNK as usize), written);

    // With nothing to keep it need not hold anybody up either.
    relay.cut();
    let said = stops_at_once(&host, &mut mount, &[]);
    assert!(said.contains("--takeover"), "{said}");
    relay.mend();
    let _mount = host.mount(&["--cache", &cache]);
}

#[test]
fn what_is_given_up_while_the_server_cannot_be_told_leaves_a_volume_to_take_over() {
    let Some(host) = Host::new() else { return };
    let server = host.serve();
    let relay = host.put_link_before(&server);
    let mut mount = host.mount(&KEEP_DIRTY);
    host.until_local();
    mount.write(CHUNK, &pattern(CHUNK, CHUNK as usize, 1));
    relay.cut();
    let said = stops_at_once(&host, &mut mount, &["--discard-dirty"]);
    assert!(said.contains("--takeover"), "{said}");
    assert!(host.stores().is_empty(), "{:?}", host.stores());

    relay.mend();
    host.fails(
        &["mount", &host.ticket(), "--device", "fuse"],
        &["--takeover"],
    );
    let mount = host.mount(&["--takeover"]);
    let original = pattern(CHUNK, CHUNK as usize, 0);
    assert_eq!(mount.read(CHUNK, CHUNK as usize), original);
}
