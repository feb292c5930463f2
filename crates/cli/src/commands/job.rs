//! `skein job`, `skein call`.

use crate::Context;
use crate::output::{self, column, dash, ms, wide};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use skein_api::{BatchItem, Client, Job as ApiJob, JobOptions};
use skein_model::JobStateName;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Jobs of one batch request: about 1 MiB of small ones.
const BATCH: usize = 1000;
/// Bytes of one batch request, but for a job that is larger by itself: well under the server's bound of 16 MiB.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// One question of a long wait: shorter than what proxies allow a silent connection.
const WAIT_STEP: Duration = Duration::from_secs(20);

/// Jobs: units of work for a service
#[derive(clap::Subcommand)]
pub(crate) enum Job {
    /// Submit a job, or a batch of them
    Submit(Box<Submit>),
    /// List jobs, newest first
    Ls {
        /// Only those of a service
        #[arg(long, value_name = "SERVICE")]
        service: Option<String>,
        /// Only those that stand so: waiting, running, done, dead_letter or cancelled
        #[arg(long, value_name = "STATE")]
        status: Option<JobStateName>,
        /// At most so many
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: u32,
    },
    /// Show one job
    Show {
        /// Id of the job
        job: String,
    },
    /// Wait until jobs have ended; fails if one was given up
    Wait {
        /// Ids of jobs
        #[arg(required = true)]
        jobs: Vec<String>,
        /// At most so long
        #[arg(long, default_value = "1h", value_name = "TIME", value_parser = super::duration)]
        timeout: Duration,
    },
    /// Print a job's result
    Result {
        /// Id of the job
        job: String,
    },
    /// Withdraw jobs
    Cancel {
        /// Ids of jobs
        #[arg(required = true)]
        jobs: Vec<String>,
    },
}

/// How a job is served
#[derive(clap::Args, Clone)]
pub(crate) struct Serving {
    /// Idempotency token: the same token is the same job. Not --token, which is shown to the server
    #[arg(long, value_name = "TOKEN")]
    idempotency_token: Option<String>,
    /// Path and query of the request to the machine
    #[arg(long)]
    path: Option<String>,
    /// Not served later than this from now
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    deadline: Option<Duration>,
    /// Attempts it may have
    #[arg(long)]
    attempts: Option<u32>,
    /// Media type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
}

impl Serving {
    fn options(&self) -> JobOptions {
        JobOptions {
            token: self.idempotency_token.clone(),
            path: self.path.clone(),
            deadline: self.deadline,
            attempts: self.attempts,
            content_type: self.content_type.clone(),
            ..JobOptions::default()
        }
    }
}

/// What is to be worked on
#[derive(clap::Args)]
pub(crate) struct Payload {
    /// The payload as text
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    data: Option<String>,
    /// The payload from a file, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl Payload {
    fn read(&self) -> Result<Bytes> {
        match (&self.data, &self.file) {
            (Some(text), _) => Ok(Bytes::from(text.clone())),
            (None, Some(file)) => Ok(super::read_input(file)?.into()),
            (None, None) => Ok(Bytes::new()),
        }
    }
}

/// Submit a job, or a batch of them
#[derive(clap::Args)]
pub(crate) struct Submit {
    /// Name of the service
    service: String,
    #[command(flatten)]
    payload: Payload,
    /// A batch: each line of the file is one payload
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "file", "json_lines", "idempotency_token", "attempts", "content_type"])]
    lines: Option<PathBuf>,
    /// A batch: each line is {"payload": ..., "token": ..., "path": ..., "deadline_ms": ...}
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "file", "idempotency_token", "path", "deadline", "attempts", "content_type"])]
    json_lines: Option<PathBuf>,
    #[command(flatten)]
    serving: Serving,
    /// Wait until it has ended, and print the result
    #[arg(short, long)]
    wait: bool,
    /// Same as `-` for --file
    #[arg(value_name = "-", value_parser = ["-"], hide = true)]
    stdin: Option<String>,
}

/// Call a service and print its answer
#[derive(clap::Args)]
pub(crate) struct Call {
    /// Name of the service
    service: String,
    #[command(flatten)]
    payload: Payload,
    #[command(flatten)]
    serving: Serving,
}

