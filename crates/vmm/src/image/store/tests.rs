//! The store on a real disk, and on one that is full.

use super::*;
use crate::TinyGuest;
use skein_wire::Archive;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

struct Bench {
    dir: Arc<tempfile::TempDir>,
    store: ImageStore,
    project: ProjectName,
}

impl Bench {
    fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("directory"));
        let root = Utf8Path::from_path(dir.path()).expect("UTF-8").join("images");
        Self {
            store: ImageStore::open(&root).expect("store"),
            dir,
            project: ProjectName::default(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> Utf8PathBuf {
        let path = Utf8Path::from_path(self.dir.path()).expect("UTF-8").join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    }

    fn plan(&self, modules: &[(&str, &[u8])]) -> ImageImport {
        let modules = modules.iter().enumerate().map(|(i, (path, bytes))| ImportModule {
            path: (*path).to_owned(),
            file: self.file(&format!("module-{i}"), bytes),
        });
        ImageImport {
            name: "echo".parse().expect("name"),
            modules: modules.collect(),
            kernel: self.file("kernel", &TinyGuest::new().exit(0x10).elf()),
            memory: MemoryMib::DEFAULT,
            capacity: 4,
            port: 80,
        }
    }

    fn import(&self, plan: &ImageImport) -> Result<ImageManifest> {
        self.store.import(&self.project, plan, Timestamp::from_micros(5))
    }
}

#[test]
fn an_image_from_import_to_removal() {
    let bench = Bench::new();
    let plan = bench.plan(&[("data/cities", b"abc"), ("empty", b"")]);
    let manifest = bench.import(&plan).expect("imported");
    assert_eq!(bench.import(&plan).expect("again"), manifest);
    assert_eq!(manifest.modules[0].bytes, 3);
    let Bench { store, project, .. } = &bench;
    assert_eq!(store.get(project, &plan.name).expect("found"), manifest);
    assert_eq!(store.list(project).expect("listed"), std::slice::from_ref(&manifest));

    let files = store.files(&manifest).expect("files");
    let archive = std::fs::read(files.modules.as_ref().expect("archive")).expect("read");
    let archive = Archive::new(&archive).expect("archive");
    assert_eq!(archive.get("data/cities"), Some(b"abc".as_slice()));
    assert_eq!(archive.get("empty"), Some(b"".as_slice()));
    for path in [&files.kernel, files.modules.as_ref().expect("archive")] {
        assert_eq!(std::fs::metadata(path).expect("metadata").mode() & 0o777, 0o444, "{path}");
    }
    assert_eq!(std::fs::metadata(&store.root).expect("metadata").mode() & 0o777, 0o700);
    let made = std::fs::metadata(files.modules.as_ref().expect("archive")).expect("metadata").ino();
    let again = store.files(&manifest).expect("files").modules.expect("archive");
    assert_eq!(std::fs::metadata(again).expect("metadata").ino(), made, "made once");

    assert_eq!(store.sweep(Duration::ZERO).expect("swept"), 0);
    store.remove(project, &plan.name).expect("removed");
    assert_eq!(store.remove(project, &plan.name).expect_err("gone").code(), "IMAGE_NOT_FOUND");
    assert_eq!(store.get(project, &plan.name).expect_err("gone").code(), "IMAGE_NOT_FOUND");
    assert_eq!(store.sweep(Duration::from_secs(3600)).expect("swept"), 0, "too young");
    assert_eq!(store.sweep(Duration::ZERO).expect("swept"), 4, "three blobs, one archive");
    assert_eq!(store.files(&manifest).expect_err("gone").code(), "BLOB_MISSING");
    assert_eq!(store.missing(&manifest).len(), 3);
}

#[test]
fn an_image_that_cannot_be_is_refused() {
    let bench = Bench::new();
    let check = |change: &dyn Fn(&mut ImageImport), expect: &str| {
        let mut plan = bench.plan(&[("a", b"x")]);
        change(&mut plan);
        assert_eq!(bench.import(&plan).expect_err(expect).code(), expect);
        assert_eq!(bench.store.list(&bench.project).expect("listed"), []);
    };
    let text = bench.file("text", b"#!/bin/sh\n");
    check(&|plan| plan.kernel = text.clone(), "IMAGE_NOT_ELF");
    check(&|plan| plan.kernel = "/no/such".into(), "IMAGE_FILE_MISSING");
    check(&|plan| plan.modules[0].file = "/no/such".into(), "IMAGE_FILE_MISSING");
    check(&|plan| plan.modules[0].path = "../etc/passwd".into(), "MODULE_PATH_INVALID");
    check(&|plan| plan.modules.push(plan.modules[0].clone()), "MODULE_PATH_INVALID");
    check(&|plan| plan.modules = vec![plan.modules[0].clone(); 300], "IMAGE_TOO_LARGE");
    check(&|plan| plan.capacity = 0, "IMAGE_INVALID");
    check(&|plan| plan.port = 0, "IMAGE_INVALID");
    let big = bench.file("big", &vec![0; 20 << 20]);
    check(&|plan| plan.modules[0].file = big.clone(), "IMAGE_MEMORY_TOO_SMALL");
}

#[test]
fn damage_is_found() {
    let bench = Bench::new();
    let manifest = bench.import(&bench.plan(&[("a", b"abc"), ("b", b"def")])).expect("imported");
    assert_eq!(bench.store.verify().expect("verified"), []);
    let [a, b] = [manifest.modules[0].blob, manifest.modules[1].blob];
    let path = bench.store.blob_path(a);
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("mode");
    std::fs::write(&path, b"abX").expect("damaged");
    std::fs::remove_file(bench.store.blob_path(b)).expect("lost");
    let mut faults = bench.store.verify().expect("verified");
    faults.sort_by_key(|fault| matches!(fault, BlobFault::Missing(_)));
    assert_eq!(faults, [BlobFault::Damaged(a), BlobFault::Missing(b)]);
    let (id, bytes) = bench.store.put_blob(&b"def"[..], 3).expect("put back");
    assert_eq!((id, bytes), (b, 3));
    assert_eq!(bench.store.files(&manifest).expect_err("damaged").code(), "BLOB_DAMAGED");
    assert_eq!(bench.store.put_blob(&b"defg"[..], 3).expect_err("long").code(), "IMAGE_TOO_LARGE");
}

#[test]
fn what_a_crash_left_is_swept() {
    let bench = Bench::new();
    let left = bench.store.root.join("blobs/.tmpXYZ");
    std::fs::write(&left, b"half").expect("written");
    assert_eq!(bench.store.sweep(Duration::ZERO).expect("swept"), 1);
    assert!(!left.exists());
}

/// In a thread with a mount namespace of its own, so that the full disk is gone with the thread.
#[test]
fn a_full_disk_is_said_and_nothing_is_half_there() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: needs root");
        return;
    }
    let bench = Bench::new();
    // Removed after the thread, for in it the directory is a mount point.
    let _dir = Arc::clone(&bench.dir);
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        let root = bench.store.root.as_str();
        mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))
            .expect("small disk");
        let store = ImageStore::open(&bench.store.root).expect("store");
        let bench = Bench { store, ..bench };
        let plan = bench.plan(&[("a", &[7; 200 * 1024])]);
        let error = bench.import(&plan).expect_err("full");
        assert_eq!(error.code(), "DISK_FULL", "{error:?}");
        assert_eq!(bench.store.list(&bench.project).expect("listed"), []);
        let left = names(&bench.store.root.join("blobs")).expect("names");
        assert!(left.iter().all(|name| !name.starts_with(".tmp")), "{left:?}");
        bench.import(&bench.plan(&[("a", b"small")])).expect("there is room for this");
    })
    .join()
    .expect("no panic");
}
