use super::*;
use proptest::prelude::*;

const GOOD: &str = "blockferry://10.0.0.7:4480/disk#v1.\
    AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE.AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";

#[test]
fn a_ticket_keeps_its_form() {
    let ticket: Ticket = GOOD.parse().expect("a good ticket");
    assert_eq!(ticket.address.host, "10.0.0.7");
    assert_eq!(ticket.address.port, 4480);
    assert_eq!(ticket.volume.as_str(), "disk");
    let credentials = ticket.credentials.as_ref().expect("with a fragment");
    assert_eq!(credentials.fingerprint.0, [1; 32]);
    assert_eq!(credentials.secret.0, [2; 32]);
    assert_eq!(ticket.reveal(), GOOD);
}

#[test]
fn a_ticket_never_shows_its_secret() {
    let ticket: Ticket = GOOD.parse().expect("a good ticket");
    for shown in [
        format!("{ticket}"),
        format!("{ticket:?}"),
        format!("{:?}", ticket.credentials),
        format!("{:?}", Secret([2; 32])),
    ] {
        assert!(
            !shown.contains("AgICAg") && !shown.contains("2, 2"),
            "{shown}"
        );
    }
}

#[test]
fn ipv6_addresses_go_in_brackets() {
    let ticket: Ticket = "blockferry://[fe80::1]:1/a.b-c_d".parse().expect("good");
    assert_eq!(ticket.address.host, "fe80::1");
    assert_eq!(ticket.reveal(), "blockferry://[fe80::1]:1/a.b-c_d");
    assert!("blockferry://fe80::1:1/a".parse::<Ticket>().is_err());
}

#[test]
fn what_is_wrong_with_a_ticket_is_said() {
    let cases = [
        ("", "no ticket"),
        ("http://x:1/a", "no ticket"),
        ("blockferry://x:1", "names no volume"),
        ("blockferry://x/a", "has no port"),
        ("blockferry://x:0/a", "no port"),
        ("blockferry://x:70000/a", "no port"),
        ("blockferry://:1/a", "no host name"),
        ("blockferry://fe80::1:1/a", "in brackets"),
        ("blockferry://[x]:1/a", "no host name"),
        ("blockferry://[::1]/a", "[ADDRESS]:PORT"),
        ("blockferry://x:1/", "no name for a volume"),
        ("blockferry://x:1/../a", "no name for a volume"),
        ("blockferry://x:1/.a", "no name for a volume"),
        ("blockferry://x:1/a#", "damaged"),
        ("blockferry://x:1/a#garbage", "damaged"),
        ("blockferry://x:1/a#v2.x.y", "version v2"),
        ("blockferry://x:1/a#v1", "cut off"),
        ("blockferry://x:1/a#v1.AAAA", "cut off"),
        ("blockferry://x:1/a#v1.AAAA.AAAA", "fingerprint"),
        ("blockferry://x:1/a#v1.A.A.A", "cut off"),
        (&GOOD[..GOOD.len() - 1], "secret"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Ticket>().expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("AgIC"), "{error} shows the secret");
    }
}

proptest! {
    #[test]
    fn every_ticket_round_trips(
        host in "[a-z0-9][a-z0-9.-]{0,20}",
        port in 1u16..,
        volume in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        keys in prop::option::of(any::<([u8; 32], [u8; 32])>()),
    ) {
        let ticket = Ticket {
            address: HostPort { host, port },
            volume: volume.parse().expect("legal"),
            credentials: keys.map(|(fingerprint, secret)| Credentials {
                fingerprint: Fingerprint(fingerprint),
                secret: Secret(secret),
            }),
        };
        prop_assert_eq!(ticket.reveal().parse::<Ticket>().expect("its own form"), ticket);
    }

    #[test]
    fn any_text_is_a_ticket_or_an_error(text in "\\PC*", tail in "\\PC{0,60}") {
        let _ = text.parse::<Ticket>();
        let _ = format!("{SCHEME}{tail}").parse::<Ticket>();
        let _ = format!("{SCHEME}x:1/a#v1.{tail}").parse::<Ticket>();
    }
}
