//! Looking at queues and jobs. Nothing here changes anything.

use super::engine::parse;
use super::keys::{self, QueueName, Side};
use super::stored::{Count, StoredJob};
use super::{Queue, QueueError};
use crate::blob::BlobReader;
use crate::state::{Key, KeySpan, Op, Query, TXN_OPS_MAX, Txn};
use bytes::Bytes;
use skein_model::{
    BodyRef, JobId, JobRecord, JobState, JobStateName, ProjectName, ServiceName, Timestamp,
};

/// Records that one list call looks at, at most: it answers in some ten milliseconds, however rare what it looks for.
const LOOKED_AT_MAX: usize = 2048;

/// How many jobs of a queue are where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Due and not claimed.
    pub waiting: u64,
    /// Waiting out a back-off.
    pub delayed: u64,
    /// Claimed.
    pub running: u64,
    /// Ended and not yet forgotten.
    pub ended: u64,
    /// Accepted so far, forgotten ones included.
    pub accepted: u64,
    /// When the job that is next was accepted.
    pub oldest: Option<Timestamp>,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of this project.
    pub project: Option<ProjectName>,
    /// Of this service (of the project, which must be given too).
    pub service: Option<ServiceName>,
    /// In this state.
    pub state: Option<JobStateName>,
}

/// Where the next page of a list begins; opaque text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// From the text of an earlier page. Any text is a cursor; a wrong one begins somewhere else.
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the next request.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPage {
    /// Jobs by project and service, the newest of each first.
    pub jobs: Vec<JobRecord>,
    /// Where to go on; `None` at the end. A page may be short, even empty, and not the last.
    pub next: Option<Cursor>,
}

/// A stored payload or result.
#[derive(Debug)]
pub enum StoredBody {
    /// All of it.
    Inline(Bytes),
    /// To be read.
    Blob(BlobReader),
}

impl Queue {
    /// A job as it stands. One that has ended stays so: that is durable.
    ///
    /// # Errors
    /// [`QueueError::NotFound`], or the state's failure.
    pub async fn get(&self, id: JobId) -> Result<JobRecord, QueueError> {
        let entry = self.state.get(&keys::job(id)).await?;
        let entry = entry.ok_or(QueueError::NotFound { job: id })?;
        let StoredJob { job, .. } = parse(&entry)?;
        if job.state.ended_at().is_some() {
            self.state.sync(entry.mod_revision).await?;
        }
        Ok(job)
    }

    /// The payload of a job.
    ///
    /// # Errors
    /// [`QueueError::NotFound`] when the job has been forgotten, or the store's failure.
    pub async fn payload(&self, job: &JobRecord) -> Result<StoredBody, QueueError> {
        self.stored_body(job.id, Side::In, &job.payload).await
    }

    /// The result of a job; `None` unless it is done.
    ///
    /// # Errors
    /// As [`Queue::payload`].
    pub async fn result(&self, job: &JobRecord) -> Result<Option<StoredBody>, QueueError> {
        match &job.state {
            JobState::Done { result, .. } => {
                self.stored_body(job.id, Side::Out, result).await.map(Some)
            }
            JobState::Waiting { .. }
            | JobState::Running { .. }
            | JobState::DeadLetter { .. }
            | JobState::Cancelled { .. } => Ok(None),
        }
    }

    async fn stored_body(
        &self,
        id: JobId,
        side: Side,
        body: &BodyRef,
    ) -> Result<StoredBody, QueueError> {
        if let Some(blob) = body.blob {
            return Ok(StoredBody::Blob(self.blobs.open_blob(blob).await?));
        }
        if body.bytes == 0 {
            return Ok(StoredBody::Inline(Bytes::new()));
        }
        let entry = self.state.get(&keys::body(id, side)).await?;
        Ok(StoredBody::Inline(entry.ok_or(QueueError::NotFound { job: id })?.value))
    }

