//! What a bench runs on: a cloud in a folder of its own, and a network for bare machines. Made before, removed after,
//! whatever happens in between.

use crate::error::BenchError;
use crate::floor::Floor;
use crate::http1::Wire;
use crate::options::{Bench, BenchImage, Options, Progress};
use crate::report::{Check, Report};
use crate::{density, dispatch, host, process, start};
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::FutureExt;
use skein_api::{Client, ImageModule, ImagePut, Machine};
use skein_cloud::{Cloud, CloudConfig};
use skein_model::{ImageManifest, ProjectName};
use skein_registry::RecordKey;
use skein_vmm::ImageFiles;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the folder is made. Not `/tmp`, which may lie in memory: what is durable here shall be on a disk.
pub(crate) const FOLDERS: &str = "/var/tmp";
/// Name of the image in the cloud.
pub(crate) const IMAGE: &str = "bench";
/// Between two looks at a state that is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs a bench. `stop` ends it before its time; then everything it had made is removed too.
///
/// # Errors
/// [`BenchError`]; nothing is left behind then either.
pub async fn run(
    bench: Bench,
    options: &Options,
    stop: impl Future<Output = ()>,
    progress: Progress<'_>,
) -> Result<Report, BenchError> {
    let given = bench.count(options.count)?;
    let folder = tempfile::Builder::new()
        .prefix("skein-bench-")
        .tempdir_in(FOLDERS)
        .map_err(BenchError::io(format!("making a folder in {FOLDERS}")))?;
    progress(&format!("bench {bench}: starting a cloud in {}", folder.path().display()));
    let path = utf8(folder.path())?;
    let measured = match Rig::start(options, &path).await {
        Ok(rig) => {
            let checks = until(stop, measure(bench, &rig, given, progress)).await;
            let host = host::host(rig.cloud.parts().driver.accel());
            rig.end().await;
            checks.map(|checks| (host, checks))
        }
        Err(error) => Err(error),
    };
    folder.close().map_err(BenchError::io("removing the folder of the bench"))?;
    let (host, checks) = measured?;
    Ok(Report {
        bench: bench.name(),
        version: env!("CARGO_PKG_VERSION"),
        host,
        checks,
        plots: Vec::new(),
    })
}

/// What the work comes to; a panic of it is an error, and so is `stop`, so that what it stands on can be ended either way.
pub(crate) async fn until<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    tokio::select! {
        found = AssertUnwindSafe(work).catch_unwind() => found.unwrap_or(Err(BenchError::Bug)), // owns all it needs
        () = stop => Err(BenchError::Interrupted),                                              // as the caller says
    }
}

async fn measure(
    bench: Bench,
    rig: &Rig,
    count: u32,
    progress: Progress<'_>,
) -> Result<Vec<Check>, BenchError> {
    match bench {
        Bench::Start => start::measure(rig, count, progress).await,
        Bench::Density => density::measure(rig, count, progress).await,
        Bench::Dispatch => dispatch::measure(rig, count, progress).await,
        // They have ways of their own, without a cloud.
        Bench::Plan | Bench::Net | Bench::Link => Ok(vec![]),
    }
}

pub(crate) fn utf8(path: &Path) -> Result<Utf8PathBuf, BenchError> {
    Utf8PathBuf::from_path_buf(path.to_owned())
        .map_err(|path| BenchError::unexpected(format!("{} is not UTF-8", path.display())))
}

/// A cloud of one node, and a network for bare machines.
pub(crate) struct Rig {
    pub(crate) cloud: Cloud,
    pub(crate) client: Client,
    pub(crate) floor: Floor,
    pub(crate) port: u16,
}

