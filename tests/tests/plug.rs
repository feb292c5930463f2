//! What a user waits for a port, with a real server and agent and no emulator.

use anyhow::Result;
use skein_tests::{run_fake, service};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Asks for the gateway's MAC address until a machine's tap has an answer.
fn first_answer(
    tap: std::os::fd::OwnedFd,
    port: &skein_api::Port,
    gateway: Ipv4Addr,
) -> Result<()> {
    /// Bytes of the virtio-net header in front of each frame of a tap.
    const HEADER: usize = 10;
    let mac: skein_model::MacAddr = port.mac.parse()?;
    let ip: Ipv4Addr = port.ipv4.parse()?;
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac.octets());
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.octets());
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(gateway.octets());
    frame.resize(HEADER + 60, 0);
    let mut tap = std::fs::File::from(tap);
    tap.write_all(&frame)?;
    let mut answer = [0; 2048];
    loop {
        let count = tap.read(&mut answer)?;
        if count > HEADER + 40 && answer[HEADER + 12..HEADER + 14] == [8, 6] {
            return Ok(());
        }
    }
}

/// What a user waits for a port: from the request to the first packet that its machine is answered. No emulator is in it.
#[test]
fn a_port_is_there_when_its_machine_begins() {
    run_fake(async |world| {
        let (client, taps) = (world.client().clone(), world.host().take_taps());
        let taps = std::sync::Arc::new(std::sync::Mutex::new(taps));
        world.serve(&service("first", |s| s.scaling.replicas_min = 0), 1).await?;
        let gateway: Ipv4Addr = client.network("default").await?.gateway.parse()?;
        let mut times = Vec::new();
        for turn in 0..20 {
            let name = format!("s{turn}");
            let spec = service(&name, |s| {
                s.image = "echo".parse().expect("a name");
                s.scaling.replicas_min = 1;
            });
            let asked = std::time::Instant::now();
            client.create_service(&spec).await?;
            let taps = taps.clone();
            let taken = tokio::task::spawn_blocking(move || {
                let taps = taps.lock().expect("nobody panics");
                let taken = taps.recv_timeout(Duration::from_secs(20));
                taken.map(|taken| (taken, std::time::Instant::now()))
            });
            let ((machine, tap), held) = taken.await??;
            let port = client.port(machine.as_str()).await?;
            let looked = held.elapsed();
            let answered = tokio::task::spawn_blocking(move || first_answer(tap, &port, gateway));
            tokio::time::timeout(Duration::from_secs(20), answered).await???;
            // Without what this test asked meanwhile to know the port's address.
            times.push(asked.elapsed() - looked);
        }
        times.sort();
        println!("from the request to the first answer: median {:?}, of {times:?}", times[10]);
        Ok(())
    });
}
