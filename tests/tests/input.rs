//! Bad input: a clear error with a stable code, and nothing lost.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use skein_api::{BatchItem, Client, ClientError, Code, ImagePut, JobOptions};
use skein_model::JobStateName;
use skein_tests::{Setup, World, raw, run, service, until};
use skein_vmm::TinyGuest;
use std::time::Duration;

/// Longer than any of these jobs takes.
const LONG: Duration = Duration::from_secs(50);

fn path(path: &str) -> JobOptions {
    JobOptions { path: Some(path.to_owned()), ..JobOptions::default() }
}

fn code<T>(result: Result<T, ClientError>) -> Option<Code> {
    result.err().and_then(|error| error.code())
}

#[test]
fn requests_that_cannot_be_read_are_refused_with_a_code() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let target = world.client().target().clone();
        let bearer = format!("Bearer {}", target.token);
        let json = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        let check = async |method: &str, path: &str, body: &str, status: u16, code: &str| {
            let answer = raw(&target.url, method, path, &json, body.as_bytes()).await?;
            let got = (answer.status, answer.code());
            ensure!(got == (status, code.to_owned()), "{method} {path} {body}: {answer:?}");
            let body: serde_json::Value = serde_json::from_str(&answer.body)?;
            let words = body["error"]["message"].as_str().unwrap_or_default();
            ensure!(!words.is_empty(), "{method} {path}: no words");
            anyhow::Ok(words.to_owned())
        };
        check("POST", "/v1/services", "{", 400, "MALFORMED").await?;
        check("POST", "/v1/services", "[]", 400, "MALFORMED").await?;
        let unknown = r#"{"name":"a","image":"echo","replicas":3}"#;
        let words = check("POST", "/v1/services", unknown, 400, "MALFORMED").await?;
        ensure!(words.contains("replicas"), "{words}");
        let range = r#"{"name":"a","image":"echo","queue":{"bound":0}}"#;
        let words = check("POST", "/v1/services", range, 422, "INVALID").await?;
        ensure!(words.contains("queue.bound"), "{words}");
        let image = r#"{"name":"a","image":"nothing"}"#;
        check("POST", "/v1/services", image, 404, "IMAGE_UNKNOWN").await?;
        let other = r#"{"name":"echo","image":"echo","cpu_milli":7}"#;
        check("POST", "/v1/services", other, 409, "SERVICE_EXISTS").await?;
        check("PUT", "/v1/services/echo", r#"{"name":"b","image":"echo"}"#, 422, "INVALID").await?;
        check("POST", "/v1/services/echo/scale", r#"{"min":9,"max":2}"#, 422, "INVALID").await?;
        check("POST", "/v1/services/none/jobs", "x", 404, "SERVICE_UNKNOWN").await?;
        check("POST", "/v1/services/%FF/jobs", "x", 400, "MALFORMED").await?;
        check("POST", "/v1/services/Echo!/call", "x", 404, "SERVICE_UNKNOWN").await?;
        check("POST", "/v1/services/echo/jobs?wait=1", "x", 400, "MALFORMED").await?;
        check("POST", "/v1/services/echo/jobs?deadline_ms=x", "x", 400, "MALFORMED").await?;
        check("POST", "/v1/services/echo/jobs?attempts=0", "x", 422, "INVALID").await?;
        check("POST", "/v1/services/echo/jobs?path=nowhere", "x", 422, "INVALID").await?;
        check("POST", "/v1/services/echo/jobs?path=/%0d%0ax", "x", 422, "INVALID").await?;
        check("POST", "/v1/services/echo/batch", "{\"payload\":1}\n{", 400, "MALFORMED").await?;
        check("GET", "/v1/jobs/none", "", 404, "JOB_UNKNOWN").await?;
        check("GET", "/v1/jobs/00000000000000000000000000/result", "", 404, "JOB_UNKNOWN").await?;
        check("GET", "/v1/machines/none", "", 404, "MACHINE_UNKNOWN").await?;
        check("GET", "/v1/machines/none/console", "", 400, "MALFORMED").await?;
        check("GET", "/v1/nodes/none", "", 404, "NODE_UNKNOWN").await?;
        check("GET", "/v1/nothing", "", 404, "ROUTE_UNKNOWN").await?;
        check("PATCH", "/v1/nodes", "", 405, "METHOD_NOT_ALLOWED").await?;
        check("DELETE", "/v1/images/echo", "", 409, "IMAGE_IN_USE").await?;
        let listed = world.client().jobs(None, None, 10, None).await?.jobs;
        ensure!(listed.is_empty(), "something was accepted: {listed:?}");
        Ok(())
    });
}

