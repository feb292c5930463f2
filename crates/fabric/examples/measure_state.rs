//! Measures the embedded state: latency of one writer, throughput of sixty-four, latency of reads and watches.
//!
//! `cargo run --release -p skein-fabric --example measure_state [DIRECTORY]`

use skein_fabric::{EmbeddedOptions, EmbeddedState, Key, KeySpan, State, StateError, WatchFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: usize = 2000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let directory = tempfile::tempdir_in(root)?;
    let store = EmbeddedState::open(directory.path(), EmbeddedOptions::default())?;
    let state: Arc<dyn State> = Arc::new(store.clone());
    report("put, one writer", &puts(&state, 0, ROUNDS).await?);
    report("get, one reader", &gets(&state, ROUNDS).await?);
    report("watch, commit to delivery and put", &watched(&state, ROUNDS).await?);
    for writers in [8, 64] {
        let begin = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let state = state.clone();
            tasks.spawn(async move { puts(&state, writer, ROUNDS).await });
        }
        let all: Vec<Duration> =
            tasks.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
        report(&format!("put, {writers} writers"), &all);
        println!("  {:.0} puts/s", all.len() as f64 / begin.elapsed().as_secs_f64());
    }
    store.close().await;
    Ok(())
}

fn key(writer: usize, round: usize) -> Result<Key, StateError> {
    Key::new(format!("measure/{writer:04}/{round:08}"))
}

async fn puts(
    state: &Arc<dyn State>,
    writer: usize,
    rounds: usize,
) -> Result<Vec<Duration>, StateError> {
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let begin = Instant::now();
        state.put(key(writer, round)?, vec![b'x'; 256].into()).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

async fn gets(state: &Arc<dyn State>, rounds: usize) -> Result<Vec<Duration>, StateError> {
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let key = key(0, round)?;
        let begin = Instant::now();
        state.get(&key).await?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

async fn watched(state: &Arc<dyn State>, rounds: usize) -> Result<Vec<Duration>, StateError> {
    let mut watch = state.watch(KeySpan::prefix("measure/")?, WatchFrom::Now).await?;
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        let begin = Instant::now();
        let (put, seen) =
            tokio::join!(state.put(key(9, round)?, vec![b'x'; 256].into()), watch.next());
        put?;
        seen?;
        times.push(begin.elapsed());
    }
    Ok(times)
}

fn report(what: &str, times: &[Duration]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted[(sorted.len() - 1) * share / 100].as_secs_f64() * 1e6;
    println!("{what}: median {:.0} us, p90 {:.0} us, p99 {:.0} us", at(50), at(90), at(99));
}
