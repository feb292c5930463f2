//! Projects, networks, firewall groups and published ports: what the API promises of them, and what machines see of it.

mod exits;
mod published;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use published::{answers, echo_at, some_port};
use skein_api::{
    Client, ClientError, Code, GroupPut, ImagePut, JobOptions, NetworkField, NetworkPatch,
    PortField, PortPatch, ProjectField, ProjectNew, ProjectPatch, ServicePatch, Target, TokenNew,
};
use skein_model::{
    Direction, EventKind, Exit, Limits, NetworkKind, NetworkSpec, Peer, PhaseName, Protocol,
    RuleLog, RuleSpec, ServiceSpec,
};
use skein_tests::{Setup, World, echo_elf, run, service, until};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

/// The code that a refusal must have.
fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: Code) -> Result<()> {
    match answer {
        Err(error) if error.code() == Some(code) => Ok(()),
        other => anyhow::bail!("{} was expected, and not {other:?}", code.as_str()),
    }
}

fn network(name: &str, cidr: &str) -> Result<NetworkSpec> {
    Ok(NetworkSpec::new(name.parse()?, cidr.parse()?))
}

fn group(name: &str, rules: Vec<RuleSpec>) -> GroupPut {
    GroupPut { name: name.to_owned(), description: String::new(), rules }
}

fn tcp_in(ports: &str, peer: Peer) -> Result<RuleSpec> {
    Ok(RuleSpec {
        direction: Direction::Ingress,
        protocol: Protocol::Tcp,
        ports: Some(ports.parse()?),
        peer,
        log: RuleLog::Off,
    })
}

/// Creates a project; a client for it.
async fn project(world: &World, name: &str) -> Result<Client> {
    let new = ProjectNew { name: name.to_owned(), description: String::new() };
    world.client().create_project(&new).await?;
    Ok(world.client().clone().in_project(Some(name.to_owned())))
}

/// Creates a service on the echo image in the client's project.
async fn serve(client: &Client, spec: &ServiceSpec) -> Result<()> {
    if !client.images().await?.iter().any(|image| image.name == "echo") {
        let elf = tokio::task::spawn_blocking(echo_elf).await??;
        let kernel = client.put_blob(Bytes::from(std::fs::read(elf)?)).await?.id;
        let (modules, memory_mib, port) = (Vec::new(), Some(16), None);
        let put = ImagePut { kernel, modules, memory_mib, capacity: Some(4), port };
        client.put_image("echo", &put).await?;
    }
    client.create_service(spec).await?;
    Ok(())
}

/// Calls a service; the machine that answered.
async fn call(client: &Client, service: &str, payload: &str) -> Result<String> {
    let payload = Bytes::from(payload.to_owned());
    let reply = client.call(service, payload.clone(), &JobOptions::default()).await?;
    ensure!(reply.body == payload, "{:?}", reply.body);
    let machine = reply.headers.get("skein-machine").context("a machine's id")?;
    Ok(machine.to_str()?.to_owned())
}

/// Names of the namespaces of a node's networks.
fn present(world: &World, node: &str) -> Vec<String> {
    let prefix = format!("skein-{}-", world.network(node));
    let mut names = world.leaks().namespaces();
    names.retain(|name| name.starts_with(&prefix));
    names
}

#[test]
fn projects_come_and_go_with_their_first_network() {
    run(Setup::default(), async |world| {
        let admin = world.client();
        let names = |projects: Vec<skein_api::Project>| {
            projects.into_iter().map(|project| project.name).collect::<Vec<_>>()
        };
        ensure!(names(admin.projects().await?) == ["default"]);
        let blue = project(world, "blue").await?;
        ensure!(names(admin.projects().await?) == ["blue", "default"]);
        // The same again is no error; another of the same name is.
        project(world, "blue").await?;
        let other = ProjectNew { name: "blue".to_owned(), description: "another".to_owned() };
        refused(admin.create_project(&other).await, Code::ProjectExists)?;
        for bad in ["", "Blue", "a/b", "-a"] {
            let new = ProjectNew { name: bad.to_owned(), description: String::new() };
            refused(admin.create_project(&new).await, Code::Invalid)?;
        }
        let first = blue.network("default").await?;
        ensure!(first.spec.cidr.to_string() == "10.64.0.0/16", "{first:?}");
        ensure!(first.vni != admin.network("default").await?.vni, "two networks share a number");
        refused(admin.remove_project("default").await, Code::ProjectInUse)?;
        blue.create_network(&network("web", "10.20.0.0/24")?).await?;
        refused(admin.remove_project("blue").await, Code::ProjectInUse)?;
        blue.remove_network("web").await?;
        admin.remove_project("blue").await?;
        refused(blue.networks().await, Code::ProjectUnknown)?;
        refused(admin.remove_project("blue").await, Code::ProjectUnknown)?;
        let created = world.event("project_created", |line, event| {
            *event == EventKind::ProjectCreated && line.project.as_deref() == Some("blue")
        });
        created.await?;
        Ok(())
    });
}

