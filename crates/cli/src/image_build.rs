//! From a service's source to an image: `cargo`, with the flags that make a machine of a program, and data modules.

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Given explicitly, although it is the host's own: so build scripts and macros keep the host's flags.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The flags, as the library OS defines them.
const FLAGS: &str = include_str!("../../../guest/unikernel/build-flags.toml");
/// The manifest beside a service's Cargo.toml.
const MANIFEST: &str = "skein.toml";
/// The description in a folder that `image build --to` writes.
const DESCRIPTION: &str = "image.json";

/// An image on disk, not yet imported.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) name: String,
    pub(crate) kernel: PathBuf,
    /// Path in the machine, and file.
    pub(crate) modules: Vec<(String, PathBuf)>,
    pub(crate) memory_mib: Option<u32>,
    pub(crate) capacity: Option<u32>,
    pub(crate) port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    image: Shape,
    #[serde(default)]
    module: Vec<Module>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    name: String,
    memory_mib: Option<u32>,
    capacity: Option<u32>,
    port: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Module {
    /// Path inside the machine.
    path: String,
    /// File, relative to the manifest.
    file: PathBuf,
    /// What makes the file: run in the manifest's folder, with the file as one more argument, when the file is missing
    /// or older than the manifest or any file beside the script (the second word, if that is a file).
    #[serde(default)]
    build: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    name: String,
    kernel: PathBuf,
    modules: Vec<(String, PathBuf)>,
    memory_mib: Option<u32>,
    capacity: Option<u32>,
    port: Option<u16>,
}

/// Builds the service in a folder.
pub(crate) fn build(folder: &Path, quiet: bool) -> Result<Bundle> {
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("reading {} (`skein image init` writes one)", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let mut modules = Vec::with_capacity(manifest.module.len());
    for module in &manifest.module {
        modules.push((module.path.clone(), make_module(folder, module, quiet)?));
    }
    let kernel = compile(folder, quiet)?;
    let Shape { name, memory_mib, capacity, port } = manifest.image;
    Ok(Bundle { name, kernel, modules, memory_mib, capacity, port })
}

/// Makes a module's file if it is missing or older than what makes it.
fn make_module(folder: &Path, module: &Module, quiet: bool) -> Result<PathBuf> {
    let file = folder.join(&module.file);
    let [program, arguments @ ..] = module.build.as_slice() else { return Ok(file) };
    let changed = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let script = arguments.first().map(|script| folder.join(script)).filter(|path| path.is_file());
    let beside = script.as_deref().and_then(Path::parent).map(fs::read_dir).transpose()?;
    let newest: Option<SystemTime> = beside
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.is_file() && *path != file))
        .filter_map(|path| changed(&path))
        .chain(changed(&folder.join(MANIFEST)))
        .max();
    if changed(&file).is_some_and(|made| newest.is_none_or(|newest| made >= newest)) {
        return Ok(file);
    }
    if !quiet {
        eprintln!("making {} ({})", module.path, module.build.join(" "));
    }
    let status = Command::new(program)
        .args(arguments)
        .arg(&module.file)
        .current_dir(folder)
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .with_context(|| format!("running {program} for module {}", module.path))?;
    if !status.success() || !file.is_file() {
        bail!(
            "module {}: `{}` did not make {}",
            module.path,
            module.build.join(" "),
            file.display()
        );
    }
    // The maker may have kept a file that is still right: it is new as of now.
    fs::File::options().append(true).open(&file)?.set_modified(SystemTime::now())?;
    Ok(file)
}

/// Runs cargo; the path of the machine's ELF file.
fn compile(folder: &Path, quiet: bool) -> Result<PathBuf> {
    let flags = tempfile::Builder::new().suffix(".toml").tempfile()?;
    fs::write(flags.path(), FLAGS)?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"])
        .args(["--target", TARGET, "--config"])
        .arg(flags.path())
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"))
        // They would replace the flags of the file.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdout(Stdio::piped());
    if quiet {
        cargo.arg("--quiet");
    }
    let out = cargo.output_with_stderr().context("running cargo (is Rust installed?)")?;
    let mut programs = Vec::new();
    for line in out.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let is_bin = message["target"]["kind"][0] == "bin";
        if let (true, Some(path)) = (is_bin, message["executable"].as_str()) {
            programs.push(PathBuf::from(path));
        }
    }
    match programs.as_slice() {
        [program] => Ok(program.clone()),
        [] => bail!("{} has no binary target: a machine needs one", folder.display()),
        _ => {
            bail!("{} has {} binary targets: a machine needs one", folder.display(), programs.len())
        }
    }
}

