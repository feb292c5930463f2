//! One task per machine: pumps its channels, waits for its end, and finds out why it ended.

use crate::console::{Console, ConsolePump, Keep};
use crate::control::{Control, ControlActor, Ready};
use crate::exit::{self, Evidence, RawExit};
use crate::machine::{AskedCell, Inner, LaunchTimes, Machine, Process};
use crate::qmp::{Qmp, QmpActor, QmpEvent};
use camino::Utf8PathBuf;
use skein_model::{ExitCause, Generation, MachineId, Timestamp};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Kept of the serial port, bytes: a panic or the registers of an exception take less than 2 KiB.
const SERIAL_RING_BYTES: usize = 16 * 1024;
/// How much of the log is searched for last words, bytes.
const LAST_WORDS_BYTES: usize = 16 * 1024;
/// How long the rest of a dead machine's output may take to be read.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// The connections to a machine.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) qmp: UnixStream,
    pub(crate) console: UnixStream,
    pub(crate) control: UnixStream,
    pub(crate) serial: UnixStream,
}

/// Resolves when the machine's process has ended.
pub(crate) type Exit = Pin<Box<dyn Future<Output = RawExit> + Send>>;

/// Everything a handle and its supervisor are made of.
pub(crate) struct Parts {
    pub(crate) id: MachineId,
    pub(crate) generation: Generation,
    pub(crate) launched_at: Timestamp,
    pub(crate) dir: Utf8PathBuf,
    pub(crate) channels: Channels,
    pub(crate) process: Box<dyn Process>,
    pub(crate) exit: Exit,
    pub(crate) times: LaunchTimes,
    /// What is known of an adopted machine.
    pub(crate) ready: Option<Ready>,
    pub(crate) console_log: Keep,
    pub(crate) keeper: Box<dyn Keeper>,
}

/// Remembers what the next process must know.
pub(crate) trait Keeper: Send {
    /// The guest listens.
    fn ready(&mut self, ready: Ready);
    /// What QEMU wrote to standard error.
    fn stderr(&self) -> String;
    /// The machine has ended; `serial` is what its serial port said that its log does not hold.
    fn ended(&mut self, cause: &ExitCause, serial: Option<&[u8]>);
}

/// Watches one machine; [`Supervisor::run`] ends with the machine.
pub(crate) struct Supervisor {
    machine: Arc<Inner>,
    exit: Exit,
    keeper: Box<dyn Keeper>,
    ended: watch::Sender<Option<ExitCause>>,
    events: mpsc::Receiver<QmpEvent>,
    qmp: QmpActor,
    control: ControlActor,
    pumps: [ConsolePump; 2],
    drain: CancellationToken,
}

/// Puts a machine together.
pub(crate) fn assemble(parts: Parts) -> (Machine, Supervisor) {
    let Parts {
        id,
        generation,
        launched_at,
        dir,
        channels,
        process,
        exit,
        times,
        ready,
        console_log,
        keeper,
    } = parts;
    let drain = CancellationToken::new();
    let (qmp, mut qmp_actor) = Qmp::new(channels.qmp);
    let (control, control_actor) = Control::new(channels.control, ready);
    let pump = |stream, ring_bytes, keep| ConsolePump::new(stream, ring_bytes, keep, drain.clone());
    let (console, console_pump) =
        pump(channels.console, crate::console::CONSOLE_RING_BYTES, console_log);
    let (serial, serial_pump) = pump(channels.serial, SERIAL_RING_BYTES, Keep::Memory);
    let (ended_out, ended) = watch::channel(None);
    let asked = AskedCell::default();
    let machine = Machine::new(Inner {
        id,
        generation,
        launched_at,
        dir,
        process,
        qmp,
        control,
        console,
        serial,
        asked,
        times,
        ended,
    });
    let supervisor = Supervisor {
        machine: Arc::clone(machine.inner()),
        exit,
        keeper,
        ended: ended_out,
        events: qmp_actor.events(),
        qmp: qmp_actor,
        control: control_actor,
        pumps: [console_pump, serial_pump],
        drain,
    };
    (machine, supervisor)
}

impl Supervisor {
    /// Runs until the machine has ended, or until `detach` is cancelled, which leaves the machine
    /// running.
    pub(crate) async fn run(self, detach: CancellationToken) {
        let Self { machine, mut exit, mut keeper, ended, mut events, qmp, control, pumps, drain } =
            self;
        let mut heard = machine.control.heard();
        let mut known = heard.borrow().ready;
        let mut tasks = JoinSet::new();
        tasks.spawn(qmp.run());
        tasks.spawn(control.run());
        for pump in pumps {
            tasks.spawn(pump.run());
        }
        let mut shutdown = None;
        let mut control_open = true;
        let exit = loop {
            tokio::select! {
                // cancel-safe: token.
                () = detach.cancelled() => return,
                // cancel-safe: the future is kept and polled on; nothing else awaits what it holds.
                exit = exit.as_mut() => break exit,
                // cancel-safe: mpsc recv.
                Some(event) = events.recv() => on_event(event, &mut shutdown),
                // cancel-safe: watch; the value is read again.
                changed = heard.changed(), if control_open => {
                    control_open = changed.is_ok();
                    let ready = heard.borrow_and_update().ready;
                    if let Some(ready) = ready.filter(|_| ready != known) {
                        known = Some(ready);
                        keeper.ready(ready);
                    }
                }
            }
        };
        drain.cancel();
        let drained = async { while tasks.join_next().await.is_some() {} };
        if timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::warn!(machine.id = %machine.id, "output of a dead machine does not end");
            tasks.shutdown().await;
        }
        while let Ok(event) = events.try_recv() {
            on_event(event, &mut shutdown);
        }
        let cause = find_cause(&machine, exit, shutdown, keeper.as_ref());
        keeper.ended(&cause, unheard(&machine.console, &machine.serial).as_deref());
        tracing::info!(machine.id = %machine.id, cause = cause.code(), "machine ended");
        ended.send_replace(Some(cause));
    }
}

fn on_event(event: QmpEvent, shutdown: &mut Option<String>) {
    tracing::debug!(event = event.name, "QMP event");
    if event.name == "SHUTDOWN" {
        let reason = event.data.get("reason").and_then(|reason| reason.as_str());
        *shutdown = Some(reason.unwrap_or_default().to_owned());
    }
}

fn find_cause(
    machine: &Inner,
    exit: RawExit,
    shutdown: Option<String>,
    keeper: &dyn Keeper,
) -> ExitCause {
    let mut log = String::from_utf8_lossy(&machine.console.tail(LAST_WORDS_BYTES)).into_owned();
    log.push('\n');
    log.push_str(&String::from_utf8_lossy(&machine.serial.tail(LAST_WORDS_BYTES)));
    let evidence = Evidence {
        asked: machine.asked.get(),
        shutdown,
        stopping: machine.control.heard().borrow().stopping,
        log,
        stderr: keeper.stderr(),
    };
    exit::classify(exit, &evidence)
}

/// What the serial port said, when the log does not hold it: a guest that dies prints to both if it
/// can.
fn unheard(console: &Console, serial: &Console) -> Option<Vec<u8>> {
    let said = serial.tail(SERIAL_RING_BYTES);
    let log = console.tail(2 * SERIAL_RING_BYTES);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    let heard = text(&log).contains(text(&said).trim());
    (!heard).then_some(said)
}