#[test]
fn networks_are_checked_and_stay_while_they_are_used() {
    run(Setup::default(), async |world| {
        let client = world.client();
        let web = network("web", "10.20.0.0/24")?;
        let made = client.create_network(&web).await?;
        ensure!(made.gateway == "10.20.0.1" && made.addresses == 253, "{made:?}");
        ensure!(client.create_network(&web).await? == made, "the same again is the same");
        refused(
            client.create_network(&network("web", "10.21.0.0/24")?).await,
            Code::NetworkExists,
        )?;
        refused(
            client.create_network(&network("other", "10.20.0.128/25")?).await,
            Code::NetworkOverlaps,
        )?;
        let wrong = NetworkSpec { mtu: 100, ..network("small", "10.22.0.0/24")? };
        refused(client.create_network(&wrong).await, Code::Invalid)?;
        let wrong = NetworkSpec { kind: NetworkKind::Bridged, ..network("br", "10.22.0.0/24")? };
        refused(client.create_network(&wrong).await, Code::Invalid)?;
        for body in [
            r#"{"name":"x","cidr":"10.22.0.1/24"}"#,
            r#"{"name":"x","cidr":"10.22.0.0/31"}"#,
            r#"{"name":"x","cidr":"127.0.0.0/8"}"#,
            r#"{"name":"X","cidr":"10.22.0.0/24"}"#,
            r#"{"name":"x","cidr":"10.22.0.0/24","vni":5}"#,
        ] {
            let made = client.raw(Method::POST, "/v1/networks", Bytes::from(body)).await;
            refused(made, Code::Malformed).context(body)?;
        }
        // Many at once, with the same addresses: one of them comes to be.
        let specs: Vec<NetworkSpec> =
            (0..8).map(|n| network(&format!("race-{n}"), "10.30.0.0/16")).collect::<Result<_>>()?;
        let races = specs.iter().map(|spec| client.create_network(spec));
        let made = futures_util::future::join_all(races).await;
        ensure!(made.iter().filter(|answer| answer.is_ok()).count() == 1, "{made:?}");
        // A service in it keeps it.
        let spec = service("echo", |s| s.network.name = "web".parse().expect("a name"));
        world.serve(&spec).await?;
        refused(client.remove_network("web").await, Code::NetworkInUse)?;
        let lost = service("lost", |s| s.network.name = "nowhere".parse().expect("a name"));
        refused(client.create_service(&lost).await, Code::NetworkUnknown)?;
        client.remove_service("echo").await?;
        until("the network to be free", async || Ok(client.remove_network("web").await.ok()))
            .await?;
        refused(client.network("web").await, Code::NetworkUnknown)?;
        refused(client.remove_network("web").await, Code::NetworkUnknown)?;
        Ok(())
    });
}

#[test]
fn groups_are_checked_and_stay_while_they_are_named() {
    run(Setup::default(), async |world| {
        let client = world.client();
        let rule = tcp_in("80", Peer::Any)?;
        let web = client.create_group(&group("web", vec![rule.clone(), rule.clone()])).await?;
        ensure!(web.rules.len() == 1, "a rule is there twice: {web:?}");
        ensure!(client.create_group(&group("web", vec![rule.clone()])).await? == web);
        refused(client.create_group(&group("web", vec![])).await, Code::GroupExists)?;
        let of_db = tcp_in("5432", Peer::Group("db".parse()?))?;
        refused(client.create_group(&group("app", vec![of_db.clone()])).await, Code::GroupUnknown)?;
        let own = tcp_in("5432", Peer::Group("db".parse()?))?;
        client.create_group(&group("db", vec![own])).await?;
        client.create_group(&group("app", vec![of_db])).await?;
        refused(client.remove_group("db").await, Code::GroupInUse)?;
        let wrong = RuleSpec { protocol: Protocol::Icmp, ..rule.clone() };
        refused(client.add_rule("web", &wrong).await, Code::Invalid)?;
        let more = tcp_in("8000-8099", Peer::Cidr("10.0.0.0/8".parse()?))?;
        let changed = client.add_rule("web", &more).await?;
        ensure!(changed.rules[0] == web.rules[0] && changed.generation == 2, "{changed:?}");
        ensure!(client.add_rule("web", &more).await? == changed, "the same again is the same");
        client.remove_rule("web", &web.rules[0].id).await?;
        refused(client.remove_rule("web", &web.rules[0].id).await, Code::RuleUnknown)?;
        let counters = client.group_counters("web").await?;
        ensure!(counters.rules.len() == 1 && counters.silent.is_empty(), "{counters:?}");
        let spec = service("echo", |s| s.network.groups = vec!["web".parse().expect("a name")]);
        world.serve(&spec).await?;
        refused(client.remove_group("web").await, Code::GroupInUse)?;
        let lost = service("lost", |s| s.network.groups = vec!["no".parse().expect("a name")]);
        refused(client.create_service(&lost).await, Code::GroupUnknown)?;
        client.remove_service("echo").await?;
        client.remove_group("app").await?;
        client.remove_group("db").await?;
        client.remove_group("web").await?;
        ensure!(client.groups().await?.is_empty());
        Ok(())
    });
}

