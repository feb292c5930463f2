//! `skein image`.

use crate::Context;
use crate::image_build::{self, Bundle};
use crate::output::{self, column, wide};
use anyhow::{Context as _, Result, bail};
use skein_api::{Client, Image as ApiImage, ImageModule, ImagePut};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Images: what machines boot
#[derive(clap::Subcommand)]
pub(crate) enum Image {
    /// Write a new service of a few lines into a folder, to begin with
    Init {
        /// Folder to make
        path: PathBuf,
    },
    /// Build a service's machine image, and import it
    Build {
        /// Folder of the service: Cargo.toml and skein.toml
        path: PathBuf,
        /// Write the image into this folder instead of importing it
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        /// Say nothing but errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Import an image: a folder that `image build --to` wrote, or an ELF file with a PVH note
    Import {
        /// The folder or file
        path: PathBuf,
        /// Name; the folder's own, or the file's name, unless given
        #[arg(long)]
        name: Option<String>,
        /// Data module of an ELF file
        #[arg(long = "module", value_name = "PATH=FILE")]
        modules: Vec<String>,
        /// Memory of a machine, MiB
        #[arg(long, value_name = "MIB")]
        memory: Option<u32>,
        /// Requests a machine serves at a time
        #[arg(long)]
        capacity: Option<u32>,
        /// TCP port of its HTTP server
        #[arg(long)]
        port: Option<u16>,
    },
    /// List images
    Ls,
    /// Remove images
    Rm {
        /// Names of images
        #[arg(required = true)]
        images: Vec<String>,
    },
}

impl Image {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Init { path } => {
                image_build::init(&path)?;
                eprintln!("wrote {}; build it with: skein image build {0}", path.display());
            }
            Self::Build { path, to, quiet } => {
                let bundle = image_build::build(&path, quiet)?;
                match to {
                    Some(folder) => bundle.write(&folder)?,
                    None => {
                        let image = upload(&context.client()?, &bundle).await?;
                        writeln!(std::io::stdout(), "{}", image.name)?;
                    }
                }
            }
            Self::Import { path, name, modules, memory, capacity, port } => {
                let mut bundle = if path.is_dir() {
                    Bundle::read(&path)?
                } else {
                    Bundle::of_elf(&path, &modules)?
                };
                bundle.name = name.unwrap_or(bundle.name);
                bundle.memory_mib = memory.or(bundle.memory_mib);
                bundle.capacity = capacity.or(bundle.capacity);
                bundle.port = port.or(bundle.port);
                let image = upload(&context.client()?, &bundle).await?;
                writeln!(std::io::stdout(), "{}", image.name)?;
            }
            Self::Ls => list(context, &context.client()?.images().await?)?,
            Self::Rm { images } => {
                let client = context.client()?;
                for image in images {
                    client.remove_image(&image).await?;
                    writeln!(std::io::stdout(), "{image}")?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Uploads an image: its blobs, then what it is made of.
pub(crate) async fn upload(client: &Client, bundle: &Bundle) -> Result<ApiImage> {
    let kernel = put(client, &bundle.kernel).await?;
    let mut modules = Vec::with_capacity(bundle.modules.len());
    for (path, file) in &bundle.modules {
        let blob = put(client, file).await?;
        modules.push(ImageModule { path: path.clone(), blob, bytes: 0 });
    }
    let image = ImagePut {
        kernel,
        modules,
        memory_mib: bundle.memory_mib,
        capacity: bundle.capacity,
        port: bundle.port,
    };
    Ok(client.put_image(&bundle.name, &image).await?)
}

async fn put(client: &Client, file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    if bytes.is_empty() {
        bail!("{} is empty", file.display());
    }
    Ok(client.put_blob(bytes.into()).await?.id)
}

fn list(context: &Context, images: &[ApiImage]) -> Result<()> {
    output::list(
        context.output,
        images,
        &[
            column("NAME", |i: &ApiImage| i.name.clone()),
            column("KERNEL", |i| format!("{} KiB", i.kernel_bytes.div_ceil(1024))),
            column("MODULES", |i| {
                let bytes: u64 = i.modules.iter().map(|m| m.bytes).sum();
                format!("{} ({} KiB)", i.modules.len(), bytes.div_ceil(1024))
            }),
            column("MEMORY", |i| format!("{} MiB", i.memory_mib)),
            column("CAPACITY", |i| i.capacity.to_string()),
            column("CREATED", |i| i.created_at.get(..19).unwrap_or_default().to_owned()),
            wide("PORT", |i| i.port.to_string()),
            wide("ID", |i| i.kernel.clone()),
        ],
    )
}
