//! Published ports: whose they are, and who comes in by them.

use crate::{group, network, project, refused, serve, tcp_in};
use anyhow::{Context, Result, ensure};
use skein_api::Code;
use skein_model::{
    Affinity, NetworkKind, NetworkSpec, Peer, PublicationSpec, PublishTarget, Transport,
};
use skein_tests::{Setup, run, service, until};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One that other tests do not have.
pub(crate) fn some_port() -> u16 {
    20_000 + rand::random_range(0..10_000)
}

/// A port of the nodes that leads to one of the service `echo`.
pub(crate) fn echo_at(port: u16, target_port: u16) -> Result<PublicationSpec> {
    Ok(PublicationSpec {
        protocol: Transport::Tcp,
        port,
        target: PublishTarget::Service("echo".parse()?),
        target_port,
        affinity: Affinity::None,
    })
}

#[test]
fn a_published_port_is_one_projects() {
    run(Setup::default(), async |world| {
        let (blue, red) = (project(world, "blue").await?, project(world, "red").await?);
        for client in [&blue, &red] {
            serve(client, &service("echo", |_| {})).await?;
        }
        let number = some_port();
        blue.publish(&echo_at(number, 80)?).await?;
        blue.publish(&echo_at(number, 80)?).await?;
        refused(blue.publish(&echo_at(number, 81)?).await, Code::PublicationConflict)?;
        refused(red.publish(&echo_at(number, 80)?).await, Code::PublicationConflict)?;
        refused(red.unpublish(Transport::Tcp, number).await, Code::PublicationUnknown)?;
        ensure!(red.publications().await?.is_empty());
        refused(blue.publish(&echo_at(0, 80)?).await, Code::Invalid)?;
        let target = PublishTarget::Service("none".parse()?);
        let spec = PublicationSpec { target, ..echo_at(number + 1, 80)? };
        refused(blue.publish(&spec).await, Code::ServiceUnknown)?;
        let target = PublishTarget::Machine("echo-00000000".parse()?);
        let spec = PublicationSpec { target, ..echo_at(number + 1, 80)? };
        refused(blue.publish(&spec).await, Code::PortUnknown)?;
        let inner = NetworkSpec { kind: NetworkKind::Isolated, ..network("in", "10.20.0.0/24")? };
        blue.create_network(&inner).await?;
        let spec = service("inner", |s| s.network.name = "in".parse().expect("a name"));
        serve(&blue, &spec).await?;
        let target = PublishTarget::Service("inner".parse()?);
        let spec = PublicationSpec { target, ..echo_at(number + 1, 80)? };
        refused(blue.publish(&spec).await, Code::NotPublishable)?;
        // It goes with its service.
        blue.remove_service("echo").await?;
        until("the port to be closed", async || {
            Ok(blue.publications().await?.is_empty().then_some(()))
        })
        .await?;
        red.publish(&echo_at(number, 80)?).await?;
        Ok(())
    });
}

#[test]
fn a_port_of_the_cloud_itself_is_not_published() {
    run(Setup::default(), async |world| {
        let client = world.client();
        serve(client, &service("echo", |_| {})).await?;
        let url = world.cloud().target().url;
        let api: SocketAddr = url.trim_start_matches("http://").parse()?;
        let node = client.nodes().await?.remove(0);
        let tunnel: SocketAddr = node.underlay.parse()?;
        let udp = |port| {
            Ok::<_, anyhow::Error>(PublicationSpec {
                protocol: Transport::Udp,
                ..echo_at(port, 80)?
            })
        };
        for spec in [echo_at(api.port(), 80)?, udp(tunnel.port())?] {
            refused(client.publish(&spec).await, Code::PortReserved)?;
        }
        ensure!(client.publications().await?.is_empty());
        // The other protocol's port of the same number is nobody's.
        client.publish(&udp(api.port())?).await?;
        Ok(())
    });
}

/// One request over a connection that is kept; the status of the answer.
async fn ask(stream: &mut TcpStream) -> Result<u16> {
    let request = "POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\n\r\nping";
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    while !text.ends_with(b"ping") {
        let mut piece = [0; 1024];
        let count = stream.read(&mut piece).await?;
        ensure!(count > 0, "the connection ended");
        text.extend_from_slice(&piece[..count]);
    }
    let text = String::from_utf8_lossy(&text);
    Ok(text.split(' ').nth(1).context("a status")?.parse()?)
}

/// Whether something answers at a port of this host, within a while.
pub(crate) async fn answers(port: u16, within: Duration) -> bool {
    let attempt = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        ask(&mut stream).await
    };
    matches!(tokio::time::timeout(within, attempt).await, Ok(Ok(200)))
}