#[test]
fn images_that_cannot_boot_are_refused() {
    run(Setup::default(), async |world| {
        let good = TinyGuest::new().exit(0x10).elf();
        let mut noteless = good.clone();
        // The second program header is the note's; as PT_NULL it is none.
        noteless[64 + 56] = 0;
        let truncated = good[..100].to_vec();
        for (what, elf) in [
            ("no ELF", b"#!/bin/sh\necho no machine\n".to_vec()),
            ("truncated", truncated),
            ("no PVH note", noteless),
        ] {
            let refused = world.import("bad", elf, 16).await.err().context(what)?;
            let error = refused.downcast_ref::<ClientError>().context("a client's error")?;
            ensure!(error.code() == Some(Code::ImageInvalid), "{what}: {error:?}");
        }
        let put = ImagePut {
            kernel: "0".repeat(64),
            modules: Vec::new(),
            memory_mib: None,
            capacity: None,
            port: None,
        };
        ensure!(code(world.client().put_image("bad", &put).await) == Some(Code::BlobUnknown));
        let put = ImagePut { kernel: "nothing".into(), ..put };
        ensure!(code(world.client().put_image("bad", &put).await) == Some(Code::Invalid));
        ensure!(world.client().images().await?.is_empty());
        ensure!(code(world.client().remove_image("bad").await) == Some(Code::ImageUnknown));
        world.import("good", good, 16).await?;
        Ok(())
    });
}

#[test]
fn a_full_queue_refuses_at_once_and_line_by_line() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.replicas_max = 1;
            s.queue.bound = 5;
        });
        world.serve(&spec).await?;
        let running = world.submit("echo", "running", "/?sleep_ms=2500").await?;
        world.served_by(&running).await?;
        let items: Vec<BatchItem> = (0..8)
            .map(|n| BatchItem { payload: n.into(), token: None, path: None, deadline_ms: None })
            .collect();
        let reply = world.client().submit_batch("echo", &items).await?;
        ensure!((reply.accepted, reply.refused) == (5, 3), "{reply:?}");
        for (place, (item, result)) in items.iter().zip(&reply.results).enumerate() {
            match (&result.id, &result.error) {
                (Some(id), None) if place < 5 => {
                    world.ledger.note(id.clone(), Bytes::from(item.payload.to_string()));
                }
                (None, Some(error)) if place >= 5 => {
                    ensure!(error.code == Code::QueueFull, "{error:?}");
                    ensure!(error.details["depth"] == 5 && error.details["bound"] == 5);
                }
                other => anyhow::bail!("line {place}: {other:?}"),
            }
        }
        let one = world.client().submit("echo", Bytes::new(), &JobOptions::default()).await;
        let Err(ClientError::Api(error)) = one else { anyhow::bail!("accepted: {one:?}") };
        ensure!(error.code == Code::QueueFull && error.details["depth"] == 5, "{error:?}");
        let call = world.client().call("echo", Bytes::new(), &JobOptions::default()).await;
        ensure!(code(call) == Some(Code::QueueFull));
        world.settle_done().await
    });
}

#[test]
fn a_token_makes_a_repeated_submission_the_same_job() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let options = JobOptions { token: Some("order-7".into()), ..JobOptions::default() };
        let submit = async |payload: &'static str| {
            world.client().submit("echo", Bytes::from(payload), &options).await
        };
        let first = submit("one").await?;
        let again = submit("one").await?;
        ensure!(first.id == again.id, "{} and {}", first.id, again.id);
        let Err(ClientError::Api(error)) = submit("two").await else {
            anyhow::bail!("another payload was accepted under the same token")
        };
        ensure!(error.code == Code::TokenReused && error.details["job"] == first.id.as_str());
        let done = world.client().job(&first.id, LONG).await?;
        ensure!(done.state == JobStateName::Done);
        ensure!(submit("one").await?.id == first.id, "the same after the end");
        ensure!(world.client().jobs(None, None, 10, None).await?.jobs.len() == 1);
        world.audit().await
    });
}

