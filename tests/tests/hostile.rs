//! A guest is hostile: what it sends is bounded and read with care, its jobs end, and the agent serves others.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use skein_api::{BatchItem, Job, JobOptions, Machine};
use skein_model::JobStateName;
use skein_tests::{FakeWorld, Setup, run, run_fake, service};
use skein_vmm::TinyGuest;
use skein_vmm::testing::FakeCommand;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Growth of this process's largest memory that an attack may cause, KiB: some buffers, and never a whole body of 64 MiB.
const GROWTH_MAX_KIB: u64 = 48 * 1024;

/// What a machine answers to a request.
#[derive(Debug, Clone, Default)]
struct Answer {
    /// Sent once.
    begin: Vec<u8>,
    /// Sent again and again until the agent has enough.
    repeat: Vec<u8>,
    /// Says no more, and keeps the connection.
    hold: bool,
}

impl Answer {
    fn of(begin: &str) -> Self {
        Self { begin: begin.into(), ..Self::default() }
    }

    fn then(mut self, repeat: &str) -> Self {
        self.repeat = repeat.into();
        self
    }

    fn hold(mut self) -> Self {
        self.hold = true;
        self
    }
}

/// The HTTP server of a played machine: the test says what it answers next.
#[derive(Debug)]
struct Hostile {
    /// The last one is given again and again.
    answers: Arc<Mutex<Vec<Answer>>>,
    machine: Machine,
    _tasks: JoinSet<()>,
}

impl Hostile {
    /// Answers for the machine that is ready now.
    async fn start(world: &FakeWorld) -> Result<Self> {
        let machine = world.ready().await?;
        let listener = world.listen(&machine)?;
        let answers = Arc::new(Mutex::new(vec![Answer::default()]));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, answers.clone()));
        Ok(Self { answers, machine, _tasks: tasks })
    }

    fn set(&self, answer: Answer) {
        self.set_all(vec![answer]);
    }

    fn set_all(&self, answers: Vec<Answer>) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = answers;
    }
}

fn next(answers: &Mutex<Vec<Answer>>) -> Answer {
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    match answers.as_slice() {
        [] => Answer::default(),
        [last] => last.clone(),
        [_, ..] => answers.remove(0),
    }
}

async fn accept(listener: TcpListener, answers: Arc<Mutex<Vec<Answer>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let answer = next(&answers);
        // What breaks is the agent's to say.
        connections.spawn(async move { drop(respond(stream, answer).await) });
        while connections.try_join_next().is_some() {}
    }
}

async fn respond(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    let mut request = vec![0; 16 * 1024];
    let _ = stream.read(&mut request).await?;
    stream.write_all(&answer.begin).await?;
    while !answer.repeat.is_empty() {
        stream.write_all(&answer.repeat).await?;
    }
    if answer.hold {
        while stream.read(&mut request).await? > 0 {}
    }
    stream.shutdown().await
}

/// Largest resident memory of this process so far, KiB.
fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

async fn one_job(world: &FakeWorld) -> Result<Job> {
    let options = JobOptions { attempts: Some(1), ..JobOptions::default() };
    let job = world.client().submit("evil", Bytes::from("payload"), &options).await?;
    Ok(world.client().job(&job.id, Duration::from_secs(50)).await?)
}

async fn serve(world: &FakeWorld, capacity: u32, attempt_timeout: Duration) -> Result<()> {
    let spec = service("evil", |s| {
        s.scaling.replicas_min = 1;
        s.scaling.replicas_max = 1;
        s.queue.retry.attempt_timeout = attempt_timeout;
    });
    world.serve(&spec, capacity).await
}

const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine";

