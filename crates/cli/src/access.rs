//! Where the server is, and the token to show it.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use skein_api::Target;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Name of the file, in the state folder of a cloud and in the user's configuration folder.
pub(crate) const FILE: &str = "access.json";

/// The content of an access file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Access {
    url: String,
    token: String,
}

/// What the command line and the environment say about it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct AccessArgs {
    /// Address of the server, http://HOST:PORT; needs a token too
    #[arg(long, global = true, env = "SKEIN_URL", value_name = "URL", help_heading = "Server")]
    url: Option<String>,
    /// Token to show the server
    #[arg(
        long,
        global = true,
        env = "SKEIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        help_heading = "Server"
    )]
    token: Option<String>,
    /// File with address and token, as `skein up` writes it into its state folder
    #[arg(long, global = true, env = "SKEIN_ACCESS", value_name = "FILE", help_heading = "Server")]
    access: Option<PathBuf>,
}

impl AccessArgs {
    /// The target: flags and environment first, then the user's file, then that of a cloud on this machine.
    pub(crate) fn target(&self, default_state: &Path) -> Result<Target> {
        if let (Some(url), Some(token)) = (&self.url, &self.token) {
            return target(Access { url: url.clone(), token: token.clone() });
        }
        let home = home::home_dir().map(|home| home.join(".config/skein").join(FILE));
        let places: Vec<PathBuf> = match &self.access {
            Some(file) => vec![file.clone()],
            None => home.into_iter().chain([default_state.join(FILE)]).collect(),
        };
        // A file that cannot be looked at is there for all this user can tell: reading it says why not.
        let there = |place: &&PathBuf| {
            place.symlink_metadata().err().is_none_or(|e| e.kind() == ErrorKind::PermissionDenied)
        };
        let Some(file) = places.iter().find(there) else {
            let looked: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
            bail!(
                "no server is known: start one with `skein up`, or give --access FILE (looked for {})",
                looked.join(", ")
            );
        };
        let text = fs::read_to_string(file).with_context(|| {
            format!("reading {} (it belongs to whoever ran `skein up`)", file.display())
        })?;
        let access: Access =
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
        target(Access {
            url: self.url.clone().unwrap_or(access.url),
            token: self.token.clone().unwrap_or(access.token),
        })
    }
}

fn target(access: Access) -> Result<Target> {
    let url = access.url.trim_end_matches('/').to_owned();
    if !url.starts_with("http://") {
        bail!("the address {url:?} must begin with http://");
    }
    Ok(Target { url, token: access.token })
}

/// Where a cloud is and how to get in, in lines for people. The link that contains the token only for a terminal: journals
/// and logs of builds keep what they are told.
pub(crate) fn told(target: &Target, file: &Path, to_terminal: bool) -> String {
    let (url, file) = (&target.url, file.display());
    let link = if to_terminal {
        format!("page, open     {url}/#token={}\n", target.token)
    } else {
        String::new()
    };
    let holds = if to_terminal { "" } else { "   (holds the token)" };
    format!("API and page   {url}\n{link}access file    {file}{holds}")
}

/// Writes the access file of a cloud, readable by its owner only, in one step.
pub(crate) fn write(folder: &Path, target: &Target) -> Result<PathBuf> {
    let file = folder.join(FILE);
    let draft = folder.join(format!("{FILE}.draft"));
    let access = Access { url: target.url.clone(), token: target.token.clone() };
    let write = || -> Result<()> {
        let _ = fs::remove_file(&draft);
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        out.write_all(serde_json::to_string_pretty(&access)?.as_bytes())?;
        out.sync_all()?;
        Ok(fs::rename(&draft, &file)?)
    };
    write().with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}