#[test]
fn a_project_does_not_see_another() {
    run(Setup::default(), async |world| {
        let admin = world.client();
        let (blue, red) = (project(world, "blue").await?, project(world, "red").await?);
        let token = admin.create_token("blue", &TokenNew::default()).await?;
        let secret = token.secret.clone().context("a secret")?;
        let url = admin.target().url.clone();
        let guest = Client::new(Target { url, token: secret });
        // Its own project, named or not.
        guest.create_network(&network("web", "10.20.0.0/24")?).await?;
        ensure!(blue.network("web").await?.project == "blue");
        let named = guest.clone().in_project(Some("blue".to_owned()));
        ensure!(named.networks().await?.len() == 2);
        ensure!(guest.projects().await?.len() == 1);
        // Others do not exist to it.
        let other = guest.clone().in_project(Some("red".to_owned()));
        refused(other.networks().await, Code::ProjectUnknown)?;
        refused(guest.project("red").await, Code::ProjectUnknown)?;
        red.create_network(&network("hidden", "10.20.0.0/24")?).await?;
        refused(guest.network("hidden").await, Code::NetworkUnknown)?;
        let spec = service("echo", |s| s.scaling.replicas_min = 1);
        serve(&red, &spec).await?;
        let job = red.submit("echo", Bytes::from_static(b"x"), &JobOptions::default()).await?;
        refused(guest.job(&job.id, Duration::ZERO).await, Code::JobUnknown)?;
        refused(guest.service("echo").await, Code::ServiceUnknown)?;
        refused(admin.service("echo").await, Code::ServiceUnknown)?;
        let machine = until("a machine of red", async || {
            Ok(red.machines(false).await?.into_iter().find(|m| m.state == PhaseName::Ready))
        });
        let machine = machine.await?.id;
        refused(guest.machine(&machine).await, Code::MachineUnknown)?;
        refused(guest.port(&machine).await, Code::PortUnknown)?;
        refused(guest.machine_log(&machine).await, Code::MachineUnknown)?;
        refused(guest.stop_machine(&machine, true).await, Code::MachineUnknown)?;
        ensure!(guest.machines(true).await?.is_empty() && guest.ports().await?.is_empty());
        // What is the cloud's is closed to it.
        refused(guest.nodes().await, Code::Forbidden)?;
        let new = ProjectNew { name: "mine".to_owned(), description: String::new() };
        refused(guest.create_project(&new).await, Code::Forbidden)?;
        refused(guest.create_token("blue", &TokenNew::default()).await, Code::Forbidden)?;
        refused(guest.raw(Method::GET, "/metrics", Bytes::new()).await, Code::Forbidden)?;
        let lines = guest.events(0, 1000).await?.events;
        ensure!(!lines.is_empty() && lines.iter().all(|l| l.project.as_deref() == Some("blue")));
        // Two parameters are none.
        let twice = admin.raw(Method::GET, "/v1/networks?project=red&project=blue", Bytes::new());
        refused(twice.await, Code::Malformed)?;
        refused(
            admin.raw(Method::GET, "/v1/networks?project=..%2F", Bytes::new()).await,
            Code::ProjectUnknown,
        )?;
        admin.remove_token("blue", &token.id).await?;
        refused(guest.networks().await, Code::Unauthorized)?;
        refused(admin.remove_token("blue", &token.id).await, Code::TokenUnknown)?;
        Ok(())
    });
}

