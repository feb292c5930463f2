//! Images and the blobs they are made of.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, field, parse};
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::TryStreamExt;
use skein_api::{BlobReply, Code, ErrorBody, Image, ImagePut};
use skein_fabric::{Compare, Txn};
use skein_model::{BlobId, ImageManifest, ImageName, MemoryMib, ProjectName};
use skein_registry::{RecordKey, Stored};
use skein_shell::{now, report};
use skein_vmm::{ImageError, ImageImport, ImportModule};
use std::io;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Largest blob of an image, bytes: a kernel or a data module.
const BLOB_MAX: u64 = 1024 * 1024 * 1024;

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let message = report::chain(&error);
        match error.code() {
            "DISK_FULL" => Self::new(Code::DiskFull, message),
            "IMAGE_STORE_FAILED" | "BLOB_DAMAGED" => Self::new(Code::Internal, message),
            "IMAGE_NOT_FOUND" => Self::new(Code::ImageUnknown, message),
            "BLOB_MISSING" | "IMAGE_FILE_MISSING" => Self::new(Code::BlobUnknown, message),
            "IMAGE_TOO_LARGE" => Self::new(Code::PayloadTooLarge, message),
            code => {
                let error = skein_api::ApiError::new(Code::ImageInvalid, message);
                Self(error.with("reason", code))
            }
        }
    }
}

/// Runs what blocks on files away from the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Failure::new(Code::Internal, error.to_string())),
    }
}

/// Store bytes of an image under their SHA-256. Repeating it is harmless; what no image uses is removed after a day
#[utoipa::path(post, path = "/v1/blobs", tag = "images",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = BlobReply), (status = 413, description = "PAYLOAD_TOO_LARGE", body = ErrorBody),
        (status = 507, description = "DISK_FULL", body = ErrorBody)))]
pub(crate) async fn put_blob(
    State(app): State<App>,
    body: Stream,
) -> Answer<(StatusCode, Json<BlobReply>)> {
    let source = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let source = SyncIoBridge::new(Box::pin(source));
    let images = app.images.clone();
    let (id, bytes) = blocking(move || images.put_blob(source, BLOB_MAX)).await?;
    Ok((StatusCode::CREATED, Json(BlobReply { id: id.to_string(), bytes })))
}

/// List images
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = [Image])))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Image>> {
    Json(app.mirror.read(|view| {
        let own = view.images.iter().filter(|((project, _), _)| *project == scope.project);
        own.map(|(_, stored)| Image::from(&*stored.value)).collect()
    }))
}

fn found(app: &App, project: &ProjectName, name: &str) -> Answer<Stored<ImageManifest>> {
    let name: ImageName = parse(name, Code::ImageUnknown)?;
    let key = (project.clone(), name);
    let found = app.mirror.read(|view| view.images.get(&key).cloned());
    found.ok_or_else(|| Failure::new(Code::ImageUnknown, format!("image {} does not exist", key.1)))
}

/// Show one image
#[utoipa::path(get, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Name")),
    responses((status = 200, body = Image), (status = 404, description = "IMAGE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<Image>> {
    Ok(Json(Image::from(&*found(&app, &scope.project, &name)?.value)))
}

/// Make an image of blobs, or replace it: machines of services that use it are replaced one after the other
#[utoipa::path(put, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Name")), request_body = ImagePut,
    responses((status = 200, body = Image), (status = 404, description = "BLOB_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID, IMAGE_INVALID with the reason", body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(image): Body<ImagePut>,
) -> Answer<Json<Image>> {
    let memory = image.memory_mib.map(MemoryMib::new).transpose();
    let memory = memory.map_err(|e| Failure::new(Code::Invalid, format!("memory_mib: {e}")))?;
    let kernel: BlobId = field("kernel", &image.kernel)?;
    let mut modules = Vec::with_capacity(image.modules.len());
    for module in image.modules {
        let blob: BlobId = field("modules.blob", &module.blob)?;
        modules.push(ImportModule { path: module.path, file: app.images.blob_path(blob) });
    }
    let import = ImageImport {
        name: field("name", &name)?,
        kernel: app.images.blob_path(kernel),
        modules,
        memory: memory.unwrap_or(MemoryMib::DEFAULT),
        capacity: image.capacity.unwrap_or(1),
        port: image.port.unwrap_or(80),
    };
    let (images, project) = (app.images.clone(), scope.project.clone());
    let manifest = blocking(move || {
        let manifest = images.import(&project, &import, now())?;
        // The archive is built here once, and not when the first machine waits for it.
        images.files(&manifest)?;
        Ok(manifest)
    })
    .await?;
    let key = RecordKey::Image(scope.project.clone(), manifest.name.clone());
    let txn = Txn::new()
        .when(Compare::exists(RecordKey::Project(scope.project.clone()).key()))
        .then(key.put(&manifest)?)
        .then(Used::Project(&scope.project).mark());
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        let message = format!("project {} does not exist", scope.project);
        return Err(Failure::new(Code::ProjectUnknown, message));
    }
    app.mirror.reach(reply.revision).await;
    Ok(Json(Image::from(&manifest)))
}

/// Remove an image that no service uses
#[utoipa::path(delete, path = "/v1/images/{image}", tag = "images",
    params(("image" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "IMAGE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "IMAGE_IN_USE", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let project = scope.project;
    let Stored { value: image, revision } = found(&app, &project, &name)?;
    let unused = Used::Image(&project, &image.name).look(&app).await?;
    let user = app.mirror.read(|view| {
        let mut users = view.services.values().filter(|service| {
            service.value.project == project && service.value.spec.image == image.name
        });
        users.next().map(|s| s.value.spec.name.clone())
    });
    if let Some(user) = user {
        let message = format!("image {name} is used by service {user}");
        return Err(Failure::new(Code::ImageInUse, message));
    }
    let key = RecordKey::Image(project.clone(), image.name.clone()).key();
    let reply = app.state.txn(unused.removal(Txn::new(), &key, revision)).await?;
    if !reply.succeeded {
        let message = format!("image {name} was changed or taken into use at the same time");
        return Err(Failure::new(Code::Unavailable, message));
    }
    app.mirror.reach(reply.revision).await;
    let (images, image) = (app.images.clone(), image.name.clone());
    blocking(move || images.remove(&project, &image)).await?;
    Ok(StatusCode::NO_CONTENT)
}
