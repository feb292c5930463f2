//! A machine's life: boot, main loop, stop.

use alloc::rc::Rc;
use core::net::Ipv4Addr;
use core::sync::atomic::Ordering;

use skein_wire::{Archive, BootConfig, GuestLine, HostLine, Identity};

use crate::arch::layout::Layout;
use crate::arch::paging::{self, Rights, Tables};
use crate::arch::pvh::{BootInfo, Region};
use crate::arch::{cpu, interrupts};
use crate::executor::Executor;
use crate::fatal::{self, ExitCode};
use crate::host::{self, COUNTERS};
use crate::net::{self, Net};
use crate::random::{self, EntropyDevice};
use crate::service::Service;
use crate::virtio::console::{Console, Input};
use crate::virtio::network::Network;
use crate::{clock, heap, log_output, server, virtio};

/// Board registers: virtio-mmio slots, IOAPIC, local APIC; each inside one large page.
const DEVICES: [Region; 3] = [
    Region { start: 0xfea0_0000, end: 0xfec0_0000 },
    Region { start: 0xfec0_0000, end: 0xfee0_0000 },
    Region { start: 0xfee0_0000, end: 0xff00_0000 },
];
const PAGE: usize = 4096;
/// 30 s without an answer of a DHCP server: the machine is of no use.
const DHCP_NS: u64 = 30_000_000_000;
/// 50 ms for the first entropy when the host gave none; it takes less than 1 ms.
const ENTROPY_NS: u64 = 50_000_000;
/// 2 s after the last request for clients to take their answers.
const STOP_NS: u64 = 2_000_000_000;

unsafe extern "Rust" {
    /// The service that was linked; made by `main!`.
    safe fn skein_service() -> Service;
}

/// Boots and never returns. `start_info` is what the boot protocol passed.
pub(crate) fn run(start_info: u32, entry_tsc: u64) -> ! {
    let layout = Layout::get();
    // SAFETY: this is the first call.
    unsafe { interrupts::install(&layout) };
    // SAFETY: the address is the boot protocol's; the first GiB is mapped and nothing has been
    // written yet.
    let Some(boot) = (unsafe { BootInfo::read(start_info) }) else {
        fatal::fatal(format_args!("the boot information is not that of PVH version 1"));
    };
    take_memory(&layout, &boot);
    clock::start(entry_tsc);
    // SAFETY: `take_memory` mapped the slots; this is the only look at them.
    let found = unsafe { virtio::probe() };
    if let Some(device) = found.log {
        log_output::use_console(Console::new(device, Input::Ignored));
    }
    let mut entropy = found.entropy.map(EntropyDevice::new);
    if let Some(device) = found.control {
        host::use_control(Console::new(device, Input::Wanted));
    }
    let config = BootConfig::parse(boot.command_line())
        .unwrap_or_else(|error| fatal::fatal(format_args!("{error}")));
    // The first messages must not show a guessed time.
    clock::calibrate();
    log_output::install(config.log);
    if let Some(module) = boot.module {
        take_modules(module);
    }
    let Some(card) = found.network else {
        fatal::fatal(format_args!("the machine has no network device"));
    };
    seed(&config, entropy.as_mut());
    clock::set_unix_ns(config.clock);
    let heap_free = heap::total() - heap::used();
    // Sockets may take an eighth of the memory, request bodies half.
    let sockets = (2 * usize::from(config.capacity) + 8).min(heap_free / 8 / net::SOCKET_BYTES);
    server::set_limits(config.capacity, heap_free / 2);
    let number = random::boot_number(config.seed.as_ref().map(|seed| &seed.0));
    net::install(Net::new(Network::new(card), sockets, number));
    net::configure(config.ip, config.gw);
    host::set_config(config);
    let mut service = skein_service();
    if let Err(reason) = service.start() {
        fatal::fatal(format_args!("the service did not start: {reason}"));
    }
    let machine = Machine {
        executor: Executor::default(),
        service: Rc::new(service),
        entropy,
        boot_us: 0,
        dhcp_end: None,
        unlogged: None,
    };
    machine.live()
}