#[test]
fn equal_names_and_addresses_in_two_projects_are_two_things() {
    run(Setup::nodes(2), async |world| {
        let mut of = Vec::new();
        for name in ["blue", "red"] {
            let client = project(world, name).await?;
            client.create_network(&network("web", "10.20.0.0/29")?).await?;
            let spec = service("echo", |s| {
                s.network.name = "web".parse().expect("a name");
                s.scaling.replicas_min = 2;
            });
            serve(&client, &spec).await?;
            of.push(client);
        }
        let mut addresses = Vec::new();
        for client in &of {
            let ready = until("two ready machines", async || {
                let machines = client.machines(false).await?;
                let ready = machines.iter().filter(|m| m.state == PhaseName::Ready).count();
                Ok((ready == 2).then_some(machines))
            });
            let machines = ready.await?;
            let mut ips: Vec<_> = machines.iter().filter_map(|m| m.ip.clone()).collect();
            ips.sort();
            addresses.push(ips);
            for round in 0..6 {
                let by = call(client, "echo", &format!("round {round}")).await?;
                ensure!(machines.iter().any(|m| m.id == by), "{by} is of another project");
            }
        }
        ensure!(addresses[0] == addresses[1], "{addresses:?}");
        ensure!(addresses[0] == ["10.20.0.2", "10.20.0.3"], "{addresses:?}");
        // The network has room for five: what is beyond waits, and says why.
        of[0]
            .scale("echo", &skein_api::ScaleRequest { min: Some(6), max: Some(6), warm: None })
            .await?;
        until("a machine without an address", async || {
            let hold = of[0].service("echo").await?.hold;
            Ok(hold.filter(|hold| hold.code == Code::AddressExhausted.as_str()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_network_is_where_a_machine_of_it_is() {
    run(Setup::nodes(2), async |world| {
        let client = world.client().clone();
        ensure!(present(world, "n1").is_empty() && present(world, "n2").is_empty());
        client.create_network(&network("web", "10.20.0.0/24")?).await?;
        ensure!(present(world, "n1").is_empty(), "a network without a machine");
        for node in ["n1", "n2"] {
            client.raw(Method::POST, &format!("/v1/nodes/{node}/cordon"), Bytes::new()).await?;
        }
        let spec = service("echo", |s| {
            s.network.name = "web".parse().expect("a name");
            s.scaling.replicas_min = 1;
        });
        world.serve(&spec).await?;
        client.raw(Method::POST, "/v1/nodes/n2/uncordon", Bytes::new()).await?;
        world.ready("echo", 1).await?;
        ensure!(present(world, "n1").is_empty() && present(world, "n2").len() == 1);
        let shown = client.network("web").await?;
        ensure!(shown.nodes == ["n2"] && shown.ports == 1, "{shown:?}");
        client.raw(Method::POST, "/v1/nodes/n1/uncordon", Bytes::new()).await?;
        client.remove_service("echo").await?;
        until("the network to go", async || Ok(present(world, "n2").is_empty().then_some(())))
            .await?;
        for kind in ["network_opened", "network_closed"] {
            world
                .event(kind, |line, event| {
                    event.name() == kind && line.node.as_deref() == Some("n2")
                })
                .await?;
        }
        Ok(())
    });
}

#[test]
fn a_network_that_was_answered_for_outlives_a_crash_of_the_server() {
    run(Setup::default(), async |world| {
        let mut made = Vec::new();
        for round in 0..6_u8 {
            let specs: Vec<NetworkSpec> = (0..3_u8)
                .map(|n| network(&format!("net-{round}-{n}"), &format!("10.{round}.{n}.0/24")))
                .collect::<Result<_>>()?;
            let client = world.client().clone();
            let creating = tokio::spawn(async move {
                let all = specs.iter().map(|spec| client.create_network(spec));
                futures_util::future::join_all(all).await
            });
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(Duration::from_micros(300 * u64::from(round))).await;
            }
            world.cloud_mut().crash_server().await?;
            made.extend(creating.await?.into_iter().flatten());
        }
        let there = world.client().networks().await?;
        for network in &made {
            ensure!(there.contains(network), "{network:?} is not there: {there:#?}");
        }
        let mut numbers: Vec<u32> = there.iter().map(|network| network.vni).collect();
        numbers.sort_unstable();
        numbers.dedup();
        ensure!(numbers.len() == there.len(), "two networks share a number: {there:?}");
        // Those that were not answered for are whole or not there: both can be made again.
        for round in 0..6_u8 {
            for n in 0..3_u8 {
                let spec = network(&format!("net-{round}-{n}"), &format!("10.{round}.{n}.0/24"))?;
                world.client().create_network(&spec).await?;
            }
        }
        Ok(())
    });
}

#[test]
fn ports_have_what_their_service_says_or_their_own() {
    run(Setup::default(), async |world| {
        let client = world.client();
        for name in ["web", "ssh"] {
            client.create_group(&group(name, vec![])).await?;
        }
        let spec = service("echo", |s| {
            s.scaling.replicas_min = 1;
            s.network.groups = vec!["web".parse().expect("a name")];
            s.network.limits.egress_bits = Some(1_000_000_000);
        });
        world.serve(&spec).await?;
        let machine = world.ready("echo", 1).await?.remove(0);
        let port = client.port(&machine.id).await?;
        ensure!(Some(&port.ipv4) == machine.ip.as_ref() && port.groups == ["web"], "{port:?}");
        ensure!(port.dns_name == format!("{}.default.default.internal", machine.id), "{port:?}");
        let limits = Limits { ingress_packets: Some(1000), ..Limits::default() };
        let groups = Some(vec!["ssh".to_owned()]);
        let patch = PortPatch { groups, limits: Some(limits), inherit: vec![] };
        let port = client.change_port(&machine.id, &patch).await?;
        ensure!(port.groups == ["ssh"] && port.groups_own && port.limits == limits, "{port:?}");
        refused(client.remove_group("ssh").await, Code::GroupInUse)?;
        let inherit = vec![PortField::Groups, PortField::Limits];
        let patch = PortPatch { inherit, ..PortPatch::default() };
        let port = client.change_port(&machine.id, &patch).await?;
        ensure!(port.groups == ["web"] && !port.groups_own && !port.limits_own, "{port:?}");
        let groups = Some(vec!["none".to_owned()]);
        let patch = PortPatch { groups, ..PortPatch::default() };
        refused(client.change_port(&machine.id, &patch).await, Code::GroupUnknown)?;
        let limits = Some(Limits { egress_bits: Some(1), ..Limits::default() });
        let patch = PortPatch { limits, ..PortPatch::default() };
        refused(client.change_port(&machine.id, &patch).await, Code::Invalid)?;
        refused(client.port("echo-00000000").await, Code::PortUnknown)?;
        client.stop_machine(&machine.id, true).await?;
        until("the port to go", async || {
            let ports = client.ports().await?;
            Ok((!ports.iter().any(|port| port.machine == machine.id)).then_some(()))
        })
        .await?;
        Ok(())
    });
}

#[test]
fn a_machine_that_asks_by_dhcp_gets_the_address_of_its_port() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.network.addressing = skein_model::Addressing::Dhcp;
            s.scaling.replicas_min = 1;
        });
        world.serve(&spec).await?;
        let machine = world.ready("echo", 1).await?.remove(0);
        ensure!(call(world.client(), "echo", "by dhcp").await? == machine.id);
        // It was delivered to the address of its port, which it was not told at its start.
        let port = world.client().port(&machine.id).await?;
        ensure!(machine.ip.as_ref() == Some(&port.ipv4), "{machine:?} {port:?}");
        Ok(())
    });
}

#[test]
fn a_capture_is_a_file_and_a_trace_names_the_rule() {
    run(Setup::default(), async |world| {
        let client = world.client();
        client.create_group(&group("app", vec![])).await?;
        let rule = tcp_in("5432", Peer::Group("app".parse()?))?;
        let db = client.create_group(&group("db", vec![rule])).await?;
        for name in ["app", "db"] {
            let spec = service(name, |s| {
                s.network.groups = vec![name.parse().expect("a name")];
                s.scaling.replicas_min = 1;
            });
            world.serve(&spec).await?;
        }
        let app = world.ready("app", 1).await?.remove(0).id;
        let store = world.ready("db", 1).await?.remove(0).id;
        let packet = |source: &str, destination: &str, port: u16| skein_api::TraceRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            protocol: Protocol::Tcp,
            port: Some(port),
        };
        let trace = client.trace(&packet(&app, &store, 5432)).await?;
        let last = trace.hops.last().context("a hop")?;
        ensure!(trace.arrives && last.rule.as_ref() == Some(&db.rules[0].id), "{trace:?}");
        ensure!(last.group.as_deref() == Some("db"), "{trace:?}");
        ensure!(!client.trace(&packet(&app, &store, 22)).await?.arrives);
        ensure!(!client.trace(&packet(&store, &app, 5432)).await?.arrives);
        refused(client.trace(&packet("none-1", &app, 1)).await, Code::PortUnknown)?;
        let mut capture = client.capture(&app, Duration::from_secs(20), 65_535).await?;
        let mut file = Vec::new();
        for _ in 0..3 {
            call(client, "app", "captured").await?;
        }
        while !file.windows(8).any(|bytes| bytes == b"captured") {
            let piece = tokio::time::timeout(Duration::from_secs(15), capture.next()).await??;
            file.extend_from_slice(&piece.context("the capture ended")?);
        }
        ensure!(file.starts_with(&0xa1b2_3c4d_u32.to_le_bytes()), "{:x?}", &file[..24]);
        Ok(())
    });
}

