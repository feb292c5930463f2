//! One task for each machine: it alone moves the machine from phase to phase, and writes them down.
//!
//! The task begins with a record whose node is ours, or with a run directory that an earlier agent left. It ends when
//! the machine is gone and nothing of it is left but its run directory, which keeps the log until the
//! record is deleted.

use crate::delivery::Delivery;
use crate::networks::{Plug, PlugError, encryption};
use crate::node::Node;
use camino::Utf8Path;
use skein_model::{
    Addressing, EventKind, ExitCause, MachineEvent, MachineGoal, MachineId, MachinePhase,
    MachineRecord, MachineStatus, MemoryMib, NetworkRecord, PAYLOAD_MAX, PhaseName, PortRecord,
};
use skein_shell::{fault, now, report};
use skein_vmm::{
    AdoptError, Adopted, Grace, GuestAddress, GuestConfig, LaunchSpec, MacAddress, Machine, Nic,
    RunAs,
};
use std::net::SocketAddrV4;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tracing::{debug, error, info, warn};

/// How often a machine is looked for after a restart.
const ADOPTIONS_MAX: u32 = 10;
/// How long a machine that boots counts among those being started.
const LAUNCH_HOLD: Duration = Duration::from_secs(1);
/// How long those who serve jobs on a machine that ended may take to see it.
const SERVED_OUT: Duration = Duration::from_secs(2);
/// A status that could not be written is tried again after this long, for as long as it takes.
const WRITE_RETRY: Duration = Duration::from_millis(300);

/// A machine that has had nothing to do for this long after it became ready rehearses.
const REHEARSE_AFTER: Duration = Duration::from_millis(50);
/// While machines are being started, a rehearsal is put off by this long.
const REHEARSE_LATER: Duration = Duration::from_millis(250);
/// An emulated machine answers its first request after some 15 ms.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(2);

/// A machine whose process runs.
#[derive(Debug)]
pub(crate) struct Live {
    record: watch::Receiver<Arc<MachineRecord>>,
    pub(crate) machine: Machine,
    pub(crate) delivery: Delivery,
    /// Slots that are taken: by jobs, or by a claim that is under way.
    taken: AtomicU32,
    /// Jobs in service on it.
    in_service: AtomicU32,
    /// Woken when a slot is given back.
    eased: Notify,
    /// Woken when a job has run past its time.
    hung: Notify,
}

impl Live {
    /// What it shall be, as last read.
    pub(crate) fn record(&self) -> Arc<MachineRecord> {
        self.record.borrow().clone()
    }

    /// Jobs in service on it.
    pub(crate) fn in_service(&self) -> u32 {
        self.in_service.load(Ordering::Acquire)
    }

    /// Slots that are taken: by jobs, or by a claim that is under way.
    pub(crate) fn taken(&self) -> u32 {
        self.taken.load(Ordering::Acquire)
    }

    /// Takes a slot.
    pub(crate) fn take(&self) {
        self.taken.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives a slot back.
    pub(crate) fn give(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.eased.notify_waiters();
    }

    /// A job begins in a slot that was taken.
    pub(crate) fn begin(&self) {
        self.in_service.fetch_add(1, Ordering::AcqRel);
    }

    /// A job ended; its slot is given back.
    pub(crate) fn end(&self) {
        self.in_service.fetch_sub(1, Ordering::AcqRel);
        self.give();
    }

    /// A job ran past its time: the machine is to be killed.
    pub(crate) fn report_hung(&self) {
        self.hung.notify_one();
    }

    async fn idle(&self) {
        loop {
            let eased = self.eased.notified();
            tokio::pin!(eased);
            eased.as_mut().enable();
            if self.taken() == 0 {
                return;
            }
            eased.await;
        }
    }
}

/// What the task of one machine owns.
pub(crate) struct Keeper {
    node: Arc<Node>,
    wanted: watch::Receiver<Arc<MachineRecord>>,
    status: MachineStatus,
}

/// How a machine came to be held.
struct Held {
    live: Arc<Live>,
    plug: Plug,
}

impl Keeper {
    /// The keeper of a machine that shall be as `wanted` says; `known` is what was last written of it.
    pub(crate) fn new(
        node: Arc<Node>,
        wanted: watch::Receiver<Arc<MachineRecord>>,
        known: Option<MachineStatus>,
    ) -> Self {
        let record = wanted.borrow().clone();
        let status = known.unwrap_or_else(|| MachineStatus {
            id: record.id.clone(),
            generation: record.generation,
            phase: MachinePhase::Scheduled,
            address: None,
            port: record.image.port,
            launched_at: None,
            ready_at: None,
            boot_us: None,
        });
        Self { node, wanted, status }
    }