impl Call {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let payload = self.payload.read()?;
        let reply = context.client()?.call(&self.service, payload, &self.serving.options()).await?;
        let mut out = std::io::stdout().lock();
        out.write_all(&reply.body)?;
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Submit {
    async fn run(mut self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        if self.stdin.is_some() {
            self.payload.file = Some("-".into());
        }
        if let Some(items) = self.batch()? {
            return self.submit_batch(&client, &items).await;
        }
        let job =
            client.submit(&self.service, self.payload.read()?, &self.serving.options()).await?;
        if !self.wait {
            writeln!(std::io::stdout(), "{}", job.id)?;
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("{}", job.id);
        let job = wait(&client, &job.id, Duration::MAX).await?;
        if job.state != JobStateName::Done {
            bail!("job {} ended as {}: {}", job.id, job.state.as_str(), dash(job.failure));
        }
        std::io::stdout().write_all(&client.result(&job.id).await?)?;
        Ok(ExitCode::SUCCESS)
    }

    fn batch(&self) -> Result<Option<Vec<BatchItem>>> {
        let (file, json) = match (&self.lines, &self.json_lines) {
            (Some(file), _) => (file, false),
            (None, Some(file)) => (file, true),
            (None, None) => return Ok(None),
        };
        let text = String::from_utf8(super::read_input(file)?)
            .with_context(|| format!("{} is not UTF-8", file.display()))?;
        let mut items = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let deadline_ms = self.serving.deadline.map(|d| d.as_millis() as u64);
            items.push(if json {
                serde_json::from_str(line)
                    .with_context(|| format!("{}, line {}", file.display(), number + 1))?
            } else {
                let path = self.serving.path.clone();
                BatchItem { payload: line.into(), token: None, path, deadline_ms }
            });
        }
        Ok(Some(items))
    }

    async fn submit_batch(&self, client: &Client, items: &[BatchItem]) -> Result<ExitCode> {
        let (mut accepted, mut refused) = (Vec::new(), 0);
        for part in parts(items)? {
            let reply = client.submit_batch(&self.service, part).await?;
            refused += reply.refused;
            for result in reply.results {
                match (result.id, result.error) {
                    (Some(id), _) => {
                        writeln!(std::io::stdout(), "{id}")?;
                        accepted.push(id);
                    }
                    (None, error) => {
                        eprintln!("refused: {}", dash(error.map(|e| e.message)));
                    }
                }
            }
        }
        eprintln!("{} accepted, {refused} refused", accepted.len());
        let mut failed = 0;
        if self.wait {
            for id in &accepted {
                let job = wait(client, id, Duration::MAX).await?;
                failed += u32::from(job.state != JobStateName::Done);
            }
            eprintln!("{} done, {failed} not", accepted.len() as u32 - failed);
        }
        Ok(ExitCode::from(u8::from(refused + failed > 0)))
    }
}

/// A batch in requests that the server takes.
fn parts(items: &[BatchItem]) -> Result<Vec<&[BatchItem]>> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (place, item) in items.iter().enumerate() {
        let more = serde_json::to_vec(item)?.len();
        if place > begin && (place - begin == BATCH || bytes + more > BATCH_BYTES) {
            parts.push(&items[begin..place]);
            (begin, bytes) = (place, 0);
        }
        bytes += more;
    }
    if begin < items.len() {
        parts.push(&items[begin..]);
    }
    Ok(parts)
}

/// Waits until a job has ended.
async fn wait(client: &Client, id: &str, timeout: Duration) -> Result<ApiJob> {
    let begun = Instant::now();
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let job = client.job(id, left.min(WAIT_STEP)).await?;
        if job.ended_at.is_some() {
            return Ok(job);
        }
        if left.is_zero() {
            bail!("job {id} is still {} after {timeout:?}", job.state.as_str());
        }
    }
}

