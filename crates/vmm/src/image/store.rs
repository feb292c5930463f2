//! Images on disk.
//!
//! ```text
//! ROOT/                     mode 0700: other users reach a file only through a descriptor they are handed
//!   blobs/ab/abcd...        kernels and modules by the SHA-256 of their bytes, mode 0444
//!   archives/1234....cpio   modules of an image as one archive; made when first needed, by their contents
//!   manifests/PROJECT/NAME.json
//! ```
//!
//! A file appears whole or not at all: it is written under another name, synced, renamed, and its
//! directory synced. A blob's name is its content, so writing it twice is harmless, and nothing in
//! the store ever changes in place.

use crate::driver::disk_full;
use crate::image::kernel::{KERNEL_BYTES_MAX, KernelError, check_kernel};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use skein_model::{BlobId, ImageManifest, ImageName, MemoryMib, ModuleRef, ProjectName, Timestamp};
use skein_wire::{ArchiveBuilder, ArchiveError};
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::time::{Duration, SystemTime};
use tempfile::NamedTempFile;

/// Largest sum of an image's modules, bytes: the archive is put together in memory, and a guest
/// holds it in its own.
pub const MODULES_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Modules of one image. 256: they are found by walking the archive.
const MODULES_MAX: usize = 256;
/// Longest manifest, bytes: 256 modules with paths of 255 bytes take less than 128 KiB.
const MANIFEST_BYTES_MAX: u64 = 256 * 1024;
/// What a unikernel needs besides its kernel and modules before it serves anything, bytes: stacks,
/// rings, a little heap.
const GUEST_SPARE_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct ImageImport {
    /// Its name.
    pub name: ImageName,
    /// The kernel: an ELF file with a PVH note.
    pub kernel: Utf8PathBuf,
    /// Its data modules, in the order of the archive.
    pub modules: Vec<ImportModule>,
    /// Memory of its machines unless a service says otherwise.
    pub memory: MemoryMib,
    /// Requests a machine serves at a time, 1 to 1,024.
    pub capacity: u32,
    /// TCP port of its HTTP server, not 0.
    pub port: u16,
}

/// A data module to be imported.
#[derive(Debug, Clone)]
pub struct ImportModule {
    /// Its path inside the machine.
    pub path: String,
    /// Its file on the host.
    pub file: Utf8PathBuf,
}

/// The files a machine of an image is launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFiles {
    /// The kernel.
    pub kernel: Utf8PathBuf,
    /// The archive of its modules; `None` when it has none.
    pub modules: Option<Utf8PathBuf>,
}

/// Something wrong with a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobFault {
    /// A manifest needs it, and it is not there.
    Missing(BlobId),
    /// Its bytes are not those of its name.
    Damaged(BlobId),
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of the store, or one to be imported.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: Utf8PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel cannot boot.
    #[error("{path} is not a kernel that can boot")]
    Kernel {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: KernelError,
    },
    /// A module cannot be in an archive.
    #[error("the modules make no archive")]
    Module(#[from] ArchiveError),
    /// More than the store takes.
    #[error("{what} is too large: {bytes} of at most {bytes_max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// How large.
        bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
    /// Capacity or port out of range.
    #[error("{field} {value} is out of range: {range}")]
    Range {
        /// Which.
        field: &'static str,
        /// What was given.
        value: u32,
        /// What is possible.
        range: &'static str,
    },
    /// Kernel and modules do not fit the memory.
    #[error("kernel and modules need {needed}, and the image's machines have {memory}")]
    MemoryTooSmall {
        /// At least this much.
        needed: MemoryMib,
        /// What was given.
        memory: MemoryMib,
    },
    /// No such image.
    #[error("project {project} has no image {name}")]
    NotFound {
        /// Whose.
        project: ProjectName,
        /// Which.
        name: ImageName,
    },
    /// A blob is not in the store.
    #[error("blob {id} is not in the store")]
    BlobMissing {
        /// Which.
        id: BlobId,
    },
    /// A blob does not hold what it should.
    #[error("blob {id} is damaged")]
    BlobDamaged {
        /// Which.
        id: BlobId,
    },
}