    fn record(&self) -> Arc<MachineRecord> {
        self.wanted.borrow().clone()
    }

    fn id(&self) -> &MachineId {
        &self.status.id
    }

    /// Runs until the machine is gone, or until the agent stops, which leaves the machine running.
    pub(crate) async fn run(mut self) {
        if self.status.phase.name() == PhaseName::Gone {
            return;
        }
        let stop = self.node.tasks.stop_token().clone();
        let held = match self.adopt().await {
            Some(held) => held,
            // It ended while nobody watched, and that is written.
            None if self.status.phase.name() == PhaseName::Gone => return,
            None if self.record().goal != MachineGoal::Run => {
                return self.gone(ExitCause::Stopped, None).await;
            }
            // Some phase was written, but no process is there: it died while nobody watched.
            None if self.status.phase.name() != PhaseName::Scheduled => {
                return self.gone(ExitCause::Lost, None).await;
            }
            None => {
                let launched = tokio::select! {
                    () = stop.cancelled() => return,           // cancel-safe: token
                    launched = self.launch() => launched,      // dropped only when the agent ends; adoption finds the rest
                };
                match launched {
                    Ok(held) => held,
                    Err(cause) => return self.gone(cause, None).await,
                }
            }
        };
        self.node.insert_live(held.live.clone());
        let cause = tokio::select! {
            () = stop.cancelled() => return,                   // cancel-safe: token
            cause = self.serve(&held) => cause,                // as above
        };
        self.gone(cause, Some(held)).await;
    }

    /// Finds a machine that an earlier agent started.
    async fn adopt(&mut self) -> Option<Held> {
        let dir = self.node.machine_dir(self.id());
        if !dir.join("machine.json").exists() {
            return None;
        }
        match self.find(&dir).await {
            Ok(Adopted::Running(machine)) => {
                // The tap tells the address; the status may not have been written yet.
                let plug = self.node.adopted_plug(self.id());
                let held = match plug {
                    Some(plug) => self.hold(machine.clone(), plug).await,
                    None => None,
                };
                let Some(held) = held else {
                    warn!(machine.id = %self.id(), "a machine without a port is ended");
                    let _ = machine.kill().await;
                    return None;
                };
                self.status.address = Some(held.plug.address);
                if self.status.phase.name() == PhaseName::Scheduled {
                    let at = now();
                    self.status.launched_at = Some(at);
                    let ready_by = at + self.node.config.boot_timeout;
                    self.advance(MachineEvent::Launched { ready_by });
                }
                info!(machine.id = %self.id(), "machine adopted");
                self.node.emit(&self.record(), EventKind::MachineAdopted);
                Some(held)
            }
            Ok(Adopted::Ended { cause, .. }) => {
                self.gone(cause, None).await;
                None
            }
            Err(AdoptError::NoMachine { .. }) => None,
            Err(error) => {
                // Its process may run. It loses its port, so that it can be of no more harm, and its folder stays.
                error!(machine.id = %self.id(), code = error.code(), error = %report::chain(&error), "machine not found again");
                self.gone(ExitCause::Lost, None).await;
                None
            }
        }
    }