/// Maps memory with its final rights and gives the free part to the heap.
fn take_memory(layout: &Layout, boot: &BootInfo) {
    let Some(main) = boot
        .regions()
        .iter()
        .copied()
        .find(|region| region.start <= layout.__code_start && layout.__image_end < region.end)
    else {
        fatal::fatal(format_args!("the image does not lie in one region of memory"));
    };
    let module = boot.module.map(|module| Region {
        start: module.start & !(PAGE - 1),
        end: module.end.next_multiple_of(PAGE),
    });
    let limit = module.map_or(main.end, |module| module.start).min(main.end) & !(PAGE - 1);
    let start = layout.__image_end.next_multiple_of(PAGE);
    if start >= limit {
        fatal::fatal(format_args!("the modules leave no memory"));
    }
    // SAFETY: behind the image and before the module there is nothing; the first GiB is mapped.
    let mut tables = unsafe { Tables::new(Region { start, end: limit }) };
    let mut map = |start, end, rights| tables.map(Region { start, end }, rights);
    map(layout.__code_start, layout.__code_end, Rights::Code);
    map(layout.__constants_start, layout.__constants_end, Rights::Constant);
    map(layout.__data_start, layout.__data_end, Rights::Data);
    map(layout.__stack_start, layout.__stack_end, Rights::Data);
    map(layout.__fault_stack_start, layout.__fault_stack_end, Rights::Data);
    map(layout.__interrupt_stack_start, layout.__interrupt_stack_end, Rights::Data);
    map(start, limit, Rights::Data);
    if let Some(module) = module {
        map(module.start, module.end, Rights::Constant);
    }
    let above = |region: &&Region| region.start > main.end && region.end - region.start >= 1 << 20;
    let high = boot.regions().iter().find(above).map(|region| Region {
        start: region.start.next_multiple_of(PAGE),
        end: region.end & !(PAGE - 1),
    });
    if let Some(high) = high {
        map(high.start, high.end, Rights::Data);
    }
    for device in DEVICES {
        map(device.start, device.end, Rights::Device);
    }
    // SAFETY: code, stacks and data are mapped where they lie.
    unsafe { paging::activate(&tables) };
    // SAFETY: free memory, mapped writable, used by nobody else.
    unsafe { heap::init(tables.free(), high) };
}

fn take_modules(module: Region) {
    // SAFETY: the range is mapped read-only for ever.
    let bytes = unsafe {
        core::slice::from_raw_parts(module.start as *const u8, module.end - module.start)
    };
    match Archive::new(bytes) {
        Ok(archive) => host::set_archive(archive),
        Err(error) => fatal::fatal(format_args!("{error}")),
    }
}

/// Keys the random generator. Waits for the entropy device only when the host gave no seed.
fn seed(config: &BootConfig, entropy: Option<&mut EntropyDevice>) {
    if let Some(seed) = &config.seed {
        random::add_entropy(&seed.0);
        return;
    }
    let end = clock::now_ns() + ENTROPY_NS;
    if let Some(entropy) = entropy {
        while clock::now_ns() < end {
            if entropy.collect() {
                return;
            }
            core::hint::spin_loop();
        }
    }
    log::warn!("the host gave no entropy; random numbers can be guessed");
}

/// What the main loop works on.
struct Machine {
    executor: Executor,
    service: Rc<Service>,
    entropy: Option<EntropyDevice>,
    /// Kernel entry to listening; 0 until the machine listens.
    boot_us: u64,
    /// When waiting for DHCP ends.
    dhcp_end: Option<u64>,
    /// The address that is listened on, until it has been logged. That waits until there is nothing
    /// better to do: the first client may be knocking.
    unlogged: Option<Ipv4Addr>,
}

