//! `skein api`: the raw escape hatch.

use crate::Context;
use anyhow::Result;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Any request to the API: `skein api GET /v1/nodes`
#[derive(clap::Args)]
pub(crate) struct Api {
    /// GET, POST, PUT or DELETE
    method: http::Method,
    /// Path, from /v1 on
    path: String,
    /// Body from a file, or - for standard input
    #[arg(short, long)]
    file: Option<PathBuf>,
}

impl Api {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let body = self.file.as_deref().map(super::read_input).transpose()?.unwrap_or_default();
        let answer = context.client()?.raw(self.method, &self.path, body.into()).await?;
        std::io::stdout().write_all(&answer)?;
        Ok(ExitCode::SUCCESS)
    }
}