    /// Looks for a machine some times: a host that is short of something may refuse a socket, and not the next.
    async fn find(&self, dir: &Utf8Path) -> Result<Adopted, AdoptError> {
        let mut tries = 1;
        loop {
            match self.node.driver.adopt(dir).await {
                Err(error)
                    if tries < ADOPTIONS_MAX && !matches!(error, AdoptError::NoMachine { .. }) =>
                {
                    warn!(machine.id = %self.id(), error = %report::chain(&error), "machine not adopted yet");
                    tries += 1;
                    tokio::time::sleep(WRITE_RETRY).await;
                }
                found => return found,
            }
        }
    }

    /// None when the machine's network is not there.
    async fn hold(&self, machine: Machine, plug: Plug) -> Option<Held> {
        let to = SocketAddrV4::new(plug.address, self.status.port);
        let connector = self.node.networks.connector(plug.vni).await?;
        let delivery = Delivery::new(connector, to, self.node.tasks.clone());
        let live = Arc::new(Live {
            record: self.wanted.clone(),
            machine,
            delivery,
            taken: AtomicU32::new(0),
            in_service: AtomicU32::new(0),
            eased: Notify::new(),
            hung: Notify::new(),
        });
        Some(Held { live, plug })
    }

    /// Starts the machine; the cause of its end when it cannot be.
    async fn launch(&mut self) -> Result<Held, ExitCause> {
        let node = self.node.clone();
        let failed = |message: String| ExitCause::VmmFailed { message };
        let (port, network) = self.port().ok_or_else(|| failed("it has no port".to_owned()))?;
        let plug = Plug::of(&port).ok_or_else(|| failed("its port has no network".to_owned()))?;
        // Before its turn: who waits for a network keeps nobody from starting.
        let mut wanted = self.wanted.clone();
        let turn = async {
            node.networks.shows(plug).await?;
            Ok(node.launches.acquire().await)
        };
        let turn: Result<_, PlugError> = tokio::select! {
            () = told_to_go(&mut wanted) => return Err(ExitCause::Stopped),    // cancel-safe: watch
            turn = turn => turn,                                               // it only waits
        };
        let Ok(permit) = turn.map_err(|e| failed(format!("{}: {e}", e.code())))? else {
            return Err(ExitCause::Stopped);
        };
        let record = self.record();
        if record.goal != MachineGoal::Run {
            return Err(ExitCause::Stopped);
        }
        let launched_at = now();
        self.status.address = Some(plug.address);
        fault::point("machine.assigned", node.config.network.as_str()).await;
        match self.launch_at(&record, (&port, plug), &network).await {
            Ok(machine) => {
                fault::point("machine.launched", node.config.network.as_str()).await;
                self.status.launched_at = Some(launched_at);
                let ready_by = now() + node.config.boot_timeout;
                // Written only when it is ready: until then the run directory says all that an agent needs.
                self.advance(MachineEvent::Launched { ready_by });
                node.emit(&record, EventKind::MachineLaunched);
                let gone = || failed("its network went away".to_owned());
                let held = self.hold(machine, plug).await.ok_or_else(gone)?;
                // A machine that takes long to be ready, or never is, shall not keep others from starting.
                let mut boot = pin!(self.boot(held));
                tokio::select! {
                    booted = &mut boot => return booted,               // nothing is dropped: it is polled on below
                    () = tokio::time::sleep(LAUNCH_HOLD) => {}         // cancel-safe: timer
                }
                drop(permit);
                boot.await
            }
            Err(message) => {
                node.unplug(self.id(), Some(plug)).await;
                Err(failed(message))
            }
        }
    }

    /// The machine's port, and the network that it is in.
    fn port(&self) -> Option<(Arc<PortRecord>, Arc<NetworkRecord>)> {
        self.node.mirror.read(|view| {
            let port = view.ports.get(self.id())?.value.clone();
            let network = view.networks.get(&(port.project.clone(), port.network.clone()))?;
            Some((port, network.value.clone()))
        })
    }