trait OutputWithStderr {
    /// Standard output; errors go where ours go.
    fn output_with_stderr(&mut self) -> Result<String>;
}

impl OutputWithStderr for Command {
    fn output_with_stderr(&mut self) -> Result<String> {
        let out = self.stderr(Stdio::inherit()).output()?;
        if !out.status.success() {
            bail!("cargo failed ({})", out.status);
        }
        Ok(String::from_utf8(out.stdout)?)
    }
}

impl Bundle {
    /// An ELF file from elsewhere, with `PATH=FILE` modules.
    pub(crate) fn of_elf(file: &Path, modules: &[String]) -> Result<Self> {
        let name = file.file_stem().and_then(|n| n.to_str()).unwrap_or("image").to_lowercase();
        let modules = modules
            .iter()
            .map(|pair| match pair.split_once('=') {
                Some((path, file)) => Ok((path.to_owned(), PathBuf::from(file))),
                None => bail!("--module {pair}: must be PATH=FILE"),
            })
            .collect::<Result<_>>()?;
        let (memory_mib, capacity, port) = (None, None, None);
        Ok(Self { name, kernel: file.to_owned(), modules, memory_mib, capacity, port })
    }

    /// Writes the image into a folder, in one piece that can be carried elsewhere.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let copy = |from: &Path, name: &str| -> Result<PathBuf> {
            fs::copy(from, folder.join(name))
                .with_context(|| format!("copying {}", from.display()))?;
            Ok(name.into())
        };
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let mut modules = Vec::new();
        for (number, (path, file)) in self.modules.iter().enumerate() {
            modules.push((path.clone(), copy(file, &format!("module-{number}"))?));
        }
        let description = Description {
            name: self.name.clone(),
            kernel: copy(&self.kernel, "kernel.elf")?,
            modules,
            memory_mib: self.memory_mib,
            capacity: self.capacity,
            port: self.port,
        };
        let json = serde_json::to_string_pretty(&description)?;
        fs::write(folder.join(DESCRIPTION), json)
            .with_context(|| format!("writing {}", folder.join(DESCRIPTION).display()))
    }

    /// Reads a folder that [`Bundle::write`] wrote.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(DESCRIPTION);
        let text = fs::read_to_string(&path).with_context(|| {
            let (path, folder) = (path.display(), folder.display());
            format!("reading {path}, which `skein image build SERVICE --to {folder}` writes")
        })?;
        let description: Description =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        let Description { name, kernel, modules, memory_mib, capacity, port } = description;
        let modules = modules.into_iter().map(|(path, file)| (path, folder.join(file))).collect();
        Ok(Self { name, kernel: folder.join(kernel), modules, memory_mib, capacity, port })
    }
}

/// Writes a service of a few lines into a new folder.
pub(crate) fn init(folder: &Path) -> Result<()> {
    if folder.exists() {
        bail!("{} exists already", folder.display());
    }
    let name = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let _: skein_model::ImageName = name.parse()?;
    let library = library()?;
    let files = [
        ("Cargo.toml", include_str!("../../../guest/template/Cargo.toml")),
        ("skein.toml", include_str!("../../../guest/template/skein.toml")),
        ("src/main.rs", include_str!("../../../guest/template/src/main.rs")),
    ];
    for (path, text) in files {
        let path = folder.join(path);
        let parent = path.parent().context("a file in the folder")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        let text =
            text.replace("hello", name).replace("../unikernel", &library.display().to_string());
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Where the library OS lies: in the checkout that this program was built from, or where SKEIN_UNIKERNEL says.
fn library() -> Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest/unikernel");
    let given = std::env::var_os("SKEIN_UNIKERNEL").map_or_else(|| built.into(), PathBuf::from);
    fs::canonicalize(&given).with_context(|| {
        format!(
            "the library OS is not at {}: say where with SKEIN_UNIKERNEL=.../guest/unikernel",
            given.display()
        )
    })
}
