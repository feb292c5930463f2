//! The API's promises besides jobs: documents, pages, streams, consoles, figures.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use skein_api::{Client, Code, EventLine, JobOptions, Target};
use skein_model::EventKind;
use skein_tests::{Setup, World, raw, repository, run, service, until};
use std::collections::BTreeSet;
use std::time::Duration;

/// Set to make the document again instead of comparing it.
const UPDATE: &str = "UPDATE";

#[test]
fn the_committed_openapi_document_is_that_of_the_server() {
    let path = repository().join("docs/openapi.json");
    let document = skein_server::openapi();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, document).expect("docs/openapi.json");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == document,
        "docs/openapi.json is not what the server promises: make it again with {UPDATE}=1, and read the difference"
    );
}

#[test]
fn every_documented_operation_is_routed() {
    run(Setup::default(), async |world| {
        let served = world.client().raw(Method::GET, "/v1/openapi.json", Bytes::new()).await?;
        let served: serde_json::Value = serde_json::from_slice(&served)?;
        let document: serde_json::Value = serde_json::from_str(&skein_server::openapi())?;
        ensure!(served == document, "the server shows another document");
        let paths = document["paths"].as_object().context("paths")?;
        let mut operations = 0;
        for (path, item) in paths {
            for method in item.as_object().context("a path")?.keys() {
                let method: Method = method.to_uppercase().parse()?;
                // Names that do not exist: what is routed says so in its own words.
                let path = path.replace("{job}", "00000000000000000000000000");
                let path = path.split('{').map(|p| p.split_once('}').map_or(p, |(_, rest)| rest));
                let path = path.collect::<Vec<_>>().join("none");
                let reply = world.client().send(method.clone(), &path, &[], Bytes::new()).await?;
                if reply.status() == 404 {
                    let error = world.client().raw(method.clone(), &path, Bytes::new()).await;
                    let code = error.err().and_then(|error| error.code());
                    ensure!(
                        code.is_some_and(|code| code != Code::RouteUnknown),
                        "{method} {path} is documented and not routed"
                    );
                }
                operations += 1;
            }
        }
        ensure!(operations > 25, "only {operations} operations");
        Ok(())
    });
}

#[test]
fn the_page_and_the_probes_need_no_token_and_the_rest_does() {
    run(Setup::default(), async |world| {
        let url = &world.client().target().url;
        let page = raw(url, "GET", "/", &[], b"").await?;
        ensure!(page.status == 200 && page.body.contains("<html"), "{page:?}");
        let policy = page.headers.get("content-security-policy").context("a CSP")?;
        ensure!(policy.contains("default-src 'none'"), "{policy}");
        ensure!(page.headers["x-content-type-options"] == "nosniff");
        ensure!(!page.body.contains(&world.client().target().token));
        ensure!(raw(url, "GET", "/healthz", &[], b"").await?.status == 200);
        ensure!(raw(url, "GET", "/readyz", &[], b"").await?.status == 200);
        for path in
            ["/v1/nodes", "/v1/version", "/metrics", "/v1/openapi.json", "/v1/events/stream"]
        {
            let answer = raw(url, "GET", path, &[], b"").await?;
            ensure!((answer.status, answer.code().as_str()) == (401, "UNAUTHORIZED"), "{path}");
        }
        let wrong = Target { url: url.clone(), token: "wrong".repeat(10) };
        let refused = Client::new(wrong).nodes().await.err().and_then(|error| error.code());
        ensure!(refused == Some(Code::Unauthorized));
        let version = world.client().version().await?;
        ensure!(version.cloud == world.cloud().id());
        Ok(())
    });
}

