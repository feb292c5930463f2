//! Real machines for tests: builds an image, boots it in QEMU with user-mode networking on
//! loopback, talks HTTP and the control channel to it, and cleans up however a test ends.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use skein_wire::{BootConfig, GuestLine, HostLine, Ipv4Network, Stats};

/// How long anything in a test may take: generous, because machines are emulated on hosts that do
/// other work.
pub const DEADLINE: Duration = Duration::from_secs(60);

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The release image of a service of this workspace, built now if it is not up to date.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn image(service: &str) -> PathBuf {
    // One build at a time: cargo would wait for its lock anyway, silently.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut cargo = build_command(&workspace());
    let output = cargo.args(["-p", service]).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    workspace().join("target").join(TARGET).join("release").join(service)
}

/// The documented command that builds images, for the crate or workspace at `directory`.
#[must_use]
pub fn build_command(directory: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .current_dir(directory)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["build", "--release", "--target", TARGET, "--config"])
        .arg(workspace().join("unikernel/build-flags.toml"));
    cargo
}

/// A directory that is removed when it goes out of scope.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes something outside the program")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("skein-machine-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    /// A path inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover directory must not hide why a test failed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a machine is launched with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Settings on its command line.
    pub config: BootConfig,
    /// Words appended to the command line as they are.
    pub extra_words: String,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Module archive.
    pub modules: Option<Vec<u8>>,
    /// Without it the machine has no network device.
    pub network: bool,
    /// MAC address.
    pub mac: &'static str,
    /// More QEMU arguments.
    pub qemu: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        let ip = Ipv4Network::new([10, 0, 2, 15].into(), 24);
        Self {
            config: BootConfig { ip, gw: Some([10, 0, 2, 2].into()), ..BootConfig::default() },
            extra_words: String::new(),
            memory_mib: 16,
            modules: None,
            network: true,
            mac: "52:54:00:12:34:56",
            qemu: Vec::new(),
        }
    }
}

/// A running machine. Dropping it kills it.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    port: u16,
    files: Scratch,
    control: Option<BufReader<UnixStream>>,
}