impl ImageError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { source, .. } if disk_full(source) => "DISK_FULL",
            Self::Io { doing: "reading", source, .. }
                if source.kind() == io::ErrorKind::NotFound =>
            {
                "IMAGE_FILE_MISSING"
            }
            Self::Io { .. } => "IMAGE_STORE_FAILED",
            Self::Kernel { source, .. } => source.code(),
            Self::Module(error) => error.code(),
            Self::TooLarge { .. } => "IMAGE_TOO_LARGE",
            Self::Range { .. } => "IMAGE_INVALID",
            Self::MemoryTooSmall { .. } => "IMAGE_MEMORY_TOO_SMALL",
            Self::NotFound { .. } => "IMAGE_NOT_FOUND",
            Self::BlobMissing { .. } => "BLOB_MISSING",
            Self::BlobDamaged { .. } => "BLOB_DAMAGED",
        }
    }
}

type Result<T> = std::result::Result<T, ImageError>;

fn failed(doing: &'static str, path: &Utf8Path) -> impl Fn(io::Error) -> ImageError {
    move |source| ImageError::Io { doing, path: path.to_owned(), source }
}

/// A store of images. One process may own it at a time; clones of the handle share it.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: Utf8PathBuf,
}

impl ImageStore {
    /// Opens the store at `root`, and makes it if there is none.
    ///
    /// # Errors
    /// [`ImageError::Io`]
    pub fn open(root: &Utf8Path) -> Result<Self> {
        for dir in ["blobs", "archives", "manifests"] {
            make_dir(&root.join(dir))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Checks an image's parts and takes them in. Importing the same again is harmless; an image of
    /// the same name is replaced, and machines that run it are not affected.
    ///
    /// # Errors
    /// [`ImageError`]; the image of that name is then what it was.
    pub fn import(
        &self,
        project: &ProjectName,
        import: &ImageImport,
        now: Timestamp,
    ) -> Result<ImageManifest> {
        let range = |field, value, range| ImageError::Range { field, value, range };
        if !(1..=1024).contains(&import.capacity) {
            return Err(range("capacity", import.capacity, "1 to 1024"));
        }
        if import.port == 0 {
            return Err(range("port", 0, "1 to 65535"));
        }
        let kernel_path = &import.kernel;
        let kernel = read_file(kernel_path, "the kernel", KERNEL_BYTES_MAX)?;
        let info = check_kernel(&kernel)
            .map_err(|source| ImageError::Kernel { path: kernel_path.clone(), source })?;
        let modules = self.import_modules(&import.modules)?;
        let modules_bytes: u64 = modules.iter().map(|module| module.bytes).sum();
        fits(info.memory_end + modules_bytes + GUEST_SPARE_BYTES, import.memory)?;
        let kernel_bytes = kernel.len() as u64;
        let (kernel, _) = self.put_blob(kernel.as_slice(), KERNEL_BYTES_MAX)?;
        let manifest = ImageManifest {
            name: import.name.clone(),
            kernel,
            kernel_bytes,
            modules,
            memory: import.memory,
            capacity: import.capacity,
            port: import.port,
            created_at: now,
        };
        self.put(project, &manifest)?;
        Ok(manifest)
    }

    fn import_modules(&self, modules: &[ImportModule]) -> Result<Vec<ModuleRef>> {
        if modules.len() > MODULES_MAX {
            let (bytes, bytes_max) = (modules.len() as u64, MODULES_MAX as u64);
            return Err(ImageError::TooLarge { what: "the number of modules", bytes, bytes_max });
        }
        // Paths are checked before anything is copied.
        let mut paths = ArchiveBuilder::new();
        for module in modules {
            paths.add(&module.path, &[])?;
        }
        let mut left = MODULES_BYTES_MAX;
        let mut refs = Vec::with_capacity(modules.len());
        for ImportModule { path, file } in modules {
            let source = File::open(file).map_err(failed("reading", file))?;
            let (blob, bytes) = self.put_blob(source, left)?;
            left -= bytes;
            refs.push(ModuleRef { path: path.clone(), blob, bytes });
        }
        Ok(refs)
    }

    /// Takes a blob in, at most `bytes_max` bytes; the answer is its address and its length.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`], [`ImageError::Io`]
    pub fn put_blob(&self, mut source: impl Read, bytes_max: u64) -> Result<(BlobId, u64)> {
        let blobs = self.root.join("blobs");
        let write = failed("writing", &blobs);
        let mut file = NamedTempFile::new_in(&blobs).map_err(&write)?;
        let (id, bytes) =
            hash_while(&mut source, bytes_max, |piece| file.write_all(piece).map_err(&write))?;
        let path = self.blob_path(id);
        if path.exists() {
            // Wanted again just now: the sweep leaves it alone.
            let touched = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            touched.map_err(failed("touching", &path))?;
        } else {
            publish(file, &path)?;
        }
        Ok((id, bytes))
    }

    /// Where a blob is, whether it is there or not.
    pub fn blob_path(&self, id: BlobId) -> Utf8PathBuf {
        let name = id.to_string();
        self.root.join("blobs").join(&name[..2]).join(&name)
    }

    /// Those of an image's blobs that are not in the store: what a node must fetch before it
    /// launches the image.
    pub fn missing(&self, manifest: &ImageManifest) -> Vec<BlobId> {
        let absent = |id: &BlobId| !self.blob_path(*id).exists();
        blobs(manifest).filter(absent).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The files to launch a machine of this image with. The archive of its modules is made when it
    /// is first asked for.
    ///
    /// # Errors
    /// [`ImageError::BlobMissing`], [`ImageError::BlobDamaged`], [`ImageError::Io`]
    pub fn files(&self, manifest: &ImageManifest) -> Result<ImageFiles> {
        if let Some(&id) = self.missing(manifest).first() {
            return Err(ImageError::BlobMissing { id });
        }
        let kernel = self.blob_path(manifest.kernel);
        if manifest.modules.is_empty() {
            return Ok(ImageFiles { kernel, modules: None });
        }
        let path = self.root.join("archives").join(format!("{}.cpio", archive_key(manifest)));
        if !path.exists() {
            self.build_archive(manifest, &path)?;
        }
        Ok(ImageFiles { kernel, modules: Some(path) })
    }

    fn build_archive(&self, manifest: &ImageManifest, path: &Utf8Path) -> Result<()> {
        let mut archive = ArchiveBuilder::new();
        let mut left = MODULES_BYTES_MAX;
        for module in &manifest.modules {
            let bytes = read_file(&self.blob_path(module.blob), "the modules", left)?;
            left -= bytes.len() as u64;
            if BlobId::from_digest(Sha256::digest(&bytes).into()) != module.blob {
                return Err(ImageError::BlobDamaged { id: module.blob });
            }
            archive.add(&module.path, &bytes)?;
        }
        let archives = self.root.join("archives");
        let write = failed("writing", path);
        let mut file = NamedTempFile::new_in(&archives).map_err(&write)?;
        file.write_all(&archive.finish()).map_err(&write)?;
        publish(file, path)
    }

    /// Stores a manifest, in place of one of the same name.
    ///
    /// # Errors
    /// [`ImageError::Io`]
    pub fn put(&self, project: &ProjectName, manifest: &ImageManifest) -> Result<()> {
        let path = self.manifest_path(project, &manifest.name);
        let dir = self.root.join("manifests").join(project.as_str());
        make_dir(&dir)?;
        let write = failed("writing", &path);
        let bytes = serde_json::to_vec_pretty(manifest).map_err(|e| write(io::Error::other(e)))?;
        let mut file = NamedTempFile::new_in(&dir).map_err(&write)?;
        file.write_all(&bytes).map_err(&write)?;
        publish(file, &path)
    }

    /// An image's manifest.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Io`]
    pub fn get(&self, project: &ProjectName, name: &ImageName) -> Result<ImageManifest> {
        let path = self.manifest_path(project, name);
        if !path.exists() {
            return Err(ImageError::NotFound { project: project.clone(), name: name.clone() });
        }
        let bytes = read_file(&path, "the manifest", MANIFEST_BYTES_MAX)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| failed("decoding", &path)(io::Error::other(error)))
    }

    /// The images of a project, by name.
    ///
    /// # Errors
    /// [`ImageError::Io`]
    pub fn list(&self, project: &ProjectName) -> Result<Vec<ImageManifest>> {
        let dir = self.root.join("manifests").join(project.as_str());
        let mut images = Vec::new();
        for name in names(&dir)? {
            if let Some(name) = name.strip_suffix(".json").and_then(|name| name.parse().ok()) {
                images.push(self.get(project, &name)?);
            }
        }
        Ok(images)
    }

    /// Removes an image. Its blobs go with the next [`Self::sweep`] if no other image has them;
    /// machines that run it are not affected.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Io`]
    pub fn remove(&self, project: &ProjectName, name: &ImageName) -> Result<()> {
        let path = self.manifest_path(project, name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ImageError::NotFound { project: project.clone(), name: name.clone() })
            }
            Err(error) => Err(failed("removing", &path)(error)),
        }
    }