#[test]
fn the_event_stream_goes_on_where_it_broke_off() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let mut stream = world.client().follow_events(0).await?;
        for _ in 0..3 {
            world.submit("echo", "x", "/").await?;
        }
        let mut seen: Vec<EventLine> = Vec::new();
        while seen.iter().filter(|l| l.event.name() == "job_done").count() < 3 {
            seen.push(stream.next().await?.context("the stream ended")?);
        }
        drop(stream);
        let numbers: Vec<u64> = seen.iter().map(|line| line.seq).collect();
        ensure!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        // Broken off in the middle: what comes next is exactly what was not seen.
        let middle = &seen[seen.len() / 2];
        let headers = [("last-event-id", middle.seq.to_string())];
        let client = world.client();
        let reply = client.send(Method::GET, "/v1/events/stream", &headers, Bytes::new()).await?;
        let mut text = String::new();
        let mut body = reply.into_body();
        let last = numbers.last().copied().unwrap_or_default();
        while !text.contains(&format!("id: {last}\n")) {
            let frame = http_body_util::BodyExt::frame(&mut body).await.context("the end")??;
            text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap_or(&Bytes::new())));
        }
        let ids: Vec<u64> = text
            .lines()
            .filter_map(|line| line.strip_prefix("id: ")?.parse().ok())
            .take_while(|id| *id <= last)
            .collect();
        let expected: Vec<u64> = numbers.into_iter().filter(|n| *n > middle.seq).collect();
        ensure!(ids == expected, "{ids:?} instead of {expected:?}");
        let kinds: BTreeSet<_> = seen.iter().map(|line| line.event.name()).collect();
        for kind in [
            "service_created",
            "replicated",
            "machine_launched",
            "machine_ready",
            "job_accepted",
            "job_started",
        ] {
            ensure!(kinds.contains(kind), "no {kind} in {kinds:?}");
        }
        Ok(())
    });
}

#[test]
fn a_console_replays_goes_on_and_outlives_its_machine_as_a_log() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 1)).await?;
        let machine = world.ready("echo", 1).await?.remove(0).id;
        let log = String::from_utf8(world.client().machine_log(&machine).await?.to_vec())?;
        let mut console = world.client().console(&machine).await?;
        let mut seen = String::new();
        let ends = async {
            while let Some(bytes) = console.read().await? {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            anyhow::Ok(())
        };
        let options = JobOptions {
            path: Some("/?panic=1".into()),
            attempts: Some(1),
            ..JobOptions::default()
        };
        let job = async { Ok(world.client().submit("echo", Bytes::new(), &options).await?) };
        let both = futures_util::future::try_join(ends, job);
        let ((), job) = tokio::time::timeout(Duration::from_secs(60), both).await??;
        ensure!(seen.contains(log.trim()), "the replay {seen:?} lacks {log:?}");
        ensure!(seen.contains("panic: "), "nothing live in {seen:?}");
        let job = world.client().job(&job.id, Duration::from_secs(30)).await?;
        ensure!(job.failure_code.as_deref() == Some("MACHINE_LOST"), "{job:?}");
        until("the machine's end", async || Ok(world.client().machine(&machine).await?.exit))
            .await?;
        let log = String::from_utf8(world.client().machine_log(&machine).await?.to_vec())?;
        ensure!(log.contains("a request asked for a panic"), "{log:?}");
        let gone = world.client().console(&machine).await.err().and_then(|error| error.code());
        ensure!(gone == Some(Code::MachineUnknown), "{gone:?}");
        Ok(())
    });
}

/// The value of one figure.
async fn figure(world: &World, name: &str, label: &str) -> Result<f64> {
    let text = world.client().raw(Method::GET, "/metrics", Bytes::new()).await?;
    let text = String::from_utf8(text.to_vec())?;
    let line = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') && rest.contains(label))
    });
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    Ok(value.unwrap_or(0.0))
}