    async fn launch_at(
        &self,
        record: &MachineRecord,
        (port, plug): (&PortRecord, Plug),
        network: &NetworkRecord,
    ) -> Result<Machine, String> {
        let node = &self.node;
        let files = node
            .images
            .files(&record.image)
            .map_err(|e| format!("{}: {}", e.code(), report::chain(&e)))?;
        let plugged = node.networks.plug(plug).await;
        let plugged = plugged.map_err(|e| format!("{}: {}", e.code(), report::chain(&e)))?;
        fault::point("machine.plugged", node.config.network.as_str()).await;
        let run_as = match node.config.uid_base {
            Some(base) => {
                let id = base + node.slots.take(&record.id).map_err(|e| report::chain(&e))?;
                Some(RunAs { uid: id, gid: id })
            }
            None => None,
        };
        let spec = &network.spec;
        let address = GuestAddress {
            ip: port.ipv4,
            prefix: spec.cidr.prefix_len(),
            gateway: Some(spec.cidr.gateway()),
            dns: Some(spec.resolvers.first().copied().unwrap_or(spec.cidr.gateway())),
        };
        let launch = LaunchSpec {
            id: record.id.clone(),
            generation: record.generation,
            dir: node.machine_dir(&record.id),
            kernel: files.kernel,
            modules: files.modules,
            memory: record.memory,
            nic: Some(Nic {
                mac: MacAddress::new(port.mac.octets()).map_err(|e| e.to_string())?,
                mtu: Some(spec.packet_max(encryption(&node.underlay.borrow()))),
                tap: plugged.tap,
            }),
            guest: GuestConfig {
                address: (record.addressing == Addressing::Static).then_some(address),
                port: record.image.port,
                capacity: record.capacity,
                parameters: record.parameters.clone(),
                body_bytes_max: Some(body_bytes_max(record.memory)),
                ..GuestConfig::default()
            },
            run_as,
        };
        node.driver.launch(launch).await.map_err(|e| format!("{}: {}", e.code(), report::chain(&e)))
    }

    /// Waits until a started machine is ready.
    async fn boot(&mut self, held: Held) -> Result<Held, ExitCause> {
        let timeout = self.node.config.boot_timeout;
        // Known to requests from here on: a machine that hangs in its boot has a console too.
        self.node.insert_live(held.live.clone());
        let machine = held.live.machine.clone();
        let mut wanted = self.wanted.clone();
        let ready = tokio::select! {
            ready = machine.ready(timeout) => ready,             // cancel-safe: it only watches
            () = told_to_go(&mut wanted) => {                    // cancel-safe: watch; the value is re-read
                self.end(&held, Grace::default()).await;
                self.clean(&held).await;
                return Err(ExitCause::Stopped);
            }
        };
        match ready {
            Ok(ready) => {
                fault::point("machine.listening", self.node.config.network.as_str()).await;
                let at = now();
                self.status.ready_at = Some(at);
                let boot_us = u64::try_from(ready.boot.as_micros()).unwrap_or(u64::MAX);
                self.status.boot_us = Some(boot_us);
                self.advance(MachineEvent::BecameReady);
                let since = self.status.launched_at.unwrap_or(at);
                let start_us = u64::try_from(at.since(since).as_micros()).unwrap_or(u64::MAX);
                self.node.emit(&self.record(), EventKind::MachineReady { start_us, boot_us });
                Ok(held)
            }
            Err(skein_vmm::ReadyError::Ended { cause, .. }) => {
                self.clean(&held).await;
                Err(cause)
            }
            Err(skein_vmm::ReadyError::Deadline { .. }) => {
                self.end(&held, Grace::NONE).await;
                self.clean(&held).await;
                Err(ExitCause::BootTimeout)
            }
        }
    }