#[test]
fn jobs_that_a_service_refuses_end_with_the_reason() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        let client = world.client().clone();
        // A request that the service calls wrong is not tried again.
        let job = client.submit("echo", Bytes::from("x"), &path("/?status=404")).await?;
        let job = client.job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("REJECTED_BY_SERVICE"), "{job:?}");
        ensure!(job.attempts == 1 && job.failure.as_ref().is_some_and(|f| f.contains("404")));
        ensure!(code(client.result(&job.id).await) == Some(Code::ResultMissing));
        ensure!(code(client.cancel(&job.id).await) == Some(Code::JobEnded));
        // So is what is too large for a machine of this size.
        let large = Bytes::from(vec![b'x'; 8 << 20]);
        let job = client.submit("echo", large, &path("/")).await?;
        let job = client.job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("REJECTED_BY_SERVICE"), "{job:?}");
        ensure!(job.failure.as_ref().is_some_and(|f| f.contains("413")), "{job:?}");
        // A service that could not is tried again, with waits between.
        let options = JobOptions { attempts: Some(4), ..path("/?status=503") };
        let job = client.submit("echo", Bytes::from("x"), &options).await?;
        let job = client.job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("ATTEMPTS_USED_UP"), "{job:?}");
        ensure!(job.attempts == 4, "{job:?}");
        let returned = |line: &skein_api::EventLine| {
            line.job.as_ref() == Some(&job.id) && line.event.name() == "job_returned"
        };
        let count = world.events().await?.into_iter().filter(returned).count();
        ensure!(count == 3, "{count} returns");
        // A call tells the same as an error.
        let Err(ClientError::Api(error)) =
            client.call("echo", Bytes::new(), &path("/?status=404")).await
        else {
            anyhow::bail!("a refused call was answered")
        };
        ensure!(error.code == Code::JobFailed, "{error:?}");
        ensure!(error.details["reason"] == "REJECTED_BY_SERVICE" && error.details["status"] == 404);
        world.audit().await
    });
}

#[test]
fn a_deadline_that_passes_ends_a_job_and_a_call() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.replicas_max = 1;
        });
        world.serve(&spec).await?;
        let running = world.submit("echo", "running", "/?sleep_ms=2000").await?;
        world.served_by(&running).await?;
        let short = |path_text: &str, ms: u64| JobOptions {
            deadline: Some(Duration::from_millis(ms)),
            ..path(path_text)
        };
        let job = world.client().submit("echo", Bytes::new(), &short("/", 200)).await?;
        let call = world.client().call("echo", Bytes::new(), &short("/", 200)).await;
        ensure!(code(call) == Some(Code::DeadlineExceeded));
        let job = world.client().job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("DEADLINE_EXCEEDED"), "{job:?}");
        ensure!(job.attempts == 0, "{job:?}");
        world.settle_done().await?;
        // In service when it passes: not tried again.
        let job =
            world.client().submit("echo", Bytes::new(), &short("/?sleep_ms=3000", 700)).await?;
        let job = world.client().job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("DEADLINE_EXCEEDED"), "{job:?}");
        let far = JobOptions { deadline: Some(Duration::from_secs(8 * 86_400)), ..path("/") };
        let far = world.client().submit("echo", Bytes::new(), &far).await;
        ensure!(code(far) == Some(Code::Invalid));
        world.audit().await
    });
}