    /// Reads every blob that a manifest needs and compares it with its name. Takes as long as
    /// reading them all.
    ///
    /// # Errors
    /// [`ImageError::Io`]
    pub fn verify(&self) -> Result<Vec<BlobFault>> {
        let mut faults = Vec::new();
        for id in self.wanted()?.0 {
            let path = self.blob_path(id);
            match File::open(&path) {
                Ok(file) if hash_while(&file, u64::MAX, |_| Ok(()))?.0 == id => {}
                Ok(_) => faults.push(BlobFault::Damaged(id)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    faults.push(BlobFault::Missing(id));
                }
                Err(error) => return Err(failed("reading", &path)(error)),
            }
        }
        Ok(faults)
    }

    /// Removes blobs and archives that no manifest needs and that are older than `age_min`, which
    /// must be longer than an import takes; the answer is how many files went.
    ///
    /// # Errors
    /// [`ImageError::Io`]
    pub fn sweep(&self, age_min: Duration) -> Result<usize> {
        let (blobs, archives) = self.wanted()?;
        let archive_names: BTreeSet<_> =
            archives.into_iter().map(|key| format!("{key}.cpio")).collect();
        let mut removed = 0;
        for shard in names(&self.root.join("blobs"))? {
            let dir = self.root.join("blobs").join(&shard);
            if shard.len() == 2 {
                let unwanted = |name: &str| name.parse().is_ok_and(|id| !blobs.contains(&id));
                removed += remove_old(&dir, age_min, unwanted)?;
            }
        }
        let unwanted = |name: &str| name.ends_with(".cpio") && !archive_names.contains(name);
        removed += remove_old(&self.root.join("archives"), age_min, unwanted)?;
        // What an import that died half-way left.
        let temporary = |name: &str| name.starts_with(".tmp");
        for dir in ["blobs", "archives"] {
            removed += remove_old(&self.root.join(dir), age_min, temporary)?;
        }
        Ok(removed)
    }