/// Asks the resolver of a network for the IPv4 addresses of a name (RFC 1035), from inside.
fn resolve(namespace: String, gateway: Ipv4Addr, name: &str) -> Result<Vec<u8>> {
    let mut question = vec![0x5a, 0x5a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    // A thread of its own: a namespace belongs to a thread.
    let exchange = move || -> Result<Vec<u8>> {
        let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&question, (gateway, 53))?;
        let mut answer = [0; 1500];
        let (count, _) = socket.recv_from(&mut answer)?;
        Ok(answer[..count].to_vec())
    };
    std::thread::spawn(exchange).join().expect("the exchange")
}

#[test]
fn names_lead_to_machines_and_to_ready_replicas() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| s.scaling.replicas_min = 2);
        world.serve(&spec).await?;
        let machines = world.ready("echo", 2).await?;
        let namespace = present(world, "n1").pop().context("a namespace")?;
        let gateway: Ipv4Addr = world.client().network("default").await?.gateway.parse()?;
        let octets = |ip: &Option<String>| -> Result<[u8; 4]> {
            Ok(ip.as_ref().context("an address")?.parse::<Ipv4Addr>()?.octets())
        };
        let has = |answer: &[u8], ip: [u8; 4]| answer.windows(4).any(|bytes| bytes == ip);
        let name = "echo.default.internal";
        until("the service's name to lead to both", async || {
            let answer = resolve(namespace.clone(), gateway, name)?;
            let all = machines.iter().map(|m| octets(&m.ip)).collect::<Result<Vec<_>>>()?;
            Ok(all.iter().all(|ip| has(&answer, *ip)).then_some(()))
        })
        .await?;
        let name = format!("{}.default.default.internal", machines[0].id);
        let answer = resolve(namespace.clone(), gateway, &name)?;
        ensure!(has(&answer, octets(&machines[0].ip)?), "{answer:x?}");
        ensure!(!has(&answer, octets(&machines[1].ip)?), "{answer:x?}");
        // Another project's names are not answered.
        let answer = resolve(namespace, gateway, "echo.blue.internal")?;
        ensure!(answer[3] & 0xf != 0 && answer[7] == 0, "{answer:x?}");
        Ok(())
    });
}

