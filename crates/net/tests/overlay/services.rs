//! Addresses and names, as real clients ask for them.

use crate::common::bed::{Bed, Plan, inside, run};
use crate::common::eventually;
use anyhow::{Result, ensure};
use skein_net::{DnsRecord, OtherNames, Route};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

fn has(program: &str) -> bool {
    std::process::Command::new(program).arg("--help").output().is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_distributions_get_leases() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(40, "blue").with(11, 1, &[]).with(12, 1, &[]);
    let route = Route { to: "10.0.0.0/8".parse()?, via: Ipv4Addr::new(10, 20, 0, 9) };
    plan.network.dhcp.routes = vec![route];
    bed.apply(&[&plan]).await?;
    let directory = tempfile::tempdir()?;
    if has("udhcpc") {
        let machine = bed.bare_machine(0, &plan, 11).await?;
        let script = directory.path().join("udhcpc.sh");
        let out = directory.path().join("lease");
        std::fs::write(
            &script,
            format!("#!/bin/sh\n[ \"$1\" = bound ] && env > {}\n", out.display()),
        )?;
        run(&format!("chmod +x {}", script.display()))?;
        let m = machine.name();
        run(&format!(
            "ip netns exec {m} udhcpc -i eth0 -n -q -f -t 5 -T 1 -s {} -O mtu -O search -O staticroutes",
            script.display()
        ))?;
        let lease = std::fs::read_to_string(&out)?;
        for line in [
            "ip=10.20.0.11",
            "router=10.20.0.1",
            "mtu=1450",
            "hostname=m11",
            "dns=10.20.0.1",
            "domain=web.blue.internal",
            "serverid=10.20.0.1",
            "staticroutes=10.0.0.0/8 10.20.0.9 0.0.0.0/0 10.20.0.1",
        ] {
            ensure!(lease.contains(line), "{line} is not in {lease}");
        }
    }
    if has("dhclient") {
        let machine = bed.bare_machine(0, &plan, 12).await?;
        let (m, d) = (machine.name(), directory.path().display());
        run(&format!(
            "ip netns exec {m} dhclient -1 -4 -sf /bin/true -lf {d}/4.leases -pf {d}/4.pid eth0"
        ))?;
        let lease = std::fs::read_to_string(directory.path().join("4.leases"))?;
        let known_free = || async {
            let addresses = run(&format!("ip -n {m} -6 addr show eth0")).ok()?;
            (!addresses.contains("tentative")).then_some(())
        };
        eventually("the link-local address is known to be free", known_free).await?;
        let six = run(&format!(
            "ip netns exec {m} timeout 20 dhclient -1 -6 -sf /bin/true -lf {d}/6.leases -pf {d}/6.pid eth0"
        ));
        for pid in ["4.pid", "6.pid"] {
            if let Ok(pid) = std::fs::read_to_string(directory.path().join(pid)) {
                let _ = run(&format!("kill {}", pid.trim()));
            }
        }
        ensure!(lease.contains("fixed-address 10.20.0.12"), "{lease}");
        six?;
        let lease = std::fs::read_to_string(directory.path().join("6.leases"))?;
        ensure!(lease.contains("iaaddr fd00:20::c"), "{lease}");
    }
    bed.finish().await
}

/// The client of systemd, for a network of `eth0` alone. It has mounts of its own: without the host's configuration, and
/// with a /sys that can only be read, by which it knows that no device manager tells it when an interface is ready.
const NETWORKD: &str = "mount --make-rprivate / && mount -t tmpfs none /run/systemd && mkdir /run/systemd/network \
    && printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' > /run/systemd/network/eth0.network \
    && mount -o remount,bind,ro /sys && exec /lib/systemd/systemd-networkd";