    /// Serves until the machine ends or is to end; returns how it ended.
    async fn serve(&mut self, held: &Held) -> ExitCause {
        let live = &held.live;
        if self.status.phase.name() == PhaseName::Booting {
            // Adopted in its boot: it may have become ready while nobody listened.
            match live.machine.ready(self.node.config.boot_timeout).await {
                Ok(ready) => {
                    self.status.ready_at = Some(now());
                    self.status.boot_us = u64::try_from(ready.boot.as_micros()).ok();
                    self.advance(MachineEvent::BecameReady);
                }
                Err(_) => {
                    return self.end(held, Grace::NONE).await.unwrap_or(ExitCause::BootTimeout);
                }
            }
        }
        // Work is taken before the phase is written: the queue is waiting for this machine.
        let node = self.node.clone();
        if self.status.phase.name() == PhaseName::Ready {
            node.dispatchers.add(&node, live.clone());
            node.tasks.spawn(rehearse(node.clone(), live.clone()));
        }
        fault::point("machine.unwritten", node.config.network.as_str()).await;
        self.write().await;
        let mut wanted = self.wanted.clone();
        loop {
            let record = wanted.borrow_and_update().clone();
            self.status.generation = record.generation;
            match record.goal {
                MachineGoal::Run => {}
                MachineGoal::Drain if self.status.phase.name() == PhaseName::Ready => {
                    node.dispatchers.remove(live);
                    self.advance(MachineEvent::DrainAsked);
                    node.emit(&record, EventKind::MachineDraining);
                    self.write().await;
                }
                MachineGoal::Drain => {}
                MachineGoal::Stop => {
                    node.dispatchers.remove(live);
                    // What it serves may end, in the time that an orderly end may take; a job that it was given while
                    // the stop was on its way loses no attempt.
                    let served = tokio::time::timeout(node.config.stop_grace, live.idle()).await;
                    let grace = if served.is_ok() { self.grace() } else { Grace::NONE };
                    return self.end(held, grace).await.unwrap_or(ExitCause::Stopped);
                }
            }
            let draining = self.status.phase.name() == PhaseName::Draining;
            tokio::select! {
                cause = live.machine.exited() => return cause,        // cancel-safe: it only watches
                () = live.hung.notified() => {                        // cancel-safe: keeps its permit
                    warn!(machine.id = %self.id(), "a job ran past its time; the machine is killed");
                    node.dispatchers.remove(live);
                    self.end(held, Grace::NONE).await;
                    return ExitCause::Hung;
                }
                () = live.idle(), if draining => {                    // cancel-safe: it only watches
                    let grace = self.grace();
                    return self.end(held, grace).await.unwrap_or(ExitCause::Stopped);
                }
                () = changed(&mut wanted) => {}                       // cancel-safe: watch; the value is re-read
            }
        }
    }

    fn grace(&self) -> Grace {
        Grace { orderly: self.node.config.stop_grace, ..Grace::default() }
    }

    /// Ends the process; how it ended.
    async fn end(&mut self, held: &Held, grace: Grace) -> Option<ExitCause> {
        let kill_at = now() + grace.orderly + grace.quit;
        self.advance(MachineEvent::StopAsked { kill_at });
        match held.live.machine.stop(grace).await {
            Ok(outcome) => Some(outcome.cause),
            Err(error) => {
                error!(machine.id = %self.id(), error = %report::chain(&error), "a machine could not be ended");
                None
            }
        }
    }

    /// Removes what a process that ended has left on the node.
    async fn clean(&self, held: &Held) {
        let node = &self.node;
        node.dispatchers.remove(&held.live);
        node.unplug(self.id(), Some(held.plug)).await;
        node.remove_live(self.id());
    }