/// The status of a request to a machine, from a thread inside a namespace.
fn request(namespace: &str, to: (Ipv4Addr, u16)) -> Result<String> {
    use std::io::{Read, Write};
    let namespace = namespace.to_owned();
    let exchange = move || -> Result<String> {
        let file = std::fs::File::open(format!("/run/netns/{namespace}"))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let wait = Duration::from_secs(5);
        let mut stream = std::net::TcpStream::connect_timeout(&to.into(), wait)?;
        stream.set_read_timeout(Some(wait))?;
        stream.write_all(b"POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\n\r\nping")?;
        let mut text = Vec::new();
        while !text.ends_with(b"ping") {
            let mut piece = [0; 1024];
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "the connection ended");
            text.extend_from_slice(&piece[..count]);
        }
        Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    };
    std::thread::spawn(exchange).join().expect("the exchange")
}

#[test]
fn three_nodes_of_one_host_are_one_segment() {
    run(Setup::nodes(3), async |world| {
        let client = world.client();
        client.create_group(&group("web", vec![tcp_in("80", Peer::Any)?])).await?;
        let spec = service("echo", |s| {
            s.network.groups = vec!["web".parse().expect("a name")];
            s.scaling.replicas_min = 3;
            s.scaling.placement = skein_model::Placement::Spread;
        });
        world.serve(&spec).await?;
        let machines = world.ready("echo", 3).await?;
        let mut nodes: Vec<&str> = machines.iter().map(|m| m.node.as_str()).collect();
        nodes.sort_unstable();
        ensure!(nodes == ["n1", "n2", "n3"], "{machines:?}");
        for machine in &machines {
            let namespace = present(world, &machine.node).pop().context("a namespace")?;
            let ip: Ipv4Addr = machine.ip.as_ref().context("an address")?.parse()?;
            let status = request(&namespace, (ip, 80)).with_context(|| machine.node.clone())?;
            ensure!(status.contains(" 200 "), "{}: {status}", machine.node);
        }
        // One node takes the connections and gives them out in turns, through tunnels with ports of their own.
        let number = some_port();
        client.publish(&echo_at(number, 80)?).await?;
        let all_answer = async || {
            let mut good = 0;
            for _ in 0..6 {
                good += usize::from(answers(number, Duration::from_secs(2)).await);
            }
            Ok((good == 6).then_some(()))
        };
        until("an answer from each node", all_answer).await?;
        // A node goes and comes back.
        world.cloud_mut().crash_agent("n3").await;
        world.cloud_mut().restart_agent("n3").await?;
        world.ready("echo", 3).await?;
        until("an answer from each node again", all_answer).await
    });
}

