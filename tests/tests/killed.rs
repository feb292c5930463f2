//! The whole cloud is killed at random moments, again and again, with machines starting and jobs coming in.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _};
use skein_api::{Client, ImagePut};
use skein_fabric::{BlobStore, EmbeddedOptions, EmbeddedState, Queue};
use skein_tests::{Ledger, Up, echo_elf, service, state_folder};
use std::sync::Arc;
use std::time::Duration;

/// How often the cloud is killed.
const ROUNDS: u32 = 4;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn prepare(client: &Client) -> Result<()> {
    let kernel = client.put_blob(Bytes::from(std::fs::read(echo_elf()?)?)).await?.id;
    let (modules, memory_mib, port) = (Vec::new(), Some(16), None);
    let put = ImagePut { kernel, modules, memory_mib, capacity: Some(2), port };
    client.put_image("echo", &put).await?;
    let spec = service("echo", |s| {
        s.scaling.replicas_max = 4;
        s.queue.retry.attempts_max = 20;
    });
    client.create_service(&spec).await?;
    Ok(())
}

/// Submits jobs until the server is gone.
async fn submit_on(client: &Client, ledger: &mut Ledger, round: u32) {
    for number in 0.. {
        let payloads: Vec<String> = (0..10).map(|n| format!("{round}.{number}.{n}")).collect();
        let path = "/?sleep_ms=40";
        if ledger.submit_batch(client, "echo", &payloads, path).await.is_err() || number > 12 {
            return;
        }
    }
}

#[test]
fn a_cloud_that_is_killed_goes_on_where_it_was() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let (_guard, folder) = state_folder().expect("a folder");
    let mut ledger = Ledger::default();
    let runtime = runtime();
    for round in 0..ROUNDS {
        let moment = Duration::from_millis(random.random_range(0..700));
        let cloud = Up::start(&folder, &["--nodes", "2"]).expect("the cloud starts");
        let leaks = cloud.leaks();
        runtime.block_on(async {
            let client = cloud.client();
            if round == 0 {
                prepare(&client).await.expect("image and service");
            }
            tokio::select! {
                () = submit_on(&client, &mut ledger, round) => tokio::time::sleep(moment).await,
                () = tokio::time::sleep(moment) => {}
            }
        });
        eprintln!(
            "round {round}: killed {moment:?} after it began to take jobs; machines {:?}",
            leaks.processes()
        );
        let before = leaks.processes();
        cloud.kill().expect("the cloud dies");
        let after = leaks.processes();
        assert!(after.is_subset(&before) || before.is_subset(&after), "{before:?} {after:?}");
    }
    let cloud = Up::start(&folder, &["--nodes", "2"]).expect("the cloud starts");
    let settled: Result<()> = runtime.block_on(async {
        let client = cloud.client();
        ledger.settle_done(&client).await?;
        ledger.ended_once(&client).await?;
        let machines = client.machines(false).await?;
        ensure!(machines.len() <= 4, "more machines than the maximum: {machines:#?}");
        Ok(())
    });
    let said = cloud.stop();
    settled.expect("all jobs are done");
    said.expect("the cloud ends and leaves nothing");
    eprintln!("{} jobs were acknowledged", ledger.ids().len());
    let audited: Result<()> = runtime.block_on(async {
        let state =
            EmbeddedState::open(folder.join("state").as_std_path(), EmbeddedOptions::default())?;
        let blobs = BlobStore::open(folder.join("blobs").as_std_path())?;
        let audit = Queue::open(Arc::new(state), blobs).await?.audit().await.context("an audit")?;
        ensure!(audit.faults.is_empty(), "{:#?}", audit.faults);
        ensure!(audit.jobs >= ledger.ids().len() as u64, "{} jobs", audit.jobs);
        Ok(())
    });
    audited.expect("the queue is consistent");
}

#[test]
fn machines_go_on_when_the_cloud_is_killed_and_are_taken_up_again() {
    let (_guard, folder) = state_folder().expect("a folder");
    let runtime = runtime();
    let cloud = Up::start(&folder, &["--nodes", "1"]).expect("the cloud starts");
    let scale = |client: Client, min| async move {
        prepare(&client).await?;
        let scale = skein_api::ScaleRequest { min: Some(min), max: None, warm: None };
        client.scale("echo", &scale).await?;
        skein_tests::until("ready machines", async || {
            let ready = client.service("echo").await?.ready;
            Ok((ready == min).then_some(()))
        })
        .await
    };
    let leaks = cloud.leaks();
    runtime.block_on(scale(cloud.client(), 3)).expect("three machines");
    let before = leaks.processes();
    assert_eq!(before.len(), 3);
    cloud.kill().expect("the cloud dies");
    assert_eq!(leaks.processes(), before, "machines died with the cloud");
    let cloud = Up::start(&folder, &["--nodes", "1"]).expect("the cloud starts");
    let client = cloud.client();
    let served = runtime.block_on(async {
        skein_tests::until("three ready machines", async || {
            Ok((client.service("echo").await?.ready == 3).then_some(()))
        })
        .await?;
        let mut ledger = Ledger::default();
        ledger.submit(&client, "echo", "afterwards", "/").await?;
        ledger.settle_done(&client).await
    });
    let after = leaks.processes();
    let stopped = cloud.stop();
    served.expect("a job is served");
    assert_eq!(after, before, "other machines serve");
    stopped.expect("the cloud ends and leaves nothing");
}
