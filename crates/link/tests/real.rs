//! Real programs from the distribution on one host, on plain TCP and on the link: the same bytes, the same exit status.

mod common;

use common::programs::{data, same, text};
use common::site::{End, Site};
use common::{Ground, On, programs};

fn both(test: impl Fn(&Ground, On)) {
    for on in [On::Tcp, On::Link] {
        test(&Ground::new(), on);
    }
}

macro_rules! programs {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                both(|ground, on| programs::$name(ground, on));
            }
        )*
    };
}

programs! {
    iperf3 nginx apache redis ssh_and_scp vsftpd_with_two_clients telnet node postgresql_with_pgbench mariadb_with_mysqlslap java
}

#[test]
fn netcat_and_socat() {
    both(|ground, on| {
        let data = data(ground, End::Client, "data");
        for (listen, send) in [
            ("nc -l -N 127.0.0.1 PORT > got < /dev/null", "nc -N 127.0.0.1 PORT < data"),
            (
                "socat -u TCP-LISTEN:PORT,bind=127.0.0.1 CREATE:got",
                "socat -u OPEN:data TCP:127.0.0.1:PORT",
            ),
        ] {
            let port = ground.port();
            let with = |words: &str| words.replace("PORT", &port.to_string());
            let mut receiver = ground.serve(on, port, &["sh", "-c", &with(listen)]);
            ground.shell(End::Client, on, &with(send));
            assert!(receiver.0.wait().unwrap().success());
            same(&data, &Site::path(ground, End::Server, "got"));
        }
    });
}

#[test]
fn python_tests_of_its_own() {
    both(|ground, on| {
        let suites = [
            "BasicTCPTest",
            "NonBlockingTCPTests",
            "FileObjectClassTestCase",
            "SendmsgTCPTest",
            "RecvmsgTCPTest",
            "RecvmsgIntoTCPTest",
            "NetworkConnectionBehaviourTest",
            "SendfileUsingSendfileTest",
            "TCPTimeoutTest",
            "InterruptedRecvTimeoutTest",
            "InterruptedSendTimeoutTest",
        ];
        let names: Vec<_> =
            suites.iter().map(|suite| format!("test.test_socket.{suite}")).collect();
        let mut words = vec!["python3", "-m", "unittest", "test.test_selectors", "test.test_poll"];
        words.extend(names.iter().map(String::as_str));
        ground.run(End::Client, on, &words);
    });
}

/// All that it has for sockets and what stands on them.
#[test]
#[cfg(feature = "long-tests")]
fn python_tests_in_whole() {
    both(|ground, on| {
        // Virtual machines' sockets have one port on the whole host.
        let mut words = vec!["python3", "-m", "test", "-i", "*VSOCK*"];
        words.extend(["test_socket", "test_selectors", "test_select", "test_poll", "test_epoll"]);
        words.extend(["test_socketserver", "test_ftplib", "test_httplib", "test_asyncio"]);
        ground.run(End::Client, on, &words);
    });
}

#[test]
fn open_mpi_over_tcp() {
    let ground = Ground::new();
    let source = common::program("exchange.c");
    ground.run(End::Client, On::Tcp, &["mpicc", "-O1", "-o", "exchange", text(&source)]);
    let program = ground.path("exchange");
    let only_tcp =
        ["--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"];
    let mut words = vec!["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "4"];
    words.extend(only_tcp);
    // Waiting processes give way: there are more of them than processors.
    words.extend(["--mca", "mpi_yield_when_idle", "1", text(&program)]);
    let tcp = ground.run(End::Client, On::Tcp, &words);
    let link = ground.run(End::Client, On::Link, &words);
    assert_eq!(tcp, link);
    assert!(!tcp.trim().is_empty());
    let totals = ground.broker.totals();
    assert!(totals.ring_bytes > 10_000_000, "{totals:?}");
}