    /// What the manifests of all projects need: blobs, and keys of archives.
    fn wanted(&self) -> Result<(BTreeSet<BlobId>, BTreeSet<BlobId>)> {
        let (mut wanted, mut archives) = (BTreeSet::new(), BTreeSet::new());
        for project in names(&self.root.join("manifests"))? {
            let Ok(project) = project.parse() else { continue };
            for manifest in self.list(&project)? {
                wanted.extend(blobs(&manifest));
                archives.insert(archive_key(&manifest));
            }
        }
        Ok((wanted, archives))
    }

    fn manifest_path(&self, project: &ProjectName, name: &ImageName) -> Utf8PathBuf {
        self.root.join("manifests").join(project.as_str()).join(format!("{name}.json"))
    }
}

fn blobs(manifest: &ImageManifest) -> impl Iterator<Item = BlobId> {
    std::iter::once(manifest.kernel).chain(manifest.modules.iter().map(|module| module.blob))
}

/// Names an archive by what is in it: paths and contents, in order.
fn archive_key(manifest: &ImageManifest) -> BlobId {
    let mut hash = Sha256::new();
    for module in &manifest.modules {
        // No path holds a NUL.
        hash.update(module.path.as_bytes());
        hash.update([0]);
        hash.update(module.blob.digest());
    }
    BlobId::from_digest(hash.finalize().into())
}