impl Machine {
    /// Starts QEMU with the devices of `docs/guest-abi.md`.
    ///
    /// # Panics
    /// When QEMU is missing or does not start.
    #[must_use]
    pub fn launch(image: &Path, options: &Options) -> Self {
        let files = Scratch::new();
        let port = free_port();
        let mut line = options.config.encode().expect("a command line");
        line = format!("{line} {}", options.extra_words);
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=on,auto-kernel-cmdline=off",
        ])
        .args(["-accel", "tcg,tb-size=8", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-global", "virtio-mmio.force-legacy=false"])
        .args(["-m", &format!("{}M", options.memory_mib)])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"])
        .args(["-serial", &format!("file:{}", files.join("serial").display())])
        .args(["-device", "virtio-rng-device", "-device", "virtio-serial-device,id=a"])
        .args(["-chardev", &format!("file,id=log,path={}", files.join("log").display())])
        .args(["-device", "virtconsole,chardev=log,bus=a.0"])
        .args([
            "-device",
            "virtio-serial-device,id=b",
            "-device",
            "virtconsole,chardev=control,bus=b.0",
        ])
        .args([
            "-chardev",
            &format!(
                "socket,id=control,server=on,wait=on,path={}",
                files.join("control").display()
            ),
        ])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", files.join("qmp").display())])
        .arg("-kernel")
        .arg(image)
        .args(["-append", line.trim()]);
        if options.network {
            let forward = format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:80");
            let card = format!("virtio-net-device,netdev=net,mac={}", options.mac);
            qemu.args(["-netdev", &forward, "-device", &card]);
        }
        if let Some(modules) = &options.modules {
            fs::write(files.join("modules"), modules).expect("the module archive is written");
            qemu.arg("-initrd").arg(files.join("modules"));
        }
        qemu.args(&options.qemu).stdin(Stdio::null()).stdout(Stdio::null());
        qemu.stderr(fs::File::create(files.join("stderr")).expect("a file"));
        let child = qemu.spawn().expect("qemu-system-x86_64 is installed");
        let mut machine = Self { child, port, files, control: None };
        machine.control = Some(machine.connect_control());
        machine
    }

    fn connect_control(&mut self) -> BufReader<UnixStream> {
        let path = self.files.join("control");
        let stream = self.wait_for("the control channel", |_| UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        BufReader::new(stream)
    }

    /// Launches and waits until the machine says that it is ready.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(image: &Path, options: &Options) -> Self {
        let mut machine = Self::launch(image, options);
        machine.wait_ready();
        machine
    }

    /// Waits for the next `ready` line; returns microseconds from kernel entry to listening.
    ///
    /// # Panics
    /// When the channel ends before it.
    pub fn wait_ready(&mut self) -> u64 {
        loop {
            if let GuestLine::Ready { boot_us, .. } = self.next_line() {
                return boot_us;
            }
        }
    }

    /// The next line from the guest.
    ///
    /// # Panics
    /// When the channel ends, or the line is not one of the contract's.
    pub fn next_line(&mut self) -> GuestLine {
        self.try_next_line().unwrap_or_else(|| panic!("control channel ended; {}", self.output()))
    }

    /// The next line from the guest, `None` at the end of the channel.
    ///
    /// # Panics
    /// When a line is not one of the contract's.
    pub fn try_next_line(&mut self) -> Option<GuestLine> {
        let mut line = String::new();
        let control = self.control.as_mut().expect("a control channel");
        match control.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(
                GuestLine::parse(line.trim_end())
                    .ok()
                    .flatten()
                    .unwrap_or_else(|| panic!("{line:?}")),
            ),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("control channel: {error}; {}", self.output()),
        }
    }

    /// Sends a line to the guest.
    ///
    /// # Panics
    /// When the channel is broken.
    pub fn tell(&mut self, line: &HostLine) {
        let mut bytes = Vec::new();
        line.encode(&mut bytes);
        self.tell_bytes(&bytes);
    }

    /// Sends bytes over the control channel.
    ///
    /// # Panics
    /// When the channel is broken.
    pub fn tell_bytes(&mut self, bytes: &[u8]) {
        self.control.as_mut().expect("a control channel").get_mut().write_all(bytes).expect("sent");
    }

    /// Asks for the machine's counters.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn stats(&mut self) -> Stats {
        self.tell(&HostLine::Stats);
        loop {
            if let GuestLine::Stats(stats) = self.next_line() {
                return stats;
            }
        }
    }

    /// A new connection to the HTTP port.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn connect(&self) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connected");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Client { stream: BufReader::new(stream) }
    }

    /// One request over a connection of its own.
    ///
    /// # Panics
    /// When there is no proper answer.
    #[must_use]
    pub fn request(&self, method: &str, target: &str, body: &[u8]) -> Answer {
        self.connect().request(method, target, body)
    }

    /// Waits until QEMU has ended; returns its exit status.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait_exit(&mut self) -> i32 {
        let status = self.wait_for("the machine's end", |machine| machine.child.try_wait().ok()?);
        status.code().unwrap_or(-1)
    }

    /// What the machine wrote to its log, to its serial port, and QEMU to its error output.
    #[must_use]
    pub fn output(&self) -> String {
        let read = |name| {
            String::from_utf8_lossy(&fs::read(self.files.join(name)).unwrap_or_default())
                .into_owned()
        };
        format!("log: {}\nserial: {}\nqemu: {}", read("log"), read("serial"), read("stderr"))
    }

    /// The machine's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.files.join("log")).unwrap_or_default()
    }

    /// Process number of QEMU.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time the machine has used, in clock ticks of the host (1/100 s).
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process");
        let fields: Vec<_> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // Fields 14 and 15 of the line; the text after the name begins with field 3.
        [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap_or(0)).sum()
    }

    /// A command to QEMU's monitor; returns its answer as text.
    ///
    /// # Panics
    /// When the monitor does not answer.
    #[must_use]
    pub fn qmp(&mut self, commands: &[&str]) -> String {
        let path = self.files.join("qmp");
        let stream = self.wait_for("the monitor", |_| UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).expect("greeting");
        let mut answer = String::new();
        for command in [r#"{"execute":"qmp_capabilities"}"#].iter().chain(commands) {
            stream.get_mut().write_all(command.as_bytes()).expect("sent");
            loop {
                line.clear();
                assert!(
                    stream.read_line(&mut line).expect("an answer") > 0,
                    "the monitor has gone"
                );
                if !line.contains("\"event\"") {
                    break;
                }
            }
            answer.clone_from(&line);
        }
        answer
    }

    /// Files of this machine.
    #[must_use]
    pub fn files(&self) -> &Scratch {
        &self.files
    }

    /// Repeats `look` until it gives something.
    ///
    /// # Panics
    /// When it does not within [`DEADLINE`].
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < end, "waited in vain for {what}; {}", self.output());
            // Pause between looks, not a guess how long something takes.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("its number").port()
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header fields, names in lower case.
    pub fields: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Sends bytes as they are. A peer that has closed is no error here: its answer tells.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes);
    }

    /// Reads one answer to a request with `method`.
    ///
    /// # Panics
    /// When there is none.
    pub fn answer(&mut self, method: &str) -> Answer {
        self.try_answer(method).expect("an answer")
    }

    /// Reads one answer; `None` when the connection ends or breaks before it is complete.
    pub fn try_answer(&mut self, method: &str) -> Option<Answer> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut fields = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            fields.push((name.to_lowercase(), value.to_owned()));
        }
        let mut answer = Answer { status, fields, body: Vec::new() };
        let length =
            answer.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if method != "HEAD" {
            answer.body.resize(length, 0);
            self.stream.read_exact(&mut answer.body).ok()?;
        }
        Some(answer)
    }

    /// Sends a request and reads its answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn request(&mut self, method: &str, target: &str, body: &[u8]) -> Answer {
        self.send_request(method, target, body);
        self.answer(method)
    }

    /// Sends a request.
    pub fn send_request(&mut self, method: &str, target: &str, body: &[u8]) {
        let length = body.len();
        let mut bytes =
            format!("{method} {target} HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n")
                .into_bytes();
        bytes.extend_from_slice(body);
        self.send(&bytes);
    }

    /// Whether the peer has closed the connection, after everything was read.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0) | Err(_))
    }
}