#[test]
fn jobs_are_withdrawn_while_they_wait_and_while_they_run() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.capacity = Some(1);
            s.scaling.replicas_max = 1;
        });
        world.serve(&spec).await?;
        let running = world.submit("echo", "running", "/?sleep_ms=1000").await?;
        world.served_by(&running).await?;
        let waiting = world.submit("echo", "waiting", "/").await?;
        for id in [&waiting, &running] {
            let job = world.client().cancel(id).await?;
            ensure!(job.state == JobStateName::Cancelled, "{job:?}");
            ensure!(world.client().cancel(id).await?.state == JobStateName::Cancelled);
            ensure!(code(world.client().result(id).await) == Some(Code::ResultMissing));
        }
        // The machine serves on.
        let next = world.submit("echo", "next", "/").await?;
        let next = world.client().job(&next, LONG).await?;
        ensure!(next.state == JobStateName::Done, "{next:?}");
        // A caller that leaves takes its call along.
        let client = Client::new(world.client().target().clone());
        let options = path("/?sleep_ms=5000");
        let call = client.call("echo", Bytes::new(), &options);
        let in_service = until("the call in service", async || {
            let jobs = world.client().jobs(None, Some("running"), 10, None).await?.jobs;
            Ok(jobs.into_iter().next())
        });
        let job = tokio::select! {
            reply = call => anyhow::bail!("answered already: {reply:?}"),
            job = in_service => job?,
        };
        let job = world.client().job(&job.id, LONG).await?;
        ensure!(job.state == JobStateName::Cancelled, "{job:?}");
        let ending = world.ledger.settle(world.client()).await?;
        ensure!((ending.cancelled, ending.done) == (2, 1), "{ending:?}");
        world.audit().await
    });
}

#[test]
fn payloads_and_results_have_a_bound_of_64_mib() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.memory = Some(skein_model::MemoryMib::new(256).expect("a size"));
            s.queue.retry.attempt_timeout = Duration::from_secs(120);
            s.scaling.replicas_min = 1;
        });
        world.serve(&spec).await?;
        let largest = usize::try_from(skein_model::PAYLOAD_MAX)?;
        let pattern: Vec<u8> = (0..largest).map(|n| ((n * 31) >> 7) as u8).collect();
        let pattern = Bytes::from(pattern);
        let job = world.client().submit("echo", pattern.clone(), &path("/")).await?;
        ensure!(job.payload_bytes == skein_model::PAYLOAD_MAX);
        world.ledger.note(job.id, pattern.clone());
        let target = world.client().target();
        let bearer = format!("Bearer {}", target.token);
        let one_more = (largest + 1).to_string();
        let headers = [("Authorization", bearer.as_str()), ("Content-Length", one_more.as_str())];
        for what in ["jobs", "call"] {
            let path = format!("/v1/services/echo/{what}");
            let answer = raw(&target.url, "POST", &path, &headers, b"").await?;
            ensure!(
                (answer.status, answer.code().as_str()) == (413, "PAYLOAD_TOO_LARGE"),
                "{answer:?}"
            );
        }
        let huge = Bytes::from(vec![0; largest + 1]);
        let refused = world.client().submit("echo", huge, &path("/")).await;
        ensure!(code(refused) == Some(Code::PayloadTooLarge));
        let batch = (64 << 20).to_string();
        let headers = [("Authorization", bearer.as_str()), ("Content-Length", batch.as_str())];
        let answer = raw(&target.url, "POST", "/v1/services/echo/batch", &headers, b"").await?;
        ensure!(
            (answer.status, answer.code().as_str()) == (413, "PAYLOAD_TOO_LARGE"),
            "{answer:?}"
        );
        world.settle_done().await?;
        let path = format!("/v1/jobs/{}/payload", world.ledger.ids()[0]);
        let read = world.client().raw(Method::GET, &path, Bytes::new()).await?;
        ensure!(read == pattern, "the payload changed");
        Ok(())
    });
}

/// Waits until a service's decisions give a reason that contains `words`.
async fn reason(world: &World, name: &str, words: &str) -> Result<()> {
    until(&format!("a decision of {name} with {words:?}"), async || {
        let shown = world.client().service(name).await?;
        Ok(shown.decisions.iter().any(|d| d.reason.contains(words)).then_some(()))
    })
    .await
}