#[test]
fn a_connection_wakes_a_service_and_its_rules_decide_who_stays() {
    run(Setup::nodes(2), async |world| {
        let client = world.client();
        let rule = tcp_in("80", Peer::Any)?;
        client.create_group(&group("web", vec![])).await?;
        let spec = service("echo", |s| {
            s.network.groups = vec!["web".parse().expect("a name")];
            s.scaling.zero_grace = Duration::from_millis(500);
        });
        world.serve(&spec).await?;
        let number = some_port();
        client.publish(&echo_at(number, 80)?).await?;
        ensure!(world.machines("echo").await?.is_empty());
        // Whom no rule lets in waits for nothing, and starts nothing.
        let mut stranger = until("the port to be open", async || {
            Ok(TcpStream::connect(("127.0.0.1", number)).await.ok())
        })
        .await?;
        let heard = tokio::time::timeout(Duration::from_secs(10), stranger.read(&mut [0])).await?;
        ensure!(matches!(heard, Ok(0) | Err(_)), "{heard:?}");
        ensure!(world.machines("echo").await?.is_empty());
        // From zero: the connection waits for the machine that it starts.
        let web = client.add_rule("web", &rule).await?;
        until("an answer", async || {
            Ok(answers(number, Duration::from_secs(30)).await.then_some(()))
        })
        .await?;
        let machine = world.ready("echo", 1).await?.remove(0);
        until("a backend", async || {
            let backends = client.publications().await?.remove(0).backends;
            Ok((backends == [machine.id.clone()]).then_some(()))
        })
        .await?;
        until("a straight way", async || {
            Ok(answers(number, Duration::from_secs(2)).await.then_some(()))
        })
        .await?;
        let mut kept = TcpStream::connect(("127.0.0.1", number)).await?;
        ensure!(ask(&mut kept).await? == 200);
        let counters = client.group_counters("web").await?;
        ensure!(counters.rules[0].packets > 0, "{counters:?}");
        // Without the rule the connection that is open is cut, and no other is let in.
        client.remove_rule("web", &web.rules[0].id).await?;
        until("the connection to be cut", async || {
            let asked = tokio::time::timeout(Duration::from_secs(2), ask(&mut kept)).await;
            Ok((!matches!(asked, Ok(Ok(200)))).then_some(()))
        })
        .await?;
        ensure!(!answers(number, Duration::from_secs(2)).await, "a connection without a rule");
        client.add_rule("web", &rule).await?;
        until("the port to answer again", async || {
            Ok(answers(number, Duration::from_secs(2)).await.then_some(()))
        })
        .await?;
        client.unpublish(Transport::Tcp, number).await?;
        until("the port to be closed", async || {
            Ok((!answers(number, Duration::from_secs(1)).await).then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_node_without_a_machine_counts_whom_it_lets_in() {
    run(Setup::nodes(2), async |world| {
        let client = world.client();
        // Of nodes on one host the first opens what is published; the machine is on the other.
        client.raw(http::Method::POST, "/v1/nodes/n1/cordon", bytes::Bytes::new()).await?;
        client.create_group(&group("web", vec![tcp_in("80", Peer::Any)?])).await?;
        let spec = service("echo", |s| {
            s.network.groups = vec!["web".parse().expect("a name")];
            s.scaling.replicas_min = 1;
        });
        world.serve(&spec).await?;
        ensure!(world.ready("echo", 1).await?[0].node == "n2");
        let number = some_port();
        client.publish(&echo_at(number, 80)?).await?;
        until("the port to answer", async || {
            Ok(answers(number, Duration::from_secs(2)).await.then_some(()))
        })
        .await?;
        let counters = client.group_counters("web").await?;
        ensure!(counters.rules[0].packets > 0 && counters.silent.is_empty(), "{counters:?}");
        Ok(())
    });
}

#[test]
fn a_published_machine_ends_and_others_connections_go_on() {
    run(Setup::default(), async |world| {
        let client = world.client();
        client.create_group(&group("web", vec![tcp_in("80", Peer::Any)?])).await?;
        let spec = service("echo", |s| {
            s.network.groups = vec!["web".parse().expect("a name")];
            s.scaling.replicas_min = 2;
        });
        world.serve(&spec).await?;
        let machines = world.ready("echo", 2).await?;
        let first = some_port();
        for (port, machine) in (first..).zip(&machines) {
            let target = PublishTarget::Machine(machine.id.parse()?);
            client.publish(&PublicationSpec { target, ..echo_at(port, 80)? }).await?;
        }
        let mut kept = Vec::new();
        for port in [first, first + 1] {
            until("the port to answer", async || {
                Ok(answers(port, Duration::from_secs(2)).await.then_some(()))
            })
            .await?;
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            ensure!(ask(&mut stream).await? == 200);
            kept.push(stream);
        }
        client.stop_machine(&machines[0].id, true).await?;
        until("its port to be closed", async || {
            let there = client.publications().await?;
            Ok((there.len() == 1 && !answers(first, Duration::from_secs(1)).await).then_some(()))
        })
        .await?;
        ensure!(ask(&mut kept[1]).await? == 200, "the other's connection");
        let dead = tokio::time::timeout(Duration::from_secs(2), ask(&mut kept[0])).await;
        ensure!(!matches!(dead, Ok(Ok(_))), "{dead:?}");
        // Its successor comes into the same network, and the connection is still there.
        until("its successor", async || {
            let ready = world.ready("echo", 2).await?;
            Ok((!ready.iter().any(|machine| machine.id == machines[0].id)).then_some(()))
        })
        .await?;
        ensure!(ask(&mut kept[1]).await? == 200, "the other's connection, later");
        Ok(())
    });
}
