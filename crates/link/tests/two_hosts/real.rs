//! Real programs from the distribution, client and server on two hosts, on plain TCP and on the light protocol: the same
//! bytes, the same exit status.

use super::common::On;
use super::common::programs::{self, data};
use super::common::site::{End, Site};
use super::hosts::Hosts;
use skein_link::node::Ethernet;
use skein_link::testbed::Host;
use std::fs;

/// Runs it on plain TCP, then on the link, where at least so many bytes must go over the light protocol.
fn both(light_bytes: u64, test: impl Fn(&Hosts, On)) {
    test(&Hosts::new(Ethernet::Never), On::Tcp);
    let hosts = Hosts::new(Ethernet::Probe);
    test(&hosts, On::Link);
    let totals = hosts.totals(Host::A);
    assert!(totals.light_bytes >= light_bytes, "{totals:?}");
    let cut: Vec<_> = totals
        .steps_back
        .keys()
        .filter(|word| {
            ["broken", "foreign-write", "peer-stuck", "light-lost"].contains(&word.as_str())
        })
        .collect();
    assert!(cut.is_empty(), "{totals:?}");
}

macro_rules! programs {
    ($($(#[$attribute:meta])* $name:ident $light_bytes:literal;)*) => {
        $(
            #[test]
            $(#[$attribute])*
            fn $name() {
                both($light_bytes, |hosts, on| programs::$name(hosts, on));
            }
        )*
    };
}

// The server of ssh starts programs with the socket and sandboxes itself, that of ftp too; what `telnet` says is over before two
// hosts have agreed: most of it is on TCP.
programs! {
    iperf3 100_000;
    nginx 100_000;
    apache 100_000;
    redis 100_000;
    ssh_and_scp 0;
    vsftpd_with_two_clients 0;
    telnet 0;
    #[cfg(feature = "long-tests")]
    node 0;
    #[cfg(feature = "long-tests")]
    java 0;
    postgresql_with_pgbench 100_000;
    #[cfg(feature = "long-tests")]
    mariadb_with_mysqlslap 100_000;
}

#[test]
fn netcat() {
    both(100_000, |hosts, on| {
        let data = data(hosts, End::Client, "data");
        // Without a limit the file is there before the two ends have agreed.
        hosts.bed.limit(500, 32 * 1024).unwrap();
        let port = hosts.port();
        // It does not read its input, whose end would end its direction: such a connection stays on TCP.
        let listen = format!("nc -l -d 10.77.0.1 {port} > got");
        let mut receiver = hosts.serve(on, port, &["sh", "-c", &listen]);
        let send = format!("cat data data data data | nc -N 10.77.0.1 {port}");
        hosts.shell(End::Client, on, &send);
        assert!(receiver.0.wait().unwrap().success());
        let sent = fs::read(&data).unwrap().repeat(4);
        let got = fs::read(hosts.path(Host::A, "got")).unwrap();
        let first = got.iter().zip(&sent).position(|(got, sent)| got != sent);
        let totals = hosts.totals(Host::A);
        assert!(
            got == sent,
            "{} of {} bytes, the first wrong one is {first:?}, on {on:?}: {totals:?}",
            got.len(),
            sent.len()
        );
    });
}