#[test]
fn a_service_has_the_addresses_that_it_chose() {
    run(Setup::default(), async |world| {
        let client = world.client();
        let chosen = Ipv4Addr::new(10, 64, 7, 7);
        let fixed = |name: &str, ip: Ipv4Addr| {
            service(name, |s| {
                s.network.addresses = vec![ip];
                s.scaling.replicas_min = 1;
                s.scaling.replicas_max = 1;
            })
        };
        world.serve(&fixed("fixed", chosen)).await?;
        let machine = world.ready("fixed", 1).await?.remove(0);
        ensure!(machine.ip == Some(chosen.to_string()), "{machine:?}");
        refused(client.create_service(&fixed("other", chosen)).await, Code::AddressTaken)?;
        for wrong in [[10, 64, 0, 1], [10, 64, 0, 0], [10, 65, 0, 9]] {
            refused(client.create_service(&fixed("wrong", wrong.into())).await, Code::Invalid)?;
        }
        let mut twice = fixed("twice", Ipv4Addr::new(10, 64, 0, 9));
        twice.network.addresses.push(Ipv4Addr::new(10, 64, 0, 9));
        refused(client.create_service(&twice).await, Code::Invalid)?;
        // Its next machine has the address at once, without a rest.
        client.stop_machine(&machine.id, true).await?;
        let next = until("the next machine", async || {
            let machines = world.machines("fixed").await?;
            let ready = machines.into_iter().find(|m| m.state == PhaseName::Ready);
            Ok(ready.filter(|next| next.id != machine.id))
        });
        let next = next.await?;
        ensure!(next.ip == machine.ip, "{next:?}");
        // Beyond what it chose a machine waits, and says why.
        client
            .scale("fixed", &skein_api::ScaleRequest { min: Some(2), max: Some(2), warm: None })
            .await?;
        let hold = until("a machine without an address", async || {
            let hold = client.service("fixed").await?.hold;
            Ok(hold.filter(|hold| hold.code == Code::AddressExhausted.as_str()))
        });
        let hold = hold.await?;
        ensure!(hold.reason.contains("1 chosen"), "{hold:?}");
        Ok(())
    });
}

#[test]
fn a_network_changes_while_machines_are_in_it() {
    run(Setup::nodes(2), async |world| {
        let blue = project(world, "blue").await?;
        blue.create_network(&network("web", "10.20.0.0/24")?).await?;
        let spec = service("echo", |s| {
            s.network.name = "web".parse().expect("a name");
            s.scaling.replicas_min = 1;
        });
        serve(&blue, &spec).await?;
        let ready = until("a ready machine", async || {
            let machines = blue.machines(false).await?;
            Ok(machines.into_iter().find(|m| m.state == PhaseName::Ready))
        });
        let machine = ready.await?;
        let patch = NetworkPatch { mtu: Some(1500), ..NetworkPatch::default() };
        ensure!(blue.change_network("web", &patch).await?.spec.mtu == 1500);
        let namespace = present(world, &machine.node).pop().context("a namespace")?;
        until("the bridge to carry larger packets", async || {
            let output = std::process::Command::new("ip")
                .args(["-n", &namespace, "-o", "link", "show", "skbr0"])
                .output()?;
            Ok(String::from_utf8_lossy(&output.stdout).contains("mtu 1500 ").then_some(()))
        })
        .await?;
        let patch = NetworkPatch { mtu: Some(1400), ..NetworkPatch::default() };
        refused(blue.change_network("web", &patch).await, Code::NetworkInUse)?;
        let patch = NetworkPatch { mtu: Some(100), ..NetworkPatch::default() };
        refused(blue.change_network("web", &patch).await, Code::Invalid)?;
        refused(blue.change_network("none", &patch).await, Code::NetworkUnknown)?;
        let resolvers = Some(vec![Ipv4Addr::new(192, 0, 2, 53)]);
        let patch = NetworkPatch { resolvers, ..NetworkPatch::default() };
        let changed = blue.change_network("web", &patch).await?;
        ensure!(changed.spec.resolvers.len() == 1 && changed.spec.mtu == 1500, "{changed:?}");
        let route = skein_model::Route { to: "10.0.0.0/8".parse()?, via: "10.20.0.9".parse()? };
        let routes = Some(vec![route]);
        let patch = NetworkPatch { routes, ..NetworkPatch::default() };
        ensure!(blue.change_network("web", &patch).await?.spec.routes == [route]);
        let exit = |node: &str| Exit { node: node.parse().expect("a name"), address: None };
        let patch = NetworkPatch {
            exit: Some(exit("n2")),
            clear: vec![NetworkField::Resolvers],
            ..NetworkPatch::default()
        };
        let changed = blue.change_network("web", &patch).await?;
        ensure!(changed.spec.exit == Some(exit("n2")) && changed.spec.resolvers.is_empty());
        let patch = NetworkPatch { exit: Some(exit("n9")), ..NetworkPatch::default() };
        refused(blue.change_network("web", &patch).await, Code::NodeUnknown)?;
        world
            .event("network_changed", |line, event| {
                event.name() == "network_changed" && line.project.as_deref() == Some("blue")
            })
            .await?;
        Ok(())
    });
}