    /// How full a queue is. A queue that was never used is empty.
    ///
    /// # Errors
    /// The state's failure.
    pub async fn depth(&self, queue: &QueueName) -> Result<Depth, QueueError> {
        let first = Query::span(keys::waiting_of(queue)).limit(1);
        let txn = Txn::new().then(Op::get(keys::count(queue))).then(Op::Range(first));
        let mut found = self.state.txn(txn).await?.ranges();
        let count = found.next().and_then(|reply| reply.entries.into_iter().next());
        let count: Count = count.as_ref().map(parse).transpose()?.unwrap_or_default();
        let next = found.next().and_then(|reply| reply.entries.into_iter().next());
        let id = next.and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse().ok());
        let oldest = match id {
            Some(id) => match self.get(id).await {
                Ok(job) => Some(job.submitted_at),
                // Ended and forgotten since.
                Err(QueueError::NotFound { .. }) => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let Count { next, waiting, late, running, ended } = count;
        Ok(Depth { waiting, delayed: late, running, ended, accepted: next, oldest })
    }

    /// The queues that have, or had, jobs.
    ///
    /// # Errors
    /// The state's failure.
    pub async fn queues(&self) -> Result<Vec<QueueName>, QueueError> {
        let keys = self.all_keys(keys::below(keys::COUNTS)).await?;
        Ok(keys.iter().filter_map(keys::queue_of_count).collect())
    }

    /// Lists jobs, at most `limit` (1 to 1,000): by project and service, and the newest of each first. Each page is a
    /// consistent picture; jobs may change between pages.
    ///
    /// # Errors
    /// [`QueueError::Invalid`] for a service without its project, or the state's failure.
    pub async fn list(
        &self,
        filter: &JobFilter,
        cursor: Option<&Cursor>,
        limit: usize,
    ) -> Result<JobPage, QueueError> {
        let limit = limit.clamp(1, 1000);
        let root = match (&filter.project, &filter.service) {
            (None, None) => keys::ALL.to_owned(),
            (Some(project), None) => format!("{}{project}/", keys::ALL),
            (Some(project), Some(service)) => format!("{}{project}/{service}/", keys::ALL),
            (None, Some(_)) => {
                let what = "a service is listed with its project".to_owned();
                return Err(QueueError::Invalid { what });
            }
        };
        let mut rest = KeySpan::prefix(&root)?;
        if let Some(Cursor(text)) = cursor {
            rest = rest.after(&Key::new(format!("{}{text}", keys::ALL))?);
        }
        let mut page = JobPage { jobs: Vec::new(), next: None };
        let mut looked_at = 0;
        loop {
            let query = Query::span(rest.clone()).keys_only().limit(TXN_OPS_MAX);
            let found = self.state.range(query).await?;
            let keys: Vec<Key> = found.entries.into_iter().map(|entry| entry.key).collect();
            let ids: Vec<JobId> = keys.iter().filter_map(keys::listed).map(|(_, id)| id).collect();
            let jobs = self.jobs_of(&ids).await?;
            for (key, job) in keys.iter().zip(jobs) {
                let wanted = job.filter(|job| filter.state.is_none_or(|s| s == job.state.name()));
                page.jobs.extend(wanted);
                looked_at += 1;
                if page.jobs.len() == limit || looked_at == LOOKED_AT_MAX {
                    page.next = Some(Cursor(key.as_str()[keys::ALL.len()..].to_owned()));
                    return Ok(page);
                }
            }
            match keys.last() {
                Some(last) if found.more => rest = rest.after(last),
                _ => return Ok(page),
            }
        }
    }

    /// The records of at most [`TXN_OPS_MAX`] jobs, in their order; `None` where one has just been forgotten.
    pub(super) async fn jobs_of(
        &self,
        ids: &[JobId],
    ) -> Result<Vec<Option<JobRecord>>, QueueError> {
        let mut txn = Txn::new();
        for id in ids {
            txn.then.push(Op::get(keys::job(*id)));
        }
        let mut jobs = Vec::with_capacity(ids.len());
        for reply in self.state.txn(txn).await?.ranges() {
            let stored: Option<StoredJob> = reply.entries.first().map(parse).transpose()?;
            jobs.push(stored.map(|stored| stored.job));
        }
        Ok(jobs)
    }

    /// All keys of a span, in pages read one after the other.
    pub(super) async fn all_keys(&self, span: KeySpan) -> Result<Vec<Key>, QueueError> {
        let mut rest = span;
        let mut keys = Vec::new();
        loop {
            let found = self.state.range(Query::span(rest.clone()).keys_only()).await?;
            keys.extend(found.entries.into_iter().map(|entry| entry.key));
            match keys.last() {
                Some(last) if found.more => rest = rest.after(last),
                _ => return Ok(keys),
            }
        }
    }
}
