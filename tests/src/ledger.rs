//! What a client was promised: the ids of its acknowledged jobs and what their results must be. The oracle of fault tests.

use crate::wait::DEADLINE;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use skein_api::{BatchItem, Client, JobOptions};
use skein_fabric::Queue;
use skein_model::{EventKind, JobStateName};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Largest page of history.
const PAGE: u32 = 1000;

/// Acknowledged jobs by id, with the result they must have if they end as done.
#[derive(Debug, Default)]
pub struct Ledger {
    jobs: BTreeMap<String, Bytes>,
}

/// How the jobs of a ledger ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    /// With the right result.
    pub done: usize,
    /// Given up.
    pub dead: usize,
    /// Withdrawn.
    pub cancelled: usize,
}

impl Ledger {
    /// Notes a job that was acknowledged, whose result must be `result`.
    pub fn note(&mut self, id: String, result: Bytes) {
        self.jobs.insert(id, result);
    }

    /// Ids of the acknowledged jobs, oldest first.
    pub fn ids(&self) -> Vec<String> {
        self.jobs.keys().cloned().collect()
    }

    /// Submits a job whose result is its payload, and notes it when it is acknowledged.
    ///
    /// # Errors
    /// It was not acknowledged.
    pub async fn submit(
        &mut self,
        client: &Client,
        service: &str,
        payload: &str,
        path: &str,
    ) -> Result<String> {
        let payload = Bytes::from(payload.to_owned());
        let options = JobOptions { path: Some(path.to_owned()), ..JobOptions::default() };
        let job = client.submit(service, payload.clone(), &options).await?;
        self.note(job.id.clone(), payload);
        Ok(job.id)
    }

    /// Submits jobs in one batch, and notes those that are acknowledged; how many are.
    ///
    /// # Errors
    /// The batch was not answered.
    pub async fn submit_batch(
        &mut self,
        client: &Client,
        service: &str,
        payloads: &[String],
        path: &str,
    ) -> Result<usize> {
        let items: Vec<BatchItem> = payloads
            .iter()
            .map(|payload| BatchItem {
                payload: payload.clone().into(),
                token: None,
                path: Some(path.to_owned()),
                deadline_ms: None,
            })
            .collect();
        let reply = client.submit_batch(service, &items).await?;
        let mut accepted = 0;
        for (payload, result) in payloads.iter().zip(reply.results) {
            if let Some(id) = result.id {
                self.note(id, Bytes::from(payload.clone()));
                accepted += 1;
            }
        }
        Ok(accepted)
    }

    /// Waits until every acknowledged job has ended, and checks the results of those that are done.
    ///
    /// # Errors
    /// A job is unknown, does not end, or has a wrong result.
    pub async fn settle(&self, client: &Client) -> Result<Ending> {
        let begun = Instant::now();
        let mut ending = Ending::default();
        for (id, expected) in &self.jobs {
            let job = loop {
                let job = client.job(id, Duration::from_secs(5)).await?;
                if job.ended_at.is_some() {
                    break job;
                }
                ensure!(begun.elapsed() < DEADLINE, "job {id} does not end: {job:?}");
            };
            match job.state {
                JobStateName::Done => {
                    ending.done += 1;
                    let result = client.result(id).await.with_context(|| format!("job {id}"))?;
                    ensure!(result == *expected, "job {id} has another's result: {result:?}");
                }
                JobStateName::DeadLetter => {
                    ending.dead += 1;
                    ensure!(job.failure_code.is_some(), "job {id} was given up without a reason");
                }
                JobStateName::Cancelled => ending.cancelled += 1,
                JobStateName::Waiting | JobStateName::Running => {
                    bail!("job {id} has ended as {:?}", job.state)
                }
            }
        }
        Ok(ending)
    }

    /// As [`Ledger::settle`], and every job must be done.
    ///
    /// # Errors
    /// One is not, or as [`Ledger::settle`].
    pub async fn settle_done(&self, client: &Client) -> Result<()> {
        let ending = self.settle(client).await?;
        ensure!(ending.done == self.jobs.len(), "{} jobs ended as {ending:?}", self.jobs.len());
        Ok(())
    }

    /// Checks that history has no second end of a job, that the queue is consistent, and that it holds each job of the
    /// ledger.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn audit(&self, client: &Client, queue: &Queue) -> Result<()> {
        let audit = queue.audit().await?;
        ensure!(audit.faults.is_empty(), "the queue is not consistent: {:#?}", audit.faults);
        ensure!(audit.jobs >= self.jobs.len() as u64, "the queue holds {} jobs", audit.jobs);
        self.ended_once(client).await
    }

    /// Checks that history has at most one end of each job.
    ///
    /// # Errors
    /// A job that ended twice.
    pub async fn ended_once(&self, client: &Client) -> Result<()> {
        let mut ends: BTreeMap<String, u32> = BTreeMap::new();
        let mut since = 0;
        loop {
            let page = client.events(since, PAGE).await?;
            for line in &page.events {
                let end = matches!(
                    line.event,
                    EventKind::JobDone { .. }
                        | EventKind::JobDeadLettered { .. }
                        | EventKind::JobCancelled
                );
                if let (true, Some(job)) = (end, &line.job) {
                    *ends.entry(job.clone()).or_default() += 1;
                }
            }
            if page.events.is_empty() {
                break;
            }
            since = page.next;
        }
        let twice: Vec<_> = ends.iter().filter(|(_, count)| **count > 1).collect();
        ensure!(twice.is_empty(), "jobs that ended more than once: {twice:?}");
        Ok(())
    }
}