#[test]
fn answers_that_are_not_http_end_the_job_and_nothing_else() {
    run_fake(async |world| {
        serve(world, 4, Duration::from_secs(25)).await?;
        let hostile = Hostile::start(world).await?;
        hostile.set(Answer::of(GOOD));
        ensure!(one_job(world).await?.state == JobStateName::Done);
        let before = peak_kib();
        let many_fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(5000));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let failed = ["ATTEMPTS_USED_UP"];
        let refused = ["REJECTED_BY_SERVICE"];
        let answers: Vec<(&str, Answer, &[&str])> = vec![
            ("nothing", Answer::default(), &failed),
            ("garbage", Answer::of("\0\u{1}\u{2}SSH-2.0-none\r\n\r\n"), &failed),
            ("no status", Answer::of("HTTP/1.1 \r\n\r\n"), &failed),
            ("another protocol", Answer::of("HTTP/9.9 200 OK\r\n\r\n"), &failed),
            ("many fields", Answer::of(&many_fields), &failed),
            (
                "endless field",
                Answer::of("HTTP/1.1 200 OK\r\na: ").then(&"a".repeat(8192)),
                &failed,
            ),
            ("endless fields", Answer::of("HTTP/1.1 200 OK\r\n").then("a: b\r\n"), &failed),
            ("endless line", Answer::default().then(&"H".repeat(8192)), &failed),
            (
                "two lengths",
                Answer::of("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
                &failed,
            ),
            (
                "negative length",
                Answer::of("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"),
                &failed,
            ),
            ("too short", Answer::of("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nab"), &failed),
            ("bad chunk", Answer::of(&format!("{chunked}zz\r\n")), &failed),
            ("huge chunk", Answer::of(&format!("{chunked}fffffffffffffffff\r\n")), &failed),
            ("cut chunk", Answer::of(&format!("{chunked}5\r\nab")), &failed),
            (
                "endless extension",
                Answer::of(&format!("{chunked}1;")).then(&"a".repeat(8192)),
                &failed,
            ),
            (
                "endless body",
                Answer::of("HTTP/1.1 200 OK\r\n\r\n").then(&"b".repeat(65_536)),
                &refused,
            ),
            (
                "endless chunks",
                Answer::of(chunked).then(&format!("2000\r\n{}\r\n", "c".repeat(8192))),
                &refused,
            ),
            (
                "endless refusal",
                Answer::of("HTTP/1.1 400 No\r\n\r\n").then(&"d".repeat(65_536)),
                &refused,
            ),
            (
                "controls in a refusal",
                Answer::of("HTTP/1.1 400 No\r\ncontent-length: 3\r\n\r\n\u{1b}[2"),
                &refused,
            ),
            (
                "switching protocols",
                Answer::of("HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n"),
                &["REJECTED_BY_SERVICE", "ATTEMPTS_USED_UP"],
            ),
            (
                "redirect",
                Answer::of(
                    "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
                ),
                &refused,
            ),
        ];
        for (what, answer, codes) in answers {
            hostile.set(answer);
            let job = one_job(world).await.context(what)?;
            ensure!(job.state == JobStateName::DeadLetter, "{what}: {job:?}");
            let code = job.failure_code.as_deref().unwrap_or_default();
            ensure!(codes.contains(&code), "{what}: {job:?}");
            let words = job.failure.unwrap_or_default();
            ensure!(words.len() < 1024 && !words.contains('\u{1b}'), "{what}: {words:?}");
        }
        hostile.set(Answer::of(GOOD));
        ensure!(one_job(world).await?.state == JobStateName::Done, "the agent serves no more");
        let growth = peak_kib().saturating_sub(before);
        ensure!(growth < GROWTH_MAX_KIB, "this process grew by {growth} KiB");
        ensure!(world.ready().await?.id == hostile.machine.id, "the machine was replaced");
        Ok(())
    });
}

#[test]
fn a_machine_that_says_nothing_or_too_slowly_is_killed() {
    run_fake(async |world| {
        serve(world, 4, Duration::from_millis(700)).await?;
        let silent = [
            Answer::default().hold(),
            Answer::of("HTTP/1.1 200 OK\r\ncontent-le").hold(),
            Answer::of("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab").hold(),
        ];
        for answer in silent {
            let hostile = Hostile::start(world).await?;
            hostile.set(answer.clone());
            let job = one_job(world).await?;
            ensure!(job.failure_code.as_deref() == Some("ATTEMPTS_USED_UP"), "{answer:?}: {job:?}");
            let machine = skein_tests::until("the machine's end", async || {
                Ok(world.client().machine(&hostile.machine.id).await?.exit)
            });
            ensure!(machine.await? == "did not finish a job in time");
        }
        Ok(())
    });
}

/// Jobs that meet a mutated answer.
const JOBS: usize = 500;

/// A few bytes changed, lost, added or doubled.
fn mutate(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut answer = seed.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..answer.len().max(1));
        match random.random_range(0..5) {
            _ if answer.is_empty() => break,
            0 => answer[at] = random.random(),
            1 => answer.truncate(at),
            2 => answer.insert(at, random.random()),
            3 => drop(answer.remove(at)),
            _ => answer.extend_from_within(at..),
        }
    }
    answer
}