impl Machine {
    /// The main loop. Devices are acknowledged before their queues are looked at, and interrupts
    /// are enabled only inside the sleep, so whatever comes in between wakes it.
    fn live(mut self) -> ! {
        match net::address() {
            Some(address) => self.listen(address),
            None => self.dhcp_end = Some(clock::now_ns() + DHCP_NS),
        }
        let mut stop_end = None;
        loop {
            let pending = interrupts::take_pending();
            let polled = net::poll(pending);
            for connection in polled.accepted {
                self.executor.spawn(server::run(connection, Rc::clone(&self.service)));
            }
            if let Some(lease) = polled.lease {
                self.on_lease(lease);
            }
            for line in host::take_lines(pending) {
                self.on_line(line);
            }
            self.look_at_others(pending);
            let now = clock::now_ns();
            let timer = clock::wake_due(now);
            let busy = self.executor.run_round();
            net::flush();
            if self.dhcp_end.is_some_and(|end| now >= end) {
                fatal::fatal(format_args!("no address: no DHCP server answered"));
            }
            if server::is_stopping() {
                let end = self.stop_deadline(now, &mut stop_end);
                if self.executor.len() == 0 || end.is_some_and(|end| now >= end) {
                    log::info!("stopped");
                    fatal::end(ExitCode::Stopped);
                }
            }
            if !busy && !net::has_frame() {
                if let Some(address) = self.unlogged.take() {
                    let config = host::config();
                    log::info!("{} listens on {address}:{}", config.host, config.port);
                    continue;
                }
                let deadlines =
                    [timer, clock::wake_due(0), net::deadline(), self.dhcp_end, stop_end];
                sleep_until(deadlines.into_iter().flatten().min());
            }
        }
    }

    /// Two seconds after the last request has left the service.
    fn stop_deadline(&self, now: u64, end: &mut Option<u64>) -> Option<u64> {
        if COUNTERS.in_service.load(Ordering::Relaxed) > 0 {
            *end = None;
        } else {
            end.get_or_insert(now + STOP_NS);
        }
        *end
    }

    fn look_at_others(&mut self, pending: u32) {
        if pending != 0 {
            log_output::acknowledge(pending);
        }
        if let Some(entropy) = &mut self.entropy {
            if pending & entropy.slot_bit() != 0 {
                entropy.acknowledge();
            }
            entropy.collect();
        }
    }

    /// Accepts connections and tells the host.
    fn listen(&mut self, address: Ipv4Addr) {
        let config = host::config();
        self.dhcp_end = None;
        if !server::is_stopping() {
            net::listen(config.port.get());
        }
        clock::settle();
        if self.boot_us == 0 {
            self.boot_us = clock::now_ns() / 1000;
        }
        let (port, capacity) = (config.port.get(), config.capacity);
        host::tell(GuestLine::Ready { port, capacity, boot_us: self.boot_us });
        self.unlogged = Some(address);
    }

    fn on_lease(&mut self, lease: net::Lease) {
        let config = BootConfig { gw: lease.gw, dns: lease.dns, ..host::config().clone() };
        host::set_config(config);
        if self.dhcp_end.is_some() {
            self.listen(lease.ip.address());
        }
    }

    fn on_line(&mut self, line: HostLine) {
        match line {
            HostLine::Stats => host::tell(GuestLine::Stats(host::stats())),
            HostLine::Stop => {
                log::info!("stopping");
                server::stop();
                net::listen(0);
                self.executor.wake_all();
            }
            HostLine::Identity(identity) => self.take_identity(*identity),
        }
    }

    /// A machine that continues from saved state becomes another one.
    fn take_identity(&mut self, identity: Identity) {
        clock::distrust();
        clock::set_unix_ns(identity.clock.unwrap_or(0));
        if let Some(seed) = &identity.seed {
            random::add_entropy(&seed.0);
        }
        if let Some(entropy) = &mut self.entropy {
            entropy.request();
        }
        let old = host::config();
        let config = BootConfig {
            ip: identity.ip.or(old.ip),
            gw: identity.gw.or(old.gw),
            dns: identity.dns.or(old.dns),
            host: identity.host.unwrap_or_else(|| old.host.clone()),
            ..old.clone()
        };
        let (ip, gw) = (config.ip, config.gw);
        host::set_config(config);
        net::renew_card(identity.mac);
        self.executor.wake_all();
        net::configure(ip, gw);
        match ip {
            Some(ip) => self.listen(ip.address()),
            None => self.dhcp_end = Some(clock::now_ns() + DHCP_NS),
        }
    }
}

/// Sleeps until an interrupt or until `deadline`, ns since boot.
fn sleep_until(deadline: Option<u64>) {
    let before = clock::now_ns();
    if deadline.is_some_and(|deadline| deadline <= before) {
        return;
    }
    clock::arm(deadline.map(|deadline| deadline - before));
    cpu::wait_for_interrupt();
    let slept = clock::now_ns() - before;
    COUNTERS.idle_ns.fetch_add(slept, Ordering::Relaxed);
}