    /// The machine has ended: cleans up, gives its jobs back, and writes it down, in this order, so that an agent that
    /// is killed in between does it again. Its folder stays for its log, unless its record is deleted already.
    async fn gone(&mut self, cause: ExitCause, held: Option<Held>) {
        if let Some(held) = &held {
            self.clean(held).await;
            // Whoever served a job on it sees the broken exchange, and says what came of it; this is only for the rest.
            let _ = tokio::time::timeout(SERVED_OUT, held.live.idle()).await;
        } else {
            self.node.unplug(self.id(), self.node.adopted_plug(self.id())).await;
        }
        let words = cause.to_string();
        loop {
            match self.node.queue.requeue_lost(self.id(), &words, now()).await {
                Ok(_) => break,
                Err(error) => {
                    warn!(machine.id = %self.id(), error = %report::chain(&error), "jobs of a machine could not be given back");
                    tokio::time::sleep(WRITE_RETRY).await;
                }
            }
        }
        if !cause.is_orderly() {
            warn!(machine.id = %self.id(), code = cause.code(), cause = %words, "machine ended unasked");
        }
        let code = cause.code().to_owned();
        self.advance(MachineEvent::Exited { cause });
        self.write().await;
        self.node.emit(&self.record(), EventKind::MachineGone { code, message: words });
        if !self.node.mirror.read(|view| view.machines.contains_key(self.id())) {
            let _ = std::fs::remove_dir_all(self.node.machine_dir(self.id()));
        }
    }

    fn advance(&mut self, event: MachineEvent) {
        match self.status.phase.on(event, now()) {
            Ok(phase) => self.status.phase = phase,
            Err(refused) => {
                error!(machine.id = %self.id(), error = %refused, "a bug: impossible event")
            }
        }
    }

    /// Writes the status; tries until it is written, because the leader decides by it.
    async fn write(&self) {
        while let Err(error) = self.node.write_status(&self.status).await {
            warn!(machine.id = %self.id(), error = %report::chain(&error), "a status could not be written");
            tokio::time::sleep(WRITE_RETRY).await;
        }
    }
}

/// Returns when the record has changed. The agent that ends says nothing more, and the machine goes on.
async fn changed(wanted: &mut watch::Receiver<Arc<MachineRecord>>) {
    if wanted.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Has a machine that waits for work answer one request of ours, so that its first job finds the connection made and
/// the code of a request translated by the emulator: that is most of what a first call takes. Not while machines
/// are being started, which are wanted more urgently, and one machine at a time.
async fn rehearse(node: Arc<Node>, live: Arc<Live>) {
    let stop = node.tasks.stop_token().clone();
    let work = async {
        tokio::time::sleep(REHEARSE_AFTER).await;
        while node.is_launching() {
            tokio::time::sleep(REHEARSE_LATER).await;
        }
        let Ok(_turn) = node.rehearsals.acquire().await else { return };
        if live.delivery.is_used() {
            return;
        }
        match tokio::time::timeout(REHEARSAL_DEADLINE, live.delivery.rehearse()).await {
            Ok(Ok(())) => {}
            // A machine that cannot answer will tell so by its first job.
            Ok(Err(error)) => {
                debug!(machine.id = %live.machine.id(), error = %report::chain(&error), "rehearsal failed");
            }
            Err(_) => debug!(machine.id = %live.machine.id(), "rehearsal took too long"),
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}                 // cancel-safe: token
        _ = live.machine.exited() => {}             // cancel-safe: it only watches
        () = work => {}                             // a rehearsal that is dropped closes its connection
    }
}

/// Returns when the machine is wanted to end.
async fn told_to_go(wanted: &mut watch::Receiver<Arc<MachineRecord>>) {
    if wanted.wait_for(|record| record.goal != MachineGoal::Run).await.is_err() {
        std::future::pending().await
    }
}

/// Largest payload or result of a machine: a quarter of its memory, because the service needs room to work on it and for
/// its answer; at most what a job may carry.
fn body_bytes_max(memory: MemoryMib) -> u64 {
    (memory.bytes() / 4).min(PAYLOAD_MAX)
}