impl Rig {
    async fn start(options: &Options, folder: &Utf8Path) -> Result<Self, BenchError> {
        let cloud = Cloud::start(CloudConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            accel: options.accel,
            qemu: options.qemu.clone(),
            ..CloudConfig::new(folder)
        });
        let cloud = cloud.await?;
        match Self::complete(&cloud, options, folder).await {
            Ok((client, floor, port)) => Ok(Self { cloud, client, floor, port }),
            Err(error) => {
                cloud.stop_all().await;
                Err(error)
            }
        }
    }

    async fn complete(
        cloud: &Cloud,
        options: &Options,
        folder: &Utf8Path,
    ) -> Result<(Client, Floor, u16), BenchError> {
        let client = Client::new(cloud.target());
        let image = upload(&client, &options.image).await?;
        let (manifest, files) = stored(cloud).await?;
        let floor = Floor::open(crate::floor::Shape {
            name: format!("{}-bare", cloud.id()),
            program: options.qemu.clone(),
            accel: cloud.parts().driver.accel(),
            files,
            memory_mib: manifest.memory.get(),
            capacity: manifest.capacity,
            port: manifest.port,
            log: folder.join("bare.log"),
        });
        Ok((client, floor.await?, image))
    }

    async fn end(self) {
        self.cloud.stop_all().await;
        self.floor.close().await;
    }

    /// A connection to the API.
    pub(crate) async fn wire(&self) -> Result<Wire, BenchError> {
        let target = self.cloud.target();
        let address = target.url.trim_start_matches("http://");
        let address: SocketAddr = address
            .parse()
            .map_err(|_| BenchError::unexpected(format!("the API's address is {address}")))?;
        Wire::connect(address, &target.token).await
    }

    /// The processes of the cloud's machines.
    pub(crate) fn machine_processes(&self) -> Vec<u32> {
        process::children().into_iter().collect()
    }

    /// Waits until the machines are as `enough` wants them.
    pub(crate) async fn machines_until<T>(
        &self,
        what: &str,
        waited: Duration,
        enough: impl Fn(&[Machine]) -> Option<T>,
    ) -> Result<T, BenchError> {
        let begun = Instant::now();
        loop {
            let machines = self.client.machines(false).await?;
            if let Some(found) = enough(&machines) {
                return Ok(found);
            }
            if begun.elapsed() > waited {
                return Err(BenchError::Deadline { what: what.to_owned(), waited });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until no machine of the cloud runs, nor its process.
    pub(crate) async fn machines_gone(&self, waited: Duration) -> Result<(), BenchError> {
        let none = |machines: &[Machine]| {
            (machines.is_empty() && self.machine_processes().is_empty()).then_some(())
        };
        self.machines_until("the end of all machines", waited, none).await
    }
}

/// Hands the image to the cloud, as `skein image import` does; the port its machines listen on.
async fn upload(client: &Client, image: &BenchImage) -> Result<u16, BenchError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(BenchError::io(format!("reading {}", path.display())))
    };
    let kernel = client.put_blob(read(&image.kernel)?.into()).await?.id;
    let mut modules = Vec::with_capacity(image.modules.len());
    for module in &image.modules {
        let blob = client.put_blob(read(&module.file)?.into()).await?.id;
        modules.push(ImageModule { path: module.path.clone(), blob, bytes: 0 });
    }
    let put = ImagePut {
        kernel,
        modules,
        memory_mib: image.memory_mib,
        capacity: image.capacity,
        port: image.port,
    };
    Ok(client.put_image(IMAGE, &put).await?.port)
}

/// The image as the cloud keeps it: the baseline boots the very same files.
async fn stored(cloud: &Cloud) -> Result<(ImageManifest, ImageFiles), BenchError> {
    let parts = cloud.parts();
    let name = IMAGE.parse().map_err(|_| BenchError::unexpected("the image's name is none"))?;
    let key = RecordKey::Image(ProjectName::default(), name).key();
    let entry = parts.state.get(&key).await;
    let entry = entry.map_err(|error| BenchError::unexpected(error.to_string()))?;
    let manifest =
        entry.and_then(|entry| serde_json::from_slice::<ImageManifest>(&entry.value).ok());
    let Some(manifest) = manifest else {
        return Err(BenchError::unexpected("the cloud does not know the image it was given"));
    };
    let files = parts.images.files(&manifest);
    let files = files.map_err(|error| BenchError::unexpected(error.to_string()))?;
    Ok((manifest, files))
}