#[test]
fn a_machine_that_dies_in_its_boot_is_made_again_ever_later() {
    run(Setup::default(), async |world| {
        let elf = TinyGuest::new().print("panic: main.rs:7: not today\n").exit(0x11).elf();
        world.import("broken", elf, 16).await?;
        let spec = service("broken", |s| {
            s.image = "broken".parse().expect("a name");
            s.scaling.replicas_min = 1;
        });
        world.client().create_service(&spec).await?;
        world
            .event("a panic", |_, kind| {
                matches!(kind, skein_model::EventKind::MachineGone { code, message }
                    if code == "GUEST_PANIC" && message.contains("not today"))
            })
            .await?;
        reason(world, "broken", "starts fail: 2 in a row").await?;
        let machine = world.client().machines(true).await?.into_iter().find(|m| m.exit.is_some());
        let machine = machine.context("a machine that ended")?;
        let log = world.client().machine_log(&machine.id).await?;
        ensure!(String::from_utf8_lossy(&log).contains("not today"), "{log:?}");
        Ok(())
    });
}

#[test]
fn a_machine_that_never_listens_is_ended() {
    let setup = Setup { boot_timeout: Duration::from_millis(800), ..Setup::default() };
    run(setup, async |world| {
        world.import("silent", TinyGuest::new().elf(), 16).await?;
        let spec = service("silent", |s| s.image = "silent".parse().expect("a name"));
        world.client().create_service(&spec).await?;
        let options = JobOptions { deadline: Some(Duration::from_secs(4)), ..path("/") };
        let job = world.client().submit("silent", Bytes::new(), &options).await?;
        world
            .event("a boot that took too long", |_, kind| {
                matches!(kind, skein_model::EventKind::MachineGone { code, .. } if code == "BOOT_TIMEOUT")
            })
            .await?;
        let job = world.client().job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("DEADLINE_EXCEEDED"), "{job:?}");
        world.ready("silent", 0).await?;
        world.audit().await
    });
}

#[test]
fn a_machine_that_hangs_in_a_job_is_killed_and_the_job_tried_again() {
    run(Setup::default(), async |world| {
        let spec = service("echo", |s| {
            s.queue.retry.attempt_timeout = Duration::from_millis(700);
            s.queue.retry.attempts_max = 2;
        });
        world.serve(&spec).await?;
        let job = world.client().submit("echo", Bytes::new(), &path("/?hang=1")).await?;
        let job = world.client().job(&job.id, LONG).await?;
        ensure!(job.failure_code.as_deref() == Some("ATTEMPTS_USED_UP"), "{job:?}");
        ensure!(job.attempts == 2 && job.failure.as_ref().is_some_and(|f| f.contains("700 ms")));
        let hung = until("two machines that hung", async || {
            let events = world.events().await?;
            let hung = events.iter().filter(|line| {
                matches!(&line.event, skein_model::EventKind::MachineGone { code, .. } if code == "MACHINE_HUNG")
            });
            Ok((hung.count() == 2).then_some(()))
        });
        hung.await?;
        // The service goes on.
        world.submit("echo", "fine", "/").await?;
        world.settle_done().await
    });
}

#[test]
fn machines_that_panic_or_run_out_of_memory_in_a_job_say_so() {
    run(Setup::default(), async |world| {
        world.serve(&service("echo", |_| {})).await?;
        for (query, cause) in [
            ("panic=1", "GUEST_PANIC"),
            ("oom=1", "GUEST_OUT_OF_MEMORY"),
            ("overflow=1", "GUEST_EXCEPTION"),
        ] {
            let options = JobOptions { attempts: Some(1), ..path(&format!("/?{query}")) };
            let job = world.client().submit("echo", Bytes::new(), &options).await?;
            let job = world.client().job(&job.id, LONG).await?;
            ensure!(job.failure_code.as_deref() == Some("MACHINE_LOST"), "{query}: {job:?}");
            world
                .event(cause, |_, kind| {
                    matches!(kind, skein_model::EventKind::MachineGone { code, .. } if code == cause)
                })
                .await?;
        }
        world.submit("echo", "fine", "/").await?;
        world.settle_done().await
    });
}