fn fits(bytes: u64, memory: MemoryMib) -> Result<()> {
    let mib = u32::try_from(bytes.div_ceil(1024 * 1024)).unwrap_or(u32::MAX);
    if mib <= memory.get() {
        return Ok(());
    }
    let needed = MemoryMib::new(mib).map_err(|_| ImageError::TooLarge {
        what: "kernel and modules",
        bytes,
        bytes_max: MODULES_BYTES_MAX,
    })?;
    Err(ImageError::MemoryTooSmall { needed, memory })
}

/// Reads `source` to its end, at most `bytes_max` bytes, and hands each piece to `sink`; the answer
/// is what it was.
fn hash_while(
    mut source: impl Read,
    bytes_max: u64,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<(BlobId, u64)> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let read = match source.read(&mut buffer) {
            Ok(0) => return Ok((BlobId::from_digest(hash.finalize().into()), bytes)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed("reading", Utf8Path::new("the source"))(error)),
        };
        bytes += read as u64;
        if bytes > bytes_max {
            return Err(ImageError::TooLarge { what: "a part of the image", bytes, bytes_max });
        }
        hash.update(&buffer[..read]);
        sink(&buffer[..read])?;
    }
}

fn read_file(path: &Utf8Path, what: &'static str, bytes_max: u64) -> Result<Vec<u8>> {
    let read = failed("reading", path);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(&read)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(&read)?;
    let length = bytes.len() as u64;
    if length > bytes_max {
        return Err(ImageError::TooLarge { what, bytes: length, bytes_max });
    }
    Ok(bytes)
}

/// Gives a finished file its name. After a crash it is there whole, or not at all.
fn publish(file: NamedTempFile, path: &Utf8Path) -> Result<()> {
    let write = failed("writing", path);
    let dir = path.parent().unwrap_or(path);
    make_dir(dir)?;
    file.as_file().set_permissions(Permissions::from_mode(0o444)).map_err(&write)?;
    file.as_file().sync_all().map_err(&write)?;
    file.persist(path).map_err(|error| write(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(&write)
}

fn make_dir(path: &Utf8Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("making", path))?;
    let parent = path.parent().unwrap_or(path);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("making", path))
}

/// Names in a directory, sorted; none if it is not there.
fn names(dir: &Utf8Path) -> Result<Vec<String>> {
    let read = failed("reading", dir);
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(read(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(&read)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn remove_old(dir: &Utf8Path, age_min: Duration, chosen: impl Fn(&str) -> bool) -> Result<usize> {
    let now = SystemTime::now();
    let mut removed = 0;
    for name in names(dir)?.into_iter().filter(|name| chosen(name)) {
        let path = dir.join(name);
        let modified = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
        // A file without an age, or from the future, is young.
        let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
        if age.is_some_and(|age| age >= age_min) {
            std::fs::remove_file(&path).map_err(failed("removing", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests;