#[test]
fn addresses_and_interfaces_of_nodes_are_not_a_projects_to_give() {
    run(Setup::default(), async |world| {
        let admin = world.client();
        let blue = project(world, "blue").await?;
        blue.create_network(&network("web", "10.20.0.0/24")?).await?;
        let exit = |node: &str| Exit { node: node.parse().expect("a name"), address: None };
        // The project's exit holds for networks without one.
        let patch = ProjectPatch { exit: Some(exit("n1")), ..ProjectPatch::default() };
        ensure!(admin.change_project("blue", &patch).await?.exit == Some(exit("n1")));
        let lost = ProjectPatch { exit: Some(exit("n9")), ..ProjectPatch::default() };
        refused(admin.change_project("blue", &lost).await, Code::NodeUnknown)?;
        let loopback = Exit { address: Some(Ipv4Addr::LOCALHOST), ..exit("n1") };
        let wrong = ProjectPatch { exit: Some(loopback), ..ProjectPatch::default() };
        refused(admin.change_project("blue", &wrong).await, Code::Invalid)?;
        let clear = vec![ProjectField::Exit];
        let description = Some("sea".to_owned());
        let patch = ProjectPatch { clear, description, ..ProjectPatch::default() };
        let changed = admin.change_project("blue", &patch).await?;
        ensure!(changed.exit.is_none() && changed.description == "sea", "{changed:?}");
        let token = admin.create_token("blue", &TokenNew::default()).await?;
        let secret = token.secret.context("a secret")?;
        let guest = Client::new(Target { url: admin.target().url.clone(), token: secret });
        let patch = NetworkPatch { exit: Some(exit("n1")), ..NetworkPatch::default() };
        refused(guest.change_network("web", &patch).await, Code::Forbidden)?;
        refused(guest.change_project("blue", &ProjectPatch::default()).await, Code::Forbidden)?;
        let bridged = NetworkSpec {
            kind: NetworkKind::Bridged,
            interface: Some("lo".to_owned()),
            ..network("bridged", "10.21.0.0/24")?
        };
        refused(guest.create_network(&bridged).await, Code::Forbidden)?;
        let patch = NetworkPatch { mtu: Some(1600), ..NetworkPatch::default() };
        ensure!(guest.change_network("web", &patch).await?.spec.mtu == 1600);
        Ok(())
    });
}

#[test]
fn of_two_services_that_choose_one_address_at_once_one_gets_it() {
    run(Setup::default(), async |world| {
        let client = world.client();
        world.serve(&service("first", |s| s.scaling.replicas_min = 0)).await?;
        for turn in 0..10_u8 {
            let chosen = Ipv4Addr::new(10, 64, 9, 10 + turn);
            let spec = |at: usize| {
                service(&format!("s{turn}-{at}"), |s| {
                    s.network.addresses = vec![chosen];
                    s.scaling.replicas_min = 0;
                    s.scaling.replicas_max = 1;
                })
            };
            let specs: Vec<ServiceSpec> = (0..4).map(spec).collect();
            let all = specs.iter().map(|spec| client.create_service(spec));
            let all = futures_util::future::join_all(all).await;
            let (taken, others): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
            ensure!(taken.len() == 1, "{} services have {chosen}", taken.len());
            others.into_iter().try_for_each(|other| refused(other, Code::AddressTaken))?;
        }
        Ok(())
    });
}

#[test]
fn groups_of_a_service_change_while_its_machines_run() {
    run(Setup::default(), async |world| {
        let client = world.client();
        client.create_group(&group("web", vec![tcp_in("80", Peer::Any)?])).await?;
        world.serve(&service("echo", |s| s.scaling.replicas_min = 1)).await?;
        let machine = world.ready("echo", 1).await?.remove(0);
        let number = some_port();
        client.publish(&echo_at(number, 80)?).await?;
        let open = async |wanted: bool| {
            until("the port to follow the groups", async || {
                let answers = answers(number, Duration::from_secs(1)).await;
                Ok((answers == wanted).then_some(()))
            })
            .await
        };
        open(false).await?;
        let groups = |names: &[&str]| ServicePatch {
            groups: Some(names.iter().map(|name| (*name).to_owned()).collect()),
            limits: None,
        };
        client.patch_service("echo", &groups(&["web"])).await?;
        open(true).await?;
        refused(client.patch_service("echo", &groups(&["none"])).await, Code::GroupUnknown)?;
        refused(client.remove_group("web").await, Code::GroupInUse)?;
        client.patch_service("echo", &groups(&[])).await?;
        open(false).await?;
        client.remove_group("web").await?;
        let limits = Limits { egress_packets: Some(5_000), ..Limits::default() };
        let patch = ServicePatch { groups: None, limits: Some(limits) };
        client.patch_service("echo", &patch).await?;
        ensure!(client.port(machine.id.as_str()).await?.limits == limits);
        let machines = world.machines("echo").await?;
        ensure!(machines.len() == 1 && machines[0].id == machine.id, "{machines:?}");
        Ok(())
    });
}
