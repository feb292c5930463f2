//! The page that `skein plan replay --html` writes, in a real browser: Debian's Chromium without a window, told over its DevTools
//! protocol what a user would do. Where there is no Chromium it says so and passes.

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

/// How long anything here may take on a loaded host.
const DEADLINE: Duration = Duration::from_secs(120);

/// Asks until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} took longer than {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn chromium() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .flat_map(|folder| ["chromium", "chromium-browser"].map(|name| folder.join(name)))
        .find(|program| program.is_file())
}

/// A browser with a page of its own, ended with all that it started.
struct Browser {
    child: Child,
    socket: WebSocket<TcpStream>,
    asked: u64,
    _profile: TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Browser {
    fn open(program: &Path, page: &Path) -> Self {
        let profile = TempDir::new().expect("a folder");
        let child = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-crash-reporter"])
            .args(["--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking"])
            .args(["--remote-debugging-port=0", "--remote-allow-origins=*"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("file://{}", page.display()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Chromium starts");
        let told = profile.path().join("DevToolsActivePort");
        // Its port and the path of its own socket, once both lines are there.
        let (port, path) = until("Chromium's port", || {
            let text = std::fs::read_to_string(&told).ok()?;
            let (port, path) = text.split_once('\n')?;
            (!path.trim().is_empty()).then(|| (port.to_owned(), path.trim().to_owned()))
        });
        let mut browser = Self { child, socket: socket(&port, &path), asked: 0, _profile: profile };
        let id = until("the page", || {
            let targets = browser.ask("Target.getTargets", &json!({}));
            let pages = targets["targetInfos"].as_array()?.iter();
            let mut ours = pages.filter(|it| it["type"] == "page" && it["url"] != "about:blank");
            ours.next()?["targetId"].as_str().map(str::to_owned)
        });
        browser.socket = socket(&port, &format!("/devtools/page/{id}"));
        browser
    }

    /// What it answers to a command.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.asked += 1;
        let command = json!({ "id": self.asked, "method": method, "params": params });
        self.socket.send(Message::text(command.to_string())).expect("a command");
        loop {
            let message = self.socket.read().expect("an answer");
            let Ok(text) = message.into_text() else { continue };
            let answer: Value = serde_json::from_str(text.as_str()).unwrap_or_default();
            if answer["id"] == self.asked {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let answer = self.ask("Runtime.evaluate", &params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// A button pressed as a mouse does it.
    fn press(&mut self, button: &str) {
        let middle = format!(
            "(() => {{ const r = document.getElementById('{button}').getBoundingClientRect(); \
             return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let at = self.value(&middle);
        for what in ["mousePressed", "mouseReleased"] {
            let params =
                json!({ "type": what, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.ask("Input.dispatchMouseEvent", &params);
        }
    }

    fn choose_speed(&mut self, speed: &str) {
        self.value(&format!("document.getElementById('speed').value = '{speed}'"));
    }

    fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').textContent"));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// The event that comes next, and how many there are.
    fn place(&mut self) -> (u64, u64) {
        let place = self.value(
            "(() => { const s = document.getElementById('seek'); return [+s.value, +s.max]; })()",
        );
        (place[0].as_u64().expect("a number"), place[1].as_u64().expect("a number"))
    }

    /// Seconds on the page's clock.
    fn clock(&mut self) -> f64 {
        let text = self.text("time");
        text.trim_end_matches(" s").parse().unwrap_or_else(|_| panic!("{text:?} is no time"))
    }
}

fn socket(port: &str, path: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("Chromium listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream)
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    socket
}

/// The page of a scenario in which nodes fail.
fn page(folder: &Path) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan");
    let (history, page) = (folder.join("history.jsonl"), folder.join("page.html"));
    let scenario = std::fs::read_to_string(golden.join("office.toml")).expect("office.toml");
    let scenario = scenario.replace("mean = 2000 }", "mean = 150 }");
    let file = folder.join("office.toml");
    std::fs::write(&file, scenario).expect("a scenario");
    for args in [
        vec!["sim".into(), file.into_os_string(), "--history".into(), history.clone().into()],
        vec!["replay".into(), history.into_os_string(), "--html".into(), page.clone().into()],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skein"));
        let done =
            command.arg("plan").args(args).stdin(Stdio::null()).output().expect("skein runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    page
}

#[test]
fn a_page_plays_pauses_steps_and_changes_its_speed() {
    let Some(program) = chromium() else {
        eprintln!("left out: there is no Chromium here");
        return;
    };
    let folder = TempDir::new().expect("a folder");
    let page = page(folder.path());
    let mut browser = Browser::open(&program, &page);
    until("the page's script", || (browser.value("typeof history_") == "object").then_some(()));

    // It begins at the beginning and stands still.
    let (next, all) = browser.place();
    assert!(next == 0 && all > 100, "{next} of {all}");
    assert_eq!((browser.text("play").as_str(), browser.text("nodes").as_str()), ("Start", ""));

    // Steps are single events.
    for step in 1..=3 {
        browser.press("step");
        assert_eq!(browser.place().0, step);
    }
    assert_eq!(browser.text("nodes"), "n1n2n3", "the nodes join first");
    assert!(browser.text("last").starts_with("node_joined n3"), "{}", browser.text("last"));

    // It plays until it is paused, and then its clock stands still.
    browser.choose_speed("10");
    browser.press("play");
    assert_eq!(browser.text("play"), "Pause");
    until("playing", || (browser.clock() > 5.0).then_some(()));
    browser.press("play");
    assert_eq!(browser.text("play"), "Start");
    let (paused, at) = (browser.clock(), browser.place().0);
    let frames = "new Promise(done => { let n = 0; const f = () => ++n < 5 ? requestAnimationFrame(f) : done(n); f(); })";
    let params = json!({ "expression": frames, "awaitPromise": true, "returnByValue": true });
    assert_eq!(browser.ask("Runtime.evaluate", &params)["result"]["value"], 5);
    assert_eq!((browser.clock(), browser.place().0), (paused, at), "it is paused");

    // A thousand times as fast it comes to the end, where it stops by itself; failed nodes were dark on the way.
    browser.value(
        "window.dark = 0; const draw_ = draw; draw = () => { draw_(); \
         dark = Math.max(dark, document.querySelectorAll('.node.failed').length); }",
    );
    browser.choose_speed("100");
    browser.press("play");
    until("the end", || (browser.place().0 == all).then_some(()));
    until("a stop", || (browser.text("play") == "Start").then_some(()));
    assert!(browser.text("services").contains("served"), "{}", browser.text("services"));
    assert!(browser.value("dark").as_u64() >= Some(1), "no node was ever shown as failed");

    // And back to the start.
    browser.press("reset");
    assert_eq!((browser.place().0, browser.text("nodes").as_str()), (0, ""));
}