struct Client(std::process::Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_systemd_gets_leases() -> Result<()> {
    if !std::path::Path::new("/lib/systemd/systemd-networkd").exists() {
        return Ok(());
    }
    let bed = Bed::new(1).await?;
    let plan = Plan::new(43, "blue").with(11, 1, &[]);
    bed.apply(&[&plan]).await?;
    let machine = bed.bare_machine(0, &plan, 11).await?;
    let m = machine.name();
    let _client = Client(
        std::process::Command::new("ip")
            .args(["netns", "exec", m, "unshare", "--mount", "sh", "-c", NETWORKD])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?,
    );
    let leased = || async {
        let addresses = run(&format!("ip -n {m} addr show eth0")).ok()?;
        let routes = run(&format!("ip -n {m} route")).ok()?;
        let routes6 = run(&format!("ip -n {m} -6 route")).ok()?;
        let both = addresses.contains("10.20.0.11/24") && addresses.contains("fd00:20::b/128");
        let ways =
            routes.contains("default via 10.20.0.1") && routes6.contains("default via fe80::1");
        (both && ways).then_some(())
    };
    eventually("addresses and routes of both families", leased).await?;
    bed.finish().await
}

/// Which addresses has a name?
fn question(name: &str) -> Vec<u8> {
    let mut question = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("short"));
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

/// Asks for addresses of a name; the answer's code and bytes.
fn ask(from: &str, server: Ipv4Addr, name: &str) -> Option<(u8, Vec<u8>)> {
    let question = question(name);
    inside(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        socket.send_to(&question, (server, 53)).ok()?;
        let mut answer = vec![0; 512];
        let count = socket.recv(&mut answer).ok()?;
        answer.truncate(count);
        Some((answer[3] & 15, answer))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_the_network_resolve_and_others_are_passed_on() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(41, "blue").with(11, 1, &[]);
    let address = Ipv4Addr::new(10, 20, 0, 12);
    plan.network.dns.records =
        vec![DnsRecord { name: "db.web.blue.internal".into(), addresses: vec![address.into()] }];
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    let (m, gateway) = (machine.name(), plan.network.gateway);
    let (code, answer) = ask(m, gateway, "DB.web.blue.internal").expect("an answer");
    ensure!(code == 0 && answer.ends_with(&address.octets()), "{answer:x?}");
    let (code, _) = ask(m, gateway, "nobody.web.blue.internal").expect("an answer");
    ensure!(code == 3, "an unknown name: {code}");
    // The node's resolver is the world's end of the wire.
    let resolver = inside(&bed.world.0, || UdpSocket::bind("192.0.2.254:53"))?;
    let thread = std::thread::spawn(move || {
        let mut question = [0; 512];
        let (count, from) = resolver.recv_from(&mut question).expect("a question");
        let mut answer = question[..count].to_vec();
        answer[2] = 0x81;
        answer[3] = 0x85;
        resolver.send_to(&answer, from).expect("an answer");
    });
    let (code, _) = ask(m, gateway, "example.org").expect("an answer");
    ensure!(code == 5, "what the resolver says: {code}");
    thread.join().expect("the resolver does not panic");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_network_answers_its_own_names_alone() -> Result<()> {
    let bed = Bed::new(1).await?;
    let mut plan = Plan::new(44, "blue").with(11, 1, &[]);
    plan.network.dns.others = OtherNames::Refuse;
    let own = vec![Ipv4Addr::new(10, 20, 0, 12).into()];
    plan.network.dns.records = vec![DnsRecord { name: "db.blue.internal".into(), addresses: own }];
    bed.apply(&[&plan]).await?;
    let machine = bed.machine(0, &plan, 11).await?;
    let resolver = inside(&bed.world.0, || UdpSocket::bind("192.0.2.254:53"))?;
    resolver.set_nonblocking(true)?;
    let code = |name: &str| ask(machine.name(), plan.network.gateway, name).map(|(code, _)| code);
    ensure!(code("db.blue.internal") == Some(0), "its own");
    ensure!(code("example.org") == Some(5), "another name");
    ensure!(ask_tcp(machine.name(), plan.network.gateway, "example.org") == Some(5), "by TCP");
    ensure!(resolver.recv(&mut [0; 512]).is_err(), "the node's resolver was asked");
    ensure!(!machine.connects((Ipv4Addr::new(192, 0, 2, 254), 53)), "there is no way out");
    bed.finish().await
}

/// The code of the answer to a question over TCP.
fn ask_tcp(from: &str, server: Ipv4Addr, name: &str) -> Option<u8> {
    let question = question(name);
    inside(from, move || {
        let wait = Duration::from_secs(8);
        let mut stream = TcpStream::connect_timeout(&(server, 53).into(), wait).ok()?;
        stream.set_read_timeout(Some(wait)).ok()?;
        let length = u16::try_from(question.len()).ok()?.to_be_bytes();
        stream.write_all(&[&length[..], &question].concat()).ok()?;
        let mut answer = [0; 2 + 12];
        stream.read_exact(&mut answer).ok()?;
        Some(answer[2 + 3] & 15)
    })
}

/// Answers by its code alone whoever asks for a name that begins with `good`, and nobody else, until it is stopped.
fn resolve(socket: UdpSocket, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while !stop.load(Ordering::Relaxed) {
            let Ok((count, from)) = socket.recv_from(&mut question) else { continue };
            if question[..count].get(13..17) == Some(b"good") {
                (question[2], question[3]) = (0x81, 0x85);
                socket.send_to(&question[..count], from).expect("it listens");
            }
        }
    })
}

/// Asks for names that nobody answers, until it is stopped; counts what failed at once.
fn pester(
    socket: UdpSocket,
    server: Ipv4Addr,
    (stop, failed): (Arc<AtomicBool>, Arc<AtomicU32>),
) -> std::thread::JoinHandle<()> {
    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
    std::thread::spawn(move || {
        let mut answer = [0; 512];
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let question = question(&format!("bad{number}.example"));
            socket.send_to(&question, (server, 53)).expect("a way");
            if socket.recv(&mut answer).is_ok() && answer[3] & 15 == 2 {
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_names_nobody_answers_leaves_room_to_its_neighbour() -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = Plan::new(48, "blue").with(11, 1, &[]).with(12, 1, &[]);
    bed.apply(&[&plan]).await?;
    let (a, b) = (bed.machine(0, &plan, 11).await?, bed.machine(0, &plan, 12).await?);
    let gateway = plan.network.gateway;
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let socket = inside(&bed.world.0, || UdpSocket::bind("192.0.2.254:53"))?;
    let resolver = resolve(socket, stop.clone());
    let socket = inside(a.name(), || UdpSocket::bind("0.0.0.0:0"))?;
    let pestering = pester(socket, gateway, (stop.clone(), failed.clone()));
    let many = || async { (failed.load(Ordering::Relaxed) > 100).then_some(()) };
    eventually("it is told that its share is taken", many).await?;
    for number in 0..20 {
        let answer = ask(b.name(), gateway, &format!("good{number}.example"));
        ensure!(answer.is_some_and(|(code, _)| code == 5), "the neighbour's question {number}");
    }
    // What the network knows itself is answered still.
    let known = ask(a.name(), gateway, "nobody.web.blue.internal");
    ensure!(known.is_some_and(|(code, _)| code == 3), "a name of the network");
    // Over TCP: no more than its share of connections.
    let held: Vec<_> = (0..200).map(|_| a.dial((gateway, 53))).collect();
    ensure!(ask_tcp(b.name(), gateway, "nobody.web.blue.internal") == Some(3), "over TCP");
    drop(held);
    stop.store(true, Ordering::Relaxed);
    for thread in [resolver, pestering] {
        thread.join().expect("no panic");
    }
    bed.finish().await
}
