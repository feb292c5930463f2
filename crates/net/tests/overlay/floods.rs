//! A machine that floods the bridge costs its neighbours little, whatever it floods with.

use crate::allow;
use crate::common::bed::{Bed, Plan};
use crate::ways::rate;
use anyhow::{Result, ensure};
use skein_net::{Direction, RulePeer, RuleProtocol};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long one stream is measured.
const WINDOW: Duration = Duration::from_millis(500);
/// Pairs of measurements, the flood beside the bridge and on it, until the goal is reached: other work on the host
/// disturbs some of them.
const PAIRS: usize = 15;
const PAIRS_MIN: usize = 3;
/// What neighbours keep of their throughput.
const GOAL: f64 = 0.9;

/// A flood that ends with its owner.
struct Flood(Child);

impl Flood {
    /// Sends `frame`, an expression of Python in which `n` counts, from an interface of a namespace without a pause.
    fn start(namespace: &str, interface: &str, frame: &str) -> Result<Self> {
        let script = format!(
            "import socket\ns=socket.socket(17,3)\ns.bind(('{interface}',0))\nn=0\nprint(1,flush=True)\nwhile 1:\n n+=1\n \
             k=bytes([(n>>16)&255,(n>>8)&255,n&255])\n s.send({frame})\n"
        );
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "python3", "-c", &script]);
        let mut flood = Self(command.stdout(Stdio::piped()).spawn()?);
        let mut begun = [0; 1];
        flood.0.stdout.as_mut().expect("piped").read_exact(&mut begun)?;
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Floods from machine 13 while 11 sends to 12. The same flood into the machine's own loopback costs the same of the
/// host's processors: what is compared is what it does beyond that. `counter` is what drops it.
async fn neighbours_keep_their_throughput(vni: u32, frame: &str, counter: &str) -> Result<()> {
    let bed = Bed::new(1).await?;
    let plan = Plan::new(vni, "blue")
        .group("all", vec![allow(1, Direction::Ingress, RuleProtocol::Any, RulePeer::Any)])
        .with(11, 1, &["all"])
        .with(12, 1, &["all"])
        .with(13, 1, &["all"]);
    bed.apply(&[&plan]).await?;
    let a = bed.machine(0, &plan, 11).await?;
    let b = bed.machine(0, &plan, 12).await?;
    let hostile = bed.machine(0, &plan, 13).await?;
    let mut ratios: Vec<f64> = Vec::new();
    let mut kept = 0.0;
    for pair in 0..PAIRS {
        let measured = |interface: &str, port: u16| -> Result<f64> {
            let _flood = Flood::start(hostile.name(), interface, frame)?;
            Ok(rate(&a, &b, port, WINDOW))
        };
        let port = 9100 + u16::try_from(pair)? * 2;
        let beside = measured("lo", port)?;
        ratios.push(measured("eth0", port + 1)? / beside);
        ratios.sort_by(f64::total_cmp);
        kept = ratios[ratios.len() / 2];
        if pair + 1 >= PAIRS_MIN && kept >= GOAL {
            break;
        }
    }
    let counters = bed.nodes[0].networks().counters(plan.network.vni).await?;
    let dropped = counters.iter().find(|found| found.name == counter);
    ensure!(dropped.is_some_and(|found| found.packets > 1000), "{counter}: {counters:?}");
    println!("{counter}: neighbours keep {:.0} % in {} pairs", kept * 100.0, ratios.len());
    ensure!(kept >= GOAL, "{counter}: neighbours keep {kept:.2}: {ratios:.2?}");
    bed.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_mac_addresses() -> Result<()> {
    // Questions for 10.20.0.12 by ever new senders.
    let frame = "b'\\xff'*6+b'\\2\\x09'+k+b'\\7\\x08\\x06\\0\\1\\x08\\0\\6\\4\\0\\1\\2\\x09'+k+b'\\7'+bytes([10,20,0,n&255])\
                 +b'\\0'*6+bytes([10,20,0,12])+b'\\0'*18";
    neighbours_keep_their_throughput(60, frame, "drop spoofed-mac").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_arp() -> Result<()> {
    // Questions in its own name for everybody.
    let own = "b'\\2\\0\\0\\0\\0\\x0d'";
    let frame = format!(
        "b'\\xff'*6+{own}+b'\\x08\\x06\\0\\1\\x08\\0\\6\\4\\0\\1'+{own}+bytes([10,20,0,13])+b'\\0'*6\
         +bytes([10,20,0,n&255])+b'\\0'*18"
    );
    neighbours_keep_their_throughput(61, &frame, "drop limit-questions").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_dhcp() -> Result<()> {
    // DISCOVER in its own name, a new transaction each time: Ethernet, IPv4 with its checksum, UDP without one.
    let own = "b'\\2\\0\\0\\0\\0\\x0d'";
    let frame = format!(
        "b'\\xff'*6+{own}+b'\\x08\\0E\\0\\1\\x10\\0\\0\\0\\0@\\x11\\x79\\xde\\0\\0\\0\\0\\xff\\xff\\xff\\xff'\
         +b'\\0D\\0C\\0\\xfc\\0\\0'+b'\\1\\1\\6\\0\\7'+k+b'\\0'*20+{own}+b'\\0'*202+b'c\\x82Sc5\\1\\1\\xff'"
    );
    neighbours_keep_their_throughput(62, &frame, "drop limit-questions").await
}
