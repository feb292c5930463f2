//! `skein bench`.

use crate::Context;
use anyhow::Result;
use std::process::ExitCode;

/// Measure, beside what you would pick instead
#[derive(clap::Args)]
pub(crate) struct Bench {}

impl Bench {
    pub(crate) async fn run(self, _: &Context) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