#[test]
fn the_figures_are_what_was_done() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.queue.bound = 4;
            s.scaling.replicas_max = 1;
            s.capacity = Some(1);
        });
        world.serve(&spec).await?;
        let options = JobOptions { path: Some("/?status=400".into()), ..JobOptions::default() };
        let rejected = world.client().submit("echo", Bytes::from("x"), &options).await?;
        world.client().job(&rejected.id, Duration::from_secs(30)).await?;
        let slow = world.submit("echo", "slow", "/?sleep_ms=2500").await?;
        world.served_by(&slow).await?;
        let withdrawn = world.submit("echo", "withdrawn", "/").await?;
        world.client().cancel(&withdrawn).await?;
        let mut refused = 0;
        for number in 0..8 {
            match world.submit("echo", &format!("{number}"), "/").await {
                Ok(_) => {}
                Err(_) => refused += 1,
            }
        }
        ensure!(refused == 4, "{refused} refused");
        let ending = world.ledger.settle(world.client()).await?;
        ensure!((ending.done, ending.cancelled) == (5, 1), "{ending:?}");
        let label = "service=\"echo\"";
        let expected = [
            ("skein_jobs_generated_total", 11.0),
            ("skein_jobs_accepted_total", 7.0),
            ("skein_jobs_refused_total", 4.0),
            ("skein_jobs_served_total", 5.0),
            ("skein_jobs_dead_lettered_total", 1.0),
            ("skein_jobs_cancelled_total", 1.0),
            ("skein_jobs_lost_total", 0.0),
            ("skein_job_queue_time_seconds_count", 5.0),
            ("skein_job_service_time_seconds_count", 5.0),
            ("skein_replications_total", 1.0),
            ("skein_replicas_ready", 1.0),
            ("skein_queue_length", 0.0),
        ];
        for (name, value) in expected {
            let mut last = f64::NAN;
            let same = until(name, async || {
                last = figure(world, name, label).await?;
                Ok(((last - value).abs() < 1e-9).then_some(()))
            });
            same.await.with_context(|| format!("{name} is {last}, not {value}"))?;
        }
        let served = figure(world, "skein_job_service_time_seconds_sum", label).await?;
        ensure!(served >= 2.5, "in service for {served} s only");
        ensure!(figure(world, "skein_node_up", "node=\"n1\"").await? > 0.5);
        let shown = world.client().service("echo").await?.counters;
        ensure!((shown.accepted, shown.done, shown.refused) == (7, 5, 4), "{shown:?}");
        Ok(())
    });
}

#[test]
fn lists_of_jobs_come_in_pages() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        world.client().create_service(&service("other", |_| {})).await?;
        for number in 0..23 {
            let name = if number % 4 == 0 { "other" } else { "echo" };
            world.submit(name, &format!("{number}"), "/").await?;
        }
        world.settle_done().await?;
        let walk =
            async |name: Option<&str>, state: Option<&str>, limit: u32| -> Result<Vec<String>> {
                let (mut ids, mut cursor) = (Vec::new(), None);
                loop {
                    let page = world.client().jobs(name, state, limit, cursor.as_deref()).await?;
                    ensure!(page.jobs.len() <= limit as usize);
                    ids.extend(page.jobs.into_iter().map(|job| job.id));
                    match page.next {
                        Some(next) => cursor = Some(next),
                        None => return Ok(ids),
                    }
                }
            };
        let mut newest_first = world.ledger.ids();
        newest_first.reverse();
        for limit in [1, 7, 1000] {
            let mut listed = walk(None, None, limit).await?;
            // Jobs of one millisecond stand in any order.
            listed.sort();
            listed.reverse();
            ensure!(listed == newest_first, "in pages of {limit}: {listed:?}");
        }
        ensure!(walk(Some("other"), None, 5).await?.len() == 6);
        ensure!(walk(Some("echo"), Some("done"), 5).await?.len() == 17);
        ensure!(walk(None, Some("waiting"), 5).await?.is_empty());
        let page = world.client().events(0, 5).await?;
        ensure!(page.events.len() == 5 && page.next == page.events[4].seq);
        ensure!(matches!(page.events[0].event, EventKind::NodeJoined));
        let wrong = world.client().jobs(None, Some("lost"), 5, None).await;
        ensure!(wrong.err().and_then(|error| error.code()) == Some(Code::Invalid));
        Ok(())
    });
}