impl Job {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let submit = match self {
            Self::Submit(submit) => return submit.run(context).await,
            other => other,
        };
        let client = context.client()?;
        match submit {
            Self::Submit(_) => {}
            Self::Ls { service, status, limit } => {
                let state = status.map(JobStateName::as_str);
                list(context, &pages(&client, service.as_deref(), state, limit).await?)?;
            }
            Self::Show { job } => show(context, &client.job(&job, Duration::ZERO).await?)?,
            Self::Wait { jobs, timeout } => {
                let (begun, mut failed) = (Instant::now(), false);
                for id in jobs {
                    let job = wait(&client, &id, timeout.saturating_sub(begun.elapsed())).await?;
                    writeln!(std::io::stdout(), "{}  {}", job.id, job.state.as_str())?;
                    failed |= job.state != JobStateName::Done;
                }
                return Ok(ExitCode::from(u8::from(failed)));
            }
            Self::Result { job } => std::io::stdout().write_all(&client.result(&job).await?)?,
            Self::Cancel { jobs } => {
                for job in jobs {
                    writeln!(std::io::stdout(), "{}", client.cancel(&job).await?.id)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn pages(
    client: &Client,
    service: Option<&str>,
    state: Option<&str>,
    limit: u32,
) -> Result<Vec<ApiJob>> {
    let mut jobs = Vec::new();
    let mut cursor = None;
    while jobs.len() < limit as usize {
        let left = (limit as usize - jobs.len()).min(1000) as u32;
        let page = client.jobs(service, state, left, cursor.as_deref()).await?;
        jobs.extend(page.jobs);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    Ok(jobs)
}

fn list(context: &Context, jobs: &[ApiJob]) -> Result<()> {
    output::list(
        context.output,
        jobs,
        &[
            column("ID", |j: &ApiJob| j.id.clone()),
            column("SERVICE", |j| j.service.clone()),
            column("STATE", |j| j.state.as_str().to_owned()),
            column("ATTEMPTS", |j| format!("{}/{}", j.attempts, j.attempts_max)),
            column("QUEUE", |j| ms(j.queue_ms)),
            column("SERVED", |j| ms(j.service_ms)),
            column("MACHINE", |j| dash(j.machine.clone())),
            wide("NODE", |j| dash(j.node.clone())),
            wide("SUBMITTED", |j| j.submitted_at.clone()),
            wide("BYTES IN", |j| j.payload_bytes.to_string()),
            wide("BYTES OUT", |j| dash(j.result_bytes)),
            wide("FAILURE", |j| dash(j.failure.clone())),
        ],
    )
}

fn show(context: &Context, j: &ApiJob) -> Result<()> {
    output::one(
        context.output,
        j,
        &[
            ("id", j.id.clone()),
            ("service", j.service.clone()),
            ("state", j.state.as_str().to_owned()),
            ("attempts", format!("{} of {}", j.attempts, j.attempts_max)),
            ("submitted", j.submitted_at.clone()),
            ("started", dash(j.started_at.clone())),
            ("ended", dash(j.ended_at.clone())),
            ("in queue", ms(j.queue_ms)),
            ("in service", ms(j.service_ms)),
            ("machine", dash(j.machine.clone())),
            ("node", dash(j.node.clone())),
            ("payload", format!("{} bytes", j.payload_bytes)),
            ("result", dash(j.result_bytes.map(|b| format!("{b} bytes")))),
            ("failure", dash(j.failure.clone())),
            ("code", dash(j.failure_code.clone())),
            ("token", dash(j.token.clone())),
            ("deadline", dash(j.deadline.clone())),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_by_jobs_and_by_bytes() {
        let item = |bytes: usize| BatchItem {
            payload: "x".repeat(bytes).into(),
            token: None,
            path: None,
            deadline_ms: None,
        };
        let check = |sizes: Vec<usize>, expect: &[usize]| {
            let items: Vec<_> = sizes.into_iter().map(item).collect();
            let parts: Vec<_> = parts(&items).unwrap().iter().map(|part| part.len()).collect();
            assert_eq!(parts, expect);
        };
        const MIB: usize = 1024 * 1024;
        check(vec![], &[]);
        check(vec![1; 2001], &[1000, 1000, 1]);
        check(vec![MIB; 5], &[3, 2]);
        // One that is larger than a request shall be goes alone: the server says whether it takes it.
        check(vec![1, 5 * MIB, 1], &[1, 1, 1]);
    }
}
