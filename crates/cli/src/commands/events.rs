//! `skein events`.

use crate::Context;
use crate::output::{Format, csv_line};
use anyhow::Result;
use skein_api::EventLine;
use std::io::Write;
use std::process::ExitCode;

/// What happened
#[derive(clap::Args)]
pub(crate) struct Events {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Begin after this line; the last 100 lines unless given
    #[arg(long, value_name = "NUMBER")]
    since: Option<u64>,
    /// Only these kinds, such as machine_ready
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// Only those of a service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
}

impl Events {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        let mut since = match self.since {
            Some(since) => since,
            None => client.events(u64::MAX >> 1, 1).await?.next.saturating_sub(100),
        };
        if self.follow {
            let mut stream = client.follow_events(since).await?;
            while let Some(line) = stream.next().await? {
                self.print(context.output, &line)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            let page = client.events(since, 1000).await?;
            for line in &page.events {
                self.print(context.output, line)?;
            }
            if page.events.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            since = page.next;
        }
    }

    fn print(&self, format: Format, line: &EventLine) -> Result<()> {
        let wanted = self.kind.is_empty() || self.kind.iter().any(|k| k == line.event.name());
        let of_service = self.service.is_none() || self.service == line.service;
        if !wanted || !of_service {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        match format {
            Format::Json => writeln!(out, "{}", serde_json::to_string(line)?)?,
            Format::Name => writeln!(out, "{}", line.seq)?,
            Format::Csv => write!(out, "{}", csv(line)?)?,
            Format::Table | Format::Wide => writeln!(out, "{}", text(line)?)?,
        }
        Ok(())
    }
}

/// Number, time, kind, project, service, node, machine, job, and what else there is to it, as JSON.
fn csv(line: &EventLine) -> Result<String> {
    let (seq, more) = (line.seq.to_string(), serde_json::to_string(&line.event)?);
    let subjects = [&line.project, &line.service, &line.node, &line.machine, &line.job];
    let mut cells = vec![seq.as_str(), &line.time, line.event.name()];
    cells.extend(subjects.map(|subject| subject.as_deref().unwrap_or_default()));
    cells.push(&more);
    Ok(csv_line(cells))
}

/// `2026-11-21T20:37:00Z  job_done  search  n1  search-1  01k...  queue_us=12 service_us=340`
pub(crate) fn text(line: &EventLine) -> Result<String> {
    let time = line.time.get(..23).unwrap_or(&line.time);
    let mut text = format!("{time}  {:17}", line.event.name());
    for subject in [&line.service, &line.node, &line.machine, &line.job].into_iter().flatten() {
        text.push_str("  ");
        text.push_str(subject);
    }
    if let serde_json::Value::Object(fields) = serde_json::to_value(&line.event)? {
        for (key, value) in fields.iter().filter(|(key, _)| *key != "kind") {
            match value {
                serde_json::Value::String(words) => text.push_str(&format!("  {words}")),
                other => text.push_str(&format!("  {key}={other}")),
            }
        }
    }
    Ok(text)
}