#[test]
fn any_answer_is_answered() {
    run_fake(async |world| {
        let seed: u64 = rand::random();
        eprintln!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let spec = service("evil", |s| {
            s.scaling.replicas_min = 1;
            s.scaling.replicas_max = 1;
            s.queue.retry.attempts_max = 1;
        });
        world.serve(&spec, 64).await?;
        let hostile = Hostile::start(world).await?;
        let seeds = [
            GOOD.as_bytes(),
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno",
            b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end",
        ];
        let answers = (0..JOBS).map(|_| {
            let seed = seeds[random.random_range(0..seeds.len())];
            Answer { begin: mutate(seed, &mut random), ..Answer::default() }
        });
        hostile.set_all(answers.collect());
        let item = BatchItem { payload: "x".into(), token: None, path: None, deadline_ms: None };
        let reply = world.client().submit_batch("evil", &vec![item; JOBS]).await?;
        ensure!(reply.accepted as usize == JOBS, "{} accepted", reply.accepted);
        let mut done = 0;
        for result in reply.results {
            let id = result.id.context("an id")?;
            let job = world.client().job(&id, Duration::from_secs(50)).await?;
            ensure!(job.ended_at.is_some(), "{job:?}");
            done += u32::from(job.state == JobStateName::Done);
        }
        eprintln!("{done} of {JOBS} are answers all the same");
        hostile.set(Answer::of(GOOD));
        ensure!(one_job(world).await?.state == JobStateName::Done, "the agent serves no more");
        Ok(())
    });
}

#[test]
fn a_played_machine_that_floods_console_and_control_is_borne() {
    run_fake(async |world| {
        serve(world, 4, Duration::from_secs(20)).await?;
        let hostile = Hostile::start(world).await?;
        hostile.set(Answer::of(GOOD));
        let id = hostile.machine.id.parse()?;
        let before = peak_kib();
        let line = "flood ".repeat(10_000);
        for number in 0..60 {
            ensure!(world.host().command(&id, FakeCommand::Print(line.clone())).await);
            let said = match number % 4 {
                0 => "stats mem_total=x mem_used=99999999999999999999999 busy_us=-1".to_owned(),
                1 => "x".repeat(5000),
                2 => "ready port=0 capacity=99999999 boot_us=\u{0}".to_owned(),
                _ => "\u{1b}[2J stopping code=nothing".to_owned(),
            };
            ensure!(world.host().command(&id, FakeCommand::Say(said)).await);
        }
        ensure!(one_job(world).await?.state == JobStateName::Done, "the agent serves no more");
        let log = world.client().machine_log(&hostile.machine.id).await?;
        ensure!(log.len() < 1024 * 1024, "a log of {} bytes", log.len());
        let growth = peak_kib().saturating_sub(before);
        ensure!(growth < GROWTH_MAX_KIB, "this process grew by {growth} KiB");
        ensure!(world.ready().await?.id == hostile.machine.id, "the machine was replaced");
        Ok(())
    });
}

#[test]
fn a_machine_that_floods_its_console_does_not_disturb_others() {
    let setup = Setup { boot_timeout: Duration::from_secs(3), ..Setup::default() };
    run(setup, async |world| {
        world.serve(&service("echo", |s| s.scaling.replicas_min = 1)).await?;
        world.ready("echo", 1).await?;
        let flood = TinyGuest::new().print("this goes on for ever\n").forever().elf();
        world.import("flood", flood, 16).await?;
        let spec = service("flood", |s| {
            s.image = "flood".parse().expect("a name");
            s.scaling.replicas_min = 1;
        });
        world.client().create_service(&spec).await?;
        let before = peak_kib();
        let gone = world.event("the end of a machine that floods", |line, kind| {
            line.service.as_deref() == Some("flood") && kind.name() == "machine_gone"
        });
        let gone = gone.await?.machine.context("a machine")?;
        world.submit("echo", "served", "/").await?;
        world.ledger.settle_done(world.client()).await?;
        let log = world.client().machine_log(&gone).await?;
        ensure!(!log.is_empty() && log.len() < 1024 * 1024, "a log of {} bytes", log.len());
        let growth = peak_kib().saturating_sub(before);
        ensure!(growth < GROWTH_MAX_KIB, "this process grew by {growth} KiB");
        world.client().remove_service("flood").await?;
        world.ready("flood", 0).await?;
        world.audit().await
    });
}
